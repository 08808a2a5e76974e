"""Kernels over a `Forest`: blocks of rows by bitmasks, single rows and large trees by walking eight trees at once.

The bitmask idea is that of QuickScorer (Lucchese et al., SIGIR 2015) and RapidScorer (Ye et al., KDD 2018): a node
whose row goes right removes the leaves of its left subtree; once all such nodes are applied, the lowest leaf
that remains is the row's. Scores are added tree by tree in the order of the model, as LightGBM does.

Scratch is allocated by each call, so calls may run at once in several threads.

Whatever the machine code depends on is in this file, since numba's cache notices changes of this file only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from features.block import FloatArray

__all__ = ["LANES", "SLOTS", "ZERO", "Int32Array", "WordArray", "fill_columns", "score_block", "score_walk"]

Int32Array = npt.NDArray[np.int32]
WordArray = npt.NDArray[np.uint64]

#: rows that the block kernel carries at once
LANES = 64
#: LightGBM's kZeroThreshold: values at most this far from zero are zero
ZERO = float(np.float32(1e-35))

#: part -> which array. Sizes: C columns, N traversal nodes, T trees, P inner nodes, L leaves.
SLOTS = {
    "column_feature": "ints",  # (C,) feature of the column
    "column_bitset": "ints",  # (C,) start of its bitset in `bitsets`, -1 if numeric
    "column_codes": "ints",  # (C,) codes that its bitset covers
    "bitsets": "ints",  # categories that go left, 32 to a word
    "node_column": "ints",  # (N,) traversal: column of the node; leaves use the constant column C
    "node_child": "ints",  # (N,) left child, the right one follows it; a leaf is its own child
    "tree_root": "ints",  # (T,) in the order of `tree_number`
    "tree_number": "ints",  # (T,) trees by depth, so that trees walked together end together
    "tree_depth": "ints",  # (T,) in the order of `tree_number`
    "tree_leaf": "ints",  # (T + 1,) first leaf of tree t in `leaf_value`
    "block_start": "ints",  # (T + 1,) first inner node of tree t
    "block_column": "ints",  # (P,)
    "fill_nan": "words",  # (C,) double in place of NaN
    "fill_zero": "words",  # (C,) double in place of zero
    "node_threshold": "words",  # (N,)
    "node_value": "words",  # (N,) leaf value
    "leaf_value": "words",  # (L,) from left to right in each tree
    "block_threshold": "words",  # (P,)
    "block_mask": "words",  # (P,) leaves that remain when the row goes right
}

_AT = {name: i for i, name in enumerate(SLOTS)}
_COLUMN_FEATURE, _COLUMN_BITSET = _AT["column_feature"], _AT["column_bitset"]
_COLUMN_CODES, _BITSETS = _AT["column_codes"], _AT["bitsets"]
_FILL_NAN, _FILL_ZERO = _AT["fill_nan"], _AT["fill_zero"]
_NODE_COLUMN, _NODE_CHILD = _AT["node_column"], _AT["node_child"]
_NODE_THRESHOLD, _NODE_VALUE = _AT["node_threshold"], _AT["node_value"]
_TREE_ROOT, _TREE_NUMBER, _TREE_DEPTH = _AT["tree_root"], _AT["tree_number"], _AT["tree_depth"]
_TREE_LEAF, _LEAF_VALUE = _AT["tree_leaf"], _AT["leaf_value"]
_BLOCK_START, _BLOCK_COLUMN = _AT["block_start"], _AT["block_column"]
_BLOCK_THRESHOLD, _BLOCK_MASK = _AT["block_threshold"], _AT["block_mask"]


@intrinsic
def _lowest(typingctx: Any, word: Any) -> Any:
    """Index of the lowest set bit of a word that is not zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), codegen


