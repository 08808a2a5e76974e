"""`headrace verify`: no difference where live was right, each kind of difference found where it was not."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator

import numpy as np
import orjson
import pytest
from fraud_logs import DAY, NOW, Record, label, make_pipeline, transaction
from workers import FAST, Running, until

from features.declare import FeatureSet
from features.fraud import DEFAULT, RICH
from streams.cli.main import main
from streams.log import OutBatch, connect
from streams.memory import MemoryLog
from streams.pipelines.fraud_stages import StageSettings
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS, topic_infos
from streams.verify import StageResult, verify_fraud

PARTITIONS = 3


@pytest.fixture
def quiet() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


def send(log: MemoryLog, topic: str, records: list[Record]) -> None:
    producer = log.producer()
    producer.send(OutBatch(topic, [r.value for r in records], [r.key for r in records]))
    producer.flush(5)
    producer.close()


def events(n: int, first: int = 0, start: int = NOW) -> tuple[list[Record], list[Record]]:
    """Transactions of a week, with repeats, text ids, extra fields and a bad one; labels for half of them."""
    seed = np.random.default_rng(first + 1)
    rows = [
        transaction(
            i if i % 7 else f"t{i}",
            start + i * 60_000,
            card=int(seed.integers(8)),
            terminal=int(seed.integers(5)),
            amount=float(seed.integers(1, 9999)) / 100,
            **({"shop": "x"} if i % 5 == 0 else {}),
        )
        for i in range(first, first + n)
    ]
    labels = [label(i if i % 7 else f"t{i}", start + i * 60_000 + DAY, i % 2) for i in range(first, first + n, 2)]
    return [*rows, rows[3], Record(b"{")], labels


def scored(log: MemoryLog, n: int) -> None:
    until(lambda: sum(len(p.rows) for p in log.partitions(FRAUD_SCORES)) >= n, f"{n} scores")


def live(log: MemoryLog, order: str, group: str, features: FeatureSet = DEFAULT) -> None:
    """Two workers one after the other: the second replays what the first has done, then goes on."""
    log.admin().create_topics(topic_infos((TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES), PARTITIONS))
    done = 0
    for first in (0, 300):
        rows, labels = events(300, first)
        send(log, LABELS, labels)
        send(log, TRANSACTIONS, rows)
        done += 300
        worker = Running(log, make_pipeline(order, PARTITIONS, StageSettings(features)), group, FAST)  # type: ignore[arg-type]
        assert worker.ready.wait(30)
        scored(log, done)
        assert worker.stop() == 0


def results(log: MemoryLog, order: str, group: str, features: FeatureSet) -> dict[str, StageResult]:
    settings = StageSettings(features)
    return {r.stage: r for r in verify_fraud(log, group, lambda: make_pipeline(order, PARTITIONS, settings))}


@pytest.mark.parametrize(("order", "features"), [("arrival", DEFAULT), ("event_time", DEFAULT), ("arrival", RICH)])
def test_live_equals_replay_after_a_restart(order: str, features: FeatureSet) -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    assert isinstance(log, MemoryLog)
    live(log, order, "g", features)
    got = results(log, order, "g", features)
    assert {stage: r.mismatching_rows for stage, r in got.items()} == {"card": 0, "labels": 0, "terminal": 0}
    assert got["card"].rows == got["terminal"].rows == 600
    assert got["labels"].rows == 300 * PARTITIONS, "a label that does not name its terminal goes everywhere"


def test_every_kind_of_difference_is_found(capsys: pytest.CaptureFixture[str], quiet: None) -> None:
    name = uuid.uuid4().hex
    log = connect(f"memory://{name}")
    assert isinstance(log, MemoryLog)
    live(log, "arrival", "headrace-fraud")
    words = ["verify", "--bootstrap", f"memory://{name}", "--json"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["mismatching_rows"] == 0 and figures["first_differences"] == [] and figures["rows"] > 1200

    assert main([*words, "--set", "rich"]) == 2
    assert "are of another feature set: card_count_10m" in capsys.readouterr().err
    records = log.partitions(FRAUD_SCORES)[1].rows
    assert records[4] is not None and records[5] is not None
    (stamp, key, value, headers), (*other, lost_headers) = records[4:6]
    source, lost = (dict(h)["source"].decode() for h in (headers, lost_headers))
    changed = orjson.loads(value or b"")
    changed["features"]["card_mean_amount_7d"] = float(np.nextafter(changed["features"]["card_mean_amount_7d"], 1e9))
    records[4] = (stamp, key, orjson.dumps(changed), headers)
    records[5] = (*other, [])  # type: ignore[assignment]
    assert main(words) == 1
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {d["source"]: d for d in figures["first_differences"]}
    assert figures["mismatching_rows"] == 2 and set(found) == {source, lost}
    assert found[source]["stage"] == "terminal" and set(found[source]["columns"]) == {"card_mean_amount_7d"}
    assert found[lost]["columns"] == {"row": {"log": "absent", "replayed": "present"}}


def test_without_a_group_or_topics_it_says_what_to_do(capsys: pytest.CaptureFixture[str], quiet: None) -> None:
    name = uuid.uuid4().hex
    assert main(["verify", "--bootstrap", f"memory://{name}"]) == 2
    assert "is not there: nothing to verify" in capsys.readouterr().err
    connect(f"memory://{name}").admin().create_topics(topic_infos((TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES), 1))
    assert main(["verify", "--bootstrap", f"memory://{name}", "--group", "nobody"]) == 2
    assert "group nobody has committed nothing: name the group" in capsys.readouterr().err


def test_a_state_beyond_its_bound_ends_the_worker_with_key_bound_and_remedy() -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    assert isinstance(log, MemoryLog)
    settings = StageSettings(DEFAULT, state_bytes_max=200_000)
    worker = Running(log, make_pipeline("arrival", 1, settings), "g", FAST)  # type: ignore[arg-type]
    assert worker.ready.wait(30)
    send(log, TRANSACTIONS, [transaction(i, NOW, card=10_000 + i, terminal=1) for i in range(20_000)])
    until(lambda: worker.code is not None, "the worker's end")
    assert worker.code == 1
    assert "state-full" in worker.error and "of card_id 1" in worker.error
    assert "bytes_max = 200000" in worker.error and "setting state_mb_max" in worker.error


@pytest.mark.parametrize("restarted", [0, 1, 2])
def test_a_backlog_after_an_idle_time_is_read_in_the_order_of_its_events(restarted: int) -> None:
    """All sources have said that they are idle; then each has hours of events, and the first to be read must wait."""
    log = connect(f"memory://{uuid.uuid4().hex}")
    assert isinstance(log, MemoryLog)
    log.admin().create_topics(topic_infos((TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES), PARTITIONS))
    pipelines = [make_pipeline("event_time", PARTITIONS) for _ in range(1 + restarted)]
    workers = [Running(log, pipelines[0], "g", FAST)]  # type: ignore[arg-type]
    assert workers[0].ready.wait(30)
    rows, labels = events(60)
    send(log, LABELS, labels)
    send(log, TRANSACTIONS, rows)
    scored(log, 60)
    if restarted:
        assert workers[0].stop() == 0
    rows, labels = events(3_000, 60)
    send(log, LABELS, labels)
    send(log, TRANSACTIONS, rows[:-2])  # without the repeated one, which would be late by its card, and the bad one
    workers += [Running(log, pipeline, "g", FAST) for pipeline in pipelines[1:]]  # type: ignore[arg-type]
    scored(log, 3_060)
    assert [worker.stop() for worker in workers[-restarted or -1 :]] == [0] * max(1, restarted)
    assert [pipeline.figures()["late"] for pipeline in pipelines] == [0] * len(pipelines)
    got = results(log, "event_time", "g", DEFAULT)
    assert [r.mismatching_rows for r in got.values()] == [0, 0, 0]
