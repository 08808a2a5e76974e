"""Workers come, go and die while events flow: every transaction is scored, and by event time the features are exact."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Feed, Tail, Worker, fresh_topics, sources, stream

from streams.broker import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

N = 20_000
STREAM = stream(N)


def test_a_worker_is_killed_under_load_and_another_takes_over(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap)
    options = (kafka.bootstrap, tmp_path, "killed", "--order", "event_time")
    with Worker(*options) as first, Worker(*options) as second, Tail(log) as tail:
        first.wait_ready()
        second.wait_ready()
        feed = Feed(log, STREAM.records, per_s=8_000)
        feed.wait_for(0.4)
        tail.read(1)
        first.kill()
        feed.join()
        tail.read(N)
        figures = second.stop()
    assert set(tail.by_source) == sources(log)
    assert tail.contradicting == 0, "what is sent twice is the same bytes under the same key"
    assert tail.features() == STREAM.features()
    assert 0 < figures["received"] < 2 * N
    assert figures["dead_letters"] == figures["late"] == 0


def test_two_and_three_workers_join_and_leave(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap)
    options = (kafka.bootstrap, tmp_path, "joining")
    with Worker(*options) as first, Tail(log) as tail:
        first.wait_ready()
        feed = Feed(log, STREAM.records, per_s=500)
        with Worker(*options) as second, Worker(*options) as third:
            second.wait_ready()
            third.wait_ready()
            feed.hurry(5_000)
            feed.wait_for(0.7)
            figures = [second.stop()]
            feed.join()
            tail.read(N)
            figures += [third.stop(), first.stop()]
    assert set(tail.by_source) == sources(log)
    assert len(tail.records) == N, "a clean rebalance sends nothing twice"
    for name in ("received", "scored", "labels"):
        assert sum(f[name] for f in figures) == N
    assert all(f["received"] + f["scored"] + f["labels"] > 0 for f in figures), figures
