"""A smaller model within a measured cost per row, and what it costs in accuracy.

The cost is that of the machine that trains: on another one, or in another run, a few trees more or fewer may fit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.block import BoolArray, FloatArray, IntArray
from models.auto import choose
from models.boosting import Rows, Settings, Steps, fit
from models.errors import ModelError
from models.intervals import difference_noise
from models.modeltext import load_booster
from models.search import validation_score

__all__ = ["BUDGET_ROWS", "LEAF_PARTS", "MEASURED_ROWS", "Cut", "Shrunk", "cut_to", "shrink", "us_per_row"]

#: rows that are scored at a time when the cost is measured, as a stream's blocks bring them
BUDGET_ROWS = 64
_REPEATS = 7
#: rows that a measurement looks at, of more the first
MEASURED_ROWS = 16 * BUDGET_ROWS
#: leaves of a tree that are tried, as parts of the settings' own
LEAF_PARTS = (1, 2, 4)
#: of the budget, what the estimate aims at; the measurement afterwards decides
_AIM = 0.95
_LEARNING_RATE_MAX = 0.3


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Settings of a model that keeps the budget, and what was measured, as plain data."""

    settings: Settings
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cut:
    """LightGBM's text of a model, its boosting rounds, and its measured cost."""

    text: str
    rounds: int
    us_per_row: float


def us_per_row(model_text: str, x: FloatArray) -> float:
    """Microseconds of processor time per row, `BUDGET_ROWS` rows of ``x`` (n, d) at a time, by the predictor that
    `models.auto.choose` takes: the best of some runs."""
    predictor = choose(model_text).predictor
    rows = np.resize(x, (MEASURED_ROWS, x.shape[1]))
    batches = [np.ascontiguousarray(rows[i : i + BUDGET_ROWS]) for i in range(0, len(rows), BUDGET_ROWS)]
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.thread_time_ns()
        for batch in batches:
            predictor.predict_raw(batch)
        best = min(best, (time.thread_time_ns() - start) / 1e3 / len(rows))
    return best


def cut_to(model_text: str, budget_us: float, x: FloatArray) -> Cut:
    """The model with its last trees left out until it keeps the budget, measured as by `us_per_row`.

    ModelError: not even one tree does.
    """
    cost = us_per_row(model_text, x)
    booster = load_booster(model_text)
    trees = int(booster.current_iteration())
    while cost > budget_us:
        if trees == 1:
            raise ModelError(
                f"budget: one tree takes {cost:.3g} us per row, {BUDGET_ROWS} rows at a time, more than {budget_us:.3g}"
                "; give a larger budget"
            )
        trees = max(1, min(trees - 1, int(trees * _AIM * budget_us / cost)))
        model_text = booster.model_to_string(num_iteration=trees)
        cost = us_per_row(model_text, x)
    return Cut(model_text, trees, cost)


def shrink(
    data: Rows,
    train: BoolArray,
    validation: BoolArray,
    card: IntArray,
    settings: Settings,
    budget_us: float,
    *,
    num_threads: int,
    steps: Steps,
) -> Shrunk:
    """The best settings of fewer leaves and trees that keep the budget, by average precision of the validation rows.

    For each number of leaves that is tried the trees that fit are estimated from two measurements, a model with so many
    is trained with a learning rate that makes up for the trees it lacks, and cut until it keeps the budget. Counts
    1 + 2 * len(LEAF_PARTS) trainings in ``steps``. ModelError: no model keeps it.
    """
    x = data.matrix(validation, MEASURED_ROWS)
    full = fit(data, train, settings, num_threads, steps)
    full_raw, full_value = validation_score(data, validation, full.text)
    summary: dict[str, Any] = {
        "budget_us": budget_us,
        "rows_at_a_time": BUDGET_ROWS,
        "us_per_row_full": us_per_row(full.text, x),
        "average_precision_full": full_value,
    }
    if summary["us_per_row_full"] <= budget_us:
        steps.finish(2 * len(LEAF_PARTS))
        return Shrunk(settings, summary | {"cut": False})
    tried = []
    refusal: ModelError | None = None
    for part in LEAF_PARTS:
        leaves = max(2, int(settings.params.get("num_leaves", 31)) // part)
        try:
            smaller = _fewer_trees(data, train, settings.changed(num_leaves=leaves), budget_us, x, num_threads, steps)
            fitted = fit(data, train, smaller, num_threads, steps)
            cut = cut_to(fitted.text, budget_us, x)
        except ModelError as error:
            refusal = error
            continue
        raw, value = validation_score(data, validation, cut.text)
        tried.append((value, smaller.changed(rounds=cut.rounds), raw, cut.us_per_row))
    if not tried:
        assert refusal is not None
        raise refusal
    value, chosen, raw, cost = max(tried, key=lambda one: one[0])
    noise = difference_noise(data.y[validation], full_raw, raw, card[validation])
    summary |= {"cut": True, "us_per_row_validation": cost, "average_precision": value, "noise": noise}
    summary |= {"rounds": chosen.rounds, "num_leaves": chosen.params["num_leaves"]}
    return Shrunk(chosen, summary)


def _fewer_trees(
    data: Rows, train: BoolArray, settings: Settings, budget_us: float, x: FloatArray, num_threads: int, steps: Steps
) -> Settings:
    """So many trees of these leaves as the budget allows, by the costs of all of them and of a quarter."""
    fitted = fit(data, train, settings, num_threads, steps)
    quarter = max(1, fitted.rounds // 4)
    all_us = us_per_row(fitted.text, x)
    quarter_us = us_per_row(load_booster(fitted.text).model_to_string(num_iteration=quarter), x)
    us_per_tree = max((all_us - quarter_us) / max(1, fitted.rounds - quarter), 1e-6)
    trees = int((_AIM * budget_us - (all_us - fitted.rounds * us_per_tree)) / us_per_tree)
    trees = max(1, min(trees, fitted.rounds))
    rate = settings.params.get("learning_rate", 0.1)
    return settings.changed(
        rounds=trees, learning_rate=min(max(_LEARNING_RATE_MAX, rate), rate * fitted.rounds / trees)
    )
