"""A bounded queue of keys in order of arrival, searchable by key; and `Dedupe` on top of it.

Rows ``(capacity, 4)`` uint64: ``hi, lo, time (int64 bits), previous`` with ``previous`` = 1 + sequence number
of the older row of the same key, 0 = none. The table's payload is 1 + the sequence number of the key's newest row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays
from features.block import BoolArray, IntArray, KeyArray
from features.kernel import helper, kernel, own, prefetch, signed
from features.memory import zeros
from features.state import (
    NO_TIME,
    TABLE_CAPACITY_MIN,
    Table,
    copy_entry,
    power_of_two,
    table_capacity,
    table_find,
    table_full,
    table_home,
    table_prefetch,
    table_remove,
)

__all__ = ["Dedupe", "Fifo", "Queue", "fifo_expire", "fifo_pop", "fifo_push", "fifo_ready"]

Rows = npt.NDArray[np.uint64]

# columns of Fifo.meta: sequence numbers of the oldest row and after the newest, keys in the table, drops forced by the
# bound, stream time
FIRST, NEXT, KEYS, FORCED, STREAM = 0, 1, 2, 3, 4
_FIFO_CAPACITY_MIN = 64
#: rows ahead whose places in the table are prefetched
_AHEAD = 12


class Queue(NamedTuple):
    """What kernels see of a `Fifo`."""

    rows: Rows
    table: Table
    meta: IntArray


@helper
def fifo_ready(queue: Queue) -> bool:
    """True where one more row fits without growing."""
    return queue.meta[NEXT] - queue.meta[FIRST] < queue.rows.shape[0] and not table_full(queue.table, queue.meta[KEYS])


@helper
def fifo_push(queue: Queue, hi: np.uint64, lo: np.uint64, time: int) -> None:
    """Adds a row as the newest; `fifo_ready` must hold."""
    sequence = queue.meta[NEXT]
    queue.meta[NEXT] = sequence + 1
    at = sequence & (queue.rows.shape[0] - 1)
    place = table_find(queue.table, hi, lo)
    queue.rows[at, 3] = np.uint64(0)
    if place >= 0:
        queue.rows[at, 3] = queue.table[place, 2]
    else:
        place = -1 - place
        queue.table[place, 0] = hi
        queue.table[place, 1] = lo
        queue.meta[KEYS] += 1
    queue.table[place, 2] = np.uint64(sequence + 1)
    queue.rows[at, 0] = hi
    queue.rows[at, 1] = lo
    queue.rows[at, 2] = np.uint64(time)


@kernel
def fifo_pop(queue: Queue) -> bool:
    """Drops the oldest row; True where it was its key's newest, so that the key is gone."""
    sequence = queue.meta[FIRST]
    queue.meta[FIRST] = sequence + 1
    at = sequence & (queue.rows.shape[0] - 1)
    place = table_find(queue.table, queue.rows[at, 0], queue.rows[at, 1])
    if place >= 0 and signed(queue.table[place, 2]) == sequence + 1:
        table_remove(queue.table, place)
        queue.meta[KEYS] -= 1
        return True
    return False


@kernel
def fifo_expire(queue: Queue, horizon: int, history: bool) -> None:
    """Drops rows from the front as long as the oldest has a time at or below the horizon.

    Without history a row that the table no longer points to goes too, so that it never shields those behind it.
    """
    while queue.meta[FIRST] < queue.meta[NEXT]:
        at = queue.meta[FIRST] & (queue.rows.shape[0] - 1)
        if signed(queue.rows[at, 2]) > horizon:
            if history:
                return
            place = table_find(queue.table, queue.rows[at, 0], queue.rows[at, 1])
            if place >= 0 and signed(queue.table[place, 2]) == queue.meta[FIRST] + 1:
                return
        fifo_pop(queue)


@kernel
def _copy(queue: Queue, all_rows: bool, out: Rows) -> int:
    """Copies rows, oldest first; unless ``all_rows`` only the ones the table points to. Returns how many."""
    count = 0
    for sequence in range(queue.meta[FIRST], queue.meta[NEXT]):
        at = sequence & (queue.rows.shape[0] - 1)
        if not all_rows:
            place = table_find(queue.table, queue.rows[at, 0], queue.rows[at, 1])
            if place < 0 or signed(queue.table[place, 2]) != sequence + 1:
                continue
        copy_entry(queue.rows, at, out, count)
        count += 1
    return count


@kernel
def _push_all(queue: Queue, source: Rows) -> None:
    for i in range(source.shape[0]):
        fifo_push(queue, source[i, 0], source[i, 1], signed(source[i, 2]))


