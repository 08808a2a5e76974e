"""What may keep a worker's batches waiting for a decision that is not in the log yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from streams.errors import HeadraceError
from streams.log import TP, Log, RecordBatch
from streams.recovery import Assigned

__all__ = ["Gate", "OpenGate"]


class Gate(Protocol):
    """Asked by a worker about every partition and batch."""

    def start(
        self, log: Log, group: str, failed: Callable[[HeadraceError], None], owns: Callable[[TP, int], bool]
    ) -> None:
        """Once, when the topics are there. ``failed`` ends the worker; ``owns`` says whether an assignment of a
        partition is the present one: it takes the lock under which `admits` is called."""

    def assigned(self, assigned: Assigned) -> None:
        """Before anything is read of the partition; on a thread of its own, may take long. The partition may be lost at
        any time meanwhile. FatalError ends the worker."""

    def admits(self, batches: Sequence[RecordBatch]) -> bool:
        """Whether these may begin now; asked again until they may. Under a lock, so it only looks."""

    def given_up(self, partition: TP, settled: int | None) -> None:
        """The partition is no longer ours; ``settled``: all that was sent from it is committed, up to this offset. A
        batch of it may be within its stage."""

    def forget(self, partition: TP) -> None:
        """After `given_up`, on the event loop: no batch of that assignment is within its stage any more."""

    def close(self) -> None:
        """The worker has left its group."""


class OpenGate(Gate):
    """Nothing waits."""

    def start(
        self, log: Log, group: str, failed: Callable[[HeadraceError], None], owns: Callable[[TP, int], bool]
    ) -> None:
        """Nothing to begin."""

    def assigned(self, assigned: Assigned) -> None:
        """Nothing to find out."""

    def admits(self, batches: Sequence[RecordBatch]) -> bool:
        return True

    def given_up(self, partition: TP, settled: int | None) -> None:
        """Nothing to say."""

    def forget(self, partition: TP) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to end."""
