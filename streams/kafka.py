"""The log on Apache Kafka by confluent-kafka: with `streams.kafka_connection` all that knows its clients."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any

from confluent_kafka import (
    OFFSET_STORED,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from streams.errors import FatalError
from streams.kafka_connection import BrokerWatch, client_settings, config_error, retry
from streams.log import (
    TP,
    CommitFailed,
    DeliveryFailed,
    Headers,
    LogUnavailable,
    OutBatch,
    RebalanceListener,
    RecordBatch,
    TopicInfo,
)

__all__ = ["MAX_MESSAGE_BYTES", "KafkaLog"]

logger = logging.getLogger("headrace.kafka")

_REQUEST_S = 5.0
_CLOSE_S = 5.0
#: librdkafka hands a fetch over partition by partition: the first record is heard when the rest is on its way
_REST_S = 0.0003

#: A record of 10 MB must reach the dead letters whole, with room for its headers.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

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
_PRODUCER_DEFAULTS: dict[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "enable.gapless.guarantee": True,
    "message.timeout.ms": 0,
    "partitioner": "murmur2_random",
    # a run of batches is sent in one go: what follows it is another turn
    "linger.ms": 0.5,
    "batch.size": 1_000_000,
    "message.max.bytes": MAX_MESSAGE_BYTES,
    "queue.buffering.max.messages": 200_000,
    "queue.buffering.max.kbytes": 131_072,
    "delivery.report.only.error": True,
}
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
        self._looked_at = 0.0
        self._closed = False
        defaults = {**_CONSUMER_DEFAULTS, "group.id": group}
        try:
            settings = client_settings(config, defaults, "consumer", watch)
            self._consumer = Consumer({**settings, "on_commit": self._on_commit}, logger=logger)
        except (KafkaException, ValueError) as exc:
            raise config_error(exc, "consumer") from exc
        self._starts: dict[TP, int | None] = {}
        self._commit_done: Callable[[Exception | None], None] | None = None
        self._listener: RebalanceListener | None = None

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None:
        self._listener = listener
        self._watch.asks = True
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
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
        self._listener.on_revoke([TP(p.topic, p.partition) for p in partitions])
        consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        assert self._listener is not None
        self._listener.on_lost([TP(p.topic, p.partition) for p in partitions])
        consumer.incremental_unassign(partitions)

    def poll(self, timeout_s: float, max_records: int) -> list[RecordBatch]:
        # consume(n, timeout) waits its whole timeout unless n records are there: take one, then drain
        first = self._consumer.poll(timeout_s)
        if first is None:
            self._look_for_broker()
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
        """Once a second while the broker is away: topics without new records would not tell that it is back."""
        watch = self._watch
        if (watch.away_since is None and watch.suspected is None) or time.monotonic() - self._looked_at < 1.0:
            return
        try:
            self._consumer.list_topics(timeout=0.5)
            watch.seen()
        except KafkaException:
            if watch.suspected is not None:
                watch.away(watch.suspected)
        self._looked_at = time.monotonic()

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
        if not partitions:
            return {}
        asked = [TopicPartition(tp.topic, tp.partition) for tp in partitions]

        def ask() -> list[TopicPartition]:
            answer = self._consumer.committed(asked, timeout=10.0)
            for part in answer:
                if part.error is not None:  # never to be taken for "nothing committed"
                    raise KafkaException(part.error)
            return answer

        answer = retry(ask, "read committed offsets", self._watch)
        return {TP(p.topic, p.partition): (p.offset if p.offset >= 0 else None) for p in answer}

    def commit(self, offsets: Mapping[TP, int], on_done: Callable[[Exception | None], None] | None = None) -> None:
        parts = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in offsets.items()]
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

    def position(self, tp: TP) -> int | None:
        [part] = self._consumer.position([TopicPartition(tp.topic, tp.partition)])
        # before its first record librdkafka knows no position: then it is where reading begins
        return part.offset if part.offset >= 0 else self._starts.get(tp)

    def offset_range(self, tp: TP, timeout_s: float = 5.0) -> tuple[int, int]:
        part = TopicPartition(tp.topic, tp.partition)
        low, high = retry(
            lambda: self._consumer.get_watermark_offsets(part, timeout=timeout_s, cached=False),
            f"ask the end of {tp.topic}/{tp.partition}",
            self._watch,
        )
        return int(low), int(high)

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
        self._consumer.seek(TopicPartition(tp.topic, tp.partition, offset))
        self._starts[tp] = offset

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._watch.asks = False
            # A rebalance callback inside librdkafka's close can wait for ever (its issue 4041): give the partitions
            # up while polling still works, so that close has none to revoke.
            self._consumer.unsubscribe()
            deadline = time.monotonic() + _CLOSE_S
            while self._consumer.assignment() and time.monotonic() < deadline:
                self._consumer.poll(0.1)
            self._consumer.close()


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
        for key, message in zip(zip(topics, partitions, strict=True), messages, strict=True):
            group = groups.get(key)
            if group is None:
                groups[key] = [message]
            else:
                group.append(message)
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


class KafkaProducer:
    """Idempotent, acks=all, murmur2 partitioner; librdkafka's own threads send."""

    def __init__(self, watch: BrokerWatch, config: Mapping[str, Any]) -> None:
        self._watch = watch
        self._failure: str | None = None
        settings = client_settings(config, _PRODUCER_DEFAULTS, "producer", watch)
        settings["on_delivery"] = self._on_delivery
        try:
            self._producer = Producer(settings, logger=logger)
        except (KafkaException, ValueError) as exc:
            raise config_error(exc, "producer") from exc

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failure is None:
            self._failure = f"{message.topic()}/{message.partition()}: {error.str()}"

    def send(self, batch: OutBatch, start: int = 0) -> int:
        produce = self._producer.produce
        topic, values, keys = batch.topic, batch.values[start:], batch.keys
        headers: Any = batch.headers
        partition = -1 if batch.partition is None else batch.partition
        sent = start
        try:
            # by position (no callback, time of sending): names cost a fifth more
            for value, key, of_row in zip(
                values,
                repeat(None) if keys is None else keys[start:],
                repeat(None) if headers is None else headers[start:],
                strict=False,
            ):
                produce(topic, value, key, partition, None, None, 0, of_row)
                sent += 1
        except BufferError:
            return sent
        except KafkaException as exc:
            raise DeliveryFailed(f"{topic}: {exc.args[0].str()}") from exc
        self._producer.poll(0)
        return sent

    def poll(self, timeout_s: float) -> None:
        self._producer.poll(timeout_s)

    def flush(self, timeout_s: float) -> int:
        waiting = len(self._producer)
        remaining = int(self._producer.flush(timeout_s))
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise DeliveryFailed(failure)
        if waiting and not remaining:
            self._watch.seen()
        return remaining

    def close(self) -> None:
        self._producer.flush(5.0)
        self._producer.close()


