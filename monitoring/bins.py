"""Rows -> counts: bins by the reference's quantiles, and the kernels that fill them.

All that is counted is int64, so sums are exact: neither the order of rows nor how blocks were cut can show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray, IntArray
from features.kernel import kernel
from monitoring.settings import MonitorError

__all__ = [
    "BINS",
    "EDGES",
    "FINE",
    "MISSING",
    "SCALE",
    "UNSEEN",
    "Bins",
    "bin_of",
    "count_labelled",
    "count_matrix",
    "count_scores",
    "fine_probabilities",
]

#: edges per column; a value's bin is the number of edges at or below it, so 0..15
EDGES = 15
#: the bin of a value that a column of few distinct values never had in the reference, and that of NaN
UNSEEN, MISSING = 16, 17
BINS = 18
#: bins of a probability by its log odds, each 0.1 wide, from -12 to 12
FINE = 240
_FINE_WIDTH, _FINE_SIDE = 0.1, 12.0
#: losses are summed in units of 1 / SCALE
SCALE = float(2**24)

#: rows of the reference, at least: fewer cannot say what is common
_SAMPLE_MIN = 100
#: finer at both ends, where fraud is
_QUANTILES = np.array([0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999])


@dataclass(frozen=True, slots=True)
class Bins:
    """The bins of d columns: ``edges`` (d, 15) float64 rising, filled up with NaN; ``discrete`` (d,) bool, the columns
    whose edges are all the values that they had."""

    edges: FloatArray
    discrete: BoolArray

    @classmethod
    def of(cls, sample: FloatArray) -> Bins:
        """Bins by the columns of ``sample`` (n, d), NaN and infinite ones allowed. MonitorError: fewer than
        100 rows."""
        if len(sample) < _SAMPLE_MIN:
            raise MonitorError(
                f"reference rows: {len(sample)} are too few to tell what is common; give at least {_SAMPLE_MIN}"
            )
        edges = np.full((sample.shape[1], EDGES), np.nan)
        discrete = np.zeros(sample.shape[1], np.bool_)
        for j, column in enumerate(sample.T):
            known = column[np.isfinite(column)]
            values = np.unique(known)
            discrete[j] = len(values) <= EDGES
            if not discrete[j]:
                values = np.unique(np.quantile(known, _QUANTILES, method="inverted_cdf"))
            edges[j, : len(values)] = values
        return cls(edges, discrete)


@kernel
def count_matrix(
    x: FloatArray, slot: IntArray, take: int, edges: FloatArray, discrete: BoolArray, counts: IntArray
) -> None:
    """Adds the rows of ``x`` (n, d) whose ``slot`` (n,) is ``take`` to ``counts`` (d, 18)."""
    for i in range(x.shape[0]):
        if slot[i] != take:
            continue
        for j in range(x.shape[1]):
            value = x[i, j]
            # four steps of a search without branches: 8, 4, 2, 1
            k = 0
            k += 8 if edges[j, k + 7] <= value else 0
            k += 4 if edges[j, k + 3] <= value else 0
            k += 2 if edges[j, k + 1] <= value else 0
            k += 1 if edges[j, k] <= value else 0
            if value != value:
                k = 17
            elif discrete[j] and (k == 0 or edges[j, k - 1] != value):
                k = 16
            counts[j, k] += 1


@kernel
def bin_of(values: FloatArray, edges: FloatArray, discrete: bool, out: IntArray) -> None:
    """``out`` (n,): the bin of each of ``values`` (n,) in one column, whose ``edges`` are (15,)."""
    for i in range(values.shape[0]):
        value = values[i]
        k = 0
        k += 8 if edges[k + 7] <= value else 0
        k += 4 if edges[k + 3] <= value else 0
        k += 2 if edges[k + 1] <= value else 0
        k += 1 if edges[k] <= value else 0
        if value != value:
            k = 17
        elif discrete and (k == 0 or edges[k - 1] != value):
            k = 16
        out[i] = k


@kernel
def count_scores(
    score: FloatArray, slot: IntArray, take: int, threshold: float, head: IntArray, fine: IntArray
) -> None:
    """Adds the rows whose ``slot`` is ``take``: ``head`` (2,) rows and those at or above ``threshold``; ``fine`` (240,)
    the scores by their log odds. A row without a score is a row only."""
    for i in range(score.shape[0]):
        if slot[i] != take:
            continue
        head[0] += 1
        p = score[i]
        if p != p:
            continue
        if p >= threshold:
            head[1] += 1
        p = min(max(p, 1e-15), 1 - 1e-15)
        k = int((math.log(p / (1 - p)) + 12.0) * 10.0)
        fine[min(max(k, 0), 239)] += 1


@kernel
def count_labelled(
    score: FloatArray,
    label: npt.NDArray[np.int64],
    slot: IntArray,
    take: int,
    threshold: float,
    head: IntArray,
    fine: IntArray,
) -> None:
    """Adds the rows whose ``slot`` is ``take``: ``head`` (8,) rows with a score, positives, true positives, false
    positives, false negatives, log loss, squared error and score, the last three times 2^24; ``fine`` (2, 240) the
    scores of negatives and positives by their log odds."""
    for i in range(score.shape[0]):
        p = score[i]
        if slot[i] != take or p != p:
            continue
        positive = label[i] != 0
        head[0] += 1
        head[1] += positive
        if p >= threshold:
            if positive:
                head[2] += 1
            else:
                head[3] += 1
        elif positive:
            head[4] += 1
        p = min(max(p, 1e-15), 1 - 1e-15)
        y = 1.0 if positive else 0.0
        head[5] += int(-math.log(p if positive else 1 - p) * 16777216.0 + 0.5)
        head[6] += int((p - y) * (p - y) * 16777216.0 + 0.5)
        head[7] += int(p * 16777216.0 + 0.5)
        k = int((math.log(p / (1 - p)) + 12.0) * 10.0)
        fine[1 if positive else 0, min(max(k, 0), 239)] += 1


def fine_probabilities() -> FloatArray:
    """(240,) the probability in the middle of each fine bin."""
    odds = -_FINE_SIDE + _FINE_WIDTH * (np.arange(FINE) + 0.5)
    middle: FloatArray = 1 / (1 + np.exp(-odds))
    return middle
