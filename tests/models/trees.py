"""Models to test predictors with: trained ones of every kind, and random texts that no training would give."""

from __future__ import annotations

import functools
import re
from typing import Any

import lightgbm
import numpy as np

from models.golden import TRAPS

N_FEATURES = 5
#: column 3 is a category in the models that take one
_TRAINED: dict[str, dict[str, Any]] = {
    "nan_missing": {},
    "zero_as_missing": {"zero_as_missing": True},
    "no_missing": {"use_missing": False},
    "categorical": {"categorical_feature": [3], "min_data_per_group": 5, "cat_smooth": 1},
    "one_hot_categorical": {"categorical_feature": [3], "max_cat_to_onehot": 64, "min_data_per_group": 5},
    "leaves_64": {"num_leaves": 64},
    "leaves_65": {"num_leaves": 65},
    "leaves_300": {"num_leaves": 300, "categorical_feature": [3]},
    "stumps": {"num_leaves": 2},
    "constant": {"min_data_in_leaf": 100_000},
    "dart": {"boosting": "dart"},
    "regression": {"objective": "regression", "boost_from_average": True},
    "not_from_average": {"boost_from_average": False},
    "ranking": {"objective": "rank_xendcg"},
}
_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "linear": ({"linear_tree": True, "objective": "regression"}, "linear trees"),
    "random_forest": ({"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, "random forest"),
    "multiclass": ({"objective": "multiclass", "num_class": 3}, "multiclass"),
}


def training_matrix(rows: int = 3000) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(rows, N_FEATURES))
    x[:, 1] = np.round(x[:, 1] * 2)
    x[:, 2] = np.where(rng.random(rows) < 0.5, 0.0, x[:, 2])
    x[:, 3] = rng.integers(0, 70, rows)
    signal = x[:, 0] + (x[:, 3] % 3 == 1) + x[:, 1] * x[:, 2] + rng.normal(size=rows)
    x[rng.random(rows) < 0.1, 0] = np.nan
    x[rng.random(rows) < 0.1, 4] = np.inf
    return x, (signal > 0.5).astype(np.float64)


def _train(settings: dict[str, Any], rounds: int = 12) -> str:
    x, y = training_matrix()
    params = {"objective": "binary", "num_leaves": 15, "min_data_in_leaf": 5, "max_bin": 200, "num_threads": 1}
    params |= {"verbosity": -1, "seed": 3, "learning_rate": 0.3} | settings
    category = params.pop("categorical_feature", "auto")
    names = [f"f{j}" for j in range(N_FEATURES)]
    group = [30] * (len(x) // 30) if params["objective"].startswith("rank") else None
    if params.get("num_class") == 3:
        y = y + (x[:, 1] > 1)
    if params.get("linear_tree"):
        x = np.nan_to_num(x, posinf=9.0)
    data = lightgbm.Dataset(x, y, group=group, feature_name=names, categorical_feature=category, params=params)
    text: str = lightgbm.train(params, data, rounds).model_to_string()
    return text


def _edit_first_threshold(text: str, value: str) -> str:
    text = re.sub(r"\ntree_sizes=.*\n", "\n", text, count=1)
    return re.sub(r"\nthreshold=\S+", f"\nthreshold={value}", text, count=1)


@functools.cache
def model_text(name: str) -> str:
    if name in _REFUSED:
        return _train(_REFUSED[name][0], 4)
    if name.startswith("threshold_"):
        return _edit_first_threshold(model_text("no_missing"), name.removeprefix("threshold_"))
    return _train(_TRAINED[name])


NAMES = [*_TRAINED, "threshold_inf", "threshold_-inf", "threshold_1e-36", "threshold_0", "threshold_-0.0"]
REFUSED = {name: reason for name, (_, reason) in _REFUSED.items()}


def random_text(seed: int, trees: int = 9, leaves_max: int = 90) -> str:
    """A model of random trees: every decision type, thresholds out of `TRAPS`, any shape, repeated bitsets."""
    rng = np.random.default_rng(seed)
    head = ["tree", "version=v4", "num_class=1", "num_tree_per_iteration=1", "label_index=0"]
    head += [f"max_feature_idx={N_FEATURES - 1}", "objective=regression"]
    head += ["feature_names=" + " ".join(f"f{j}" for j in range(N_FEATURES))]
    head += ["feature_infos=" + " ".join(["none"] * N_FEATURES), ""]
    limit = int(rng.choice([2, 33, 64, leaves_max]))
    blocks = [_random_tree(rng, t, int(rng.integers(1, limit + 1))) for t in range(trees)]
    return "\n".join(head) + "\n" + "\n".join(blocks) + "\nend of trees\n"


def _random_tree(rng: np.random.Generator, number: int, leaves: int) -> str:
    nodes = leaves - 1
    left, right = np.full(nodes, -1), np.full(nodes, -1)
    open_slots = [(0, 0), (0, 1)] if nodes else []
    for node in range(1, nodes):
        parent, side = open_slots.pop(int(rng.integers(len(open_slots))))
        (left, right)[side][parent] = node
        open_slots += [(node, 0), (node, 1)]
    for leaf, (parent, side) in enumerate(open_slots):
        (left, right)[side][parent] = -1 - leaf
    finite = [v for v in TRAPS if not np.isnan(v)]
    threshold = np.where(rng.random(nodes) < 0.5, rng.choice(finite, nodes), rng.normal(size=nodes))
    decision = rng.choice([0, 4, 8, 2, 6, 10, 1], nodes)
    words: list[int] = []
    boundaries = [0]
    for node in np.flatnonzero(decision == 1):
        threshold[node] = len(boundaries) - 1
        words += rng.choice([0, 1, 0xFFFF_FFFF, 0x8000_0001, 0xAAAA_AAAA], int(rng.integers(1, 4))).tolist()
        boundaries.append(len(words))
    lines = {
        "Tree": number,
        "num_leaves": leaves,
        "num_cat": len(boundaries) - 1,
        "split_feature": rng.integers(0, N_FEATURES, nodes),
        "split_gain": np.ones(nodes, int),
        "threshold": [repr(float(v)) for v in threshold],
        "decision_type": decision,
        "left_child": left,
        "right_child": right,
        "leaf_value": [repr(float(v)) for v in rng.normal(size=leaves) * 10.0 ** rng.integers(-9, 9, leaves)],
        "leaf_weight": np.ones(leaves, int),
        "leaf_count": np.ones(leaves, int),
        "internal_value": np.zeros(nodes, int),
        "internal_weight": np.ones(nodes, int),
        "internal_count": np.ones(nodes, int),
    }
    if len(boundaries) > 1:
        lines |= {"cat_boundaries": boundaries, "cat_threshold": words}
    lines |= {"is_linear": 0, "shrinkage": 1}
    return "".join(f"{k}={' '.join(map(str, np.atleast_1d(v)))}\n" for k, v in lines.items())
