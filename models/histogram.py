"""Reference histograms: what features and scores looked like, as plain JSON, to compare later ones with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.block import FloatArray

__all__ = ["BINS_MAX", "histogram", "reference"]

BINS_MAX = 20


def histogram(values: FloatArray, bins: int = BINS_MAX) -> dict[str, Any]:
    """``{"edges": [...], "counts": [...], "missing": n}`` of values (n,), at most ``bins`` bins.

    Bin i is [edges[i], edges[i + 1]), the last one closed; NaN is missing; infinities are in the outermost bins.
    Of at most ``bins`` distinct values each has a bin, with edges half-way between them; of more, a value that is a
    bin's share of all has one alone, and the bins of the rest hold about equally many.
    ``edges`` are finite, rise strictly and run from the least to the greatest finite value; of one value they are two
    equal ones, without a finite value both lists are empty.
    """
    missing = int(np.isnan(values).sum())
    finite = np.sort(values[np.isfinite(values)])
    if len(finite) == 0:
        return {"edges": [], "counts": [], "missing": missing}
    distinct = np.unique(finite)
    if len(distinct) == 1:
        edges = np.array([distinct[0], distinct[0]])
        counts = np.array([len(values) - missing])
    else:
        edges = np.array([distinct[0], *_inner_edges(finite, distinct, bins), distinct[-1]])
        inside = np.clip(np.searchsorted(edges, values[~np.isnan(values)], side="right") - 1, 0, len(edges) - 2)
        counts = np.bincount(inside, minlength=len(edges) - 1)
    return {"edges": edges.tolist(), "counts": counts.tolist(), "missing": missing}


def _inner_edges(finite: FloatArray, distinct: FloatArray, bins: int) -> FloatArray:
    if len(distinct) <= bins:
        # of two neighbouring doubles the middle may be the lower one
        inner = np.maximum(distinct[:-1] / 2.0 + distinct[1:] / 2.0, np.nextafter(distinct[:-1], np.inf))
    else:
        inner = _quantiles(finite, distinct, bins)
    strictly: FloatArray = inner[(inner > distinct[0]) & (inner < distinct[-1])]
    return strictly


def _quantiles(finite: FloatArray, distinct: FloatArray, bins: int) -> FloatArray:
    """At most ``bins - 1`` edges. Most of a column may be one value: quantiles of all would leave the rest in one bin,
    and to see them become more is what a reference is for."""
    counts = np.diff(np.searchsorted(finite, [*distinct, np.inf]))
    most = np.argsort(-counts, kind="stable")[: (bins - 2) // 2]
    alone = np.sort(most[counts[most] * bins >= len(finite)])
    rest = finite[~np.isin(finite, distinct[alone])]
    few = bins - 2 * len(alone)
    behind = distinct[np.minimum(alone + 1, len(distinct) - 1)]
    return np.unique([*distinct[alone], *behind, *rest[(np.arange(1, few) * len(rest)) // few]])


def reference(x: FloatArray, names: Sequence[str], score: FloatArray) -> dict[str, Any]:
    """``{"rows": n, "features": {name: histogram}, "score": histogram}`` of features ``x`` (n, d) and scores (n,)."""
    return {
        "rows": len(x),
        "features": {name: histogram(x[:, j]) for j, name in enumerate(names)},
        "score": histogram(score),
    }
