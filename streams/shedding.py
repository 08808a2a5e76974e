"""Load shedding: which transactions a worker that has fallen behind does not score, so that fresh ones are in time.

A shed transaction is in all windows, so every feature stays exact; only its score, reasons and record are left out,
which is most of what a transaction costs. The card stage decides, by its clock, and writes the decision into the rows
that it sends (rule 5 of the design): whoever reads that log again, after a crash or to verify it, sheds the same.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import orjson

from features.block import Block, BoolArray
from streams.errors import ConfigError
from streams.log import OutBatch
from streams.rows import Rows
from streams.shuffle import Shuffled
from streams.topics import SHED_EVENTS

__all__ = ["SHED", "Shedder", "SheddingPolicy", "report", "shed_rows"]

logger = logging.getLogger("headrace.shedding")

#: the bool column of rows that were decided on; messages in which nothing is shed do not have it
SHED = "shed"
#: nothing shed for so long: the overload is over
_OVER_S = 5.0
_FORMS = "none, older:SECONDS, or older:SECONDS,below:AMOUNT"


@dataclass(frozen=True, slots=True)
class SheddingPolicy:
    """Sheds what would be scored more than ``older_s`` after it was sent; with ``below``, only amounts below that."""

    older_s: float
    below: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The policy of ``none`` (None), ``older:SECONDS`` or ``older:SECONDS,below:AMOUNT``; ConfigError otherwise.

        >>> SheddingPolicy.parse("older:2,below:50")
        SheddingPolicy(older_s=2.0, below=50.0)
        """
        if text == "none":
            return None
        parts = [part.partition(":") for part in text.split(",")]
        values = {name: _number(value) for name, _, value in parts}
        if len(values) != len(parts) or not {"older"} <= values.keys() <= {"older", "below"}:
            raise ConfigError(f"{text!r} is not a policy of shedding; give {_FORMS}")
        if any(not 0 < value < math.inf for value in values.values()):
            raise ConfigError(f"{text!r}: seconds and amount must be numbers above 0; give {_FORMS}")
        return cls(values["older"], values.get("below", math.inf))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


class Shedder:
    """Decides for a worker's card tasks. ``oldest_sent_ms`` is when the record that the terminal stage is at was sent
    to it, None where nothing waits there: what goes out now is scored so much later. The clocks are those of producers
    and worker; a record without a timestamp is never shed."""

    def __init__(
        self,
        policy: SheddingPolicy,
        oldest_sent_ms: Callable[[], int | None] = lambda: None,
        *,
        now_s: Callable[[], float] = time.time,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self._oldest_sent_ms, self._now_s, self._clock_s = oldest_sent_ms, now_s, clock_s
        self._count = 0
        self._since_s = self._last_s = 0.0

    def choose(self, rows: Block) -> BoolArray | None:
        """(n,) which rows are to be shed; None where none is. Rows that were late by card never are: their copies in
        late-events say that they were scored, and are to be the same after a crash."""
        now_ms = self._now_s() * 1000
        oldest = self._oldest_sent_ms()
        wait_ms = 0.0 if oldest is None else max(0.0, now_ms - oldest)
        sent = rows.timestamps
        shed: BoolArray = (sent > 0) & (sent < now_ms + wait_ms - 1000 * self.policy.older_s)
        shed &= ~rows.columns["late"].astype(np.bool_, copy=False)
        if self.policy.below < math.inf:
            shed &= rows.columns["amount"].astype(np.float64, copy=False) < self.policy.below
        count = int(np.count_nonzero(shed))
        self._say(count, len(shed))
        return shed if count else None

    def _say(self, count: int, of: int) -> None:
        now = self._clock_s()
        if count:
            if not self._count:
                self._since_s = now
                logger.warning(
                    "overload: transactions that would be scored more than %g s after they were sent are not scored "
                    "(shed); they are in the windows, and named in %s",
                    self.policy.older_s,
                    SHED_EVENTS,
                )
            self._count += count
            self._last_s = now
        elif self._count and of and now - self._last_s >= _OVER_S:
            logger.info("%d transactions were shed in %.0f s; none since", self._count, self._last_s - self._since_s)
            self._count = 0


def shed_rows(rows: Block) -> BoolArray | None:
    """(n,) which of these rows their sender has shed; None where none is."""
    column = rows.columns.get(SHED)
    if column is None:
        return None
    shed: BoolArray = column.astype(np.bool_, copy=False)
    return shed if shed.any() else None


def report(message: Shuffled, place: str) -> tuple[int, OutBatch | None]:
    """How many rows of a message of the log are shed, and the record that names them.

    ``place`` is where the message is in the log: a repeated record is the same, byte by byte.
    """
    if message.kind != "rows" or f"b1:{SHED}" not in message.rows.layout.words:
        return 0, None
    rows = _shed_part(message.rows)
    source = message.source
    value = {
        "topic": source.topic,
        "partition": source.partition,
        "offsets": rows.offsets.tolist(),
        "transaction_ids": rows.ids["transaction_id"].to_list(),
    }
    headers: Sequence[dict[str, bytes]] = [{"stage": b"terminal", "source": place.encode()}]
    key = f"{source.topic}/{source.partition}".encode()
    return len(rows), OutBatch(SHED_EVENTS, [orjson.dumps(value)], [key], None, headers) if len(rows) else None


def _shed_part(rows: Rows) -> Block:
    block = rows.block("", 0, 0, ("transaction_id", SHED))
    return block.take(block.columns[SHED].astype(np.bool_))
