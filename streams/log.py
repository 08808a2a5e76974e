"""The log: the small interface that the transport and the commands need of Kafka, and its one data type.

Two implementations pass one conformance suite: `streams.kafka` (confluent-kafka) and `streams.memory`
(in process). `connect` picks by URL scheme.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

__all__ = [
    "TP",
    "Headers",
    "Log",
    "LogAdmin",
    "LogConsumer",
    "LogProducer",
    "LogUnavailable",
    "Membership",
    "MustAbort",
    "OutBatch",
    "RebalanceListener",
    "RecordBatch",
    "TopicInfo",
    "TransactionalProducer",
    "connect",
]

Headers = list[tuple[str, bytes]]
#: who a consumer is in its group, and since which generation: opaque, from `LogConsumer.membership`
Membership = Any


class TP(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


@dataclass(slots=True)
class _JoinedHeaders:
    """Headers of batches that became one: part k begins at record ``starts[k]``."""

    starts: list[int]
    parts: list[Callable[[int], Headers]]

    def __call__(self, i: int) -> Headers:
        k = bisect_right(self.starts, i) - 1
        return self.parts[k](i - self.starts[k])


@dataclass(slots=True)
class RecordBatch:
    """Consecutive records of one partition as they are in the log: parallel lists, one entry a record."""

    tp: TP
    offsets: list[int]
    timestamps: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    #: headers of record i; a function since most are never looked at
    headers: Callable[[int], Headers]
    #: first offset after the batch
    next_offset: int
    #: set by the transport: which assignment of the partition this belongs to
    epoch: int = 0
    #: set by the transport: the batch is below the committed offset, its outputs were sent before
    replay: bool = False
    #: set by the transport: bytes of the values
    nbytes: int = 0

    def __len__(self) -> int:
        return len(self.offsets)

    def extend(self, later: RecordBatch) -> None:
        """Appends the records of a batch that follows this one."""
        if not isinstance(self.headers, _JoinedHeaders):
            self.headers = _JoinedHeaders([0], [self.headers])
        self.headers.starts.append(len(self))
        self.headers.parts.append(later.headers)
        self.offsets += later.offsets
        self.timestamps += later.timestamps
        self.keys += later.keys
        self.values += later.values
        self.next_offset = later.next_offset
        self.nbytes += later.nbytes


@dataclass(slots=True)
class OutBatch:
    """Records to send to one topic: ``partition`` None lets the default partitioner (murmur2 of the key) choose."""

    topic: str
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None = None
    partition: int | None = None
    #: of each record; a dict is the quickest form of headers whose names are all different
    headers: Sequence[Headers | dict[str, bytes]] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def headers_of(self, i: int) -> Headers:
        """The headers of record i as a list."""
        given = [] if self.headers is None else self.headers[i]
        return list(given.items() if isinstance(given, dict) else given)


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """What the broker says of a topic: ``topic_id`` changes when a topic is deleted and made again."""

    name: str
    partitions: int
    topic_id: str
    config: Mapping[str, str] = field(default_factory=dict)


class RebalanceListener(Protocol):
    """Called inside `LogConsumer.poll`, on the polling thread."""

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        """New partitions: returns the offset to start each at (None = committed, else earliest)."""

    def on_revoke(self, partitions: list[TP]) -> None:
        """Partitions to give up; still ours until this returns: finish, flush, commit."""

    def on_lost(self, partitions: list[TP]) -> None:
        """Partitions already given to somebody else: forget them, commit nothing."""


class LogConsumer(Protocol):
    """A member of a consumer group. All calls from one thread."""

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None: ...

    def poll(self, timeout_s: float, max_records: int) -> list[RecordBatch]:
        """Waits up to ``timeout_s`` for the first record, then takes what is there, at most ``max_records``."""

    def assignment(self) -> set[TP]: ...

    def committed(self, partitions: Sequence[TP]) -> dict[TP, int | None]: ...

    def notes(self, partitions: Sequence[TP]) -> dict[TP, str]:
        """What was noted with the committed offsets of these partitions, where something was."""

    def commit(
        self, offsets: Mapping[TP, int], on_done: Callable[[Exception | None], None] | None = None, *, note: str = ""
    ) -> None:
        """Raises `CommitFailed` when the group has moved on, `LogUnavailable` when the log cannot be asked.

        With ``on_done`` it does not wait: ``on_done`` is told the outcome, such an error or None, inside this call or
        a later `poll`. One such commit at a time. The log keeps ``note`` with each of the offsets, see `notes`.
        """

    def membership(self) -> Membership:
        """What fences the offsets of a transaction. Asked inside a rebalance callback, where it is of the generation
        that the callback tells of: at other times the group may have thrown this member out without its knowing."""

    def position(self, tp: TP) -> int | None: ...

    def offset_range(self, tp: TP) -> tuple[int, int]:
        """(earliest, end) of the partition in the log; the end is before the first record of an open transaction.
        FatalError where the topic has no such partition."""

    def ends(self, partitions: Sequence[TP]) -> Callable[[], dict[TP, int] | None]:
        """Asks the log where these partitions end, and does not wait: what is returned gives the answer, None until it
        is there, `LogUnavailable` where the log does not say."""

    def at_end(self, tp: TP) -> bool:
        """Whether everything that is known to be in the partition was read; asks nobody."""

    def pause(self, partitions: Sequence[TP]) -> None: ...

    def resume(self, partitions: Sequence[TP]) -> None: ...

    def seek(self, tp: TP, offset: int) -> None:
        """Goes on reading there, paused or not. `LogUnavailable` where reading of a new partition has not begun."""

    def close(self) -> None:
        """Gives its partitions up and leaves the group. To be called always: a Kafka consumer that is only forgotten
        hangs the garbage collector. May be called twice."""


class LogProducer(Protocol):
    """An idempotent producer with acks=all. Thread-safe."""

    def send(self, batch: OutBatch, start: int = 0) -> int:
        """Queues records from ``start`` on; returns how many are queued in all: less than len(batch) when
        the queue is full, call again from there after `poll`."""

    def poll(self, timeout_s: float) -> None: ...

    def flush(self, timeout_s: float) -> int:
        """Waits for delivery; returns how many records are still undelivered. Raises `DeliveryFailed`."""

    def close(self) -> None: ...


class TransactionalProducer(LogProducer, Protocol):
    """A producer whose records, together with a group's offsets, are seen by all or by nobody.

    `send`, `commit` and `abort` raise `MustAbort` when this transaction cannot be committed any more, and FatalError
    ``transaction-fenced`` when another producer has this transactional id, or the log has ended a transaction that was
    open for too long: nothing can be done with this producer then.
    """

    def init(self) -> None:
        """Once, before all else: fences other producers with this id and ends what they have left open, so that the
        offsets in it can be read. Waits for the log."""

    def begin(self) -> None: ...

    def commit(self, offsets: Mapping[TP, int], membership: Membership, timeout_s: float, *, note: str = "") -> None:
        """All sent since `begin` and these offsets, with ``note`` (see `LogConsumer.notes`), count from now on.

        Raises `CommitFailed` when the group has moved on: abort, these partitions may be somebody else's;
        `LogUnavailable` when it takes longer: call again with the same.
        """

    def abort(self, timeout_s: float) -> None:
        """Nothing since `begin` counts. `LogUnavailable`: it takes longer, call again."""


class LogAdmin(Protocol):
    """Topics of the log."""

    def create_topics(self, topics: Sequence[TopicInfo]) -> list[str]:
        """Creates those that are missing (``topic_id`` is ignored); returns the names created."""

    def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]: ...

    def delete_topics(self, names: Sequence[str]) -> None: ...

    def close(self) -> None: ...


class Log(Protocol):
    """A log: makes consumers, producers and an admin."""

    url: str

    def consumer(self, group: str, *, config: Mapping[str, Any] | None = None) -> LogConsumer: ...

    def producer(self, *, config: Mapping[str, Any] | None = None) -> LogProducer: ...

    def transactional_producer(
        self, transactional_id: str, *, config: Mapping[str, Any] | None = None
    ) -> TransactionalProducer: ...

    def admin(self) -> LogAdmin: ...


class CommitFailed(Exception):
    """The group has moved on: these partitions are somebody else's now."""


class LogUnavailable(Exception):
    """The log cannot be asked now; it may be again later."""


class MustAbort(Exception):
    """This transaction cannot be committed: abort it and send again."""


class DeliveryFailed(Exception):
    """A record could not be delivered; the task that sent it must restart from its committed offset."""


def connect(url: str, config: Mapping[str, Any] | None = None) -> Log:
    """The log at ``url``: ``headrace://HOST:PORT[,HOST:PORT]`` (Kafka) or ``memory://NAME`` (this process).

    ``config`` passes through to librdkafka.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        from streams.memory import MemoryLog

        return MemoryLog.named(rest)
    from streams.kafka import KafkaLog

    return KafkaLog(rest or url, config or {})
