"""One cause is one alert: the findings of partitions and models become one record, whatever is sent again or cut."""

from __future__ import annotations

import io
import uuid
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
from fraud_logs import DAY, Record, batch, processed
from monitor_logs import JOIN, monitor_pipeline
from workers import FAST, Running, until

from monitoring.causes import LENGTH_MS, SPAN_MS, Causes
from streams.log import TP, OutBatch, connect
from streams.memory import MemoryLog
from streams.pipelines.monitor import MonitorPipeline
from streams.topics import ALERTS, BY_TRANSACTION, DEAD_LETTERS, FINDINGS, RECOMMENDATIONS

START = 18_000 * DAY


def finding(name: str, day: float, kind: str = "input_drift", partition: int = 0, **more: Any) -> dict[str, Any]:
    topic = more.pop("topic", BY_TRANSACTION)
    evidence = {"model": more.pop("model", "m@1"), "partition": f"{topic}/{partition}", "strength": 1.5}
    of = {"alert_id": name, "event_time": START + int(day * DAY), "kind": kind, "subject": "a", "severity": "warning"}
    return of | {"value": 0.5, "threshold": 0.1, "evidence": evidence, "action": "none"} | more


def given(task: Any, findings: list[dict[str, Any]], first: int = 0, **more: Any) -> list[dict[str, Any]]:
    records = [Record(orjson.dumps(one), b"findings") for one in findings]
    outputs = processed(task, batch(FINDINGS, records, first, **more))
    return [orjson.loads(value or b"") for out in outputs if out.topic == ALERTS for value in out.values]


def task_of() -> Any:
    return monitor_pipeline().task(TP(FINDINGS, 0))


def members(alert: dict[str, Any]) -> list[str]:
    return [member["alert_id"] for member in alert["evidence"]["members"]]


def test_the_partitions_and_models_that_find_the_same_give_one_alert_with_all_of_them_in_it() -> None:
    task = task_of()
    found = [finding(f"{p}{m}", 3 + p, partition=p, model=m) for p in range(4) for m in ("m@1", "m@2")]
    alerts = given(task, found)
    assert {alert["alert_id"] for alert in alerts} == {"0m@1"}
    assert members(alerts[-1]) == [one["alert_id"] for one in found]
    assert task.pipeline.figures()["alerts"] == 1
    told = {name: alerts[-1][name] for name in ("event_time", "kind", "subject", "value", "threshold", "action")}
    assert told == {name: found[0][name] for name in told}
    assert alerts[-1]["evidence"]["members"][3] == {
        "alert_id": "1m@2", "event_time": START + 4 * DAY, "kind": "input_drift", "subject": "a", "severity": "warning",
        "value": 0.5, "threshold": 0.1, "model": "m@2", "partition": f"{BY_TRANSACTION}/1", "since": None,
        "strength": 1.5,
    }  # fmt: skip


def test_another_cause_is_another_alert() -> None:
    apart = SPAN_MS / DAY
    found = [
        finding("a", 0),
        finding("later", apart + 0.5),
        finding("labels", 1, "performance_drift"),
        finding("lists", 1, "source_share", topic=RECOMMENDATIONS),
        finding("before", -apart - 0.5),
        finding("of the first", -1),
    ]
    task = task_of()
    assert [alert["alert_id"] for alert in given(task, found)] == ["a", "later", "labels", "lists", "before", "a"]
    assert task.pipeline.figures()["alerts"] == 5


def test_an_alert_is_as_severe_as_its_severest_finding_and_grows_no_further_than_is_told() -> None:
    causes = Causes()
    causes.take(finding("a", 0))
    critical = causes.take(finding("b", 1, severity="critical"))
    assert critical is not None and critical[0]["severity"] == "critical" and not critical[1]
    for i in range(100):
        last = causes.take(finding(f"n{i}", 1))
    assert last is not None and len(members(last[0])) == 50 and last[0]["evidence"]["members_beyond"] == 52
    assert last[0]["severity"] == "critical"


def test_findings_that_follow_one_another_are_not_one_cause_without_end() -> None:
    causes = Causes()
    given = [causes.take(finding(f"week {i}", 7.0 * i)) for i in range(40)]
    alerts = {taken[0]["alert_id"]: taken[0] for taken in given if taken is not None}
    assert sum(taken is not None and taken[1] for taken in given) == len(alerts) == 14
    for alert in alerts.values():
        times = [member["event_time"] for member in alert["evidence"]["members"]]
        assert min(times) == alert["event_time"] and max(times) - min(times) <= LENGTH_MS


def test_the_same_alerts_however_the_log_is_cut_and_what_is_sent_again_says_nothing() -> None:
    found = [finding(f"f{i}", float(i * 37 % 60), partition=i % 3) for i in range(40)]
    found += found[5:20]
    whole = task_of()
    expected = given(whole, found)
    assert len(expected) == 40 and 1 < len({alert["alert_id"] for alert in expected}) < 10
    task, got = task_of(), []
    for begin, end in pairwise([0, 1, 17, 44, len(found)]):
        got += given(task, found[begin:end], begin)
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **task.state())
        file.seek(0)
        task = task_of()
        task.restore(dict(np.load(file, allow_pickle=False)))
    assert got == expected
    assert {name: array.tolist() for name, array in task.state().items()} == {
        name: array.tolist() for name, array in whole.state().items()
    }


def test_what_is_replayed_is_not_given_again() -> None:
    task = task_of()
    assert given(task, [finding("a", 0)], replay=True) == []
    assert members(given(task, [finding("b", 0)], 1)[0]) == ["a", "b"]


def test_what_is_no_finding_is_a_dead_letter() -> None:
    task = task_of()
    wrong = [
        {"event_time": "2019-05-20"}, {"event_time": True}, {"event_time": 1.5}, {"event_time": 10**18},
        {"alert_id": 7}, {"kind": ["input_drift"]}, {"subject": None}, {"severity": "severe"}, {"severity": []},
        {"value": "0.5"}, {"threshold": [0.1]}, {"evidence": []}, {"action": None},
    ]  # fmt: skip
    values = [b"{", b"[]", b"{}", None, *(orjson.dumps(finding("w", 0) | fault) for fault in wrong)]
    found = [finding("a", 0), finding("b", 1, value=None, threshold=1)]
    outputs = processed(task, batch(FINDINGS, [Record(value) for value in (*values, *map(orjson.dumps, found))]))
    assert {out.topic: len(out) for out in outputs} == {ALERTS: 2, DEAD_LETTERS: len(values)}
    assert [incident["ids"] for group in task.causes.groups.values() for incident in group] == [["a", "b"]]


def test_a_worker_groups_what_is_found_and_goes_on_after_a_restart() -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    assert isinstance(log, MemoryLog)

    def found(name: str, partition: int) -> None:
        producer = log.producer()
        value = orjson.dumps(finding(name, 1, partition=partition))
        producer.send(OutBatch(FINDINGS, [value], [b"findings"]))

    def alerts() -> list[dict[str, Any]]:
        rows = [row for partition in log.partitions(ALERTS) for row in partition.rows]
        return [orjson.loads(row[2] or b"") for row in rows if row is not None]

    for i in range(2):
        worker = Running(log, MonitorPipeline(JOIN, 2), "g", FAST)  # type: ignore[arg-type]
        assert worker.ready.wait(60)
        found(f"f{i}", i)
        until(lambda i=i: len(alerts()) > i, "the alert")  # type: ignore[misc]
        assert worker.stop() == 0
    assert [alert["alert_id"] for alert in alerts()] == ["f0", "f0"]
    assert members(alerts()[-1]) == ["f0", "f1"]
