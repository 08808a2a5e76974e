"""Checkpoints written by a forked child, while the parent goes on: the child has the state as it was at the fork.

    child = fork_write(state.to_arrays, meta, checkpoints.draft(meta))
    ...
    if outcome := child.poll():
        ...  # outcome.error, or checkpoints.publish(draft)

The system copies page tables at the fork, and then each page that the parent writes to while the child lives (some 3 us
at its first write). The pause is 1 ms per gigabyte on huge pages and 40 on small ones; those that the parent's writes
broke are therefore joined again when the child has ended, by a thread, and who can wait forks when it is done
(`pages_are_joined`).

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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

import msgspec

from streams.checkpoint import Arrays, CheckpointError, CheckpointMeta, Written, write_checkpoint
from streams.errors import HeadraceError
from streams.hugepages import join_pages
from streams.store import Draft, write_draft

__all__ = ["Child", "Outcome", "fork_write", "pages_are_joined"]

_NICE = 10
#: of 1000: where memory runs out, it shall be the child that goes
_OOM_SCORE = b"500"
#: what a pipe takes whole, and what of an error is then told, at up to six bytes a character
_ANSWER_BYTES_MAX = 4096
_TEXT_LENGTH_MAX = 600
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


class Child(Protocol):
    """A checkpoint that is being written."""

    #: how long the parent stood still, in seconds
    fork_s: float

    def poll(self) -> Outcome | None:
        """The outcome, None while it is being written. Never waits. After an error no draft is left."""

    def wait(self, timeout_s: float) -> Outcome | None:
        """As `poll`, but waits for it."""

    def kill(self) -> None:
        """Ends the writing and removes the draft; fine when all is over."""


def fork_write(make_arrays: Callable[[], Arrays], meta: CheckpointMeta, draft: Draft) -> Child:
    """Writes the checkpoint of what ``make_arrays`` returns to a draft, in another process.

    ``make_arrays`` runs in the child, at most once: it may compute and allocate, and must not do what the module's
    text forbids (a numba kernel must have been compiled before). CheckpointError where the system refuses to fork.
    """
    if not hasattr(os, "fork"):
        return _ThreadWrite(make_arrays, meta, draft)
    try:
        answer, pipe = os.pipe()
    except OSError as exc:
        raise _no_process(draft, exc) from exc
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
            _run(pipe, mask, make_arrays, meta, draft)
    except OSError as exc:
        os.close(answer)
        raise _no_process(draft, exc) from exc
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(pipe)
    return _ForkedWrite(pid, answer, draft, time.perf_counter() - begin)


def pages_are_joined() -> bool:
    """Whether the pages that children broke are whole again, as far as that goes: until then a fork takes longer."""
    _joining.difference_update([thread for thread in _joining if not thread.is_alive()])
    return not _joining


def _no_process(draft: Draft, exc: OSError) -> CheckpointError:
    remedy = "free memory, or raise the limits on memory, processes and open files"
    return CheckpointError(draft.name, "unwritable", f"no process to write it: {exc}", remedy)


def _run(
    pipe: int, mask: set[int | signal.Signals], make_arrays: Callable[[], Arrays], meta: CheckpointMeta, draft: Draft
) -> NoReturn:
    """The child: whatever happens, it ends here, and nothing of the parent's is cleaned up by it."""
    outcome = Outcome(error="the writing process did not begin")
    try:
        _leave_the_parent(pipe, mask)
        outcome = _write(make_arrays, meta, draft)
    except BaseException as exc:  # noqa: BLE001 - an exception that left here would run the parent's code twice
        outcome = Outcome(error=_text(exc))
    finally:
        with suppress(BaseException):
            os.write(pipe, msgspec.json.encode(outcome))
        os._exit(0)


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
    def __init__(self, pid: int, answer: int, draft: Draft, fork_s: float) -> None:
        self.pid, self.fork_s = pid, fork_s
        self._answer, self._draft = answer, draft
        self._outcome: Outcome | None = None
        _writing.add(pid)

    def poll(self) -> Outcome | None:
        if self._outcome is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # another part of the process waits for all children
                pid, status = self.pid, 0
            if pid:
                self._end(status)
        return self._outcome

    def wait(self, timeout_s: float) -> Outcome | None:
        end = time.monotonic() + timeout_s
        while (outcome := self.poll()) is None and time.monotonic() < end:
            time.sleep(_WAIT_STEP_S)
        return outcome

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
        if data:
            self._outcome = msgspec.json.decode(data, type=Outcome)
        else:
            number = status & 0x7F
            reason = f"ended by signal {number} (9: killed, or out of memory)" if number else "ended without a word"
            self._outcome = Outcome(error=f"checkpoint {self._draft.name}: the process that wrote it was {reason}")
            # a process that was killed could not remove its draft
            with suppress(OSError):
                self._draft.path.unlink()
        _writing.discard(self.pid)
        if not _writing:  # else they are still shared with another child, and would be copied
            thread = threading.Thread(target=join_pages, name="headrace-pages", daemon=True)
            thread.start()
            _joining.add(thread)


class _ThreadWrite:
    """Where there is no fork: the pause is the copying."""

    def __init__(self, make_arrays: Callable[[], Arrays], meta: CheckpointMeta, draft: Draft) -> None:
        begin = time.perf_counter()
        arrays = {name: array.copy() for name, array in make_arrays().items()}
        self._outcome: Outcome | None = None
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
            self._outcome = Outcome(written=written, seconds=time.perf_counter() - begin)
        except Exception as exc:  # noqa: BLE001 - an outcome, as in a child
            self._outcome = Outcome(error=_text(exc))

    def poll(self) -> Outcome | None:
        return None if self._thread.is_alive() else self._outcome

    def wait(self, timeout_s: float) -> Outcome | None:
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
