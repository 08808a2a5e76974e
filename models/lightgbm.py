"""LightGBM's own predictor: always right, and the oracle of the others."""

from __future__ import annotations

import numpy as np

from features.block import FloatArray
from models.errors import ModelError
from models.modeltext import load_booster
from models.predictor import as_matrix

__all__ = ["LightGBMPredictor"]


class LightGBMPredictor:
    """`Booster.predict(raw_score=True)` on ``num_threads`` threads: one is fastest on small batches."""

    name = "lightgbm"

    def __init__(self, model_text: str, num_threads: int = 1) -> None:
        self._booster = load_booster(model_text)
        if self._booster.num_model_per_iteration() != 1:
            raise ModelError(
                f"model: {self._booster.num_model_per_iteration()} scores per row (multiclass), one expected; "
                "train one binary, regression or ranking model"
            )
        self._num_threads = num_threads

    @property
    def n_features(self) -> int:
        """Columns of the matrices it scores."""
        return int(self._booster.num_feature())

    def predict_raw(self, x: FloatArray) -> FloatArray:
        """Raw scores (n,), see `Predictor`."""
        x = as_matrix(x, self.n_features)
        if len(x) == 0:
            return np.empty(0, np.float64)
        raw = self._booster.predict(x, raw_score=True, num_threads=self._num_threads)
        return np.asarray(raw, dtype=np.float64)

    def warm(self) -> None:
        """One row scored."""
        self.predict_raw(np.zeros((1, self.n_features)))
