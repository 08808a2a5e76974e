"""A LightGBM model flattened for the kernels of `models.compiled`: plain arrays, no Python objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.block import FloatArray
from models.errors import UnsupportedModelError
from models.kernels import SLOTS, Int32Array, WordArray
from models.modeltext import CATEGORICAL, DEFAULT_LEFT, MISSING_NAN, MISSING_NONE, MISSING_ZERO, ModelText, Tree

__all__ = ["MAX_LEAVES", "Forest", "check_supported", "columns_alone", "flatten"]

#: a tree's leaves must fit the bits of one word for the bitmask kernels
MAX_LEAVES = 64
_ALL = 0xFFFF_FFFF_FFFF_FFFF

# Every node becomes "left iff v <= threshold" over a *column*: a feature with one way of treating what is missing.
# Missing that goes left is -inf there, missing that goes right is NaN (no comparison holds). A categorical node is a
# column of its own that is 0 (left) or NaN (right), with threshold 0.


@dataclass(frozen=True, slots=True)
class Forest:
    """``ints`` int32 and ``words`` uint64 (doubles by their bits), each the parts of `models.kernels.SLOTS` in a row.

    ``ints[i]`` is where part i starts in its own array, i in the order of SLOTS; the parts of ``ints`` follow these.
    ``bitmasks`` tells whether the bitmask parts are filled.
    """

    n_features: int
    n_trees: int
    bitmasks: bool
    ints: Int32Array
    words: WordArray


def flatten(model: ModelText) -> Forest:
    """Flatten ``model``; UnsupportedModelError when LightGBM computes its score in a way the kernels do not."""
    check_supported(model, "compiled")
    columns = _Columns()
    parts: dict[str, list[int] | list[float]] = {name: [] for name in SLOTS}
    walks = [_walk(tree, columns) for tree in model.trees]
    _traversal(walks, columns, parts)
    bitmasks = all(tree.n_leaves <= MAX_LEAVES for tree in model.trees)
    if bitmasks:
        _bitmasks(walks, parts)
    parts |= columns.parts()
    return _pack(model, bitmasks, parts)


def columns_alone(model: ModelText) -> tuple[Forest, list[list[int]]]:
    """A forest of the columns without trees, and for each tree the column of each node; errors as of `flatten`."""
    check_supported(model, "compiled")
    columns = _Columns()
    of_nodes = [[columns.of(tree, node) for node in range(tree.n_leaves - 1)] for tree in model.trees]
    empty: dict[str, list[int] | list[float]] = {name: [] for name in SLOTS}
    return _pack(model, False, empty | columns.parts()), of_nodes


def check_supported(model: ModelText, predictor: str) -> None:
    """UnsupportedModelError when LightGBM computes the score in a way that no predictor but its own does."""
    refusals = [
        (model.trees_per_iteration != 1, f"{model.trees_per_iteration} trees per iteration (multiclass)"),
        (model.average_output, "random forest averaging"),
        (any(tree.is_linear for tree in model.trees), "linear trees"),
        (any(np.isnan(tree.threshold).any() for tree in model.trees), "a NaN threshold"),
        (len(model.trees) == 0, "no trees"),
        (sum(tree.n_leaves for tree in model.trees) > 2**27, "more than 2**27 leaves"),
    ]
    for refused, what in refusals:
        if refused:
            raise UnsupportedModelError(f"model: {what} not supported by the {predictor} predictor; use lightgbm")


class _Columns:
    """The distinct columns of a model."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, int, bool, tuple[int, ...]], int] = {}
        self.feature: list[int] = []
        self.bitset: list[int] = []
        self.codes: list[int] = []
        self.bitsets: list[int] = []
        self.fill_nan: list[float] = []
        self.fill_zero: list[float] = []

    def of(self, tree: Tree, node: int) -> int:
        """The column of a node."""
        decision = int(tree.decision[node])
        if decision & CATEGORICAL:
            key = (int(tree.feature[node]), -1, False, tuple(int(w) for w in tree.bitset(node)))
        else:
            missing = tree.missing(node)
            left = bool(decision & DEFAULT_LEFT) and missing != MISSING_NONE
            key = (int(tree.feature[node]), missing, left, ())
        if key not in self._ids:
            self._ids[key] = len(self.feature)
            self._append(*key)
        return self._ids[key]

    def _append(self, feature: int, missing: int, default_left: bool, bitset: tuple[int, ...]) -> None:
        default = float("-inf") if default_left else float("nan")
        self.feature.append(feature)
        self.bitset.append(len(self.bitsets) if missing < 0 else -1)
        self.codes.append(32 * len(bitset))
        self.bitsets.extend(word - 2**32 if word >= 2**31 else word for word in bitset)
        self.fill_nan.append(default if missing in (MISSING_ZERO, MISSING_NAN) else 0.0)
        self.fill_zero.append(default if missing == MISSING_ZERO else 0.0)

    def parts(self) -> dict[str, list[int] | list[float]]:
        """The parts of the forest that describe columns."""
        return {
            "column_feature": self.feature,
            "column_bitset": self.bitset,
            "column_codes": self.codes,
            "bitsets": self.bitsets,
            "fill_nan": self.fill_nan,
            "fill_zero": self.fill_zero,
        }


