"""How far behind its logs a worker is: how many records of each topic wait for their stage, and for how long already.

A topic has one stage, so a topic's lag is its stage's. It is said in the log once when a stage falls behind by so many
seconds, and once when it has caught up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from streams.assignment import Assignment
from streams.log import TP

__all__ = ["Lag", "LagWatch"]

logger = logging.getLogger("headrace.lag")

#: a stage has caught up when its lag is below this share of what is said
_CAUGHT_UP = 0.2


class Lag(NamedTuple):
    """``records`` that were sent and are not done; how many ``seconds`` ago the oldest of them in hand was sent."""

    records: int
    seconds: float


@dataclass(slots=True)
class _Behind:
    """A stage that is behind: since when, and how far at the most."""

    since: float
    most: Lag


class LagWatch:
    """A stage is behind when it is at a record that was sent ``said_s`` ago or longer, by the record's timestamp: the
    producers' clocks and ``now_s``. What is replayed to restore a state is not counted.
    """

    def __init__(
        self,
        assignment: Assignment,
        said_s: float,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._assignment, self._said_s, self._clock_s, self._now_s = assignment, said_s, clock_s, now_s
        self._lags: dict[str, Lag] = {}
        #: where the partitions' logs end, as of the last look
        self.ends: Mapping[TP, int] = {}
        self._behind: dict[str, _Behind] = {}

    @property
    def lags(self) -> dict[str, Lag]:
        """By topic, as of the last look."""
        return self._lags

    def note(self, ends: Mapping[TP, int]) -> None:
        """To be called about once a second, with where the partitions' logs end."""
        self.ends = ends
        records = self._assignment.waiting_records(ends)
        lags: dict[str, Lag] = {}
        for topic, count in sorted(records.items()):
            oldest_ms = self._assignment.oldest_sent_ms(topic)
            known = self._lags.get(topic, Lag(0, 0.0)).seconds if count else 0.0
            seconds = known if oldest_ms is None else max(0.0, self._now_s() - oldest_ms / 1000)
            lags[topic] = Lag(count, round(seconds, 3))
        self._lags = lags
        for topic in lags.keys() | self._behind.keys():
            self._say(topic, lags.get(topic, Lag(0, 0.0)))

    def _say(self, topic: str, lag: Lag) -> None:
        behind = self._behind.get(topic)
        if behind is None:
            if lag.seconds >= self._said_s:
                self._behind[topic] = _Behind(self._clock_s(), lag)
                logger.warning(
                    "%s: behind, %d records wait and the oldest was sent %.0f s ago", topic, lag.records, lag.seconds
                )
            return
        behind.most = Lag(max(behind.most.records, lag.records), max(behind.most.seconds, lag.seconds))
        if lag.seconds < self._said_s * _CAUGHT_UP:
            del self._behind[topic]
            logger.info(
                "%s: caught up after %.0f s; at most %d records waited, the oldest for %.0f s",
                topic,
                self._clock_s() - behind.since,
                *behind.most,
            )
