"""`headrace bench throughput` at a size of nothing: what it reports, and that its scores are the right ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import throughput
from benchmarks.machine import BenchError, Child, Cores, cpu_seconds, machine, thread_seconds, versions
from benchmarks.workload import Workload, expected, simulated, train
from models.registry import Registry
from streams.cli import bench

PARTS = ["consume", "decode", "features", "shuffle", "score", "explain", "encode", "monitor", "produce"]
PARTS += ["librdkafka", "other"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench")
    train(path, rows=20_000, trees=20)
    return path


@pytest.fixture(scope="module")
def workload() -> Workload:
    return simulated(3_000, cards=30, terminals=20)


def test_in_process(folder: Path, workload: Workload) -> None:
    measured = throughput.measure_in_process(workload, folder)
    features = expected(workload)
    raw, score = Registry(folder / "models").get("champion").score(features)
    assert np.array_equal(measured.scores.values, np.column_stack([score, raw, features]))
    assert list(measured.us_per_event()) == PARTS
    figures = measured.figures()
    assert figures["events"] == 3_000 and figures["events_per_s"] > 0 and len(figures["output_sha256"]) == 64


@pytest.mark.kafka
def test_beside_plain_faust(workload: Workload, capsys: pytest.CaptureFixture[str]) -> None:
    figures = throughput.run(workload, plain_events=400, rounds=1)
    assert figures["equality"] == {"common": 400, "different_scores": 0, "different_features": 0}
    assert list(figures["us_per_event"]) == PARTS
    assert figures["ratio_plain_faust"] > 1 and figures["log"] == "kafka"
    assert {"machine", "versions"} <= set(figures)
    table = bench._throughput_table(figures)
    assert "headrace" in table[0] and "ratio" in table[-1]


@pytest.mark.kafka
def test_a_loop_by_hand_says_the_same(folder: Path, workload: Workload) -> None:
    few = workload.head(400)
    measured = throughput.measure_app("python_loop", few, folder / "model.txt", Cores(None, ()))
    features = expected(few)
    raw, score = Registry(folder / "models").get("champion").score(features)
    # LightGBM's own prediction, and a plain exp: the last bits may differ
    assert np.allclose(measured.scores.values, np.column_stack([score, raw, features]), rtol=1e-12, atol=1e-12)


def test_head_keeps_the_labels_of_its_transactions(workload: Workload) -> None:
    few = workload.head(10)
    assert len(few.transactions) == 10 and sorted(map(int, few.labels.keys)) == list(range(10))


def test_machine_and_versions() -> None:
    assert machine()["cores"] >= 1 and versions()["kafka"].startswith("4.")


def test_child() -> None:
    code = "import signal, sys; print('ready'); print('line'); sys.stdout.flush(); signal.pause()"
    with Child([sys.executable, "-c", code], Cores(None, ()).worker) as child:
        child.wait_ready()
        assert cpu_seconds(child.pid) >= 0 and thread_seconds(child.pid, "no such thread") == 0
    with Child([sys.executable, "-c", "raise SystemExit(3)"], None) as child, pytest.raises(BenchError, match="code 3"):
        child.wait_ready()
