"""The kernel that serves contexts: candidates from all sources, the best of them, and the features of each pair."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from features.block import FloatArray, IntArray
from features.kernel import helper, kernel
from features.shopping_kernels import COUNTS, LAGS, Codes
from features.shopping_known import CATEGORY, FIRST, NEWEST, PUBLISHED, Known, Popular, Scratch, Served, Sessions
from features.shopping_said import (
    ACTED,
    AGO,
    COVISIT,
    KIND,
    KNN,
    KNN_NEXT,
    MASS,
    PATH,
    POSITION,
    POSITION_WEIGHT,
    TIMES,
    TREND,
    match_sessions,
    neighbours,
    own_items,
    paths,
    popular_items,
    sessions_say,
)

__all__ = ["FEATURES", "SOURCES", "serve"]

#: where a candidate comes from: which of them says most
SOURCES = ("covisit", "session-knn", "path", "own", "trending", "category")
FROM_COVISIT, FROM_KNN, FROM_PATH, FROM_OWN, FROM_TREND, FROM_KIND = range(6)

#: of a pair of context and candidate, in the order of the columns
FEATURES = (
    *(f"last_after{lag}" for lag in range(1, LAGS + 1)),
    *(f"last_before{lag}" for lag in range(1, LAGS + 1)),
    "last_mass",
    "second_after1",
    "second_after2",
    "second_before",
    "third_after3",
    "covisit",
    "covisit_items",
    "knn",
    "knn_next",
    "knn_sessions",
    "path",
    "prior",
    "prior_rank",
    "covisit_of_best",
    "knn_of_best",
    "knn_next_of_best",
    "after1_of_best",
    "after1_of_item",
    "mass_of_item",
    "position",
    "times_seen",
    "seen_ago_s",
    "acted",
    "looks_1h",
    "looks_1d",
    "looks_7d",
    "carts_7d",
    "purchases_7d",
    "trend_1h",
    "trend_1d",
    "age_h",
    "idle_h",
    "last_support",
    "last_self",
    "last_looks_1d",
    "session_length",
    "session_items",
    "dwell_s",
    "run",
    "same_category",
    "price_ratio",
)


@helper
def _prior(said: FloatArray, best_knn: float, out: FloatArray) -> int:
    """Writes the score by which candidates are taken, from shares that each source gives; returns the largest's."""
    knn = 0.05 * said[KNN] / best_knn if best_knn > 0.0 else 0.0
    covisit = said[COVISIT] + said[0] + 0.5 * said[1] + 0.25 * said[LAGS]
    path, own, trend = 3.0 * said[PATH], 0.02 * min(said[TIMES], 1.0), 1e-4 * said[TREND]
    kind = 1e-3 * said[KIND]
    out[0] = covisit + knn + path + own + trend + kind
    source, largest = FROM_COVISIT, covisit
    if knn > largest:
        source, largest = FROM_KNN, knn
    if path > largest:
        source, largest = FROM_PATH, path
    if own > largest:
        source, largest = FROM_OWN, own
    if kind > largest:
        source, largest = FROM_KIND, kind
    return source if trend <= largest else FROM_TREND


@helper
def _take_best(known: Known, scratch: Scratch, best_knn: float, out: Served, begin: int, most: int) -> int:
    """Writes the best candidates that were published, by prior and then number, from row ``begin`` on; how many."""
    taken = 0
    for row in range(scratch.stamp[1]):
        number = scratch.numbers[row]
        if known.heads[number, PUBLISHED] == 0:
            continue
        source = _prior(scratch.said[row], best_knn, scratch.prior)
        prior = scratch.prior[0]
        at = begin + taken
        if taken == most:
            last = out.prior[at - 1]
            if prior < last or (prior == last and number > scratch.numbers[out.numbers[at - 1]]):
                continue
            at -= 1
        else:
            taken += 1
        while at > begin and (
            out.prior[at - 1] < prior or (out.prior[at - 1] == prior and scratch.numbers[out.numbers[at - 1]] > number)
        ):
            out.prior[at], out.numbers[at], out.source[at] = out.prior[at - 1], out.numbers[at - 1], out.source[at - 1]
            at -= 1
        out.prior[at], out.numbers[at], out.source[at] = prior, row, source
    return taken


@helper
def _decayed(known: Known, number: int, count: int, now: int, half_lives: FloatArray) -> float:
    age = float(max(now - known.heads[number, NEWEST], 0))
    return float(known.counts[number, count] * 2.0 ** (-age / half_lives[count]))


@helper
def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else 0.0


@helper
def _said_features(said: FloatArray, x: FloatArray, best: FloatArray, prior: float, rank: int) -> int:
    """The features that are sums of what was said; returns how many."""
    for c in range(PATH + 1):
        x[c] = said[c]
    at = PATH + 1
    x[at], x[at + 1] = prior, float(rank)
    x[at + 2], x[at + 3] = _share(said[COVISIT], best[0]), _share(said[KNN], best[1])
    x[at + 4], x[at + 5] = _share(said[KNN_NEXT], best[2]), _share(said[0], best[3])
    return at + 6


