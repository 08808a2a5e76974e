"""Why a score is what it is: exact SHAP values of every feature, as LightGBM's ``pred_contrib`` defines them.

The values are those of path-dependent TreeSHAP (Lundberg et al., Nature Machine Intelligence 2020): where a feature is
not known, a row goes down both branches of a node, in proportion to the training rows that went there. For a leaf of
value v, and each feature j that decides on its path, let o_j be 1 if the row satisfies all that j decides there, else
0, and z_j the product of the shares of its branches there. The Shapley weight of a coalition of k among m features is
a beta integral, |k|! (m - 1 - |k|)! / m! = integral of t^k (1 - t)^(m-1-k) over [0, 1], hence feature i gets

    v (o_i - z_i)  integral of  prod_{j != i} (t o_j + (1 - t) z_j)  dt,

a polynomial of degree m - 1 in t, which Gauss-Legendre quadrature with ceil(m / 2) points integrates exactly. (That
Shapley values of trees are such integrals is Owen's multilinear extension; sums over subtrees in place of paths are
Linear TreeSHAP's idea, Yu et al., NeurIPS 2022.)

At one point t, the product over *all* features of a path grows edge by edge: an edge of a feature with (o, z) above and
(o', z') including it multiplies by (t o' + (1 - t) z') / (t o + (1 - t) z), with (1, 1) above where the feature is new.
So it is carried down the tree once. At the leaves it is multiplied by v, and on the way back summed: G is the sum
of the leaves below an edge. Feature i then gets, from each of its edges, at each point of weight w,

    w G [(o' - z') / (t o' + (1 - t) z')  -  (o - z) / (t o + (1 - t) z)],

the sum of which along a path telescopes to the path's own term. The bracket is 0 where o = 0; else, since 1 - z =
(1 - (t + (1 - t) z)) / (1 - t), it is -1 / ((1 - t) (t + (1 - t) z)), plus 1 / ((1 - t) (t + (1 - t) z')) where o' = 1.
All factors depend on the model alone and are made when it is loaded. A row costs O(nodes * points) per tree.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from features.block import FloatArray, IntArray
from models import golden
from models.errors import UnsupportedModelError
from models.explain_kernels import FIRST_WIDTH, LANES, REPEAT_WIDTH, contributions
from models.forest import columns_alone
from models.kernels import fill_columns
from models.lightgbm import LightGBMPredictor
from models.modeltext import CATEGORICAL, ModelText, Tree, load_booster, parse
from models.predictor import as_matrix

__all__ = ["Explainer", "LightGBMExplainer", "TreeExplainer", "explainer_of"]

logger = logging.getLogger("headrace.models")

#: rows of the golden batch that are compared with LightGBM's when a model is loaded, and how far they may differ, as a
#: part of the largest value
_CHECK_ROWS, _TOLERANCE = 16, 1e-9
#: doubles that the tables of a model may take, 512 MB: some hundred times a model of 300 trees x 31 leaves
_TABLE_MAX = 2**26


class Explainer(Protocol):
    """SHAP values of rows. Implementations are safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """Short name of the implementation, as in benchmarks and logs."""
        ...

    def contributions(self, x: FloatArray) -> FloatArray:
        """(n, d + 1) float64 of ``x`` (n, d) float64, NaN and infinities included: what each feature adds to the raw
        score (the log-odds of a binary model), and last the expected raw score; a row adds up to its raw score.

        A row's values are the same, bit for bit, whatever rows are beside it. ModelError when d is not the model's.
        """
        ...


class LightGBMExplainer:
    """``Booster.predict(pred_contrib=True)``, one thread: for every model that LightGBM can explain, and slow."""

    name = "lightgbm"

    def __init__(self, model_text: str) -> None:
        self._booster = load_booster(model_text)

    def contributions(self, x: FloatArray) -> FloatArray:
        """See `Explainer`; lightgbm's error for a model that it does not explain."""
        x = as_matrix(x, int(self._booster.num_feature()))
        if len(x) == 0:
            return np.empty((0, x.shape[1] + 1), np.float64)
        return np.asarray(self._booster.predict(x, pred_contrib=True, num_threads=1), dtype=np.float64)


