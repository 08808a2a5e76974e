"""Protocols that are wrong on purpose, each in one thing: the simulation must find every one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sim_stages import SecondTask
from sim_store import SimStore
from sim_worker import Protocol

from streams.assignment import Assignment
from streams.checkpoint import Checkpoint, Expected
from streams.commit import Committer, Outbox
from streams.log import TP


class OffsetsFirst(Committer):
    """Commits offsets while outputs are on their way."""

    def _flushed(self, flush_s: float) -> bool:
        return True


class OpenGate(Assignment):
    """Lets the stages go on while a commit looks at what is done."""

    @contextmanager
    def gate_closed(self, timeout_s: float) -> Iterator[bool]:
        yield True


class _KeepsLost(Outbox):
    def take(self, owns: Callable[[TP, int], bool]) -> list[Any]:
        return super().take(lambda tp, epoch: True)


class SendsLost(Committer):
    """Sends outputs again whose partitions were lost since the abort."""

    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        self._outbox = _KeepsLost(others["kept_bytes"])


class _Forgets(Outbox):
    def put_back(self, taken: list[Any]) -> None:
        self.committed(taken)


class ForgetsAborted(Committer):
    """Does not send again what was in a transaction that was aborted."""

    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        self._outbox = _Forgets(others["kept_bytes"])


class Unfenced(Committer):
    """Commits transactions as nobody, whose offsets a broker takes unchecked."""

    def joined(self, membership: object) -> None:
        pass


class WaitsForEver(Committer):
    """Waits for the outcome of a commit that nobody will tell."""

    def _none_on_its_way(self, timeout_s: float) -> bool:
        return self._sent_at is None or timeout_s > 0


class BoldStore(SimStore):
    """Uses the newest checkpoint, whatever is committed."""

    def newest(self, expected: Expected, at_most: int, **_: Any) -> Checkpoint | None:
        return super().newest(expected, 1 << 62)


class ForgetfulTask(SecondTask):
    """Its checkpoints lack the positions by which rows that come again are known."""

    keeps_positions = False


@dataclass(frozen=True)
class Canary:
    """A wrong protocol, the modes of delivery (exactly once?) that it breaks, the promises of which it breaks one."""

    protocol: Protocol
    modes: tuple[bool, ...]
    promises: tuple[str, ...]
    #: whether each step is looked at; else what is wrong must show in the end
    watched: bool = False


_AT_LEAST_ONCE, _EXACTLY_ONCE, _BOTH = (False,), (True,), (False, True)
CANARIES = {
    "offsets before the flush": Canary(Protocol(committer=OffsetsFirst), _AT_LEAST_ONCE, ("lost",)),
    # at least once it takes a rare crash for a record to be lost: of 1,500 schedules two have one
    "gate open while flushing": Canary(Protocol(assignment=OpenGate), _AT_LEAST_ONCE, ("flushed",), watched=True),
    "gate open while taking": Canary(Protocol(assignment=OpenGate), _EXACTLY_ONCE, ("lost", "once")),
    "checkpoint above the committed offset": Canary(Protocol(store=BoldStore), _BOTH, ("lost",)),
    "no answer waited for": Canary(Protocol(committer=WaitsForEver), _AT_LEAST_ONCE, ("liveness",)),
    "no positions in checkpoints": Canary(Protocol(second_task=ForgetfulTask), _AT_LEAST_ONCE, ("effect", "identical")),
    "lost partitions' outputs sent again": Canary(Protocol(committer=SendsLost), _EXACTLY_ONCE, ("once",)),
    "aborted outputs not sent again": Canary(Protocol(committer=ForgetsAborted), _EXACTLY_ONCE, ("lost",)),
    "transactions of nobody": Canary(Protocol(committer=Unfenced), _EXACTLY_ONCE, ("once",)),
    "partitions change hands within a generation": Canary(Protocol(rejoins=False), _EXACTLY_ONCE, ("once",)),
}
