"""Figures of a fraud model on labelled rows; rows may have weights, so that a bootstrap can draw them again."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray, IntArray

__all__ = [
    "CALIBRATION_CUTS",
    "CardDays",
    "Ranked",
    "calibration_table",
    "card_precision",
    "evaluate",
    "log_losses",
    "not_known_before",
    "wilson",
]

#: between the bins of the calibration table: finer where fraud models put most rows
CALIBRATION_CUTS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.95)
#: a probability is never taken for certain
_CERTAIN = float(np.finfo(np.float64).eps)


def evaluate(
    raw: FloatArray, probability: FloatArray, y: npt.ArrayLike, day: IntArray, card: IntArray
) -> dict[str, float]:
    """Ranking metrics of ``raw``, log loss and Brier score of ``probability``; all arrays (n,), both classes in y."""
    labels = np.asarray(y).astype(np.float64)
    ranked, ones = Ranked(labels, raw), np.ones(len(labels))
    return {
        "rows": len(labels),
        "frauds": int(labels.sum()),
        "auc": ranked.auc(ones),
        "average_precision": ranked.average_precision(ones),
        "card_precision_100": card_precision(raw, labels, day, card),
        "log_loss": float(log_losses(labels, probability).mean()),
        "brier": float(np.mean((probability - labels) ** 2)),
    }


def log_losses(y: FloatArray, probability: FloatArray) -> FloatArray:
    """(n,) log loss of each row, ``y`` 0.0 or 1.0."""
    p = np.clip(probability, _CERTAIN, 1.0 - _CERTAIN)
    loss: FloatArray = -(y * np.log(p) + (1.0 - y) * np.log1p(-p))
    return loss


class Ranked:
    """Rows by falling score, for many weightings of them; tied scores are taken together."""

    def __init__(self, y: FloatArray, score: FloatArray) -> None:
        """``y`` (n,) 0.0 or 1.0, ``score`` (n,)."""
        self._order = np.argsort(-score, kind="stable")
        self._y = y[self._order]
        ranked = score[self._order]
        #: the last row of each score
        self._ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
        #: each score
        self.scores = ranked[self._ends]

    def counts(self, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(frauds, rows) with at least each score, by falling score, weighted by ``weight`` (n,)."""
        w = weight[self._order]
        return np.cumsum(w * self._y)[self._ends], np.cumsum(w)[self._ends]

    def average_precision(self, weight: FloatArray) -> float:
        """Sum over scores of the gain in recall times the precision there; NaN without a fraud of any weight."""
        found, taken = self.counts(weight)
        if found[-1] == 0:
            return float("nan")
        precision = np.divide(found, taken, out=np.zeros(len(found)), where=taken > 0)
        return float(np.sum(np.diff(found, prepend=0.0) * precision) / found[-1])

    def auc(self, weight: FloatArray) -> float:
        """Area under the ROC curve; NaN without both classes."""
        found, taken = self.counts(weight)
        wrong = taken - found
        if found[-1] == 0 or wrong[-1] == 0:
            return float("nan")
        middle = found - np.diff(found, prepend=0.0) / 2.0
        return float(np.sum(np.diff(wrong, prepend=0.0) * middle) / (found[-1] * wrong[-1]))


@dataclass(frozen=True, slots=True)
class _Day:
    """The cards of a day, best first: their places among all cards, and whether each has a fraud that day."""

    card: IntArray
    hit: BoolArray


class CardDays:
    """Cards by day and highest score, for many weightings of the cards.

    Each day cards are ranked by their highest ``score``, ties by lower card. A card is a find if it has a fraud
    that day; once found, it is not listed on later days. From the card-fraud handbook (Le Borgne et al., 2022).
    """

    def __init__(self, score: FloatArray, y: npt.ArrayLike, day: IntArray, card: IntArray) -> None:
        fraud = np.asarray(y) == 1
        cards, place = np.unique(card, return_inverse=True)
        self.n_cards = len(cards)
        #: (n,) the place of each row's card, 0 <= place < n_cards
        self.place: IntArray = place
        self._days = [self._ranked(score, fraud, np.flatnonzero(day == today)) for today in np.unique(day)]

    def _ranked(self, score: FloatArray, fraud: BoolArray, rows: IntArray) -> _Day:
        best = np.full(self.n_cards, -np.inf)
        np.maximum.at(best, self.place[rows], score[rows])
        hit = np.zeros(self.n_cards, dtype=np.bool_)
        hit[self.place[rows[fraud[rows]]]] = True
        there = np.unique(self.place[rows])
        order = there[np.lexsort((there, -best[there]))]
        return _Day(order, hit[order])

    def precision(self, weight: FloatArray, top: int = 100) -> float:
        """The share of finds among the ``top`` cards of a day, mean over days. ``weight`` (n_cards,): how many cards
        each stands for; those that are listed are found, those beyond the top remain."""
        left = weight.copy()
        precisions = []
        for day in self._days:
            have = left[day.card]
            listed = np.clip(top - (np.cumsum(have) - have), 0.0, have)
            found = np.where(day.hit, listed, 0.0)
            left[day.card] -= found
            precisions.append(found.sum() / top)
        return float(np.mean(precisions))


def card_precision(score: FloatArray, y: npt.ArrayLike, day: IntArray, card: IntArray, top: int = 100) -> float:
    """The share of frauds among the ``top`` cards of a day, mean over days, see `CardDays`; all arrays (n,)."""
    cards = CardDays(score, y, day, card)
    return cards.precision(np.ones(cards.n_cards), top)


def calibration_table(probability: FloatArray, y: npt.ArrayLike) -> list[dict[str, Any]]:
    """Rows (n,) by their probability, in the bins between `CALIBRATION_CUTS`; bins without a row are left out.

    Each bin: ``from`` (included), ``to``, the mean ``probability``, ``rows``, ``frauds``, their ``share`` and its 95%
    interval ``low``, ``high`` (Wilson, rows taken as independent).
    """
    fraud = np.asarray(y) == 1
    bounds = (0.0, *CALIBRATION_CUTS, 1.0)
    place = np.searchsorted(CALIBRATION_CUTS, probability, side="right")
    table = []
    for i in np.unique(place).tolist():
        rows = place == i
        n, k = int(rows.sum()), int(fraud[rows].sum())
        low, high = wilson(k, n)
        table.append(
            {
                "from": bounds[i],
                "to": bounds[i + 1],
                "probability": float(probability[rows].mean()),
                "rows": n,
                "frauds": k,
                "share": k / n,
                "low": low,
                "high": high,
            }
        )
    return table


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share k / n (Wilson, 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    share, scale = k / n, 1.0 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * (share * (1.0 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def not_known_before(day: IntArray, card: IntArray, y: npt.ArrayLike, label_delay_days: int) -> BoolArray:
    """(n,) mask of rows whose card had no fraud known at the begin of their day.

    A fraud on day d is known from the begin of day d + 1 + ``label_delay_days``. Rows before the training range
    are not to be passed: the protocol counts frauds from its begin only.
    """
    cards, place = np.unique(card, return_inverse=True)
    fraud = np.asarray(y) == 1
    first = np.full(len(cards), np.iinfo(np.int64).max)
    np.minimum.at(first, place[fraud], day[fraud])
    known: BoolArray = first[place] <= day - 1 - label_delay_days
    return ~known
