"""How partitions that were just assigned get their state back, while the others go on."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from streams.errors import FatalError, HeadraceError
from streams.log import TP

__all__ = ["Assigned", "Loaded", "Loader", "Progress"]

logger = logging.getLogger("headrace.recovery")

_REPORT_INTERVAL_S = 5.0


class Assigned(NamedTuple):
    """A partition whose state is wanted. ``committed`` None: its group has never been here."""

    tp: TP
    epoch: int
    committed: int | None
    earliest: int


class Loaded(NamedTuple):
    """The partition's state is there and goes on at offset ``start``."""

    tp: TP
    epoch: int
    start: int


class Loader:
    """Calls ``recover`` for assigned partitions on a thread of its own: what it takes others need not wait for.

    Partitions that were assigned together are told together: when a backlog is read, by event time, the sources of a
    worker wake each other, which those without a state could not do.
    """

    def __init__(self, recover: Callable[[Assigned], int], owns: Callable[[TP, int], bool]) -> None:
        """``owns``: whether an assignment is still the present one; what goes wrong with another is nothing."""
        self._recover, self._owns = recover, owns
        self._outcomes: queue.SimpleQueue[list[Loaded] | HeadraceError] = queue.SimpleQueue()

    def load(self, assigned: Sequence[Assigned]) -> None:
        """Begins; `loaded` tells when all are done."""
        # a daemon: a worker that is told to leave does not wait for a slow store
        threading.Thread(target=self._run, args=(list(assigned),), name="headrace-recover", daemon=True).start()

    def loaded(self) -> list[Loaded]:
        """What has been loaded since the last call. Raises what ``recover`` raised."""
        done: list[Loaded] = []
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            if isinstance(outcome, HeadraceError):
                raise outcome
            done += outcome
        return done

    def _run(self, assigned: list[Assigned]) -> None:
        done: list[Loaded] = []
        for one in assigned:
            error: HeadraceError
            try:
                done.append(Loaded(one.tp, one.epoch, self._recover(one)))
                continue
            except HeadraceError as exc:
                error = exc
            except Exception as exc:
                logger.exception("recovery failed")
                error = FatalError("recovery-failed", f"{type(exc).__name__}: {exc}. See the log above.")
            if self._owns(one.tp, one.epoch):
                self._outcomes.put(error)
                return
        self._outcomes.put(done)


class Progress:
    """Says in the log how far a long replay is, and keeps what a worker's first recovery took."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None
        self._said_at = 0.0
        self._assigned_at: float | None = None
        self._loaded_at = 0.0
        self._ready_at: float | None = None
        self._replayed: Counter[str] = Counter()

    def assigned(self) -> None:
        """The group gave partitions."""
        if self._assigned_at is None:
            self._assigned_at = time.monotonic()

    def loaded(self, tp: TP, records: int) -> None:
        """The partition's state is there; so many offsets are left to be replayed."""
        if self._ready_at is None:
            self._loaded_at = time.monotonic()
            self._replayed[tp.topic] += records

    def ready(self) -> None:
        """Every state is whole."""
        self._ready_at = time.monotonic()

    def figures(self) -> dict[str, Any]:
        """Of the recovery that ended with `ready`: seconds from the assignment until all states were loaded, from then
        on, in all, and by topic how many offsets were replayed; empty before it."""
        if self._ready_at is None or self._assigned_at is None or not self._replayed:
            return {}
        return {
            "load_s": round(self._loaded_at - self._assigned_at, 3),
            "replay_s": round(self._ready_at - self._loaded_at, 3),
            "ready_s": round(self._ready_at - self._assigned_at, 3),
            "replayed": dict(self._replayed),
        }

    def note(self, left: int) -> None:
        """``left`` records are to be replayed before every partition's state is whole; to be called often."""
        now = time.monotonic()
        if left == 0:
            if self._began is not None and self._said_at > self._began[0]:
                logger.info("recovered: %d records replayed in %.1f s", self._began[1], now - self._began[0])
            self._began = None
            return
        if self._began is None or left > self._began[1]:
            self._began = (now, left)
            self._said_at = now
        elif now - self._said_at >= _REPORT_INTERVAL_S:
            self._said_at = now
            began_at, at_first = self._began
            rate = (at_first - left) / (now - began_at)
            seconds = f"about {left / rate:.0f} s" if rate > 0 else "unknown time"
            logger.info("recovering: %d of %d records left to replay, %s left", left, at_first, seconds)
