"""The monitor's stage as a pure function of its log, and what the fraud pipeline sends to it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pytest
from fraud_history import history
from fraud_logs import DAY, HOUR, NOW, Fed, Logs, Record, batch, label, processed, transaction
from monitor_logs import JOIN, PARTITIONS, Stages, fraud_pipeline, monitor_log, monitor_pipeline
from state_walk import differences

from features.fraud import DEFAULT
from features.plan import StateError
from monitoring.labels import JoinSettings
from streams.log import TP, OutBatch
from streams.pipelines.fraud_monitor import MODEL
from streams.shuffle import unpack
from streams.topics import BY_TERMINAL, BY_TRANSACTION, DEAD_LETTERS, FRAUD_SCORES, LABELLED, LABELS, TRANSACTIONS
from tests.features.streams_of_rows import same_arrays

RULES = [
    JOIN,
    replace(JOIN, negatives="horizon"),
    replace(JOIN, conflicts="last", negatives="horizon"),
    replace(JOIN, rows_max=20),
]
log_of = cache(monitor_log)


def task_of(rules: JoinSettings = JOIN, partitions: int = PARTITIONS) -> Any:
    return monitor_pipeline(rules, partitions).task(TP(BY_TRANSACTION, 0))


def plain(outputs: Sequence[OutBatch]) -> list[Any]:
    """The records, however they were put into batches."""
    return [
        (o.topic, o.values[i], None if o.keys is None else o.keys[i], o.headers_of(i))
        for o in outputs
        for i in range(len(o))
    ]


def run(task: Any, records: Sequence[Record], first: int = 0, size: int = 10**9, **how: bool) -> list[Any]:
    out: list[Any] = []
    for begin in range(0, len(records), size):
        out += plain(processed(task, batch(BY_TRANSACTION, records[begin : begin + size], first + begin, **how)))
    return out


def values(outputs: list[Any]) -> list[dict[str, Any]]:
    return [orjson.loads(value) for topic, value, _, _ in outputs if topic == LABELLED]


# --- a pure function of its log ---


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("kind", ["integers", "mixed"])
def test_the_stage_does_the_same_however_its_log_is_cut(rules: JoinSettings, kind: str) -> None:
    records = log_of(5, 400, kind)
    whole = task_of(rules)
    expected = run(whole, records)
    assert len(expected) > 10 and whole.positions.dropped > 0
    for size in (1, 7, 64):
        task = task_of(rules)
        assert run(task, records, size=size) == expected
        assert same_arrays(task.state(), whole.state())


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("kind", ["integers", "mixed"])
def test_the_stage_goes_on_where_its_arrays_end(rules: JoinSettings, kind: str) -> None:
    records = log_of(5, 400, kind)
    whole = task_of(rules)
    expected = run(whole, records)
    cuts = [*range(0, len(records), 97), len(records)]
    task, got = task_of(rules), []
    for begin, end in pairwise(cuts):
        got += run(task, records[begin:end], begin)
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **task.state())
        file.seek(0)
        saved = dict(np.load(file, allow_pickle=False))
        restored = task_of(rules)
        restored.restore(saved)
        assert same_arrays(restored.state(), saved)
        found = differences(restored.sources, task.sources) + differences(restored.positions, task.positions)
        assert found == [] and restored.join.counts == task.join.counts
        task = restored
    assert got == expected and same_arrays(task.state(), whole.state())


def test_a_replay_sends_nothing_and_leaves_the_same_state() -> None:
    records = log_of(5, 400, "integers")
    half = len(records) // 2
    straight, restarted = task_of(), task_of()
    run(straight, records[:half])
    assert run(restarted, records[:half], size=9, replay=True) == []
    counts = restarted.pipeline.figures()
    assert counts["labelled"] == counts["received"] == counts["labels"] == 0 and counts["replayed"] == half
    assert same_arrays(restarted.state(), straight.state())
    # a worker that does not know how far it had sent sends the same bytes once more
    assert run(restarted, records[half:], half) == run(straight, records[half:], half)


def test_a_state_of_other_partitions_is_refused() -> None:
    task = task_of()
    run(task, log_of(5, 400, "integers")[:9])
    with pytest.raises(StateError, match="partitions were added"):
        task_of(partitions=PARTITIONS + 1).restore(task.state())
    arrays = task.state()
    del arrays["next_offset"]
    with pytest.raises(StateError, match="missing next_offset"):
        task_of().restore(arrays)


def test_the_fingerprint_is_of_all_that_the_state_depends_on() -> None:
    prints = {monitor_pipeline(rules).fingerprint() for rules in RULES}
    prints |= {
        monitor_pipeline(replace(JOIN, horizon_ms=1)).fingerprint(),
        monitor_pipeline(partitions=3).fingerprint(),
    }
    assert len(prints) == len(RULES) + 2
    state_of = monitor_pipeline().state_of(BY_TRANSACTION)
    assert (state_of.stage, state_of.topic_id) == ("join", "id-fraud.by-transaction")


# --- from events to labelled records ---


def joined(
    stream: list[tuple[str, Record]], rules: JoinSettings = JOIN, order: str = "arrival"
) -> list[dict[str, Any]]:
    """What comes of the events, all topics with one partition, in the order in which they are sent."""
    fed = Fed(fraud_pipeline(order, 1))
    for topic, record in stream:
        fed.feed([record], topic)
    return values(run(task_of(rules, 1), fed.logs.records[BY_TRANSACTION, 0]))


def test_a_labelled_record_has_the_vector_that_was_logged() -> None:
    fed = Fed(fraud_pipeline("arrival", 1))
    fed.feed([Record(b"{"), transaction("t-1", NOW - 2 * DAY, "c", 4, 12.5), transaction(2, NOW - DAY, "c", 4)])
    fed.feed([label("t-1", NOW - DAY), label(2, NOW - HOUR, 0)], LABELS)
    records = run(task_of(partitions=1), fed.logs.records[BY_TRANSACTION, 0])
    scores = {score["transaction_id"]: score for score in fed.scores()}
    got = {value["transaction_id"]: value for value in values(records)}
    assert got.keys() == scores.keys() == {"t-1", 2}
    for who, value in got.items():
        same = ("transaction_id", "event_time", "card_id", "terminal_id", "score", "raw", "model", "late", "features")
        assert {name: value[name] for name in same} == {name: scores[who][name] for name in same}
        assert list(value["features"]) == list(DEFAULT.names)
    first = got["t-1"]
    assert list(first) == [
        *("transaction_id", "event_time", "card_id", "terminal_id", "score", "raw", "model", "late"),
        *("label", "label_time", "by", "delays", "features"),
    ]
    assert (first["label"], first["label_time"], first["by"]) == (1, NOW - DAY, "label")
    assert first["delays"] == {"event_sent_ms": 2 * DAY, "label_ms": DAY, "label_sent_ms": DAY}
    assert got[2]["label"] == 0
    assert [(key, headers) for _, _, key, headers in records] == [
        (b"t-1", [("source", b"transactions/0/1")]),
        (b"2", [("source", b"transactions/0/2")]),
    ]


def test_a_label_may_come_first_twice_and_for_nobody() -> None:
    time = NOW - 20 * DAY
    got = joined(
        [
            (LABELS, label(1, time + DAY, 1)),
            (TRANSACTIONS, transaction(1, time)),
            (LABELS, label(1, time + DAY, 1)),
            (LABELS, label(1, time + 2 * DAY, 0)),
            (LABELS, label(99, time, 1)),
            (TRANSACTIONS, transaction(2, time)),
            (LABELS, label(2, time + 6 * DAY, 1)),
        ]
    )
    assert [(value["transaction_id"], value["label"]) for value in got] == [(1, 1)]


def test_without_negatives_who_has_no_label_at_the_horizon_is_legitimate() -> None:
    time = NOW - 30 * DAY
    stream = [(TRANSACTIONS, transaction(i, time + i * DAY)) for i in range(12)]
    stream.insert(3, (LABELS, label(1, time + DAY)))
    stream.append((LABELS, label(77, time + 12 * DAY)))
    got = joined(stream, replace(JOIN, negatives="horizon"))
    by_id = {value["transaction_id"]: (value["label"], value["by"], value["label_time"] - time) for value in got}
    assert by_id == {1: (1, "label", DAY)} | {i: (0, "horizon", (i + 5) * DAY) for i in (0, 2, 3, 4, 5)}
    assert got[1]["delays"] == {"event_sent_ms": NOW - time, "label_ms": 5 * DAY, "label_sent_ms": None}


def test_nothing_is_legitimate_while_the_source_of_labels_has_not_passed_the_horizon() -> None:
    rules = replace(JOIN, negatives="horizon")
    fed = Fed(fraud_pipeline("arrival", 1))
    task = task_of(rules, 1)
    read = 0

    def fresh() -> list[dict[str, Any]]:
        nonlocal read
        records = fed.logs.records[BY_TRANSACTION, 0]
        begin, read = read, len(records)
        return values(run(task, records[begin:], begin))

    time = NOW - 60 * DAY
    fed.feed([transaction(i, time + i * DAY) for i in range(20)])
    assert fresh() == []  # no label has ever come: they may all be on their way
    fed.feed([label(3, time + 4 * DAY)], LABELS)
    assert [value["transaction_id"] for value in fresh()] == [3]  # and those labels may be older than the horizon
    for now_s in (0.0, 1.5, 3.0):
        fed.tick(LABELS, now_s)
    assert sorted(value["transaction_id"] for value in fresh()) == [i for i in range(14) if i != 3]


@pytest.mark.parametrize("order", ["arrival", "event_time"])
def test_each_vector_is_there_once_and_all_labels_are_accounted_for(order: str) -> None:
    """Both partitions of a history: of each scored row one vector, numbered in order whatever is sent again."""
    stages = Stages(fraud_pipeline(order), 11)
    stages.run(history(11, 200, "mixed"))
    for now_s in (1e6, 1e6 + 2, 1e6 + 4):  # by event time the last rows wait until all are idle
        for tp, task in stages.tasks.items():
            stages.take(task.tick(now_s, at_end=True))
            stages.step(tp)
    sent = Counter(orjson.loads(r.value or b"")["transaction_id"] for r in stages.logs.of(FRAUD_SCORES))
    seen: list[int | str] = []
    tasks = [monitor_pipeline().task(TP(BY_TRANSACTION, p)) for p in range(PARTITIONS)]
    for task, p in zip(tasks, range(PARTITIONS), strict=True):
        records = stages.logs.records[BY_TRANSACTION, p]
        last: dict[Any, int] = {}
        for record in records:
            message = unpack(record.value)
            if message.kind == "rows":
                assert message.source.topic == BY_TERMINAL
                assert message.rows.offsets[0] > last.get(message.source, -1)
                last[message.source] = int(message.rows.offsets[-1])
                seen += message.block.ids["transaction_id"].to_list()
                assert set(message.block.ids[MODEL].to_list()) == {""}
        out = plain(processed(task, batch(BY_TRANSACTION, records, 0, p)))
        assert not [topic for topic, *_ in out if topic == DEAD_LETTERS]
    assert Counter(seen) == sent
    totals = {name: sum(task.join.counts[name] for task in tasks) for name in tasks[0].join.counts}
    fates = ("joined_by_label", "unlabelled", "released", "vectors_repeated", "waiting")
    assert totals["vectors"] == sent.total() == sum(totals[name] for name in fates)
    fates = ("repeated", "contradicting", "after_horizon", "unknown", "dropped", "waiting")
    labelled = totals["joined_by_label"] + sum(totals[f"labels_{name}"] for name in fates)
    assert totals["labels"] == stages.pipeline.meters.counts["labels"] == labelled


def test_off_costs_nothing_and_leaves_the_same_state() -> None:
    stream = [transaction(i, NOW - DAY, i % 3) for i in range(20)]
    on, off = Fed(fraud_pipeline(monitor=True, partitions=1)), Fed(fraud_pipeline(monitor=False, partitions=1))
    for fed in (on, off):
        fed.feed(stream)
        fed.feed([label(3, NOW)], LABELS)
        for now_s in (0.0, 1.5, 3.0):
            fed.tick(BY_TERMINAL, now_s)
    assert BY_TRANSACTION not in {info.name for info in off.pipeline.topics}
    assert not off.logs.of(BY_TRANSACTION) and len(on.logs.of(BY_TRANSACTION)) == 4  # rows, labels, watermark, idle
    assert on.logs.of(FRAUD_SCORES) == off.logs.of(FRAUD_SCORES)
    assert same_arrays(on.task(BY_TERMINAL).state(), off.task(BY_TERMINAL).state())
    assert on.pipeline.fingerprint(BY_TERMINAL) == off.pipeline.fingerprint(BY_TERMINAL)


def test_what_cannot_be_read_goes_to_the_dead_letters() -> None:
    fed = Fed(fraud_pipeline(partitions=1))
    fed.feed([transaction(1, NOW - DAY)])
    other = fed.logs.records[BY_TERMINAL, 0][0]  # rows, but not of this topic
    good = fed.logs.records[BY_TRANSACTION, 0]
    task = task_of(partitions=1)
    out = run(task, [Record(b"torn"), other, *good])
    assert [topic for topic, *_ in out] == [DEAD_LETTERS, DEAD_LETTERS]
    errors = [dict(headers)["error"].decode() for *_, headers in out]
    assert "not one of headrace's" in errors[0] and "without f8:raw" in errors[1]
    assert task.join.counts["waiting"] == 1 and task.pipeline.figures()["dead_letters"] == 2


def test_the_details_are_of_all_partitions_together() -> None:
    logs = Logs()
    pipeline = monitor_pipeline()
    assert pipeline.details() == {}
    tasks = [pipeline.task(TP(BY_TRANSACTION, p)) for p in range(PARTITIONS)]
    logs.take(pipeline.process([(tasks[0], batch(BY_TRANSACTION, log_of(5, 400, "integers")))]), PARTITIONS)
    details = pipeline.details()
    assert details["join"] == tasks[0].join.counts
    assert details["maturity"][-1]["age_ms"] == 5 * DAY and 0 < details["maturity"][-1]["labelled"] < 1
    orjson.dumps(details)


def test_warming_leaves_nothing_behind() -> None:
    pipeline = monitor_pipeline()
    pipeline.warm()
    assert pipeline.details() == {} and not pipeline.meters.counts
