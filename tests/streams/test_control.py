"""The control loop on real registries and the in-process log: what it does, once, and what it leaves alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from control_world import (
    AFTER,
    BEFORE,
    STEP_MS,
    T0,
    actions,
    alert_of,
    drifted,
    events,
    models,
    names_of,
    new_log,
    new_registry,
    records,
    rows_of,
    run,
    send_alert,
    send_command,
    send_rows,
    story,
)

from models.registry import Registry
from monitoring.settings import DAY_MS
from streams.control_state import ADDED
from streams.memory import MemoryLog
from streams.retrain import rebuilt_apart
from streams.topics import ALERTS, LABELLED

KEPT = "of the rows 1 in 2 is kept, raise control.rows_max for more frauds"
RETRAINED = ["retrain: begun", "retrain: m@2 is watched beside the champion", "retrain: m@2 is champion"]


CONFORMAL = {"alpha": 0.1, "fraud_from": -2.0, "legitimate_to": -1.0}


@pytest.fixture
def log() -> MemoryLog:
    return new_log()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return new_registry(tmp_path / "models")


# --- what it does about an alert ---


def test_a_retrained_model_is_promoted_on_evidence(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    loop = run(log, registry)
    assert names_of(log) == ["opened", "building", "retrained", "decided", "promoted"]
    assert actions(log) == RETRAINED
    assert models(registry) == [("m@1", ()), ("m@2", ("champion",))]
    assert loop.state.case is None and loop.state.champion == "m@2"
    decided = next(event for event in events(log) if event["event"] == "decided")
    gain = decided["evidence"]["differences"]["average_precision"]
    assert gain["low"] > 0 and gain["challenger"] > gain["champion"] + 0.2
    # the alert says it all: its own fields unchanged, the last record of it what came of it
    first, *later = records(log, ALERTS)
    for record in later:
        control = record["evidence"].pop("control")
        assert control["case"] == f"{first['alert_id']}-17"
        assert {**record, "action": "none"} == first
    training = next(e.manifest for e in registry.entries() if e.manifest.version == 2).training
    assert training[ADDED] == f"{first['alert_id']}-17" and training["from"] == "m@1" and training["rows"] < 1000


def test_what_the_candidate_learned_from_is_no_evidence_for_it(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    run(log, registry)
    by = {event["event"]: event for event in events(log)}
    built_at, judged = sum(by["building"]["positions"]), by["decided"]["evidence"]
    # all rows that were labelled after the training's, and no other
    assert judged["rows"] == (by["decided"]["clock"] - by["building"]["clock"]) // 1000
    assert by["building"]["clock"] // 1000 - 1_600_000_000 == built_at - 1


def test_leaf_values_are_refitted_where_the_policy_says_so(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    run(log, registry, policy={"performance_drift": "refit"})
    assert names_of(log) == ["opened", "building", "refitted", "decided", "promoted"]
    built = next(event for event in events(log) if event["event"] == "refitted")
    assert built["recipe"].startswith("refit, decay")
    champion = registry.get("champion")
    before = registry.get("m@1")
    assert champion.model_text.count("Tree=") == before.model_text.count("Tree=")
    assert champion.model_text != before.model_text
    assert champion.conformal is not None and champion.conformal.alpha == 0.1


def test_a_calibration_learned_online_becomes_a_version(log: MemoryLog, tmp_path: Path) -> None:
    reference = {"rows": 9, "features": {"a": {}}, "score": {}}
    registry = new_registry(tmp_path, conformal=CONFORMAL, reference=reference)
    x, y = rows_of(1000, BEFORE, 1)
    x2, y2 = rows_of(5000, BEFORE, 2, level=-1.0)  # the same ranking, four times the frauds
    send_rows(log, np.concatenate([x, x2]), np.concatenate([y, y2]))
    send_alert(log, alert_of(1600, "calibration_drift"))
    run(log, registry)
    assert names_of(log)[0] == "opened" and names_of(log)[-2:] == ["decided", "updated"]
    before, after = registry.get("m@1"), registry.get("champion")
    assert after.manifest.label == "m@2" and after.model_text == before.model_text
    assert after.calibration.version == 2
    fresh, label = rows_of(5000, BEFORE, 7, level=-1.0)
    assert after.manifest.conformal == before.manifest.conformal == CONFORMAL
    assert after.manifest.reference == {"rows": 9, "features": {"a": {}}}  # the score's is of other probabilities
    means = [model.score(fresh)[1].mean() / label.mean() for model in (before, after)]
    assert means[0] < 0.7 and 0.9 < means[1] < 1.1
    assert actions(log)[-1] == "update: m@2 is champion"


def test_an_alert_that_is_only_told_changes_nothing(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    run(log, registry, policy={"performance_drift": "alert"})
    assert actions(log) == ["alert only"] and events(log) == [] and len(models(registry)) == 1


@pytest.mark.parametrize("kind", ["performance_drift", "calibration_drift"])
def test_a_false_alarm_promotes_nothing(log: MemoryLog, registry: Registry, kind: str) -> None:
    send_rows(log, *rows_of(8000, BEFORE, 3))
    send_alert(log, alert_of(600, kind, since=100))
    run(log, registry)
    assert names_of(log)[-1] == "given-up" and "promoted" not in names_of(log) and "updated" not in names_of(log)
    assert registry.aliases() == {"champion": "m@1"}
    assert "given up" in actions(log)[-1]


def test_without_an_alert_nothing_is_done(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    with log.changed:  # no alert after all
        log.partitions(ALERTS)[0].rows.clear()
        log.partitions(ALERTS)[1].rows.clear()
    loop = run(log, registry)
    assert events(log) == [] and loop.state.learner[2] == 3000 and registry.aliases() == {"champion": "m@1"}


def test_a_second_challenger_has_twice_the_frauds(log: MemoryLog, registry: Registry) -> None:
    drifted(log, after=3000)
    run(log, registry, turns=2)
    built = [event for event in events(log) if event["event"] == "building"]
    assert [event["alert_id"] for event in built] == ["perf000000001600"] * 2 and built[0]["case"] != built[1]["case"]
    assert built[1]["frauds"] >= 2 * built[0]["frauds"]


def test_what_changes_the_ranking_goes_before_a_calibration_that_is_being_judged(
    log: MemoryLog, registry: Registry
) -> None:
    drifted(log)
    send_alert(log, alert_of(1500, "calibration_drift", name="before"))
    run(log, registry, look_rounds=50)
    assert [event["event"] for event in events(log)][:3] == ["opened", "given-up", "opened"]
    assert registry.aliases() == {"champion": "m@2"}
    assert "update: given up for retrain" in actions(log)


def test_a_model_is_trained_in_a_process_of_its_own_to_the_same_bits(log: MemoryLog, tmp_path: Path) -> None:
    here, apart = new_registry(tmp_path / "here"), new_registry(tmp_path / "apart")
    drifted(log)
    run(log, here)
    other = new_log()
    drifted(other)
    run(other, apart, build=None)
    assert apart.get("champion").manifest.label == "m@2"
    assert apart.get("champion").model_text == here.get("champion").model_text
    assert apart.get("champion").calibration == here.get("champion").calibration


def member(row: int, kind: str, model: str = "m@1") -> dict[str, Any]:
    found = alert_of(row, kind)
    return {**found, "model": model, "since": found["evidence"]["since"]}


def test_what_joins_an_alert_later_may_ask_for_more(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    with log.changed:  # in place of that alert
        for part in log.partitions(ALERTS):
            part.rows.clear()
    first = alert_of(1400, "calibration_drift", since=1000)
    grown = {**first, "evidence": {**first["evidence"], "members": [member(1400, "calibration_drift")]}}
    grown["evidence"]["members"].append(member(1500, "performance_drift"))
    grown["evidence"]["members"].append(member(1500, "missing_rate"))
    for alert in (first, first, grown, grown):
        send_alert(log, alert)
    run(log, registry, look_rounds=50)
    assert [event["action"] for event in events(log) if event["event"] == "opened"] == ["update", "retrain"]
    last = [record for record in records(log, ALERTS) if record["action"] == "retrain: m@2 is champion"]
    assert len(last) == 1 and len(last[0]["evidence"]["members"]) == 3


def test_what_joins_about_the_new_champion_is_another_matter(log: MemoryLog, registry: Registry) -> None:
    drifted(log, after=3000)
    alert = alert_of(1600, since=1000)
    alert["evidence"]["members"] = [member(3000, "performance_drift", "m@2")]
    for model in ("m@7", "m@2"):
        alert["evidence"]["members"].append(member(3000, "performance_drift", model))
        send_alert(log, {**alert, "event_time": alert["event_time"] + 1_500_000})
    run(log, registry)
    assert [(e["champion"], e["action"]) for e in events(log) if e["event"] == "opened"] == [
        ("m@1", "retrain"),
        ("m@2", "retrain"),
    ]


@pytest.mark.parametrize("days", [7, 60])
def test_an_alert_by_labels_is_as_old_as_they_are_final(log: MemoryLog, registry: Registry, days: int) -> None:
    mature_ms, lateness_ms = days * DAY_MS, 3_600_000
    drifted(log, label_ms=mature_ms + lateness_ms)
    loop = run(log, registry, mature_ms=mature_ms, lateness_ms=lateness_ms, cooldown_ms=DAY_MS)
    assert actions(log) == RETRAINED and loop.state.champion == "m@2"
    # neither before its period had its labels nor later
    assert events(log)[0]["clock"] - mature_ms - lateness_ms - T0 == 1699 * STEP_MS


def test_what_joins_an_alert_that_is_too_old_is_as_new_as_it_is(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    with log.changed:  # in place of that alert
        for part in log.partitions(ALERTS):
            part.rows.clear()
    first = alert_of(100)
    grown = {**first, "evidence": {**first["evidence"], "members": [member(1400, "performance_drift")]}}
    for alert in (first, first, grown, first):
        send_alert(log, alert)
    run(log, registry, alert_age_ms_max=250_000, round_rows=200)
    assert actions(log) == ["none: it is too old", *RETRAINED]
    assert events(log)[1]["since"] == T0 + 1400 * STEP_MS


# --- when it does nothing ---


def test_a_case_that_is_asked_for_before_there_are_labels_has_its_time(log: MemoryLog, registry: Registry) -> None:
    send_command(log, "act", alert=alert_of(1600, since=1000))
    assert run(log, registry).state.clock_ms == 0 and names_of(log) == ["asked", "opened"]
    drifted(log)
    run(log, registry)
    assert actions(log)[-1] == "retrain: m@2 is champion"


def kept_of_6000(log: MemoryLog, registry: Registry, ends: list[int], **how: Any) -> Any:
    """6000 rows of which 2000 are kept, final after 1500 s; restarted at these rows."""
    x, y = rows_of(1000, BEFORE, 1)
    x2, y2 = rows_of(5000, AFTER, 2)
    x, y = np.concatenate([x, x2]), np.concatenate([y, y2])
    for begin, end in pairwise([0, 200, *ends, 6000]):
        if begin == 200:
            send_alert(log, alert_of(1400, since=1000))
        send_rows(log, x[begin:end], y[begin:end], begin)
        loop = run(log, registry, mature_ms=1_500_000, rows_max=2000, **how)
    return loop


def test_where_rows_would_be_left_out_before_they_are_final_one_in_two_is_kept(
    log: MemoryLog, registry: Registry
) -> None:
    loop = kept_of_6000(log, registry, [])
    # of 2000 rows, a half reach back 1.5 times as long as labels take, which all would not
    assert [event["kept"] for event in events(log) if event["event"] == "sampled"] == ["1 in 2"]
    assert actions(log) == [f"retrain: begun, {KEPT}", *RETRAINED[1:]]
    assert registry.get("m@2").manifest.training["kept"] == "1 in 2"
    window = loop._desk.window
    kept = window.take(window.since(0, 10**15))
    assert 1700 < len(kept) < 2300 and int(kept.event_time_ms.max() - kept.event_time_ms.min()) > 3_500_000


def test_a_case_says_that_rows_are_left_out_and_what_gives_it_more_frauds(log: MemoryLog, registry: Registry) -> None:
    send_alert(log, alert_of(300, since=200))
    kept_of_6000(log, registry, [], frauds_min=10**6)
    send_rows(log, *rows_of(200, AFTER, 3), 45 * 86_400)  # 45 days later
    run(log, registry, mature_ms=1_500_000, rows_max=2000, frauds_min=10**6)
    assert names_of(log) == ["opened", "sampled", "declined", "given-up", "sampled"]
    _, sampled, _, ended, again = events(log)
    assert again["kept"] == "1 in 1", "once the case is closed: so few rows come since"
    assert sampled["reason"] == KEPT and sampled["kept"] == ended["kept"] == "1 in 2"
    assert ended["reason"].endswith(f" of 1000000 frauds in 30 days, {KEPT}")
    said = [action for action in actions(log) if action.startswith("retrain")]
    assert said == ["retrain: begun", f"retrain: collecting, {KEPT}", f"retrain: {ended['reason']}"]


@pytest.mark.parametrize("ends", [[], [7000, 9500, 12_000]])
def test_after_a_rush_all_rows_are_kept_again(log: MemoryLog, registry: Registry, ends: list[int]) -> None:
    """Three rows a second, then one: whether the loop runs all the time or is started again does not show."""
    n = 14_000
    x, y = rows_of(n, BEFORE, 1)
    seconds = np.concatenate([np.arange(6000) / 3, 2000 + np.arange(n - 6000)]).astype(np.int64)
    for begin, end in pairwise([0, 6000, *ends, n]):
        send_rows(log, x[begin:end], y[begin:end], begin, seconds=seconds[begin:end])
        loop = run(log, registry, mature_ms=900_000, rows_max=3000)
    assert [event["kept"] for event in events(log)] == ["1 in 2", "1 in 1"]
    assert events(log)[1]["reason"] == "of the rows 1 in 1 is kept again, since fewer come"
    window = loop._desk.window
    kept = window.take(window.since(0, 10**15))
    assert len(kept) == 3000 and set(np.diff(kept.event_time_ms)) == {1000}
    assert run(log, registry, mature_ms=900_000, rows_max=3000).state == loop.state


def test_which_rows_are_kept_survives_a_restart(log: MemoryLog, registry: Registry, tmp_path: Path) -> None:
    kept_of_6000(log, registry, [])
    again, other = new_log(), new_registry(tmp_path / "again")
    kept_of_6000(again, other, [1500, 2100, 2900, 4100])
    assert story(again, other) == story(log, registry)


def test_early_frauds_are_not_missing_from_the_evidence(log: MemoryLog, registry: Registry) -> None:
    """Frauds are known at once, the others when they are final."""
    drifted(log, after=3000)
    for part in log.partitions(LABELLED):
        order = []
        for row in (row for row in part.rows if row is not None):
            record = orjson.loads(row[2] or b"")
            order.append((record["event_time"] + (0 if record["label"] else 500_000), record))
        values = [orjson.dumps(r | {"label_time": known}) for known, r in sorted(order, key=lambda one: one[0])]
        with log.changed:
            part.rows[:] = [(*row[:2], value, *row[3:]) for row, value in zip(part.rows, values, strict=True)]
    run(log, registry, mature_ms=500_000)
    by = {event["event"]: event for event in events(log)}
    found = by["decided"]["evidence"]
    share = rows_of(3000, AFTER, 2)[1].mean()
    assert share * 0.6 < found["frauds"] / found["rows"] < share * 1.4


def test_a_calibration_is_not_judged_for_ever(log: MemoryLog, registry: Registry) -> None:
    send_rows(log, *rows_of(1000, BEFORE, 1))
    send_alert(log, alert_of(500, "calibration_drift"))
    assert run(log, registry, look_rounds=10**6).state.case.status == "armed"  # type: ignore[union-attr]
    send_rows(log, *rows_of(100, BEFORE, 1), 500 + 31 * DAY_MS // STEP_MS)
    assert run(log, registry, look_rounds=10**6).state.case is None
    assert actions(log)[-1] == "update: given up: too few final labels in 30 days to judge by"


def test_one_case_at_a_time_and_each_alert_once(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    send_alert(log, alert_of(1600, since=1000))  # sent twice
    send_alert(log, alert_of(1601, name="another"))
    run(log, registry)
    assert actions(log)[1] == "none: retrain for perf000000001600 is under way"
    assert names_of(log).count("opened") == 1 and len(models(registry)) == 2


def test_a_case_is_followed_by_a_pause_and_there_are_so_many_a_month(log: MemoryLog, registry: Registry) -> None:
    drifted(log, after=3500)
    send_alert(log, alert_of(3000, name="soon") | {"evidence": {"model": "m@2"}})
    send_alert(log, alert_of(4300, name="later") | {"evidence": {"model": "m@2"}})
    run(log, registry, cooldown_ms=2_000_000, cases_per_30d=1)
    why = {event["alert_id"]: event["reason"] for event in events(log) if event["event"] == "declined"}
    assert why["soon"].startswith("cooling down until") and why["later"].startswith("1 cases in 30 days")


def test_an_alert_about_another_model_is_not_acted_on(log: MemoryLog, registry: Registry) -> None:
    send_rows(log, *rows_of(1000, BEFORE, 1))
    send_alert(log, alert_of(600) | {"evidence": {"model": "m@7"}})
    run(log, registry)
    assert actions(log) == ["none: it is not about m@1, which is champion"]


def test_frozen_it_only_says_so_until_it_is_thawed(log: MemoryLog, registry: Registry) -> None:
    send_command(log, "freeze", reason="holidays")
    drifted(log)
    loop = run(log, registry)
    assert names_of(log) == ["frozen", "declined"] and actions(log) == ["none: frozen: holidays"]
    assert loop.state.learner[2] == 3000  # it goes on learning, which changes nothing
    send_command(log, "thaw")
    send_alert(log, alert_of(2800, since=1000))
    send_rows(log, *rows_of(1500, AFTER, 4), 3000)
    run(log, registry)
    assert names_of(log)[2] == "thawed" and names_of(log)[-1] == "promoted"


def test_frozen_in_the_midst_of_a_case_nothing_is_promoted(log: MemoryLog, registry: Registry) -> None:
    drifted(log, after=900)
    assert run(log, registry).state.case.status == "watching"  # type: ignore[union-attr]
    send_command(log, "freeze")
    send_rows(log, *rows_of(2000, AFTER, 5), 1900)
    assert run(log, registry).state.case.status == "watching"  # type: ignore[union-attr]
    send_command(log, "thaw")
    send_rows(log, *rows_of(100, AFTER, 6), 3900)
    run(log, registry)
    assert registry.aliases() == {"champion": "m@2"}


def test_a_person_is_asked_first(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    loop = run(log, registry, approval="human")
    case = loop.state.case
    assert case is not None and case.status == "awaiting" and names_of(log)[-1] == "proposed"
    assert registry.aliases() == {"champion": "m@1", "shadow": "m@2"}
    send_command(log, "approve", case="no such case")
    send_command(log, "approve", case=case.id)
    run(log, registry, approval="human")
    assert names_of(log)[-3:] == ["ignored", "approved", "promoted"]
    assert registry.aliases() == {"champion": "m@2"}
    assert events(log)[-2]["by"] == "ann"


def test_nothing_is_approved_while_frozen(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    case = run(log, registry, approval="human").state.case
    send_command(log, "freeze", reason="release week")
    send_command(log, "approve", case=case.id)  # type: ignore[union-attr]
    assert run(log, registry, approval="human").state.case == case
    assert events(log)[-1]["reason"] == "frozen: release week" and registry.aliases()["champion"] == "m@1"


def test_a_person_says_no(log: MemoryLog, registry: Registry) -> None:
    drifted(log)
    loop = run(log, registry, approval="human")
    send_command(log, "reject", case=loop.state.case.id)  # type: ignore[union-attr]
    assert run(log, registry, approval="human").state.case is None
    assert registry.aliases() == {"champion": "m@1"}
    assert actions(log)[-1] == "retrain: rejected by ann"


def test_who_changes_the_champion_meanwhile_ends_the_case(log: MemoryLog, registry: Registry) -> None:
    drifted(log, after=900)
    run(log, registry)
    registry.set_alias("champion", "m@2")
    send_rows(log, *rows_of(300, AFTER, 5), 1900)
    loop = run(log, registry)
    assert loop.state.case is None and loop.state.champion == "m@2"
    assert names_of(log)[-1] == "given-up" and "by somebody else" in actions(log)[-1]


def test_a_shadow_that_a_person_has_chosen_stays(log: MemoryLog, registry: Registry) -> None:
    entry = registry.get("m@1").manifest
    drifted(log, after=900)
    registry.set_alias("shadow", entry.label)
    run(log, registry)
    assert registry.aliases()["shadow"] == "m@1"
    assert events(log)[-1]["shadow"] is False


def test_too_few_frauds_are_waited_for(log: MemoryLog, registry: Registry) -> None:
    drifted(log, after=750)
    loop = run(log, registry, frauds_min=200)
    assert loop.state.case is not None and loop.state.case.status == "collecting"
    assert names_of(log) == ["opened"]


def test_a_training_that_fails_ends_the_case_with_its_reason(log: MemoryLog, registry: Registry) -> None:
    def build(rows: Any, since_ms: int, champion: Any, kind: str) -> Any:
        return rebuilt_apart(rows, since_ms, champion, "nonsense" if kind == "retrain" else kind, timeout_s=0.0)  # type: ignore[arg-type]

    drifted(log)
    run(log, registry, build=build)
    assert "the training took more than 0 s" in actions(log)[-1] and len(models(registry)) == 1


# --- the same log, the same decisions ---


def test_how_the_log_is_cut_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (4096, 1, 7, 333):
        log, registry = new_log(), new_registry(tmp_path / str(size))
        drifted(log)
        monkeypatch.setattr("streams.control_feed._RECORDS_MAX", size)
        run(log, registry)
        *rest, texts, changes = story(log, registry)
        state, *others = rest
        found.append((state, *others, texts, changes))
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][0]["champion"] == "m@2"
