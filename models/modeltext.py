"""LightGBM's model text as arrays: the header and, per tree, its nodes and leaves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from features.block import FloatArray, IntArray
from models.errors import ModelError

if TYPE_CHECKING:
    import lightgbm

__all__ = [
    "CATEGORICAL",
    "DEFAULT_LEFT",
    "MISSING_NAN",
    "MISSING_NONE",
    "MISSING_ZERO",
    "ModelText",
    "Tree",
    "load_booster",
    "parse",
]

#: bits of `Tree.decision`, and the values of its missing type (bits 2 and 3)
CATEGORICAL, DEFAULT_LEFT = 1, 2
MISSING_NONE, MISSING_ZERO, MISSING_NAN = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree: node arrays (leaves - 1,), leaf values (leaves,).

    ``leaf_count`` (leaves,) and ``node_count`` (leaves - 1,): the training rows that came there; empty where the text
    does not say.

    Children below zero are leaves: ``-1 - leaf``. For a categorical node ``threshold`` is the index of its
    bitset: words ``cat_boundaries[i] .. cat_boundaries[i + 1]`` of ``cat_threshold`` (uint32 words).
    """

    feature: IntArray
    threshold: FloatArray
    decision: IntArray
    left: IntArray
    right: IntArray
    leaf_value: FloatArray
    leaf_count: IntArray
    node_count: IntArray
    cat_boundaries: IntArray
    cat_threshold: IntArray
    is_linear: bool

    @property
    def n_leaves(self) -> int:
        """Number of leaves; 1 for a constant tree."""
        return len(self.leaf_value)

    def missing(self, node: int) -> int:
        """The missing type of a node."""
        return (int(self.decision[node]) >> 2) & 3

    def bitset(self, node: int) -> IntArray:
        """The categories that go left at a categorical node, as uint32 words."""
        i = int(self.threshold[node])
        return self.cat_threshold[self.cat_boundaries[i] : self.cat_boundaries[i + 1]]


@dataclass(frozen=True, slots=True)
class ModelText:
    """A model as LightGBM understands it."""

    objective: str
    feature_names: tuple[str, ...]
    trees_per_iteration: int
    average_output: bool
    trees: tuple[Tree, ...]

    @property
    def n_features(self) -> int:
        """Number of features, used or not."""
        return len(self.feature_names)


def load_booster(model_text: str) -> lightgbm.Booster:
    """The Booster of a LightGBM model text; ModelError when the text is damaged or LightGBM cannot read it.

    LightGBM ends the process on some damaged texts, so they are checked before it sees them, and it is made to read
    the trees one after another (without ``tree_sizes`` it does), since it cannot report errors from its threads.
    """
    import lightgbm  # with scikit-learn behind it this takes a second, which a worker without a model need not wait

    _check(model_text)
    try:
        return lightgbm.Booster(model_str=re.sub(r"^tree_sizes=.*\n", "", model_text, count=1, flags=re.MULTILINE))
    except lightgbm.basic.LightGBMError as error:
        raise ModelError(
            f"model text: LightGBM {lightgbm.__version__} cannot read it: {error}; "
            "save the model again with Booster.save_model"
        ) from error