@helper
def _item_features(
    known: Known, number: int, last: int, said: FloatArray, x: FloatArray, at: int, now: int, half_lives: FloatArray
) -> int:
    """The features of the candidate itself, and of it beside the last item; returns the next column."""
    looks = _decayed(known, number, 2, now, half_lives)
    x[at] = _share(said[0] * known.totals[last, 0], looks) if last >= 0 else math.nan
    x[at + 1] = _share(said[MASS], looks)
    own = said[TIMES] > 0.0
    x[at + 2] = said[POSITION] if own else math.nan
    x[at + 3] = said[TIMES]
    x[at + 4] = said[AGO] if own else math.nan
    x[at + 5] = said[ACTED] if own else math.nan
    at += 6
    for c in range(COUNTS):
        x[at + c] = _decayed(known, number, c, now, half_lives)
    x[at + COUNTS] = _share(24.0 * x[at], x[at + 1])
    x[at + COUNTS + 1] = _share(7.0 * x[at + 1], x[at + 2])
    x[at + COUNTS + 2] = (now - known.heads[number, FIRST]) / 3.6e6
    x[at + COUNTS + 3] = max(now - known.heads[number, NEWEST], 0) / 3.6e6
    return at + COUNTS + 4


@helper
def _pair_features(known: Known, number: int, last: int, x: FloatArray, at: int) -> None:
    """Category and price beside the last item's; NaN where one of the two is not known."""
    x[at] = x[at + 1] = math.nan
    if last < 0:
        return
    if known.heads[number, CATEGORY] != 0 and known.heads[last, CATEGORY] != 0:
        x[at] = 1.0 if known.heads[number, CATEGORY] == known.heads[last, CATEGORY] else 0.0
    if known.price[last] > 0.0:
        x[at + 1] = known.price[number] / known.price[last]


@kernel
def serve(
    known: Known,
    sessions: Sessions,
    scratch: Scratch,
    rows: IntArray,
    items: Codes,
    times: IntArray,
    actions: npt.NDArray[np.int8],
    kept: IntArray,
    length: IntArray,
    session: IntArray,
    nows: IntArray,
    popular: Popular,
    half_lives: FloatArray,
    most: int,
    begin: IntArray,
    out: Served,
) -> None:
    """For each of ``rows`` at most ``most`` candidates, one after the other in ``out``; ``begin``: from where on."""
    for nth in range(rows.shape[0]):
        row = rows[nth]
        now = nows[row]
        scratch.stamp[0] += scratch.numbers.shape[0]
        scratch.stamp[1] = 0
        held = kept[row]
        different = own_items(
            known, scratch, items[row, :held], times[row, :held], actions[row, :held], length[row], now
        )
        weight, found = 1.0, 0
        for i in range(different):
            number = scratch.context[i]
            neighbours(known, scratch, number, i, weight)
            found = match_sessions(known, sessions, scratch, number, weight, session[row], found)
            weight *= POSITION_WEIGHT
        last = scratch.context[0] if different > 0 else -1
        sessions_say(sessions, scratch, found, now)
        if last >= 0:
            paths(known, scratch, last)
        popular_items(known, popular, scratch, last)
        best = scratch.best
        best[:] = 0.0
        for c in range(scratch.stamp[1]):
            best[0], best[1] = max(best[0], scratch.said[c, COVISIT]), max(best[1], scratch.said[c, KNN])
            best[2], best[3] = max(best[2], scratch.said[c, KNN_NEXT]), max(best[3], scratch.said[c, 0])
        first = begin[nth]
        taken = _take_best(known, scratch, best[1], out, first, most)
        begin[nth + 1] = first + taken
        last_support = last_self = last_looks = dwell = math.nan
        run = 0
        while run < held and run < length[row] and items[row, run] == items[row, 0]:
            run += 1
        if last >= 0:
            last_support, last_looks = float(known.totals[last, 0]), _decayed(known, last, 1, now, half_lives)
            last_self = scratch.said[scratch.mark[last] - scratch.stamp[0], 0]
        if held > 1 and length[row] > 1:
            dwell = (times[row, 0] - times[row, 1]) / 1000.0
        for rank in range(taken):
            at = first + rank
            of = out.numbers[at]
            number, x = scratch.numbers[of], out.x[at]
            column = _said_features(scratch.said[of], x, best, out.prior[at], rank)
            column = _item_features(known, number, last, scratch.said[of], x, column, now, half_lives)
            x[column], x[column + 1], x[column + 2] = last_support, last_self, last_looks
            x[column + 3], x[column + 4], x[column + 5] = float(length[row]), float(different), dwell
            x[column + 6] = float(run)
            _pair_features(known, number, last, x, column + 7)
            out.numbers[at] = number
