"""A small search for settings, judged on a validation fold; it must beat what it began with by more than the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from features.block import BoolArray, FloatArray, IntArray
from models.boosting import Rows, Settings, Steps, fit
from models.intervals import difference_noise
from models.lightgbm import LightGBMPredictor
from models.metrics import Ranked

__all__ = ["Searched", "search", "validation_score"]

#: rounds that early stopping may take
_ROUNDS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Searched:
    """The settings chosen, and what was tried, as plain data."""

    settings: Settings
    summary: dict[str, Any]


def validation_score(data: Rows, validation: BoolArray, model_text: str) -> tuple[FloatArray, float]:
    """(raw scores of the validation rows, their average precision)."""
    raw = LightGBMPredictor(model_text).predict_raw(data.matrix(validation))
    return raw, Ranked(data.y[validation].astype(np.float64), raw).average_precision(np.ones(len(raw)))


def search(
    data: Rows,
    train: BoolArray,
    validation: BoolArray,
    card: IntArray,
    start: Settings,
    *,
    trials: int,
    seed: int,
    num_threads: int,
    steps: Steps,
) -> Searched:
    """Try ``trials`` settings, trained on the ``train`` rows; each stops early by, and is judged on, the average
    precision of the ``validation`` rows.

    The first trial is ``start`` itself with early stopping, the others are Optuna's (TPE by ``seed``). The best one is
    chosen only if it beats ``start`` with all its rounds by more than one standard deviation of the difference (over
    ``card``, (n,) of all rows): the best of many tries is partly luck. Counts trials + 1 trainings in ``steps``.
    """
    import optuna

    base_raw, base = validation_score(data, validation, fit(data, train, start, num_threads, steps).text)
    tried: list[tuple[float, Settings, FloatArray]] = []

    def objective(trial: optuna.Trial) -> float:
        settings = start.changed(rounds=_ROUNDS_MAX, **_suggest(trial, start))
        fitted = fit(data, train, settings, num_threads, steps, validation=validation)
        raw, value = validation_score(data, validation, fitted.text)
        tried.append((value, settings.changed(rounds=fitted.rounds), raw))
        return value

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.enqueue_trial(_STARTING | {name: start.params[name] for name in _STARTING if name in start.params})
        study.optimize(objective, n_trials=trials)
    finally:
        optuna.logging.set_verbosity(verbosity)
    number = int(np.argmax([value for value, _, _ in tried]))
    value, settings, raw = tried[number]
    noise = difference_noise(data.y[validation], base_raw, raw, card[validation], seed=seed)
    better = value - base > noise
    summary = {
        "trials": trials,
        "seed": seed,
        "metric": "average_precision of the validation fold",
        "start": base,
        "best": value,
        "noise": noise,
        "chosen": f"trial {number}" if better else "start",
        "tried": [
            {"average_precision": value, "rounds": s.rounds, **{name: s.params.get(name) for name in _STARTING}}
            for value, s, _ in tried
        ],
    }
    return Searched(settings if better else start, summary)


#: LightGBM's own defaults of what is searched
_STARTING: dict[str, Any] = {
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_child_samples": 20,
    "lambda_l2": 0.0,
    "feature_fraction": 1.0,
    "scale_pos_weight": 1.0,
}


def _suggest(trial: Any, start: Settings) -> dict[str, Any]:
    """A trial's settings; a class weight that was asked for stays."""
    found: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.2, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 4, 63, log=True),
        "min_child_samples": trial.suggest_int("min_child_samples", 10, 300, log=True),
        "lambda_l2": trial.suggest_float("lambda_l2", 0.0, 30.0),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.4, 1.0),
    }
    if "scale_pos_weight" not in start.params:
        found["scale_pos_weight"] = trial.suggest_float("scale_pos_weight", 1.0, 20.0, log=True)
    return found