def parse(model_text: str) -> ModelText:
    """Parse a model text; ModelError when it is damaged or LightGBM cannot read it.

    The text is first read and written by LightGBM, so that the numbers are those it computes with,
    whatever form they had (every double is written with 17 digits, which read back exactly).
    """
    head, *blocks = load_booster(model_text).model_to_string(num_iteration=-1).split("\nTree=")
    header = _fields(head)
    names = tuple(header["feature_names"].split())
    if len(names) != int(header["max_feature_idx"]) + 1:
        raise ModelError(
            f"model text feature_names: {len(names)} names for {int(header['max_feature_idx']) + 1} features; "
            "give every feature a name without blanks"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ModelError(f"model text feature_names: {twice[0]} names several features; give each a name of its own")
    return ModelText(
        objective=header.get("objective", ""),
        feature_names=names,
        trees_per_iteration=int(header["num_tree_per_iteration"]),
        average_output="average_output" in head.splitlines(),
        trees=tuple(_tree(block.split("\nend of trees")[0]) for block in blocks),
    )


def _fields(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _tree(block: str) -> Tree:
    fields = _fields(block)

    def ints(name: str) -> IntArray:
        return np.array(fields.get(name, "").split(), dtype=np.int64)

    def floats(name: str) -> FloatArray:
        values: npt.NDArray[np.float64] = np.array([float(v) for v in fields.get(name, "").split()], dtype=np.float64)
        return values

    return Tree(
        feature=ints("split_feature"),
        threshold=floats("threshold"),
        decision=ints("decision_type"),
        left=ints("left_child"),
        right=ints("right_child"),
        leaf_value=floats("leaf_value"),
        leaf_count=ints("leaf_count"),
        node_count=ints("internal_count"),
        cat_boundaries=ints("cat_boundaries"),
        cat_threshold=ints("cat_threshold"),
        is_linear=fields.get("is_linear", "0") != "0",
    )


def _check(model_text: str) -> None:
    """The text is whole, and so is every tree: see `_is_sound`."""
    head, *blocks = model_text.split("\nTree=")
    whole = head.startswith("tree\n") and "\nend of trees" in model_text
    if not whole or ("\nparameters:" in model_text and "\nend of parameters" not in model_text):
        raise ModelError(
            'model text: does not begin with "tree", or is cut off before "end of trees" or "end of parameters"; '
            "give a whole file as Booster.save_model writes it"
        )
    header = _fields(head)
    classes, per_iteration = (header.get(name, "").strip() for name in ("num_class", "num_tree_per_iteration"))
    # LightGBM divides by the one and makes room for the other
    if classes != per_iteration or not classes.isdecimal() or int(classes) == 0:
        raise ModelError(
            f"model text num_class, num_tree_per_iteration: {classes!r} and {per_iteration!r} are not the same number "
            "above 0; save the model again with Booster.save_model"
        )
    for number, block in enumerate(blocks):
        try:
            sound = _is_sound(_fields(block), int(header.get("max_feature_idx", "")))
        except (KeyError, ValueError, IndexError):
            sound = False
        if not sound:
            raise ModelError(
                f"model text: tree {number} lacks fields, has children, features or categories that do not exist, or "
                "leaves that are no finite number; save the model again with Booster.save_model"
            )


def _is_sound(fields: dict[str, str], last_feature: int) -> bool:
    """Each node but the root and each leaf is the child of one node, leaves are finite, and categories are there."""
    leaves = int(fields["num_leaves"])
    left, right, feature, decision = (
        np.array(fields[name].split() if leaves > 1 else [], dtype=np.int64)
        for name in ("left_child", "right_child", "split_feature", "decision_type")
    )
    values = np.array(fields["leaf_value"].split(), dtype=np.float64)
    if not leaves == len(values) >= 1 or not len(left) == len(right) == len(feature) == len(decision) == leaves - 1:
        return False
    children = np.sort(np.concatenate([left, right]))
    expected = np.concatenate([np.arange(-leaves, 0), np.arange(1, leaves - 1)]) if leaves > 1 else children
    categorical = (decision & CATEGORICAL) != 0
    return bool(
        np.array_equal(children, expected)
        and np.all((feature >= 0) & (feature <= last_feature))
        and np.isfinite(values).all()
        and (not categorical.any() or _has_categories(fields, categorical))
    )


def _has_categories(fields: dict[str, str], categorical: npt.NDArray[np.bool_]) -> bool:
    """The categories of each of these nodes are words of the text."""
    thresholds = np.array(fields["threshold"].split(), dtype=np.float64)
    if len(thresholds) != len(categorical):
        return False
    which = thresholds[categorical]
    ends, words = (np.array(fields[name].split(), dtype=np.int64) for name in ("cat_boundaries", "cat_threshold"))
    return bool(
        np.all((which >= 0) & (which < len(ends) - 1))
        and len(ends) == int(fields["num_cat"]) + 1
        and ends[0] == 0
        and np.all(np.diff(ends) >= 0)
        and ends[-1] <= len(words)
    )
