"""A wall clock that steps back and forth: nothing waits by it, so nothing hangs, and no feature depends on it."""

from __future__ import annotations

import random
import time
import uuid

import pytest
from cluster import Tail, send, stream
from inside import ThreadWorker

from streams.log import connect
from streams.topics import FRAUD_SCORES, LABELS, TRANSACTIONS, topic_infos

pytestmark = pytest.mark.timeout(120)

N = 400
STREAM = stream(N)
MONTH_S = 30 * 86_400.0


def test_a_clock_that_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By event time, rows are released by marks that senders make when they have been quiet for a second."""
    log = connect(f"memory://{uuid.uuid4().hex}")
    log.admin().create_topics(topic_infos((TRANSACTIONS, LABELS, FRAUD_SCORES), 2))
    steps, now, now_ns = random.Random(1), time.time, time.time_ns
    asked = []

    def stepping() -> float:
        asked.append(None)
        return now() + steps.uniform(-MONTH_S, MONTH_S)

    worker = ThreadWorker(log.url, "steps", partitions=2, lag_said_ms=100)
    monkeypatch.setattr(time, "time", stepping)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int((stepping() - now()) * 1e9))
    with Tail(log) as tail:
        for start in range(0, len(STREAM.records), 200):
            send(log, STREAM.records[start : start + 200])
        tail.read(N)
    figures = worker.stop()
    assert figures["received"] == figures["scored"] == N and figures["late"] == figures["forced"] == 0
    assert tail.features() == STREAM.features() and len(asked) > 10
