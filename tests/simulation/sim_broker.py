"""A model of the brokers: logs with transactions, requests on their way, a consumer group.

What may happen to a request is chosen by the world's seeded generator: it is delivered, delayed, overtaken by one to
another partition, or lost with the worker that sent it. A worker that calls goes through `World.point`, where it may
crash, and others may work before it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from streams.log import TP, CommitFailed

if TYPE_CHECKING:
    from sim_member import SimMember
    from sim_producer import SimProducer, SimTransactions
    from sim_world import World

OPEN, COMMITTED, ABORTED = "open", "committed", "aborted"
#: the broker ends a transaction that is open for longer
_TRANSACTION_S = 15.0


@dataclass(slots=True)
class Transaction:
    """What a producer has sent since `begin`."""

    producer: SimTransactions
    began: float
    state: str = OPEN
    records: list[tuple[TP, bytes]] = field(default_factory=list)
    offsets: dict[TP, int] = field(default_factory=dict)


class Entry(NamedTuple):
    """A place in a log; ``value`` None is a marker of a transaction."""

    value: bytes | None
    transaction: Transaction | None


class Membership(NamedTuple):
    """A member of the group, in one generation."""

    member_id: int
    generation: int


class SimBroker:
    """The logs, the group's committed offsets, who is in the group, and all producers that ever were."""

    def __init__(self, world: World, partitions: Sequence[TP]) -> None:
        self.world = world
        self.logs: dict[TP, list[Entry]] = {tp: [] for tp in partitions}
        self.down_until = 0.0
        self.producers: list[SimProducer] = []
        self.ids: dict[str, SimTransactions] = {}
        self.inputs = [tp for tp in partitions if tp.topic != "out"]
        self.committed: dict[TP, int] = {}
        self.members: dict[int, SimMember] = {}
        self.owner: dict[TP, int] = {}
        self.target: dict[TP, int] = {}
        self.generation = 0

    @property
    def down(self) -> bool:
        """Whether nobody reaches the brokers."""
        return self.world.now < self.down_until

    # -- records --

    def receive(self, tp: TP, value: bytes) -> None:
        """A record from outside."""
        self.logs[tp].append(Entry(value, None))

    def deliver(self, producer: SimProducer) -> None:
        """The first record of one of the producer's partitions arrives: partitions overtake each other."""
        if self.down or not producer.pending:
            return
        tp = self.world.pick(list(producer.pending))
        value = producer.taken(tp)
        transaction = producer.transaction
        if transaction is None:
            self.logs[tp].append(Entry(value, None))
            self.world.seen(tp, value)
        elif transaction.state == OPEN and not producer.fenced:
            self.logs[tp].append(Entry(value, transaction))
            transaction.records.append((tp, value))

    def fetch(self, tp: TP, position: int, records_max: int) -> tuple[list[int], list[bytes], int]:
        """Committed records from there on, as offsets and values, and the position after them."""
        offsets: list[int] = []
        values: list[bytes] = []
        log = self.logs[tp]
        while position < len(log) and len(offsets) < records_max:
            value, transaction = log[position]
            if transaction is not None and transaction.state == OPEN:
                break
            if value is not None and (transaction is None or transaction.state == COMMITTED):
                offsets.append(position)
                values.append(value)
            position += 1
        return offsets, values, position

    def end(self, transaction: Transaction, state: str) -> None:
        """Commits or aborts: all of it counts from now on, or nothing of it ever."""
        assert transaction.state == OPEN
        transaction.state = state
        self.world.met[state] += 1
        if state == COMMITTED:
            for tp, value in transaction.records:
                self.world.seen(tp, value)
            self._take_offsets(transaction.offsets)
        for tp in dict.fromkeys(tp for tp, _ in transaction.records):
            self.logs[tp].append(Entry(None, transaction))

    def open_transactions(self) -> list[Transaction]:
        """Of all producers."""
        return [t for p in self.producers if (t := p.transaction) is not None and t.state == OPEN]

    def expire_transactions(self) -> None:
        """Ends those that are open for too long, and fences their producers."""
        for transaction in self.open_transactions():
            if self.world.now - transaction.began > _TRANSACTION_S:
                self.world.met["transaction expired"] += 1
                transaction.producer.fenced = True
                self.end(transaction, ABORTED)

    # -- the group --

    def check(self, membership: Membership | None) -> None:
        """Offsets are taken from members of the present generation, whose the partitions are nobody asks; and from
        who says nothing of a group."""
        if membership is not None and (
            membership.member_id not in self.members or membership.generation != self.generation
        ):
            self.world.met["commit refused"] += 1
            raise CommitFailed(f"{membership}: the group is in generation {self.generation}")

    def commit(self, offsets: Mapping[TP, int], membership: Membership) -> None:
        """Takes offsets outside a transaction."""
        self.check(membership)
        self._take_offsets(offsets)

    def _take_offsets(self, offsets: Mapping[TP, int]) -> None:
        for tp, offset in offsets.items():
            self.world.committing(tp, self.committed.get(tp, 0), offset)
            self.committed[tp] = offset

    def pending_offsets(self, tp: TP) -> bool:
        """Whether an open transaction has offsets of the partition: a consumer waits for its end."""
        return any(tp in transaction.offsets for transaction in self.open_transactions())

    def remove(self, member_id: int) -> None:
        """The member leaves or is thrown out, of which it then knows nothing."""
        if self.members.pop(member_id, None) is not None:
            self.owner = {tp: owner for tp, owner in self.owner.items() if owner != member_id}
            self.rebalance()

    def rebalance(self) -> None:
        """A new generation; who gets what is drawn, so that much moves."""
        self.generation += 1
        ids = list(self.members)
        self.target = {tp: self.world.pick(ids) for tp in self.inputs} if ids else {}
