"""`headrace bench watched`: what it makes of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks import watched
from benchmarks.machine import BenchError, Cores
from benchmarks.throughput import Measured
from benchmarks.workload import Scores, Workload, simulated
from streams.cli import bench


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """(CPU seconds, a score) of the next runs."""
    planned: list[tuple[float, float]] = []

    def measure(workload: Workload, *_: object, options: Sequence[str]) -> Measured:
        cpu_s, score = planned.pop(0)
        assert ("--monitor" in options) == (len(planned) % 2 == 0)
        return Measured(len(workload.transactions), 0, 1.0, cpu_s, 0.0, Scores([1], np.array([[score]]), 0, 0))

    quiet: dict[str, Any] = {"kafka_available": lambda: "", "train": lambda *_, **__: None, "measure_headrace": measure}
    for name, replaced in quiet.items():
        monkeypatch.setattr(watched, name, replaced)
    monkeypatch.setattr(Cores, "split", classmethod(lambda cls: cls(None, ())))
    return planned


def test_the_cost_is_the_median_of_pairs(runs: list[tuple[float, float]]) -> None:
    runs += [(1.0, 0.5), (1.04, 0.5), (2.0, 0.5), (4.0, 0.5), (1.0, 0.5), (1.02, 0.5)]
    figures = watched.run(simulated(100), rounds=3)
    assert figures["costs"] == [0.04, 1.0, 0.02] and figures["cost"] == 0.04
    assert (figures["us_without"], figures["us_with"]) == (1e4, 1.04e4)
    assert "cost +4.0%" in bench._watched_table(figures)[1]


def test_other_scores_are_no_cost(runs: list[tuple[float, float]]) -> None:
    runs += [(1.0, 0.5), (1.04, 0.6)]
    with pytest.raises(BenchError, match="different scores"):
        watched.run(simulated(100), rounds=1)
