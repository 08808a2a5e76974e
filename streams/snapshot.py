"""Checkpoints written by a forked child, while the parent goes on: the child has the state as it was at the fork.

    child = fork_write([Job(state.to_arrays, meta, checkpoints.draft(meta)), ...])
    ...
    if (outcomes := child.poll()) is not None:
        ...  # outcome.error, or checkpoints.publish(draft)

The system copies page tables at the fork, and then each page that the parent writes to while the child lives (some 3 us
at its first write). The pause is 1 ms per gigabyte on huge pages and 40 on small ones; those that the parent's writes
broke are therefore joined again when the child has ended, by a thread, and who can wait forks when it is done
(`pages_are_joined`). Small states are written together, as the rest of the process costs each fork its 10 to 30 ms;
large ones are not, as more and more pages are copied while a child lives.

Of the parent's threads only the one that forks lives on in the child, and locks that the others held stay locked for
ever. So the child computes, writes one file and ends: it takes no lock, starts no thread, imports nothing, logs
nothing, and runs no cleaning up of its parent's.

Where there is no fork (Windows), the arrays are copied and a thread writes them.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn, Protocol

import msgspec

from streams.checkpoint import Arrays, CheckpointError, CheckpointMeta, Written, write_checkpoint
from streams.errors import HeadraceError
from streams.hugepages import join_pages
from streams.store import Draft, write_draft

__all__ = ["JOBS_MAX", "Child", "Job", "Outcome", "fork_write", "pages_are_joined", "start_joining"]

#: their outcomes are what a pipe takes whole, 64 KiB, with errors told at up to six bytes a character
JOBS_MAX = 16

_NICE = 10
#: of 1000: where memory runs out, it shall be the child that goes
_OOM_SCORE = b"500"
_ANSWER_BYTES_MAX = 1 << 16
_TEXT_LENGTH_MAX = 600
#: a child that has written arrays of so many begins no other job
_TOGETHER_BYTES = 64 << 20
_WAIT_STEP_S = 0.005

#: children that have not ended, by process id
_writing: set[int] = set()
#: those that join pages again
_joining: set[threading.Thread] = set()


class Outcome(msgspec.Struct, frozen=True):
    """How writing ended: ``error`` for a person, else None; ``seconds`` in the child, to_arrays included."""

    error: str | None = None
    written: Written | None = None
    seconds: float = 0.0


class Job(NamedTuple):
    """A checkpoint to be written to a draft.

    ``make_arrays`` runs in the child, at most once: it may compute and allocate, and must not do what the module's
    text forbids (a numba kernel must have been compiled before).
    """

    make_arrays: Callable[[], Arrays]
    meta: CheckpointMeta
    draft: Draft


class Child(Protocol):
    """Checkpoints that are being written."""

    #: how long the parent stood still, in seconds
    fork_s: float

    def poll(self) -> Sequence[Outcome] | None:
        """Of the jobs that were begun, the first ones, once that is over; None before. Never waits. After an error no
        draft is left."""

    def wait(self, timeout_s: float) -> Sequence[Outcome] | None:
        """As `poll`, but waits for it."""

    def kill(self) -> None:
        """Ends the writing and removes the draft that is being written; fine when all is over."""


def fork_write(jobs: Sequence[Job]) -> Child:
    """Writes checkpoints one after the other in another process: the first, and others as long as they are small; at
    most `JOBS_MAX`. CheckpointError where the system refuses to fork."""
    if not hasattr(os, "fork"):
        return _ThreadWrite(*jobs[0])
    jobs = jobs[:JOBS_MAX]
    try:
        answer, pipe = os.pipe()
    except OSError as exc:
        raise _no_process(jobs[0].draft, exc) from exc
    os.set_blocking(answer, False)
    begin = time.perf_counter()
    # A signal between the fork and the child's new handlers would run the parent's handlers in the child.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        # Python 3.12 warns of a fork in a process with threads, rightly in general: a child that takes a lock may hang.
        # This one takes none (see above). As an error the warning would lose the child, which then already runs.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _run(pipe, mask, jobs)
    except OSError as exc:
        os.close(answer)
        raise _no_process(jobs[0].draft, exc) from exc
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(pipe)
    return _ForkedWrite(pid, answer, [job.draft for job in jobs], time.perf_counter() - begin)


def start_joining() -> None:
    """Has pages joined, by a thread: after each child, and to be called once before the first."""
    thread = threading.Thread(target=join_pages, name="headrace-pages", daemon=True)
    thread.start()
    _joining.add(thread)


def pages_are_joined() -> bool:
    """Whether that is done, as far as it goes: until then a fork takes longer."""
    _joining.difference_update([thread for thread in _joining if not thread.is_alive()])
    return not _joining


def _no_process(draft: Draft, exc: OSError) -> CheckpointError:
    remedy = "free memory, or raise the limits on memory, processes and open files"
    return CheckpointError(draft.name, "unwritable", f"no process to write it: {exc}", remedy)


def _run(pipe: int, mask: set[int | signal.Signals], jobs: Sequence[Job]) -> NoReturn:
    """The child: whatever happens, it ends here, and nothing of the parent's is cleaned up by it."""
    nbytes = 0
    try:
        _leave_the_parent(pipe, mask)
        for job in jobs:
            outcome = _outcome(job)
            os.write(pipe, msgspec.json.encode(outcome) + b"\n")
            nbytes += 0 if outcome.written is None else outcome.written.array_bytes
            if nbytes >= _TOGETHER_BYTES:
                break
    finally:
        os._exit(0)


