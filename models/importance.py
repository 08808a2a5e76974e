"""What a model goes by: gain, permutation and mean |SHAP| of each feature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.block import FloatArray
from models.auto import choose
from models.explain import explainer_of
from models.metrics import Ranked
from models.modeltext import load_booster

__all__ = ["Importance", "importance"]

#: rows whose SHAP values are taken, and that are permuted, at most
_SHAP_ROWS, _PERMUTED_ROWS = 2_000, 50_000
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Importance:
    """Of d features, each (d,): ``gain``: what their splits gained in training, as parts of 1; ``permutation``: what
    the average precision loses when the feature's values are shuffled; ``shap``: mean |contribution| to the log-odds,
    None where nothing explains the model."""

    gain: FloatArray
    permutation: FloatArray
    shap: FloatArray | None


def importance(model_text: str, x: FloatArray, y: npt.ArrayLike, seed: int = 0) -> Importance:
    """Of the features of ``x`` (n, d), by rows with labels ``y`` (n,) 0/1 that the model was not trained on; of many
    rows some, chosen by ``seed``."""
    rng = np.random.default_rng(seed)
    if len(x) > _PERMUTED_ROWS:
        some = np.sort(rng.choice(len(x), _PERMUTED_ROWS, replace=False))
        x, y = x[some], np.asarray(y)[some]
    gain = np.asarray(load_booster(model_text).feature_importance("gain"), np.float64)
    predict = choose(model_text).predictor.predict_raw
    labels, ones = np.asarray(y).astype(np.float64), np.ones(len(x))
    permuted = np.ascontiguousarray(x)
    whole = Ranked(labels, predict(permuted)).average_precision(ones)
    losses = np.zeros((_REPEATS, x.shape[1]))
    for j in range(x.shape[1]):
        before = permuted[:, j].copy()
        for i in range(_REPEATS):
            permuted[:, j] = rng.permutation(before)
            losses[i, j] = whole - Ranked(labels, predict(permuted)).average_precision(ones)
        permuted[:, j] = before
    explainer = explainer_of(model_text)
    shap = None
    if explainer is not None:
        some = rng.choice(len(x), min(len(x), _SHAP_ROWS), replace=False)
        shap = np.abs(explainer.contributions(np.ascontiguousarray(x[some]))[:, :-1]).mean(axis=0)
    return Importance(gain / max(gain.sum(), 1e-300), losses.mean(axis=0), shap)
