"""Predictors side by side on one model: rows per second at several batch sizes, against LightGBM in the same run.

Each predictor scores the same rows, always other ones (batches walk through a pool), since a batch that is repeated
is learned by the branch predictor, which flatters LightGBM's small batches threefold. LightGBM runs with one thread
through `Booster.predict`, its call overhead included, as a stream would call it. Rounds alternate between predictors;
the figure is each one's best round, in CPU time, which others on the machine touch least. Reasons are measured the
same way, against `Booster.predict(pred_contrib=True)`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import lightgbm
import numpy as np

from features.block import FloatArray
from models.auto import choose
from models.compiled import CompiledPredictor
from models.explain import Explainer, LightGBMExplainer, TreeExplainer
from models.golden import same_bits
from models.lightgbm import LightGBMPredictor
from models.modeltext import parse
from models.predictor import Predictor

__all__ = ["make_model", "run"]

ROWS = (1, 8, 64, 4096)
#: LightGBM explains some hundred rows a second: the rows of which its values are compared
_COMPARED_ROWS = 256
#: after so many the clock is looked at
_ROWS_A_LOOK = 32


def make_model(
    n_features: int, trees: int = 300, leaves: int = 31, rows: int = 20_000, seed: int = 0
) -> tuple[str, FloatArray]:
    """(model text, rows (rows, n_features)) of a binary model on made-up data with missing values, from a seed."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, n_features))
    x[rng.random(x.shape) < 0.02] = np.nan
    filled = np.nan_to_num(x)
    signal = filled @ rng.normal(size=n_features) + np.sin(3 * filled[:, 1] * filled[:, 2]) + rng.normal(size=rows)
    settings = {"objective": "binary", "num_leaves": leaves, "learning_rate": 0.05, "num_threads": 1, "verbosity": -1}
    settings |= {"seed": seed, "deterministic": True, "force_row_wise": True}
    data = lightgbm.Dataset(x, signal > 1, params={"verbosity": -1})
    return lightgbm.train(settings, data, trees).model_to_string(), x


def run(
    model_text: str | None = None,
    x: FloatArray | None = None,
    *,
    n_features: int = 15,
    rows: Sequence[int] = ROWS,
    seconds: float = 0.15,
    rounds: int = 3,
) -> dict[str, Any]:
    """Measure every predictor on ``model_text`` and the rows ``x`` (default: `make_model`), C-contiguous float64.

    ``seconds`` per predictor, batch size and round. Returns ``results: [{predictor, rows, rows_per_s,
    ratio_lightgbm, bit_equal}]``, ``reasons: [{explainer, rows, rows_per_s, ratio_lightgbm, difference_max}]``, the
    model's shape, a hash of its scores, machine and versions.
    """
    if model_text is None or x is None:
        model_text, x = make_model(n_features)
    x = np.ascontiguousarray(x, dtype=np.float64)
    choice = choose(model_text)
    predictors: dict[str, Predictor] = {
        "lightgbm": LightGBMPredictor(model_text),
        "compiled": CompiledPredictor(model_text),
        "auto": choice.predictor,
    }
    results = []
    for size in rows:
        pool = np.ascontiguousarray(np.resize(x, (max(len(x), size), x.shape[1])))
        speed = dict.fromkeys(predictors, 0.0)
        for _ in range(rounds):
            for name, predictor in predictors.items():
                speed[name] = max(speed[name], _rows_per_s(predictor.predict_raw, pool, size, seconds))
        expected = _scores(predictors["lightgbm"], pool, size)
        for name, predictor in predictors.items():
            results.append(
                {
                    "predictor": name,
                    "rows": size,
                    "rows_per_s": round(speed[name]),
                    "ratio_lightgbm": round(speed[name] / speed["lightgbm"], 2),
                    "bit_equal": same_bits(_scores(predictor, pool, size), expected),
                }
            )
    return {
        "results": results,
        "reasons": _reasons(model_text, x, rows, seconds, rounds),
        "auto": choice.reason,
        "features": x.shape[1],
        "scores_sha256": hashlib.sha256(predictors["lightgbm"].predict_raw(x[:4096]).tobytes()).hexdigest(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("lightgbm", "numba", "numpy")},
    }


def _reasons(
    model_text: str, x: FloatArray, rows: Sequence[int], seconds: float, rounds: int
) -> list[dict[str, int | float | str]]:
    """Rows explained per second by each explainer, and how far its values are from LightGBM's."""
    oracle = LightGBMExplainer(model_text)
    explainers: dict[str, Explainer] = {"lightgbm": oracle, "compiled": TreeExplainer(parse(model_text))}
    some = x[:_COMPARED_ROWS]
    expected = oracle.contributions(some)
    difference = {name: float(np.abs(e.contributions(some) - expected).max()) for name, e in explainers.items()}
    results: list[dict[str, int | float | str]] = []
    for size in rows:
        pool = np.ascontiguousarray(np.resize(x, (max(len(x), size), x.shape[1])))
        speed = dict.fromkeys(explainers, 0.0)
        # LightGBM takes seconds for a large batch: one round is as good as three
        for _ in range(rounds if size <= _COMPARED_ROWS else 1):
            for name, explainer in explainers.items():
                speed[name] = max(speed[name], _rows_per_s(explainer.contributions, pool, size, seconds))
        results += [
            {
                "explainer": name,
                "rows": size,
                "rows_per_s": round(speed[name]),
                "ratio_lightgbm": round(speed[name] / speed["lightgbm"], 2),
                "difference_max": difference[name],
            }
            for name in explainers
        ]
    return results


def _batches(pool: FloatArray, size: int, limit: int) -> list[FloatArray]:
    """At most ``limit`` batches of ``size`` different rows."""
    return [pool[i : i + size] for i in range(0, len(pool) - size + 1, size)[:limit]]


def _rows_per_s(work: Callable[[FloatArray], FloatArray], pool: FloatArray, size: int, seconds: float) -> float:
    batches = _batches(pool, size, 4096)
    work(batches[0][:8])  # whatever the first call does
    done = 0
    start = time.process_time()
    while (spent := time.process_time() - start) < seconds:
        for _ in range(max(1, _ROWS_A_LOOK // size)):  # to look at the clock takes a tenth of a row
            work(batches[done % len(batches)])
            done += 1
    return done * size / spent


def _scores(predictor: Predictor, pool: FloatArray, size: int) -> FloatArray:
    return np.concatenate([predictor.predict_raw(batch) for batch in _batches(pool, size, 512)])


def main() -> None:
    """Print the figures for 15 and 40 features; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.predictor")
    parser.add_argument("--features", type=int, nargs="+", default=[15, 40])
    figures = [run(n_features=n) for n in parser.parse_args().features]
    for figure in figures:
        print(f"{figure['features']} features; auto: {figure['auto']}")
        for row in figure["results"]:
            print("  {predictor:10} {rows:5} rows {rows_per_s:9} rows/s {ratio_lightgbm:6}x {bit_equal}".format(**row))
        print("  reasons:")
        for row in figure["reasons"]:
            print(
                "  {explainer:10} {rows:5} rows {rows_per_s:9} rows/s {ratio_lightgbm:6}x {difference_max:.1e}".format(
                    **row
                )
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
