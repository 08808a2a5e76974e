"""Kernels of windows over the events themselves: what prefix sums cannot say.

A ring row is ``time`` and one word per field: the bits of a float64 (NaN = missing), or the hash of an id. A window is
a run of rows, ``low..high-1``, and the present event if it is ``present``; its aggregate is a function of these values
in their order alone, so out-of-order rows are plain insertions and ``process(A + B)`` equals ``process(A);
process(B)`` to the bit. Boundaries, horizon and late rows are as in `features.windows`.

Cost: the newest and oldest events are found in O(log n); every other aggregate looks at the rows of its window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from features.block import BoolArray, FloatArray, IntArray
from features.fixed import fixed_add, fixed_of, float_of
from features.kernel import helper, kernel, signed
from features.rings import TAIL, Ring, Words, open_gap, ring_room, row_at
from features.windows import find_boundaries, look_ahead, place_of

__all__ = ["DONE", "OF_SUMS", "OPERATIONS", "POOL", "SCRATCH", "HistoryPlan", "HistoryRows", "Store", "history_rows"]

#: what `history_rows` needs before it can go on
DONE, POOL, SCRATCH = 0, 1, 2

#: columns of `HistoryPlan.ranges`
_NEAR, _FAR, _PAST, _LAST, _GAP = 0, 1, 2, 3, 4

(
    _COUNT, _SUM, _MEAN, _MIN, _MAX, _STD, _FIRST, _LATEST, _SINCE_LAST, _SINCE_FIRST, _DISTINCT, _FIRST_SEEN, _RATIO,
    _ZSCORE, _DECAYED_COUNT, _DECAYED_SUM, _DISTANCE, _SPEED,
) = range(18)  # fmt: skip

#: aggregate of a `WindowFeature` -> operation of a plan
OPERATIONS = {
    "count": _COUNT, "sum": _SUM, "mean": _MEAN, "min": _MIN, "max": _MAX, "std": _STD, "first": _FIRST,
    "last": _LATEST, "previous": _LATEST, "since_last": _SINCE_LAST, "since_first": _SINCE_FIRST,
    "distinct": _DISTINCT, "first_seen": _FIRST_SEEN, "ratio": _RATIO, "zscore": _ZSCORE,
    "decayed_count": _DECAYED_COUNT, "decayed_sum": _DECAYED_SUM, "distance": _DISTANCE, "speed": _SPEED,
}  # fmt: skip

#: aggregates that need the sum of their window
OF_SUMS = frozenset({"sum", "mean", "std", "ratio", "zscore"})

_EARTH_KM = 6371.0088  # mean radius, IUGG
_SECOND_MS = 1_000.0
_HOUR_MS = 3_600_000.0


class HistoryPlan(NamedTuple):
    """What kernels need to know of one entity's features, and scratch space for one row.

    ``offsets`` (boundaries,) int64 ascending; ``ranges`` (r, 5) int64: near and far boundary, 1 if without the present
    event, newest so many or 0, session gap or 0; ``sums`` (m, 2) int64: range and word of each sum that is needed;
    ``features`` (k, 4) int64: operation, range, first word, and second word or number of the sum; ``half_lives_ms``
    (k,) float64; ``span_ms`` = longest boundary + allowed lateness. Scratch: ``below`` (boundaries,) and ``bounds``
    (r, 2) int64, ``totals`` (m, 2) float64: the sum and how many values it has.
    """

    offsets: IntArray
    ranges: IntArray
    sums: IntArray
    features: IntArray
    half_lives_ms: FloatArray
    span_ms: int
    below: IntArray
    bounds: IntArray
    totals: FloatArray


class HistoryRows(NamedTuple):
    """The rows to process: slots (n,), -1 = unknown key and late; late (n,); times (n,); words (n, fields), twice."""

    slots: IntArray
    late: BoolArray
    times: IntArray
    words: Words
    floats: FloatArray


class Store(NamedTuple):
    """The rings, their pool as float64, and a set of words: the words (capacity,), in which use they were put, and how
    many uses there were (1,)."""

    ring: Ring
    floats: FloatArray
    seen: Words
    uses: IntArray
    use: IntArray


class Window(NamedTuple):
    """A run of rows of a slot, and whether the event at ``row`` of the block comes after them."""

    slot: int
    low: int
    high: int
    present: bool
    row: int


@kernel
def _exact_sum(store: Store, rows: HistoryRows, window: Window, word: int) -> tuple[float, int]:
    """Sum of the window's values, exact and once rounded, and how many there are."""
    hi, lo, count = np.uint64(0), np.uint64(0), 0
    for i in range(window.low, window.high + window.present):
        if i < window.high:
            x = store.floats[row_at(store.ring, window.slot, i) + 1 + word]
        else:
            x = rows.floats[window.row, word]
        if not np.isnan(x):
            xhi, xlo = fixed_of(x)
            hi, lo = fixed_add(hi, lo, xhi, xlo)
            count += 1
    return float_of(hi, lo), count


