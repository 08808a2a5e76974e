"""The kernels of what users and items are remembered by; `tests/oracles/shopping.py` says the same in plain Python.

Strengths decay forward: what happens at time t weighs ``2 ** ((t - landmark) / half_life)``, so that a new event
changes one number and the ratio of two needs no clock. The landmark is the item's own and moves on before numbers grow
large.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray, IntArray
from features.kernel import helper, kernel
from features.state import NO_TIME

__all__ = ["CLASSES", "COUNTS", "LAGS", "Items", "UserRows", "Users", "item_rows", "lag_class", "user_rows"]

Codes = npt.NDArray[np.uint64]
Singles = npt.NDArray[np.float32]

#: clicks that a pair of items may lie apart in a session
LAGS = 3
#: kinds of strength between two items: came 1, 2, 3 clicks after, came 1, 2, 3 clicks before
CLASSES = 2 * LAGS
#: decayed counts of an item: looks within an hour, a day, a week; put into carts, bought within a week
COUNTS = 5
_LOOKS = 3
_CART, _PURCHASE = 2, 3
#: half-lives after which the landmark moves: 2**32 is far from the largest float32, 2**24
_LANDMARK_HALF_LIVES = 32

# columns of Users.heads
KEPT, LENGTH, LAST, SESSION, STARTED, QUICK = 0, 1, 2, 3, 4, 5
USER_WORDS = 6
# columns of Items.heads
NEIGHBOURS, VISITS, FIRST, NEWEST, LANDMARK, TOUCHED, CATEGORY = 0, 1, 2, 3, 4, 5, 6
ITEM_WORDS = 7

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(31)


class Users(NamedTuple):
    """By slot: the last events, newest first, and ``heads``: kept, clicks in the session, last time, session, start,
    and whether two clicks of the session belong together by its rule."""

    items: Codes
    times: IntArray
    actions: npt.NDArray[np.int8]
    heads: IntArray


class UserRows(NamedTuple):
    """What `user_rows` writes, by row of the block; see `features.shopping_users.Contexts`."""

    items: Codes
    times: IntArray
    actions: npt.NDArray[np.int8]
    kept: IntArray
    length: IntArray
    session: IntArray


class Items(NamedTuple):
    """By slot. ``others`` (n, neighbours), ``mass`` their total strengths, ``strengths`` by class, ``totals`` of all
    pairs there were; ``counts``, decayed to the newest time; ``visits``, ``visited``: rings of sessions and times."""

    others: Codes
    mass: Singles
    strengths: Singles
    totals: Singles
    counts: Singles
    visits: IntArray
    visited: IntArray
    price: FloatArray
    heads: IntArray


@helper
def session_code(key: np.uint64, start: np.uint64) -> int:
    """A number for a session, from its user's key and how it started."""
    x = (key ^ (start * _GOLDEN)) * _MIX
    return np.int64((x ^ (x >> _SHIFT)) >> np.uint64(1))  # type: ignore[return-value]


@kernel
def user_rows(
    users: Users,
    out: UserRows,
    slots: IntArray,
    late: BoolArray,
    keys: Codes,
    items: Codes,
    times: IntArray,
    actions: IntArray,
    sessions: Codes,
    given: BoolArray,
    stream: int,
    gap_ms: int,
    horizon_ms: int,
) -> None:
    """Applies the rows in order and writes each one's context; a late row's is what was known, without it."""
    most = users.items.shape[1]
    for row in range(slots.shape[0]):
        slot, t = slots[row], times[row]
        if slot < 0:
            out.kept[row] = out.length[row] = out.session[row] = 0
            stream = max(stream, t)
            continue
        head = users.heads[slot]
        if head[KEPT] > 0 and head[LAST] <= stream - horizon_ms:
            head[KEPT] = head[LENGTH] = head[SESSION] = head[STARTED] = head[QUICK] = 0
            head[LAST] = NO_TIME
        stream = max(stream, t)
        if not late[row]:
            start = np.uint64(t)
            fresh = head[KEPT] == 0 or t - head[LAST] > gap_ms
            if given[row]:
                start = sessions[row]
                fresh = head[KEPT] == 0 or np.uint64(head[STARTED]) != start
            if not fresh:
                head[QUICK] = 1
            else:
                head[STARTED] = np.int64(start)
                if head[QUICK] != 0 or head[KEPT] == 0:
                    head[SESSION] = session_code(keys[row], start)
                    head[LENGTH] = head[QUICK] = 0
            for i in range(min(head[KEPT], most - 1), 0, -1):
                users.items[slot, i] = users.items[slot, i - 1]
                users.times[slot, i] = users.times[slot, i - 1]
                users.actions[slot, i] = users.actions[slot, i - 1]
            users.items[slot, 0] = items[row]
            users.times[slot, 0] = t
            users.actions[slot, 0] = actions[row]
            head[KEPT] = min(head[KEPT] + 1, most)
            head[LENGTH] += 1
            head[LAST] = max(head[LAST], t)
        kept = head[KEPT]
        out.kept[row], out.length[row], out.session[row] = kept, head[LENGTH], head[SESSION]
        for i in range(kept):
            out.items[row, i] = users.items[slot, i]
            out.times[row, i] = users.times[slot, i]
            out.actions[row, i] = users.actions[slot, i]


