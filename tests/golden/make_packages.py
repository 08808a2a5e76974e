"""Writes the golden model package of what packages are now, once: `python -m tests.golden.make_packages` at the root.

A golden package is never written again: what an old headrace wrote must stay loadable. ``package_v1`` is of the first
packages, which had no flattened forest and said nothing of intervals, conformal sets, references or categories.
"""

from __future__ import annotations

from pathlib import Path

import lightgbm
import numpy as np

from models.package import Draft, write_files

FOLDER = Path(__file__).parent


def model_text() -> str:
    """Five small trees on two numbers and a category."""
    rng = np.random.default_rng(11)
    x = np.column_stack([rng.normal(size=(600, 2)), rng.integers(0, 9, 600)])
    y = (x[:, 0] + (x[:, 2] % 3 == 1) + rng.normal(size=600) > 0.5).astype(np.int8)
    data = lightgbm.Dataset(x, y, feature_name=["a", "b", "kind"], categorical_feature=["kind"])
    params = {"objective": "binary", "num_leaves": 4, "num_threads": 1, "verbosity": -1, "min_data_per_group": 10}
    text: str = lightgbm.train(params, data, 5).model_to_string()
    return text


def main() -> None:
    """Writes ``package_v1_forest``."""
    folder = FOLDER / "package_v1_forest"
    folder.mkdir()
    draft = Draft(
        name="golden",
        model_text=model_text(),
        features=("a", "b", "kind"),
        schema_hash="5c4e",
        created_at="2024-05-01T00:00:00Z",
        metrics={"auc": 0.75},
        evaluation={"intervals": {"auc": {"low": 0.7, "high": 0.8, "deviation": 0.03}}},
        conformal={"alpha": 0.1, "fraud_from": -1.5, "legitimate_to": None},
        reference={"rows": 1, "features": {}, "score": {"edges": [0.5, 0.5], "counts": [1], "missing": 0}},
        categories={"kind": {"shop": 0, "web": 1}},
    )
    write_files(folder, draft, 1)


if __name__ == "__main__":
    main()
