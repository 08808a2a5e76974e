"""The monitor beside the fraud pipeline on a real Kafka: every label finds its vector once, whoever dies meanwhile."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from cluster import QUICK, Feed, Tail, Worker, fresh_topics, send, sources, stream, until

from streams.broker import Broker
from streams.log import Log
from streams.topics import BY_TRANSACTION, LABELLED, topic_infos

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

N = 3_000
STREAM = stream(N)
LABEL_OF = {
    value["transaction_id"]: value["is_fraud"]
    for value in (orjson.loads(value) for topic, _, value in STREAM.records if topic == "transaction-labels")
}


def topics(kafka: Broker) -> Log:
    log = fresh_topics(kafka.bootstrap)
    names = (BY_TRANSACTION, LABELLED)
    admin = log.admin()
    if known := admin.topics(names):
        admin.delete_topics(list(known))
    until(lambda: not admin.topics(names), "the topics to go")
    admin.create_topics(topic_infos(names, 4))
    return log


def labels(tail: Tail) -> dict[int, int]:
    values = [orjson.loads(out.value or b"") for out in tail.by_source.values()]
    return {value["transaction_id"]: value["label"] for value in values}


def test_workers_are_killed_and_every_label_finds_its_vector_once(kafka: Broker, tmp_path: Path) -> None:
    log = topics(kafka)
    fraud = (kafka.bootstrap, tmp_path, "scoring", "--monitor", "--order", "event_time", "--checkpoints", "none")
    stored = ("--checkpoints", str(tmp_path / "states"))
    monitor = (kafka.bootstrap, tmp_path, "labelling", "--pipeline", "monitor", *stored)
    often = f"checkpoint_interval_ms = 300\n{QUICK}"
    with (
        Tail(log, LABELLED) as tail,
        Worker(*fraud) as first,
        Worker(*fraud) as second,
        Worker(*monitor, config=often) as third,
    ):
        for worker in (first, second, third):
            worker.wait_ready()
        feed = Feed(log, STREAM.records, per_s=1_500)
        feed.wait_for(0.4)
        first.kill()
        feed.wait_for(0.6)
        tail.read(1)
        third.kill()
        with Worker(*monitor, config=often) as fourth:
            feed.join()
            tail.read(N)
            figures = fourth.stop(20)
    assert set(tail.by_source) == sources(log)
    assert labels(tail) == LABEL_OF
    assert tail.contradicting == 0, "what is sent twice is the same bytes under the same key"
    joined = figures["join"]
    assert joined["vectors"] == joined["joined_by_label"] == joined["labels"] == N and joined["vectors_repeated"] == 0


def test_all_pipelines_start_and_end_together(kafka: Broker, tmp_path: Path) -> None:
    log = topics(kafka)
    options = ("together", "--pipeline", "all", "--checkpoints", "none")
    with Worker(kafka.bootstrap, tmp_path, *options) as workers, Tail(log, LABELLED) as tail:
        workers.wait_ready()
        send(log, STREAM.records[:600])
        wanted = sum(topic == "transaction-labels" for topic, _, _ in STREAM.records[:600])
        tail.read(wanted)
        figures = workers.stop(40)
    assert figures["fraud"]["scored"] == 600 - wanted
    assert figures["monitor"]["labelled"] == wanted
    assert figures.keys() == {"fraud", "monitor", "recommend"}
