"""Compiles the kernels that a worker needs, in processes of their own, so that the demo's start can overlap it.

numba keeps what it has compiled beside the source, so this takes seconds once and nothing afterwards. Two processes
work from both ends: one begins with the windows by terminal, the largest part, the other with the model's.
"""

from __future__ import annotations

import sys

__all__ = ["PARTS", "main"]

PARTS = ("windows", "model")


def main() -> int:
    """Compiles everything, beginning with the part that the command line names."""
    from streams.config import Settings
    from streams.fraud_worker import make_pipeline, stage_settings
    from streams.pipelines.fraud_stages import TerminalStage, empty_rows

    settings = Settings()
    if sys.argv[1] == "windows":
        stages = stage_settings(settings)
        TerminalStage(stages).process(empty_rows(stages), None, None)
    else:
        _warm_model()
    make_pipeline(settings).warm()
    return 0


def _warm_model() -> None:
    """Loads a model of a few trees as a package is loaded."""
    import lightgbm
    import numpy as np

    from models.auto import choose

    x = np.random.default_rng(1).random((400, 3))
    data = lightgbm.Dataset(x, x[:, 0] > 0.5, params={"verbosity": -1})
    params = {"objective": "binary", "num_leaves": 7, "num_threads": 1, "verbosity": -1}
    choose(lightgbm.train(params, data, 3).model_to_string())
