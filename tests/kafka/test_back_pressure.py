"""A broker that does not answer fills the producer's queue: the stage waits, and nothing is lost or sent twice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cluster import Tail, Worker, fresh_topics, paused, send, stream, until

from streams.broker import Broker
from streams.log import Log

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


def test_a_full_producer_queue_holds_the_stage_back_and_loses_nothing(kafka: Broker, tmp_path: Path) -> None:
    n = 5_000
    log: Log = fresh_topics(kafka.bootstrap)
    send(log, stream(n).transactions)
    config = "commit_interval_ms = 100\n[kafka]\nproducer.queue.buffering.max.messages = 100\n"
    with Worker(kafka.bootstrap, tmp_path, "full", config=config) as worker, Tail(log) as tail:
        worker.wait_ready()
        until(lambda: tail.poll() or len(tail.records) > 0, "the first scores")
        assert kafka.pid is not None
        go_on = paused(kafka.pid)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                worker.process.wait(3)  # lives on, waiting
        finally:
            go_on()
        tail.read(n)
        figures = worker.stop()
    assert (figures["received"], figures["scored"]) == (n, n)
    assert len(tail.records) == n, "what waited was sent once"
