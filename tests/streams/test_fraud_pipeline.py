"""The fraud pipeline's tasks as pure functions of their logs: no broker, no clock, no threads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import lightgbm as lgb
import numpy as np
import orjson
import pytest
from fraud_logs import (
    DAY,
    HOUR,
    NOW,
    SETTINGS,
    Fed,
    Logs,
    Record,
    batch,
    cut,
    label,
    make_pipeline,
    processed,
    rows_of,
    transaction,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from features.fraud import DEFAULT
from models.lineup import Lineup
from models.slot import ModelSlot
from streams.errors import FatalError
from streams.log import TP
from streams.pipelines.fraud import FraudPipeline
from streams.topics import BY_TERMINAL, DEAD_LETTERS, FRAUD_SCORES, LABELS, LATE_EVENTS, TRANSACTIONS
from tests.oracles.windows import NaiveDedupe, NaiveWindows

LATENESS = SETTINGS.allowed_lateness_ms
BAD = {
    "not JSON": b"{",
    "not an object": b"[1]",
    "null": None,
    "empty": b"",
    "missing field": b'{"transaction_id":1,"event_time":1700000000000,"card_id":1,"amount":1}',
    "wrong type": b'{"transaction_id":1,"event_time":"now","card_id":1,"terminal_id":1,"amount":1}',
    "NaN": b'{"transaction_id":1,"event_time":1700000000000,"card_id":1,"terminal_id":1,"amount":NaN}',
    "negative": b'{"transaction_id":1,"event_time":1700000000000,"card_id":1,"terminal_id":1,"amount":-0.01}',
    "future": orjson.dumps(
        {"transaction_id": 1, "event_time": NOW + HOUR + 1, "card_id": 1, "terminal_id": 1, "amount": 1}
    ),
    "too old": b'{"transaction_id":1,"event_time":946684799999,"card_id":1,"terminal_id":1,"amount":1}',
    "10 MB": b'{"transaction_id":1,"pad":"' + b"x" * 10_000_000 + b'"}',
}


# --- a stream of records: repeats, late ones, bad ones, ids of both kinds ---


@st.composite
def streams(draw: st.DrawFn, max_size: int = 14) -> list[tuple[str, Record]]:
    """(topic, record) in the order of sending."""
    out: list[tuple[str, Record]] = []
    sent: list[tuple[int | str, int, Any]] = []
    time = NOW - 60 * DAY
    for i in range(draw(st.integers(1, max_size))):
        what = draw(st.sampled_from(["new", "new", "new", "new", "repeat", "bad", "label", "label"]))
        if what == "bad":
            name = draw(st.sampled_from(["not JSON", "null", "negative", "missing field"]))
            out.append((draw(st.sampled_from([TRANSACTIONS, LABELS])), Record(BAD[name], b"k", (("h", b"v"),))))
        elif what == "label" and sent:
            of, when, terminal = draw(st.sampled_from(sent))
            more = {"terminal_id": terminal} if draw(st.booleans()) else {}
            due = when + draw(st.sampled_from([DAY, 7 * DAY, 9 * DAY]))
            out.append((LABELS, label(of, due, draw(st.integers(0, 1)), **more)))
        elif what == "repeat" and sent:
            of, when, terminal = draw(st.sampled_from(sent))
            out.append((TRANSACTIONS, transaction(of, when, 1, terminal)))
        else:
            time += draw(st.sampled_from([0, 1, HOUR, 6 * HOUR, DAY, 7 * DAY]))
            own = time - draw(st.sampled_from([0, 0, 0, 1, HOUR, HOUR + 1, 3 * DAY]))
            of = draw(st.sampled_from([i, f"t-{i}"]))
            terminal = draw(st.sampled_from([7, "shop", "7"]))
            more = draw(st.sampled_from([{}, {}, {"channel": "web", "n": [1, None]}]))
            amount = draw(st.sampled_from([0.0, 0.1, 3.3, 1e6]))
            out.append((TRANSACTIONS, transaction(of, own, draw(st.sampled_from([1, "c"])), terminal, amount, **more)))
            sent.append((of, own, terminal))
    return out


def process(pipeline: FraudPipeline, topic: str, records: Sequence[Record], cuts: Sequence[int], into: Logs) -> None:
    task = pipeline.task(TP(topic, 0))
    for first, piece in cut(records, cuts):
        into.take(processed(task, batch(topic, piece, first)), pipeline.partitions)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(streams(max_size=8))
def test_the_senders_do_the_same_at_every_split(stream: list[tuple[str, Record]]) -> None:
    for topic in (TRANSACTIONS, LABELS):
        records = [r for t, r in stream if t == topic]
        whole = Logs()
        process(make_pipeline(partitions=2), topic, records, [], whole)
        for at in [[k] for k in range(1, len(records))] + [list(range(len(records)))]:
            split = Logs()
            pipeline = make_pipeline(partitions=2)
            process(pipeline, topic, records, at, split)
            for target in range(2):
                assert rows_of(split.records[BY_TERMINAL, target]) == rows_of(whole.records[BY_TERMINAL, target])
            assert split.of(DEAD_LETTERS) == whole.of(DEAD_LETTERS)
            assert split.of(LATE_EVENTS) == whole.of(LATE_EVENTS)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(streams(max_size=8), st.sampled_from(["arrival", "event_time"]))
def test_the_terminal_stage_does_the_same_at_every_split(stream: list[tuple[str, Record]], order: str) -> None:
    fed = Fed(make_pipeline(order))
    for topic, record in stream:
        fed.feed([record], topic)
    for now_s in (0.0, 1.0, 3.0):
        fed.tick(TRANSACTIONS, now_s)
        fed.tick(LABELS, now_s)
    shuffled = fed.logs.records[BY_TERMINAL, 0]
    for at in [[], *([k] for k in range(1, len(shuffled)))]:
        split = Logs()
        process(make_pipeline(order), BY_TERMINAL, shuffled, at, split)
        assert split.of(FRAUD_SCORES) == fed.logs.of(FRAUD_SCORES)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(streams(), st.data())
def test_a_replay_sends_nothing_and_leaves_the_same_state(
    stream: list[tuple[str, Record]], data: st.DataObject
) -> None:
    for topic in (TRANSACTIONS, LABELS):
        records = [r for t, r in stream if t == topic]
        at = data.draw(st.integers(0, len(records)))
        straight = make_pipeline().task(TP(topic, 0))
        processed(straight, batch(topic, records[:at]))
        expected, got = Logs(), Logs()
        expected.take(processed(straight, batch(topic, records[at:], at)), 1)

        restarted = make_pipeline()
        task = restarted.task(TP(topic, 0))
        for first, piece in cut(records[:at], data.draw(st.sets(st.integers(0, at)))):
            assert processed(task, batch(topic, piece, first, replay=True)) == []
        counts = restarted.meters.counts
        assert counts["received"] == counts["dead_letters"] == counts["duplicates"] == counts["labels"] == 0
        got.take(processed(task, batch(topic, records[at:], at)), 1)
        assert rows_of(got.of(BY_TERMINAL)) == rows_of(expected.of(BY_TERMINAL))
        assert got.of(DEAD_LETTERS) == expected.of(DEAD_LETTERS)
        assert got.of(LATE_EVENTS) == expected.of(LATE_EVENTS)


# --- against the oracle, row by row ---


class Expected:
    """Record by record: what must come of it, by the naive windows."""

    def __init__(self) -> None:
        self.dedupe = NaiveDedupe(SETTINGS.dedupe_ms, LATENESS, SETTINGS.dedupe_entries)
        self.windows = {
            entity: NaiveWindows(DEFAULT.for_entity(entity), LATENESS) for entity in ("card_id", "terminal_id")
        }
        self.duplicates = 0

    def transaction(self, event: dict[str, Any]) -> dict[str, Any] | None:
        time, who = event["event_time"], str(event["transaction_id"])
        if self.dedupe.row(who, time):
            self.duplicates += 1
            return None
        when = datetime.fromtimestamp(time / 1000, UTC)
        features = {"amount": event["amount"], "is_weekend": when.weekday() >= 5, "is_night": when.hour <= 6}
        late = False
        for entity, windows in self.windows.items():
            values, is_late = windows.row(str(event[entity]), time, {"amount": event["amount"]}, who)
            features.update(zip((f.name for f in windows.features), values, strict=True))
            late |= is_late
        return {"late": late, "features": {name: float(features[name]) for name in DEFAULT.names}}

    def label(self, event: dict[str, Any]) -> None:
        self.windows["terminal_id"].label(str(event["transaction_id"]), event["label_time"], event["is_fraud"] == 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(streams(max_size=40), st.data())
def test_scores_equal_the_oracle_and_everything_is_accounted_for(
    stream: list[tuple[str, Record]], data: st.DataObject
) -> None:
    oracle = Expected()
    rows = []
    bad = {TRANSACTIONS: 0, LABELS: 0}
    for topic, record in stream:
        if record.value in BAD.values():
            bad[topic] += 1
        elif topic == LABELS:
            oracle.label(orjson.loads(record.value or b""))
        else:
            event = orjson.loads(record.value or b"")
            row = oracle.transaction(event)
            if row is not None:
                extra = {k: v for k, v in event.items() if k in ("channel", "n")}
                rows.append(
                    {**{k: v for k, v in event.items() if k not in extra}, **row, "extra": extra, "reasons": []}
                    | {"score": None, "raw": None, "model": None}
                )
    fed = Fed(make_pipeline())
    size = data.draw(st.integers(1, 9))
    for topic, run in groupby(stream, lambda sent: sent[0]):
        records = [record for _, record in run]
        for first in range(0, len(records), size):
            fed.feed(records[first : first + size], topic)
    assert fed.scores() == rows
    figures = fed.pipeline.figures()
    assert figures["received"] == sum(t == TRANSACTIONS for t, _ in stream)
    assert figures["received"] == figures["scored"] + figures["dead_letters"] + figures["duplicates"]
    assert figures["duplicates"] == oracle.duplicates
    assert figures["dead_letters"] == bad[TRANSACTIONS]
    assert len(fed.logs.of(DEAD_LETTERS)) == sum(bad.values())
    assert figures["late"] == len(fed.logs.of(LATE_EVENTS))


def test_a_score_has_the_key_the_source_and_the_fields_of_the_contract_in_order() -> None:
    fed = Fed(make_pipeline())
    fed.feed([transaction("a-1", NOW - DAY), Record(b"{"), transaction(2, card="c", shop={"zip": "1"})])
    first, second = fed.logs.of(FRAUD_SCORES)
    assert (first.key, first.headers) == (b"a-1", (("source", b"transactions/0/0"),))
    assert (second.key, second.headers) == (b"2", (("source", b"transactions/0/2"),))
    value = orjson.loads(second.value or b"")
    ids_and_time = ["transaction_id", "event_time", "card_id", "terminal_id", "amount"]
    assert list(value) == [*ids_and_time, "score", "raw", "model", "late", "reasons", "features", "extra"]
    assert value["extra"] == {"shop": {"zip": "1"}}
    assert list(value["features"]) == list(DEFAULT.names)


def test_a_model_scores_the_logged_features_as_lightgbm_does() -> None:
    rng = np.random.default_rng(5)
    x = rng.random((400, len(DEFAULT))) * 10
    data = lgb.Dataset(x, (x[:, 0] + x[:, 4] > 10).astype(float), feature_name=list(DEFAULT.names))
    booster = lgb.train({"objective": "binary", "verbosity": -1, "num_leaves": 7}, data, 10)

    class Booster:
        label = "m@3"
        model = None

        @staticmethod
        def score(matrix: Any) -> tuple[Any, Any]:
            return booster.predict(matrix, raw_score=True), booster.predict(matrix)

        @staticmethod
        def reasons(*_: Any) -> None:
            return None

        @staticmethod
        def sets(*_: Any) -> None:
            return None

    slot = ModelSlot()
    slot.install(Lineup(Booster()))  # type: ignore[arg-type]
    fed = Fed(make_pipeline(slot=slot))
    fed.feed([transaction(i, NOW - DAY + i, amount=float(i)) for i in range(30)])
    scores = fed.scores()
    vectors = np.array([list(s["features"].values()) for s in scores])
    assert [s["score"] for s in scores] == booster.predict(vectors).tolist()
    assert [s["raw"] for s in scores] == booster.predict(vectors, raw_score=True).tolist()
    assert {s["model"] for s in scores} == {"m@3"}


# --- what is sent twice ---


def test_rows_that_were_sent_before_are_dropped_whatever_their_blocks() -> None:
    records = [transaction(i, NOW - DAY + i, card=i % 3) for i in range(9)]
    labels = [label(i, NOW - HOUR) for i in range(9)]
    once = Fed(make_pipeline())
    once.feed(records)
    once.feed(labels, LABELS)

    again = Fed(make_pipeline())
    again.feed(records[:6])
    again.feed(labels[:4], LABELS)
    restarted = Logs()  # from the committed offsets 2 and 1, in other blocks
    for topic, all_of_it, committed in ((TRANSACTIONS, records, 2), (LABELS, labels, 1)):
        task = again.pipeline.task(TP(topic, 0))
        processed(task, batch(topic, all_of_it[:committed], replay=True))
        for first, piece in cut(all_of_it[committed:], [1, 5]):
            restarted.take(processed(task, batch(topic, piece, committed + first)), 1)
    again.logs.records[BY_TERMINAL, 0] += restarted.of(BY_TERMINAL)
    again.read()
    assert again.pipeline.meters.counts["resent_rows"] == 4 + 3
    scores = [r.value for r in again.logs.of(FRAUD_SCORES)]
    assert scores == [r.value for r in once.logs.of(FRAUD_SCORES)]


def test_a_score_sent_again_after_a_crash_is_the_same_bytes() -> None:
    fed = Fed(make_pipeline())
    fed.feed([transaction(i, NOW - DAY + i) for i in range(8)])
    shuffled = fed.logs.records[BY_TERMINAL, 0]
    fed.feed([transaction(i, NOW - HOUR + i) for i in range(8, 12)])
    crashed = make_pipeline().task(TP(BY_TERMINAL, 0))
    assert processed(crashed, batch(BY_TERMINAL, shuffled[:1], replay=True)) == []
    again = Logs()
    again.take(processed(crashed, batch(BY_TERMINAL, shuffled[1:], 1)), 1)
    assert again.of(FRAUD_SCORES) == fed.logs.of(FRAUD_SCORES)[8:]


def test_a_source_topic_that_was_made_again_is_refused_with_a_remedy() -> None:
    fed = Fed(make_pipeline())
    fed.feed([transaction(1)])
    remade = Fed(make_pipeline(ids="other"))
    remade.feed([transaction(2)])
    task = fed.task(BY_TERMINAL)
    with pytest.raises(FatalError, match=r"topic-recreated.*transactions.*new --group"):
        processed(task, batch(BY_TERMINAL, remade.logs.records[BY_TERMINAL, 0], 1))


def test_a_damaged_shuffle_message_is_a_dead_letter_and_the_rest_is_scored() -> None:
    fed = Fed(make_pipeline())
    fed.logs.records[BY_TERMINAL, 0].append(Record(b"nonsense", None))
    fed.feed([transaction(1)])
    assert [s["transaction_id"] for s in fed.scores()] == [1]
    [dead] = fed.logs.of(DEAD_LETTERS)
    headers = dict(dead.headers)
    assert dead.value == b"nonsense"
    assert (headers["stage"], headers["source"]) == (b"terminal", b"fraud.by-terminal/0/0")


# --- bad records ---


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_a_dead_letter_as_it_came(name: str) -> None:
    fed = Fed(make_pipeline())
    bad = Record(BAD[name], b"the key", (("trace", b"\x00\xff"), ("trace", b"again")))
    fed.feed([transaction(1), bad, transaction(2)])
    [dead] = fed.logs.of(DEAD_LETTERS)
    assert (dead.value, dead.key) == (bad.value, bad.key)
    assert dead.headers[:2] == bad.headers
    added = dict(dead.headers[2:])
    assert list(added) == ["error", "stage", "source"]
    assert (added["stage"], added["source"]) == (b"card", b"transactions/0/1")
    assert len(added["error"]) > 10
    assert [s["transaction_id"] for s in fed.scores()] == [1, 2]
    assert fed.pipeline.figures() | {"received": 3, "scored": 2, "dead_letters": 1} == fed.pipeline.figures()


@pytest.mark.parametrize("value", [b"{", None, b'{"transaction_id":1,"label_time":1700000000000,"is_fraud":2}'])
def test_a_bad_label_is_a_dead_letter_of_its_own_stage(value: bytes | None) -> None:
    fed = Fed(make_pipeline())
    fed.feed([Record(value, b"k"), label(1, NOW)], LABELS)
    [dead] = fed.logs.of(DEAD_LETTERS)
    assert (dead.value, dead.key) == (value, b"k")
    assert dict(dead.headers)["stage"] == b"labels"
    assert dict(dead.headers)["source"] == b"transaction-labels/0/0"
    assert fed.pipeline.figures()["labels"] == 1
    assert fed.pipeline.figures()["dead_letters"] == 0, "received counts transactions, and so do the dead letters"


def test_only_bad_records_and_no_records_are_fine() -> None:
    task = make_pipeline().task(TP(TRANSACTIONS, 0))
    [dead] = processed(task, batch(TRANSACTIONS, [Record(b"{"), Record(None)]))
    assert len(dead) == 2
    assert processed(task, batch(TRANSACTIONS, [Record(b"{"), Record(None)])) == [], "offsets that were taken before"
    assert processed(task, batch(TRANSACTIONS, [], 2)) == []


# --- repeated, late, labels ---


def test_a_repeated_transaction_is_counted_and_neither_scored_nor_applied() -> None:
    fed = Fed(make_pipeline())
    fed.feed([transaction(1, NOW - 3 * HOUR), transaction(1, NOW - 2 * HOUR, amount=99.0), transaction(2, NOW)])
    fed.feed([transaction("1", NOW)])
    assert [s["transaction_id"] for s in fed.scores()] == [1, 2]
    assert fed.scores()[1]["features"]["card_count_1d"] == 2
    assert fed.pipeline.figures()["duplicates"] == 2
    later = Fed(make_pipeline())
    later.feed([transaction(1, NOW - 2 * DAY), transaction(1, NOW)])
    assert len(later.scores()) == 2, "24 h of event time later an id may come again"


def test_a_late_event_is_scored_flagged_copied_and_kept_out_of_the_windows() -> None:
    fed = Fed(make_pipeline())
    late = replace(transaction(2, NOW - LATENESS - 1, shop="x"), headers=(("h", b"1"),))
    fed.feed([transaction(1, NOW), late, transaction(3, NOW - LATENESS), transaction(4, NOW)])
    assert [s["late"] for s in fed.scores()] == [False, True, False, False]
    assert fed.scores()[3]["features"]["card_count_1d"] == 3
    [copy] = fed.logs.of(LATE_EVENTS)
    value = orjson.loads(copy.value or b"")
    assert value["event"] == orjson.loads(late.value or b"")
    assert value["lateness_ms"] == LATENESS + 1
    assert "windows" in value["done"]
    assert copy.key == late.key
    assert dict(copy.headers)["source"] == b"transactions/0/1"
    assert fed.pipeline.figures()["late"] == 1


def test_what_is_late_only_by_terminal_is_copied_there() -> None:
    """Two cards in two partitions race each other to one terminal: the second is late there, not by its card."""
    pipeline = make_pipeline(partitions=2)
    logs, scores = Logs(), []
    early, late = transaction(1, NOW, card=1), transaction(2, NOW - LATENESS - 5, card="c", shop="x")
    for p, record in enumerate((early, late)):
        logs.take(processed(pipeline.task(TP(TRANSACTIONS, p)), batch(TRANSACTIONS, [record], 7, p)), 2)
    assert logs.of(LATE_EVENTS) == []
    [(target, shuffled)] = [(p, r) for (t, p), r in logs.records.items() if t == BY_TERMINAL and r]
    for out in processed(pipeline.task(TP(BY_TERMINAL, target)), batch(BY_TERMINAL, shuffled, 0, target)):
        logs.take([out], 2)
    scores = sorted((orjson.loads(r.value or b"") for r in logs.of(FRAUD_SCORES)), key=lambda s: s["transaction_id"])
    assert [s["late"] for s in scores] == [False, True] and scores[1]["features"]["card_count_1d"] == 1
    [copy] = logs.of(LATE_EVENTS)
    value = orjson.loads(copy.value or b"")
    assert value["event"] == orjson.loads(late.value or b"") and value["lateness_ms"] == LATENESS + 5
    assert copy.key == late.key and dict(copy.headers) == {"stage": b"terminal", "source": b"transactions/1/7"}
    assert pipeline.figures()["late"] == 1


@pytest.mark.parametrize("named", [True, False])
def test_a_label_reaches_its_terminal_with_and_without_its_name(named: bool) -> None:
    pipeline = make_pipeline(partitions=4)
    logs = Logs()
    cards = pipeline.task(TP(TRANSACTIONS, 0))
    logs.take(processed(cards, batch(TRANSACTIONS, [transaction(1, NOW - 8 * DAY, terminal="t")])), 4)
    more = {"terminal_id": "t"} if named else {}
    logs.take(processed(pipeline.task(TP(LABELS, 0)), batch(LABELS, [label(1, NOW - DAY, **more)])), 4)
    logs.take(processed(cards, batch(TRANSACTIONS, [transaction(2, NOW, terminal="t")], 1)), 4)
    assert sum(len(r) for (t, _), r in logs.records.items() if t == BY_TERMINAL) == 2 + (1 if named else 4)
    scores = []
    for target in range(4):
        shuffled = logs.records[BY_TERMINAL, target]
        for out in processed(pipeline.task(TP(BY_TERMINAL, target)), batch(BY_TERMINAL, shuffled, 0, target)):
            scores += [orjson.loads(v or b"") for v in out.values]
    assert [s["features"]["terminal_risk_7d"] for s in scores] == [0.0, 1.0]


# --- watermarks ---


def test_senders_tell_all_targets_how_far_they_are_and_idle_only_at_the_end_of_a_log_that_had_records() -> None:
    pipeline = make_pipeline("event_time", partitions=2)
    task = pipeline.task(TP(TRANSACTIONS, 0))
    assert task.tick(0.0, True) == []
    processed(task, batch(TRANSACTIONS, [transaction(1, NOW)]))
    first = Logs()
    first.take(task.tick(0.0, False), 2)
    assert len(first.of(BY_TERMINAL)) == 2
    assert task.tick(1.0, False) == []
    assert task.tick(2.0, True) == [] and task.tick(2.9, True) == []
    assert task.tick(2.95, False) == [] and task.tick(3.0, True) == [], "no longer at its end: the count begins again"
    assert len(task.tick(4.1, True)) == 2
    assert task.tick(9.0, True) == [], "told once"


@pytest.mark.parametrize("topic", [TRANSACTIONS, LABELS])
def test_a_restarted_sender_still_tells_its_watermark(topic: str) -> None:
    pipeline = make_pipeline("event_time")
    record = transaction(1, NOW) if topic == TRANSACTIONS else label(1, NOW)
    assert pipeline.is_stateful(topic)
    task = pipeline.task(TP(topic, 0))
    processed(task, batch(topic, [record], replay=True))
    assert [len(out) for out in task.tick(0.0, True)] == [1]


def test_a_source_without_any_record_is_waited_for_longer_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    fed = Fed(make_pipeline("event_time"))
    fed.pipeline.first_wait_s = 30.0
    fed.feed([transaction(1, NOW), transaction(2, NOW + 1)])
    for now_s in (0.0, 0.5, 2.0, 3.0):
        fed.tick(TRANSACTIONS, now_s)
        fed.tick(LABELS, now_s)
    with caplog.at_level(logging.WARNING):
        for now_s in (3.0, 10.0, 20.0, 25.0):
            fed.tick(BY_TERMINAL, now_s)
    [warning] = [r.getMessage() for r in caplog.records]
    assert "2 rows have waited 17 s for transaction-labels/0" in warning
    fed.tick(LABELS, 29.9)
    assert fed.scores() == []
    fed.tick(LABELS, 30.1)
    assert [s["transaction_id"] for s in fed.scores()] == [1, 2]
    caplog.clear()
    fed.feed([label(1, NOW), label(2, NOW + 10**9)], LABELS)
    assert fed.pipeline.figures()["overtaken"] == 1
    assert "without any record for first_wait_ms" in caplog.text and "counted as overtaken" in caplog.text


def test_more_rows_than_may_wait_go_on_early_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    fed = Fed(make_pipeline("event_time"))
    fed.task(BY_TERMINAL).order.rows_max = 3
    with caplog.at_level(logging.WARNING):
        for i in range(5):
            fed.feed([transaction(i, NOW + i)])
    assert [s["transaction_id"] for s in fed.scores()] == [0, 1] and fed.pipeline.figures()["forced"] == 2
    [warning] = [r.getMessage() for r in caplog.records]
    assert "too many rows wait" in warning


@pytest.mark.parametrize("jitter_ms", [0, 60_000])
def test_events_out_of_order_within_the_delay_get_the_features_of_their_order(jitter_ms: int) -> None:
    """Every card once, so that only the order by terminal matters: equal to the sorted events, however they came."""
    pipeline = make_pipeline("event_time")
    pipeline.watermark_delay_ms = jitter_ms
    rng = np.random.default_rng(5)
    times = NOW - DAY + np.sort(rng.integers(0, 2 * HOUR, 500))
    events = [transaction(i, int(t), card=i, terminal=i % 3, amount=i + 0.5) for i, t in enumerate(times)]
    known = [label(i, int(t) + 3 * DAY, i % 2) for i, t in enumerate(times)]
    arrival = np.argsort(times + rng.integers(0, jitter_ms + 1, 500), kind="stable")
    fed, exact = Fed(pipeline), Fed(make_pipeline("event_time"))
    for where, order in ((fed, arrival), (exact, np.arange(500))):
        where.feed(known, LABELS)
        for first in range(0, 500, 50):
            where.feed([events[i] for i in order[first : first + 50]])
        for now_s in (0.0, 0.1, 1.2):
            where.tick(TRANSACTIONS, now_s)
            where.tick(LABELS, now_s)
    assert [s["transaction_id"] for s in exact.scores()] == list(range(500))
    assert fed.scores() == exact.scores()
    assert jitter_ms == 0 or (np.diff(arrival) < 0).sum() > 50


def test_what_may_still_come_at_the_newest_time_is_waited_for() -> None:
    fed = Fed(make_pipeline("event_time"))
    fed.feed([label(9, NOW + DAY)], LABELS)
    fed.feed([transaction(2, NOW - DAY)])
    fed.feed([transaction(1, NOW - DAY)])
    fed.feed([transaction(3, NOW - HOUR), transaction(4, NOW)])
    assert [s["transaction_id"] for s in fed.scores()] == [1, 2, 3]


def test_by_event_time_the_arrival_order_of_sources_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    events = [transaction(i, NOW - 30 * DAY + i * HOUR, card=i % 5, terminal=i % 3) for i in range(400)]
    known = [label(i, NOW - 30 * DAY + i * HOUR + 7 * DAY, int(i % 4 == 0)) for i in range(400)]
    results = []
    for _ in range(3):
        fed = Fed(make_pipeline("event_time"))
        left = {TRANSACTIONS: list(events), LABELS: list(known)}
        while any(left.values()):
            topic = str(rng.choice([t for t, r in left.items() if r]))
            n = int(rng.integers(1, 60))
            fed.feed(left[topic][:n], topic)
            left[topic] = left[topic][n:]
            if rng.random() < 0.5:
                fed.tick(topic, 0.0, at_end=False)
        for now_s in (10.0, 11.0, 12.0):
            fed.tick(TRANSACTIONS, now_s)
            fed.tick(LABELS, now_s)
        results.append(fed.scores())
    assert len(results[0]) == 400
    assert results[0] == results[1] == results[2]


# --- keys in two partitions ---


def test_one_key_in_two_partitions_is_warned_about_once_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = make_pipeline(partitions=2)
    tasks = [pipeline.task(TP(TRANSACTIONS, p)) for p in range(2)]
    with caplog.at_level(logging.WARNING):
        for k in range(3):
            for p, task in enumerate(tasks):
                processed(task, batch(TRANSACTIONS, [transaction(10 * k + p, card=k)], k, p))
    [warning] = [r.getMessage() for r in caplog.records]
    assert "partitioner=murmur2_random" in warning
    assert pipeline.figures()["keys_in_two_partitions"] == 3


@pytest.mark.parametrize("order", ["arrival", "event_time"])
def test_a_run_of_several_partitions_equals_one_after_the_other(order: str) -> None:
    """Decoded, scored and encoded together: the same records as each alone, dead letters and extra fields included."""
    records = [
        [transaction(1, card=1), Record(b"{"), transaction(2, card=1, shop="x")],
        [Record(None)],
        [transaction(3, card="c", terminal="t"), transaction(3, card="c", terminal="t")],
        [transaction(4, card=5)],
    ]
    together, alone = (make_pipeline(order, partitions=4) for _ in range(2))
    out_together, out_alone = Logs(), Logs()
    batches = [batch(TRANSACTIONS, of, 10 * p, p) for p, of in enumerate(records)]
    parts = [(together.task(b.tp), b) for b in batches]
    out_together.take(together.process(parts), 4)
    for b in batches:
        out_alone.take(processed(alone.task(b.tp), b), 4)
    assert rows_of(out_together.of(BY_TERMINAL)) == rows_of(out_alone.of(BY_TERMINAL))
    assert out_together.of(DEAD_LETTERS) == out_alone.of(DEAD_LETTERS) and len(out_alone.of(DEAD_LETTERS)) == 2
    shuffled = [batch(BY_TERMINAL, out_alone.records[BY_TERMINAL, p], 0, p) for p in range(4)]
    scored_together = together.process([(together.task(b.tp), b) for b in shuffled])
    scored_alone = [out for b in shuffled for out in processed(alone.task(b.tp), b)]
    values = [(v, h) for out in scored_together for v, h in zip(out.values, out.headers or [], strict=True)]
    assert values == [(v, h) for out in scored_alone for v, h in zip(out.values, out.headers or [], strict=True)]
    assert len(values) == (4 if order == "arrival" else 0)
    assert together.figures() == alone.figures()