def _outcome(job: Job) -> Outcome:
    try:
        return _write(*job)
    except BaseException as exc:  # noqa: BLE001 - an exception that left here would run the parent's code twice
        return Outcome(error=_text(exc))


def _leave_the_parent(pipe: int, mask: set[int | signal.Signals]) -> None:
    gc.disable()  # what it would finalise is the parent's
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # Sockets that stay open here would outlive the parent: its port taken, its broker in the dark.
    folder = Path("/dev/fd")
    for number in [int(path.name) for path in folder.iterdir()] if folder.exists() else []:
        if number > 2 and number != pipe:
            with suppress(OSError):
                os.close(number)
    os.nice(_NICE)
    with suppress(OSError):  # Linux has it
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, _OOM_SCORE)
        os.close(score)


def _write(make_arrays: Callable[[], Arrays], meta: CheckpointMeta, draft: Draft) -> Outcome:
    begin = time.perf_counter()
    written = write_draft(draft, lambda file: write_checkpoint(file, meta, make_arrays()))
    return Outcome(written=written, seconds=time.perf_counter() - begin)


def _text(exc: BaseException) -> str:
    text = str(exc) if isinstance(exc, HeadraceError) else f"{type(exc).__name__}: {exc}"
    return text[:_TEXT_LENGTH_MAX]


class _ForkedWrite:
    def __init__(self, pid: int, answer: int, drafts: Sequence[Draft], fork_s: float) -> None:
        self.pid, self.fork_s = pid, fork_s
        self._answer, self._drafts = answer, drafts
        self._outcomes: Sequence[Outcome] | None = None
        _writing.add(pid)

    def poll(self) -> Sequence[Outcome] | None:
        if self._outcomes is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # another part of the process waits for all children
                pid, status = self.pid, 0
            if pid:
                self._end(status)
        return self._outcomes

    def wait(self, timeout_s: float) -> Sequence[Outcome] | None:
        end = time.monotonic() + timeout_s
        while (outcomes := self.poll()) is None and time.monotonic() < end:
            time.sleep(_WAIT_STEP_S)
        return outcomes

    def kill(self) -> None:
        if self.poll() is not None:
            return
        os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._end(signal.SIGKILL)

    def _end(self, status: int) -> None:
        try:
            data = os.read(self._answer, _ANSWER_BYTES_MAX)
        except BlockingIOError:  # another child has the other end open
            data = b""
        os.close(self._answer)
        outcomes = [msgspec.json.decode(line, type=Outcome) for line in data.splitlines()]
        number = status & 0x7F
        if (number or not outcomes) and len(outcomes) < len(self._drafts):
            draft = self._drafts[len(outcomes)]
            reason = f"ended by signal {number} (9: killed, or out of memory)" if number else "ended without a word"
            outcomes.append(Outcome(error=f"checkpoint {draft.name}: the process that wrote it was {reason}"))
            # a process that was killed could not remove its draft
            with suppress(OSError):
                draft.path.unlink()
        self._outcomes = outcomes
        _writing.discard(self.pid)
        if not _writing:  # else they are still shared with another child, and would be copied
            start_joining()


class _ThreadWrite:
    """Where there is no fork: the pause is the copying, so that one is enough at a time."""

    def __init__(self, make_arrays: Callable[[], Arrays], meta: CheckpointMeta, draft: Draft) -> None:
        begin = time.perf_counter()
        arrays = {name: array.copy() for name, array in make_arrays().items()}
        self._outcomes: Sequence[Outcome] | None = None
        self._draft = draft
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(arrays, meta), name="headrace-checkpoint", daemon=True)
        self._thread.start()
        self.fork_s = time.perf_counter() - begin

    def _run(self, arrays: Arrays, meta: CheckpointMeta) -> None:
        begin = time.perf_counter()
        try:
            written = write_draft(
                self._draft, lambda file: write_checkpoint(_Stoppable(file, self._stop, self._draft.name), meta, arrays)
            )
            self._outcomes = [Outcome(written=written, seconds=time.perf_counter() - begin)]
        except Exception as exc:  # noqa: BLE001 - an outcome, as in a child
            self._outcomes = [Outcome(error=_text(exc))]

    def poll(self) -> Sequence[Outcome] | None:
        return None if self._thread.is_alive() else self._outcomes

    def wait(self, timeout_s: float) -> Sequence[Outcome] | None:
        self._thread.join(timeout_s)
        return self.poll()

    def kill(self) -> None:
        self._stop.set()
        self._thread.join()


class _Stoppable:
    """A file whose next write fails once ``stop`` is set."""

    def __init__(self, file: BinaryIO, stop: threading.Event, name: str) -> None:
        self._file, self._stop, self._name = file, stop, name

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise HeadraceError(f"checkpoint {self._name}: the writing was stopped")
        return self._file.write(data)
