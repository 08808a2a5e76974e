"""Is the challenger better? Paired differences on rows whose labels are known for good, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray, IntArray
from models.errors import ModelError
from models.metrics import Ranked, log_losses

__all__ = ["Difference", "Evidence", "average_precision", "paired_evidence"]

Metric = Literal["average_precision", "log_loss", "brier"]

#: fewer frauds than this say nothing of the ranking
_FRAUDS_MIN = 30


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of both models, and the challenger's gain: above 0 it is better, whichever way the metric goes.

    The gain is in [``low``, ``high``] with the confidence asked for.
    """

    champion: float
    challenger: float
    gain: float
    low: float
    high: float

    @property
    def better(self) -> Literal["champion", "challenger"] | None:
        """Who is better beyond chance; None: nobody can tell."""
        if self.low > 0:
            return "challenger"
        return "champion" if self.high < 0 else None


@dataclass(frozen=True, slots=True)
class Evidence:
    """``differences`` by metric, of ``rows`` rows with ``frauds``; empty where there are too few frauds to say."""

    rows: int
    frauds: int
    groups: int
    confidence: float
    differences: Mapping[Metric, Difference]

    def better(self, metric: Metric = "average_precision") -> Literal["champion", "challenger"] | None:
        """Who is better by this metric beyond chance; None: nobody can tell yet."""
        found = self.differences.get(metric)
        return None if found is None else found.better


def paired_evidence(
    y: npt.ArrayLike,
    champion: FloatArray,
    challenger: FloatArray,
    group: IntArray,
    matured: BoolArray,
    *,
    confidence: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> Evidence:
    """Compares two models on the same rows, all arrays (n,).

    ``y`` 0/1; ``champion`` and ``challenger`` probabilities; ``group``, such as the card: rows of one group are not
    independent of each other, so whole groups are drawn. Only ``matured`` rows are looked at: those so old that their
    labels will not change, whatever the label said, or early frauds would be compared with no legitimate ones.

    Log loss and Brier score are means over rows, so their differences are too: the interval is the normal one of the
    groups' sums. Average precision is no mean: its interval is the percentiles of a bootstrap of groups, by ``seed``.
    To look again and again until one is better is to be wrong more often than the confidence says: decide when to look
    before. ModelError: a score is not a probability.
    """
    labels = np.asarray(y)[matured].astype(np.float64)
    scores = [np.asarray(score, np.float64)[matured] for score in (champion, challenger)]
    for who, score in zip(("champion", "challenger"), scores, strict=True):
        if not ((score >= 0.0) & (score <= 1.0)).all():
            raise ModelError(f"{who} scores: not all are in 0..1; give calibrated probabilities of rows that have one")
    names, place = np.unique(group[matured], return_inverse=True)
    frauds = int(labels.sum())
    if frauds < _FRAUDS_MIN or frauds == len(labels) or len(names) < 2:
        return Evidence(len(labels), frauds, len(names), confidence, {})
    losses: dict[Metric, Sequence[FloatArray]] = {
        "log_loss": [log_losses(labels, score) for score in scores],
        "brier": [(score - labels) ** 2 for score in scores],
    }
    rng = np.random.default_rng(seed)
    found: dict[Metric, Difference] = {
        "average_precision": _ranking(labels, scores, place, len(names), confidence, resamples, rng)
    }
    for name, (before, after) in losses.items():
        found[name] = _mean(before, after, place, len(names), confidence)
    return Evidence(len(labels), frauds, len(names), confidence, found)


def _mean(champion: FloatArray, challenger: FloatArray, place: IntArray, groups: int, confidence: float) -> Difference:
    gain = champion - challenger
    mean = float(gain.mean())
    sums = np.bincount(place, gain - mean, groups)
    error = float(np.sqrt(groups / (groups - 1) * np.sum(sums**2))) / len(gain)
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    return Difference(float(champion.mean()), float(challenger.mean()), mean, mean - z * error, mean + z * error)


def _ranking(
    y: FloatArray,
    scores: list[FloatArray],
    place: IntArray,
    groups: int,
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> Difference:
    ranked = [Ranked(y, score) for score in scores]
    ones = np.ones(len(y))
    first, second = (one.average_precision(ones) for one in ranked)
    gains = np.empty(resamples)
    for i in range(resamples):
        drawn = np.bincount(rng.integers(0, groups, groups), minlength=groups)[place].astype(np.float64)
        before, after = (one.average_precision(drawn) for one in ranked)
        gains[i] = after - before
    low, high = np.nanquantile(gains, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Difference(first, second, second - first, float(low), float(high))


def average_precision(y: npt.ArrayLike, score: FloatArray, weight: FloatArray | None = None) -> float:
    """Average precision of weighted rows, tied scores taken together, all arrays (n,)."""
    labels = np.asarray(y).astype(np.float64)
    return Ranked(labels, score).average_precision(np.ones(len(labels)) if weight is None else weight)