@kernel
def _deviation(store: Store, rows: HistoryRows, window: Window, word: int, mean: float, count: int) -> float:
    """Standard deviation of the window's ``count`` values around their mean, as a population: exactly 0 where all are
    equal, whose mean may be rounded and not equal to them."""
    total, lowest, highest = 0.0, np.inf, -np.inf
    for i in range(window.low, window.high + window.present):
        if i < window.high:
            x = store.floats[row_at(store.ring, window.slot, i) + 1 + word]
        else:
            x = rows.floats[window.row, word]
        if not np.isnan(x):
            total += (x - mean) * (x - mean)
            lowest, highest = min(lowest, x), max(highest, x)
    return math.sqrt(total / count) if lowest < highest else 0.0


@helper
def _moments(
    store: Store, rows: HistoryRows, window: Window, operation: int, word: int, total: float, count: int
) -> float:
    """Sum, mean or std of the window, whose sum is known; ratio or z-score of the present value against it."""
    if operation == _SUM:
        return total
    if count == 0:
        return 0.0 if operation == _MEAN else np.nan
    mean = total / count
    if operation == _MEAN:
        return mean
    x = rows.floats[window.row, word]
    if operation == _RATIO:
        return x / mean if mean != 0.0 else np.nan
    deviation = _deviation(store, rows, window, word, mean, count)
    if operation == _STD:
        return deviation
    return (x - mean) / deviation if deviation > 0.0 else np.nan


@kernel
def _extreme(store: Store, rows: HistoryRows, window: Window, operation: int, word: int) -> float:
    """Smallest or largest value of the window, NaN if it has none."""
    sign = 1.0 if operation == _MAX else -1.0
    best = -np.inf
    for i in range(window.low, window.high):
        x = sign * store.floats[row_at(store.ring, window.slot, i) + 1 + word]
        if x > best:
            best = x
    if window.present and sign * rows.floats[window.row, word] > best:
        best = sign * rows.floats[window.row, word]
    return sign * best if best > -np.inf else np.nan


@kernel
def _end(store: Store, rows: HistoryRows, window: Window, operation: int, word: int) -> float:
    """Oldest or newest value of the window, NaN if it has none."""
    x: float = rows.floats[window.row, word] if window.present else np.nan
    if operation == _LATEST:
        i = window.high - 1
        while np.isnan(x) and i >= window.low:
            x = store.floats[row_at(store.ring, window.slot, i) + 1 + word]
            i -= 1
        return x
    for i in range(window.low, window.high):
        older: float = store.floats[row_at(store.ring, window.slot, i) + 1 + word]
        if not np.isnan(older):
            return older
    return x


