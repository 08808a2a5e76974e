"""How far a window of rows is from the reference: PSI, Jensen-Shannon, Kolmogorov-Smirnov and rates, from counts.

The counts of a period are one int64 vector (`ScoredLayout`); those of a window are the sum of its periods'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.block import FloatArray, IntArray
from monitoring.bins import BINS, FINE, MISSING, UNSEEN, fine_probabilities
from monitoring.budget import Watch
from monitoring.settings import MonitorSettings
from monitoring.trained import Trained

__all__ = [
    "SEGMENT_VALUES",
    "ScoredLayout",
    "average_precision",
    "distances",
    "mean_bins",
    "mean_steps",
    "roc_auc",
    "scored_values",
    "scored_watches",
]

#: values of a segment's field that are watched, the most frequent of the reference; all others are one more, the last
SEGMENT_VALUES = 15
_MEASURES = ("psi", "js", "ks")
#: rows of one segment value in a window, at least, for its scores to be compared
_SEGMENT_ROWS_MIN = 100


@dataclass(frozen=True, slots=True)
class ScoredLayout:
    """Where a period's counts lie: ``head`` rows and rows acted on; ``columns`` (d + 1, 18), the features and last the
    score; ``fine`` (240,) the scores; ``segments`` (s, 16, 18), the scores by segment value; where there is a package
    to compare with, ``trained`` (d + 1, 18), the columns in the bins of its histograms."""

    columns: int
    segments: int
    has_trained: bool = False

    @property
    def own_size(self) -> int:
        """Length of the vector without ``trained``."""
        return 2 + FINE + BINS * (self.columns + self.segments * (SEGMENT_VALUES + 1))

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.own_size + (BINS * self.columns if self.has_trained else 0)

    def head(self, counts: IntArray) -> IntArray:
        """(.., 2) view of ``counts`` (.., size), as are the others."""
        return counts[..., :2]

    def fine(self, counts: IntArray) -> IntArray:
        """(.., 240)."""
        return counts[..., 2 : 2 + FINE]

    def matrix(self, counts: IntArray) -> IntArray:
        """(.., d + 1, 18)."""
        part = counts[..., 2 + FINE : 2 + FINE + BINS * self.columns]
        return part.reshape(*counts.shape[:-1], self.columns, BINS)

    def by_segment(self, counts: IntArray) -> IntArray:
        """(.., s, 16, 18)."""
        part = counts[..., 2 + FINE + BINS * self.columns : self.own_size]
        return part.reshape(*counts.shape[:-1], self.segments, SEGMENT_VALUES + 1, BINS)

    def trained(self, counts: IntArray) -> IntArray:
        """(.., d + 1, 18)."""
        return counts[..., self.own_size :].reshape(*counts.shape[:-1], self.columns, BINS)


def distances(now: IntArray, then: IntArray) -> FloatArray:
    """(.., 3): PSI, Jensen-Shannon divergence (nats) and Kolmogorov-Smirnov distance of counts ``now`` (.., k) from
    ``then`` (.., k).

    Empty bins are smoothed, the reference's by half a row, those of now by half a row per bin spread as in the
    reference, so that a bin that neither has adds nothing.
    """
    k = now.shape[-1]
    rows, rows_then = now.sum(-1, keepdims=True), then.sum(-1, keepdims=True)
    q = (then + 0.5) / (rows_then + 0.5 * k)
    p = (now + 0.5 * k * q) / (rows + 0.5 * k)
    middle = (p + q) / 2
    psi = ((p - q) * np.log(p / q)).sum(-1)
    js = (p * np.log(p / middle) + q * np.log(q / middle)).sum(-1) / 2
    ks = np.abs(np.cumsum(p - q, -1)).max(-1)
    return np.stack([psi, js, ks], -1)


def roc_auc(negatives: FloatArray, positives: FloatArray) -> FloatArray:
    """(..) area under the ROC curve of counts by rising score (.., k); ties within a bin. NaN: one class only."""
    below = np.cumsum(negatives, -1) - negatives / 2
    pairs = negatives.sum(-1) * positives.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc: FloatArray = np.where(pairs > 0, (positives * below).sum(-1) / pairs, np.nan)
    return auc


def average_precision(negatives: FloatArray, positives: FloatArray) -> FloatArray:
    """(..) average precision of counts by rising score (.., k), as expected where the rows of a bin are in any order.
    NaN: no positives."""
    hits, all_rows = positives[..., ::-1], (positives + negatives)[..., ::-1]
    found, listed = np.cumsum(hits, -1) - hits, np.cumsum(all_rows, -1) - all_rows
    total = positives.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # the mean of (found + share * hits) / (listed + share * rows) over shares of the bin from 0 to 1
        own = hits / all_rows
        log = np.where(listed > 0, np.log1p(all_rows / listed), 0.0)
        precision = np.where(all_rows > 0, own + (found - own * listed) / all_rows * log, 0.0)
        ap: FloatArray = np.where(total > 0, (hits * precision).sum(-1) / total, np.nan)
    return ap


def scored_watches(
    settings: MonitorSettings, segment_values: tuple[tuple[str, ...], ...], trained: Trained | None
) -> list[Watch]:
    """What `scored_values` are the values of, in its order, for one window. The distances from what the model was made
    on are measures ``psi_trained`` and so on of the same subjects, so that one cause is one incident."""
    floors = {"psi": settings.psi_min, "js": settings.psi_min / 8, "ks": np.sqrt(settings.psi_min / 8)}
    subjects = [*(("input_drift", name) for name in settings.features), ("score_drift", "score")]
    watches = [Watch(kind, name, m, "high", floors[m], True) for kind, name in subjects for m in _MEASURES]
    names = (*settings.features, "score")
    watches += [Watch("missing_rate", name, "missing_rate", "both", settings.rate_min) for name in names]
    watches += [Watch("unseen_rate", name, "unseen_rate", "high", settings.rate_min) for name in settings.features]
    watches.append(Watch("score_drift", "score", "alert_rate", "both", settings.rate_min))
    watches.append(
        Watch("estimated_performance", "score", "estimated_auc", "low", 0.0, relative_floor=settings.loss_min / 2)
    )
    for name, values in zip(settings.segments, segment_values, strict=True):
        for value in values:
            watches.append(Watch("segment_drift", f"{name}={value}", "psi", "high", settings.psi_min, True))
        watches.append(Watch("unseen_rate", name, "unseen_rate", "high", settings.rate_min))
    if trained is not None:
        for j in trained.known.tolist():
            (kind, name), rows = subjects[j], int(trained.rows[j])
            watches += [Watch(kind, name, f"{m}_trained", "high", floors[m], True, 0.0, rows) for m in _MEASURES]
    return watches


def scored_values(
    layout: ScoredLayout, known_values: Sequence[int], known_columns: Sequence[int], now: IntArray, then: IntArray
) -> FloatArray:
    """(k, watches of `scored_watches`): how far k windows of counts ``now`` (k, size) are from ``then`` (k or 1, size).
    ``known_values`` (s,): how many values of each segment are watched, ``known_columns`` of which columns the package
    tells. NaN: nothing to tell it by."""
    columns = layout.matrix(now)
    far = _far(columns, layout.matrix(then))
    known = columns[..., :MISSING].sum(-1)
    rows = columns.sum(-1)
    fine = layout.fine(now)
    p = fine_probabilities()
    with np.errstate(invalid="ignore", divide="ignore"):
        missing = columns[..., MISSING] / rows
        unseen = columns[..., :-1, UNSEEN] / known[..., :-1]
        acted = layout.head(now)[..., 1:2] / known[..., -1:]
    parts = [
        far.reshape(len(now), -1),
        missing,
        unseen,
        acted,
        roc_auc(fine * (1 - p), fine * p)[:, None],
    ]
    segments, segments_then = layout.by_segment(now), layout.by_segment(then)
    for s, count in enumerate(known_values):
        of, of_then = segments[:, s, :, :MISSING], segments_then[:, s, :, :MISSING]
        psi = distances(of, of_then)[..., 0]
        # a value with few rows says nothing, and its share is no segment's own drift
        psi[(of.sum(-1) < _SEGMENT_ROWS_MIN) | (of_then.sum(-1) < _SEGMENT_ROWS_MIN)] = np.nan
        total = segments[:, s].sum((-1, -2))
        with np.errstate(invalid="ignore", divide="ignore"):
            other = segments[:, s, -1].sum(-1) / total
        parts += [psi[:, :count], other[:, None]]
    if layout.has_trained:
        at = list(known_columns)
        parts.append(_far(layout.trained(now)[:, at], layout.trained(then)[:, at]).reshape(len(now), -1))
    return np.concatenate(parts, 1)


def _far(now: IntArray, then: IntArray) -> FloatArray:
    """(k, c, 3) `distances` of c columns of counts (k, c, 18), by their values that are not missing. NaN: all are,
    which the missing rate says."""
    far = distances(now[..., :MISSING], then[..., :MISSING])
    far[now[..., :MISSING].sum(-1) == 0] = np.nan
    return far


def mean_steps(layout: ScoredLayout, counts: IntArray, psi_min: float) -> FloatArray:
    """(d + 1,) the shift of `mean_bins` that is as large as ``psi_min``, of reference ``counts`` (size,): the PSI of
    two normal distributions is the square of their distance in standard deviations."""
    known = layout.matrix(counts)[..., :UNSEEN]
    share = known / np.maximum(known.sum(-1, keepdims=True), 1)
    bins = np.arange(UNSEEN)
    mean = (share * bins).sum(-1)
    steps: FloatArray = np.sqrt(psi_min * (share * (bins - mean[:, None]) ** 2).sum(-1))
    return steps


def mean_bins(layout: ScoredLayout, counts: IntArray) -> FloatArray:
    """(k, d + 1) the mean bin of each column in periods of ``counts`` (k, size): a mean by ranks of the reference,
    which no outlier moves. NaN: no value."""
    known = layout.matrix(counts)[..., :UNSEEN]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: FloatArray = (known * np.arange(UNSEEN)).sum(-1) / known.sum(-1)
    return mean
