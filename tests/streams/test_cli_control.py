"""headrace control, as a person uses it, and the section [control] of headrace.toml."""

from __future__ import annotations

import json
import os
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_world import (
    AFTER,
    alert_of,
    drifted,
    events,
    names_of,
    new_log,
    new_registry,
    rows_of,
    run,
    send_alert,
    send_command,
    send_rows,
)
from msgspec.structs import replace

from models.calibrate import Calibration
from models.rebuild import Champion, Declined, LabelledRows
from models.registry import Registry
from streams.cli.main import main
from streams.config import load_settings
from streams.control import Controller
from streams.control_settings import ACTIONS, KINDS, ControlSettings
from streams.control_state import Case, State, read_command, read_state, written
from streams.control_web import served
from streams.errors import ConfigError, FatalError
from streams.memory import MemoryLog
from streams.retrain import Stopped, rebuilt_apart
from streams.web_address import Address

#: so long the monitor waits for labels of a period
LATENESS_MS = 3_600_000
CONFIG = """
label_mature_ms = 1

[control]
approval = "human"
round_rows = 50
frauds_min = 120
look_frauds = 40
turns = 1

[control.policy]
performance_drift = "retrain"
"""


@pytest.fixture
def log() -> MemoryLog:
    return new_log()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return new_registry(tmp_path / "models")


