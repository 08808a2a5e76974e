"""What the control loop has promoted is watched for a time after, and rolled back where it is worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from control_world import (
    AFTER,
    BEFORE,
    FEATURES,
    actions,
    alert_of,
    champion_text,
    drifted,
    events,
    models,
    names_of,
    new_log,
    new_registry,
    rows_of,
    run,
    send_alert,
    send_command,
    send_rows,
)

from models.package import Draft
from models.registry import Registry
from monitoring.settings import DAY_MS
from streams.control_policy import finished
from streams.control_settings import ControlSettings
from streams.control_state import Case, State
from streams.memory import MemoryLog


@pytest.fixture
def log() -> MemoryLog:
    return new_log()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return new_registry(tmp_path / "models")


PROMOTED = 1950


def on_probation(log: MemoryLog, registry: Registry, then: Any, **how: Any) -> Any:
    """m@2 is promoted on the concept of rows 1000 to 1949, from then on it is ``then``."""
    drifted(log, after=PROMOTED - 1000)
    run(log, registry, probation_looks=4, **how)
    assert registry.aliases() == {"champion": "m@2"}
    send_rows(log, *rows_of(3000, then, 11), PROMOTED)
    return run(log, registry, probation_looks=4, **how)


def test_what_was_promoted_is_rolled_back_on_evidence_and_a_pause_follows(log: MemoryLog, registry: Registry) -> None:
    loop = on_probation(log, registry, BEFORE, cooldown_ms=DAY_MS)
    assert registry.aliases() == {"champion": "m@1"} and loop.state.champion == "m@1"
    assert names_of(log)[-2:] == ["decided", "rolled-back"] and loop.state.probation is None
    last = registry.history()[-1]
    assert last.action == "rollback" and last.reason == f"control {events(log)[-1]['case']}"
    gain = events(log)[-1]["evidence"]["differences"]["average_precision"]
    assert gain["high"] < 0 and events(log)[-1]["evidence"]["confidence"] == pytest.approx(1 - 0.05 / 4)
    assert actions(log)[-1] == "rollback: m@1 is champion again, m@2 was worse"
    # neither the alert that had been acted on nor another one soon after promotes anything again
    send_alert(log, alert_of(1600, since=1000))
    send_alert(log, alert_of(5000, name="another"))
    send_rows(log, *rows_of(400, AFTER, 12), PROMOTED + 3000)
    run(log, registry, probation_looks=4, cooldown_ms=DAY_MS)
    assert names_of(log)[-1] == "declined" and events(log)[-1]["reason"].startswith("cooling down")
    assert registry.aliases() == {"champion": "m@1"}


def test_what_stays_better_is_kept(log: MemoryLog, registry: Registry) -> None:
    loop = on_probation(log, registry, AFTER)
    assert registry.aliases() == {"champion": "m@2"} and loop.state.probation is None
    assert names_of(log)[-1] == "kept" and "rolled-back" not in names_of(log)


def test_a_person_is_asked_before_a_roll_back_and_may_say_no(log: MemoryLog, registry: Registry) -> None:
    drifted(log, after=PROMOTED - 1000)
    case = run(log, registry, probation_looks=4, approval="human").state.case
    send_command(log, "approve", case=case.id)  # type: ignore[union-attr]
    run(log, registry, probation_looks=4, approval="human")
    send_rows(log, *rows_of(3000, BEFORE, 11), PROMOTED)
    case = run(log, registry, probation_looks=4, approval="human").state.case
    assert case is not None and (case.action, case.status, case.candidate) == ("rollback", "awaiting", "m@1")
    assert registry.aliases() == {"champion": "m@2"}
    registry.set_alias("shadow", "m@1")  # a person's own, which stays
    send_command(log, "reject", case=case.id)
    loop = run(log, registry, probation_looks=4, approval="human")
    assert loop.state.case is None and registry.aliases() == {"champion": "m@2", "shadow": "m@1"}


def test_a_case_that_is_open_gives_way_to_a_roll_back(log: MemoryLog, registry: Registry) -> None:
    drifted(log, after=PROMOTED - 1000)
    run(log, registry, probation_looks=1, turns=2)
    send_rows(log, *rows_of(3000, BEFORE, 11), PROMOTED)
    # the second challenger is built before the first one has had its look
    loop = run(log, registry, probation_looks=1, turns=2, look_frauds=150)
    assert names_of(log)[-5:] == ["building", "retrained", "given-up", "decided", "rolled-back"]
    assert loop.state.case is None and registry.aliases() == {"champion": "m@1"}
    assert "m@3" in [label for label, _ in models(registry)]


def test_a_person_who_changes_the_champion_ends_the_probation(log: MemoryLog, registry: Registry) -> None:
    drifted(log, after=PROMOTED - 1000)
    run(log, registry, probation_looks=4)
    registry.rollback()
    registry.set_alias("champion", "m@2")
    registry.set_alias("champion", "m@1")
    send_rows(log, *rows_of(3000, BEFORE, 11), PROMOTED)
    loop = run(log, registry, probation_looks=4)
    assert loop.state.probation is None and "rolled-back" not in names_of(log)


def test_a_roll_back_goes_to_the_model_that_was_judged_or_nowhere(log: MemoryLog, registry: Registry) -> None:
    drifted(log, after=PROMOTED - 1000)
    run(log, registry, probation_looks=4)
    other = registry.add(Draft("m", champion_text(), FEATURES, "", "2026-01-01T00:00:00+00:00"))
    registry.set_alias("champion", other.label)
    registry.set_alias("champion", "m@2")  # as it was, but for what is before it
    send_rows(log, *rows_of(3000, BEFORE, 11), PROMOTED)
    loop = run(log, registry, probation_looks=4)
    assert registry.aliases() == {"champion": "m@2"} and loop.state.champion == "m@2"
    assert names_of(log)[-2:] == ["decided", "given-up"] and loop.state.probation is None
    assert "a person changed the champion: before m@2 it is m@3 by now, not m@1" in events(log)[-1]["reason"]


def test_a_probation_of_a_champion_before_ends_where_there_are_none_any_more() -> None:
    alert = alert_of(1)
    trial = Case("a-1", "retrain", "probation", alert, "m@1", 0, candidate="m@2")
    case = Case("b-2", "retrain", "promoting", alert, "m@2", 0, candidate="m@3")
    settings = ControlSettings.of({"probation_looks": 0})
    state = finished(settings, State(champion="m@2", case=case, probation=trial), {"model": "m@3"}).state
    assert state.champion == "m@3" and state.probation is None
