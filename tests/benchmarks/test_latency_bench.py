"""`headrace bench latency` at a size of nothing."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks import latency
from benchmarks.workload import train
from streams.cli import bench


@pytest.mark.kafka
def test_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_WARM_S", 0.2)
    monkeypatch.setattr(latency, "_BROKER_WARM_S", 0.5)  # the half minute is for the figures, which are nothing here
    monkeypatch.setattr(latency, "train", partial(train, rows=20_000, trees=20))
    figures = latency.run((50,), seconds=1.0)
    [at_50] = figures["results"]
    assert at_50["rate"] == 50 and at_50["count"] == 50
    assert 0 < at_50["latency_ms_p50"] <= at_50["latency_ms_p99"] <= at_50["latency_ms_p999"]
    assert at_50["worker_cores"] >= 0
    assert "p99" in bench._latency_table(figures)[0]
