"""One training of LightGBM: its data, its settings, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightgbm
import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray

__all__ = ["FRAUD_PARAMS", "FRAUD_ROUNDS", "Fitted", "Rows", "Settings", "Steps", "fit"]

#: Settings of the published comparison on the card-fraud data; fixed, so that two trainings give the same model.
FRAUD_PARAMS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.03,
    "num_leaves": 15,
    "max_bin": 1023,
    "min_child_samples": 50,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 1,
    "verbosity": -1,
}
FRAUD_ROUNDS = 200

#: what a training counts in `Steps`, whatever its rounds
_STEPS = 200


@dataclass(frozen=True, slots=True)
class Settings:
    """LightGBM's parameters and the number of boosting rounds."""

    params: Mapping[str, Any]
    rounds: int

    def changed(self, rounds: int | None = None, **params: Any) -> Settings:
        """The same but for what is given."""
        return Settings({**self.params, **params}, self.rounds if rounds is None else rounds)


@dataclass(frozen=True, slots=True)
class Rows:
    """What models learn from: ``x`` (n, d) float64, ``y`` (n,) 0/1, the names of the d features and of those that are
    category codes."""

    x: FloatArray
    y: npt.NDArray[np.int8]
    features: tuple[str, ...]
    categorical: tuple[str, ...] = ()

    def matrix(self, rows: BoolArray, most: int | None = None) -> FloatArray:
        """(k, d) C-contiguous: the features of the chosen rows, of the first ``most``."""
        return np.ascontiguousarray(self.x[np.flatnonzero(rows)[:most]])


@dataclass(frozen=True, slots=True)
class Fitted:
    """LightGBM's text of a model, and its boosting rounds."""

    text: str
    rounds: int


class Steps:
    """Counts what several trainings have done; ``report(done, all)`` after each boosting round."""

    def __init__(self, report: Callable[[int, int], None] | None, trainings: int) -> None:
        self._report, self._total, self._finished = report, trainings * _STEPS, 0

    def __call__(self, env: Any) -> None:
        """As a callback of LightGBM."""
        self._say(self._finished + _STEPS * (env.iteration + 1) // env.end_iteration)

    def finish(self, trainings: int = 1) -> None:
        """So many trainings are done, or need not be."""
        self._finished += trainings * _STEPS
        self._say(self._finished)

    def _say(self, done: int) -> None:
        if self._report is not None:
            self._report(min(done, self._total), self._total)


def fit(
    data: Rows,
    rows: BoolArray,
    settings: Settings,
    num_threads: int,
    steps: Steps,
    *,
    validation: BoolArray | None = None,
    patience: int = 50,
) -> Fitted:
    """Train on the chosen rows. With ``validation`` rows it stops once their average precision has not risen for
    ``patience`` rounds, and the model has the rounds up to the best. ``num_threads`` changes nothing but the time."""
    categorical: list[str] | Literal["auto"] = list(data.categorical) or "auto"
    train = lightgbm.Dataset(
        data.x[rows],
        data.y[rows],
        feature_name=list(data.features),
        categorical_feature=categorical,
        params={"verbosity": -1},
    )
    params: dict[str, Any] = {**settings.params, "num_threads": num_threads}
    callbacks: list[Callable[[Any], None]] = [steps]
    valid = None
    if validation is not None:
        params["metric"] = "average_precision"
        callbacks.append(lightgbm.early_stopping(patience, verbose=False))
        valid = [train.create_valid(data.x[validation], data.y[validation])]
    booster = lightgbm.train(params, train, settings.rounds, valid_sets=valid, callbacks=callbacks)
    rounds = booster.best_iteration if validation is not None else settings.rounds
    text: str = booster.model_to_string(num_iteration=rounds)
    steps.finish()
    return Fitted(text, rounds)
