"""Sorted rings: per slot a ring of rows in time order, all rings in one growable pool.

The pool is a flat uint64 array of rows of ``width`` words; the first word is the time (int64 ms as bits), the
meaning of the others is the owner's. A ring's capacity is a power of two; freed blocks of each size form a
free list. Rows are numbered by ever growing indices ``head..tail-1``, row ``i`` lies at ``i & (capacity-1)``.

``heads`` (slots, 3 + own columns) int64 holds per slot: block (``start * 64 + log2(capacity)``, 0 = none),
head, tail, and what the owner adds; an empty slot is all zero, so that slots never used are pages never touched.
Kernels never allocate memory: where the pool is full they say so, and `RingPool.grow` makes it larger, which never
shows in results.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.block import IntArray
from features.kernel import helper, kernel, signed
from features.memory import UNBOUNDED, GrowingArray, head_words, larger

__all__ = [
    "BLOCK",
    "HEAD",
    "NEAR",
    "NO_BLOCK",
    "OWN",
    "TAIL",
    "Ring",
    "RingPool",
    "Words",
    "export_rows",
    "give_block",
    "newest_times",
    "open_gap",
    "ring_double",
    "ring_evict",
    "ring_room",
    "row_at",
    "seek",
    "seek_from_tail",
    "seek_near",
]

Words = npt.NDArray[np.uint64]

BLOCK, HEAD, TAIL, OWN = 0, 1, 2, 3
#: no block: a block has at least 2**2 rows, so that its number is never 0
NO_BLOCK = 0
#: end of a free list; no room in the pool
_NONE = -1
_LOG_BITS = 6
_LOG_MASK = 63
_RING_LOG_MIN = 2
_CLASSES = 48
_POOL_ROWS_MIN = 256
#: rows that `seek_near` looks at
NEAR = 4
#: `free[_USED]` is the number of pool rows handed out so far, below it are the heads of the free lists
_USED = _CLASSES


class Ring(NamedTuple):
    """What kernels see of a `RingPool`."""

    pool: Words
    heads: IntArray
    free: IntArray
    width: int


@helper
def row_at(ring: Ring, slot: int, index: int) -> int:
    """Position in the pool of the first word of row ``index``."""
    block = ring.heads[slot, BLOCK]
    capacity = 1 << (block & _LOG_MASK)
    at: int = ((block >> _LOG_BITS) + (index & (capacity - 1))) * ring.width
    return at


@kernel
def _take_block(ring: Ring, log: int) -> int:
    """Start row of a block of ``2**log`` rows, or -1 where the pool is full."""
    start: int = ring.free[log]
    if start != _NONE:
        ring.free[log] = signed(ring.pool[start * ring.width])
        return start
    start = ring.free[_USED]
    if (start + (1 << log)) * ring.width > ring.pool.shape[0]:
        return _NONE
    ring.free[_USED] = start + (1 << log)
    return start


@kernel
def give_block(ring: Ring, block: int) -> None:
    """Puts a block on its free list."""
    start, log = block >> _LOG_BITS, block & _LOG_MASK
    ring.pool[start * ring.width] = np.uint64(ring.free[log])
    ring.free[log] = start


@kernel
def ring_double(ring: Ring, slot: int) -> bool:
    """Moves the slot's ring to a block of twice its capacity (its first one if it has none); False: pool full."""
    old = ring.heads[slot, BLOCK]
    log = _RING_LOG_MIN if old == NO_BLOCK else (old & _LOG_MASK) + 1
    start = _take_block(ring, log)
    if start == _NONE:
        return False
    if old != NO_BLOCK:
        mask = (1 << log) - 1
        for index in range(ring.heads[slot, HEAD], ring.heads[slot, TAIL]):
            source = row_at(ring, slot, index)
            target = (start + (index & mask)) * ring.width
            for word in range(ring.width):
                ring.pool[target + word] = ring.pool[source + word]
        give_block(ring, old)
    ring.heads[slot, BLOCK] = (start << _LOG_BITS) | log
    return True


@kernel
def ring_evict(ring: Ring, slot: int, horizon: int) -> None:
    """Drops rows with time at or below the horizon."""
    head, tail = ring.heads[slot, HEAD], ring.heads[slot, TAIL]
    while head < tail and signed(ring.pool[row_at(ring, slot, head)]) <= horizon:
        head += 1
    ring.heads[slot, HEAD] = head


