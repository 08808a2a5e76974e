"""How good the scores were, from counts of matured labels; with intervals, and with what was estimated before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from features.block import FloatArray, IntArray
from monitoring.bins import FINE, SCALE, fine_probabilities
from monitoring.budget import Watch
from monitoring.drift import average_precision, roc_auc
from monitoring.settings import MonitorSettings

__all__ = [
    "METRICS",
    "LabelledLayout",
    "card_precision",
    "error_rate",
    "estimated",
    "intervals",
    "labelled_watches",
    "metrics",
    "unexplained",
    "unexplained_loss",
]

#: of `metrics`, in its order
METRICS = (
    "auc",
    "average_precision",
    "log_loss",
    "brier",
    "precision",
    "recall",
    "calibration_gap",
    "calibration_error",
)
_WORSE: dict[str, Literal["high", "low", "both"]] = {
    "log_loss": "high",
    "brier": "high",
    "calibration_error": "high",
    "calibration_gap": "both",
}
#: bins of the calibration error: ten times the width of the fine ones, 1 of log odds
_CALIBRATION_BINS = 24


@dataclass(frozen=True, slots=True)
class LabelledLayout:
    """Where a period's counts of labelled rows lie, see `monitoring.bins.count_labelled`."""

    size: int = 8 + 2 * FINE

    def head(self, counts: IntArray) -> IntArray:
        """(.., 8) view of ``counts`` (.., size): rows, positives, tp, fp, fn, log loss, squared error, score."""
        return counts[..., :8]

    def fine(self, counts: IntArray) -> IntArray:
        """(.., 2, 240): negatives and positives by score."""
        return counts[..., 8:].reshape(*counts.shape[:-1], 2, FINE)


LAYOUT = LabelledLayout()


def metrics(counts: IntArray) -> FloatArray:
    """(k, 8) the figures of `METRICS` of windows of ``counts`` (k, size); NaN where they are not defined.

    AUC and average precision take scores of one fine bin (0.1 of log odds) as ties. The calibration gap is
    positives over the sum of scores, less 1; the calibration error is the mean absolute gap of 24 bins of log odds,
    weighted by rows and relative to the sum of scores as well.
    """
    head = LAYOUT.head(counts).astype(np.float64)
    rows, positives, tp, fp, fn = head[:, :5].T
    fine = LAYOUT.fine(counts).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_loss, brier = (head[:, 5:7] / SCALE / rows[:, None]).T
        hoped = np.where(head[:, 7] > 0, head[:, 7] / SCALE, np.nan)
        coarse = fine.reshape(len(fine), 2, _CALIBRATION_BINS, -1)
        expected = (coarse.sum(1) * fine_probabilities().reshape(_CALIBRATION_BINS, -1)).sum(-1)
        error = np.abs(expected - coarse[:, 1].sum(-1)).sum(-1) / hoped
        out = [
            roc_auc(fine[:, 0], fine[:, 1]),
            average_precision(fine[:, 0], fine[:, 1]),
            log_loss,
            brier,
            tp / (tp + fp),
            np.where(positives > 0, tp / (tp + fn), np.nan),
            positives / hoped - 1,
            error,
        ]
    return np.stack(out, 1)


def estimated(scores: IntArray, threshold: float) -> FloatArray:
    """(k, 6) the first six figures of `METRICS` that ``scores`` (k, 240), counts of calibrated probabilities by log
    odds, would have if each were right: confidence-based performance estimation (CBPE). Before any label is known."""
    p = fine_probabilities()
    rows = scores.sum(-1)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    positives, acted = scores * p, p >= threshold
    hits = positives[..., acted].sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(
            [
                roc_auc(scores - positives, positives),
                average_precision(scores - positives, positives),
                (scores * entropy).sum(-1) / rows,
                (scores * p * (1 - p)).sum(-1) / rows,
                hits / scores[..., acted].sum(-1),
                hits / positives.sum(-1),
            ],
            1,
        )


