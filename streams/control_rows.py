"""The newest records of ``labelled`` as columns: what the control loop learns from and judges by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import xxhash

from features.block import BoolArray, FloatArray, IntArray
from models.rebuild import LabelledRows
from streams.control_state import Kept

__all__ = ["Rows", "Window", "read_rows"]

#: a label's time is believed up to so long after its record was sent
_FUTURE_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Rows:
    """n records of one partition: ``offsets``, ``chance`` (63 bits that the record's key decides), ``event_time_ms``,
    ``known_ms`` (when the label was known), ``group`` (of the card), ``y`` 0/1, all (n,) int64, and ``x`` (n, d)
    float64."""

    offsets: IntArray
    chance: IntArray
    event_time_ms: IntArray
    known_ms: IntArray
    group: IntArray
    y: IntArray
    x: FloatArray

    def __len__(self) -> int:
        return len(self.offsets)


def read_rows(
    offsets: Sequence[int],
    timestamps: Sequence[int],
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    features: Sequence[str],
    level: int = 0,
) -> Rows:
    """Of the records one in 2 ** ``level``, by a hash of their keys, transaction ids, where they have all ``features``;
    others, and those that cannot be read, are left out. A transaction is in or out whoever reads it, and in at a level
    only if it is in at all lower ones."""
    whole: list[list[int]] = []
    x: list[list[float]] = []
    for offset, timestamp, key, value in zip(offsets, timestamps, keys, values, strict=True):
        chance = xxhash.xxh3_64_intdigest(b"%d" % offset if key is None else key) >> 1
        row = None if chance & ((1 << level) - 1) else _row(value, features)
        if row is not None:
            numbers, vector = row
            numbers[1] = min(numbers[1], timestamp + _FUTURE_MS)
            whole.append([offset, chance, *numbers])
            x.append(vector)
    places, chances, event_time, known, group, y = np.array(whole, np.int64).reshape(-1, 6).T
    vectors = np.array(x, np.float64).reshape(len(x), len(features))
    return Rows(places, chances, event_time, known, group, y, vectors)


def _row(value: bytes | None, features: Sequence[str]) -> tuple[list[int], list[float]] | None:
    """([event time, when the label was known, group, label], features)."""
    try:
        record: dict[str, Any] = orjson.loads(value or b"")
        found, label = record["features"], record["label"]
        vector = [math.nan if (v := found[name]) is None else float(v) for name in features]
        numbers = [int(record["event_time"]), int(record["label_time"]), _group(record["card_id"]), int(label)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return (numbers, vector) if label in (0, 1) else None


def _group(card: int | str) -> int:
    return xxhash.xxh3_64_intdigest(str(card).encode()) >> 1


class Window:
    """About ``rows_max`` rows, an equal part of each partition: one in 2 ** ``kept.level`` of the newest records by
    offset. Which these are follows from ``kept`` and how far the partitions are used. What it gives is in canonical
    order, by event time, partition and offset: neither blocks nor the order among partitions show."""

    def __init__(self, features: Sequence[str], rows_max: int, partitions: int, kept: Kept | None = None) -> None:
        self.features = tuple(features)
        self.kept = kept or Kept()
        self._share = max(1, rows_max // partitions)
        self._ends = [0] * partitions
        self._used = 0
        #: partition, offset, chance, event time, known, group, label
        self._whole = np.empty((7, 1024), np.int64)
        self._x = np.empty((1024, len(self.features)), np.float64)

    @property
    def _begin(self) -> list[int]:
        """By partition; one that was added since has all of its rows."""
        return [*self.kept.begin, *[0] * (len(self._ends) - len(self.kept.begin))]

    @property
    def ends(self) -> list[int]:
        """By partition, up to where it is used."""
        return list(self._ends)

    def start_of(self, ends: Sequence[int], finer: int = 0) -> list[int]:
        """By partition, the lowest offset that is kept when the partitions are used up to ``ends``; were rows kept at a
        level ``finer`` by so much."""
        share = self._share << (self.kept.level - finer)
        return [max(first, end - share) for first, end in zip(self._begin, ends, strict=True)]

    def thin(self) -> None:
        """Leaves out every other row from now on, so that those that stay are of twice the time."""
        self.kept = Kept(self.kept.level + 1, self.start_of(self._ends))
        self._make_room(0)

    def add(self, partition: int, rows: Rows, end: int) -> None:
        """Takes the next rows of a partition, which is used up to ``end`` now."""
        n = len(rows)
        if self._used + n > len(self._x):
            self._make_room(n)
        at = slice(self._used, self._used + n)
        self._whole[0, at] = partition
        parts = (rows.offsets, rows.chance, rows.event_time_ms, rows.known_ms, rows.group, rows.y)
        for mine, theirs in zip(self._whole[1:], parts, strict=True):
            mine[at] = theirs
        self._x[at] = rows.x
        self._used += n
        self._ends[partition] = end

    def _make_room(self, n: int) -> None:
        kept = np.flatnonzero(self._kept())
        size = max(len(self._x), 2 * (len(kept) + n))
        whole, x = np.empty((7, size), np.int64), np.empty((size, len(self.features)), np.float64)
        whole[:, : len(kept)], x[: len(kept)] = self._whole[:, kept], self._x[kept]
        self._whole, self._x, self._used = whole, x, len(kept)

    def _kept(self) -> BoolArray:
        starts = np.array(self.start_of(self._ends), np.int64)
        partition, offset, chance, *_ = self._columns()
        kept: BoolArray = (offset >= starts[partition]) & (chance & ((1 << self.kept.level) - 1) == 0)
        return kept

    def _columns(self) -> IntArray:
        return self._whole[:, : self._used]

    def since(self, since_ms: int, mature_by_ms: int, begin: Sequence[int] | None = None) -> BoolArray:
        """Which rows have an event from ``since_ms`` to ``mature_by_ms``; with ``begin``, by partition, only those at
        these offsets or later."""
        partition, offset, _, event_time, *_ = self._columns()
        chosen: BoolArray = self._kept() & (event_time >= since_ms) & (event_time <= mature_by_ms)
        if begin is not None:
            chosen &= offset >= np.array([*begin, *[0] * (len(self._ends) - len(begin))], np.int64)[partition]
        return chosen

    def finer(self) -> Kept:
        """What would be kept at the next lower level: of half the time, twice as many."""
        return Kept(self.kept.level - 1, self.start_of(self._ends, finer=1))

    def finer_reach_ms(self, clock_ms: int) -> int | None:
        """How long before this time the oldest row that would be kept then was labelled, of the partition where that is
        least; None without rows."""
        starts = np.array(self.start_of(self._ends, finer=1), np.int64)
        partition, offset, _, _, known, *_ = self._columns()
        kept = self._kept() & (offset >= starts[partition])
        mine = (known[kept & (partition == p)] for p in range(len(starts)))
        return min((clock_ms - int(times.min()) for times in mine if len(times)), default=None)

    def reach_ms(self, clock_ms: int) -> int | None:
        """How long before this time the oldest row that is kept was labelled, of the partition where that is least;
        None where none is left out yet for newer ones."""
        starts, kept = self.start_of(self._ends), self._kept()
        partition, _, _, _, known, *_ = self._columns()
        mine = (known[kept & (partition == p)] for p, start in enumerate(starts) if start > self._begin[p])
        return min((clock_ms - int(times.min()) for times in mine if len(times)), default=None)

    def frauds(self, chosen: BoolArray) -> int:
        """How many of these rows are frauds."""
        return int(self._columns()[6][chosen].sum())

    def take(self, chosen: BoolArray) -> LabelledRows:
        """These rows, in canonical order."""
        at = np.flatnonzero(chosen)
        partition, offset, _, event_time, _, group, y = self._columns()[:, at]
        order = np.lexsort((offset, partition, event_time))
        return LabelledRows(self.features, self._x[at[order]], y[order], event_time[order], group[order])