def _remaining(width: int) -> Any:
    """The intrinsic ``(column, threshold, mask, start, end, tile, lane, leaves)`` for 8 * ``width`` rows.

    Sets ``leaves[lane : lane + 8 * width]`` to the leaves of one tree, nodes start .. end (one at
    least), that remain for these rows.
    Written as LLVM vectors since the words stay in registers over all nodes of the tree; the loop over arrays that
    numba makes of the same lines is half as fast at 64 rows and a fifth at 8. Vectors of 8 doubles become whatever
    the processor has.
    """
    i64, f64 = ir.IntType(64), ir.DoubleType()
    doubles, words = ir.VectorType(f64, 8), ir.VectorType(i64, 8)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def array(i: int) -> Any:
            return context.make_array(signature.args[i])(context, builder, args[i]).data

        def splat(value: Any, kind: Any) -> Any:
            one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
            return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8))

        def at(pointer: Any, index: Any, kind: Any) -> Any:
            return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())

        column, threshold, mask, tile, leaves = (array(i) for i in (0, 1, 2, 5, 7))
        start, end, lane = args[3], args[4], args[6]
        entry = builder.block
        loop, done = builder.append_basic_block("node"), builder.append_basic_block("done")
        builder.branch(loop)

        builder.position_at_end(loop)
        node = builder.phi(i64)
        remain = [builder.phi(words) for _ in range(width)]
        row = builder.mul(builder.sext(builder.load(builder.gep(column, [node])), i64), i64(LANES))
        values = builder.gep(tile, [builder.add(row, lane)])
        limit = splat(builder.load(builder.gep(threshold, [node])), doubles)
        keep = splat(builder.load(builder.gep(mask, [node])), words)
        after = []
        for j in range(width):
            value = builder.load(at(values, i64(8 * j), doubles), align=8)
            left = builder.fcmp_ordered("<=", value, limit)
            after.append(builder.select(left, remain[j], builder.and_(remain[j], keep)))
        following = builder.add(node, i64(1))
        builder.cbranch(builder.icmp_signed("<", following, end), loop, done)
        node.add_incoming(start, entry)
        node.add_incoming(following, loop)
        for before, now in zip(remain, after, strict=True):
            before.add_incoming(ir.Constant(words, [2**64 - 1] * 8), entry)
            before.add_incoming(now, loop)

        builder.position_at_end(done)
        for j, now in enumerate(after):
            builder.store(now, at(leaves, builder.add(lane, i64(8 * j)), words), align=8)
        return context.get_dummy_value()

    def typing(
        typingctx: Any, column: Any, threshold: Any, mask: Any, start: Any, end: Any, tile: Any, lane: Any, leaves: Any
    ) -> Any:
        args = column, threshold, mask, types.int64, types.int64, tile, types.int64, leaves
        return types.void(*args), codegen

    return intrinsic(typing)


_remaining_8, _remaining_32 = _remaining(1), _remaining(4)


@njit(cache=True, nogil=True)
def fill_columns(ints: Int32Array, words: WordArray, x: FloatArray, first: int, n: int, tile: FloatArray) -> None:
    """Fill ``tile`` (columns + 1, n lanes or more) with rows first .. first + n of ``x``, see `models.forest`."""
    n_columns = ints[_COLUMN_BITSET] - ints[_COLUMN_FEATURE]
    feature, bitset = ints[ints[_COLUMN_FEATURE] :], ints[ints[_COLUMN_BITSET] :]
    codes, bits = ints[ints[_COLUMN_CODES] :], ints[ints[_BITSETS] :]
    doubles = words.view(np.float64)
    fill_nan, fill_zero = doubles[ints[_FILL_NAN] :], doubles[ints[_FILL_ZERO] :]
    for c in range(n_columns):
        f = feature[c]
        row = tile[c]
        if bitset[c] < 0:
            nan, zero = fill_nan[c], fill_zero[c]
            for i in range(n):
                v = x[first + i, f]
                row[i] = nan if v != v else (v if abs(v) > ZERO else zero)
        else:
            for i in range(n):
                v = x[first + i, f]
                row[i] = np.nan
                # a fraction in (-1, 0) is category 0, as a C cast makes it
                if v > -1.0 and v < codes[c]:
                    code = int(v)
                    if (bits[bitset[c] + (code >> 5)] >> (code & 31)) & 1:
                        row[i] = 0.0
    for i in range(n):
        tile[n_columns, i] = 0.0