@pytest.fixture
def where(log: MemoryLog, tmp_path: Path) -> list[str]:
    (tmp_path / "headrace.toml").write_text(CONFIG)
    return ["--bootstrap", log.url, "--config", str(tmp_path / "headrace.toml")]


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["control", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_proposal_is_shown_and_approved(
    capsys: pytest.CaptureFixture[str], log: MemoryLog, registry: Registry, where: list[str]
) -> None:
    drifted(log, label_ms=LATENESS_MS)
    once = ["run", "--models", registry.root, "--once", *where]
    code, out, _ = command(capsys, *once, "--json")
    figures = json.loads(out.splitlines()[-1])
    assert (code, out.splitlines()[0], figures["champion"]) == (0, "ready", "m@1")
    code, out, _ = command(capsys, "status", *where)
    assert code == 0 and "m@2 beside m@1" in out and "average precision: champion 0." in out
    assert f"headrace control approve {figures['case']}" in out
    state = json.loads(command(capsys, "status", "--json", *where)[1])["state"]
    assert state["case"]["status"] == "awaiting"

    code, _, err = command(capsys, "approve", "zzz", *where)
    assert code == 2 and f"the open case is {figures['case']}" in err
    assert command(capsys, "approve", figures["case"][:6], *where)[:2] == (0, f"approve {figures['case']}: asked for\n")
    assert command(capsys, *once)[0] == 0
    assert registry.aliases() == {"champion": "m@2"} and names_of(log)[-1] == "promoted"
    code, out, _ = command(capsys, "status", *where)
    assert "no case is open" in out and "promoted" in out
    code, _, err = command(capsys, "reject", figures["case"], *where)
    assert code == 2 and "no case is open" in err


def test_a_freeze_and_its_end(
    capsys: pytest.CaptureFixture[str], log: MemoryLog, registry: Registry, where: list[str]
) -> None:
    assert command(capsys, "freeze", "--reason", "release week", *where)[1] == "freeze: asked for\n"
    command(capsys, "run", "--models", registry.root, "--once", *where)
    assert "FROZEN    release week" in command(capsys, "status", *where)[1]
    assert command(capsys, "thaw", "--json", *where)[1] == '{"command": "thaw", "case": null}\n'
    command(capsys, "run", "--models", registry.root, "--once", *where)
    assert "FROZEN" not in command(capsys, "status", *where)[1]
    assert [event["reason"] for event in events(log) if event["event"] == "frozen"] == ["release week"]


def test_who_asks_has_a_number_where_nobody_has_a_name(
    capsys: pytest.CaptureFixture[str],
    log: MemoryLog,
    registry: Registry,
    where: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert command(capsys, "freeze", *where)[0] == 0
    command(capsys, "run", "--models", registry.root, "--once", *where)
    assert [event["by"] for event in events(log)] == [str(os.getuid())]


@pytest.mark.parametrize("stopping", [False, True])
def test_a_training_that_is_ended_with_the_loop_is_not_declined(
    monkeypatch: pytest.MonkeyPatch, stopping: bool
) -> None:
    code = "import os, sys; sys.exit(f'session of its own: {os.getsid(0) == os.getpid()}')"
    monkeypatch.setattr("streams.retrain.child_command", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setattr("streams.retrain._wait", lambda process, *_: process.wait())
    rows = LabelledRows(("a",), np.ones((1, 1)), *np.ones((3, 1), np.int64))
    champion = Champion("", Calibration("platt"), {}, 1)
    with pytest.raises(Stopped if stopping else Declined, match="told to end" if stopping else "its own: True"):
        rebuilt_apart(rows, 0, champion, "retrain", stopping=lambda: stopping)


def test_a_declined_alert_is_acted_on_when_a_person_asks(
    capsys: pytest.CaptureFixture[str], log: MemoryLog, registry: Registry, where: list[str]
) -> None:
    command(capsys, "freeze", *where)
    drifted(log, label_ms=LATENESS_MS)
    once = ["run", "--models", registry.root, "--once", *where]
    command(capsys, *once)
    command(capsys, "thaw", *where)
    command(capsys, *once)
    assert names_of(log) == ["frozen", "declined", "thawed"]
    code, _, err = command(capsys, "act", "zzz", *where)
    assert code == 2 and "no such alert" in err
    assert command(capsys, "act", "perf", *where)[:2] == (0, "act: asked for\n")
    send_rows(log, *rows_of(400, AFTER, 4), 3000, label_ms=LATENESS_MS)
    command(capsys, *once)
    assert names_of(log)[3:7] == ["asked", "opened", "building", "retrained"]


def test_wrong_use_is_said_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], registry: Registry, where: list[str], tmp_path: Path
) -> None:
    code, _, err = command(capsys, "run", *where)
    assert code == 2 and "--models DIR" in err
    code, _, err = command(capsys, "run", "--models", tmp_path / "none", *where)
    assert code == 2 and "not there" in err
    code, _, err = command(capsys, "freeze", "--bootstrap", "memory://control-without-topics")
    assert code == 2 and "headrace topics create" in err


def test_it_follows_the_topics_until_it_is_told_to_end(log: MemoryLog, registry: Registry) -> None:
    settings = ControlSettings(round_rows=50, frauds_min=120, look_frauds=40, turns=1)
    promoted = threading.Event()
    with Controller(log, registry, settings, mature_ms=0) as loop:
        plain = loop._commit

        def commit(made: Any) -> None:
            plain(made)
            if loop.state.champion == "m@2":
                promoted.set()
                loop.stop()

        loop._commit = commit  # type: ignore[method-assign]
        drifted(log)
        loop.run()  # in the main thread, as the training's process wants it
    assert promoted.is_set() and registry.aliases() == {"champion": "m@2"}


def test_told_to_end_in_the_midst_of_a_training_it_leaves_it_to_the_next(log: MemoryLog, registry: Registry) -> None:
    settings = ControlSettings(round_rows=50, frauds_min=120, look_frauds=40, turns=1)
    drifted(log)
    with Controller(log, registry, settings, mature_ms=0) as loop:
        plain = loop._built

        def built(case: Any) -> Any:
            loop.stop()
            return plain(case)

        loop._built = built  # type: ignore[method-assign]
        with pytest.raises(Stopped, match="told to end"):
            loop.run_to_end()
    assert names_of(log) == ["opened", "building"]
    assert run(log, registry).state.champion == "m@2"


def test_alerts_do_not_wait_for_ever_for_labels(
    log: MemoryLog, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.control._PATIENCE_S", 0.0)
    send_alert(log, alert_of(100, "input_drift"))
    with Controller(log, registry, ControlSettings(), mature_ms=0) as loop:
        plain = loop._commit

        def commit(made: Any) -> None:
            plain(made)
            loop.stop()

        loop._commit = commit  # type: ignore[method-assign]
        loop.run()
        assert loop.state.decided == ["inpu000000000100 alert m@1"]


# --- settings ---


def test_the_section_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text(CONFIG)
    made = load_settings(tmp_path / "headrace.toml", environment={}).control_settings()
    assert made.approval == "human" and made.round_rows == 50 and made.action("performance_drift") == "retrain"
    assert load_settings(environment={"HEADRACE_CONTROL": "x"}).control_settings() == ControlSettings()


def test_by_default_only_what_labels_say_changes_a_model() -> None:
    made = ControlSettings()
    acted = {kind: made.action(kind) for kind in KINDS if made.action(kind) != "alert"}
    assert acted == {"calibration_drift": "update", "performance_drift": "retrain"}
    assert set(acted.values()) < set(ACTIONS) and made.action("something new") == "alert"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"polcy": {}}, "control.polcy: not known"),
        ({"policy": {"drift": "retrain"}}, "no such kind"),
        ({"policy": {"input_drift": "retrian"}}, "is no action"),
        ({"policy": "retrain"}, "is no table"),
        ({"approval": "maybe"}, "neither auto nor human"),
        ({"round_rows": 0}, "below 1"),
        ({"round_rows": 1.5}, "not a whole number"),
        ({"looks": True}, "not a whole number"),
        ({"rows_max": 100}, "ten times round_rows"),
        ({"confidence": 1.0}, "not in 0.5..1"),
        ({"cooldown_ms": -1}, "below 0"),
        ({"learning_rate": 0}, "not above 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ControlSettings.of(table)
    with pytest.raises(ConfigError, match=said):
        load_settings(environment={}, overrides={"control": table})


# --- what is in the topic ---


def test_a_state_of_another_version_is_refused() -> None:
    assert read_state(written(State(steps=3))) == State(steps=3)
    for value in (b"{}x", b'{"version":1}', b'{"version":2,"news":3}'):
        with pytest.raises(FatalError, match="control-state"):
            read_state(value)
    for value in (None, b"", b'{"command":"explode"}', b'{"command":"act"}', written(State())):
        assert read_command(value) is None


def asked(url: str, host: str = "localhost") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def test_metrics_and_health(log: MemoryLog, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    send_command(log, "freeze", reason="release")
    loop = run(log, registry)
    with served(loop, Address("127.0.0.1", 0)) as url:
        root = url.removesuffix("/metrics")
        code, text = asked(url)
        assert code == 200
        for line in (
            'headrace_control_steps_total{pipeline="control"} 1.0',
            'headrace_control_frozen{pipeline="control"} 1.0',
            'headrace_model_info{model="m@1",partition="",pipeline="control",role="champion"} 1.0',
        ):
            assert line in text.splitlines()
        assert asked(f"{root}/healthz") == (200, json.dumps({"ok": True, "state": "frozen", "reason": "release"}))
        # a loop that hangs is told of, one that trains is not said to hang
        monkeypatch.setattr(loop, "_turned", loop._turned - 1000.0)
        code, text = asked(f"{root}/healthz")
        assert code == 503 and json.loads(text)["state"] == "stalled"
        assert 'headrace_ready{pipeline="control"} 0.0' in asked(url)[1]
        case = Case("c1", "retrain", "building", {}, "m@1", 0)
        monkeypatch.setattr(loop._ledger, "state", replace(loop.state, case=case))
        assert json.loads(asked(f"{root}/healthz")[1])["state"] == "training"
        assert 'headrace_control_case{action="retrain",pipeline="control",status="building"} 1.0' in asked(url)[1]
        assert asked(url, "evil.example")[0] == 403 and asked(f"{root}/else")[0] == 404


def test_where_metrics_are_served_is_checked(
    capsys: pytest.CaptureFixture[str], log: MemoryLog, registry: Registry, where: list[str]
) -> None:
    once = ["run", "--models", registry.root, "--once", *where, "--web"]
    code, _, err = command(capsys, *once, "0.0.0.0:0")
    assert code == 2 and "--web-remote" in err
    code, _, err = command(capsys, *once, "here")
    assert code == 2 and "no address to listen at" in err
    code, out, err = command(capsys, *once, "0")
    assert code == 0 and out.startswith("ready") and "metrics at http://127.0.0.1:" in err