@helper
def ring_room(ring: Ring, slot: int, horizon: int) -> bool:
    """Makes room for one more row, by dropping expired rows or growing the ring; False: pool full."""
    block = ring.heads[slot, BLOCK]
    if block != NO_BLOCK:
        capacity = 1 << (block & _LOG_MASK)
        if ring.heads[slot, TAIL] - ring.heads[slot, HEAD] < capacity:
            return True
        ring_evict(ring, slot, horizon)
        if ring.heads[slot, TAIL] - ring.heads[slot, HEAD] < capacity:
            return True
    return ring_double(ring, slot)


@helper
def _bisect(ring: Ring, slot: int, low: int, high: int, t: int) -> int:
    """First index in ``low..high`` whose time is above t, known of ``high`` (or it is the end)."""
    while low < high:
        middle = (low + high) >> 1
        if signed(ring.pool[row_at(ring, slot, middle)]) <= t:
            low = middle + 1
        else:
            high = middle
    return low


@helper
def seek(ring: Ring, slot: int, hint: int, t: int) -> int:
    """Index of the first row with time above ``t`` (tail if none): gallops from ``hint``, so near answers are cheap."""
    head, tail = ring.heads[slot, HEAD], ring.heads[slot, TAIL]
    hint = min(max(hint, head), tail)
    step = 1
    if hint < tail and signed(ring.pool[row_at(ring, slot, hint)]) <= t:
        low = hint + 1
        while low + step <= tail and signed(ring.pool[row_at(ring, slot, low + step - 1)]) <= t:
            low += step
            step *= 2
        return _bisect(ring, slot, low, min(low + step - 1, tail), t)
    high = hint
    while high > head and signed(ring.pool[row_at(ring, slot, high - 1)]) > t:
        # row high - 1 is above t as well, so the answer is further down
        high -= 1
        if high - step < head:
            return _bisect(ring, slot, head, high, t)
        if signed(ring.pool[row_at(ring, slot, high - step)]) <= t:
            return _bisect(ring, slot, high - step + 1, high, t)
        high -= step
        step *= 2
    return high


@helper
def seek_near(ring: Ring, slot: int, hint: int, t: int, ordered: bool) -> int:
    """`seek` for an answer that is mostly the hint or one of the next few: these are compared without a branch each,
    as which one it is cannot be foreseen, and a branch that was foreseen wrongly costs more than all of them.

    ``ordered`` says that it is not before the hint.
    """
    head, tail = ring.heads[slot, HEAD], ring.heads[slot, TAIL]
    hint = min(max(hint, head), tail)
    if not ordered and hint > head and signed(ring.pool[row_at(ring, slot, hint - 1)]) > t:
        return seek(ring, slot, hint, t)
    passed = 0
    for index in range(hint, hint + NEAR):  # rows from the tail on are of no meaning, but there
        passed += (index < tail) & (signed(ring.pool[row_at(ring, slot, index)]) <= t)
    if passed == NEAR:
        return seek(ring, slot, hint + NEAR, t)
    return hint + passed


@helper
def seek_from_tail(ring: Ring, slot: int, t: int) -> int:
    """`seek` from the newest row: where a row of time ``t`` goes, after those of the same time."""
    return seek(ring, slot, ring.heads[slot, TAIL], t)


@helper
def open_gap(ring: Ring, slot: int, index: int) -> int:
    """Moves rows ``index..tail-1`` up by one; returns the gap's position in the pool. The ring has room."""
    tail = ring.heads[slot, TAIL]
    for i in range(tail, index, -1):
        source = row_at(ring, slot, i - 1)
        target = row_at(ring, slot, i)
        for word in range(ring.width):
            ring.pool[target + word] = ring.pool[source + word]
    ring.heads[slot, TAIL] = tail + 1
    return row_at(ring, slot, index)


@kernel
def _release(ring: Ring, slots: IntArray) -> None:
    for slot in slots:
        if ring.heads[slot, BLOCK] != NO_BLOCK:
            give_block(ring, ring.heads[slot, BLOCK])
        ring.heads[slot] = 0


@kernel
def _export(ring: Ring, slots: IntArray, counts: IntArray, out: Words) -> None:
    position = 0
    for k in range(len(slots)):
        slot = slots[k]
        for index in range(ring.heads[slot, TAIL] - counts[k], ring.heads[slot, TAIL]):
            source = row_at(ring, slot, index)
            for word in range(ring.width):
                out[position, word] = ring.pool[source + word]
            position += 1


