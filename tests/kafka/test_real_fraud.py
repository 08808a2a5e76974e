"""The public benchmark's transactions and labels through produce, run and consume: every row once, every feature exact.

All 1.3 million rows with HEADRACE_FULL=1; by default the first 100,000.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cluster import Worker, fresh_topics, headrace, lines

from features.fraud import DEFAULT
from streams.broker import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

ROWS = None if os.environ.get("HEADRACE_FULL") == "1" else 100_000
EXACT = [name for name in DEFAULT.names if "mean" not in name]


def test_every_row_is_scored_once_with_the_published_features(kafka: Broker, data_dir: Path, tmp_path: Path) -> None:
    transactions = pq.read_table(data_dir / "fraud_transactions.parquet").slice(0, ROWS)
    last = pc.max(transactions["event_time"]).as_py()
    known = pq.read_table(data_dir / "fraud_labels.parquet", filters=pc.field("label_time") <= last)
    expected = pq.read_table(data_dir / "fraud_expected.parquet").slice(0, ROWS)
    files = {"transactions": tmp_path / "transactions.parquet", "transaction-labels": tmp_path / "labels.parquet"}
    for table, file in zip((transactions, known), files.values(), strict=True):
        pq.write_table(table, file)

    fresh_topics(kafka.bootstrap)
    to = ("--bootstrap", kafka.bootstrap)
    with Worker(kafka.bootstrap, tmp_path, "real", "--order", "event_time", config="") as worker:
        for topic, file in files.items():
            sent = headrace("produce", "--topic", topic, "--from", str(file), *to, timeout_s=300)
            assert sent.returncode == 0, sent.stderr
        scores = tmp_path / "scores.jsonl"
        read = headrace(
            "consume", "--topic", "fraud-scores", "--to", str(scores), "--count", str(len(transactions)), *to,
            timeout_s=500,
        )  # fmt: skip
        assert read.returncode == 0, read.stderr
        figures = worker.stop(within_s=20)
    assert figures["received"] == figures["scored"] == len(transactions)
    assert figures["late"] == figures["dead_letters"] == figures["duplicates"] == 0

    live = {s["transaction_id"]: list(s["features"].values()) for s in lines(scores)}
    ids = expected["transaction_id"].to_pylist()
    assert sorted(live) == sorted(ids)
    matrix = np.array([live[i] for i in ids])
    for j, name in enumerate(DEFAULT.names):
        exact = expected[name].to_numpy().astype(np.float64)
        wrong = matrix[:, j] != exact if name in EXACT else np.abs(matrix[:, j] - exact) > 1e-9
        assert not wrong.any(), f"{name}: {int(wrong.sum())} rows differ"
