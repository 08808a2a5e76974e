"""A flattened forest as a file of a package: npz without pickle, with the layout that it was written in."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from models.errors import PackageError
from models.forest import MAX_LEAVES, Forest
from models.kernels import SLOTS
from models.modeltext import ModelText

__all__ = ["LAYOUT", "read_forest", "write_forest"]

#: of the parts and their order: a file of another layout is of no use to these kernels
LAYOUT = hashlib.sha256(json.dumps(list(SLOTS.items())).encode()).hexdigest()[:16]
_SHAPE = ("n_features", "n_trees", "bitmasks")

_Parts = dict[str, npt.NDArray[Any]]


def write_forest(forest: Forest) -> bytes:
    """The content of the file."""
    out = BytesIO()
    shape = np.array([int(getattr(forest, name)) for name in _SHAPE], np.int64)
    np.savez(out, layout=np.array(LAYOUT), shape=shape, ints=forest.ints, words=forest.words)
    return out.getvalue()


def read_forest(content: bytes, model: ModelText) -> Forest | None:
    """The forest of ``model``; None where it was written in another layout, so that it must be flattened anew.

    PackageError: the file is damaged, of a model of other features or trees, or points outside itself: the kernels do
    not look where they are led. That its scores are the model's is for the golden batch to say.
    """
    try:
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            if str(arrays["layout"]) != LAYOUT:
                return None
            n_features, n_trees, bitmasks = (int(v) for v in arrays["shape"])
            ints, words = np.ascontiguousarray(arrays["ints"]), np.ascontiguousarray(arrays["words"])
    except (KeyError, ValueError, TypeError, OverflowError, OSError, EOFError, BadZipFile) as error:
        raise PackageError(f"flattened forest: cannot be read ({error!r}); package the model again") from error
    if (n_features, n_trees) != (model.n_features, len(model.trees)):
        raise PackageError(
            f"flattened forest: of {n_features} features and {n_trees} trees, the model text has "
            f"{model.n_features} and {len(model.trees)}; package the model again"
        )
    forest = Forest(n_features, n_trees, bool(bitmasks), ints, words)
    parts = _parts(ints, words)
    if parts is None or not _columns_sound(forest, parts) or not _walk_sound(forest, parts):
        raise PackageError("flattened forest: points outside itself; package the model again")
    if forest.bitmasks and not _masks_sound(forest, parts):
        raise PackageError("flattened forest: its leaf masks do not fit; package the model again")
    return forest


def _parts(ints: npt.NDArray[Any], words: npt.NDArray[Any]) -> _Parts | None:
    """Each part of the layout, numbers as int64; None where they are not one after the other in their arrays."""
    if ints.dtype != np.int32 or words.dtype != np.uint64 or ints.ndim != 1 or words.ndim != 1:
        return None
    arrays = {"ints": ints.astype(np.int64), "words": words}
    if len(ints) < len(SLOTS):
        return None
    starts = dict(zip(SLOTS, ints[: len(SLOTS)].tolist(), strict=True))
    parts: _Parts = {}
    for kind, array in arrays.items():
        names = [name for name, of in SLOTS.items() if of == kind]
        bounds = [starts[name] for name in names] + [len(array)]
        if bounds[0] != (len(SLOTS) if kind == "ints" else 0) or bounds != sorted(bounds):
            return None
        parts |= {name: array[bounds[i] : bounds[i + 1]] for i, name in enumerate(names)}
    return parts


def _within(values: npt.NDArray[Any], end: int) -> bool:
    return bool(np.all((values >= 0) & (values < end)))


def _same_length(parts: _Parts, length: int, *names: str) -> bool:
    return all(len(parts[name]) == length for name in names)


def _columns_sound(forest: Forest, parts: _Parts) -> bool:
    """Columns are of features that exist, their bitsets within what there is."""
    columns = len(parts["column_feature"])
    if not _same_length(parts, columns, "column_bitset", "column_codes", "fill_nan", "fill_zero"):
        return False
    start, codes = parts["column_bitset"], parts["column_codes"]
    categorical = start >= 0
    fits = (codes >= 0) & (start + (codes + 31) // 32 <= len(parts["bitsets"]))
    return _within(parts["column_feature"], forest.n_features) and bool(np.all(fits[categorical]))


def _walk_sound(forest: Forest, parts: _Parts) -> bool:
    """A walk from a root stays among the nodes: both children of a node exist, and a leaf, whose column is the constant
    one of zeros, leads to itself."""
    nodes, columns = len(parts["node_column"]), len(parts["column_feature"])
    if not _same_length(parts, nodes, "node_child", "node_threshold", "node_value"):
        return False
    if not _same_length(parts, forest.n_trees, "tree_root", "tree_number", "tree_depth"):
        return False
    stays = (parts["node_column"] == columns) & (parts["node_threshold"].view(np.float64) >= 0.0)
    return (
        _within(parts["node_column"], columns + 1)
        and _within(parts["node_child"] + np.where(stays, 0, 1), nodes)
        and bool(np.all(parts["node_child"] >= 0))
        and _within(parts["tree_root"], nodes)
        and _within(parts["tree_depth"], nodes + 1)
        and np.array_equal(np.sort(parts["tree_number"]), np.arange(forest.n_trees))
    )


def _masks_sound(forest: Forest, parts: _Parts) -> bool:
    """Whatever nodes a row goes right at, a leaf of the tree remains: its last one, which no node removes."""
    nodes, columns = len(parts["block_column"]), len(parts["column_feature"])
    start, leaf = parts["block_start"], parts["tree_leaf"]
    if not _same_length(parts, nodes, "block_threshold", "block_mask"):
        return False
    if not _same_length(parts, forest.n_trees + 1, "block_start", "tree_leaf"):
        return False
    leaves = np.diff(leaf)
    if not _within(parts["block_column"], columns + 1) or not np.all((leaves >= 1) & (leaves <= MAX_LEAVES)):
        return False
    if np.any(np.diff(start) < 1) or (start[0], start[-1], leaf[0], leaf[-1]) != (
        0,
        nodes,
        0,
        len(parts["leaf_value"]),
    ):
        return False
    kept = np.bitwise_and.reduceat(parts["block_mask"], start[:-1])
    return bool(np.all((kept >> (leaves - 1).astype(np.uint64)) & np.uint64(1)))