@dataclass(frozen=True, slots=True)
class _Node:
    """An inner node: column, threshold, children as in `Tree`, [first, end) of its left subtree's leaves by place."""

    column: int
    threshold: float
    left: int
    right: int
    left_leaves: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Walk:
    """A tree with its leaves numbered from left to right: ``values`` by place."""

    nodes: list[_Node]
    values: list[float]
    leaf_value: list[float]
    depth: int


def _walk(tree: Tree, columns: _Columns) -> _Walk:
    """Without recursion, since a tree may be a chain of thousands of nodes."""
    n = tree.n_leaves - 1
    if n == 0:
        return _Walk([], tree.leaf_value.tolist(), tree.leaf_value.tolist(), 0)
    left, right, value = tree.left.tolist(), tree.right.tolist(), tree.leaf_value.tolist()
    first, middle, depth = [0] * n, [0] * n, [0] * n
    values: list[float] = []
    stack = [(0, 0)]
    while stack:
        node, step = stack.pop()
        if node < 0:
            values.append(value[-1 - node])
        elif step == 0:
            first[node] = len(values)
            stack += [(node, 1), (left[node], 0)]
        elif step == 1:
            middle[node] = len(values)
            stack += [(node, 2), (right[node], 0)]
        else:
            depth[node] = 1 + max(depth[child] if child >= 0 else 0 for child in (left[node], right[node]))
    nodes = [
        _Node(
            columns.of(tree, i),
            0.0 if tree.decision[i] & CATEGORICAL else float(tree.threshold[i]),
            left[i],
            right[i],
            (first[i], middle[i]),
        )
        for i in range(n)
    ]
    return _Walk(nodes, values, value, depth[0])


def _traversal(walks: Sequence[_Walk], columns: _Columns, parts: dict[str, list[int] | list[float]]) -> None:
    """Nodes level by level, the two children of a node side by side."""
    constant = len(columns.feature)
    column: list[int] = []
    child: list[int] = []
    threshold: list[float] = []
    value: list[float] = []
    order = sorted(range(len(walks)), key=lambda t: walks[t].depth)
    roots = []
    for t in order:
        walk = walks[t]
        roots.append(len(column))
        level = [0 if walk.nodes else -1]
        following = len(column) + 1
        while level:
            below: list[int] = []
            for i in level:
                if i < 0:
                    child.append(len(column))
                    column.append(constant)
                    threshold.append(0.0)
                    value.append(walk.leaf_value[-1 - i])
                else:
                    node = walk.nodes[i]
                    child.append(following)
                    column.append(node.column)
                    threshold.append(node.threshold)
                    value.append(0.0)
                    below += [node.left, node.right]
                    following += 2
            level = below
    parts |= {"node_column": column, "node_child": child, "node_threshold": threshold, "node_value": value}
    parts |= {"tree_root": roots, "tree_number": order, "tree_depth": [walks[t].depth for t in order]}


def _bitmasks(walks: Sequence[_Walk], parts: dict[str, list[int] | list[float]]) -> None:
    """Nodes as masks, by tree."""
    start, leaf_start = [0], [0]
    column: list[int] = []
    threshold: list[float] = []
    mask: list[int] = []
    for walk in walks:
        # a constant tree gets one node that removes nothing
        for node in walk.nodes or [_Node(0, 0.0, -1, -1, (0, 0))]:
            first, middle = node.left_leaves
            # going right leaves the leaves left of the node's left subtree, and those after it
            mask.append(_ALL ^ ((1 << middle) - (1 << first)))
            column.append(node.column)
            threshold.append(node.threshold)
        start.append(len(column))
        leaf_start.append(leaf_start[-1] + len(walk.values))
    parts |= {"block_start": start, "block_column": column, "block_threshold": threshold, "block_mask": mask}
    parts |= {"tree_leaf": leaf_start, "leaf_value": [v for walk in walks for v in walk.values]}


def _pack(model: ModelText, bitmasks: bool, parts: dict[str, list[int] | list[float]]) -> Forest:
    ints: list[npt.NDArray[np.int32]] = []
    words: list[WordArray] = []
    starts, at = [], {"ints": len(SLOTS), "words": 0}
    for name, kind in SLOTS.items():
        starts.append(at[kind])
        at[kind] += len(parts[name])
        if kind == "ints":
            ints.append(np.array(parts[name], dtype=np.int32))
        elif name.endswith("mask"):
            words.append(np.array(parts[name], dtype=np.uint64))
        else:
            words.append(_bits(parts[name]))
    return Forest(
        n_features=model.n_features,
        n_trees=len(model.trees),
        bitmasks=bitmasks,
        ints=np.concatenate([np.array(starts, dtype=np.int32), *ints]),
        words=np.concatenate(words),
    )


def _bits(values: Iterable[float]) -> WordArray:
    doubles: FloatArray = np.array(list(values), dtype=np.float64)
    return doubles.view(np.uint64)
