"""Names of workers: no two living ones have the same, and who comes back gets the old one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from streams import worker_name
from streams.worker_name import claim_name

CLAIM = "from streams.worker_name import claim_name; print(claim_name('log', 'g'), flush=True); input()"


def test_who_dies_leaves_its_name_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))

    def start() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    processes = [start() for _ in range(2)]
    (first, name), (_, other) = processes
    assert name.startswith("g-") and name != other
    first.kill()
    first.wait()
    processes.append(start())
    assert processes[-1][1] == name
    for process, _ in processes:
        process.kill()
        process.communicate()


def test_other_logs_and_groups_have_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    names = [claim_name(log, group) for log, group in (("a", "g"), ("b", "g"), ("a", "h"), ("a", "g"))]
    assert len(set(names)) == 4
    while worker_name._held:
        worker_name._held.pop().close()


def test_where_nothing_can_be_written_the_name_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "file"))
    assert claim_name("a", "g") != claim_name("a", "g")
    assert "HEADRACE_HOME" in caplog.text
