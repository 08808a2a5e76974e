"""What the model was made on, as its package tells: histograms that the present is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays
from features.block import FloatArray, IntArray
from monitoring.bins import BINS, EDGES, MISSING
from monitoring.settings import MonitorError

__all__ = ["Trained"]

#: more than ever were in a training, and far from where sums of them overflow
_ROWS_MAX = 2**53


@dataclass(frozen=True, slots=True)
class Trained:
    """The bins of d features and, last, the score: ``edges`` (d + 1, 15) float64 rising, filled up with NaN, and the
    ``counts`` (d + 1, 18) int64 of the package's rows in them, as `monitoring.bins.count_matrix` counts without
    discrete columns. A column of which the package tells nothing has no counts."""

    edges: FloatArray
    counts: IntArray

    @classmethod
    def of(cls, reference: Mapping[str, Any], features: Sequence[str]) -> Trained | None:
        """Of the ``reference`` of a package, ``{"rows": n, "features": {name: histogram}, "score": histogram}``, a
        histogram being ``{"edges": [..], "counts": [..], "missing": n}`` with one more edge than counts. None: it
        tells of none of them. MonitorError: it is no such thing."""
        columns = len(features) + 1
        edges, counts = np.full((columns, EDGES), np.nan), np.zeros((columns, BINS), np.int64)
        try:
            of = reference.get("features", {})
            for j, histogram in enumerate([*(of.get(name) for name in features), reference.get("score")]):
                if histogram is not None:
                    _check(**{name: histogram[name] for name in ("edges", "counts", "missing")})
                    inner, inside = _merged(histogram["edges"], histogram["counts"])
                    edges[j, : len(inner)], counts[j, : len(inside)] = inner, inside
                    counts[j, MISSING] = histogram["missing"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MonitorError(
                f"reference of the package: cannot be read ({error!r}); package the model again"
            ) from error
        return cls(edges, counts) if counts[:, :MISSING].any() else None

    @property
    def known(self) -> IntArray:
        """The columns that it has values of."""
        return np.flatnonzero(self.counts[:, :MISSING].any(1))

    @property
    def rows(self) -> IntArray:
        """(d + 1,) rows of each column."""
        out: IntArray = self.counts.sum(1)
        return out

    def to_arrays(self) -> Arrays:
        """Plain arrays."""
        return {"edges": self.edges, "counts": self.counts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Trained:
        """The reverse of `to_arrays`."""
        return cls(arrays["edges"].astype(np.float64), arrays["counts"].astype(np.int64))


def _check(edges: Sequence[float], counts: Sequence[int], missing: int) -> None:
    """ValueError: not the parts of a histogram."""
    at, rows = np.asarray([0.0, *edges]), np.asarray([missing, *counts])
    if rows.dtype.kind != "i" or rows.min() < 0 or sum(rows.tolist()) > _ROWS_MAX:
        raise ValueError(f"counts {rows.tolist()} are not those of rows")
    # of one value the edges are equal
    rising = np.greater_equal if len(counts) == 1 else np.greater
    if at.dtype.kind != "f" or not np.isfinite(at).all() or not rising(at[2:], at[1:-1]).all():
        raise ValueError(f"edges {list(edges)} are not finite and rising")
    if len(edges) != len(counts) + bool(len(counts)):
        raise ValueError(f"{len(edges)} edges of {len(counts)} counts")


def _merged(edges: Sequence[float], counts: Sequence[int]) -> tuple[list[float], list[int]]:
    """(inner edges, counts between them) of a histogram, at most 16 bins: neighbours with the fewest rows are one."""
    if len(counts) == 1:
        # of one value, or two that are neighbours: what is beside is another bin, or it could be anything
        return [edges[0], float(np.nextafter(edges[-1], np.inf))], [0, *counts, 0]
    inner, inside = list(edges[1:-1]), list(counts)
    while len(inner) > EDGES:
        least = min(range(len(inner)), key=lambda i: inside[i] + inside[i + 1])
        inside[least : least + 2] = [inside[least] + inside[least + 1]]
        del inner[least]
    return inner, inside