@kernel
def _count_after(ring: Ring, slots: IntArray, horizon: int, counts: IntArray) -> None:
    for k in range(len(slots)):
        slot = slots[k]
        if ring.heads[slot, BLOCK] != NO_BLOCK:
            counts[k] = ring.heads[slot, TAIL] - seek(ring, slot, ring.heads[slot, HEAD], horizon)


@kernel
def _import(ring: Ring, slots: IntArray, counts: IntArray, logs: IntArray, rows: Words) -> None:
    """Fills empty rings of ``2**logs`` rows; the pool has room for them."""
    position = 0
    for k in range(len(slots)):
        slot = slots[k]
        if counts[k] > 0:
            ring.heads[slot, BLOCK] = (_take_block(ring, logs[k]) << _LOG_BITS) | logs[k]
        for i in range(counts[k]):
            target = row_at(ring, slot, i)
            for word in range(ring.width):
                ring.pool[target + word] = rows[position + i, word]
        ring.heads[slot, TAIL] = counts[k]
        position += counts[k]


def export_rows(ring: Ring, slots: IntArray, horizon: int) -> tuple[IntArray, Words]:
    """Rows per slot (m,) and all rows (sum, width) with time above the horizon, in time order."""
    counts = np.zeros(len(slots), np.int64)
    _count_after(ring, slots, horizon, counts)
    rows = np.empty((int(counts.sum()), ring.width), np.uint64)
    _export(ring, slots, counts, rows)
    return counts, rows


class RingPool:
    """All rings of one kind: rows of ``width`` words, ``own`` extra columns per slot (0 in an empty slot)."""

    def __init__(self, width: int, own: int) -> None:
        self.width = width
        self._pool = GrowingArray((_POOL_ROWS_MIN * width,), np.uint64)
        self._heads = GrowingArray((0, head_words(OWN + own)), np.int64)
        self.free = np.full(_CLASSES + 1, _NONE, np.int64)
        self.free[_USED] = 0

    @property
    def pool(self) -> Words:
        return self._pool.array

    @property
    def heads(self) -> IntArray:
        return self._heads.array

    @property
    def view(self) -> Ring:
        """The arrays as they are now: to be asked for again after the pool or the slots grew."""
        return Ring(self.pool, self.heads, self.free, self.width)

    @property
    def head_bytes(self) -> int:
        """Bytes per slot."""
        return self._heads.row_bytes

    @property
    def nbytes(self) -> int:
        return self.pool.nbytes + self.heads.nbytes

    def reserve_slots(self, capacity: int) -> None:
        """Slot numbers below ``capacity`` exist; new ones are empty."""
        self._heads.grow(capacity)

    def grow(self, room: int = UNBOUNDED) -> bool:
        """Makes the pool larger, by at most ``room`` bytes; False where that is too little to be of use."""
        row_bytes = 8 * self.width
        rows = len(self.pool) // self.width
        more = min(larger(rows, row_bytes) - rows, room // row_bytes)
        if more < _POOL_ROWS_MIN:
            return False
        self._pool.grow((rows + more) * self.width)
        return True

    def release(self, slots: IntArray) -> None:
        """Empties these slots and gives their blocks back."""
        _release(self.view, slots)

    def export(self, slots: IntArray, horizon: int) -> tuple[IntArray, Words]:
        """See `export_rows`."""
        return export_rows(self.view, slots, horizon)

    def load(self, slots: IntArray, counts: IntArray, rows: Words) -> None:
        """The reverse of `export` into the empty slots of a new pool, of just the size; row numbers begin at 0."""
        # the binary exponent of count - 1 is that of the smallest power of two that holds so many rows
        logs = np.maximum(np.frexp(counts - 1.0)[1], _RING_LOG_MIN).astype(np.int64)
        self._pool.grow(int((1 << logs[counts > 0]).sum()) * self.width)
        _import(self.view, slots, counts, logs, rows)


def newest_times(rings: RingPool, slots: IntArray, none: int) -> IntArray:
    """(m,) time of the newest row of each slot, ``none`` where it has no row."""
    heads = rings.heads[slots]
    index = (heads[:, TAIL] - 1) & ((1 << (heads[:, BLOCK] & _LOG_MASK)) - 1)
    at = ((heads[:, BLOCK] >> _LOG_BITS) + index) * rings.width
    return np.where(heads[:, TAIL] > heads[:, HEAD], rings.pool[at].view(np.int64), none)
