"""A member of the model's consumer group: cooperative rebalance, offsets that are committed in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from sim_broker import Membership, SimBroker

from streams.log import TP, CommitFailed, LogUnavailable, RecordBatch

if TYPE_CHECKING:
    from sim_worker import SimWorker


class _Request(NamedTuple):
    offsets: dict[TP, int]
    membership: Membership
    on_done: Callable[[Exception | None], None]


class SimMember:
    """`LogConsumer` of one worker: cooperative rebalance inside `poll`, revocation before assignment."""

    def __init__(self, broker: SimBroker, worker: SimWorker) -> None:
        self._broker, self._worker = broker, worker
        self.positions: dict[TP, int] = {}
        self.requests: deque[_Request] = deque()
        self._answers: deque[tuple[Callable[[Exception | None], None], Exception | None]] = deque()
        self.generation = self.told = 0
        self.member_id = 0
        self._join()

    def _join(self) -> None:
        self.member_id = self._broker.world.new_id()
        self._broker.members[self.member_id] = self
        self._broker.rebalance()

    def membership(self) -> Membership:
        return Membership(self.member_id, self.generation)

    def poll(self, records_max: int) -> list[RecordBatch]:
        """What `LogConsumer.poll` does, and returns at once."""
        self._worker.point("poll")
        while self._answers:
            on_done, error = self._answers.popleft()
            on_done(error)
        if self._broker.down:
            return []
        if self.member_id not in self._broker.members:
            lost = list(self.positions)
            self.positions.clear()
            self._worker.on_lost(lost)
            self._join()
        self._follow_group()
        return self._fetch(records_max)

    def _follow_group(self) -> None:
        broker = self._broker
        self.generation = broker.generation
        surplus = [tp for tp in self.positions if broker.target.get(tp) != self.member_id]
        if surplus:
            self._worker.on_revoke(surplus)
            for tp in surplus:
                del self.positions[tp]
                if broker.owner.get(tp) == self.member_id:
                    del broker.owner[tp]
            # Who has revoked joins once more: a partition never changes hands within a generation, so that a
            # transaction of its former owner that is still on its way is refused.
            broker.generation += self._worker.protocol.rejoins
        if self.member_id not in broker.members:
            return
        self.generation = broker.generation
        fresh = [
            tp
            for tp in broker.inputs
            if broker.target.get(tp) == self.member_id
            and tp not in broker.owner
            and tp not in self.positions
            and not broker.pending_offsets(tp)
        ]
        for tp in fresh:
            broker.owner[tp] = self.member_id
        if fresh or self.told != self.generation:
            self.told = self.generation
            self.positions.update(self._worker.on_assign(fresh))

    def _fetch(self, records_max: int) -> list[RecordBatch]:
        batches = []
        for tp in list(self.positions):
            if not self._worker.wants(tp):
                continue
            offsets, values, self.positions[tp] = self._broker.fetch(tp, self.positions[tp], records_max)
            if offsets:
                nothing = [None] * len(offsets)
                times = [0] * len(offsets)
                batches.append(RecordBatch(tp, offsets, times, nothing, values, _no_headers, offsets[-1] + 1))
        return batches

    def at_end(self, tp: TP) -> bool:
        return self.positions[tp] >= len(self._broker.logs[tp])

    def commit(
        self, offsets: Mapping[TP, int], on_done: Callable[[Exception | None], None] | None = None, *, note: str = ""
    ) -> None:
        world = self._broker.world
        self._worker.point("commit-offsets")
        if on_done is not None:
            self.requests.append(_Request(dict(offsets), self.membership(), on_done))
            self._worker.point("offsets-sent")
            return
        if self._broker.down:
            raise LogUnavailable("the brokers are away")
        while self.requests:  # one connection: in order
            self.serve()
        self._broker.commit(offsets, self.membership())
        self._worker.point("offsets-committed")
        if world.chance("late"):
            raise LogUnavailable("no answer in time")

    def serve(self) -> None:
        """The broker does the next request; its answer may get lost."""
        offsets, membership, on_done = self.requests.popleft()
        error: Exception | None = None
        try:
            self._broker.commit(offsets, membership)
        except CommitFailed as exc:
            error = exc
        if not self._broker.world.chance("late"):
            self._answers.append((on_done, error))


def _no_headers(i: int) -> list[tuple[str, bytes]]:
    return []
