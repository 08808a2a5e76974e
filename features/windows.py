"""Kernels of exact sliding windows over sorted rings, by prefix sums.

A ring row is ``time, P_1, P_2, ..`` with ``P_f`` the 128-bit fixed-point sum of value ``f`` over all rows before
it; the slot's totals stand in ``heads``, followed by one search hint per boundary. Nothing is accumulated per
window: a window is the difference of two positions, so out-of-order rows are plain insertions and ``process(A + B)``
equals ``process(A); process(B)`` to the bit.

A *boundary* ``o`` at time t is the number of rows with time <= t - o; boundary 0 includes the current row. The
window (t-d-w, t-d] lies between the boundaries d and d+w. Rows at or below the *horizon* (stream time - longest
boundary - allowed lateness) are gone for every row, whether still stored or not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.block import BoolArray, FloatArray, IntArray
from features.fixed import fixed_add, fixed_of, fixed_subtract, float_of
from features.kernel import helper, kernel, prefetch, signed
from features.memory import LINE_WORDS
from features.rings import HEAD, NEAR, OWN, TAIL, Ring, Words, open_gap, ring_room, row_at, seek_from_tail, seek_near
from features.spill import Spill, far_from_tail, spill_of, spill_ready, spill_ring

__all__ = [
    "COUNT",
    "MEAN",
    "RISK",
    "SUM",
    "Plan",
    "Rows",
    "emit",
    "find_boundaries",
    "find_spilled",
    "look_ahead",
    "place_of",
    "prefixes_of_values",
    "put_in",
    "room_for",
    "values_of_prefixes",
    "window_rows",
]

#: aggregates in a plan, whose rows are (aggregate, value, near boundary, far boundary)
COUNT, SUM, MEAN, RISK = 0, 1, 2, 3

# rows ahead that are prefetched: ring rows can be once their heads are in cache
_AHEAD_HEADS, _AHEAD_ROWS = 16, 8


class Plan(NamedTuple):
    """What kernels need to know of one entity's features, and scratch space for one row.

    ``offsets`` (boundaries,) int64 ascending, ``aggregates`` (features, 4) int64, ``span_ms`` = longest boundary +
    allowed lateness; ``below``, ``frauds`` and ``spilled`` (boundaries,) int64.
    """

    offsets: IntArray
    aggregates: IntArray
    span_ms: int
    below: IntArray
    frauds: IntArray
    spilled: IntArray


class Rows(NamedTuple):
    """The rows to process: slots (n,), -1 = unknown key and late; late (n,); times (n,); values (fields, n)."""

    slots: IntArray
    late: BoolArray
    times: IntArray
    values: FloatArray


@helper
def place_of(ring: Ring, slot: int, t: int, late: bool, horizon: int) -> int:
    """Index where a row of time ``t`` belongs, after those of the same time."""
    place = seek_from_tail(ring, slot, t)
    if late:
        place = max(place, seek_from_tail(ring, slot, horizon))
    return place


@helper
def find_boundaries(
    ring: Ring,
    slot: int,
    offsets: IntArray,
    t: int,
    late: bool,
    horizon: int,
    ordered: bool,
    out: IntArray,
) -> None:
    """``out[b]`` = index of the first row with time above ``t - offsets[b]``, for offsets above 0.

    The slot's hints say where to begin; late rows neither use nor move them and see nothing at or below the horizon.
    ``ordered`` says that no row before had a later time, so that no boundary is before its hint.
    """
    first = 1 if offsets[0] == 0 else 0
    hints = OWN + ring.width - 1 - first
    if late:
        base = seek_from_tail(ring, slot, horizon)
        for b in range(first, len(offsets)):
            out[b] = max(base, seek_from_tail(ring, slot, t - offsets[b]))
        return
    for b in range(first, len(offsets)):
        out[b] = seek_near(ring, slot, ring.heads[slot, hints + b], t - offsets[b], ordered)
        ring.heads[slot, hints + b] = out[b]


@helper
def _prefix(ring: Ring, slot: int, index: int, f: int) -> tuple[np.uint64, np.uint64]:
    """Sum of value ``f`` over all rows before ``index``."""
    if index >= ring.heads[slot, TAIL]:
        return np.uint64(ring.heads[slot, OWN + 2 * f]), np.uint64(ring.heads[slot, OWN + 2 * f + 1])
    at = row_at(ring, slot, index) + 1 + 2 * f
    return ring.pool[at], ring.pool[at + 1]


@helper
def emit(ring: Ring, spill: Spill, number: int, plan: Plan, rows: Rows, row: int, place: int, out: FloatArray) -> None:
    """Writes the features of a row that belongs at ``place``; ``number`` is its slot's spill or -1.

    ``plan.below`` holds its boundaries, ``plan.spilled`` those in the spill if there is one, ``plan.frauds`` the number
    of visible positive labels below each.
    """
    slot, offsets, below, frauds = rows.slots[row], plan.offsets, plan.below, plan.frauds
    spills, spilled = spill_ring(ring, spill), plan.spilled
    if offsets[0] == 0:
        below[0] = place + 1
    valued, vhi, vlo = -1, np.uint64(0), np.uint64(0)
    for j in range(plan.aggregates.shape[0]):
        aggregate, f = plan.aggregates[j, 0], plan.aggregates[j, 1]
        near, far = plan.aggregates[j, 2], plan.aggregates[j, 3]
        count = below[near] - below[far]
        if number >= 0:
            count += spilled[near] - spilled[far]
        if aggregate == COUNT or count == 0:
            out[row, j] = count if aggregate == COUNT else 0.0
        elif aggregate == RISK:
            out[row, j] = (frauds[near] - frauds[far]) / count
        else:
            hi, lo = np.uint64(0), np.uint64(0)
            if slot >= 0:
                nhi, nlo = _prefix(ring, slot, place if offsets[near] == 0 else below[near], f)
                fhi, flo = _prefix(ring, slot, below[far], f)
                hi, lo = fixed_subtract(nhi, nlo, fhi, flo)
            if number >= 0:
                nhi, nlo = _prefix(spills, number, spilled[near], f)
                fhi, flo = _prefix(spills, number, spilled[far], f)
                nhi, nlo = fixed_subtract(nhi, nlo, fhi, flo)
                hi, lo = fixed_add(hi, lo, nhi, nlo)
            if offsets[near] == 0:
                if f != valued:
                    vhi, vlo = fixed_of(rows.values[f, row])
                    valued = f
                hi, lo = fixed_add(hi, lo, vhi, vlo)
            total = float_of(hi, lo)
            out[row, j] = total / count if aggregate == MEAN else total


@helper
def insert(ring: Ring, slot: int, rows: Rows, row: int, place: int) -> None:
    """Puts a row at index ``place`` of a slot with room, and its values into the sums of all newer rows."""
    at = open_gap(ring, slot, place)
    ring.pool[at] = np.uint64(rows.times[row])
    newest = place == ring.heads[slot, TAIL] - 1
    for f in range(rows.values.shape[0]):
        vhi, vlo = fixed_of(rows.values[f, row])
        own = OWN + 2 * f
        thi, tlo = np.uint64(ring.heads[slot, own]), np.uint64(ring.heads[slot, own + 1])
        if newest:
            ring.pool[at + 1 + 2 * f] = thi
            ring.pool[at + 2 + 2 * f] = tlo
        # where older rows follow, the gap still holds the sum before the row that stood there: it is this row's
        for i in range(place + 1, ring.heads[slot, TAIL]):
            after = row_at(ring, slot, i) + 1 + 2 * f
            ring.pool[after], ring.pool[after + 1] = fixed_add(ring.pool[after], ring.pool[after + 1], vhi, vlo)
        thi, tlo = fixed_add(thi, tlo, vhi, vlo)
        ring.heads[slot, own] = np.int64(thi)
        ring.heads[slot, own + 1] = np.int64(tlo)


@helper
def room_for(ring: Ring, spill: Spill, slot: int, t: int, horizon: int) -> bool:
    """Makes room for a row of time ``t`` where it will go; False: pool full."""
    if not ring_room(ring, slot, horizon):
        return False
    tail = ring.heads[slot, TAIL]
    if tail == ring.heads[slot, HEAD] or signed(ring.pool[row_at(ring, slot, tail - 1)]) <= t:
        return True
    return spill_ready(ring, spill, slot, t, horizon)


@helper
def find_spilled(ring: Ring, spill: Spill, plan: Plan, slot: int, t: int, late: bool, horizon: int) -> int:
    """Number of the slot's spill or -1; its boundaries go to ``plan.spilled``, its place for the row to ``[0]``."""
    number = spill_of(spill, slot)
    if number >= 0:
        spills = spill_ring(ring, spill)
        find_boundaries(spills, number, plan.offsets, t, late, horizon, False, plan.spilled)
        if plan.offsets[0] == 0:
            plan.spilled[0] = place_of(spills, number, t, late, horizon)
    return number


