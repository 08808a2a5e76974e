"""A model that is ready to score, with what explains its scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.block import FloatArray, IntArray
from models.explain import Explainer, explainer_of
from models.explain_policy import Reasons, ReasonsPolicy, strongest
from models.package import LoadedModel

__all__ = ["Serving", "prepared"]


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

    def sets(self, raw: FloatArray) -> npt.NDArray[np.int8] | None:
        """(n,) which labels the raw scores (n,) leave possible, see `Conformal.sets`; None where nothing says."""
        if self.model is None or self.model.conformal is None:
            return None
        return self.model.conformal.sets(raw)

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


def prepared(model: LoadedModel | None, policy: ReasonsPolicy) -> Serving:
    """The model, warm: its first block takes no longer than the others. To be called off the hot path."""
    if model is None:
        return Serving(None, None, policy)
    model.predictor.warm()
    explainer = None if policy.kind == "none" else explainer_of(model.model_text)
    if explainer is not None:
        explainer.contributions(np.zeros((1, len(model.manifest.features))))
    return Serving(model, explainer, policy)
