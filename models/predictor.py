"""The one protocol of everything that turns a feature matrix into raw scores."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from features.block import FloatArray, IntArray
from models.errors import ModelError

__all__ = ["ColumnSelect", "Predictor", "PredictorKind", "as_matrix"]

#: what may be asked for; ``auto``: the fastest of those that are bit-equal to LightGBM, which ``gpu`` is not
PredictorKind = Literal["auto", "lightgbm", "compiled", "gpu"]


class Predictor(Protocol):
    """Raw scores of rows. Implementations are safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """Short name of the implementation, as in benchmarks and logs."""
        ...

    @property
    def n_features(self) -> int:
        """Columns that `predict_raw` expects."""
        ...

    def predict_raw(self, x: FloatArray) -> FloatArray:
        """Raw scores (n,) float64 of ``x`` (n, d) float64, C-contiguous; NaN and infinities are values like others.

        Raises ModelError when d is not `n_features`.
        """
        ...

    def warm(self) -> None:
        """Do now whatever the first call would do late, such as compiling."""
        ...


def as_matrix(x: FloatArray, n_features: int) -> FloatArray:
    """``x`` as an (n, n_features) C-contiguous float64 matrix, copied only if it is not one; else ModelError."""
    if x.ndim != 2 or x.shape[1] != n_features:
        raise ModelError(
            f"feature matrix: shape {x.shape}, but the model takes (n, {n_features}); "
            "pass the columns that the model's manifest lists"
        )
    return np.ascontiguousarray(x, dtype=np.float64)


class ColumnSelect:
    """A predictor over a wider or differently ordered matrix: column j of the model is ``column_index[j]``."""

    def __init__(self, inner: Predictor, column_index: IntArray, n_features: int) -> None:
        self._inner = inner
        self._index = column_index
        self._n_features = n_features

    @property
    def name(self) -> str:
        """The name of the predictor that scores."""
        return self._inner.name

    @property
    def n_features(self) -> int:
        """Columns of the matrices it scores."""
        return self._n_features

    def predict_raw(self, x: FloatArray) -> FloatArray:
        """Raw scores (n,), see `Predictor`."""
        return self._inner.predict_raw(np.take(as_matrix(x, self._n_features), self._index, axis=1))

    def warm(self) -> None:
        """Warm the predictor that scores."""
        self._inner.warm()
