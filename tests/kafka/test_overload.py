"""More comes in than can be scored: what waits is bounded and told, by policy some is not scored, and it recovers."""

from __future__ import annotations

import logging
from typing import Any

import orjson
import pytest
from cluster import Feed, Tail, fresh_topics, stream, until
from inside import ThreadWorker

from streams.broker import Broker
from streams.fraud_worker import make_pipeline
from streams.log import Log
from streams.topics import SHED_EVENTS, TRANSACTIONS
from streams.verify import verify_fraud

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

N = 3_000
PARTITIONS = 2
BATCH = 16
#: a score takes so long, so 400 transactions a second are all that this worker can do
SCORE_S = 0.0025
CAPACITY = 1 / SCORE_S
STREAM = stream(N)


def overloaded(bootstrap: str, group: str, **settings: Any) -> ThreadWorker:
    wanted = {"partitions": PARTITIONS, "batch_records": BATCH, "lag_said_ms": 1_000}
    return ThreadWorker(bootstrap, group, score_s=SCORE_S, **wanted, **settings)


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def check_verified(log: Log, worker: ThreadWorker) -> None:
    for result in verify_fraud(log, worker.settings.group, lambda: make_pipeline(worker.settings)):
        assert result.rows > 0 and result.mismatching_rows == 0, result


def test_three_times_too_much_waits_its_turn_and_is_told(kafka: Broker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace")
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    worker = overloaded(kafka.bootstrap, "too-much")
    with Tail(log) as tail:
        # half of the records are transactions
        feed = Feed(log, STREAM.records, per_s=2 * 3 * CAPACITY)
        feed.join()
        tail.read(N)
    until(lambda: worker.idle() and bool(said(caplog, f"{TRANSACTIONS}: caught up")), "the lag to go")
    figures = worker.stop()
    assert (figures["received"], figures["scored"], figures["shed"]) == (N, N, 0)
    assert tail.features() == STREAM.features()
    bound = worker.settings.batch_records * 4 * PARTITIONS * 3
    assert 0 < worker.in_flight <= bound < N
    assert worker.records["card"] > bound, "more waited in the log than in memory"
    assert len(said(caplog, f"{TRANSACTIONS}: behind")) == len(said(caplog, f"{TRANSACTIONS}: caught up"))


def test_by_policy_what_is_old_is_not_scored_and_what_is_fresh_is(
    kafka: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace")
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    worker = overloaded(kafka.bootstrap, "shedding", shed="older:1")
    last = STREAM.records[-20:]
    of_last = {orjson.loads(value)["transaction_id"] for topic, _, value in last if topic == TRANSACTIONS}
    with Tail(log) as tail:
        Feed(log, STREAM.records[:-20], per_s=2 * 3 * CAPACITY).join()
        until(worker.idle, "the lag to go")
        until(
            lambda: sum(worker.pipeline.meters.counts[of] for of in ("scored", "shed")) >= N - 30, "the overload's end"
        )
        Feed(log, last, per_s=20).join()
        until(lambda: worker.counted("scored", "shed") == N, "the last ones")
        figures = worker.stop()
        tail.read(figures["scored"])
    assert figures["received"] == N == figures["scored"] + figures["shed"]
    assert 0 < figures["shed"] < N
    assert said(caplog, "overload: transactions")
    features, scored = STREAM.features(), tail.features()
    assert of_last <= scored.keys(), "what came when it had recovered is scored"
    assert scored == {i: vector for i, vector in features.items() if i in scored}
    with Tail(log, SHED_EVENTS) as named:
        until(lambda: named.poll() or sum(map(_count, named.records)) == figures["shed"], "all that was shed")
    ids = [i for out in named.records for i in orjson.loads(out.value or b"")["transaction_ids"]]
    assert sorted([*ids, *scored]) == sorted(features)
    check_verified(log, worker)


def _count(out: Any) -> int:
    return len(orjson.loads(out.value)["transaction_ids"])
