"""The public benchmark's transactions and labels through produce, run and consume: every row once, every feature exact.

By default the first 100,000 rows, and fewer for other numbers of partitions; with HEADRACE_FULL=1 all 1.3 million, for
which pytest needs ``-o faulthandler_timeout=0``, since no test of the suite takes so long.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cluster import Tail, Worker, fresh_topics, headrace

from features.fraud import DEFAULT
from streams.broker import Broker

FULL = os.environ.get("HEADRACE_FULL") == "1"
#: seconds that any one step may take
STEP_S = 3000 if FULL else 300

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3 * STEP_S)]

EXACT = [name for name in DEFAULT.names if "mean" not in name]


@pytest.mark.parametrize(
    ("partitions", "workers", "rows"),
    [(4, 2, 100_000), (1, 1, 30_000), (16, 3, 30_000)],
)
def test_every_row_is_scored_once_with_the_published_features(
    kafka: Broker, data_dir: Path, tmp_path: Path, partitions: int, workers: int, rows: int
) -> None:
    rows = 2**31 if FULL else rows
    transactions = pq.read_table(data_dir / "fraud_transactions.parquet").slice(0, rows)
    last = pc.max(transactions["event_time"]).as_py()
    known = pq.read_table(data_dir / "fraud_labels.parquet", filters=pc.field("label_time") <= last)
    expected = pq.read_table(data_dir / "fraud_expected.parquet").slice(0, rows)
    files = {"transactions": tmp_path / "transactions.parquet", "transaction-labels": tmp_path / "labels.parquet"}
    for table, file in zip((transactions, known), files.values(), strict=True):
        pq.write_table(table, file)

    log = fresh_topics(kafka.bootstrap, partitions)
    to = ("--bootstrap", kafka.bootstrap)
    # a slice of a few days has no labels in it: its partitions are then waited for, but not for long; where all rows
    # are sent, it must be longer than the transactions take, as the labels are sent after them
    config = (
        f"first_wait_ms = {50 * STEP_S}\n[kafka]\nconsumer.session.timeout.ms = 3000\n"
        "consumer.heartbeat.interval.ms = 500\n"
    )
    with ExitStack() as stack:
        # the largest number of partitions also has a worker that dies in the middle
        running = [
            stack.enter_context(Worker(kafka.bootstrap, tmp_path, "real", "--order", "event_time", config=config))
            for _ in range(workers)
        ]
        for topic, file in files.items():
            sent = headrace("produce", "--topic", topic, "--from", str(file), *to, timeout_s=STEP_S)
            assert sent.returncode == 0, sent.stderr
        if workers > 2:
            with Tail(log) as tail:
                tail.read(1, timeout_s=STEP_S)
                running.pop().kill()
                # what it had sent and not committed comes twice, so that a count would not do
                tail.read(len(transactions), timeout_s=STEP_S)
                values = [out.value or b"" for out in tail.records]
        else:
            scores = tmp_path / "scores.jsonl"
            words = ("--topic", "fraud-scores", "--to", str(scores), "--count", str(len(transactions)))
            read = headrace("consume", *words, *to, timeout_s=STEP_S)
            assert read.returncode == 0, read.stderr
            values = scores.read_bytes().splitlines()
        figures = [worker.stop(within_s=20) for worker in running]
    if workers <= 2:
        assert sum(f["received"] for f in figures) == sum(f["scored"] for f in figures) == len(transactions)
    assert all(f["late"] == f["dead_letters"] == f["duplicates"] == 0 for f in figures)

    live: dict[int, list[float]] = {}
    for score in map(orjson.loads, values):
        vector = list(score["features"].values())
        assert live.setdefault(score["transaction_id"], vector) == vector, "what is sent twice is the same"
    ids = expected["transaction_id"].to_pylist()
    assert sorted(live) == sorted(ids)
    matrix = np.array([live[i] for i in ids])
    for j, name in enumerate(DEFAULT.names):
        exact = expected[name].to_numpy().astype(np.float64)
        wrong = matrix[:, j] != exact if name in EXACT else np.abs(matrix[:, j] - exact) > 1e-9
        assert not wrong.any(), f"{name}: {int(wrong.sum())} rows differ"

    verified = headrace("verify", "--group", "real", "--order", "event_time", "--json", *to, timeout_s=STEP_S)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    found = json.loads(verified.stdout.splitlines()[-1])
    assert found["mismatching_rows"] == 0
    assert {stage: f["rows"] for stage, f in found["stages"].items()}["card"] == len(transactions)
