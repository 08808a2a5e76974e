"""`headrace bench latency` at a size of nothing."""

from __future__ import annotations

import pytest

from benchmarks import latency
from streams.cli import bench


@pytest.mark.kafka
def test_latency() -> None:
    figures = latency.run((50,), seconds=1.0)
    [at_50] = figures["results"]
    assert at_50["rate"] == 50 and at_50["count"] == 50
    assert 0 < at_50["latency_ms_p50"] <= at_50["latency_ms_p99"] <= at_50["latency_ms_p999"]
    assert at_50["worker_cores"] >= 0
    assert "p99" in bench._latency_table(figures)[0]
