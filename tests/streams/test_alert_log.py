"""Alerts as they are read back: one for each id, as it was last given, with what was done about it."""

from __future__ import annotations

import uuid
from typing import Any

import orjson
import pytest

from streams.alert_log import explained, newer, read_alerts
from streams.cli.main import main
from streams.log import OutBatch, connect
from streams.topics import ALERTS, topic_infos

ALERT: dict[str, Any] = {
    "alert_id": "0123456789abcdef", "event_time": 1_600_000_000_000, "kind": "score_drift", "subject": "score",
    "severity": "warning", "value": 0.5, "threshold": 0.1, "evidence": {"model": "m@1", "partition": "t/0"},
    "action": "none",
}  # fmt: skip


def member(partition: int) -> dict[str, Any]:
    told = {name: ALERT[name] for name in ("event_time", "kind", "subject", "severity", "value", "threshold")}
    return told | {"alert_id": str(partition), "model": "m@1", "partition": f"t/{partition}", "strength": None}


def test_the_members_that_come_later_do_not_undo_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    log = connect(url)
    log.admin().create_topics(topic_infos((ALERTS,), 1))
    done = ALERT | {"action": "retrain: fraud@2"}
    grown = ALERT | {"severity": "critical", "evidence": {**ALERT["evidence"], "members": [member(0), member(1)]}}
    producer = log.producer()
    producer.send(OutBatch(ALERTS, [orjson.dumps(alert) for alert in (ALERT, done, grown)], [b"k"] * 3))
    [alert] = read_alerts(log).values()
    assert alert == grown | {"action": "retrain: fraud@2"}
    text = "\n".join(explained(alert))
    assert "2 findings of partitions and models are this one alert" in text
    assert "member    2020-09-13 12:26 score_drift of score, strength none, m@1, t/1" in text
    assert main(["alerts", "--bootstrap", url]) == 0
    assert "retrain: fraud@2  2 findings" in capsys.readouterr().out


def test_what_is_no_alert_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    log = connect(url)
    log.admin().create_topics(topic_infos((ALERTS,), 1))
    wrong = [ALERT | {"alert_id": 7}, ALERT | {"event_time": "x"}, ALERT | {"event_time": 10**18}, {"alert_id": "b"}]
    values: list[bytes | None] = [b"no json", b"7", b"[]", None, *map(orjson.dumps, wrong), orjson.dumps(ALERT)]
    log.producer().send(OutBatch(ALERTS, values, [b"k"] * len(values)))
    assert read_alerts(log) == {ALERT["alert_id"]: ALERT}
    assert main(["alerts", "--bootstrap", url]) == 0
    assert "score_drift" in capsys.readouterr().out


def test_what_is_said_to_be_done_makes_an_alert_no_milder() -> None:
    critical, acted = ALERT | {"severity": "critical"}, ALERT | {"action": "retrain: fraud@2"}
    assert newer(critical, acted) == acted | {"severity": "critical"}


def test_what_was_done_stands_when_a_member_is_added() -> None:
    first, acted, more = (
        {"alert_id": "a", "action": action, "n": n} for n, action in enumerate(("none", "refit", "none"))
    )
    assert newer(None, first) == first and newer(first, acted) == acted
    assert newer(acted, more) == {"alert_id": "a", "action": "refit", "n": 2}
