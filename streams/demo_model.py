"""The demo's model: history of its world, features by the pipeline's own stages, LightGBM, a registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from features.block import Block
from features.fraud import DEFAULT
from features.schema import TRANSACTION_LABELS, TRANSACTIONS
from models.modeltext import load_booster
from models.registry import Registry
from models.train import Split, Trained, train_fraud
from streams.demo_plan import HISTORY_DAYS, TEST_DAYS, TRAIN_DAYS, Plan
from streams.offline import OfflineFeatures, block_of, feature_matrix, fraud_rows
from streams.pipelines.fraud_stages import StageSettings

__all__ = ["History", "Reasons", "Stopped", "add_model", "make_features", "make_history", "train"]


class Stopped(Exception):
    """Ctrl-C or SIGTERM: not an error."""


@dataclass(frozen=True, slots=True)
class History:
    """Transactions of the days before the demo, and the labels known by their end."""

    transactions: Block
    labels: Block

    @property
    def frauds(self) -> int:
        """Positive labels."""
        return int(np.count_nonzero(self.labels.columns["is_fraud"]))


def make_history(plan: Plan) -> History:
    """`HISTORY_DAYS` of the world."""
    transactions, labels = plan.world.history(HISTORY_DAYS)
    known = labels["label_time"] < plan.world.time_of(HISTORY_DAYS)
    return History(
        block_of(TRANSACTIONS, transactions),
        block_of(TRANSACTION_LABELS, {name: column[known] for name, column in labels.items()}),
    )


def make_features(history: History, settings: StageSettings, stop: threading.Event) -> OfflineFeatures:
    """The features of the history, by the stages that run live."""

    def progress(_rows: int) -> None:
        if stop.is_set():
            raise Stopped

    return feature_matrix(history.transactions, history.labels, settings, progress=progress)


def train(
    plan: Plan, history: History, features: OfflineFeatures, stop: threading.Event, note: Callable[[str], None]
) -> Trained:
    """A model on four weeks, tested on the last of which the labels are known."""

    def progress(done: int, total: int) -> None:
        if stop.is_set():
            raise Stopped
        note(f"LightGBM, {100 * done // total} %")

    world, row = plan.world, features.row
    days = [world.time_of(day) for day in (*TRAIN_DAYS, *TEST_DAYS)]
    card = history.transactions.ids["card_id"].ints
    assert card is not None, "the simulator's ids are integers"
    return train_fraud(
        features.matrix,
        fraud_rows(history.transactions, history.labels)[row],
        history.transactions.event_time_ms[row],
        card[row],
        DEFAULT.names,
        Split(*days),
        # a second thread saves a second on an idle machine and costs ten on a busy one
        num_threads=1,
        progress=progress,
    )


def add_model(trained: Trained, folder: Path) -> str:
    """Into a new registry as its champion; returns its label."""
    draft = trained.draft("demo", DEFAULT.schema_hash, datetime.now(UTC).isoformat(timespec="seconds"))
    return Registry(folder).add(draft, "champion").label


class Reasons:
    """The feature that raised a score most, in words; of the worker's own reasons where the record has them."""

    def __init__(self, trained: Trained) -> None:
        self._booster = load_booster(trained.model_text)
        self._names = trained.features

    def __call__(self, record: Mapping[str, Any]) -> str:
        if record["reasons"]:
            first = record["reasons"][0]
            return f"{first['feature']} {first['value']:,.3g}"
        values = record["features"]
        x = np.array([[np.nan if values[name] is None else values[name] for name in self._names]])
        contributions = np.asarray(self._booster.predict(x, pred_contrib=True, num_threads=1))[0, :-1]
        name = self._names[int(np.argmax(contributions))]
        return f"{name} {values[name]:,.4g}"
