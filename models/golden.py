"""The golden batch of a package: inputs where predictors go wrong, and the raw scores that they must give."""

from __future__ import annotations

import numpy as np

from features.block import FloatArray
from models.modeltext import CATEGORICAL, ModelText

__all__ = ["TRAPS", "inputs", "same_bits"]

#: Values on which implementations of the same trees differ: missing, infinite, nearly zero, odd as a category.
TRAPS = (
    *(np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-35, -1e-35, 1.0000000180025095e-35, 1.1e-35, -1.1e-35, 5e-324, 1e300),
    *(-1e300, 1.0, -1.0, -0.5, 0.5, 0.999999, 2.0, 31.0, 32.0, 63.5, 64.0, 2147483647.0, 2147483648.0, -2147483649.0),
    *(4294967296.0, 1e19),
)


def inputs(model: ModelText, rows: int = 256, seed: int = 0) -> FloatArray:
    """(rows, d) float64: values on, just above and just below thresholds, category codes and `TRAPS`, mixed by seed."""
    rng = np.random.default_rng(seed)
    pools: list[list[float]] = [[] for _ in range(model.n_features)]
    for tree in model.trees:
        for node in range(tree.n_leaves - 1):
            if tree.decision[node] & CATEGORICAL:
                codes = 32 * len(tree.bitset(node)) + 2
                pools[tree.feature[node]].extend(rng.integers(-1, codes, 4).astype(float))
            else:
                pools[tree.feature[node]].append(float(tree.threshold[node]))
    out = np.empty((rows, model.n_features), dtype=np.float64)
    for j, pool in enumerate(pools):
        values = np.asarray(pool if pool else [0.0])
        on = rng.choice(values, rows)
        middle = np.clip(np.where(np.isfinite(on), on, 0.0), -1e100, 1e100)
        spread = middle + rng.normal(size=rows) * (np.ptp(np.clip(values, -1e6, 1e6)) + 1.0)
        kind = rng.integers(0, 5, rows)
        out[:, j] = np.select(
            [kind == 0, kind == 1, kind == 2, kind == 3],
            [on, np.nextafter(on, np.inf), np.nextafter(on, -np.inf), rng.choice(np.asarray(TRAPS), rows)],
            spread,
        )
    return out


def same_bits(a: FloatArray, b: FloatArray) -> bool:
    """Whether two float64 arrays are the same, bit for bit."""
    return a.shape == b.shape and bool(np.array_equal(a.view(np.int64), b.view(np.int64)))
