"""Writing a checkpoint in a forked child: what it sees, how it ends, and that nothing of the parent runs in it."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from test_checkpoint_store import META

from streams import snapshot
from streams.checkpoint import Arrays, Checkpoint, CheckpointError, CheckpointMeta, read_checkpoint
from streams.checkpoint_store import CheckpointStore
from streams.snapshot import JOBS_MAX, Child, Job, Outcome, fork_write
from streams.store import Draft, open_store

TIMEOUT_S = 60.0


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(open_store(str(tmp_path / "store")), META.group)


@pytest.fixture
def draft(checkpoints: CheckpointStore) -> Draft:
    return checkpoints.draft(META)


@pytest.fixture(params=["fork", "thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "thread":
        monkeypatch.delattr(os, "fork")
    way: str = request.param
    return way


@pytest.fixture
def locked() -> Iterator[Callable[[], None]]:
    """A thread that holds a lock: a child that takes it hangs."""
    lock, end, holds = threading.Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            holds.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()

    def take() -> None:
        lock.acquire()

    yield take
    end.set()
    thread.join()


def written_by(make_arrays: Callable[[], Arrays], meta: CheckpointMeta, draft: Draft) -> Child:
    return fork_write([Job(make_arrays, meta, draft)])


def outcome_of(child: Child) -> Outcome:
    outcomes = child.wait(TIMEOUT_S)
    assert outcomes is not None and child.poll() is outcomes
    (outcome,) = outcomes
    return outcome


def read(draft: Draft) -> Checkpoint:
    assert draft.final
    return read_checkpoint(io.BytesIO(draft.final.read_bytes()), draft.name)


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def files(draft: Draft) -> list[str]:
    return sorted(path.name for path in draft.path.parent.iterdir())


# What it sees


def test_the_state_is_that_of_the_fork(way: str, draft: Draft) -> None:
    array = np.arange(300_000)
    child = written_by(lambda: {"state": array}, META, draft)
    array[:] = -1
    outcome = outcome_of(child)
    assert outcome.error is None and outcome.written and outcome.seconds > 0 and child.fork_s > 0
    assert draft.final and outcome.written.file_bytes == draft.final.stat().st_size
    found = read(draft)
    assert found.meta == META
    assert np.array_equal(found.arrays["state"], np.arange(300_000))
    assert files(draft) == [draft.final.name]
    child.kill()
    assert outcome_of(child) is outcome


def test_two_at_once(draft: Draft, checkpoints: CheckpointStore) -> None:
    other = checkpoints.draft(msgspec.structs.replace(META, offset=7))
    first = written_by(lambda: {"a": np.zeros(10)}, META, draft)
    second = written_by(lambda: {"a": np.ones(10)}, META, other)
    assert outcome_of(first).error is None and outcome_of(second).error is None


def test_for_an_object_store_the_parent_publishes(way: str, tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path.name}", scratch=tmp_path)
    draft = CheckpointStore(store, META.group).draft(META)
    assert outcome_of(written_by(lambda: {"a": np.arange(3)}, META, draft)).error is None
    assert not store.list()
    CheckpointStore(store, META.group).publish(draft)
    with store.open(draft.name) as file:
        assert read_checkpoint(file, draft.name).arrays["a"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


# Several together


def jobs_of(checkpoints: CheckpointStore, makes: Sequence[Callable[[], Arrays]]) -> list[Job]:
    metas = [msgspec.structs.replace(META, offset=i) for i in range(len(makes))]
    return [Job(make, meta, checkpoints.draft(meta)) for make, meta in zip(makes, metas, strict=True)]


def test_several_of_one_fork(checkpoints: CheckpointStore) -> None:
    """An error of one is none of the others; more than fit wait for another time."""
    makes: list[Callable[[], Arrays]] = [lambda i=i: {"a": np.array([i])} for i in range(JOBS_MAX + 2)]  # type: ignore[misc]
    makes[1] = failing(RuntimeError("\U0001f600" * 10_000))
    jobs = jobs_of(checkpoints, makes)
    outcomes = fork_write(jobs).wait(TIMEOUT_S)
    assert outcomes is not None and [bool(one.error) for one in outcomes] == [i == 1 for i in range(JOBS_MAX)]
    assert [read(job.draft).arrays["a"].tolist() for i, job in enumerate(jobs[:JOBS_MAX]) if i != 1] == [
        [i] for i in range(JOBS_MAX) if i != 1
    ]
    assert len(files(jobs[0].draft)) == JOBS_MAX - 1


def test_all_their_errors_can_be_told(checkpoints: CheckpointStore) -> None:
    jobs = jobs_of(checkpoints, [failing(RuntimeError("\U0001f600" * 10_000))] * JOBS_MAX)
    outcomes = fork_write(jobs).wait(TIMEOUT_S)
    assert outcomes is not None and len(outcomes) == JOBS_MAX and all(one.error for one in outcomes)


def test_large_ones_are_not_written_together(
    checkpoints: CheckpointStore, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the pause is the copying."""
    monkeypatch.setattr(snapshot, "_TOGETHER_BYTES", 3_000)
    jobs = jobs_of(checkpoints, [lambda: {"a": np.zeros(200)}] * 5)
    outcomes = fork_write(jobs).wait(TIMEOUT_S)
    assert outcomes is not None and [one.error for one in outcomes] == [None] * (2 if way == "fork" else 1)
    assert len(files(jobs[0].draft)) == len(outcomes)


