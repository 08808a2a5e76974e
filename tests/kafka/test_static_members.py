"""Static membership: a worker that comes back in time gets its partitions again, and nobody else notices."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Tail, Worker, fresh_topics, send, stream

from streams.broker import Broker

pytestmark = pytest.mark.kafka

STREAM = stream(3_000)


def member(name: str) -> str:
    return f"""
commit_interval_ms = 100
[kafka]
consumer.group.instance.id = "{name}"
consumer.session.timeout.ms = 30000
"""


def test_a_member_that_comes_back_moves_no_partition(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap)
    options = (kafka.bootstrap, tmp_path, "static", "--order", "event_time")
    with Worker(*options, config=member("a")) as stays, Tail(log) as tail:
        stays.wait_ready()
        with Worker(*options, config=member("b")) as leaves:
            leaves.wait_ready()
            stays.wait_for_line("revoked")
            leaves.stop()
        seen = stays.log
        send(log, STREAM.records)
        with Worker(*options, config=member("b")) as back:
            back.wait_ready()
            tail.read(len(STREAM.transactions))
            back.stop()
        assert stays.log.replace(seen, "").count("assigned") == 0, stays.log
        stays.stop()
    assert tail.features() == STREAM.features()
