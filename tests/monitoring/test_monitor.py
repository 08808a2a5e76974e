"""The monitor as a whole: alerts of each kind, none without a cause, the same ones however the log is cut."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.block import Ids
from features.plan import StateError
from monitoring.monitor import Monitor, build_reference
from monitoring.reference import Reference
from monitoring.settings import DAY_MS, MonitorError, MonitorSettings
from tests.monitoring.rows import BY_TIME, SETTINGS, fed, labelled, part, scored

ROWS = 400 * 30


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_nothing_changes_nothing_is_said() -> None:
    alerts, monitor = fed(SETTINGS, scored(400 * 60), labelled(400 * 60), [])
    assert alerts == []
    assert monitor.figures()["scored"]["periods"] == 60
    assert monitor.reference is not None and len(monitor.reference.labelled) == 12


@pytest.mark.parametrize(
    ("drift", "kind", "subject"),
    [
        ({"shift": 1.0}, "input_drift", "a"),
        ({"missing": 0.2}, "missing_rate", "b"),
        ({"unseen": 0.1}, "unseen_rate", "c"),
        ({"lift": 1.5}, "score_drift", "score"),
        ({"segment": 0.3}, "unseen_rate", "channel"),
    ],
)
def test_a_drift_of_rows_is_one_alert_that_names_it(drift: dict[str, float], kind: str, subject: str) -> None:
    at = 400 * 20 + 100
    alerts, _ = fed(SETTINGS, scored(ROWS, at=at, **drift), None, [])
    assert [(a["kind"], a["subject"]) for a in alerts] == [(kind, subject)]
    alert = alerts[0]
    assert json.loads(json.dumps(alert, allow_nan=False)) == alert
    times = scored(ROWS)["event_time"]
    # the period that holds the change, or the next, whose end is the alert's time
    assert times[at] <= alert["event_time"] <= times[at + 800]
    assert abs(alert["evidence"]["since"] - times[at]) <= times[400] - times[0]
    assert alert["value"] > alert["threshold"]
    assert alert["evidence"]["summary"].startswith(f"{subject}: ")
    assert len(alert["alert_id"]) == 16 and alert["action"] == "none"
    assert alert["evidence"]["naive"]["always"] >= 8
    assert len(alert["evidence"]["examples"]) == 3


@pytest.mark.parametrize(
    ("drift", "kind"), [({"noise": 0.7}, "performance_drift"), ({"lift": 1.2}, None), ({"lift": -1.5}, None)]
)
def test_a_drift_of_labels_is_one_alert(drift: dict[str, float], kind: str | None) -> None:
    alerts, monitor = fed(SETTINGS, scored(400), labelled(ROWS, at=400 * 20, **drift), [])
    assert len(alerts) == 1
    assert kind is None or alerts[0]["kind"] == kind
    evidence = alerts[0]["evidence"]
    assert set(evidence["metrics"]) >= {"auc", "average_precision", "log_loss", "brier", "precision"}
    assert evidence["estimated"]["auc"]["error"] is not None
    json.dumps(monitor.figures(), allow_nan=False)


def test_what_stays_changed_is_said_once_and_what_comes_back_twice() -> None:
    rows = scored(400 * 60)
    rows["features"][400 * 20 :, 0] += 1.0
    assert len(fed(SETTINGS, rows, None, [])[0]) == 1
    rows["features"][400 * 30 : 400 * 45, 0] -= 1.0
    alerts, _ = fed(SETTINGS, rows, None, [])
    assert [a["subject"] for a in alerts] == ["a", "a"]
    assert len({a["alert_id"] for a in alerts}) == 2


def jittered(rows: dict[str, Any]) -> dict[str, Any]:
    """Out of order by up to two hours, a few later than the allowed one, and a day without any."""
    rng = np.random.default_rng(5)
    time = rows["event_time"] - rng.integers(0, 7_200_000, len(rows["event_time"]))
    time[rng.random(len(time)) < 0.01] -= 2 * DAY_MS
    time[len(time) // 2 :] += DAY_MS
    return rows | {"event_time": time}


CHANGING = jittered(scored(ROWS, at=400 * 22, shift=0.8, missing=0.2))
LABELS = jittered(labelled(ROWS, at=400 * 22, noise=0.8))
LABELS["label_time"] = np.sort(LABELS["event_time"] + DAY_MS)
WHOLE = {s.period_rows: fed(s, CHANGING, LABELS, []) for s in (SETTINGS, BY_TIME)}


@pytest.mark.parametrize("of", [SETTINGS, BY_TIME], ids=["rows", "time"])
@given(cuts=st.lists(st.integers(0, ROWS), max_size=6).map(sorted))
@settings(max_examples=4, derandomize=True, deadline=None)
def test_cuts_never_show(of: MonitorSettings, cuts: list[int]) -> None:
    alerts, monitor = WHOLE[of.period_rows]
    assert {a["kind"] for a in alerts} & {"performance_drift"}
    again, other = fed(of, CHANGING, LABELS, cuts)
    assert again == alerts
    same(monitor.state(), other.state())


@pytest.mark.parametrize("of", [SETTINGS, BY_TIME], ids=["rows", "time"])
@pytest.mark.parametrize("at", [0, 300, 3000, 8500, 9300])
def test_a_restored_monitor_goes_on(of: MonitorSettings, at: int) -> None:
    alerts, whole = WHOLE[of.period_rows]
    first, monitor = fed(of, part(CHANGING, slice(0, at)), part(LABELS, slice(0, at)), [])
    again = Monitor(of)
    again.restore(monitor.state())
    same(monitor.state(), again.state())
    rest = again.observe_scored(part(CHANGING, slice(at, None)))
    rest += again.observe_labelled(part(LABELS, slice(at, None)))
    found = sorted([*first, *(a.to_json() for a in rest)], key=lambda a: a["alert_id"])
    assert found == sorted(alerts, key=lambda a: a["alert_id"])
    same(whole.state(), again.state())


def test_a_given_reference_is_used_from_the_first_period() -> None:
    n = 400 * 12
    reference = build_reference(SETTINGS, scored(n, seed=1), labelled(n, seed=1))
    again = Reference.from_json(json.loads(json.dumps(reference.to_json())))
    same(again.to_arrays(), reference.to_arrays())
    same(Reference.from_arrays(reference.to_arrays()).to_arrays(), reference.to_arrays())
    monitor = Monitor(SETTINGS, again)
    assert monitor.observe_scored(scored(1200)) == []
    alerts = monitor.observe_scored(scored(1200, seed=2, at=0, shift=1.0))
    assert [a.subject for a in alerts] == ["a"]
    other = Monitor(SETTINGS, again)
    other.restore(monitor.state())
    same(monitor.state(), other.state())
    with pytest.raises(StateError, match="another reference"):
        Monitor(SETTINGS, build_reference(SETTINGS, scored(n, seed=3))).restore(monitor.state())


def test_late_rows_are_counted_and_left_out() -> None:
    rows = scored(400 * 20, per_day=400)
    monitor = Monitor(BY_TIME)
    monitor.observe_scored(rows)
    monitor.observe_scored(part(rows, slice(0, 10)))
    assert monitor.figures()["scored"]["late_rows"] == 10


def test_rows_of_sources_that_race_are_not_late_where_the_clock_is_the_slower_ones() -> None:
    n = 400 * 10
    rows = part(scored(n), np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)]))
    clock = np.where(np.arange(n) < n // 2, rows["event_time"].min(), rows["event_time"])
    for more, late in (({}, True), ({"clock": clock}, False)):
        monitor = Monitor(BY_TIME)
        monitor.observe_scored(rows | more)
        figures = monitor.figures()["scored"]
        assert (figures["late_rows"] > 0) == late and figures["periods"] == 9


def test_a_monitor_restored_before_its_first_row_takes_rows_one_by_one() -> None:
    monitor = Monitor(BY_TIME)
    monitor.restore(Monitor(BY_TIME).state())
    for row in range(3):
        assert monitor.observe_scored(part(CHANGING, slice(row, row + 1))) == []


def test_performance_waits_for_labels_to_be_mature() -> None:
    labels = labelled(400 * 20)
    monitor = Monitor(dataclasses.replace(BY_TIME, lateness_ms=0))
    monitor.observe_labelled(part(labels, slice(0, 400 * 2)))
    # two days of events, labels a day later: after three days the first day is one day short of mature
    assert monitor.figures()["labelled"]["periods"] == 0
    monitor.observe_labelled(part(labels, slice(400 * 2, 400 * 2 + 1)))
    assert monitor.figures()["labelled"]["periods"] == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"windows": (7, 1)}, "windows"),
        ({"features": ()}, "features"),
        ({"reference_periods": 3}, "reference_periods"),
        ({"false_alarms_per_30d": 0.0}, "false_alarms_per_30d"),
        ({"period_rows": 0}, "period_rows"),
        ({"rows_min": 0}, "rows_min"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], match: str) -> None:
    with pytest.raises(MonitorError, match=match):
        dataclasses.replace(SETTINGS, **change)


def test_wrong_columns_and_references_are_named() -> None:
    rows = scored(100)
    monitor = Monitor(SETTINGS, build_reference(SETTINGS, scored(400 * 12)))
    with pytest.raises(MonitorError, match="features is"):
        monitor.observe_scored(rows | {"features": rows["features"][:, :2]})
    with pytest.raises(MonitorError, match="score has 99"):
        monitor.observe_scored(rows | {"score": rows["score"][:99]})
    with pytest.raises(MonitorError, match="ddm"):
        Monitor(dataclasses.replace(SETTINGS, detectors=("ddm",)))
    with pytest.raises(MonitorError, match="made for"):
        Monitor(dataclasses.replace(SETTINGS, segments=()), build_reference(SETTINGS, scored(400 * 12)))
    with pytest.raises(MonitorError, match="period: made for 400 rows"):
        Monitor(dataclasses.replace(SETTINGS, period_rows=500), build_reference(SETTINGS, scored(400 * 12)))
    with pytest.raises(MonitorError, match="format_version"):
        Reference.from_json({"format_version": 99})
    with pytest.raises(MonitorError, match="cannot be read"):
        Reference.from_json({"format_version": 1})
    with pytest.raises(MonitorError, match="periods are too few"):
        build_reference(SETTINGS, scored(400 * 4))


def test_nothing_drifts_in_the_real_data(data_dir: Path) -> None:
    """Five weeks from where all windows are warm, two of them the reference; the whole is in `bench drift`."""
    rows = slice(364_000, 364_000 + 36 * 9_600)
    columns = pq.read_table(data_dir / "fraud_expected.parquet")
    names = tuple(name for name in columns.column_names if name != "transaction_id")
    x = np.column_stack([columns[name].to_numpy()[rows] for name in names]).astype(np.float64)
    events = pq.read_table(data_dir / "fraud_transactions.parquet", columns=["transaction_id", "event_time", "card_id"])
    fraud = pq.read_table(data_dir / "fraud_labels.parquet")
    time = events["event_time"].to_numpy()[rows]
    # no model is needed for a score that follows the features
    odds = -5.5 + x[:, names.index("amount")] / 100 + 6 * x[:, names.index("terminal_risk_7d")]
    monitor = Monitor(MonitorSettings(features=names, reference_periods=14))
    ids = {name: Ids(ints=events[name].to_numpy()[rows]) for name in ("transaction_id", "card_id")}
    common = {"event_time": time, "score": 1 / (1 + np.exp(-odds)), **ids}
    alerts = monitor.observe_scored(common | {"features": x})
    labels = {"label_time": fraud["label_time"].to_numpy()[rows], "label": fraud["is_fraud"].to_numpy()[rows]}
    alerts += monitor.observe_labelled(common | labels)
    assert alerts == []
    figures = monitor.figures()
    assert figures["scored"]["periods"] > 33 and not figures["labelled"]["learning"]


def test_a_feature_that_was_always_missing_and_comes_is_an_alert() -> None:
    rows = scored(ROWS)
    rows["features"][: 400 * 20, 1] = np.nan
    alerts, _ = fed(SETTINGS, rows, None, [])
    assert [(a["kind"], a["subject"]) for a in alerts] == [("missing_rate", "b")]
    assert alerts[0]["value"] < alerts[0]["threshold"]
