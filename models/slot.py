"""The model that scores now: swapped as a whole, between two calls of `score`."""

from __future__ import annotations

import numpy as np

from features.block import FloatArray
from models.package import LoadedModel

__all__ = ["ModelSlot"]


class ModelSlot:
    """Holds at most one loaded model. A call of `score` uses one model from its start to its end."""

    def __init__(self, model: LoadedModel | None = None) -> None:
        self._model = model

    @property
    def model(self) -> LoadedModel | None:
        """The current model."""
        return self._model

    @property
    def label(self) -> str | None:
        """ "name@version" of the current model."""
        return None if (model := self._model) is None else model.manifest.label

    def replace(self, model: LoadedModel | None) -> LoadedModel | None:
        """Put ``model`` in after warming it up; returns the one before, for a roll-back."""
        if model is not None:
            model.predictor.warm()
        before, self._model = self._model, model
        return before

    def score(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(raw scores (n,), probabilities (n,)) of ``x`` (n, d); NaN where there is no model."""
        model = self._model
        if model is None:
            return np.full(len(x), np.nan), np.full(len(x), np.nan)
        return model.score(x)
