"""Compiles the kernels that a worker needs, in processes of their own, so that the demo's start can overlap it.

numba keeps what it has compiled beside the source, so this takes some seconds once and nothing afterwards. Two
processes share it: one begins with the windows by terminal, the largest part, the other with everything else; what
one has compiled the other finds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.pipelines.fraud_stages import StageSettings

__all__ = ["PARTS", "compilations", "main"]

PARTS = ("windows", "model")


@contextmanager
def compilations() -> Iterator[Callable[[], int]]:
    """Yields how many kernels numba has compiled inside: those it finds compiled do not count."""
    from numba.core import event

    recorder = event.RecordingListener()
    with event.install_listener("numba:compile", recorder):
        yield lambda: sum(happened.is_start for _, happened in recorder.buffer)


def main() -> int:
    """Compiles everything, beginning with the part that the command line names; prints ``compiled N``."""
    with compilations() as count:
        _warm()
        print(f"compiled {count()}", flush=True)
    return 0


def _warm() -> None:
    from streams.config import Settings
    from streams.fraud_worker import make_pipeline, stage_settings
    from streams.pipelines.fraud_stages import TerminalStage, empty_rows

    settings = Settings()
    stages = stage_settings(settings)
    if sys.argv[1] == "windows":
        TerminalStage(stages).windows(empty_rows(stages), None, None)
    else:
        _warm_model()
        _warm_rows(stages)
    make_pipeline(settings).warm()


def _warm_model() -> None:
    """Loads a model of a few trees as a package is loaded."""
    import lightgbm
    import numpy as np

    from models.auto import choose
    from models.explain import explainer_of

    x = np.random.default_rng(1).random((400, 3))
    data = lightgbm.Dataset(x, x[:, 0] > 0.5, params={"verbosity": -1})
    params = {"objective": "binary", "num_leaves": 7, "num_threads": 1, "verbosity": -1}
    text = lightgbm.train(params, data, 3).model_to_string()
    choose(text)
    explainer_of(text)


def _warm_rows(stages: StageSettings) -> None:
    """A few rows through the card stage, the shuffle and the encoder."""
    import numpy as np

    from features.schema import TRANSACTIONS
    from streams.encode import ScoreEncoder, decimal_keys, source_headers
    from streams.offline import block_of
    from streams.partitioner import partitions_of
    from streams.pipelines.fraud_stages import CardStage
    from streams.shuffle import Sent, Source, pack, unpack

    n = np.arange(9, dtype=np.int64)
    columns = {"transaction_id": n, "event_time": n, "card_id": n, "terminal_id": n, "amount": n / 4}
    rows = CardStage(stages).process(block_of(TRANSACTIONS, columns)).block
    targets = partitions_of(rows.ids["terminal_id"], 2)
    for _, value in pack("rows", [Sent(Source(TRANSACTIONS.topic, "warm", 0), rows, 0)], targets, 2):
        unpack(value)
    vectors, scores = np.zeros((len(rows), len(stages.features))), np.zeros(len(rows))
    late = rows.columns["late"].astype(np.bool_)
    ScoreEncoder(stages.features.names).encode(rows, features=vectors, late=late, score=scores, raw=scores)
    decimal_keys(n)
    source_headers(TRANSACTIONS.topic, n, n)