def test_what_was_written_before_a_kill_is_told(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    jobs = jobs_of(checkpoints, [lambda: {"a": np.zeros(3)}, stuck(tmp_path / "begun"), dict])
    child = fork_write(jobs)
    until((tmp_path / "begun").exists)
    child.kill()
    outcomes = child.poll()
    assert outcomes is not None and [bool(one.error) for one in outcomes] == [False, True]
    assert outcomes[1].error and jobs[1].draft.name in outcomes[1].error
    assert jobs[0].draft.final and files(jobs[0].draft) == [jobs[0].draft.final.name]


# How it ends


def failing(exc: BaseException) -> Callable[[], Arrays]:
    def fail() -> Arrays:
        raise exc

    return fail


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (ValueError("no such key"), "ValueError: no such key"),
        (MemoryError(), "MemoryError"),
        (CheckpointError("f", "unwritable", "why", "do"), "checkpoint f: unwritable: why; do"),
        (OSError(28, "No space left on device", "/x"), r"OSError: No space left on device \(/x\); free space there"),
        (RuntimeError("\x01ü😀" * 10_000), "RuntimeError: \x01ü😀"),
    ],
    ids=["error", "memory", "own", "disk", "long"],
)
def test_an_error_comes_back_as_text(way: str, draft: Draft, exc: BaseException, text: str) -> None:
    outcome = outcome_of(written_by(failing(exc), META, draft)) if way == "fork" else _in_thread(exc, draft)
    assert outcome.written is None
    with pytest.raises(RuntimeError, match=text):
        raise RuntimeError(outcome.error)
    assert files(draft) == []


def _in_thread(exc: BaseException, draft: Draft) -> Outcome:
    """There the arrays are made by the caller, so that the writing is what may fail."""

    class Failing(np.ndarray[Any, Any]):
        def copy(self, order: Any = "C") -> Any:
            return self

        def reshape(self, *_: Any, **__: Any) -> Any:
            raise exc

    return outcome_of(written_by(lambda: {"a": np.zeros(3).view(Failing)}, META, draft))


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), SystemExit(3)])
def test_no_exception_leaves_the_child(draft: Draft, exc: BaseException) -> None:
    error = outcome_of(written_by(failing(exc), META, draft)).error
    assert error is not None and error.startswith(type(exc).__name__)


def stuck(file: Path) -> Callable[[], Arrays]:
    """Arrays that are never done: says so by a file, then waits for a signal."""

    def wait() -> Arrays:
        file.touch()
        while True:
            signal.pause()

    return wait


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_kill(draft: Draft, tmp_path: Path) -> None:
    child = written_by(stuck(tmp_path / "begun"), META, draft)
    until((tmp_path / "begun").exists)
    assert child.poll() is None
    assert child.wait(0.01) is None
    assert len(files(draft)) == 1
    child.kill()
    outcome = outcome_of(child)
    assert outcome.error and "ended by signal 9 (9: killed, or out of memory)" in outcome.error
    assert files(draft) == []
    child.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGINT])
