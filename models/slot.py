"""The model that scores now: swapped as a whole, between two uses of `serving`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.block import FloatArray, IntArray
from models.explain import Explainer, explainer_of
from models.explain_policy import NO_REASONS, Reasons, ReasonsPolicy, strongest
from models.package import LoadedModel

__all__ = ["ModelSlot", "Serving"]


@dataclass(frozen=True, slots=True)
class Serving:
    """One model, or none, with what explains its scores, if anything does."""

    model: LoadedModel | None
    explainer: Explainer | None
    policy: ReasonsPolicy

    @property
    def label(self) -> str | None:
        """ "name@version" of the model."""
        return None if self.model is None else self.model.manifest.label

    def score(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(raw scores (n,), probabilities (n,)) of ``x`` (n, d); NaN without a model."""
        if self.model is None:
            return np.full(len(x), np.nan), np.full(len(x), np.nan)
        return self.model.score(x)

    def reasons(self, x: FloatArray, score: FloatArray, partitions: IntArray, offsets: IntArray) -> Reasons | None:
        """Why the rows that the policy chooses have their scores, None where it chooses none of them.

        ``x`` (n, d) and ``score`` (n,) as of `score`; ``partitions`` and ``offsets`` (n,): where in the log the rows'
        events were.
        """
        if self.model is None or self.explainer is None:
            return None
        rows = self.policy.rows(score, partitions, offsets)
        if len(rows) == 0:
            return None
        values = np.take(x[rows], self.model.column_index, axis=1)
        contributions = self.explainer.contributions(values)
        return strongest(self.model.manifest.features, rows, values, contributions, self.policy.most)


class ModelSlot:
    """Holds at most one loaded model. Who takes `serving` uses one model for as long as it keeps it."""

    def __init__(self, model: LoadedModel | None = None, reasons: ReasonsPolicy = NO_REASONS) -> None:
        self._policy = reasons
        self._serving = self._prepared(model)

    @property
    def serving(self) -> Serving:
        """The current model with its explainer."""
        return self._serving

    @property
    def model(self) -> LoadedModel | None:
        """The current model."""
        return self._serving.model

    @property
    def label(self) -> str | None:
        """ "name@version" of the current model."""
        return self._serving.label

    def replace(self, model: LoadedModel | None) -> LoadedModel | None:
        """Put ``model`` in after warming it up; returns the one before, for a roll-back."""
        before, self._serving = self._serving, self._prepared(model)
        return before.model

    def score(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(raw scores (n,), probabilities (n,)) of ``x`` (n, d); NaN where there is no model."""
        return self._serving.score(x)

    def _prepared(self, model: LoadedModel | None) -> Serving:
        if model is None:
            return Serving(None, None, self._policy)
        model.predictor.warm()
        explainer = None if self._policy.kind == "none" else explainer_of(model.model_text)
        return Serving(model, explainer, self._policy)
