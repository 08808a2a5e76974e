"""What the demo starts and ends: calls in threads, child processes that cannot outlive it, its worker on either log."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from streams.config import Settings, load_settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from streams.log import Log
    from streams.worker import Worker

__all__ = ["Beside", "Child", "DemoWorker", "Job", "WorkerProcess", "WorkerThread", "child_command"]

_T = TypeVar("_T")
#: more than a worker or a broker needs to end
_STOP_S = 35.0
#: Runs ``main()`` of a module; the system sends SIGTERM when the demo dies, whatever it dies of (Linux).
_START = """
import ctypes, importlib, os, signal, sys
from streams.process_end import end_with
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit(1)
end_with(importlib.import_module(sys.argv.pop(1)).main)
"""


def child_command(module: str, words: Sequence[str]) -> list[str]:
    """Runs ``main()`` of one of our modules in a process that ends with this one. To be started from the main thread:
    the death signal comes when the *thread* that forked ends."""
    return [sys.executable, "-c", _START, str(os.getpid()), module, *words]


class Job(threading.Thread, Generic[_T]):
    """A call in a thread of its own, its result or error to be fetched."""

    def __init__(self, call: Callable[[], _T]) -> None:
        super().__init__(name="demo-job", daemon=True)
        self._call = call
        self._result: list[_T] = []
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result.append(self._call())
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
            self._error = error

    def result(self) -> _T:
        if self._error is not None:
            raise self._error
        return self._result[0]


class Child:
    """A process that runs ``main()`` of one of our modules; stderr goes to ``folder/name.log``.

    It has a session of its own, so that Ctrl-C in the terminal is for the demo, which ends its children in order.
    Start it from the main thread: the death signal comes when the *thread* that forked ends.
    """

    def __init__(self, name: str, module: str, words: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log_file = folder / f"{name}.log"
        self.ready = threading.Event()
        self._lines: deque[str] = deque(maxlen=100)
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                child_command(module, words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env=_environment(),
            )
        self._reader = threading.Thread(target=self._read, name=f"demo-{name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.append(line.rstrip())
                if line.startswith("ready"):
                    self.ready.set()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs."""
        return self._process.poll()

    def said(self, start: str = "") -> str:
        """The last line of stdout that begins with ``start``, "" where there is none."""
        return next((line for line in reversed(list(self._lines)) if line.startswith(start)), "")

    def tail(self, lines: int = 12) -> list[str]:
        """The last lines of its log."""
        return self.log_file.read_text(errors="replace").splitlines()[-lines:]

    def complaint(self) -> str:
        """The error that a command of ours ended with, else the last line of its log."""
        lines = self.tail(100)
        prefix = f"headrace {self.name}: "
        ours = next((line.removeprefix(prefix) for line in lines if line.startswith(prefix)), "")
        return ours or " ".join(lines[-1:])

    def ask_to_end(self) -> None:
        """SIGTERM, if it runs."""
        if self.code is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, timeout_s: float = _STOP_S) -> int:
        """Ends it, by force when it takes too long; returns the exit code."""
        self.ask_to_end()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5.0)
        return self._process.returncode


def _environment() -> dict[str, str]:
    """Ours, without settings of a worker: the demo's worker has only the demo's."""
    settings = {f"HEADRACE_{spec.name.upper()}" for spec in fields(Settings)}
    return {name: value for name, value in os.environ.items() if name not in settings}


class DemoWorker(Protocol):
    """The worker of a demo."""

    where: str

    @property
    def is_ready(self) -> bool:
        """Whether it is assigned and recovered."""

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs."""

    def stop(self) -> int:
        """Drains, leaves; returns the exit code."""

    def figures(self) -> Mapping[str, int]:
        """What it has done, once stopped; empty if it could not say."""


class Beside(Protocol):
    """What is shown beside, on the same log."""

    def start(self) -> None:
        """Everything may begin that needs no log."""

    def use(self, backend: str, log: Log) -> None:
        """The log is there."""

    @property
    def is_live(self) -> bool:
        """Whether it shows what it has to show, or never will."""

    def below(self) -> RenderableType | None:
        """To be shown below the rest."""

    def end(self) -> list[str]:
        """Ends it, and says what was wrong; again and again says the same."""


class WorkerProcess:
    """The real thing: ``headrace run --json``."""

    def __init__(self, config: Path, folder: Path, pipeline: str = "fraud") -> None:
        words = ["run", "--pipeline", pipeline, "--json", "--config", str(config)]
        words += ["--bootstrap", load_settings(config, {}).bootstrap]
        self.child = Child("worker", "streams.cli.main", words, folder)
        self.where = f"headrace run, process {self.child.pid}"

    @property
    def is_ready(self) -> bool:
        return self.child.ready.is_set()

    @property
    def code(self) -> int | None:
        return self.child.code

    def stop(self) -> int:
        return self.child.stop()

    def figures(self) -> Mapping[str, int]:
        text = self.child.said("{")
        if not text:
            return {}
        return {name: value for name, value in json.loads(text).items() if isinstance(value, int)}


class WorkerThread:
    """The same worker in this process, as the log is."""

    def __init__(self, config: Path, pipeline: str = "fraud") -> None:
        from streams.cli.run import PIPELINES

        make_worker: Callable[..., tuple[Worker, Any]] = importlib.import_module(PIPELINES[pipeline]).make_worker
        self._ready = threading.Event()
        self._worker, self._pipeline = make_worker(load_settings(config, {}), on_ready=self._ready.set)
        self._code: int | None = None
        self.where = "in this process"
        self._thread = threading.Thread(target=self._run, name="demo-worker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        code = 1
        try:
            code = asyncio.run(self._worker.run())
        finally:
            self._code = code

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    @property
    def code(self) -> int | None:
        return self._code

    def stop(self) -> int:
        deadline = time.monotonic() + _STOP_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            # again and again: a worker that has not quite begun does not hear it
            self._worker.stop()
            self._thread.join(0.2)
        return 1 if self._code is None else self._code

    def figures(self) -> Mapping[str, int]:
        figures: Mapping[str, int] = self._pipeline.figures()
        return figures
