"""The log in this process: partitions, consumer groups with cooperative rebalance, committed offsets.

Behaves as Kafka does where the transport can see it; the conformance suite in tests/streams/test_log.py holds
it to that. Used where there is no Java, and as the ground for seeded fault tests: the clock is passed in.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from streams.errors import ConfigError, FatalError, no_such_partition
from streams.log import TP, CommitFailed, OutBatch, RebalanceListener, RecordBatch, TopicInfo
from streams.memory_producer import MemoryProducer, MemoryTransactionalProducer, Partition, Row
from streams.partitioner import partition_of_key

__all__ = ["MemoryLog"]


class _Membership(NamedTuple):
    """A member of a group, in one generation."""

    group: str
    member_id: int
    generation: int


@dataclass(slots=True)
class _Topic:
    topic_id: str
    partitions: list[Partition]


@dataclass(slots=True)
class _Member:
    topics: tuple[str, ...]
    last_poll: float
    session_timeout_s: float
    #: the last target it was told of, so that a member learns of an empty assignment too
    told: int = -1


@dataclass(slots=True)
class _Group:
    members: dict[int, _Member] = field(default_factory=dict)
    committed: dict[TP, int] = field(default_factory=dict)
    notes: dict[TP, str] = field(default_factory=dict)
    owner: dict[TP, int] = field(default_factory=dict)
    target: dict[TP, int] = field(default_factory=dict)
    generation: int = 0


class MemoryLog:
    """One in-process log. `named` gives every caller in the process the same one."""

    _named: ClassVar[dict[str, MemoryLog]] = {}

    def __init__(self, name: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.url = f"memory://{name}"
        self.clock = clock
        self.changed = threading.Condition()
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, _Group] = {}
        self._ids = itertools.count(1)
        self._round_robin = itertools.count()
        #: by transactional id, the producer that has it now
        self.transactional: dict[str, MemoryTransactionalProducer] = {}

    @classmethod
    def named(cls, name: str) -> MemoryLog:
        """The log of this name, made when first asked for."""
        return cls._named.setdefault(name, cls(name))

    def consumer(self, group: str, *, config: Mapping[str, Any] | None = None) -> MemoryConsumer:
        return MemoryConsumer(self, group, config or {})

    def producer(self, *, config: Mapping[str, Any] | None = None) -> MemoryProducer:
        return MemoryProducer(self)

    def transactional_producer(
        self, transactional_id: str, *, config: Mapping[str, Any] | None = None
    ) -> MemoryTransactionalProducer:
        timeout_ms = (config or {}).get("producer.transaction.timeout.ms", 15_000)
        return MemoryTransactionalProducer(self, transactional_id, float(timeout_ms) / 1000)

    def admin(self) -> MemoryAdmin:
        return MemoryAdmin(self)

    # -- the rest is called with self.changed held --

    def partitions(self, topic: str) -> list[Partition]:
        found = self._topics.get(topic)
        if found is None:
            raise FatalError("unknown-topic", f"topic {topic} is not there; create it with `headrace topics create`")
        return found.partitions

    def append(self, batch: OutBatch, now_ms: int) -> list[tuple[Partition, int]]:
        """Appends the records; returns where each is: its partition and offset there."""
        places = []
        partitions = self.partitions(batch.topic)
        n = len(partitions)
        for i, value in enumerate(batch.values):
            key = None if batch.keys is None else batch.keys[i]
            if batch.partition is not None:
                if not 0 <= batch.partition < n:
                    raise FatalError("unknown-partition", f"{batch.topic} has {n} partitions, not {batch.partition}")
                partition = batch.partition
            elif key is None:
                partition = next(self._round_robin) % n
            else:
                partition = partition_of_key(key, n)
            rows = partitions[partition].rows
            places.append((partitions[partition], len(rows)))
            rows.append((now_ms, key, value, batch.headers_of(i)))
        self.changed.notify_all()
        return places

    def commit_offsets(self, offsets: Mapping[TP, int], membership: Any, note: str) -> None:
        """Commits a transaction's offsets if the member is still in its group, in the same generation."""
        group = self.group(membership.group)
        if membership.member_id not in group.members or membership.generation != group.generation:
            raise CommitFailed(f"{membership} is not in generation {group.generation} of the group")
        group.committed.update(offsets)
        group.notes.update(dict.fromkeys(offsets, note))

    def group(self, name: str) -> _Group:
        return self._groups.setdefault(name, _Group())

    def expire(self, group: _Group) -> None:
        """Throws out members that have not polled within their session time-out, and ends transactions that are open
        for too long."""
        now = self.clock()
        for producer in list(self.transactional.values()):
            producer.expire(now)
        gone = [i for i, m in group.members.items() if now - m.last_poll > m.session_timeout_s]
        for member_id in gone:
            self.remove(group, member_id)

    def remove(self, group: _Group, member_id: int) -> None:
        group.members.pop(member_id, None)
        for tp in [tp for tp, owner in group.owner.items() if owner == member_id]:
            del group.owner[tp]
        self.rebalance(group)

    def rebalance(self, group: _Group) -> None:
        """Sticky target: each member keeps what it owns up to its fair share, the rest go to whoever has least."""
        group.generation += 1
        group.target = {}
        for topic in sorted({t for m in group.members.values() for t in m.topics if t in self._topics}):
            members = sorted(i for i, m in group.members.items() if topic in m.topics)
            partitions = [TP(topic, p) for p in range(len(self._topics[topic].partitions))]
            floor, larger = divmod(len(partitions), len(members))
            share: dict[int, list[TP]] = {i: [] for i in members}
            for tp in partitions:
                owner = group.owner.get(tp)
                if owner in share and len(share[owner]) < floor + (1 if larger else 0):
                    if len(share[owner]) == floor:
                        larger -= 1
                    share[owner].append(tp)
            taken = {tp for tps in share.values() for tp in tps}
            for tp in partitions:
                if tp not in taken:
                    share[min(members, key=lambda i: len(share[i]))].append(tp)
            group.target.update({tp: i for i, tps in share.items() for tp in tps})
        self.changed.notify_all()

    def add_topic(self, info: TopicInfo) -> bool:
        if info.name in self._topics:
            return False
        self._topics[info.name] = _Topic(uuid.uuid4().hex, [Partition() for _ in range(info.partitions)])
        for group in self._groups.values():
            self.rebalance(group)
        return True

    def drop_topic(self, name: str) -> None:
        self._topics.pop(name, None)
        for group in self._groups.values():
            of_partitions: list[dict[TP, Any]] = [group.committed, group.notes, group.owner]
            for values in of_partitions:
                for tp in [tp for tp in values if tp.topic == name]:
                    del values[tp]
            self.rebalance(group)

    def infos(self) -> dict[str, TopicInfo]:
        return {name: TopicInfo(name, len(t.partitions), t.topic_id) for name, t in self._topics.items()}

    def new_id(self) -> int:
        return next(self._ids)