@helper
def put_in(ring: Ring, spill: Spill, number: int, rows: Rows, row: int, place: int) -> None:
    """Inserts a row at ``place`` of its ring, or into spill ``number``; `room_for` must hold."""
    slot = rows.slots[row]
    if number >= 0 and far_from_tail(ring, slot, place):
        spills = spill_ring(ring, spill)
        insert(spills, number, rows, row, seek_from_tail(spills, number, rows.times[row]))
    else:
        insert(ring, slot, rows, row, place)


@helper
def look_ahead(ring: Ring, offsets: IntArray, slots: IntArray, row: int) -> None:
    """Prefetches what rows after ``row`` will read: heads of the farther one, ring rows of the nearer one."""
    far, near = row + _AHEAD_HEADS, row + _AHEAD_ROWS
    if far < len(slots) and slots[far] >= 0:
        columns = ring.heads.shape[1]
        prefetch(ring.heads, slots[far] * columns)
        if columns > LINE_WORDS:
            prefetch(ring.heads, slots[far] * columns + columns - 1)
    if near < len(slots) and slots[near] >= 0:
        slot = slots[near]
        if ring.heads[slot, TAIL] > ring.heads[slot, HEAD]:
            at = row_at(ring, slot, ring.heads[slot, TAIL] - 1)
            prefetch(ring.pool, at)
            prefetch(ring.pool, at + 2 * ring.width - 1)
            first = 1 if offsets[0] == 0 else 0
            for hint in range(OWN + ring.width - 1, OWN + ring.width - 1 + len(offsets) - first):
                index = ring.heads[slot, hint]  # `seek_near` reads up to NEAR rows from there on
                prefetch(ring.pool, row_at(ring, slot, index))
                prefetch(ring.pool, row_at(ring, slot, index + NEAR - 1))


