"""The machine, the versions, and what a process costs: what every figure is read with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streams.errors import HeadraceError

__all__ = ["BenchError", "Child", "Cores", "cpu_seconds", "headrace", "machine", "thread_seconds", "versions"]

LIBRARIES = ("headrace", "numpy", "numba", "lightgbm", "faust-streaming", "aiokafka", "confluent-kafka", "pyarrow")
_STARTUP_S = 180.0


class BenchError(HeadraceError):
    """A measurement that could not be made."""


def machine() -> dict[str, Any]:
    """What was measured on, with the load that others put on it (1 minute average) as the measurement begins."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_1m": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Python's and the libraries' versions; Kafka's is that of its jars."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    pom = Path(__file__).parent.parent / "streams" / "kafka_pom.xml"
    match = re.search(r"<kafka.version>([\d.]+)<", pom.read_text("utf-8")) if pom.exists() else None
    return found | ({"kafka": match.group(1)} if match else {})


def _cpu_model() -> str:
    try:
        match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1) if match else platform.processor() or "unknown"


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core the process under test has for itself; all else has the others. None: nothing can be pinned."""

    worker: int | None
    others: tuple[int, ...]

    @classmethod
    def split(cls) -> Cores:
        """The last core for the worker, the others for the rest; this process and its children move there."""
        if not hasattr(os, "sched_setaffinity"):
            return cls(None, ())
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            return cls(allowed[0], tuple(allowed))
        cores = cls(allowed[-1], tuple(allowed[:-1]))
        os.sched_setaffinity(0, cores.others)
        return cores


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process so far, in steps of 10 ms."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return float("nan")
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def thread_seconds(pid: int, prefix: str) -> float:
    """The same of the threads whose names begin with ``prefix``."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        name, _, rest = task.read_text("utf-8").partition("(")[2].rpartition(")")
        if name.startswith(prefix):
            user, system = rest.split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def headrace(*words: str) -> list[str]:
    """A command line of this very installation."""
    return [sys.executable, "-c", "from streams.cli.main import entry; entry()", *words]


class Child:
    """A process under test, on ``core``: starts, waits for its line ``ready``, keeps its other lines.

    >>> import sys
    >>> with Child([sys.executable, "-c", "print('ready')"], None) as child:
    ...     child.wait_ready()
    """

    def __init__(self, command: Sequence[str], core: int | None) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(list(command), stdout=subprocess.PIPE, env=environment)
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})
        self._ready = threading.Event()
        self._line = threading.Condition()
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            text = raw.decode("utf-8", "replace").strip()
            if text == "ready":
                self._ready.set()
                continue
            with self._line:
                self.lines.append(text)
                self._line.notify_all()

    def wait_ready(self) -> None:
        """Waits for its line ``ready``. Raises BenchError when it ends before, or takes too long."""
        deadline = time.monotonic() + _STARTUP_S
        while not self._ready.wait(0.1):
            self.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{self._process.args!r} was not ready after {_STARTUP_S:.0f} s; see its log above")

    def check(self) -> None:
        """Raises BenchError when the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise BenchError(f"{self._process.args!r} ended with code {code}; see its log above")

    def next_line(self, cause: Callable[[], Any], timeout_s: float = 20.0) -> str:
        """The line that the process prints because of ``cause``."""
        with self._line:
            before = len(self.lines)
            cause()
            if not self._line.wait_for(lambda: len(self.lines) > before, timeout_s):
                raise BenchError(f"{self._process.args!r} gave no figures within {timeout_s:.0f} s")
            return self.lines[before]

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        self._process.send_signal(number)

    def stop(self, timeout_s: float = 30.0) -> None:
        """Asks it to end, then makes it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._thread.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