class MemoryConsumer:
    """A group member of a `MemoryLog`; rebalance happens inside `poll`, revocation before assignment."""

    def __init__(self, log: MemoryLog, group: str, config: Mapping[str, Any]) -> None:
        self._log = log
        self._group_name = group
        timeout_ms = config.get("consumer.session.timeout.ms", config.get("session.timeout.ms", 45_000))
        self._session_timeout_s = float(timeout_ms) / 1000
        self._member_id = log.new_id()
        self._listener: RebalanceListener | None = None
        self._topics: tuple[str, ...] = ()
        self._position: dict[TP, int] = {}
        self._paused: set[TP] = set()
        #: of the group, as this member has last learned it
        self._generation = 0
        self._turn = 0
        self._closed = False

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None:
        self._topics = tuple(topics)
        self._listener = listener
        with self._log.changed:
            self._join()

    def _join(self) -> None:
        group = self._log.group(self._group_name)
        group.members[self._member_id] = _Member(self._topics, self._log.clock(), self._session_timeout_s)
        self._log.rebalance(group)

    def poll(self, timeout_s: float, max_records: int) -> list[RecordBatch]:
        if self._closed:
            raise ConfigError("consumer: poll after close; make a new consumer")
        deadline = time.monotonic() + timeout_s
        while True:
            self._heartbeat()
            self._follow_group()
            with self._log.changed:
                batches = self._fetch(max_records)
                left = deadline - time.monotonic()
                if batches or left <= 0:
                    return batches
                self._log.changed.wait(min(left, 0.05))

    def _heartbeat(self) -> None:
        with self._log.changed:
            group = self._log.group(self._group_name)
            member = group.members.get(self._member_id)
            if member is not None:
                member.last_poll = self._log.clock()
            self._log.expire(group)
            lost = list(self._position) if member is None else []
        if member is None:
            self._position.clear()
            self._paused.clear()
            if lost:
                self._require_listener().on_lost(lost)
            with self._log.changed:
                self._join()

    def _follow_group(self) -> None:
        listener = self._require_listener()
        with self._log.changed:
            group = self._log.group(self._group_name)
            mine = {tp for tp, member in group.target.items() if member == self._member_id}
            if self._member_id in group.members:
                self._generation = group.generation
            surplus = sorted(set(self._position) - mine)
        if surplus:
            listener.on_revoke(surplus)
            with self._log.changed:
                for tp in surplus:
                    self._position.pop(tp, None)
                    self._paused.discard(tp)
                    if group.owner.get(tp) == self._member_id:
                        del group.owner[tp]
                # as with cooperative members, who join again once they have revoked: no partition changes hands within
                # a generation, or a transaction of its former owner that is on its way would pass for the next one's
                group.generation += 1
                self._log.changed.notify_all()
        with self._log.changed:
            member = group.members.get(self._member_id)
            if member is None:
                return
            mine = {tp for tp, owner in group.target.items() if owner == self._member_id}
            fresh = sorted(tp for tp in mine - set(self._position) if tp not in group.owner)
            for tp in fresh:
                group.owner[tp] = self._member_id
            # as librdkafka does: each generation is told of, also where nothing is new
            news = bool(fresh) or member.told != group.generation
            member.told = self._generation = group.generation
        if news:
            starts = listener.on_assign(fresh)
            for tp in fresh:
                start = starts.get(tp)
                self._position[tp] = start if start is not None else (self.committed([tp])[tp] or 0)

    def _require_listener(self) -> RebalanceListener:
        if self._listener is None:
            raise ConfigError("consumer: poll before subscribe; subscribe to topics first")
        return self._listener

    def _fetch(self, max_records: int) -> list[RecordBatch]:
        batches = []
        order = sorted(tp for tp in self._position if tp not in self._paused)
        self._turn += 1
        left = max_records
        for k in range(len(order)):
            tp = order[(self._turn + k) % len(order)]
            partition = self._log.partitions(tp.topic)[tp.partition]
            start, end = self._position[tp], len(partition.rows)
            if start > end:
                raise FatalError("offset-out-of-range", f"{tp}: offset {start}, end {end}. Was the topic made again?")
            stop = min(start + left, partition.stable_end)
            offsets = [o for o in range(start, stop) if partition.rows[o] is not None]
            if offsets:
                batches.append(_batch(tp, offsets, [row for row in partition.rows[start:stop] if row is not None]))
                left -= len(offsets)
            self._position[tp] = max(start, stop)
            if left <= 0:
                break
        return batches

    def assignment(self) -> set[TP]:
        return set(self._position)

    def committed(self, partitions: Sequence[TP]) -> dict[TP, int | None]:
        with self._log.changed:
            group = self._log.group(self._group_name)
            return {tp: group.committed.get(tp) for tp in partitions}

    def notes(self, partitions: Sequence[TP]) -> dict[TP, str]:
        with self._log.changed:
            notes = self._log.group(self._group_name).notes
            return {tp: notes[tp] for tp in partitions if notes.get(tp)}

    def commit(
        self, offsets: Mapping[TP, int], on_done: Callable[[Exception | None], None] | None = None, *, note: str = ""
    ) -> None:
        with self._log.changed:
            group = self._log.group(self._group_name)
            foreign = [tp for tp in offsets if group.owner.get(tp) != self._member_id]
            if not foreign:
                group.committed.update(offsets)
                group.notes.update(dict.fromkeys(offsets, note))
        error = CommitFailed(f"not ours any more: {foreign}") if foreign else None
        if on_done is not None:
            on_done(error)
        elif error is not None:
            raise error

    def membership(self) -> _Membership:
        return _Membership(self._group_name, self._member_id, self._generation)

    def position(self, tp: TP) -> int | None:
        return self._position.get(tp)

    def offset_range(self, tp: TP) -> tuple[int, int]:
        with self._log.changed:
            partitions = self._log.partitions(tp.topic)
            if tp.partition >= len(partitions):
                raise no_such_partition(tp.topic, tp.partition, len(partitions))
            return 0, partitions[tp.partition].stable_end

    def ends(self, partitions: Sequence[TP]) -> Callable[[], dict[TP, int] | None]:
        ends = {tp: self.offset_range(tp)[1] for tp in partitions}
        return lambda: ends

    def at_end(self, tp: TP) -> bool:
        with self._log.changed:
            return self._position.get(tp, 0) >= len(self._log.partitions(tp.topic)[tp.partition].rows)

    def pause(self, partitions: Sequence[TP]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[TP]) -> None:
        self._paused.difference_update(partitions)

    def seek(self, tp: TP, offset: int) -> None:
        self._position[tp] = offset

    def close(self) -> None:
        if self._closed:
            return
        owned = sorted(self._position)
        if owned and self._listener is not None:
            self._listener.on_revoke(owned)
        self._position.clear()
        self._closed = True
        with self._log.changed:
            self._log.remove(self._log.group(self._group_name), self._member_id)


def _batch(tp: TP, offsets: list[int], rows: list[Row]) -> RecordBatch:
    return RecordBatch(
        tp=tp,
        offsets=offsets,
        timestamps=[r[0] for r in rows],
        keys=[r[1] for r in rows],
        values=[r[2] for r in rows],
        headers=lambda i: list(rows[i][3]),
        next_offset=offsets[-1] + 1,
    )


class MemoryAdmin:
    """Topics of a `MemoryLog`."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def create_topics(self, topics: Sequence[TopicInfo]) -> list[str]:
        with self._log.changed:
            return [t.name for t in topics if self._log.add_topic(t)]

    def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        with self._log.changed:
            return {name: info for name, info in self._log.infos().items() if names is None or name in names}

    def delete_topics(self, names: Sequence[str]) -> None:
        with self._log.changed:
            for name in names:
                self._log.drop_topic(name)

    def close(self) -> None:
        """Nothing to do."""