@kernel
def window_rows(ring: Ring, spill: Spill, plan: Plan, rows: Rows, cursor: IntArray, out: FloatArray) -> bool:
    """Rows from ``cursor[0]`` on (``cursor[1]`` = stream time so far): features, then insertion unless late.

    False where the pool is full: grow it and call again.
    """
    for row in range(cursor[0], len(rows.times)):
        look_ahead(ring, plan.offsets, rows.slots, row)
        t, slot, late = rows.times[row], rows.slots[row], rows.late[row]
        stream = max(cursor[1], t)
        horizon = stream - plan.span_ms
        place, number = 0, -1
        if slot < 0:
            plan.below[:] = 0
        else:
            if not late and not room_for(ring, spill, slot, t, horizon):
                return False
            place = place_of(ring, slot, t, late, horizon)
            ordered = place == ring.heads[slot, TAIL]
            find_boundaries(ring, slot, plan.offsets, t, late, horizon, ordered, plan.below)
            number = find_spilled(ring, spill, plan, slot, t, late, horizon)
        emit(ring, spill, number, plan, rows, row, place, out)
        if not late:
            put_in(ring, spill, number, rows, row, place)
        cursor[0] = row + 1
        cursor[1] = stream
    return True


@kernel
def values_of_prefixes(heads: IntArray, slots: IntArray, counts: IntArray, rows: Words) -> None:
    """Turns the prefix sums of exported rows (in place) into the rows' own values, which are canonical."""
    position = 0
    for k in range(len(slots)):
        end = position + counts[k]
        for i in range(position, end):
            for f in range((rows.shape[1] - 1) // 2):
                c = 1 + 2 * f
                if i + 1 < end:
                    hi, lo = rows[i + 1, c], rows[i + 1, c + 1]
                else:
                    hi, lo = np.uint64(heads[slots[k], OWN + 2 * f]), np.uint64(heads[slots[k], OWN + 2 * f + 1])
                rows[i, c], rows[i, c + 1] = fixed_subtract(hi, lo, rows[i, c], rows[i, c + 1])
        position = end


@kernel
def prefixes_of_values(heads: IntArray, slots: IntArray, counts: IntArray, rows: Words) -> None:
    """The reverse of `values_of_prefixes`, sums beginning at 0; sets the slots' totals."""
    position = 0
    for k in range(len(slots)):
        for f in range((rows.shape[1] - 1) // 2):
            c = 1 + 2 * f
            hi, lo = np.uint64(0), np.uint64(0)
            for i in range(position, position + counts[k]):
                vhi, vlo = rows[i, c], rows[i, c + 1]
                rows[i, c], rows[i, c + 1] = hi, lo
                hi, lo = fixed_add(hi, lo, vhi, vlo)
            heads[slots[k], OWN + 2 * f] = np.int64(hi)
            heads[slots[k], OWN + 2 * f + 1] = np.int64(lo)
        position += counts[k]
