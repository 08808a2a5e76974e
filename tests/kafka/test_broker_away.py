"""A broker that is not there yet, or goes away for a while, costs nothing but time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cluster import Sent, Tail, Worker, stream

from streams.broker import Broker, free_port
from streams.kafka import KafkaLog
from streams.log import LogProducer, OutBatch

pytestmark = pytest.mark.kafka

N = 4_000
PARTITIONS = 2
RUN = ("--partitions", str(PARTITIONS))
AWAY_S = 5.0


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[list[Broker]]:
    """Brokers to stop at the end."""
    started: list[Broker] = []
    yield started
    for broker in started:
        broker.stop()


def queue(producer: LogProducer, records: Sequence[Sent]) -> None:
    """Gives the records to the producer, which keeps them while the broker is away."""
    batch = OutBatch("transactions", [value for _, _, value in records], [key for _, key, _ in records])
    assert producer.send(batch) == len(batch)


def test_a_worker_waits_for_its_broker_and_outlives_its_absence(tmp_path: Path, brokers: list[Broker]) -> None:
    port = free_port()
    bootstrap = f"127.0.0.1:{port}"
    records = stream(N).transactions
    with Worker(bootstrap, tmp_path, "away", *RUN) as worker:
        worker.wait_for_line(f"broker {bootstrap} is away")
        brokers.append(Broker.start(port, tmp_path / "data"))
        worker.wait_ready()

        log = KafkaLog(bootstrap, {})
        producer = log.producer()
        with Tail(log) as scores:
            queue(producer, records[: N // 2])
            scores.read(N // 4)
            brokers[0].stop()
            stopped = time.monotonic()
            queue(producer, records[N // 2 :])
            worker.until(lambda: worker.log.count("is away") >= 2, "the second absence in the log")
            worker.until(lambda: time.monotonic() - stopped > AWAY_S, "the broker's return")
            brokers[0].restart()
            worker.until(lambda: worker.log.count("is back after") >= 2, "the second return in the log")
            assert producer.flush(30) == 0
            producer.close()
            scores.read(N)
            figures = worker.stop()
    assert len(scores.by_source) == N
    assert scores.contradicting == 0
    assert "Traceback" not in worker.log
    assert figures["received"] == figures["scored"] + figures["dead_letters"] + figures["duplicates"]


def test_a_worker_leaves_in_time_while_its_broker_is_away(tmp_path: Path, brokers: list[Broker]) -> None:
    brokers.append(Broker.start())
    records = stream(N).transactions
    log = KafkaLog(brokers[0].bootstrap, {})
    with Worker(brokers[0].bootstrap, tmp_path, "away", *RUN, config="commit_interval_ms = 60000") as worker:
        worker.wait_ready()
        producer = log.producer()
        queue(producer, records)
        assert producer.flush(30) == 0
        producer.close()
        with Tail(log) as scores:
            scores.read(N)
        brokers[0].stop()
        worker.wait_for_line("is away")
        worker.stop(within_s=20)
    assert "Traceback" not in worker.log


def test_a_worker_that_waits_for_its_broker_leaves_at_once(tmp_path: Path) -> None:
    with Worker(f"127.0.0.1:{free_port()}", tmp_path, "away") as worker:
        worker.wait_for_line("is away")
        worker.stop(within_s=5)
