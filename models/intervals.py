"""How far a figure would move with other cards: percentile intervals of a bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from features.block import FloatArray, IntArray
from models.metrics import CardDays, Ranked, log_losses

__all__ = ["difference_noise", "metric_intervals"]


def metric_intervals(
    raw: FloatArray,
    probability: FloatArray,
    y: npt.ArrayLike,
    day: IntArray,
    card: IntArray,
    *,
    resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Intervals of the figures of `models.metrics.evaluate`, of the same arguments, all arrays (n,).

    Rows of one card depend on each other, so whole cards are drawn with replacement, ``resamples`` times. A card drawn
    twice counts as two. Returns ``by``, ``resamples``, ``confidence``, ``seed`` and by figure ``{"low", "high",
    "deviation"}``: percentiles and standard deviation over the draws. What makes the days of one week like each other
    is not in it.
    """
    labels = np.asarray(y).astype(np.float64)
    ranked, cards = Ranked(labels, raw), CardDays(raw, labels, day, card)
    sums = {
        "log_loss": np.bincount(cards.place, log_losses(labels, probability), cards.n_cards),
        "brier": np.bincount(cards.place, (probability - labels) ** 2, cards.n_cards),
    }
    rows = np.bincount(cards.place, minlength=cards.n_cards).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn: dict[str, FloatArray] = {
        name: np.empty(resamples) for name in ("auc", "average_precision", "card_precision_100", *sums)
    }
    for i in range(resamples):
        weight = np.bincount(rng.integers(0, cards.n_cards, cards.n_cards), minlength=cards.n_cards).astype(np.float64)
        of_rows = weight[cards.place]
        drawn["auc"][i] = ranked.auc(of_rows)
        drawn["average_precision"][i] = ranked.average_precision(of_rows)
        drawn["card_precision_100"][i] = cards.precision(weight)
        for name, sum_of_card in sums.items():
            drawn[name][i] = weight @ sum_of_card / (weight @ rows)
    found: dict[str, Any] = {"by": "card", "resamples": resamples, "confidence": confidence, "seed": seed}
    for name, values in drawn.items():
        low, high = np.nanquantile(values, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
        found[name] = {"low": float(low), "high": float(high), "deviation": float(np.nanstd(values))}
    return found


def difference_noise(
    y: npt.ArrayLike, first: FloatArray, second: FloatArray, card: IntArray, *, resamples: int = 100, seed: int = 0
) -> float:
    """Standard deviation of the difference in average precision of two scores of the same rows, all arrays (n,), over
    cards drawn anew, the same for both."""
    labels = np.asarray(y).astype(np.float64)
    names, place = np.unique(card, return_inverse=True)
    ranked = [Ranked(labels, score) for score in (first, second)]
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(resamples):
        weight = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))[place].astype(np.float64)
        before, after = (one.average_precision(weight) for one in ranked)
        gains.append(after - before)
    return float(np.nanstd(gains))
