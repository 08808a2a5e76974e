"""Slow is not gone: a worker whose batches take long stays in its group, and a broker that is slow loses nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import QUICK, Feed, Tail, Worker, fresh_topics, send, sources, stream
from inside import ThreadWorker
from proxy import Proxy

from streams.broker import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PARTITIONS = 2
BY_EVENT_TIME = ("--order", "event_time", "--partitions", str(PARTITIONS))


@pytest.fixture
def proxy(kafka: Broker) -> Iterator[Proxy]:
    proxy = Proxy(kafka.port)
    yield proxy
    proxy.close()


def test_a_worker_whose_batches_take_longer_than_its_session(kafka: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Polling keeps the session alive while a stage works."""
    caplog.set_level(logging.INFO, "headrace")
    few = stream(100)
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    send(log, few.records)
    session = {"consumer.session.timeout.ms": 2000, "consumer.heartbeat.interval.ms": 400}
    with Tail(log) as tail:
        worker = ThreadWorker(kafka.bootstrap, "slow", score_s=0.05, partitions=PARTITIONS, kafka=session)
        tail.read(len(few.transactions))
        figures = worker.stop()
    assert figures["scored"] == len(few.transactions) and figures["replayed"] == 0
    assert tail.features() == few.features() and tail.repeated == 0
    assert not [record for record in caplog.records if "lost" in record.getMessage()]


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_broker_that_is_slow_and_a_queue_that_is_full(
    kafka: Broker, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    some = stream(2_000)
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    config = f'delivery = "{delivery}"\n{QUICK}producer.queue.buffering.max.messages = 50\n'
    options = (f"127.0.0.1:{proxy.port}", tmp_path, f"full-{delivery}", *BY_EVENT_TIME)
    with Worker(*options, config=config) as worker, Tail(log) as tail:
        worker.wait_ready()
        proxy.delay_s = 0.1
        Feed(log, some.records, per_s=4_000).join()
        tail.read(len(some.transactions))
        proxy.delay_s = 0.0
        figures = worker.stop(within_s=20)
    assert figures["received"] == figures["scored"] == len(some.transactions)
    assert tail.repeated == 0 and set(tail.by_source) == sources(log)
    assert tail.features() == some.features()
    assert "Traceback" not in worker.log