@kernel
def _distinct(store: Store, rows: HistoryRows, window: Window, use: int, word: int) -> int:
    """Number of different words in the window, by a set that is larger than the window; ``use`` was never used."""
    mask = store.seen.shape[0] - 1
    count = 0
    for i in range(window.low, window.high + window.present):
        if i < window.high:
            x = store.ring.pool[row_at(store.ring, window.slot, i) + 1 + word]
        else:
            x = rows.words[window.row, word]
        place = signed(x & np.uint64(mask))
        while store.uses[place] == use and store.seen[place] != x:
            place = (place + 1) & mask
        if store.uses[place] != use:
            store.uses[place] = use
            store.seen[place] = x
            count += 1
    return count


@kernel
def _is_new(store: Store, rows: HistoryRows, window: Window, word: int) -> bool:
    """True where no row of the window has the present event's word; the newest are asked first."""
    for i in range(window.high - 1, window.low - 1, -1):
        if store.ring.pool[row_at(store.ring, window.slot, i) + 1 + word] == rows.words[window.row, word]:
            return False
    return True


@kernel
def _decayed(store: Store, rows: HistoryRows, window: Window, operation: int, word: int, half_life_ms: float) -> float:
    """Sum of 1 or of the values of the window, each weighted with 2 ** -(age / half-life), oldest first."""
    total = 0.0
    now = rows.times[window.row]
    for i in range(window.low, window.high):
        at = row_at(store.ring, window.slot, i)
        x = store.floats[at + 1 + word] if operation == _DECAYED_SUM else 1.0
        if not np.isnan(x):
            total += x * 2.0 ** (-(now - signed(store.ring.pool[at])) / half_life_ms)
    if window.present:
        x = rows.floats[window.row, word] if operation == _DECAYED_SUM else 1.0
        if not np.isnan(x):
            total += x
    return total


@kernel
def _moved(store: Store, rows: HistoryRows, window: Window, operation: int, latitude: int, longitude: int) -> float:
    """Kilometres, or km/h, from the newest row of the window that has a position; NaN if there is none."""
    lat: float = rows.floats[window.row, latitude]
    lon: float = rows.floats[window.row, longitude]
    for i in range(window.high - 1, window.low - 1, -1):
        at = row_at(store.ring, window.slot, i)
        lat_0, lon_0 = store.floats[at + 1 + latitude], store.floats[at + 1 + longitude]
        if np.isnan(lat_0) or np.isnan(lon_0):
            continue
        dlat, dlon = math.radians(lat - lat_0), math.radians(lon - lon_0)
        chord = math.sin(dlat / 2) ** 2
        chord += math.cos(math.radians(lat)) * math.cos(math.radians(lat_0)) * math.sin(dlon / 2) ** 2
        if np.isnan(chord):
            return np.nan
        km = 2.0 * _EARTH_KM * math.asin(math.sqrt(min(1.0, chord)))
        if operation == _DISTANCE:
            return km
        passed_ms: int = rows.times[window.row] - signed(store.ring.pool[at])
        return km / (max(_SECOND_MS, passed_ms) / _HOUR_MS)
    return np.nan


@helper
def _find_ranges(ring: Ring, plan: HistoryPlan, slot: int, place: int, t: int) -> None:
    """``plan.bounds[r]`` = first row of range r and the one after its last, of an event that belongs at ``place``."""
    for r in range(plan.ranges.shape[0]):
        near, last, gap = plan.ranges[r, _NEAR], plan.ranges[r, _LAST], plan.ranges[r, _GAP]
        high = place if plan.offsets[near] == 0 else plan.below[near]
        low = min(plan.below[plan.ranges[r, _FAR]], high)
        if last > 0:
            present = plan.offsets[near] == 0 and plan.ranges[r, _PAST] == 0
            low = max(low, high - last + (1 if present else 0))
        if gap > 0:
            begin, after = high, t
            while begin > low:
                before = signed(ring.pool[row_at(ring, slot, begin - 1)])
                if after - before >= gap:
                    break
                begin, after = begin - 1, before
            low = begin
        plan.bounds[r, 0], plan.bounds[r, 1] = low, high


