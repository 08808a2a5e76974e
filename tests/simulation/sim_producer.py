"""Producers of the model: what they have sent is on its way for a while, and may be lost with its worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sim_broker import ABORTED, COMMITTED, OPEN, Membership, SimBroker, Transaction

from streams.errors import FatalError
from streams.log import TP, DeliveryFailed, LogUnavailable, MustAbort, OutBatch

if TYPE_CHECKING:
    from sim_worker import SimWorker

#: records that a producer takes before its queue is full
_QUEUE_RECORDS = 6


class SimProducer:
    """Idempotent: records of a partition arrive in order and once. The `LogProducer` of a worker."""

    transaction: Transaction | None = None
    fenced = False

    def __init__(self, broker: SimBroker, worker: SimWorker) -> None:
        self.broker, self.worker = broker, worker
        self.pending: dict[TP, deque[bytes]] = {}
        self.n_pending = 0
        self.failed = False
        broker.producers.append(self)

    def taken(self, tp: TP) -> bytes:
        """The next record of the partition."""
        values = self.pending[tp]
        value = values.popleft()
        self.n_pending -= 1
        if not values:
            del self.pending[tp]
        return value

    def lose(self) -> None:
        """The worker is gone: of each partition some first records are on the wire, and the others lost."""
        for tp, values in list(self.pending.items()):
            kept = self.broker.world.rng.randint(0, len(values))
            self.n_pending -= len(values) - kept
            self.pending[tp] = deque(list(values)[:kept])
            if not kept:
                del self.pending[tp]

    def fail(self) -> None:
        """A record cannot be delivered, nor can what follows it."""
        self.failed = True
        self.pending, self.n_pending = {}, 0

    def send(self, batch: OutBatch, start: int = 0) -> int:
        self.worker.point("send")
        if self.failed:
            return len(batch)
        assert batch.partition is not None
        tp = TP(batch.topic, batch.partition)
        for value in batch.values[start:]:
            if self.n_pending >= _QUEUE_RECORDS:
                break
            assert value is not None
            self.pending.setdefault(tp, deque()).append(value)
            self.n_pending += 1
            start += 1
        return start

    def poll(self, timeout_s: float) -> None:
        self.worker.point("poll-producer")
        self.broker.deliver(self)

    def flush(self, timeout_s: float) -> int:
        world = self.broker.world
        self.worker.point("flush")
        deadline = world.now + timeout_s
        while self.n_pending and world.now < deadline:
            if world.rng.random() < 0.5:
                self.broker.deliver(self)
            self.worker.point("flushing")
        undelivered = self.n_pending
        if self.failed:
            raise DeliveryFailed("a record is refused")
        self.worker.point("flushed")
        return undelivered


class SimTransactions(SimProducer):
    """`TransactionalProducer`: fenced by its id and by the group's generation; outcomes may get lost on their way."""

    def __init__(self, broker: SimBroker, worker: SimWorker, transactional_id: str) -> None:
        super().__init__(broker, worker)
        before = broker.ids.get(transactional_id)
        if before is not None:
            before.fenced = True
            if before.transaction is not None and before.transaction.state == OPEN:
                broker.end(before.transaction, ABORTED)
        broker.ids[transactional_id] = self

    def begin(self) -> None:
        self.worker.point("begin")
        assert self.transaction is None and not self.pending
        self.transaction = Transaction(self, self.broker.world.now)

    def send(self, batch: OutBatch, start: int = 0) -> int:
        self._check()
        self._may_abort()
        return super().send(batch, start)

    def commit(
        self, offsets: Mapping[TP, int], membership: Membership | None, timeout_s: float, *, note: str = ""
    ) -> None:
        transaction = self._asked("commit-transaction")
        if transaction.state != COMMITTED:
            self._may_abort()
            while self.pending:
                self.broker.deliver(self)
                self._asked("delivering")
            if offsets and not transaction.offsets:
                self.broker.check(membership)
                transaction.offsets = dict(offsets)
            self._asked("offsets-added")
            self._may_be_late()
            self.broker.end(transaction, COMMITTED)
            self.worker.point("transaction-committed")
            self._may_be_late()
        self.transaction = None

    def abort(self, timeout_s: float) -> None:
        transaction = self._asked("abort")
        self._may_be_late()
        self.pending, self.n_pending = {}, 0
        self.broker.end(transaction, ABORTED)
        self.worker.point("aborted")
        self.transaction = None

    def _asked(self, point: str) -> Transaction:
        """A request to the brokers gets through, or LogUnavailable, or this producer is fenced."""
        self.worker.point(point)
        if self.broker.down:
            raise LogUnavailable("the brokers are away")
        self._check()
        assert self.transaction is not None
        return self.transaction

    def _check(self) -> None:
        committed = self.transaction is not None and self.transaction.state == COMMITTED
        if self.fenced and not committed:
            raise FatalError("transaction-fenced", "another producer has its id, or it was open for too long")

    def _may_abort(self) -> None:
        if self.broker.world.chance("abort"):
            raise MustAbort("a record was refused")

    def _may_be_late(self) -> None:
        if self.broker.world.chance("late"):
            raise LogUnavailable("no answer in time")
