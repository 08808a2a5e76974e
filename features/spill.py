"""Rows that come out of order on a hot key: kept aside in a small ring and merged in many at a time.

A row that belongs before many newer ones of its ring would have to move them all and add to all their prefix sums. So
the few keys that see this have a second ring of the same make, a *spill*, in the same pool; a window is then the
difference of two positions in either. Where a spill is full, or another key needs it, it is merged. As prefix sums
are exact, nothing of this shows in results; a spilled row stands after the rows of the same time in the main ring, all
of which came before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.block import IntArray
from features.fixed import fixed_add, fixed_subtract
from features.kernel import helper, kernel, signed
from features.rings import (
    BLOCK,
    HEAD,
    NO_BLOCK,
    OWN,
    TAIL,
    Ring,
    give_block,
    ring_double,
    ring_evict,
    ring_room,
    row_at,
    seek_from_tail,
)

__all__ = ["Spill", "far_from_tail", "new_spill", "spill_drop", "spill_of", "spill_ready", "spill_ring"]

#: keys with a spill at a time
_SPILLS = 16
#: a spill of r rows is full where r * r >= this * rows of the main ring newer than its oldest: a row costs moving
#: half of the spill and its share of a merge, a step of which costs eight times as much
_BALANCE = 16
_ROWS_MIN = 64
#: a row with at most this many newer ones goes into the main ring at once
_NEWER_MAX = 64

# columns of meta: spills in use, the one to be merged next where all are
ACTIVE, _HAND = 0, 1


class Spill(NamedTuple):
    """Heads (16, as the main ring's), the slots that own them (-1: none), and meta (2,)."""

    heads: IntArray
    owners: IntArray
    meta: IntArray


def new_spill(columns: int) -> Spill:
    """No spills, for rings whose heads have so many columns."""
    return Spill(np.zeros((_SPILLS, columns), np.int64), np.full(_SPILLS, -1), np.zeros(2, np.int64))


@helper
def spill_ring(ring: Ring, spill: Spill) -> Ring:
    """The spills as rings, a slot each."""
    return Ring(ring.pool, spill.heads, ring.free, ring.width)


@helper
def spill_of(spill: Spill, slot: int) -> int:
    """Number of the slot's spill, -1 = it has none."""
    if spill.meta[ACTIVE] > 0 and slot >= 0:
        for number in range(_SPILLS):
            if spill.owners[number] == slot:
                return number
    return -1


@helper
def far_from_tail(ring: Ring, slot: int, place: int) -> bool:
    """True where a row at ``place`` is to be spilled."""
    far: bool = ring.heads[slot, TAIL] - place > _NEWER_MAX
    return far


@kernel
def _free_spill(ring: Ring, spill: Spill, number: int) -> None:
    if spill.heads[number, BLOCK] != NO_BLOCK:
        give_block(ring, spill.heads[number, BLOCK])
    for column in range(spill.heads.shape[1]):
        spill.heads[number, column] = 0
    spill.owners[number] = -1
    spill.meta[ACTIVE] -= 1


@helper
def _through(ring: Ring, slot: int, index: int, f: int) -> tuple[np.uint64, np.uint64]:
    """Sum of value ``f`` over all rows up to ``index``, that one included."""
    if index + 1 >= ring.heads[slot, TAIL]:
        return np.uint64(ring.heads[slot, OWN + 2 * f]), np.uint64(ring.heads[slot, OWN + 2 * f + 1])
    at = row_at(ring, slot, index + 1) + 1 + 2 * f
    return ring.pool[at], ring.pool[at + 1]


@kernel
def _merge(ring: Ring, spill: Spill, number: int, horizon: int) -> bool:
    """Puts a spill's rows into their slot's ring, from the newest to the oldest, and frees it; False: pool full."""
    spills, slot = spill_ring(ring, spill), spill.owners[number]
    begin = spill.heads[number, HEAD]
    count = spill.heads[number, TAIL] - begin
    ring_evict(ring, slot, horizon)
    while ring.heads[slot, TAIL] - ring.heads[slot, HEAD] + count > 1 << (ring.heads[slot, BLOCK] & 63):
        if not ring_double(ring, slot):
            return False
    i, j = ring.heads[slot, TAIL] - 1, begin + count - 1
    ring.heads[slot, TAIL] += count
    first = row_at(spills, number, begin)
    values = (ring.width - 1) // 2
    if count > 0:
        for f in range(values):
            c, own = 1 + 2 * f, OWN + 2 * f
            hi, lo = _through(spills, number, j, f)
            hi, lo = fixed_subtract(hi, lo, ring.pool[first + c], ring.pool[first + c + 1])
            hi, lo = fixed_add(hi, lo, np.uint64(ring.heads[slot, own]), np.uint64(ring.heads[slot, own + 1]))
            ring.heads[slot, own], ring.heads[slot, own + 1] = np.int64(hi), np.int64(lo)
    while j >= begin:
        index = i + 1 + j - begin
        source, target = row_at(spills, number, j), row_at(ring, slot, index)
        moves = False
        if i >= ring.heads[slot, HEAD]:
            moves = signed(ring.pool[row_at(ring, slot, i)]) > signed(ring.pool[source])
        if moves:
            source = row_at(ring, slot, i)
        ring.pool[target] = ring.pool[source]
        for f in range(values):
            c = 1 + 2 * f
            hi, lo = _through(spills, number, j, f)
            if moves:  # the sum before it grows by the spilled rows that come before it
                hi, lo = fixed_subtract(hi, lo, ring.pool[first + c], ring.pool[first + c + 1])
                hi, lo = fixed_add(hi, lo, ring.pool[source + c], ring.pool[source + c + 1])
            else:  # the sum before it is the one before the next row, less its own value
                hi, lo = fixed_subtract(hi, lo, ring.pool[source + c], ring.pool[source + c + 1])
                nhi, nlo = _through(ring, slot, index, f)
                hi, lo = fixed_subtract(nhi, nlo, hi, lo)
            ring.pool[target + c], ring.pool[target + c + 1] = hi, lo
        if moves:
            i -= 1
        else:
            j -= 1
    _free_spill(ring, spill, number)
    return True


@kernel
def spill_ready(ring: Ring, spill: Spill, slot: int, t: int, horizon: int) -> bool:
    """Sees to it that a row of time ``t`` of a slot with rows can be spilled, if it is to be; False: pool full."""
    if not far_from_tail(ring, slot, seek_from_tail(ring, slot, t)):
        return True
    number = spill_of(spill, slot)
    if number >= 0:
        spills = spill_ring(ring, spill)
        rows = spill.heads[number, TAIL] - spill.heads[number, HEAD]
        if rows >= _ROWS_MIN:
            oldest = signed(ring.pool[row_at(spills, number, spill.heads[number, HEAD])])
            if rows * rows >= _BALANCE * (ring.heads[slot, TAIL] - seek_from_tail(ring, slot, oldest)):
                if not _merge(ring, spill, number, horizon):
                    return False
                number = -1
    if number < 0:
        for free in range(_SPILLS):
            if spill.owners[free] < 0:
                number = free
        if number < 0:
            number = spill.meta[_HAND] % _SPILLS
            if not _merge(ring, spill, number, horizon):
                return False
            spill.meta[_HAND] += 1
        spill.owners[number] = slot
        spill.meta[ACTIVE] += 1
    return ring_room(spill_ring(ring, spill), number, horizon)


@kernel
def spill_drop(ring: Ring, spill: Spill, slots: IntArray) -> None:
    """Frees the spills of these slots, whose keys are gone."""
    for slot in slots:
        number = spill_of(spill, slot)
        if number >= 0:
            _free_spill(ring, spill, number)