@helper
def _widest(plan: HistoryPlan) -> int:
    """Most words that a set of distinct values must take for the row whose bounds are found."""
    widest = 0
    for j in range(plan.features.shape[0]):
        if plan.features[j, 0] == _DISTINCT:
            r = plan.features[j, 1]
            widest = max(widest, plan.bounds[r, 1] - plan.bounds[r, 0] + 1)
    return widest


@helper
def _window(plan: HistoryPlan, slot: int, r: int, row: int) -> Window:
    """Range r of the row whose bounds are found."""
    present = plan.offsets[plan.ranges[r, _NEAR]] == 0 and plan.ranges[r, _PAST] == 0
    return Window(slot, plan.bounds[r, 0], plan.bounds[r, 1], present, row)


@helper
def _feature(store: Store, plan: HistoryPlan, rows: HistoryRows, window: Window, j: int, use: int) -> float:
    operation, word, second = plan.features[j, 0], plan.features[j, 2], plan.features[j, 3]
    if operation == _COUNT:
        return np.float64(window.high - window.low + window.present)
    if operation in (_SINCE_LAST, _SINCE_FIRST):
        if window.low == window.high:
            return np.nan
        index = window.low if operation == _SINCE_FIRST else window.high - 1
        then = signed(store.ring.pool[row_at(store.ring, window.slot, index)])
        seconds: float = (rows.times[window.row] - then) / _SECOND_MS
        return seconds
    if operation in (_MIN, _MAX):
        return _extreme(store, rows, window, operation, word)
    if operation in (_FIRST, _LATEST):
        return _end(store, rows, window, operation, word)
    if operation == _DISTINCT:
        return np.float64(_distinct(store, rows, window, use, word))
    if operation == _FIRST_SEEN:
        return 1.0 if _is_new(store, rows, window, word) else 0.0
    if operation in (_DECAYED_COUNT, _DECAYED_SUM):
        return _decayed(store, rows, window, operation, word, plan.half_lives_ms[j])
    if operation in (_DISTANCE, _SPEED):
        return _moved(store, rows, window, operation, word, second)
    return _moments(store, rows, window, operation, word, plan.totals[second, 0], int(plan.totals[second, 1]))


@kernel
def history_rows(store: Store, plan: HistoryPlan, rows: HistoryRows, cursor: IntArray, out: FloatArray) -> int:
    """Rows from ``cursor[0]`` on (``cursor[1]`` = stream time so far): features, then insertion unless late.

    Returns DONE, or what must grow before it is called again.
    """
    ring = store.ring
    for row in range(cursor[0], len(rows.times)):
        look_ahead(ring, plan.offsets, rows.slots, row)
        t, slot, late = rows.times[row], rows.slots[row], rows.late[row]
        stream = max(cursor[1], t)
        horizon = stream - plan.span_ms
        place = 0
        if slot < 0:
            plan.below[:] = 0
        else:
            if not late and not ring_room(ring, slot, horizon):
                return POOL
            place = place_of(ring, slot, t, late, horizon)
            ordered = place == ring.heads[slot, TAIL]
            find_boundaries(ring, slot, plan.offsets, t, late, horizon, ordered, plan.below)
        _find_ranges(ring, plan, slot, place, t)
        if 2 * _widest(plan) > store.seen.shape[0]:
            return SCRATCH
        for m in range(plan.sums.shape[0]):
            window = _window(plan, slot, plan.sums[m, 0], row)
            plan.totals[m, 0], plan.totals[m, 1] = _exact_sum(store, rows, window, plan.sums[m, 1])
        for j in range(plan.features.shape[0]):
            window = _window(plan, slot, plan.features[j, 1], row)
            store.use[0] += 1
            out[row, j] = _feature(store, plan, rows, window, j, store.use[0])
        if not late:
            at = open_gap(ring, slot, place)
            ring.pool[at] = np.uint64(t)
            for word in range(rows.words.shape[1]):
                ring.pool[at + 1 + word] = rows.words[row, word]
        cursor[0] = row + 1
        cursor[1] = stream
    return DONE
