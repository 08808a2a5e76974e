"""The monitor as a worker of its own beside the fraud pipeline's, and the command line that starts them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest
from fraud_logs import DAY, NOW, SETTINGS, label, transaction
from workers import Running, read_all, until, values_of

from models.slot import ModelSlot
from monitoring.labels import JoinSettings
from streams.checkpoint_store import CheckpointStore
from streams.cli import run_all
from streams.cli.main import build_parser, main
from streams.errors import ConfigError
from streams.log import Log, OutBatch, RecordBatch, connect
from streams.memory import MemoryLog
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.monitor import MonitorPipeline
from streams.store import open_store
from streams.topics import LABELLED, LABELS, TRANSACTIONS
from streams.worker import ensure_topics


def produce(log: Log, first: int, n: int) -> None:
    """Transactions with their labels."""
    events = [transaction(i, NOW - 3 * DAY, i % 7, i % 3) for i in range(first, first + n)]
    known = [label(i, NOW - 2 * DAY, i % 2) for i in range(first, first + n)]
    producer = log.producer()
    for topic, records in ((TRANSACTIONS, events), (LABELS, known)):
        producer.send(OutBatch(topic, [r.value for r in records], [r.key for r in records]))
    assert producer.flush(20) == 0
    producer.close()


def enough(n: int) -> Any:
    return lambda batches: sum(len(batch) for batch in batches) >= n


def whose(batches: list[RecordBatch]) -> list[int]:
    return sorted(orjson.loads(value)["transaction_id"] for value in values_of(batches))


def running(log: Log, pipeline: Any, group: str, store: CheckpointStore | None = None) -> Running:
    worker = Running(log, pipeline, group, checkpoints=store)
    assert worker.ready.wait(120)
    return worker


def test_two_workers_label_what_was_scored_and_a_clean_restart_replays_nothing(tmp_path: Path) -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    fraud_pipeline = FraudPipeline(SETTINGS, ModelSlot(), partitions=2, monitor=True)
    fraud = running(log, fraud_pipeline, "fraud")
    stored = CheckpointStore(open_store(str(tmp_path)), "monitor")
    for first in (0, 150):
        pipeline = MonitorPipeline(JoinSettings(), partitions=2)
        worker = running(log, pipeline, "monitor", stored)
        produce(log, first, 150)
        got = read_all(log, LABELLED, enough(first + 150))
        assert worker.stop() == 0
        assert pipeline.figures()["replayed"] == 0 and pipeline.figures()["labelled"] == 150
    assert fraud.stop() == 0
    assert whose(got) == list(range(300))
    details = pipeline.details()
    assert details["join"]["joined_by_label"] == 300, "the counts are since the beginning of the log"


def test_a_monitor_without_checkpoints_replays_and_sends_nothing_twice() -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    fraud = running(log, FraudPipeline(SETTINGS, ModelSlot(), partitions=2, monitor=True), "fraud")
    for first in (0, 50):
        pipeline = MonitorPipeline(JoinSettings(), partitions=2)
        worker = running(log, pipeline, "monitor")
        produce(log, first, 50)
        got = read_all(log, LABELLED, enough(first + 50))
        assert worker.stop() == 0
    assert fraud.stop() == 0
    assert pipeline.figures()["replayed"] > 0 and whose(got) == list(range(100))


def test_run_monitor_until_it_is_told_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    name = uuid.uuid4().hex
    log = MemoryLog.named(name)
    fraud = running(log, FraudPipeline(SETTINGS, ModelSlot(), monitor=True), "headrace-fraud")
    produce(log, 0, 20)

    def stop_when_labelled() -> None:
        try:
            ensure_topics(log, MonitorPipeline(JoinSettings()).topics)
            until(lambda: sum(len(p.rows) for p in log.partitions(LABELLED)) == 20, "twenty labelled", 60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    watch = threading.Thread(target=stop_when_labelled)
    watch.start()
    code = main(["run", "--pipeline", "monitor", "--json", "--bootstrap", f"memory://{name}"])
    watch.join()
    assert fraud.stop() == 0
    ready, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert (code, ready) == (0, "ready")
    assert (figures["received"], figures["labels"], figures["labelled"]) == (20, 20, 20)
    assert figures["join"]["joined_by_label"] == 20
    ages = {point["age_ms"]: point["labels"] for point in figures["maturity"]}
    assert ages[DAY] == 20 and ages[2 * DAY] == 0


# --- all pipelines ---


def arguments(*words: str) -> argparse.Namespace:
    return build_parser("run").parse_args(["run", "--pipeline", "all", *words])


def test_each_pipeline_gets_the_words_that_are_for_it() -> None:
    args = arguments("--models", "m", "--bootstrap", "b:1", "--reasons-max", "3", "--checkpoints", "none")
    shared = ["--bootstrap", "b:1", "--checkpoints", "none"]
    assert run_all.words_of("fraud", args) == [
        *("run", "--pipeline", "fraud", "--json", *shared, "--models", "m", "--reasons-max", "3"),
        *("--group", "headrace-fraud", "--monitor"),
    ]
    expected = ["run", "--pipeline", "monitor", "--json", *shared, "--models", "m", "--group", "headrace-monitor"]
    assert run_all.words_of("monitor", args) == expected
    for pipeline in ("fraud", "monitor"):  # what is said is understood
        build_parser("run").parse_args(run_all.words_of(pipeline, args))
    assert run_all.words_of("monitor", arguments("--group", "mine"))[-2:] == ["--group", "mine-monitor"]


@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        ("", ["--bootstrap", "memory://x"], "memory://x lives within one process"),
        ('group = "mine"', [], "setting group: mine would be the group of every pipeline"),
        ('transactional_id = "mine"', [], "each worker needs its own"),
    ],
)
def test_settings_that_cannot_be_those_of_several_workers(
    config: str, words: list[str], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(config)
    with pytest.raises(ConfigError, match=said):
        run_all.run_all(arguments("--config", str(path), *words), ["fraud", "monitor"])


def test_when_one_worker_fails_all_end_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither can be: the broker's name is none. Nobody waits for the other."""
    monkeypatch.setattr(run_all, "check", lambda args: None)
    monkeypatch.setattr(run_all, "words_of", lambda pipeline, args: ["run", "--pipeline", pipeline, "--order", "x"])
    assert run_all.run_all(arguments("--json"), ["fraud", "monitor"]) == 2
    assert json.loads(capsys.readouterr().out) == {}


