"""The kernel of `models.explain`, which has the mathematics: SHAP values of rows, eight at once, tree by tree.

Written as LLVM vectors like `models.kernels`: the eight rows of a vector are decided by masks of one bit each. A row's
values are the same whatever rows are beside it. Scratch is allocated by each call, so calls may run at once in several
threads.

Whatever the machine code depends on is in this file, since numba's cache notices changes of this file only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from features.block import FloatArray, IntArray

__all__ = ["FIRST_WIDTH", "LANES", "REPEAT_WIDTH", "contributions"]

#: rows of a vector
LANES = 8
#: rows that go through a tree before the next one: the tree's tables are then read from the nearest cache
_GROUP = 64

#: doubles per node and quadrature point where the feature is new on the path, and where it is there again
FIRST_WIDTH, REPEAT_WIDTH = 6, 9

_I1, _I8, _I64, _F64 = ir.IntType(1), ir.IntType(8), ir.IntType(64), ir.DoubleType()
_DOUBLES, _BITS = ir.VectorType(_F64, LANES), ir.VectorType(_I1, LANES)


class _Code:
    """The few moves that the intrinsics are made of."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.context, self.builder, self.signature, self.args = context, builder, signature, args

    def array(self, i: int) -> Any:
        """Where the data of argument i are."""
        return self.context.make_array(self.signature.args[i])(self.context, self.builder, self.args[i]).data

    def load(self, data: Any, at: Any) -> Any:
        """Eight doubles."""
        return self.builder.load(self._vector(data, at), align=8)

    def store(self, value: Any, data: Any, at: Any) -> None:
        """Eight doubles."""
        self.builder.store(value, self._vector(data, at), align=8)

    def _vector(self, data: Any, at: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(data, [at]), _DOUBLES.as_pointer())

    def every(self, value: Any) -> Any:
        """A double in all eight places."""
        number = ir.IntType(32)
        one = self.builder.insert_element(ir.Constant(_DOUBLES, ir.Undefined), value, number(0))
        return self.builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(number, LANES), [0] * LANES))

    def constants(self, data: Any, at: Any, n: int) -> list[Any]:
        """n doubles from ``at`` on, each in all places."""
        return [
            self.every(self.builder.load(self.builder.gep(data, [self.builder.add(at, _I64(i))]))) for i in range(n)
        ]

    def bits(self, mask: Any) -> Any:
        """A byte as eight booleans."""
        return self.builder.bitcast(mask, _BITS)

    def points(self, n: Any, body: Any, carried: Any = None) -> Any:
        """``body(point, carried) -> carried`` for points 0 .. n, one at least; returns what is carried at the end."""
        builder = self.builder
        entry = builder.block
        loop, done = builder.append_basic_block("point"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        point = builder.phi(_I64)
        value = builder.phi(_DOUBLES) if carried is not None else None
        after = body(point, value)
        following = builder.add(point, _I64(1))
        end = builder.block
        builder.cbranch(builder.icmp_signed("<", following, n), loop, done)
        point.add_incoming(_I64(0), entry)
        point.add_incoming(following, end)
        if value is not None:
            value.add_incoming(carried, entry)
            value.add_incoming(after, end)
        builder.position_at_end(done)
        return after


@intrinsic
def _goes_left(typingctx: Any, tile: Any, at: Any, threshold: Any) -> Any:
    """Bit i: ``tile.flat[at + i] <= threshold``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(context, builder, signature, args)
        values = code.load(code.array(0), args[1])
        return builder.bitcast(builder.fcmp_ordered("<=", values, code.every(args[2])), _I8)

    return types.uint8(tile, types.int64, types.float64), codegen


def _down(width: int) -> Any:
    """``(products, above, below, left, there, table, at, points)``: the two children's products from their parent's.

    ``left``: who goes left; ``there``: who satisfies what is above by the same feature. The children are at ``below``,
    side by side.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(context, builder, signature, args)
        products, table = code.array(0), code.array(5)
        above, below, at, points = args[1], args[2], args[6], args[7]
        left, there = code.bits(args[3]), code.bits(args[4])
        right_at = builder.add(below, builder.mul(points, _I64(LANES)))

        def body(point: Any, _: Any) -> None:
            lanes = builder.mul(point, _I64(LANES))
            c = code.constants(table, builder.add(at, builder.mul(point, _I64(width))), width)
            factor_left, factor_right = builder.select(left, c[0], c[1]), builder.select(left, c[3], c[2])
            if width == REPEAT_WIDTH:
                factor_left = builder.select(there, factor_left, c[7])
                factor_right = builder.select(there, factor_right, c[8])
            product = code.load(products, builder.add(above, lanes))
            code.store(builder.fmul(product, factor_left), products, builder.add(below, lanes))
            code.store(builder.fmul(product, factor_right), products, builder.add(right_at, lanes))

        code.points(points, body)
        return context.get_dummy_value()

    def typing(
        typingctx: Any, products: Any, above: Any, below: Any, left: Any, there: Any, table: Any, at: Any, points: Any
    ) -> Any:
        i64, u8 = types.int64, types.uint8
        return types.void(products, i64, i64, u8, u8, table, i64, i64), codegen

    return intrinsic(typing)


def _up(width: int) -> Any:
    """``(products, above, below, left, there, table, at, points, weights, weight, out, to)``: the sum of the children
    into their parent, and what the node's feature gets from them, added to eight doubles of ``out`` at ``to``.

    ``weights[weight ..]`` is what all get per point where the feature is new on the path.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(context, builder, signature, args)
        products, table, weights, out = code.array(0), code.array(5), code.array(8), code.array(10)
        above, below, at, points, weight, to = args[1], args[2], args[6], args[7], args[9], args[11]
        left, there = code.bits(args[3]), code.bits(args[4])
        right_at = builder.add(below, builder.mul(points, _I64(LANES)))

        def body(point: Any, gathered: Any) -> Any:
            lanes = builder.mul(point, _I64(LANES))
            first = builder.add(at, builder.mul(point, _I64(width)))
            of_left, of_right = code.constants(table, builder.add(first, _I64(4)), 2)
            if width == REPEAT_WIDTH:
                [of_all] = code.constants(table, builder.add(first, _I64(6)), 1)
            else:
                [of_all] = code.constants(weights, builder.add(weight, point), 1)
            of_hot = builder.select(left, of_left, of_right)
            sum_left = code.load(products, builder.add(below, lanes))
            sum_right = code.load(products, builder.add(right_at, lanes))
            whole = builder.fadd(sum_left, sum_right)
            code.store(whole, products, builder.add(above, lanes))
            hot = builder.select(left, sum_left, sum_right)
            return builder.fadd(gathered, builder.fadd(builder.fmul(of_all, whole), builder.fmul(of_hot, hot)))

        nothing = ir.Constant(_DOUBLES, [0.0] * LANES)
        gained = code.points(points, body, nothing)
        gained = builder.select(there, gained, nothing)
        code.store(builder.fadd(code.load(out, to), gained), out, to)
        return context.get_dummy_value()

    def typing(
        typingctx: Any,
        products: Any,
        above: Any,
        below: Any,
        left: Any,
        there: Any,
        table: Any,
        at: Any,
        points: Any,
        weights: Any,
        weight: Any,
        out: Any,
        to: Any,
    ) -> Any:
        i64, u8 = types.int64, types.uint8
        args = products, i64, i64, u8, u8, table, i64, i64, weights, i64, out, i64
        return types.void(*args), codegen

    return intrinsic(typing)


_down_first, _down_repeat = _down(FIRST_WIDTH), _down(REPEAT_WIDTH)
_up_first, _up_repeat = _up(FIRST_WIDTH), _up(REPEAT_WIDTH)


@njit(cache=True, nogil=True)
def contributions(
    trees: IntArray,
    nodes: IntArray,
    thresholds: FloatArray,
    table: FloatArray,
    weights: FloatArray,
    base: float,
    tile: FloatArray,
    out: FloatArray,
) -> None:
    """Fill ``out`` (n, d + 1) from ``tile`` (columns + 1, n rounded up to `LANES`), see `models.kernels.fill_columns`.

    - ``trees`` (T, 4): first node, end of the nodes, quadrature points, where its weights begin in ``weights``;
    - ``nodes`` (P, 5), inner nodes, each tree's from its root downwards: column, feature, slot (0 the root, 2 j + 1 and
      2 j + 2 the children of the tree's node j), slot of the last edge above that the same feature decided (0: none),
      where its doubles begin in ``table``; ``thresholds`` (P,);
    - ``base``: the last column of ``out``.
    """
    n, width = out.shape[0], tile.shape[1]
    n_features = out.shape[1] - 1
    slots = 1
    points_max = 1
    for t in range(trees.shape[0]):
        slots = max(slots, 2 * (trees[t, 1] - trees[t, 0]) + 1)
        points_max = max(points_max, trees[t, 2])
    products = np.empty(slots * points_max * LANES, np.float64)
    there = np.empty(slots, np.uint8)
    lefts = np.empty(slots, np.uint8)
    gathered = np.empty(_GROUP * n_features, np.float64)
    for group in range(0, n, _GROUP):
        group_end = min(n, group + _GROUP)
        gathered[:] = 0.0
        for t in range(trees.shape[0]):
            first, end, points, weight = trees[t, 0], trees[t, 1], trees[t, 2], trees[t, 3]
            step = points * LANES
            for row in range(group, group_end, LANES):
                products[:step] = 1.0
                there[0] = 255
                for j in range(first, end):
                    slot, before = nodes[j, 2], nodes[j, 3]
                    left = _goes_left(tile, nodes[j, 0] * width + row, thresholds[j])
                    lefts[j - first] = left
                    above = there[before]
                    below = 2 * (j - first) + 1
                    there[below] = above & left
                    there[below + 1] = above & ~left
                    if before == 0:
                        _down_first(products, slot * step, below * step, left, above, table, nodes[j, 4], points)
                    else:
                        _down_repeat(products, slot * step, below * step, left, above, table, nodes[j, 4], points)
                for k in range(end - first):
                    j = end - 1 - k
                    slot, before = nodes[j, 2], nodes[j, 3]
                    left = lefts[j - first]
                    above = there[before]
                    below = 2 * (j - first) + 1
                    to = (row - group) * n_features + nodes[j, 1] * LANES
                    if before == 0:
                        _up_first(
                            products, slot * step, below * step, left, above, table, nodes[j, 4], points,
                            weights, weight, gathered, to,
                        )  # fmt: skip
                    else:
                        _up_repeat(
                            products, slot * step, below * step, left, above, table, nodes[j, 4], points,
                            weights, weight, gathered, to,
                        )  # fmt: skip
        for i in range(group, group_end):
            lane = (i - group) % LANES
            at = (i - group - lane) * n_features + lane
            for f in range(n_features):
                out[i, f] = gathered[at + f * LANES]
            out[i, n_features] = base