class TreeExplainer:
    """The kernel of `models.explain_kernels` over tables made from a model."""

    name = "compiled"

    def __init__(self, model: ModelText) -> None:
        """UnsupportedModelError for models that `flatten` refuses too, where training counts are missing, and where
        the tables would be too large."""
        self._forest, columns = columns_alone(model)
        for number, tree in enumerate(model.trees):
            counted = len(tree.leaf_count) == tree.n_leaves and len(tree.node_count) == tree.n_leaves - 1
            if tree.n_leaves > 1 and not (counted and bool(np.all(tree.node_count > 0))):
                raise UnsupportedModelError(
                    f"model: tree {number} does not say how many training rows came to its nodes; use lightgbm"
                )
        self._tables = _tables(model, columns)

    @property
    def n_features(self) -> int:
        """Columns of the matrices it explains."""
        return self._forest.n_features

    def contributions(self, x: FloatArray) -> FloatArray:
        """See `Explainer`."""
        forest, tables = self._forest, self._tables
        x = as_matrix(x, forest.n_features)
        n = len(x)
        tile = np.zeros((tables.n_columns + 1, -(-n // LANES) * LANES), np.float64)
        fill_columns(forest.ints, forest.words, x, 0, n, tile)
        out = np.empty((n, forest.n_features + 1), np.float64)
        contributions(
            tables.trees, tables.nodes, tables.thresholds, tables.table, tables.weights, tables.base, tile, out
        )
        return out


def explainer_of(model_text: str) -> Explainer | None:
    """What explains this model: the kernel, if it agrees with LightGBM on a few golden rows, else LightGBM itself, said
    in the log; None, said too, for a model whose scores LightGBM does not explain."""
    from lightgbm.basic import LightGBMError

    model = parse(model_text)
    oracle = LightGBMExplainer(model_text)
    x = golden.inputs(model, rows=_CHECK_ROWS)
    try:
        expected = oracle.contributions(x)
    except LightGBMError as error:
        logger.warning("no reasons: LightGBM does not explain this model (%s)", error)
        return None
    raw = np.asarray(LightGBMPredictor(model_text).predict_raw(x))
    if not _agree(expected.sum(axis=1), raw):
        logger.warning("no reasons: LightGBM's explanations of this model do not add up to its scores")
        return None
    try:
        compiled = TreeExplainer(model)
    except UnsupportedModelError as error:
        logger.warning("reasons are made by LightGBM, slowly: %s", error)
        return oracle
    if not _agree(compiled.contributions(x), expected):
        logger.warning("reasons are made by LightGBM, slowly: the compiled ones differ on the golden batch")
        return oracle
    return compiled


def _agree(a: FloatArray, b: FloatArray) -> bool:
    return bool(np.allclose(a, b, rtol=0.0, atol=_TOLERANCE * max(1.0, float(np.abs(b).max(initial=0.0)))))


@dataclass(frozen=True, slots=True)
class _Tables:
    """The arguments of `contributions`, and how many columns the tile has."""

    n_columns: int
    trees: IntArray
    nodes: IntArray
    thresholds: FloatArray
    table: FloatArray
    weights: FloatArray
    base: float


def _tables(model: ModelText, columns: list[list[int]]) -> _Tables:
    trees: list[tuple[int, int, int, int]] = []
    nodes: list[IntArray] = []
    thresholds: list[FloatArray] = []
    table: list[FloatArray] = []
    weights: list[FloatArray] = []
    base, at_node, at_table, at_weight = 0.0, 0, 0, 0
    for tree, of_nodes in zip(model.trees, columns, strict=True):
        if tree.n_leaves == 1:
            base += float(tree.leaf_value[0])
            continue
        base += float(np.sum(tree.leaf_count / tree.node_count[0] * tree.leaf_value))
        paths = _paths(tree)
        t, w = _quadrature(paths.features_max)
        doubles = _factors(tree, paths, t, w)
        widths = len(t) * np.where(paths.before != 0, REPEAT_WIDTH, FIRST_WIDTH)
        starts = at_table + np.cumsum(widths) - widths
        column = np.array(of_nodes, np.int64)[paths.node]
        nodes.append(np.stack([column, tree.feature[paths.node], paths.slot, paths.before, starts], axis=1))
        categorical = (tree.decision[paths.node] & CATEGORICAL) != 0
        thresholds.append(np.where(categorical, 0.0, tree.threshold[paths.node]))
        table.append(doubles)
        weights.append(-w / (1.0 - t))
        trees.append((at_node, at_node + len(paths.node), len(t), at_weight))
        at_node, at_weight = at_node + len(paths.node), at_weight + len(t)
        at_table += len(doubles)
        if at_table > _TABLE_MAX:
            raise UnsupportedModelError(
                f"model: its tables would take more than {_TABLE_MAX * 8 >> 20} MB; use lightgbm"
            )
    return _Tables(
        1 + max((max(of_nodes, default=-1) for of_nodes in columns), default=-1),
        np.array(trees, np.int64).reshape(-1, 4),
        np.concatenate([np.empty((0, 5), np.int64), *nodes]),
        np.concatenate([np.empty(0), *thresholds]),
        np.concatenate([np.empty(0), *table]),
        np.concatenate([np.empty(0), *weights]),
        base,
    )


@dataclass(frozen=True, slots=True)
class _Paths:
    """A tree's inner nodes from the root downwards, (k,) each: the node's number, its slot, the slot of the last edge
    above of the same feature (0: none), and the share of the training rows z of that feature down to there (1: none).

    ``to`` (k, 2): the share of a node's training rows that went to its left and its right child.
    ``features_max``: different features on the path to a leaf, at most.
    """

    node: IntArray
    slot: IntArray
    before: IntArray
    share: FloatArray
    to: FloatArray
    features_max: int


def _paths(tree: Tree) -> _Paths:
    """Without recursion, since a tree may be a chain of thousands of nodes."""
    feature = tree.feature.tolist()
    children = np.stack([tree.left, tree.right], axis=1)
    counts = np.where(children >= 0, tree.node_count[np.maximum(children, 0)], tree.leaf_count[-1 - children])
    shares = counts / tree.node_count[:, None]
    both, to = children.tolist(), shares.tolist()
    node: list[int] = []
    slot: list[int] = []
    before: list[int] = []
    share: list[float] = []
    features_max = 1
    # node, its slot, and by feature the last edge of the path: its slot, and the share down to there
    stack: list[tuple[int, int, dict[int, tuple[int, float]]]] = [(0, 0, {})]
    while stack:
        i, at, path = stack.pop()
        edge, z = path.get(feature[i], (0, 1.0))
        below = 2 * len(node) + 1
        node.append(i)
        slot.append(at)
        before.append(edge)
        share.append(z)
        for side in (0, 1):
            deeper = path | {feature[i]: (below + side, z * to[i][side])}
            features_max = max(features_max, len(deeper))
            if both[i][side] >= 0:
                stack.append((both[i][side], below + side, deeper))
    z_of = np.array(share, dtype=np.float64)
    return _Paths(np.array(node), np.array(slot), np.array(before), z_of, shares[node], features_max)


def _quadrature(features: int) -> tuple[FloatArray, FloatArray]:
    """Points and weights on [0, 1], exact for the polynomials of so many features on a path."""
    t, w = np.polynomial.legendre.leggauss((features + 1) // 2)
    return (t + 1.0) / 2.0, w / 2.0


def _factors(tree: Tree, paths: _Paths, t: FloatArray, w: FloatArray) -> FloatArray:
    """The doubles of all nodes, node by node and point by point, in the order in which `explain_kernels` reads them;
    where a child is a leaf its value is in the factors that lead to it."""
    repeated = paths.before != 0
    z = paths.share[:, None]
    above = t + (1.0 - t) * z
    out = np.zeros((len(repeated), len(t), REPEAT_WIDTH), np.float64)
    for side, children in enumerate((tree.left[paths.node], tree.right[paths.node])):
        share = paths.to[:, side, None]
        value = np.where(children < 0, tree.leaf_value[-1 - children], 1.0)[:, None]
        below = t + (1.0 - t) * (z * share)
        out[:, :, 2 * side] = value * (below / above)
        out[:, :, 2 * side + 1] = value * ((1.0 - t) * (z * share) / above)
        out[:, :, 4 + side] = w / ((1.0 - t) * below)
        out[:, :, 7 + side] = value * share
    out[:, :, 6] = -w / ((1.0 - t) * above)
    # a feature's first edge on its path has fewer
    read: FloatArray = out[repeated[:, None, None] | np.tile(np.arange(REPEAT_WIDTH) < FIRST_WIDTH, (len(t), 1))]
    return read
