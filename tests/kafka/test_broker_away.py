"""A broker that is not there yet, or goes away for a while, costs nothing but time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import FIGURES, TopicReader, WorkerProcess, by_source, keys_of, until_scored, values_of, world

from streams.broker import Broker, free_port
from streams.kafka import KafkaLog
from streams.log import LogProducer, OutBatch
from streams.simulator import Columns

pytestmark = pytest.mark.kafka

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


def queue(producer: LogProducer, transactions: Columns, start: int, end: int) -> None:
    """Gives the rows to the producer, which keeps them while the broker is away."""
    values, keys = values_of(transactions), keys_of(transactions, "card_id")
    assert producer.send(OutBatch("transactions", values[start:end], keys[start:end])) == end - start


def test_a_worker_waits_for_its_broker_and_outlives_its_absence(tmp_path: Path, brokers: list[Broker]) -> None:
    port = free_port()
    bootstrap = f"127.0.0.1:{port}"
    transactions, _ = world(days=2, cards=1000)
    n = len(transactions["transaction_id"])
    with WorkerProcess(bootstrap, tmp_path, *RUN) as worker:
        worker.until_logged(f"broker {bootstrap} is away")
        brokers.append(Broker.start(port, tmp_path / "data"))
        worker.until_ready()

        log = KafkaLog(bootstrap, {})
        producer = log.producer()
        with TopicReader(log, "fraud-scores", PARTITIONS) as scores:
            queue(producer, transactions, 0, n // 2)
            until_scored(scores, n // 4)
            brokers[0].stop()
            stopped = time.monotonic()
            queue(producer, transactions, n // 2, n)
            worker.until(lambda: worker.log.count("is away") == 2, "the second absence in the log")
            worker.until(lambda: time.monotonic() - stopped > AWAY_S, "the broker's return")
            brokers[0].restart()
            worker.until(lambda: worker.log.count("is back after") == 2, "the second return in the log")
            assert producer.flush(30) == 0
            producer.close()
            until_scored(scores, n)
            figures = worker.stop(within_s=10)
            records = scores.all()
    assert len(by_source(records)) == n
    assert "Traceback" not in worker.log
    received, scored, dead_letters, duplicates = (figures[name] for name in FIGURES)
    assert received == scored + dead_letters + duplicates


def test_a_worker_leaves_in_time_while_its_broker_is_away(tmp_path: Path, brokers: list[Broker]) -> None:
    brokers.append(Broker.start())
    transactions, _ = world(days=1, cards=500)
    n = len(transactions["transaction_id"])
    log = KafkaLog(brokers[0].bootstrap, {})
    with WorkerProcess(brokers[0].bootstrap, tmp_path, *RUN, config="commit_interval_ms = 60000") as worker:
        worker.until_ready()
        producer = log.producer()
        queue(producer, transactions, 0, n)
        assert producer.flush(30) == 0
        producer.close()
        with TopicReader(log, "fraud-scores", PARTITIONS) as scores:
            until_scored(scores, n)
        brokers[0].stop()
        worker.until_logged("is away")
        worker.stop(within_s=20)
    assert "Traceback" not in worker.log


def test_a_worker_that_waits_for_its_broker_leaves_at_once(tmp_path: Path) -> None:
    with WorkerProcess(f"127.0.0.1:{free_port()}", tmp_path) as worker:
        worker.until_logged("is away")
        worker.stop(within_s=5)
