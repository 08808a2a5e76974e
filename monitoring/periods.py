"""Periods: which rows belong together, and when a period is complete; by event time or by counts of rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from features.block import IntArray

__all__ = ["Periods", "Run"]

#: the slot of a row whose period was closed before it came
LATE = -1


class Run(NamedTuple):
    """Rows ``start`` to ``stop`` of a block; before they count, all periods below ``closed_to`` close. ``slot``
    (stop - start,) int64: the period of each row, -1 where it is closed already."""

    start: int
    stop: int
    closed_to: int
    slot: IntArray


class Periods:
    """The time of one stream of rows, in periods.

    By event time, period p holds the rows with p * length <= event_time < (p + 1) * length, and closes when the
    stream's clock has reached its end + ``allowance``. By rows, period p holds the rows p * length to
    (p + 1) * length - 1, and closes when it is full.
    ``clock`` is the largest clock value seen so far, or the number of rows.
    """

    def __init__(self, length: int, allowance: int, by_rows: bool) -> None:
        self.length = length
        self.allowance = 0 if by_rows else allowance
        self.by_rows = by_rows
        self.clock: int | None = None

    def runs(self, event_time_ms: IntArray, clock_ms: IntArray) -> Iterator[Run]:
        """The block's rows (n,) in runs between closings of periods; moves the clock past them."""
        n = len(event_time_ms)
        if n == 0:
            return
        if self.by_rows:
            seen = self.clock or 0
            slot = (seen + np.arange(n)) // self.length
            closed = slot
            self.clock = seen + n
        else:
            now = np.maximum.accumulate(clock_ms)
            if self.clock is not None:
                now = np.maximum(now, self.clock)
            self.clock = int(now[-1])
            closed = (now - self.allowance) // self.length
            slot = event_time_ms // self.length
            slot = np.where(slot < closed, LATE, slot)
        starts = [0, *(np.flatnonzero(np.diff(closed)) + 1).tolist(), n]
        for start, stop in pairwise(starts):
            yield Run(start, stop, int(closed[start]), slot[start:stop])

    def full(self) -> int | None:
        """By rows, the number of periods that are complete: they close with their last row, not with the next one."""
        return (self.clock or 0) // self.length if self.by_rows else None
