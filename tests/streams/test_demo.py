"""The demo as a newcomer starts it: a process of its own, on either log, to its end or to Ctrl-C."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from numba import njit
from rich.console import Console

from streams.config import Settings
from streams.demo import Demo
from streams.demo_model import Stopped
from streams.demo_plan import HISTORY_DAYS, DemoSettings, make_plan
from streams.demo_report import Accounts
from streams.demo_warm import compilations
from streams.errors import ConfigError
from streams.log import connect
from streams.simulator import DAY_MS
from streams.simulator_stream import Chunk, StreamRecord, Tag
from streams.topics import all_topics
from streams.worker import ensure_topics

FIELDS = {
    "received",
    "scored",
    "dead_letters",
    "duplicates",
    "late",
    "events_per_s",
    "latency_ms_p50",
    "latency_ms_p99",
}
NOW_MS = 1_763_868_000_000
COMMAND = [sys.executable, "-c", "from streams.cli.main import entry; entry()", "demo", "--json"]
FRAUD = [*COMMAND, "--pipeline", "fraud"]

pytestmark = pytest.mark.timeout(300)


@contextmanager
def demo(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A demo whose temporary files, and its children's, are in ``folder``."""
    process = subprocess.Popen(
        [*FRAUD, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def relatives(folder: Path) -> list[int]:
    """Processes, java included, that were started with ``folder`` for their temporary files."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state != "Z" and f"TMPDIR={folder}\0".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def read_until(process: subprocess.Popen[str], what: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if what in line:
            return lines
    raise AssertionError(f"{what!r} never came: {lines}")


def ended(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """The JSON of a demo that ended as it should, leaving nothing behind."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert err == ""
    figures: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert figures["ok"] is True
    assert figures["problems"] == []
    assert set(figures) >= FIELDS
    assert figures["received"] == figures["scored"] + figures["dead_letters"] + figures["duplicates"]
    assert relatives(folder) == []
    assert list(folder.iterdir()) == []
    return figures


def check_live(figures: dict[str, Any], backend: str) -> None:
    """Figures of a demo that came to its live part."""
    assert figures["backend"] == backend
    assert figures["model"] == "demo@1"
    assert figures["received"] > 0
    assert figures["late"] <= figures["scored"]
    assert 0 < figures["latency_ms_p50"] <= figures["latency_ms_p99"]
    worker, history = figures["worker"], figures["history"]["transactions"]
    assert worker["received"] == history + figures["received"]
    assert worker["scored"] == history + figures["scored"]
    # what fills the windows is itself in order: else the live features would be wrong
    assert figures["history"]["late"] == 0


def test_both_on_the_log_in_process(tmp_path: Path) -> None:
    with demo(tmp_path, "--pipeline", "both", "--memory", "--seconds", "3", "--rate", "300") as process:
        assert "asked for by --memory" in "".join(read_until(process, "kafka"))
        kernels = [line for line in read_until(process, "worker: done") if line.startswith("kernels: done")][-1]
        assert kernels.rstrip().endswith(
            ("  compiled by numba, kept beside the source", "  kept from an earlier start")
        )
        figures = ended(process, tmp_path)
    check_live(figures, "memory")
    assert figures["seconds"] == pytest.approx(3, abs=1)
    assert 600 <= figures["received"] <= 930
    lists = figures["recommendations"]
    assert set(lists) >= FIELDS and lists["ok"] and lists["backend"] == "memory"
    assert lists["received"] == lists["scored"] + lists["dead_letters"] + lists["duplicates"] > 100
    assert sum(lists["rungs"].values()) == lists["scored"] and lists["hit_rate"] > 0


def test_ctrl_c_in_the_live_part(tmp_path: Path) -> None:
    with demo(tmp_path, "--memory", "--forever", "--seed", "2", "--rate", "300") as process:
        read_until(process, "received")
        read_until(process, "received")
        process.send_signal(signal.SIGINT)
        figures = ended(process, tmp_path)
    check_live(figures, "memory")


def test_ctrl_c_before_the_live_part(tmp_path: Path) -> None:
    with demo(tmp_path, "--memory") as process:
        read_until(process, "kafka: done")
        process.send_signal(signal.SIGINT)
        figures = ended(process, tmp_path)
    assert figures["received"] == figures["worker"].get("received", 0) == 0
    assert figures["latency_ms_p50"] is None


@pytest.mark.kafka
def test_on_kafka(tmp_path: Path) -> None:
    with demo(tmp_path, "--seconds", "3", "--rate", "300") as process:
        figures = ended(process, tmp_path)
    check_live(figures, "kafka")


@pytest.mark.kafka
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent has died")
def test_nothing_outlives_a_demo_that_is_killed(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        read_until(process, "history: done")
        assert len(relatives(tmp_path)) > 1
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while left := relatives(tmp_path):
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("field", "value"), [("seconds", 0.0), ("seconds", math.nan), ("rate", 0.0), ("rate", math.nan), ("seed", -1)]
)
def test_wrong_use_names_the_option(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^--{field} "):
        DemoSettings(**{field: value})  # type: ignore[arg-type]


def test_kernels_that_numba_compiles_are_counted_and_those_it_has_are_not() -> None:
    double = njit(lambda x: 2 * x)
    with compilations() as count:
        assert double(2) == 4
        assert count() == 1
        assert double(3) == 6
    assert count() == 1
    with compilations() as count:
        assert double(4) == 8
    assert count() == 0


def _quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def _demo_with_books(monkeypatch: pytest.MonkeyPatch, accounts: Accounts) -> Demo:
    """A demo that has done nothing but has these books."""
    made = Demo(DemoSettings(), _quiet(), threading.Event())
    made.accounts = accounts
    monkeypatch.setattr(Demo, "_run", lambda self, folder: None)
    return made


def test_books_that_do_not_agree_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"received": 10, "scored": 8, "dead_letters": 1, "duplicates": 0, "labels": 0}
    made = _demo_with_books(monkeypatch, Accounts(sent=10, malformed=1, duplicates=1, worker=figures))
    assert made.run() == 1
    assert "received by the worker 10 is not scored + dead letters + duplicates 9" in made.problems
    assert made.figures()["ok"] is False


def test_a_failure_is_told_with_the_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _demo_with_books(monkeypatch, Accounts())

    def fail(self: Demo, folder: Path) -> None:
        (folder / "worker.log").write_text("the reason\n")
        raise ConfigError("no luck: try again")

    monkeypatch.setattr(Demo, "_run", fail)
    assert made.run() == 1
    assert "no luck: try again" in made.problems[0]
    assert "the reason" in made.problems[0]


class _SlowWorker:
    """One that never becomes ready."""

    where, is_ready, code = "nowhere", False, None

    def stop(self) -> int:
        return 0

    def figures(self) -> dict[str, int]:
        return {}


def test_who_stops_while_the_worker_starts_is_shown_no_defect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("streams.demo.WorkerThread", lambda config: _SlowWorker())
    stop = threading.Event()
    demo = Demo(DemoSettings(memory=True), _quiet(), stop)
    demo.backend, demo._log = "memory", connect(f"memory://{tmp_path.name}")
    demo._reasons = lambda record: ""  # type: ignore[assignment]
    ensure_topics(demo._log, all_topics())
    stop.set()
    with pytest.raises(Stopped):
        demo._start_worker(tmp_path / "headrace.toml", tmp_path, Settings())
    demo._finish()
    assert demo._disagreements() == []


class TestAccounts:
    def chunk(self, *tags: Tag) -> Chunk:
        return Chunk(0.0, 0, [StreamRecord("", b"", b"", tag) for tag in tags])

    def books(self) -> Accounts:
        accounts = Accounts()
        accounts.add(self.chunk(Tag.TRANSACTION, Tag.LABEL, Tag.TRANSACTION), live=False)
        accounts.add(self.chunk(Tag.TRANSACTION, Tag.LATE, Tag.NOT_JSON, Tag.DUPLICATE, Tag.LABEL), live=True)
        accounts.worker = {"received": 6, "scored": 4, "dead_letters": 1, "duplicates": 1, "labels": 2}
        return accounts

    def test_agree(self) -> None:
        accounts = self.books()
        assert accounts.to_score == 4
        assert accounts.problems(4, 1) == []
        assert accounts.live_figures() == {"received": 4, "scored": 2, "dead_letters": 1, "duplicates": 1}

    @pytest.mark.parametrize("name", ["received", "scored", "dead_letters", "duplicates", "labels"])
    def test_a_count_of_the_worker_s_that_is_wrong(self, name: str) -> None:
        accounts = self.books()
        accounts.worker = {**accounts.worker, name: accounts.worker[name] + 1}
        assert accounts.problems(4, 1)

    @pytest.mark.parametrize(("scores", "dead"), [(3, 1), (5, 1), (4, 0), (4, 2)])
    def test_output_that_is_missing_or_too_much(self, scores: int, dead: int) -> None:
        assert self.books().problems(scores, dead)

    def test_no_figures_of_the_worker(self) -> None:
        accounts = self.books()
        accounts.worker = {}
        assert accounts.problems(4, 1) == ["the worker left no figures"]
        assert Accounts().problems(0, 0) == []


@pytest.mark.parametrize("rate", [1.0, 300.0, 1_000.0, 20_000.0])
@pytest.mark.parametrize("seconds", [1.0, 30.0, 600.0])
def test_the_world_of_a_plan_ends_in_the_past(rate: float, seconds: float) -> None:
    world = make_plan(DemoSettings(seconds=seconds, rate=rate), NOW_MS).world
    # by its own pace: so many days are streamed
    live_days = seconds * rate / world.rows_per_day
    assert world.time_of(HISTORY_DAYS) + live_days * DAY_MS < NOW_MS


@pytest.mark.parametrize("rate", [1.0, 1_000.0, 100_000.0])
def test_slices_of_the_history_are_never_late(rate: float) -> None:
    plan = make_plan(DemoSettings(seconds=None, rate=rate), NOW_MS)
    assert DAY_MS % plan.slice_ms == 0
    assert plan.allowed_lateness_ms >= 2 * plan.slice_ms
