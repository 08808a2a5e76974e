"""Figures of a fraud model on labelled rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray, IntArray

__all__ = ["card_precision", "evaluate", "not_known_before"]


def evaluate(
    raw: FloatArray, probability: FloatArray, y: npt.ArrayLike, day: IntArray, card: IntArray
) -> dict[str, float]:
    """Ranking metrics of ``raw``, log loss and Brier score of ``probability``; all arrays (n,)."""
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

    labels = np.asarray(y)
    return {
        "rows": len(labels),
        "frauds": int(labels.sum()),
        "auc": float(roc_auc_score(labels, raw)),
        "average_precision": float(average_precision_score(labels, raw)),
        "card_precision_100": card_precision(raw, labels, day, card),
        "log_loss": float(log_loss(labels, probability)),
        "brier": float(brier_score_loss(labels, probability)),
    }


def card_precision(score: FloatArray, y: npt.ArrayLike, day: IntArray, card: IntArray, top: int = 100) -> float:
    """The share of frauds among the ``top`` cards of a day, mean over days.

    Each day cards are ranked by their highest ``score``, ties by lower card. A card is a find if it has a fraud
    that day; once found, it is not listed on later days. From the card-fraud handbook (Le Borgne et al., 2022).
    """
    fraud = np.asarray(y) == 1
    found: set[int] = set()
    precisions = []
    for today in np.unique(day):
        rows = np.flatnonzero((day == today) & ~np.isin(card, list(found)))
        cards, place = np.unique(card[rows], return_inverse=True)
        best = np.full(len(cards), -np.inf)
        np.maximum.at(best, place, score[rows])
        hit = np.zeros(len(cards), dtype=np.bool_)
        np.logical_or.at(hit, place, fraud[rows])
        listed = np.lexsort((cards, -best))[:top]
        found.update(cards[listed][hit[listed]].tolist())
        precisions.append(hit[listed].sum() / top)
    return float(np.mean(precisions))


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