def _result(future: Any) -> Any:
    """The answer of an admin request; one that never comes (seen on a loaded machine) is a time-out like others."""
    try:
        return future.result(timeout=2 * _REQUEST_S)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None


class KafkaAdmin:
    """Topics on the broker."""

    def __init__(self, watch: BrokerWatch, config: Mapping[str, Any]) -> None:
        self._watch = watch
        try:
            self._admin = AdminClient(client_settings(config, {}, "admin", watch), logger=logger)
        except (KafkaException, ValueError) as exc:
            raise config_error(exc, "admin") from exc

    def create_topics(self, topics: Sequence[TopicInfo]) -> list[str]:
        created: list[str] = []

        def create() -> None:
            existing = self._names()
            new = [t for t in topics if t.name not in existing]
            if not new:
                return
            wanted = [NewTopic(t.name, num_partitions=t.partitions, config=dict(t.config)) for t in new]
            for name, future in self._admin.create_topics(wanted, request_timeout=_REQUEST_S).items():
                try:
                    _result(future)
                    created.append(name)
                except KafkaException as exc:
                    if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was quicker
                        raise

        retry(create, "create the topics", self._watch, hear=self._hear)
        self._wait_until_seen([t.name for t in topics])
        return created

    def _names(self) -> set[str]:
        return set(self._admin.list_topics(timeout=_REQUEST_S).topics)

    def _wait_until_seen(self, names: Sequence[str]) -> None:
        """The controller has the topics; the brokers' metadata follow a moment later."""
        deadline = time.monotonic() + 30
        while missing := set(names) - set(self.topics(names)):
            if time.monotonic() > deadline:
                raise FatalError("create-topic", f"{sorted(missing)} were created but do not show; is the broker well?")
            time.sleep(0.02)

    def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        def describe() -> dict[str, TopicInfo]:
            wanted = [name for name in self._names() if not name.startswith("__") and (names is None or name in names)]
            out: dict[str, TopicInfo] = {}
            if not wanted:
                return out
            asked = self._admin.describe_topics(TopicCollection(wanted), request_timeout=_REQUEST_S)
            for name, future in asked.items():
                try:
                    info = _result(future)
                except KafkaException as exc:
                    if exc.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                        continue  # deleted, or not yet known to the broker that was asked
                    raise
                out[name] = TopicInfo(name, len(info.partitions), str(info.topic_id))
            return out

        return retry(describe, "list the topics", self._watch, hear=self._hear)

    def _hear(self) -> None:
        self._admin.poll(0)

    def delete_topics(self, names: Sequence[str]) -> None:
        for future in self._admin.delete_topics(list(names), request_timeout=_REQUEST_S).values():
            _result(future)

    def close(self) -> None:
        """Nothing to do: the client ends with its last reference."""


class KafkaLog:
    """Apache Kafka at ``bootstrap`` (``HOST:PORT[,HOST:PORT]``)."""

    def __init__(self, bootstrap: str, config: Mapping[str, Any]) -> None:
        self.bootstrap = bootstrap
        self.url = f"headrace://{bootstrap}"
        self._config = dict(config)
        self._watch = BrokerWatch(bootstrap)

    def consumer(self, group: str, *, config: Mapping[str, Any] | None = None) -> KafkaConsumer:
        return KafkaConsumer(self._watch, group, {**self._config, **(config or {})})

    def producer(self, *, config: Mapping[str, Any] | None = None) -> KafkaProducer:
        return KafkaProducer(self._watch, {**self._config, **(config or {})})

    def admin(self) -> KafkaAdmin:
        return KafkaAdmin(self._watch, self._config)
