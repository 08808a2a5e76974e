"""Exactly once on Kafka: workers are killed, fenced, rebalanced; a foreign client finds each transaction once."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import orjson
import pytest
from cluster import QUICK, Feed, Tail, Worker, fresh_topics, headrace, send, stream, until

from streams.broker import Broker, free_port
from streams.kafka import KafkaLog

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

N = 12_000
STREAM = stream(N)
EXACTLY_ONCE = 'delivery = "exactly_once"\n' + QUICK
OPTIONS = ("--order", "event_time")


@pytest.fixture(autouse=True)
def _names_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka: Broker) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))


def committed_scores(bootstrap: str) -> list[bytes]:
    """Values of fraud-scores as clients read them that are not ours: kcat, or confluent-kafka's own consumer."""
    kcat = shutil.which("kcat")
    if kcat is not None:
        command = [kcat, "-C", "-q", "-e", "-b", bootstrap, "-t", "fraud-scores", "-o", "beginning"]
        command += ["-X", "isolation.level=read_committed"]
        return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.splitlines()
    from confluent_kafka import Consumer

    settings = {"bootstrap.servers": bootstrap, "group.id": "foreign", "auto.offset.reset": "earliest"}
    consumer = Consumer(settings)
    consumer.subscribe(["fraud-scores"])
    values: list[bytes] = []
    while len(values) < N or consumer.poll(2.0) is not None:
        values += [message.value() for message in consumer.consume(10_000, 1.0)]
    consumer.close()
    return values


def check_scores(bootstrap: str) -> None:
    """Each transaction once, with the features of the offline computation."""
    scores = [orjson.loads(value) for value in committed_scores(bootstrap)]
    times = Counter(score["transaction_id"] for score in scores)
    assert len(times) == N and set(times.values()) == {1}, Counter(times.values())
    assert {score["transaction_id"]: list(score["features"].values()) for score in scores} == STREAM.features()


def test_a_worker_that_is_killed_again_and_again(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap)
    feed = None
    with Tail(log) as tail:
        for share in (0.1, 0.3, 0.6, None):
            with Worker(kafka.bootstrap, tmp_path, "killed-eo", *OPTIONS, config=EXACTLY_ONCE) as worker:
                worker.wait_ready()
                feed = feed or Feed(log, STREAM.records, per_s=4_000)
                before = len(tail.by_source)
                tail.read(before + 1)
                if share is not None:
                    feed.wait_for(share)
                    worker.kill()
                    continue
                feed.join()
                tail.read(N)
                worker.stop()
        assert len(tail.records) == N
    check_scores(kafka.bootstrap)
    where = ("--group", "killed-eo", "--order", "event_time", "--bootstrap", kafka.bootstrap)
    verified = headrace("verify", "--json", *where)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout.splitlines()[-1])["mismatching_rows"] == 0


def test_another_worker_takes_over_from_one_that_is_killed(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap)
    options = (kafka.bootstrap, tmp_path, "taken-eo", *OPTIONS)
    with (
        Worker(*options, config=EXACTLY_ONCE) as first,
        Worker(*options, config=EXACTLY_ONCE) as second,
        Tail(log) as tail,
    ):
        first.wait_ready()
        second.wait_ready()
        feed = Feed(log, STREAM.records, per_s=4_000)
        feed.wait_for(0.4)
        tail.read(1)
        first.kill()
        feed.join()
        tail.read(N)
        second.stop()
    check_scores(kafka.bootstrap)


def test_workers_join_and_leave_under_load(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap)
    options = (kafka.bootstrap, tmp_path, "joining-eo", *OPTIONS)
    with Worker(*options, config=EXACTLY_ONCE) as first, Tail(log) as tail:
        first.wait_ready()
        feed = Feed(log, STREAM.records, per_s=200)
        with Worker(*options, config=EXACTLY_ONCE) as second:
            second.wait_ready()
            feed.hurry(4_000)
            feed.wait_for(0.7)
            left = second.stop()
        feed.join()
        tail.read(N)
        stayed = first.stop()
    assert left["received"] + left["scored"] + left["labels"] > 0
    assert left["received"] + stayed["received"] == N, "what was done once is not done again"
    check_scores(kafka.bootstrap)


def test_of_two_workers_with_one_transactional_id_the_older_ends(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap)
    options = (kafka.bootstrap, tmp_path, "same-eo", *OPTIONS)
    config = 'transactional_id = "same"\n' + EXACTLY_ONCE
    half = len(STREAM.records) // 2
    with Worker(*options, config=config) as first, Tail(log) as tail:
        first.wait_ready()
        send(log, STREAM.records[:half])
        tail.read(1)
        with Worker(*options, config=config) as second:
            second.wait_ready()
            send(log, STREAM.records[half:])
            until(lambda: first.process.poll() is not None, "the older worker's end", 120)
            assert first.wait() == 1
            assert "transaction-fenced: transactional id same" in first.log
            assert "Traceback" not in first.log
            tail.read(N)
            second.stop()
    check_scores(kafka.bootstrap)


def test_the_broker_goes_and_comes_back(tmp_path: Path) -> None:
    broker = Broker.start(free_port(), tmp_path / "data")
    try:
        log = fresh_topics(broker.bootstrap)
        with Worker(broker.bootstrap, tmp_path, "away-eo", *OPTIONS, config=EXACTLY_ONCE) as worker:
            worker.wait_ready()
            with Tail(KafkaLog(broker.bootstrap, {})) as tail:
                feed = Feed(log, STREAM.records, per_s=4_000)
                feed.wait_for(0.3)
                tail.read(1)
                broker.kill()
                worker.until(lambda: "is away" in worker.log, "the absence in the log")
                broker.restart()
                feed.join()
                tail.read(N)
                worker.stop()
        assert "Traceback" not in worker.log
        check_scores(broker.bootstrap)
    finally:
        broker.stop()
