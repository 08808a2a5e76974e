"""What is said of candidates for one context: by the user's own items, their neighbours, and sessions like it.

For each of the session's last items its neighbours are looked up, for the last one also the neighbours of its nearest,
and the sessions that passed lately through any of them; all is summed up by candidate in the columns of
``Scratch.said``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from features.block import IntArray
from features.kernel import helper, signed
from features.shopping_kernels import CLASSES, LAGS, Codes
from features.shopping_known import CATEGORY, CODE, COUNT, HELD, RECENT, TIME, Known, Popular, Scratch, Sessions
from features.state import table_find

__all__ = ["POSITIONS", "POSITION_WEIGHT", "SAID", "candidate", "match_sessions", "neighbours", "own_items", "paths"]
__all__ += ["popular_items", "sessions_say"]

#: session items that candidates are taken from, the newest first
POSITIONS = 8
#: nearest neighbours of the last item whose own neighbours are looked at, and how many of them
_PATH_FIRST, _PATH_SECOND = 8, 24
#: sessions looked at for each item, newest first
_VISITS_READ = 64
_SESSION_HALF_LIFE_MS = 7.0 * 86_400_000
#: of an item of the session against the next newer one
POSITION_WEIGHT = 0.7

# columns of Scratch.said: what is known of a candidate, up to CLASSES from the last item's neighbours by class
MASS, SECOND_NEXT, SECOND_NEXT2, SECOND_BEFORE, THIRD_NEXT3 = (CLASSES + i for i in range(5))
COVISIT, NEAR, KNN, KNN_NEXT, KNN_SESSIONS, PATH = (CLASSES + 5 + i for i in range(6))
POSITION, TIMES, AGO, ACTED, TREND, KIND = (CLASSES + 11 + i for i in range(6))
SAID = CLASSES + 17


@helper
def candidate(scratch: Scratch, number: int) -> int:
    """The candidate's row in the scratch arrays, which is cleared where it is new; -1 where there is no more room."""
    stamp = scratch.stamp[0]
    if scratch.mark[number] >= stamp:
        return int(scratch.mark[number] - stamp)
    count = int(scratch.stamp[1])
    if count == scratch.numbers.shape[0]:
        return -1
    scratch.stamp[1] = count + 1
    scratch.mark[number] = stamp + count
    scratch.numbers[count] = number
    for c in range(SAID):
        scratch.said[count, c] = 0.0
    return count


@helper
def neighbours(known: Known, scratch: Scratch, number: int, position: int, weight: float) -> None:
    """What the neighbours' strengths of the item at this place of the session, 0 the last, say."""
    total_after1, total_before, all_of_it = known.totals[number, 0], 0.0, 0.0
    for c in range(CLASSES):
        all_of_it += known.totals[number, c]
        if c >= LAGS:
            total_before += known.totals[number, c]
    if all_of_it <= 0.0:
        return
    for place in range(known.heads[number, HELD]):
        row = candidate(scratch, known.others[number, place])
        if row < 0:
            return
        said, strengths = scratch.said[row], known.strengths[number, place]
        mass, before = 0.0, 0.0
        for c in range(CLASSES):
            mass += strengths[c]
            if c >= LAGS:
                before += strengths[c]
        said[COVISIT] += weight * mass / all_of_it
        said[NEAR] += 1.0
        if position == 0:
            said[MASS] = mass
            for c in range(CLASSES):
                if known.totals[number, c] > 0.0:
                    said[c] = strengths[c] / known.totals[number, c]
        elif position == 1:
            if total_after1 > 0.0:
                said[SECOND_NEXT] = strengths[0] / total_after1
            if known.totals[number, 1] > 0.0:
                said[SECOND_NEXT2] = strengths[1] / known.totals[number, 1]
            if total_before > 0.0:
                said[SECOND_BEFORE] = before / total_before
        elif position == 2 and known.totals[number, 2] > 0.0:
            said[THIRD_NEXT3] = strengths[2] / known.totals[number, 2]


