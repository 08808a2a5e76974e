"""Where the logs of a worker's partitions end, asked once for all who want to know."""

from __future__ import annotations

import time
from collections.abc import Callable

from streams.assignment import Assignment
from streams.log import TP, LogConsumer, LogUnavailable

__all__ = ["LogEnds"]

_INTERVAL_S = 1.0
#: least time between two questions, where an end is to be confirmed
_WANTED_S = 0.05
#: a broker that could not say where logs end is asked again after so long
_AGAIN_S = 2.0


class LogEnds:
    """One question for all partitions at a time: every second, and at once where an end is to be confirmed. No poll
    waits for the answer."""

    def __init__(self, assignment: Assignment, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._assignment, self._clock_s = assignment, clock_s
        #: when it is time again, and before when nobody is asked
        self._due_at = self._not_before = 0.0
        #: when the log was asked, and its answer
        self._asked: tuple[float, Callable[[], dict[TP, int] | None]] | None = None

    def look(self, consumer: LogConsumer) -> dict[TP, int] | None:
        """To be called often: confirms the ends that the assignment wants confirmed; returns an answer that has just
        come, None where there is none."""
        try:
            if self._asked is None:
                return self._ask(consumer)
            asked_at, answer = self._asked
            ends = answer()
        except LogUnavailable:
            self._asked = None
            self._due_at = self._not_before = self._clock_s() + _AGAIN_S
            return None
        if ends is None:
            return None
        self._asked = None
        for tp in self._assignment.ends_wanted():
            position = consumer.position(tp)
            if tp in ends and position is not None and position >= ends[tp]:
                self._assignment.confirm_end(tp, asked_at, self._clock_s() - asked_at)
        return ends

    def _ask(self, consumer: LogConsumer) -> dict[TP, int] | None:
        now = self._clock_s()
        if now < self._due_at and (now < self._not_before or not self._assignment.ends_wanted()):
            return None
        self._due_at, self._not_before = now + _INTERVAL_S, now + _WANTED_S
        partitions = list(self._assignment.partitions)
        if not partitions:
            return {}
        self._asked = (now, consumer.ends(partitions))
        return None