def unexplained(now: IntArray, then: IntArray, threshold: float) -> FloatArray:
    """(k, 8) what `labelled_watches` watch, of windows of counts ``now`` (k, size): the figures less what their scores
    let expect, relative to those of ``then`` (k or 1, size), and the calibration's as they are.

    Other rows than in the reference have other figures though the model is as right as ever; the distribution of its
    scores shows that before any label comes. What the scores do not explain is a change of the concept.
    """
    figures = metrics(now)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = (figures[:, :6] - estimated(LAYOUT.fine(now).sum(-2), threshold)) / metrics(then)[:, :6]
    gap = np.where(np.isfinite(gap), gap, np.nan)  # of a reference without any loss, nothing is a share
    return np.concatenate([gap, figures[:, 6:]], 1)


def unexplained_loss(counts: IntArray, threshold: float) -> FloatArray:
    """(k, 1) log loss of windows of ``counts`` (k, size) less what their scores let expect."""
    return (metrics(counts)[:, :6] - estimated(LAYOUT.fine(counts).sum(-2), threshold))[:, 2:3]


def intervals(periods: IntArray, seed: int = 0, draws: int = 200, level: float = 0.95) -> FloatArray:
    """(8, 2) lower and upper ends of the figures of `METRICS` over ``periods`` (p, size) together.

    By bootstrap: of one period its rows are drawn again (multinomially by bin), of several the periods themselves,
    since rows of one day are alike. Figures that cannot be resampled so (of one period: sums of losses) have NaN.
    The same input gives the same interval.
    """
    rng = np.random.default_rng(seed)
    if len(periods) > 2:
        picks = rng.integers(0, len(periods), (draws, len(periods)))
        values = metrics(periods[picks].sum(1))
    else:
        values = _redrawn(periods.sum(0), rng, draws)
    tail = (1 - level) / 2
    ends = np.full((len(METRICS), 2), np.nan)
    for j in range(len(METRICS)):
        known = values[~np.isnan(values[:, j]), j]
        if len(known) >= draws // 2:
            ends[j] = np.quantile(known, [tail, 1 - tail])
    return ends


def _redrawn(counts: IntArray, rng: np.random.Generator, draws: int) -> FloatArray:
    fine = LAYOUT.fine(counts).reshape(-1)
    rows = int(fine.sum())
    if rows == 0:
        return np.full((draws, len(METRICS)), np.nan)
    again = np.zeros((draws, LAYOUT.size), np.int64)
    again[:, 8:] = rng.multinomial(rows, fine / rows, draws)
    again[:, 0], again[:, 1] = rows, again[:, 8 + FINE :].sum(1)
    values = metrics(again)
    values[:, [2, 3, 4, 5, 6]] = np.nan
    return values


def card_precision(card: IntArray, best: FloatArray, hit: IntArray, found: set[int], top: int = 100) -> float:
    """The share of ``hit`` (n,) among the ``top`` cards of one period by their ``best`` score (n,), ties by lower
    ``card``; cards in ``found`` are not listed, and hits that are listed are added to it. NaN: fewer cards."""
    listed = np.lexsort((card, -best))
    listed = listed[[int(c) not in found for c in card[listed]]][:top]
    if len(listed) < top:
        return float("nan")
    found.update(card[listed][hit[listed] != 0].tolist())
    return float(np.count_nonzero(hit[listed]) / top)


def error_rate(counts: IntArray) -> float:
    """The share of wrong actions, of ``counts`` (size,)."""
    head = LAYOUT.head(counts)
    return float((head[3] + head[4]) / max(1, head[0]))


def labelled_watches(settings: MonitorSettings) -> list[Watch]:
    """What the columns of `unexplained` are watched for, in their order, for one window."""
    watches = []
    for name in METRICS:
        calibration = name.startswith("calibration")
        kind = "calibration_drift" if calibration else "performance_drift"
        # AUC moves in the upper half of its range only; calibration is a ratio of few positives
        floor = settings.loss_min * (2.0 if calibration else 0.25 if name == "auc" else 1.0)
        measure = name if calibration else f"{name}_unexplained"
        watches.append(Watch(kind, "score", measure, _WORSE.get(name, "low"), floor))
    return watches
