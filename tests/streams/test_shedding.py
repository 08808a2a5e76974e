"""Load shedding: what is not scored is in the windows all the same, counted, named, and the same when read again."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import orjson
import pytest
from fed_fraud import START, Fed, N, events

from features.block import Block
from streams.config import load_settings
from streams.errors import ConfigError
from streams.log import TP
from streams.rows import Rows
from streams.shedding import Shedder, SheddingPolicy
from streams.topics import FRAUD_SCORES, LATE_EVENTS, SHED_EVENTS, TRANSACTIONS

DAY = 86_400_000


def shedder(text: str, now_ms: int, oldest_sent_ms: int | None = None) -> Shedder:
    policy = SheddingPolicy.parse(text)
    assert policy is not None
    return Shedder(policy, lambda: oldest_sent_ms, now_s=lambda: now_ms / 1000)


def block(timestamps: list[int], amounts: list[float], late: list[bool]) -> Block:
    columns: dict[str, Any] = {"amount": np.array(amounts), "late": np.array(late)}
    n = np.array(timestamps, np.int64)
    return Block(TRANSACTIONS, 0, len(n), np.arange(len(n)), n, columns=columns)


@pytest.mark.parametrize(
    "text", ["", "older", "older:", "older:x", "older:0", "older:nan", "older:2,older:3", "below:5"]
)
def test_a_policy_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="older:SECONDS"):
        SheddingPolicy.parse(text)


def test_the_setting() -> None:
    assert load_settings(environment={}).shedding() is None
    assert load_settings(environment={"HEADRACE_SHED": "older:1.5"}).shedding() == SheddingPolicy(1.5)
    with pytest.raises(ConfigError, match="setting shed: 'yes' is not a policy"):
        load_settings(environment={}, overrides={"shed": "yes"})


@pytest.mark.parametrize(
    ("text", "oldest_sent_ms", "expected"),
    [
        ("older:10", None, [False, True, False, False, False, True]),
        # the terminal stage is at what was sent to it 9 s ago: what goes out now is scored 9 s from now
        ("older:10", START - 9_000, [False, True, False, True, False, True]),
        ("older:10,below:50", None, [False, False, False, False, False, True]),
        ("older:60", None, None),
    ],
)
def test_what_is_chosen(text: str, oldest_sent_ms: int | None, expected: list[bool] | None) -> None:
    """Not what has no timestamp, and not what was late."""
    sent = [-1, START - 11_000, START - 11_000, START - 5_000, START, START - 20_000]
    rows = block(sent, [1, 50, 1, 50, 1, 49.99], [False, False, True, False, False, False])
    chosen = shedder(text, START, oldest_sent_ms).choose(rows)
    assert (None if chosen is None else chosen.tolist()) == expected


def test_it_is_said_when_it_begins_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock: list[float] = []
    made = Shedder(SheddingPolicy(10), now_s=lambda: START / 1000, clock_s=lambda: clock[-1])
    old, fresh = block([START - 20_000] * 3, [1.0] * 3, [False] * 3), block([START], [1.0], [False])
    for at, rows in ((0.0, fresh), (1.0, old), (2.0, fresh), (4.0, old), (8.0, fresh), (9.5, fresh), (30.0, fresh)):
        clock.append(at)
        made.choose(rows)
    assert [record.getMessage()[:42] for record in caplog.records] == [
        "overload: transactions that would be score",
        "6 transactions were shed in 3 s; none sinc",
    ]


def test_rows_with_and_without_the_flag_are_joined() -> None:
    of = [block([START + i], [1.0], [False]) for i in range(3)]
    of[1].columns["shed"] = np.array([True])
    joined = Rows.concat([Rows.of(one) for one in of]).block("", 0, 0)
    assert joined.columns["shed"].tolist() == [False, True, False]
    assert Rows.concat([Rows.of(of[1]), Rows.of(of[0])]).block("", 0, 0).columns["shed"].tolist() == [True, False]


@pytest.mark.parametrize("order", ["arrival", "event_time"])
def test_features_of_the_others_are_those_without_shedding(order: str) -> None:
    values, sent_ms = events()
    fed, whole = Fed(order, shedder("older:10", START)), Fed(order, None)
    for run in (fed, whole):
        for start in range(0, N, 7):
            run.take(TRANSACTIONS, values[start : start + 7], sent_ms[start : start + 7])
        run.finish()
    left_out = set(range(0, N, 3))
    expected = [score for score in whole.of(FRAUD_SCORES) if score["transaction_id"] not in left_out]
    assert len(whole.of(FRAUD_SCORES)) == N and fed.of(FRAUD_SCORES) == expected
    figures = fed.pipeline.figures()
    assert (figures["received"], figures["scored"], figures["shed"]) == (N, N - len(left_out), len(left_out))
    named = fed.of(SHED_EVENTS)
    assert [i for one in named for i in one["transaction_ids"]] == sorted(left_out)
    assert [i for one in named for i in one["offsets"]] == sorted(left_out)
    assert {(one["topic"], one["partition"]) for one in named} == {(TRANSACTIONS, 0)}
    sources = [out.headers_of(0) for out in fed.sent[SHED_EVENTS]]
    assert sources[0] == [("stage", b"terminal"), ("source", b"fraud.by-terminal/0/0")]
    assert whole.of(SHED_EVENTS) == [] and whole.pipeline.figures()["shed"] == 0


def test_what_is_sent_again_keeps_the_first_decision() -> None:
    """A worker that was killed before it committed decides anew, by a later clock: the log has decided already."""
    values, sent_ms = events()
    fed = Fed("arrival", shedder("older:10", START))
    fed.take(TRANSACTIONS, values, sent_ms)
    scores, named = fed.of(FRAUD_SCORES), fed.of(SHED_EVENTS)
    fed.pipeline.shedder = shedder("older:10", START + 100_000)
    fed.tasks[TRANSACTIONS] = fed.pipeline.task(TP(TRANSACTIONS, 0))
    fed.take(TRANSACTIONS, values, sent_ms, at=0)
    assert fed.of(FRAUD_SCORES) == scores and fed.of(SHED_EVENTS) == named
    assert fed.pipeline.figures()["shed"] == len(range(0, N, 3))


def test_a_shed_event_that_is_late_by_terminal_is_copied_as_such() -> None:
    fed = Fed("arrival", shedder("older:10", START))
    for i, (card, at, sent) in enumerate(
        [(1, START, START), (2, START - DAY, START - 60_000), (3, START - DAY, START)]
    ):
        event = {"transaction_id": i, "event_time": at, "card_id": card, "terminal_id": 7, "amount": 1.0}
        # each by a task of its own, as of another partition: only the terminal stage sees that two are late
        fed.tasks[TRANSACTIONS] = fed.pipeline.task(TP(TRANSACTIONS, 0))
        fed.take(TRANSACTIONS, [orjson.dumps(event)], [sent])
    assert [score["transaction_id"] for score in fed.of(FRAUD_SCORES)] == [0, 2]
    done = {copy["event"]["transaction_id"]: copy["done"].partition(";")[0] for copy in fed.of(LATE_EVENTS)}
    assert done == {1: "shed, not scored", 2: "scored and flagged late"}
    assert fed.pipeline.figures()["late"] == 1