@njit(cache=True, nogil=True)
def score_block(ints: Int32Array, words: WordArray, n_trees: int, x: FloatArray, out: FloatArray) -> None:
    """Raw scores of many rows, `LANES` at a time: every node of every tree, without a branch."""
    n_columns = ints[_COLUMN_BITSET] - ints[_COLUMN_FEATURE]
    doubles = words.view(np.float64)
    start, column = ints[ints[_BLOCK_START] :], ints[ints[_BLOCK_COLUMN] :]
    threshold, mask = doubles[ints[_BLOCK_THRESHOLD] :], words[ints[_BLOCK_MASK] :]
    first_leaf, value = ints[ints[_TREE_LEAF] :], doubles[ints[_LEAF_VALUE] :]
    tile = np.empty((n_columns + 1, LANES), np.float64)
    leaves = np.empty(LANES, np.uint64)
    scores = np.empty(LANES, np.float64)
    for first in range(0, len(x), LANES):
        n = min(LANES, len(x) - first)
        fill_columns(ints, words, x, first, n, tile)
        for i in range(n):
            scores[i] = 0.0
        for t in range(n_trees):
            lane = 0
            while lane + 16 < n:
                _remaining_32(column, threshold, mask, start[t], start[t + 1], tile, lane, leaves)
                lane += 32
            while lane < n:
                _remaining_8(column, threshold, mask, start[t], start[t + 1], tile, lane, leaves)
                lane += 8
            of_tree = value[first_leaf[t] :]
            for i in range(n):
                scores[i] += of_tree[_lowest(leaves[i])]
        for i in range(n):
            out[first + i] = scores[i]


@njit(cache=True, nogil=True)
def score_walk(ints: Int32Array, words: WordArray, n_trees: int, x: FloatArray, out: FloatArray) -> None:
    """Raw scores by walking eight trees at once down to their leaves: for trees of any size."""
    n_columns = ints[_COLUMN_BITSET] - ints[_COLUMN_FEATURE]
    doubles = words.view(np.float64)
    column, child = ints[ints[_NODE_COLUMN] :], ints[ints[_NODE_CHILD] :]
    threshold, value = doubles[ints[_NODE_THRESHOLD] :], doubles[ints[_NODE_VALUE] :]
    root, number, depth = ints[ints[_TREE_ROOT] :], ints[ints[_TREE_NUMBER] :], ints[ints[_TREE_DEPTH] :]
    tile = np.empty((n_columns + 1, 1), np.float64)
    row = tile[:, 0]
    found = np.empty(n_trees, np.float64)
    for i in range(len(x)):
        fill_columns(ints, words, x, i, 1, tile)
        t = 0
        while t + 8 <= n_trees:
            a, b, c, d = root[t], root[t + 1], root[t + 2], root[t + 3]
            e, f, g, h = root[t + 4], root[t + 5], root[t + 6], root[t + 7]
            for _ in range(depth[t + 7]):
                a = child[a] + np.int32(not row[column[a]] <= threshold[a])
                b = child[b] + np.int32(not row[column[b]] <= threshold[b])
                c = child[c] + np.int32(not row[column[c]] <= threshold[c])
                d = child[d] + np.int32(not row[column[d]] <= threshold[d])
                e = child[e] + np.int32(not row[column[e]] <= threshold[e])
                f = child[f] + np.int32(not row[column[f]] <= threshold[f])
                g = child[g] + np.int32(not row[column[g]] <= threshold[g])
                h = child[h] + np.int32(not row[column[h]] <= threshold[h])
            found[number[t]], found[number[t + 1]] = value[a], value[b]
            found[number[t + 2]], found[number[t + 3]] = value[c], value[d]
            found[number[t + 4]], found[number[t + 5]] = value[e], value[f]
            found[number[t + 6]], found[number[t + 7]] = value[g], value[h]
            t += 8
        while t < n_trees:
            a = root[t]
            for _ in range(depth[t]):
                a = child[a] + np.int32(not row[column[a]] <= threshold[a])
            found[number[t]] = value[a]
            t += 1
        score = 0.0
        for t in range(n_trees):
            score += found[t]
        out[i] = score
