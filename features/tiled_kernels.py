"""Kernels of windows of whole tiles: what came in each tile of time is one row, however many events it had.

A ring row is ``start * 2**32 + events`` and one float64 sum per value, in time order; times are counted in the entity's
finest tiles, of which each coarser tile is made. There is one ring per key: a row begins as a finest tile, and once no
window by such tiles can see it (of any row that is not late) it is added to the row of the next coarser tile that a
window sees. So one sequence holds hours of the last day, then quarters of the last week, then days.

Sums are float64 and added as rows come and tiles are joined; both happen only when a row of the key comes, so they are
a function of the rows' order, and ``process(A + B)`` equals ``process(A); process(B)`` to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.block import BoolArray, FloatArray, IntArray
from features.kernel import helper, kernel, prefetch, signed
from features.rings import HEAD, OWN, TAIL, Ring, open_gap, ring_room, row_at, seek_from_tail

__all__ = ["COUNT", "MEAN", "SUM", "Rows", "TilePlan", "find_bounds", "rows_before", "tiled_rows"]

#: aggregates in a plan
COUNT, SUM, MEAN = 0, 1, 2
#: columns of `TilePlan.windows`
_RATIO, _DELAY, _SPAN = 0, 1, 2
_COUNT_BITS = 32
_COUNT_MASK = (1 << _COUNT_BITS) - 1
_NO_HORIZON = -(2**63)
# rows ahead that are prefetched, once their heads are in cache, and how much of them: a cache line has four tiles
_AHEAD_HEADS, _AHEAD_ROWS, _AHEAD_TILES, _LINE_TILES = 16, 8, 48, 4


class TilePlan(NamedTuple):
    """What kernels need to know of one entity's features, and scratch space for one row.

    ``unit_ms`` = finest tile, in which all else is counted. ``levels`` (l, 2) int64, tiles ascending: finest tiles per
    tile, longest delay + window by such tiles. ``windows`` (r, 3) int64: finest tiles per tile, delay, delay + window.
    ``features`` (k, 4) int64: aggregate, window, value, and value that says how many there are (-1: the events).
    ``spans`` (l,) int64: the longest delay + window of levels 0 to k. Scratch: ``bounds`` (l,) int64, of
    `find_bounds`; ``totals`` (r, 1 + values) float64.
    """

    unit_ms: int
    lateness_ms: int
    levels: IntArray
    windows: IntArray
    features: IntArray
    spans: IntArray
    bounds: IntArray
    totals: FloatArray


class Rows(NamedTuple):
    """The rows to process: slots (n,), -1 = unknown key and late; late (n,); times (n,); values (n, values)."""

    slots: IntArray
    late: BoolArray
    times: IntArray
    values: FloatArray


@helper
def _after(tile: int, ratio: int) -> int:
    """The finest tile that follows the tile of ``ratio`` finest ones in which ``tile`` lies."""
    return (tile // ratio + 1) * ratio


@kernel
def find_bounds(plan: TilePlan, oldest: int, out: IntArray) -> None:
    """``out[k]`` = first finest tile that a row at tile ``oldest`` or later sees by windows of levels 0 to k."""
    for k in range(plan.levels.shape[0]):
        first = _after(oldest, plan.levels[k, 0]) - plan.levels[k, 1]
        out[k] = first if k == 0 else min(first, out[k - 1])


@helper
def rows_before(tile: int) -> int:
    """The largest first word of a row that begins before this finest tile."""
    return (tile << _COUNT_BITS) - 1


@helper
def _start(ring: Ring, slot: int, index: int) -> int:
    start: int = signed(ring.pool[row_at(ring, slot, index)]) >> _COUNT_BITS
    return start


@helper
def _look_ahead(ring: Ring, slots: IntArray, row: int) -> None:
    """Prefetches what rows after ``row`` will read: heads of the farther one, the newest tiles of the nearer one."""
    far, near = row + _AHEAD_HEADS, row + _AHEAD_ROWS
    if far < len(slots) and slots[far] >= 0:
        prefetch(ring.heads, slots[far] * ring.heads.shape[1])
    if near < len(slots) and slots[near] >= 0:
        slot = slots[near]
        tail = ring.heads[slot, TAIL]
        for index in range(tail - 1, max(ring.heads[slot, HEAD], tail - _AHEAD_TILES) - 1, -_LINE_TILES):
            prefetch(ring.pool, row_at(ring, slot, index))


@kernel
def _coalesce(ring: Ring, floats: FloatArray, plan: TilePlan, slot: int, oldest: int) -> None:
    """Joins and drops rows of the slot that no row at tile ``oldest`` or later sees as they are.

    ``plan.bounds`` is that of ``oldest``.
    """
    last = ring.heads[slot, OWN]
    stamp = (oldest << 1) | 1  # never 0, which is a slot that was not looked at yet
    if last == stamp:
        return
    ring.heads[slot, OWN] = stamp
    levels = len(plan.bounds)
    end = seek_from_tail(ring, slot, rows_before(plan.bounds[0]))
    kept = end
    for index in range(end - 1, ring.heads[slot, HEAD] - 1, -1):
        start = _start(ring, slot, index)
        k = 0
        while k < levels and start < plan.bounds[k]:
            k += 1
        if k == levels:
            break
        # what no finer level has seen since the slot's tiles were last joined is in tiles of this level already
        if last == 0 or start >= (last >> 1) + 1 - plan.spans[k - 1]:
            start -= start % plan.levels[k, 0]
        elif kept == index + 1 and (kept == end or _start(ring, slot, kept) != start):
            kept -= 1  # it stays as it is and where it is, as most do
            continue
        source = row_at(ring, slot, index)
        events = ring.pool[source] & np.uint64(_COUNT_MASK)
        if kept < end and _start(ring, slot, kept) == start:
            target = row_at(ring, slot, kept)
            ring.pool[target] += events
            for word in range(1, ring.width):
                floats[target + word] += floats[source + word]
        else:
            kept -= 1
            target = row_at(ring, slot, kept)
            ring.pool[target] = np.uint64(start << _COUNT_BITS) | events
            for word in range(1, ring.width):
                ring.pool[target + word] = ring.pool[source + word]
    ring.heads[slot, HEAD] = kept


@helper
def _add_up(ring: Ring, floats: FloatArray, plan: TilePlan, slot: int, tile: int, from_tile: int) -> None:
    """``plan.totals`` = events and sums of each window of a row at ``tile``, newest tiles first.

    Far edges are those of a row at ``from_tile``.
    """
    plan.totals[:] = 0.0
    if slot < 0:
        return
    head, tail = ring.heads[slot, HEAD], ring.heads[slot, TAIL]
    for r in range(plan.windows.shape[0]):
        ratio = plan.windows[r, _RATIO]
        end = _after(tile, ratio) - plan.windows[r, _DELAY]
        begin = _after(from_tile, ratio) - plan.windows[r, _SPAN]
        high = tail
        while high > head and _start(ring, slot, high - 1) >= end:
            high -= 1
        low, events = high, 0
        while low > head:
            first = signed(ring.pool[row_at(ring, slot, low - 1)])
            if first >> _COUNT_BITS < begin:
                break
            low -= 1
            events += first & _COUNT_MASK
        plan.totals[r, 0] = np.float64(events)
        for word in range(1, ring.width):
            total = 0.0
            for index in range(high - 1, low - 1, -1):
                total += floats[row_at(ring, slot, index) + word]
            plan.totals[r, word] = total


@helper
def _emit(plan: TilePlan, rows: Rows, row: int, out: FloatArray) -> None:
    """Writes the features of a row whose ``plan.totals`` are known without itself."""
    for r in range(plan.windows.shape[0]):
        if plan.windows[r, _DELAY] == 0:
            plan.totals[r, 0] += 1.0
            for f in range(rows.values.shape[1]):
                plan.totals[r, 1 + f] += rows.values[row, f]
    for j in range(plan.features.shape[0]):
        aggregate, r = plan.features[j, 0], plan.features[j, 1]
        total = plan.totals[r, 0] if aggregate == COUNT else plan.totals[r, 1 + plan.features[j, 2]]
        if aggregate == MEAN:
            count = plan.totals[r, 1 + plan.features[j, 3]]
            total = total / count if count > 0.0 else 0.0
        out[row, j] = total


@helper
def _place(ring: Ring, slot: int, tile: int) -> int:
    """Index where a row of this finest tile stands or belongs; it is among the newest."""
    index: int = ring.heads[slot, TAIL]
    while index > ring.heads[slot, HEAD] and _start(ring, slot, index - 1) >= tile:
        index -= 1
    return index


@kernel
def tiled_rows(ring: Ring, floats: FloatArray, plan: TilePlan, rows: Rows, cursor: IntArray, out: FloatArray) -> bool:
    """Rows from ``cursor[0]`` on (``cursor[1]`` = stream time so far): features, then into their tiles unless late.

    ``floats`` is the ring's pool as float64. False where the pool is full: grow it and call again.
    """
    bounds_of = _NO_HORIZON
    for row in range(cursor[0], len(rows.times)):
        _look_ahead(ring, rows.slots, row)
        t, slot, late = rows.times[row], rows.slots[row], rows.late[row]
        stream = max(cursor[1], t)
        tile, oldest = t // plan.unit_ms, (stream - plan.lateness_ms) // plan.unit_ms
        if not late:
            if oldest != bounds_of:
                find_bounds(plan, oldest, plan.bounds)
                bounds_of = oldest
            _coalesce(ring, floats, plan, slot, oldest)
            place = _place(ring, slot, tile)
            new = place == ring.heads[slot, TAIL] or _start(ring, slot, place) != tile
            if new and not ring_room(ring, slot, _NO_HORIZON):
                return False
            _add_up(ring, floats, plan, slot, tile, tile)
            _emit(plan, rows, row, out)
            if new:
                at = open_gap(ring, slot, place)
                ring.pool[at] = np.uint64(tile << _COUNT_BITS)
                for word in range(1, ring.width):
                    floats[at + word] = 0.0
            at = row_at(ring, slot, place)
            ring.pool[at] += np.uint64(1)
            for f in range(rows.values.shape[1]):
                floats[at + 1 + f] += rows.values[row, f]
        else:
            _add_up(ring, floats, plan, slot, tile, oldest)
            _emit(plan, rows, row, out)
        cursor[0] = row + 1
        cursor[1] = stream
    return True
