"""A member of a Kafka consumer group, by confluent-kafka."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from confluent_kafka import OFFSET_STORED, Consumer, KafkaError, KafkaException, Message, TopicPartition

from streams.errors import FatalError
from streams.kafka_connection import BrokerWatch, Contact, client_settings, config_error, retry
from streams.kafka_offsets import Offsets
from streams.log import TP, CommitFailed, Headers, LogUnavailable, Membership, RebalanceListener, RecordBatch

__all__ = ["KafkaConsumer"]

logger = logging.getLogger("headrace.kafka")

_CLOSE_S = 5.0
#: librdkafka hands a fetch over partition by partition: the first record is heard when the rest is on its way
_REST_S = 0.0003

_CONSUMER_DEFAULTS: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # every start offset is given explicitly; one that is gone must be an error, never a silent jump
    "auto.offset.reset": "error",
    "partition.assignment.strategy": "cooperative-sticky",
    "isolation.level": "read_committed",
    "allow.auto.create.topics": False,
    "queued.max.messages.kbytes": 65536,
    # librdkafka waits this long (default 1 s) before it fetches again once its queue was full
    "fetch.queue.backoff.ms": 10,
    "fetch.error.backoff.ms": 100,
    # members learn of a rebalance with a heartbeat, and a cooperative one takes two: 1 s instead of 3
    "heartbeat.interval.ms": 1_000,
    # a commit inside a rebalance callback may wait this long for a coordinator that went away
    "socket.timeout.ms": 10_000,
}
#: So long the partitions of a worker that was killed rest (librdkafka: 45 s). A static member keeps the long time: it
#: comes back itself.
_SESSION_MS = 10_000
#: of one question for committed offsets
_COMMITTED_S = 10.0
#: A transaction that nobody ends is ended by the broker: ours after 15 s, which it finds out within 10 s more.
_UNSTABLE_S = 60.0
#: a partition that was just assigned cannot be positioned before reading has begun
_NOT_YET = {KafkaError._STATE, KafkaError._PREV_IN_PROGRESS, KafkaError._OUTDATED}
_MOVED_ON = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._NO_OFFSET,
    KafkaError._STATE,
}


class KafkaConsumer:
    """A group member. Rebalance callbacks run inside `poll`, on the polling thread."""

    def __init__(self, watch: BrokerWatch, group: str, config: Mapping[str, Any]) -> None:
        self._watch = watch
        self._contact = Contact(watch)
        self._closed = False
        defaults = {**_CONSUMER_DEFAULTS, "group.id": group}
        settings = client_settings(config, defaults, "consumer", watch)
        if not settings.get("group.instance.id"):
            settings.setdefault("session.timeout.ms", _SESSION_MS)
        self._settings = {**settings, "on_commit": self._on_commit, "error_cb": self._on_error}
        try:
            self._consumer = Consumer(self._settings, logger=logger)
        except (KafkaException, ValueError) as exc:
            raise config_error(exc, "consumer") from exc
        self._offsets = Offsets(watch, config, settings["isolation.level"])
        self._starts: dict[TP, int | None] = {}
        self._commit_done: Callable[[Exception | None], None] | None = None
        self._topics: list[str] = []
        self._listener: RebalanceListener | None = None

    def _on_error(self, error: KafkaError) -> None:
        self._contact.on_error(error)

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None:
        self._topics = list(topics)
        self._listener = listener
        self._watch.asks = True
        self._consumer.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        assert self._listener is not None
        starts = self._listener.on_assign([TP(p.topic, p.partition) for p in partitions])
        self._starts.update(starts)
        consumer.incremental_assign(
            [
                TopicPartition(tp.topic, tp.partition, OFFSET_STORED if start is None else start)
                for tp, start in starts.items()
            ]
        )

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        assert self._listener is not None
        if consumer is self._consumer:
            self._listener.on_revoke([TP(p.topic, p.partition) for p in partitions])
        consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        assert self._listener is not None
        if consumer is self._consumer:
            self._listener.on_lost([TP(p.topic, p.partition) for p in partitions])
        consumer.incremental_unassign(partitions)

    def poll(self, timeout_s: float, max_records: int) -> list[RecordBatch]:
        # consume(n, timeout) waits its whole timeout unless n records are there: take one, then drain
        first = self._consumer.poll(timeout_s)
        if first is None:
            self._look_for_broker()
            if self._contact.is_stuck(lambda: self._consumer.list_topics(timeout=1.0)):
                self._begin_anew()
            return []
        messages = [first]
        if max_records > 1:
            time.sleep(_REST_S)
            messages += self._consumer.consume(max_records - 1, 0)
        if any(map(Message.error, messages)):
            messages = [m for m in messages if not self._is_error(m)]
        else:
            self._watch.seen()
        return _group(messages)

    def _look_for_broker(self) -> None:
        """While the broker is away: topics without new records would not tell that it is back."""
        watch = self._watch
        if watch.away_since is None and watch.suspected is None:
            return
        if watch.answers():
            watch.seen()
        elif watch.suspected is not None:
            watch.away(watch.suspected)

    def _begin_anew(self) -> None:
        """Another client in place of one that does not find back to the broker, as a new member of the group; for our
        listener its partitions are lost, as after a session time-out."""
        logger.error(
            "this consumer has lost broker %s, which others reach (librdkafka's issue 5301): begins anew",
            self._watch.bootstrap,
        )
        assert self._listener is not None
        old, self._consumer = self._consumer, Consumer(self._settings, logger=logger)
        self._contact = Contact(self._watch)
        done, self._commit_done = self._commit_done, None
        if done is not None:
            done(LogUnavailable("the client that sent it is gone"))
        self._starts.clear()
        self._listener.on_lost([TP(p.topic, p.partition) for p in old.assignment()])
        # it waits for a group that it cannot reach
        threading.Thread(target=old.close, name="headrace-lost-consumer", daemon=True).start()
        self.subscribe(self._topics, self._listener)

    def _is_error(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return False
        code = error.code()
        where = f"{message.topic()}/{message.partition()}"
        if code == KafkaError._AUTO_OFFSET_RESET:
            raise FatalError(
                "offset-out-of-range",
                f"{where}: {error.str()}. Its next offset is no longer in the log: records were deleted "
                f"(retention, or the topic was made again). Reset the group's offsets or use a new --group.",
            )
        if code in (KafkaError._FATAL, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
            raise FatalError("kafka-client", f"{error}. Check the credentials and ACLs of this group and its topics.")
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
            logger.warning("topic %s is not there: %s", message.topic(), error.str())
        elif code == KafkaError._MAX_POLL_EXCEEDED:
            logger.error("left out of the group: %s", error.str())
        elif code != KafkaError._PARTITION_EOF:
            self._watch.on_error(error)
        return True

    def assignment(self) -> set[TP]:
        return {TP(p.topic, p.partition) for p in self._consumer.assignment()}

    def committed(self, partitions: Sequence[TP]) -> dict[TP, int | None]:
        answer = self._ask_committed(partitions)
        return {TP(p.topic, p.partition): (p.offset if p.offset >= 0 else None) for p in answer}

    def notes(self, partitions: Sequence[TP]) -> dict[TP, str]:
        return {TP(p.topic, p.partition): p.metadata for p in self._ask_committed(partitions) if p.metadata}

    def _ask_committed(self, partitions: Sequence[TP]) -> list[TopicPartition]:
        if not partitions:
            return []
        asked = [TopicPartition(tp.topic, tp.partition) for tp in partitions]
        give_up_at = time.monotonic() + _UNSTABLE_S

        def ask() -> list[TopicPartition]:
            try:
                answer = self._consumer.committed(asked, timeout=_COMMITTED_S)
                for part in answer:
                    if part.error is not None:  # never to be taken for "nothing committed"
                        raise KafkaException(part.error)
            except KafkaException:
                if time.monotonic() > give_up_at:
                    self._refuse_unstable(partitions)
                raise
            return answer

        return retry(ask, "read committed offsets", self._watch)

    def _refuse_unstable(self, partitions: Sequence[TP]) -> None:
        """Whoever waits for the end of a transaction that is never to end would wait in silence."""
        group = self._settings["group.id"]
        unstable = self._offsets.unstable(group, partitions)
        if unstable:
            raise FatalError(
                "offsets-unstable",
                f"group {group}: a transaction that committed offsets of {unstable[0].topic}/{unstable[0].partition} "
                f"({len(unstable)} partitions in all) has not ended within {_UNSTABLE_S:g} s. A broker alone that is "
                "killed while it ends a transaction can forget to (it takes the partitions for deleted as it starts). "
                "Find and end it with Kafka's own tool, then start again: kafka-transactions.sh --bootstrap-server "
                f"{self._watch.bootstrap} find-hanging; what it committed is sent once more then.",
            )

    def commit(
        self, offsets: Mapping[TP, int], on_done: Callable[[Exception | None], None] | None = None, *, note: str = ""
    ) -> None:
        parts = [TopicPartition(tp.topic, tp.partition, offset, note) for tp, offset in offsets.items()]
        self._commit_done = on_done
        try:
            if on_done is not None:
                self._consumer.commit(offsets=parts, asynchronous=True)
                return
            results = self._consumer.commit(offsets=parts, asynchronous=False)
        except KafkaException as exc:
            self._commit_done = None
            raise _commit_error(exc.args[0]) from exc
        error = _first_error(None, results or [])
        if error is not None:
            raise error
        self._watch.seen()

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """The outcome of a commit that nobody waits for."""
        done, self._commit_done = self._commit_done, None
        if done is not None:
            failure = _first_error(error, partitions)
            if failure is None:
                self._watch.seen()
            done(failure)

    def membership(self) -> Membership:
        return self._consumer.consumer_group_metadata()

    def position(self, tp: TP) -> int | None:
        [part] = self._consumer.position([TopicPartition(tp.topic, tp.partition)])
        # before its first record librdkafka knows no position: then it is where reading begins
        return part.offset if part.offset >= 0 else self._starts.get(tp)

    def offset_range(self, tp: TP) -> tuple[int, int]:
        return self._offsets.range(tp)

    def ends(self, partitions: Sequence[TP]) -> Callable[[], dict[TP, int] | None]:
        return self._offsets.ends(partitions)

    def at_end(self, tp: TP) -> bool:
        part = TopicPartition(tp.topic, tp.partition)
        position = self.position(tp)
        _, high = self._consumer.get_watermark_offsets(part, cached=True)
        return position is not None and 0 <= high <= position

    def pause(self, partitions: Sequence[TP]) -> None:
        self._consumer.pause([TopicPartition(tp.topic, tp.partition) for tp in partitions])

    def resume(self, partitions: Sequence[TP]) -> None:
        self._consumer.resume([TopicPartition(tp.topic, tp.partition) for tp in partitions])

    def seek(self, tp: TP, offset: int) -> None:
        try:
            self._consumer.seek(TopicPartition(tp.topic, tp.partition, offset))
        except KafkaException as exc:
            if exc.args[0].code() in _NOT_YET:
                raise LogUnavailable(f"{tp.topic}/{tp.partition} is not read from yet") from exc
            raise
        self._starts[tp] = offset

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._watch.asks = False
            if self._settings.get("group.instance.id"):
                self._close_static()
                return
            # A rebalance callback inside librdkafka's close can wait for ever (its issue 4041): give the partitions
            # up while polling still works, so that close has none to revoke.
            self._consumer.unsubscribe()
            deadline = time.monotonic() + _CLOSE_S
            while self._consumer.assignment() and time.monotonic() < deadline:
                self._consumer.poll(0.1)
            self._consumer.close()

    def _close_static(self) -> None:
        """A static member goes without a word, so that nothing moves if it comes back in time: to unsubscribe first
        would be to leave the group. On a thread of its own, since a close that revokes can wait for ever, see `close`.
        """
        thread = threading.Thread(target=self._consumer.close, name="headrace-close", daemon=True)
        thread.start()
        thread.join(_CLOSE_S)
        if thread.is_alive():
            logger.warning("the consumer did not close in %.0f s and is left behind", _CLOSE_S)


def _first_error(error: KafkaError | None, partitions: Sequence[TopicPartition]) -> Exception | None:
    """Why a commit, or that of one of its partitions, failed."""
    errors = [error, *(part.error for part in partitions)]
    return next((_commit_error(e) for e in errors if e is not None), None)


def _commit_error(error: KafkaError) -> Exception:
    if error.code() in _MOVED_ON:
        return CommitFailed(error.str())
    return LogUnavailable(error.str())


def _group(messages: list[Message]) -> list[RecordBatch]:
    """The messages by partition, in the order in which each partition first appears."""
    if not messages:
        return []
    # the stubs allow None where a record from the log never has it
    partitions: list[Any] = list(map(Message.partition, messages))
    topics: list[Any] = list(map(Message.topic, messages))
    groups: dict[tuple[str, int], list[Message]] = {}
    if len(set(partitions)) == 1 and len(set(topics)) == 1:
        groups[topics[0], partitions[0]] = messages
    else:
        begin = 0
        for key, run in groupby(zip(topics, partitions, strict=True)):  # librdkafka gives them partition by partition
            end = begin + len(list(run))
            groups.setdefault(key, []).extend(messages[begin:end])
            begin = end
    return [_batch(TP(*key), group) for key, group in groups.items()]


def _batch(tp: TP, messages: list[Message]) -> RecordBatch:
    offsets: list[Any] = list(map(Message.offset, messages))
    return RecordBatch(
        tp=tp,
        offsets=offsets,
        timestamps=[stamp for _, stamp in map(Message.timestamp, messages)],
        keys=list(map(Message.key, messages)),
        values=list(map(Message.value, messages)),
        headers=lambda i: _headers(messages[i]),
        next_offset=offsets[-1] + 1,
    )


def _headers(message: Message) -> Headers:
    headers: Any = message.headers()
    return [(name, b"" if value is None else value) for name, value in headers or []]
