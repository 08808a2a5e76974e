"""A control loop that dies at any point: the next one does what is left, and nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_world import (
    AFTER,
    BEFORE,
    alert_of,
    controller,
    names_of,
    new_log,
    new_registry,
    rows_of,
    run,
    send_alert,
    send_rows,
    story,
)

from models.evidence import paired_evidence
from models.rebuild import Rebuilt, rebuild
from models.registry import Registry
from streams.control_log import ControlLog
from streams.errors import HeadraceError
from streams.memory import MemoryLog


class Crash(BaseException):
    """The process is gone."""


@contextmanager
def crash_at(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[list[str]]:
    """It dies at the ``at``-th point: there is one before and one after each time that the loop touches the world."""
    points: list[str] = []

    def point(name: str) -> None:
        points.append(name)
        if len(points) == at:
            raise Crash(name)

    def dying(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            point(f"before {name}")
            result = plain(*args, **kwargs)
            point(f"after {name}")
            return result

        patch.setattr(owner, name, call)

    with monkeypatch.context() as patch:
        for name in ("add", "set_alias", "clear", "rollback"):
            dying(Registry, name)
        dying(ControlLog, "commit")
        yield points


_built: dict[tuple[Any, ...], Rebuilt] = {}


def built_once(rows: Any, since_ms: int, champion: Any, kind: Any) -> Rebuilt:
    """It is a pure function, so it need not be asked again for the same rows."""
    key = (rows.x.tobytes(), rows.y.tobytes(), since_ms, champion.model_text, kind)
    if key not in _built:
        _built[key] = rebuild(rows, since_ms, champion, kind)
    return _built[key]


def retrained(log: MemoryLog) -> None:
    x, y = rows_of(100, BEFORE, 1)
    x2, y2 = rows_of(1300, AFTER, 2)
    send_rows(log, np.concatenate([x, x2]), np.concatenate([y, y2]))
    send_alert(log, alert_of(650, since=100))


def rolled_back(log: MemoryLog) -> None:
    """The concept is the former one again when the challenger is champion."""
    x, y = rows_of(100, BEFORE, 1)
    x2, y2 = rows_of(1300, AFTER, 2)
    x3, y3 = rows_of(900, BEFORE, 3)
    send_rows(log, np.concatenate([x, x2[:900], x3]), np.concatenate([y, y2[:900], y3]))
    send_alert(log, alert_of(650, since=100))


def updated(log: MemoryLog) -> None:
    send_rows(log, *rows_of(600, BEFORE, 2, level=0.5))
    send_alert(log, alert_of(50, "calibration_drift"))


def given_up(log: MemoryLog) -> None:
    """A challenger that was better by chance."""
    send_rows(log, *rows_of(1000, BEFORE, 20))
    send_alert(log, alert_of(450, since=0))


#: what happens, the settings, and the last event
STORIES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "retrained": (retrained, {"round_rows": 100}, "promoted"),
    "rolled back": (rolled_back, {"round_rows": 100, "probation_looks": 1}, "rolled-back"),
    "updated": (updated, {"round_rows": 30, "looks": 1, "learning_rate": 0.2}, "updated"),
    "given up": (
        given_up,
        {"round_rows": 100, "frauds_min": 60, "looks": 1, "policy": {"performance_drift": "refit"}},
        "given-up",
    ),
}


@pytest.mark.parametrize("name", STORIES)
def test_a_crash_anywhere_changes_nothing_of_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    happen, how, last = STORIES[name]
    # intervals of fewer draws, which are as repeatable
    monkeypatch.setattr("streams.control_desk.paired_evidence", partial(paired_evidence, resamples=40))

    def world(folder: str) -> tuple[MemoryLog, Registry]:
        log = new_log()
        happen(log)
        return log, new_registry(tmp_path / folder)

    log, registry = world("whole")
    with crash_at(monkeypatch, 0) as points:
        run(log, registry, build=built_once, **how)
    expected = story(log, registry)
    assert names_of(log)[-1] == last and "before add" in points
    # of the rounds before anything is decided, the last one is enough
    for at, where in list(enumerate(points, 1))[points.index("before add") - 4 :]:
        log, registry = world(f"crash-{at}")
        with pytest.raises(Crash), crash_at(monkeypatch, at):
            run(log, registry, build=built_once, **how)
        run(log, registry, build=built_once, **how)
        assert story(log, registry) == expected, where


def test_a_person_who_rolls_back_in_between_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, registry = new_log(), new_registry(tmp_path)
    retrained(log)
    with crash_at(monkeypatch, 0) as points:
        run(log, registry, build=built_once, round_rows=100)
    promoted = len(points) - points[::-1].index("after set_alias")
    log, registry = new_log(), new_registry(tmp_path / "again")
    retrained(log)
    with pytest.raises(Crash), crash_at(monkeypatch, promoted):
        run(log, registry, build=built_once, round_rows=100)
    assert registry.aliases()["champion"] == "m@2" and names_of(log)[-1] == "decided"
    registry.rollback()
    loop = run(log, registry, build=built_once, round_rows=100)
    assert registry.aliases()["champion"] == "m@1" and loop.state.champion == "m@1"


def test_a_person_who_promotes_another_in_between_has_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, registry = new_log(), new_registry(tmp_path)
    retrained(log)
    with crash_at(monkeypatch, 0) as points:
        run(log, registry, build=built_once, round_rows=100)
    promoting = len(points) - points[::-1].index("before set_alias")
    log, registry = new_log(), new_registry(tmp_path / "again")
    retrained(log)
    with pytest.raises(Crash), crash_at(monkeypatch, promoting):
        run(log, registry, build=built_once, round_rows=100)
    assert registry.aliases() == {"champion": "m@1", "shadow": "m@2"} and names_of(log)[-1] == "decided"
    new_registry(registry.root)  # m@3 is champion
    loop = run(log, registry, build=built_once, round_rows=100)
    assert registry.aliases() == {"champion": "m@3"}
    assert loop.state.case is None and names_of(log)[-1] == "given-up"


def test_a_loop_that_is_ended_in_the_midst_of_a_training_adds_nothing(tmp_path: Path) -> None:
    log, registry = new_log(), new_registry(tmp_path)
    retrained(log)

    def overtaken(*args: Any) -> Rebuilt:
        run(log, registry, build=built_once, round_rows=100)
        return built_once(*args)

    with pytest.raises(HeadraceError, match="another control loop has begun"):
        run(log, registry, build=overtaken, round_rows=100)
    assert [entry.manifest.label for entry in registry.entries()] == ["m@1", "m@2"]
    assert registry.aliases() == {"champion": "m@2"}


def test_a_second_loop_ends_the_first(tmp_path: Path) -> None:
    log, registry = new_log(), new_registry(tmp_path)
    retrained(log)
    with controller(log, registry, build=built_once, round_rows=100) as first:
        with controller(log, registry, build=built_once, round_rows=100) as second:
            second.run_to_end()
        with pytest.raises(HeadraceError, match="another control loop has begun"):
            first.run_to_end()
    assert names_of(log).count("promoted") == 1
