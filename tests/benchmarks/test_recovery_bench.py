"""`headrace bench recovery` at a size of nothing: what it reports, and that the recovered features are right."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from benchmarks import recovery
from benchmarks.machine import BenchError
from streams.cli import bench
from streams.codec import decode_labels, decode_transactions
from streams.log import TP, OutBatch, RecordBatch


def batch_of(out: OutBatch) -> RecordBatch:
    n = len(out)
    return RecordBatch(TP(out.topic, 0), [*range(n)], [-1] * n, [None] * n, [*out.values], lambda _: [], n)


def test_history() -> None:
    history = recovery.History(cards=300, events=1_000, delay=400)
    [(transactions, labels)] = history.chunks(0, 1_000)
    block, dead = decode_transactions(batch_of(transactions))
    assert not dead and len(block) == 1_000
    assert sorted(block.ids["card_id"].to_list()[:300]) == list(range(300))
    assert np.all(np.diff(block.event_time_ms) >= 0)
    about, dead = decode_labels(batch_of(labels))
    assert not dead and about.ids["transaction_id"].to_list() == list(range(600))
    assert about.ids["terminal_id"].to_list() == block.ids["terminal_id"].to_list()[:600]
    assert np.array_equal(about.columns["label_time"], block.event_time_ms[400:])
    [(again, _)] = history.chunks(500, 510)
    assert again.values == transactions.values[500:510]


def test_every_card_needs_an_event() -> None:
    with pytest.raises(BenchError, match="one each"):
        recovery.run(cards=10, events=9)


@pytest.mark.kafka
def test_recovery() -> None:
    figures = recovery.run(cards=200, events=1_000, since=1_500, partitions=2, trees=20)
    assert figures["replayed"]["transactions"] == 1_500 and figures["replayed"]["fraud.by-terminal"] > 0
    assert figures["verified"]["rows"] > 2_500 and figures["verified"]["mismatching_rows"] == 0
    assert figures["checkpoint_bytes"] > 0 and figures["load_s_per_gb"] > 0
    assert 0 < figures["assignment_to_ready_s"] < figures["start_to_ready_s"] <= figures["start_to_first_score_s"]
    assert {"pause_ms", "pause_ms_p99", "written"} <= set(figures["checkpoints"])
    assert figures["pauses"]["fork"]["count"] >= 3 and figures["pauses"]["without"]["count"] > 0
    assert "per million events" in "".join(bench._recovery_table(figures))
    assert orjson.loads(orjson.dumps(figures)) == figures
