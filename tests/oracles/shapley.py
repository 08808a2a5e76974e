"""Shapley values of a tree by their definition: every coalition of features, each by walking the tree."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np

from models.modeltext import CATEGORICAL, DEFAULT_LEFT, MISSING_NAN, MISSING_ZERO, ModelText, Tree

_ZERO = float(np.float32(1e-35))


def goes_left(tree: Tree, node: int, v: float) -> bool:
    """LightGBM's decision."""
    decision, missing = int(tree.decision[node]), tree.missing(node)
    if decision & CATEGORICAL:
        if not -1.0 < v < 2**31:
            return False
        word, bit = divmod(int(v), 32)
        bitset = tree.bitset(node)
        return word < len(bitset) and bool(int(bitset[word]) >> bit & 1)
    if abs(v) <= _ZERO or (math.isnan(v) and missing != MISSING_NAN):
        v = 0.0
    if (missing == MISSING_ZERO and v == 0.0) or (missing == MISSING_NAN and math.isnan(v)):
        return bool(decision & DEFAULT_LEFT)
    return v <= float(tree.threshold[node])


def expectation(tree: Tree, x: np.ndarray[Any, Any], known: frozenset[int], node: int = 0) -> float:
    """The tree's value where only the ``known`` features decide, and the training rows' shares elsewhere."""
    if node < 0:
        return float(tree.leaf_value[-1 - node])
    left, right = int(tree.left[node]), int(tree.right[node])
    feature = int(tree.feature[node])
    if feature in known:
        return expectation(tree, x, known, left if goes_left(tree, node, float(x[feature])) else right)
    shares = [int(tree.node_count[c] if c >= 0 else tree.leaf_count[-1 - c]) for c in (left, right)]
    parts = [s * expectation(tree, x, known, c) for s, c in zip(shares, (left, right), strict=True)]
    return math.fsum(parts) / int(tree.node_count[node])


def shapley(model: ModelText, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(d + 1,): each feature's value for the row ``x`` (d,), and the expected score."""
    d = model.n_features
    out = np.zeros(d + 1)
    for tree in model.trees:
        if tree.n_leaves == 1:
            out[d] += tree.leaf_value[0]
            continue
        worth = {
            frozenset(known): expectation(tree, x, frozenset(known))
            for size in range(d + 1)
            for known in combinations(range(d), size)
        }
        out[d] += worth[frozenset()]
        for known, value in worth.items():
            for feature in set(range(d)) - known:
                weight = math.factorial(len(known)) * math.factorial(d - 1 - len(known)) / math.factorial(d)
                out[feature] += weight * (worth[known | {feature}] - value)
    return out