def test_a_child_that_dies(draft: Draft, tmp_path: Path, number: int) -> None:
    """Of a signal that the parent handles, too."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        child = written_by(stuck(tmp_path / "begun"), META, draft)
        until((tmp_path / "begun").exists)
        os.kill(child.pid, number)
        outcome = outcome_of(child)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome.error and f"ended by signal {number}" in outcome.error
    assert files(draft) == []


def test_a_child_that_another_part_of_the_process_waited_for(draft: Draft) -> None:
    child = written_by(lambda: {"a": np.zeros(3)}, META, draft)
    os.waitpid(child.pid, 0)
    assert outcome_of(child).error is None


def test_kill_in_a_thread(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    child = written_by(lambda: {f"a{i}": np.random.default_rng(i).random(500_000) for i in range(40)}, META, draft)
    child.kill()
    outcome = outcome_of(child)
    assert outcome.error == f"checkpoint {draft.name}: the writing was stopped"
    assert files(draft) == []


def test_no_process_to_be_had(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", refuse)
    before = descriptors()
    with pytest.raises(CheckpointError, match=r"unwritable: no process to write it: .*Cannot allocate.*; free memory"):
        written_by(dict, META, draft)
    assert descriptors() == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_no_descriptor_is_left_open(draft: Draft) -> None:
    before = descriptors()
    for _ in range(3):
        assert outcome_of(written_by(lambda: {"a": np.zeros(3)}, META, draft)).error is None
    until(lambda: descriptors() == before)  # the thread that joins pages has a file open for a moment


# Nothing of the parent runs in it


class _NoImports(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        raise AssertionError(f"{fullname} was imported")


def test_it_imports_logs_and_finalises_nothing(
    draft: Draft, monkeypatch: pytest.MonkeyPatch, locked: Callable[[], None]
) -> None:
    """Each of these would hang or show, as would the lock of another thread."""
    parent = os.getpid()

    class Finalised:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            if os.getpid() != parent:
                locked()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if os.getpid() != parent:
                locked()

    def make() -> Arrays:
        [Finalised() for _ in range(10)]
        return {f"a{i}": np.arange(i * 1000.0) for i in range(20)}

    handler = Handler()
    logging.getLogger().addHandler(handler)
    at_exit = atexit.register(lambda: os.getpid() == parent or locked())
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    monkeypatch.setattr(sys, "meta_path", [_NoImports()])
    try:
        outcome = outcome_of(written_by(make, META, draft))
        second = outcome_of(written_by(failing(ValueError("an error's text imports nothing either")), META, draft))
    finally:
        gc.set_threshold(*threshold)
        logging.getLogger().removeHandler(handler)
        atexit.unregister(at_exit)
    assert outcome.error is None
    assert second.error == "ValueError: an error's text imports nothing either"


def test_it_keeps_no_socket_and_is_nice(draft: Draft, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        child = written_by(stuck(tmp_path / "begun"), META, draft)
        until((tmp_path / "begun").exists)
    try:
        with socket.create_server(("127.0.0.1", port)):
            pass
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(os.nice(0) + 10, 19)
        assert os.getpriority(os.PRIO_PROCESS, 0) == os.nice(0)
    finally:
        child.kill()


def test_the_parent_s_handlers_do_not_run_in_it(draft: Draft) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))

    def make() -> Arrays:
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return {}

    try:
        assert outcome_of(written_by(make, META, draft)).error is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_warning_of_threads_does_not_cost_the_child(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 warns after the fork, in the parent; here warnings are errors."""
    real = os.fork

    def fork() -> int:
        pid = real()
        if pid:
            warnings.warn("this process is multi-threaded", DeprecationWarning, stacklevel=2)
        return pid

    monkeypatch.setattr(os, "fork", fork)
    assert outcome_of(written_by(lambda: {"a": np.zeros(3)}, META, draft)).error is None


def test_pages_are_joined_when_the_last_child_has_ended(
    draft: Draft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined, may_end = list[str](), threading.Event()

    def join_pages() -> None:
        joined.append(threading.current_thread().name)
        may_end.wait(60)

    monkeypatch.setattr(snapshot, "join_pages", join_pages)
    waiting = written_by(stuck(tmp_path / "begun"), META, draft)
    assert outcome_of(written_by(dict, META, Draft("n", tmp_path / "n", None, "u"))).error is None
    assert joined == []
    waiting.kill()
    until(lambda: bool(joined))
    assert joined == ["headrace-pages"]
    assert not snapshot.pages_are_joined()
    may_end.set()
    until(snapshot.pages_are_joined)