_CHILD = """
import signal
signal.signal(signal.SIGUSR1, lambda *_: print('{"n": 1}', flush=True))
signal.signal(signal.SIGTERM, signal.%s)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("sigterm", "patience_s", "code"), [("SIG_DFL", 60.0, 0), ("SIG_IGN", 0.2, 1)])
def test_figures_are_asked_for_and_all_end_in_time(
    sigterm: str, patience_s: float, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a signal ends was told to; one that does not listen is killed."""
    figures: list[dict[str, Any]] = []

    def said(*line: object, **_: object) -> None:
        if line == ("ready",):
            os.kill(os.getpid(), signal.SIGUSR1)

    def reported(value: dict[str, Any]) -> None:
        if not figures:
            os.kill(os.getpid(), signal.SIGTERM)
        figures.append(value)

    monkeypatch.setattr(run_all, "check", lambda args: None)
    monkeypatch.setattr(run_all, "child_command", lambda *_: [sys.executable, "-c", _CHILD % sigterm])
    monkeypatch.setattr(run_all, "print", said, raising=False)
    monkeypatch.setattr(run_all, "print_json", reported)
    monkeypatch.setattr(run_all, "_END_S", patience_s)
    assert run_all.run_all(arguments("--json"), ["fraud", "monitor"]) == code
    assert figures[0] == {"fraud": {"n": 1}, "monitor": {"n": 1}}


def test_a_worker_that_a_signal_ends_has_failed_unless_it_was_told_to_end() -> None:
    codes = [run_all._exit_code(code, stopping) for code in (-15, -9, 2, 0, None) for stopping in (True, False)]
    assert codes == [0, 1, 1, 1, 2, 2, 0, 0, 0, 0]