@helper
def lag_class(lag: int) -> int:
    """The class of strength of a lag other than 0."""
    return lag - 1 if lag > 0 else LAGS - lag - 1


@helper
def _place_of(items: Items, slot: int, other: np.uint64) -> int:
    """Where the neighbour stands, or the place to put it: a free one, else the weakest's, which is cleared."""
    held, most = items.heads[slot, NEIGHBOURS], items.others.shape[1]
    for place in range(held):
        if items.others[slot, place] == other:
            return place
    if held < most:
        items.heads[slot, NEIGHBOURS] = held + 1
        place = held
    else:
        place = 0
        for i in range(1, most):
            if items.mass[slot, i] < items.mass[slot, place]:
                place = i
    items.others[slot, place] = other
    items.mass[slot, place] = np.float32(0)
    for c in range(CLASSES):
        items.strengths[slot, place, c] = np.float32(0)
    return place


@helper
def _move_landmark(items: Items, slot: int, time: int, half_life_ms: int) -> None:
    """Moves the landmark on by whole steps until ``time`` is within one of it; powers of two, so that it is exact."""
    step = _LANDMARK_HALF_LIVES * half_life_ms
    steps = (time - items.heads[slot, LANDMARK]) // step
    if steps <= 0:
        return
    factor = np.float32(math.ldexp(1.0, -min(_LANDMARK_HALF_LIVES * steps, 1000)))
    items.heads[slot, LANDMARK] += steps * step
    for c in range(CLASSES):
        items.totals[slot, c] *= factor
    for place in range(items.heads[slot, NEIGHBOURS]):
        items.mass[slot, place] *= factor
        for c in range(CLASSES):
            items.strengths[slot, place, c] *= factor


@helper
def _count(items: Items, slot: int, time: int, action: int, half_lives: FloatArray) -> None:
    """One event of the item itself: decays its counts to the newest time, an earlier event decays to it."""
    head = items.heads[slot]
    if head[FIRST] == NO_TIME:
        head[FIRST] = head[NEWEST] = time
    aged, behind = float(max(time - head[NEWEST], 0)), float(max(head[NEWEST] - time, 0))
    head[FIRST], head[NEWEST] = min(head[FIRST], time), max(head[NEWEST], time)
    for c in range(COUNTS):
        value = float(items.counts[slot, c]) * 2.0 ** (-aged / half_lives[c])
        if c < _LOOKS or (c == _LOOKS and action == _CART) or (c == _LOOKS + 1 and action == _PURCHASE):
            value += 2.0 ** (-behind / half_lives[c])
        items.counts[slot, c] = np.float32(value)


@kernel
def item_clear(items: Items, slot: int) -> None:
    """As if the item had never been seen."""
    items.heads[slot, NEIGHBOURS] = items.heads[slot, VISITS] = items.heads[slot, CATEGORY] = 0
    items.heads[slot, FIRST] = items.heads[slot, NEWEST] = NO_TIME
    items.heads[slot, LANDMARK] = items.heads[slot, TOUCHED] = NO_TIME
    items.price[slot] = math.nan
    for c in range(COUNTS):
        items.counts[slot, c] = np.float32(0)
    for c in range(CLASSES):
        items.totals[slot, c] = np.float32(0)


@kernel
def item_rows(
    items: Items,
    dirty: BoolArray,
    slots: IntArray,
    times: IntArray,
    actions: IntArray,
    lags: IntArray,
    others: Codes,
    sessions: IntArray,
    categories: IntArray,
    prices: FloatArray,
    stream: int,
    horizon_ms: int,
    half_life_ms: int,
    half_lives: FloatArray,
) -> None:
    """Applies the rows in order: lag 0 is the item's own event, any other a pair with ``others``."""
    ring = items.visits.shape[1]
    for row in range(slots.shape[0]):
        slot, t, lag = slots[row], times[row], lags[row]
        head = items.heads[slot]
        if head[TOUCHED] == NO_TIME or head[TOUCHED] <= stream - horizon_ms:
            item_clear(items, slot)
        if head[LANDMARK] == NO_TIME:
            head[LANDMARK] = t
        stream = max(stream, t)
        head[TOUCHED] = max(head[TOUCHED], t)
        dirty[slot] = True
        if lag == 0:
            _count(items, slot, t, actions[row], half_lives)
            at = head[VISITS] % ring
            items.visits[slot, at], items.visited[slot, at] = sessions[row], t
            head[VISITS] += 1
            if categories[row] != 0:
                head[CATEGORY] = categories[row]
            if not math.isnan(prices[row]):
                items.price[slot] = prices[row]
            continue
        _move_landmark(items, slot, t, half_life_ms)
        weight = np.float32(2.0 ** ((t - head[LANDMARK]) / half_life_ms))
        place = _place_of(items, slot, others[row])
        c = lag_class(lag)
        items.mass[slot, place] += weight
        items.strengths[slot, place, c] += weight
        items.totals[slot, c] += weight
