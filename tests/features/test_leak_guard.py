"""The published week: the rich set beats the default one, and neither so much that a label must have leaked.

Average precision above .82 on this week takes a label that was not known then; a set that reads one shows it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from features.block import Block, BoolArray, IntArray
from features.declare import FeatureSet, by
from features.fraud import DEFAULT, RICH
from models.train import DAY_MS, Split, train_fraud
from streams.offline import feature_matrix, fraud_rows, read_events, read_labels
from streams.pipelines.fraud_stages import StageSettings

LEAK = 0.82
AUGUST_15 = 1_534_291_200_000
WEEK = Split(AUGUST_15 - 21 * DAY_MS, AUGUST_15 - 14 * DAY_MS, AUGUST_15 - 7 * DAY_MS, AUGUST_15)
#: the longest look back, 30 days and a delay of 7, before the training begins
BEGIN_MS = WEEK.train_from - 37 * DAY_MS


@pytest.fixture(scope="module")
def history(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Block, Block]:
    folder = tmp_path_factory.mktemp("weeks")
    recent = pq.read_table(
        data_dir / "fraud_transactions.parquet",
        filters=(pc.field("event_time") > BEGIN_MS) & (pc.field("event_time") < WEEK.test_to),
    )
    labels = pq.read_table(data_dir / "fraud_labels.parquet")
    labels = labels.filter(pc.is_in(labels["transaction_id"], recent["transaction_id"]))
    pq.write_table(recent, folder / "events.parquet")
    pq.write_table(labels, folder / "labels.parquet")
    return read_events(folder / "events.parquet"), read_labels(folder / "labels.parquet")


def average_precision(features: FeatureSet, events: Block, labels: Block, y: BoolArray) -> float:
    made = feature_matrix(events, labels, StageSettings(features))
    assert len(made.row) == len(events)
    cards: IntArray = events.ids["card_id"].keys()[:, 1].astype(np.int64)
    events, y, cards = events.take(made.row), y[made.row], cards[made.row]
    return train_fraud(made.matrix, y, events.event_time_ms, cards, features.names, WEEK).metrics["average_precision"]


def test_the_rich_set_beats_the_default_one_without_a_leak(history: tuple[Block, Block]) -> None:
    events, labels = history
    y = fraud_rows(events, labels)
    default, rich = (average_precision(features, events, labels, y) for features in (DEFAULT, RICH))
    assert 0.65 < default < 0.75
    assert default + 0.015 < rich < LEAK


def test_a_label_that_is_not_yet_known_shows(history: tuple[Block, Block]) -> None:
    events, labels = history
    y = fraud_rows(events, labels)
    at_once = labels.take(np.arange(len(labels)))
    at_once.columns["label_time"] = labels.columns["label_time"] - 7 * DAY_MS
    leaky = FeatureSet("leaky", [*DEFAULT.features, by("terminal_id").risk("7d", delay="1s", name="leak")])
    assert average_precision(leaky, events, at_once, y) > LEAK