class Fifo:
    """The queue's arrays. ``history`` keeps superseded rows of a key (Dedupe), otherwise they are dead weight."""

    def __init__(self, *, history: bool) -> None:
        self.history = history
        self.meta = np.array([0, 0, 0, 0, NO_TIME], np.int64)
        self._allocate(0)

    def _allocate(self, n: int) -> None:
        """Room for n rows."""
        self.rows: Rows = zeros((max(_FIFO_CAPACITY_MIN, power_of_two(n)), 4), np.uint64)
        self.table: Table = zeros((max(TABLE_CAPACITY_MIN, table_capacity(n)), 4), np.uint64)
        self.meta[:3] = 0

    def __len__(self) -> int:
        return int(self.meta[NEXT] - self.meta[FIRST])

    @property
    def view(self) -> Queue:
        """The arrays as they are now: to be asked for again after they grew."""
        return Queue(self.rows, self.table, self.meta)

    @property
    def forced(self) -> int:
        """Rows dropped because of the bound, not of their age."""
        return int(self.meta[FORCED])

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.table.nbytes

    def entries(self) -> Rows:
        """(m, 4): the rows that count, oldest first."""
        out = np.empty((len(self), 4), np.uint64)
        return out[: _copy(self.view, self.history, out)]

    def grow(self) -> None:
        """Makes room, leaving out rows that count no more."""
        entries = self.entries()
        self.load(entries, len(entries) // 4 + 1)

    def load(self, entries: Rows, room: int = 0) -> None:
        """Replaces the content by these rows, oldest first, with room for so many more."""
        self._allocate(len(entries) + room)
        _push_all(self.view, entries)

    def to_arrays(self) -> Arrays:
        """keys (m, 2) uint64 and times (m,) int64, oldest first, and meta (2,) int64: forced, stream time."""
        if self.history:  # all rows count: they lie in the ring in one piece or two
            begin = int(self.meta[FIRST]) & (len(self.rows) - 1)
            end = begin + len(self)
            pieces = [self.rows[begin:end], self.rows[: max(0, end - len(self.rows))]]
        else:
            pieces = [self.entries()]
        return {
            "keys": np.concatenate([rows[:, :2] for rows in pieces]),
            "times": np.concatenate([rows[:, 2] for rows in pieces]).view(np.int64),
            "meta": self.meta[[FORCED, STREAM]],
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], *, history: bool) -> Fifo:
        """The reverse of `to_arrays`."""
        fifo = cls(history=history)
        keys, times = arrays["keys"], arrays["times"]
        entries: Rows = np.zeros((len(times), 4), np.uint64)
        entries[:, :2] = keys
        entries[:, 2] = np.ascontiguousarray(times, np.int64).view(np.uint64)
        fifo.load(entries)
        fifo.meta[[FORCED, STREAM]] = arrays["meta"]
        return fifo


@helper
def _look_ahead(queue: Queue, keys: KeyArray, row: int) -> None:
    """Prefetches where rows after ``row`` will look, and where those that leave soon stand."""
    table_prefetch(queue.table, keys, row + _AHEAD)
    leaving = queue.meta[FIRST] + _AHEAD
    if leaving < queue.meta[NEXT]:
        at = leaving & (queue.rows.shape[0] - 1)
        home = table_home(queue.rows[at, 0], queue.rows[at, 1], queue.table.shape[0] - 1)
        prefetch(queue.table, 4 * home)


@kernel
def _dedupe_rows(
    queue: Queue,
    keys: KeyArray,
    times: IntArray,
    window_ms: int,
    lateness_ms: int,
    entries_max: int,
    repeated: BoolArray,
    begin: int,
) -> int:
    """Marks repeated rows from ``begin`` on; returns the row that needs a larger queue, or n."""
    mask = queue.rows.shape[0] - 1
    for row in range(begin, len(times)):
        _look_ahead(queue, keys, row)
        t = times[row]
        fifo_expire(queue, queue.meta[STREAM] - window_ms - lateness_ms - 1, True)
        place = table_find(queue.table, keys[row, 0], keys[row, 1])
        sequence = signed(queue.table[place, 2]) - 1 if place >= 0 else np.int64(-1)
        repeated[row] = False
        while sequence >= queue.meta[FIRST] and not repeated[row]:
            repeated[row] = abs(t - signed(queue.rows[sequence & mask, 2])) <= window_ms
            sequence = signed(queue.rows[sequence & mask, 3]) - 1
        if repeated[row]:
            continue
        if queue.meta[NEXT] - queue.meta[FIRST] >= entries_max:
            fifo_pop(queue)
            queue.meta[FORCED] += 1
        if not fifo_ready(queue):
            return row
        fifo_push(queue, keys[row, 0], keys[row, 1], t)
        queue.meta[STREAM] = max(queue.meta[STREAM], t)
    return len(times)


class Dedupe:
    """Transaction ids seen: a row is repeated if a row of the same id within ``window_ms`` of event time came before.

    Kept are at least all ids with event time above stream time - window - allowed lateness, at most ``entries_max``;
    beyond that the oldest arrivals go first, counted in `forced`. Repeated rows leave no trace.
    """

    def __init__(
        self, *, window_ms: int = 86_400_000, allowed_lateness_ms: int = 3_600_000, entries_max: int = 2_000_000
    ) -> None:
        if entries_max < 1:
            raise ValueError(f"entries_max is {entries_max}; at least one id must be kept: give 1 or more")
        self.window_ms = window_ms
        self.allowed_lateness_ms = allowed_lateness_ms
        self.entries_max = entries_max
        self._fifo = Fifo(history=True)

    def __len__(self) -> int:
        """Ids kept."""
        return len(self._fifo)

    @property
    def forced(self) -> int:
        """Ids forgotten because of ``entries_max`` before their time."""
        return self._fifo.forced

    @property
    def nbytes(self) -> int:
        return self._fifo.nbytes

    def process(self, keys: KeyArray, times: IntArray) -> BoolArray:
        """(n,) mask of the repeated rows, for ids (n, 2) uint64 and event times (n,) int64 ms in log order."""
        keys, times = own(keys, np.uint64), own(times, np.int64)
        repeated = np.empty(len(times), np.bool_)
        row, fifo = 0, self._fifo
        while True:
            row = _dedupe_rows(
                fifo.view,
                keys,
                times,
                self.window_ms,
                self.allowed_lateness_ms,
                self.entries_max,
                repeated,
                row,
            )
            if row == len(times):
                return repeated
            fifo.grow()

    def to_arrays(self) -> Arrays:
        """The state as arrays, the same however the rows were cut into blocks; see `Fifo.to_arrays`."""
        return self._fifo.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], **settings: int) -> Dedupe:
        """The reverse of `to_arrays`; ``settings`` as for the constructor."""
        state = cls(**settings)
        state._fifo = Fifo.from_arrays(arrays, history=True)
        return state