@helper
def paths(known: Known, scratch: Scratch, number: int) -> None:
    """Neighbours of the last item's nearest neighbours."""
    first_total = 0.0
    for c in range(CLASSES):
        first_total += known.totals[number, c]
    for i in range(min(_PATH_FIRST, known.heads[number, HELD])):
        between, mass = known.others[number, i], 0.0
        if between == number:
            continue
        total = 0.0
        for c in range(CLASSES):
            mass += known.strengths[number, i, c]
            total += known.totals[between, c]
        for j in range(min(_PATH_SECOND, known.heads[between, HELD])):
            row = candidate(scratch, known.others[between, j])
            if row < 0:
                return
            second = 0.0
            for c in range(CLASSES):
                second += known.strengths[between, j, c]
            scratch.said[row, PATH] += mass / first_total * second / total


@helper
def match_sessions(
    known: Known, sessions: Sessions, scratch: Scratch, number: int, weight: float, session: int, found: int
) -> int:
    """Adds ``weight`` to the similarity of the sessions that passed through the item; returns how many are found."""
    capacity, ring = sessions.heads.shape[0], known.recent.shape[1]
    seen, stamp = known.heads[number, RECENT], scratch.stamp[0]
    for back in range(1, min(seen, ring, _VISITS_READ) + 1):
        sequence = known.recent[number, (seen - back) % ring]
        at = sequence & (capacity - 1)
        if sequence < sessions.next[0] - capacity or sessions.heads[at, CODE] == session:
            continue
        if scratch.touched[at] != stamp:
            if found == scratch.order.shape[0]:
                continue
            scratch.touched[at] = stamp
            scratch.similarity[at] = 0.0
            scratch.matched[at] = number
            scratch.order[found] = at
            found += 1
        scratch.similarity[at] += weight
    return found


@helper
def sessions_say(sessions: Sessions, scratch: Scratch, found: int, now: int) -> None:
    """Scores the items of the sessions found: more where the session is alike, recent and short, and the item near."""
    for k in range(found):
        at = scratch.order[k]
        count, match = sessions.heads[at, COUNT], -1
        for i in range(count):
            if sessions.items[at, i] == scratch.matched[at]:
                match = i
        age = float(max(now - sessions.heads[at, TIME], 0))
        alike = scratch.similarity[at] / math.sqrt(float(count)) * 2.0 ** (-age / _SESSION_HALF_LIFE_MS)
        for i in range(count):
            if i == match:
                continue
            row = candidate(scratch, sessions.items[at, i])
            if row < 0:
                return
            if scratch.said[row, TIMES] > 0.0:
                continue
            near = alike / float(abs(i - match))
            scratch.said[row, KNN] += near
            if i > match:
                scratch.said[row, KNN_NEXT] += near
            scratch.said[row, KNN_SESSIONS] += 1.0


@helper
def own_items(
    known: Known, scratch: Scratch, codes: Codes, times: IntArray, actions: npt.NDArray[np.int8], length: int, now: int
) -> int:
    """Enters the user's own items; returns how many different ones of the session stand in ``scratch.context``."""
    different = 0
    for i in range(codes.shape[0]):
        place = table_find(known.table, np.uint64(0), codes[i])
        if place < 0:
            continue
        number = signed(known.table[place, 2]) - 1
        row = candidate(scratch, number)
        if row < 0:
            break
        said = scratch.said[row]
        if said[TIMES] == 0.0:
            said[AGO], said[POSITION] = (now - times[i]) / 1000.0, float(i + 1)
            if i < length and different < POSITIONS:
                scratch.context[different] = number
                different += 1
        said[TIMES] += 1.0
        said[ACTED] = max(said[ACTED], float(actions[i]))
    return different


@helper
def _enter(scratch: Scratch, number: int, column: int, weight: float) -> None:
    row = candidate(scratch, number)
    if row >= 0:
        scratch.said[row, column] += weight


@helper
def popular_items(known: Known, popular: Popular, scratch: Scratch, last: int) -> None:
    """Enters what is trending, and what is popular in the category of the last item (-1: there is none)."""
    most = popular.trending.shape[0]
    for i in range(most):
        _enter(scratch, popular.trending[i], TREND, 1.0 - i / most)
    if last < 0 or known.heads[last, CATEGORY] == 0:
        return
    at = np.searchsorted(popular.categories, known.heads[last, CATEGORY])
    if at < popular.categories.shape[0] and popular.categories[at] == known.heads[last, CATEGORY]:
        first, end = popular.begin[at], popular.begin[at + 1]
        for i in range(first, end):
            _enter(scratch, popular.numbers[i], KIND, 1.0 - (i - first) / (end - first))
