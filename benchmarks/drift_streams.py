"""Streams whose drift is known: made up, of River's generators, and of the real data that River brings along.

Each is scored by a model that knows the world before the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import lightgbm
import numpy as np
from river import datasets

from features.block import FloatArray, IntArray

__all__ = ["PERIOD", "STREAMS", "Stream"]

#: rows of a period of the monitor; its season, where there is one, is 7 of them
PERIOD = 500
_TRAIN = 8_000
_CHANGE, _ROWS = 30_000, 50_000


@dataclass(frozen=True, slots=True)
class Stream:
    """``x`` (n, d), ``score`` (n,) probabilities, ``label`` (n,) 0/1; ``changes``: rows at which the world changes."""

    x: FloatArray
    score: FloatArray
    label: IntArray
    changes: tuple[int, ...] = ()


def _made_up(seed: int) -> tuple[FloatArray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(_ROWS, 8))
    x[:, 5] = rng.gamma(2.0, size=_ROWS)
    x[:, 6] = rng.integers(0, 6, _ROWS)
    # a feature of many rows, as windows are: it wanders
    x[:, 7] = np.convolve(rng.normal(size=_ROWS + 499), np.ones(500) / np.sqrt(500), "valid") * 0.2 + x[:, 7]
    return x, rng


_WEIGHTS = np.array([1.2, -0.8, 0.6, 0.0, 0.4, 0.3, 0.1, 0.0])


def _judged(x: FloatArray, rng: np.random.Generator, changes: tuple[int, ...] = (), truth: Any = None) -> Stream:
    """Labels by ``truth`` (n,) log odds, default those of the score, which knows the weights."""
    odds = x @ _WEIGHTS - 3.0
    chance = 1 / (1 + np.exp(-(odds if truth is None else truth)))
    return Stream(x, 1 / (1 + np.exp(-odds)), (rng.random(len(x)) < chance).astype(np.int64), changes)


def _none(seed: int) -> Stream:
    return _judged(*_made_up(seed))


def _abrupt(seed: int) -> Stream:
    x, rng = _made_up(seed)
    x[_CHANGE:, 0] += 0.5
    return _judged(x, rng, (_CHANGE,))


def _gradual(seed: int) -> Stream:
    x, rng = _made_up(seed)
    x[_CHANGE:, 0] += np.minimum(np.arange(_ROWS - _CHANGE) / 8_000, 1.0)
    return _judged(x, rng, (_CHANGE,))


def _recurring(seed: int) -> Stream:
    x, rng = _made_up(seed)
    changes = (25_000, 35_000, 45_000)
    x[25_000:35_000, 0] += 0.7
    x[45_000:, 0] += 0.7
    # going back is no drift: it is the world of the reference
    return _judged(x, rng, (changes[0], changes[2]))


def _seasonal(seed: int) -> Stream:
    x, rng = _made_up(seed)
    x[:, 0] += 0.6 * np.sin(2 * np.pi * np.arange(_ROWS) / (7 * PERIOD))
    return _judged(x, rng)


def _feature_only(seed: int) -> Stream:
    x, rng = _made_up(seed)
    x[_CHANGE:, 3] += 0.5  # no weight: scores and labels do not notice
    return _judged(x, rng, (_CHANGE,))


def _label_only(seed: int) -> Stream:
    x, rng = _made_up(seed)
    truth = x @ _WEIGHTS - 3.0
    other = _WEIGHTS.copy()
    other[[0, 1]] = other[[1, 0]]
    truth[_CHANGE:] = x[_CHANGE:] @ other - 3.0
    return _judged(x, rng, (_CHANGE,), truth)


def _learned(x: FloatArray, y: IntArray, changes: tuple[int, ...]) -> Stream:
    """Scored by a small LightGBM of the first rows, which are then left out."""
    settings = {"objective": "binary", "num_leaves": 15, "num_threads": 1, "verbosity": -1, "deterministic": True}
    data = lightgbm.Dataset(x[:_TRAIN], y[:_TRAIN], params={"verbosity": -1})
    score = np.asarray(lightgbm.train(settings, data, 40).predict(x[_TRAIN:], num_threads=1))
    return Stream(np.ascontiguousarray(x[_TRAIN:]), score, y[_TRAIN:], tuple(c - _TRAIN for c in changes))


def _columns(rows: Iterator[tuple[dict[str, Any], Any]], n: int) -> tuple[FloatArray, IntArray]:
    taken = list(islice(rows, n))
    names = [name for name, value in taken[0][0].items() if isinstance(value, int | float)]
    x = np.array([[row[name] for name in names] for row, _ in taken], np.float64)
    return x, np.array([int(y) for _, y in taken], np.int64)


def _generated(make: Callable[[int, bool], Any], drifts: bool) -> Callable[[int], Stream]:
    """``make(seed, changed)`` gives a dataset of River, before or after the change."""

    def stream(seed: int) -> Stream:
        at, n = (_CHANGE + _TRAIN, _ROWS) if drifts else (_ROWS, _ROWS)
        before = _columns(iter(make(seed, False)), at)
        if not drifts:
            return _learned(*before, ())
        after = _columns(iter(make(seed + 1000, True)), n - at)
        return _learned(np.concatenate([before[0], after[0]]), np.concatenate([before[1], after[1]]), (at,))

    return stream


def _sea(seed: int, changed: bool) -> Any:
    return datasets.synth.SEA(variant=2 if changed else 0, noise=0.1, seed=seed)


def _agrawal(seed: int, changed: bool) -> Any:
    return datasets.synth.Agrawal(classification_function=3 if changed else 1, seed=seed)


def _hyperplane(seed: int, changed: bool) -> Any:
    # another seed is another plane
    return datasets.synth.Hyperplane(n_features=8, noise_percentage=0.05, seed=seed if changed else 7)


def _shuttle(seed: int, changed: bool = False) -> Stream:
    """NASA's shuttle data, in an order from the seed; after the change half of the anomalies are none, and as many
    other rows are."""
    x, y = _columns(iter(datasets.Shuttle()), 50_000)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    x, y = x[order], y[order]
    at = _CHANGE + _TRAIN
    if changed:
        found = at + np.flatnonzero(y[at:])
        y[rng.choice(found, len(found) // 2, replace=False)] = 0
        y[rng.integers(at, len(y), len(found) // 2)] = 1
    return _learned(x, y, (at,) if changed else ())


def _swapped(seed: int) -> Stream:
    """Shuttle, two of whose sensors change places."""
    stream = _shuttle(seed)
    x = stream.x.copy()
    x[_CHANGE:, [4, 6]] = x[_CHANGE:, [6, 4]]
    return replace(stream, x=x, changes=(_CHANGE,))


#: by name; each takes a seed
STREAMS: dict[str, Callable[[int], Stream]] = {
    "none": _none,
    "abrupt": _abrupt,
    "gradual": _gradual,
    "recurring": _recurring,
    "seasonal": _seasonal,
    "feature_only": _feature_only,
    "label_only": _label_only,
    "sea": _generated(_sea, True),
    "sea_none": _generated(_sea, False),
    "agrawal": _generated(_agrawal, True),
    "agrawal_none": _generated(_agrawal, False),
    "hyperplane": _generated(_hyperplane, True),
    "shuttle_none": _shuttle,
    "shuttle_label": lambda seed: _shuttle(seed, True),
    "shuttle_feature": _swapped,
}
