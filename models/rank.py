"""Ranking of candidates: LambdaRank trained on the lists that were served, and how good a ranking is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np

from features.block import BoolArray, FloatArray, IntArray
from models.errors import ModelError
from models.package import Draft

__all__ = ["RANK_PARAMS", "RANK_ROUNDS", "Ranked", "Ranker", "Ranking", "ranks", "train_rank"]

#: fixed, so that two trainings give the same model
RANK_PARAMS: dict[str, Any] = {
    "objective": "lambdarank",
    "lambdarank_truncation_level": 20,
    "learning_rate": 0.1,
    "num_leaves": 15,
    "min_child_samples": 300,
    "feature_fraction": 0.5,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 1,
    "verbosity": -1,
}
RANK_ROUNDS = 100
#: of a list, the first so many rows teach: those behind are hardly ever clicked, and cost as much
_TAUGHT = 50


@dataclass(frozen=True, slots=True)
class Ranked:
    """Lists as they were served, and what was clicked next.

    List i is the rows ``begin[i]:begin[i + 1]`` of ``x`` (m, d) float64, its candidates' features; ``clicked`` (m,)
    bool is True for the candidate that came next, in none or one row of a list.
    """

    begin: IntArray
    x: FloatArray
    clicked: BoolArray

    def __len__(self) -> int:
        return len(self.begin) - 1

    @staticmethod
    def concat(parts: Sequence[Ranked]) -> Ranked:
        """The lists of all parts, in order."""
        sizes = np.concatenate([np.diff(part.begin) for part in parts])
        return Ranked(
            np.append(0, np.cumsum(sizes)),
            np.concatenate([part.x for part in parts]),
            np.concatenate([part.clicked for part in parts]),
        )

    def first(self, n: int) -> Ranked:
        """The first ``n`` rows of each list."""
        sizes = np.diff(self.begin)
        rows = np.arange(self.begin[-1]) - np.repeat(self.begin[:-1], sizes) < n
        return Ranked(np.append(0, np.cumsum(np.minimum(sizes, n))), self.x[rows], self.clicked[rows])

    def with_a_click(self) -> Ranked:
        """The lists that held what came next: the others teach nothing of its rank."""
        lists = np.repeat(np.arange(len(self)), np.diff(self.begin))
        hit = np.bincount(lists, self.clicked, len(self)) > 0
        rows = hit[lists]
        return Ranked(np.append(0, np.cumsum(np.diff(self.begin)[hit])), self.x[rows], self.clicked[rows])


@dataclass(frozen=True, slots=True)
class Ranking:
    """Sums over lists, so that parts add up: all, those with the next click among the first 20, and 1 / rank there."""

    lists: int
    found: int
    reciprocal: float

    @classmethod
    def of(cls, scores: FloatArray, begin: IntArray, clicked: BoolArray, lists: int | None = None) -> Ranking:
        """Of scored lists as in `Ranked`, of which there are ``lists`` (default: all), empty ones included."""
        rank = ranks(scores, begin)[clicked]
        first = rank[rank < 20]
        return cls(len(begin) - 1 if lists is None else lists, len(first), float(np.sum(1.0 / (first + 1))))

    def __add__(self, other: Ranking) -> Ranking:
        return Ranking(self.lists + other.lists, self.found + other.found, self.reciprocal + other.reciprocal)

    @property
    def recall_20(self) -> float:
        """Per cent of the lists with the next click among the first 20."""
        return 100.0 * self.found / max(self.lists, 1)

    @property
    def mrr_20(self) -> float:
        """Mean of 1 / rank, 0 beyond 20, in per cent."""
        return 100.0 * self.reciprocal / max(self.lists, 1)


@dataclass(frozen=True, slots=True)
class Ranker:
    """A trained ranker: LightGBM's text and what it was trained on."""

    model_text: str
    features: tuple[str, ...]
    training: dict[str, Any]

    def draft(self, name: str, schema_hash: str, created_at: str) -> Draft:
        """As a package, see `models.registry.Registry.add`."""
        return Draft(name, self.model_text, self.features, schema_hash, created_at, training=self.training)


def ranks(scores: FloatArray, begin: IntArray) -> IntArray:
    """(m,) place of each row in its list by falling score, 0 the first; ties by row, so the served order holds."""
    sizes = np.diff(begin)
    lists = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((-scores, lists))
    out = np.empty(len(scores), np.int64)
    out[order] = np.arange(len(scores)) - np.repeat(begin[:-1], sizes)
    return out


def train_rank(
    served: Ranked,
    features: Sequence[str],
    *,
    rounds: int = RANK_ROUNDS,
    params: dict[str, Any] | None = None,
    num_threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Ranker:
    """A LambdaRank model of the ``features`` (d) of ``served``, whose rows come best first as they were served;
    ModelError where no list holds a click among the rows that teach.

    ``params`` override `RANK_PARAMS`. ``progress(done, all)`` is called after each boosting round. ``num_threads``
    changes nothing but the time.
    """
    known = served.first(_TAUGHT).with_a_click()
    if len(known) == 0:
        raise ModelError(
            f"training lists: {len(served)}, none with the next click among its candidates; give more history"
        )
    settings = RANK_PARAMS | (params or {})
    data = lightgbm.Dataset(
        known.x,
        known.clicked.astype(np.int8),
        group=np.diff(known.begin),
        feature_name=list(features),
        params={"verbosity": -1},
    )

    def step(env: Any) -> None:
        if progress is not None:
            progress(env.iteration + 1, rounds)

    booster = lightgbm.train(settings | {"num_threads": num_threads}, data, rounds, callbacks=[step])
    training = {
        "lists": len(served),
        "lists_with_click": len(known),
        "rows": len(known.x),
        "rounds": rounds,
        "params": settings,
    }
    return Ranker(booster.model_to_string(), tuple(features), training)
