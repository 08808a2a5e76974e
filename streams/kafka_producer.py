"""The producer to Kafka, by confluent-kafka."""

from __future__ import annotations

import logging
import queue
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from itertools import repeat
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from streams.errors import FatalError
from streams.kafka_connection import BrokerWatch, Contact, client_settings, config_error, retry
from streams.log import TP, CommitFailed, DeliveryFailed, LogUnavailable, Membership, MustAbort, OutBatch

__all__ = ["MAX_MESSAGE_BYTES", "KafkaProducer", "KafkaTransactionalProducer"]

logger = logging.getLogger("headrace.kafka")

#: A record of 10 MB must reach the dead letters whole, with room for its headers.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

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
#: What a transaction changes: a record that cannot be delivered aborts it, which is no reason to end the worker.
_TRANSACTION_DEFAULTS: dict[str, Any] = {
    **_PRODUCER_DEFAULTS,
    "enable.gapless.guarantee": False,
    # Ours are open for milliseconds. What a worker leaves open that is killed meanwhile and does not come back holds
    # the readers of its outputs and the next owner of its partitions for so long.
    "transaction.timeout.ms": 15_000,
    "message.timeout.ms": 15_000,
}
_CALL_S = 5.0
_FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}
#: The group does not know this member, or not in this generation.
_MOVED_ON = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
}


# To close a client whose transaction was fenced is to have done with it: what librdkafka's library then says on stderr
# was said before, as the reason for which the worker ends. Set once and not around the call, which may wait for ever.
warnings.filterwarnings("ignore", r"Producer (abort_transaction|flush) failed during close", RuntimeWarning)


class KafkaProducer:
    """Idempotent, acks=all, murmur2 partitioner; librdkafka's own threads send."""

    def __init__(
        self, watch: BrokerWatch, config: Mapping[str, Any], defaults: Mapping[str, Any] = _PRODUCER_DEFAULTS
    ) -> None:
        self._watch = watch
        self._failure: str | None = None
        settings = client_settings(config, defaults, "producer", watch)
        self._contact = Contact(watch)
        if "transactional.id" not in settings:  # there a failure is the transaction's, and told by its commit
            settings["on_delivery"] = self._on_delivery
        settings["error_cb"] = self._contact.on_error
        self._settings = settings
        self._producer = self._connected()

    def _connected(self) -> Producer:
        try:
            return Producer(self._settings, logger=logger)
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
            self._producer.poll(0)
        except BufferError:
            return sent
        except KafkaException as exc:
            raise DeliveryFailed(f"{topic}: {exc.args[0].str()}") from exc
        except SystemError as exc:
            raise _fatal(exc) from exc
        return sent

    def poll(self, timeout_s: float) -> None:
        try:
            self._producer.poll(timeout_s)
        except (KafkaException, SystemError) as exc:
            raise _fatal(exc) from exc

    def flush(self, timeout_s: float) -> int:
        waiting = len(self._producer)
        try:
            remaining = int(self._producer.flush(timeout_s))
        except (KafkaException, SystemError) as exc:
            raise _fatal(exc) from exc
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise DeliveryFailed(failure)
        if waiting and not remaining:
            self._watch.seen()
        if remaining and self._contact.is_stuck(lambda: self._producer.list_topics(timeout=1.0)):
            raise FatalError(
                "producer-lost-broker",
                f"this producer has lost broker {self._watch.bootstrap}, which others reach (librdkafka's issue 5301), "
                f"with {remaining} records to send. Nothing after the last commit counts; a restarted worker sends it.",
            )
        return remaining

    def close(self) -> None:
        self._producer.flush(_CALL_S)
        self._producer.close()


class KafkaTransactionalProducer(KafkaProducer):
    """A producer that is fenced by its transactional id and by the generation of a group.

    librdkafka's transactions do not always survive a broker that goes away: to add offsets once more after a transport
    failure can wait for ever (its issues 5456 and 5511), and to abort then can end in a fatal error. As long as the
    commit itself was not asked for, nothing can have been committed: `abort` then begins anew with another client,
    which ends the transaction of the one before.
    """

    def __init__(self, watch: BrokerWatch, config: Mapping[str, Any], transactional_id: str) -> None:
        super().__init__(watch, config, {**_TRANSACTION_DEFAULTS, "transactional.id": transactional_id})
        self._id = transactional_id
        self._timeout_s = float(self._settings["transaction.timeout.ms"]) / 1000
        #: when the open transaction began; None = there is none
        self._began: float | None = None
        #: whether its commit was asked for: from then on only the broker knows its outcome
        self._committing = False
        #: whether this client can do nothing more
        self._broken = False

    def init(self) -> None:
        retry(
            lambda: self._producer.init_transactions(_CALL_S),
            f"begin as transactional id {self._id}",
            self._watch,
            hear=lambda: self._producer.poll(0),
        )

    def begin(self) -> None:
        self._committing = False
        self._failure = None
        try:
            self._producer.begin_transaction()
        except KafkaException as exc:
            raise self._meaning(exc.args[0]) from exc
        finally:
            self._began = time.monotonic()

    def send(self, batch: OutBatch, start: int = 0) -> int:
        try:
            return super().send(batch, start)
        except DeliveryFailed as exc:
            cause: Any = exc.__cause__
            error: KafkaError = cause.args[0]
            if error.code() == KafkaError._STATE:  # the transaction has failed before
                raise MustAbort(error.str()) from exc
            if error.code() == KafkaError._FATAL:
                error = self._what_was_fatal(error)
            raise self._meaning(error) from exc

    def _what_was_fatal(self, error: KafkaError) -> KafkaError:
        """A client that something has ended before says only that when it is to send; a transaction's calls say what it
        was."""
        try:
            self._producer.abort_transaction(_CALL_S)
        except KafkaException as exc:
            said: KafkaError = exc.args[0]
            return said
        return error

    def poll(self, timeout_s: float) -> None:
        try:
            self._producer.poll(timeout_s)
        except KafkaException as exc:
            raise self._meaning(exc.args[0]) from exc

    def commit(self, offsets: Mapping[TP, int], membership: Membership, timeout_s: float, *, note: str = "") -> None:
        try:
            if offsets and not self._committing:
                parts = [TopicPartition(tp.topic, tp.partition, offset, note) for tp, offset in offsets.items()]
                self._add_offsets(parts, membership, timeout_s)
            self._committing = True
            self._producer.commit_transaction(timeout_s)
        except KafkaException as exc:
            meaning = self._meaning(exc.args[0])
            if isinstance(meaning, LogUnavailable) and not self._committing:
                self._broken = True
                raise MustAbort(str(meaning)) from exc
            raise meaning from exc
        self._began = None
        self._watch.seen()

    def _add_offsets(self, parts: list[TopicPartition], membership: Membership, timeout_s: float) -> None:
        """On a thread of its own, which is left behind where librdkafka waits for ever in spite of the time-out."""
        producer = self._producer
        ended: queue.SimpleQueue[KafkaException | None] = queue.SimpleQueue()

        def add() -> None:
            try:
                producer.send_offsets_to_transaction(parts, membership, timeout_s)
                ended.put(None)
            except KafkaException as exc:
                ended.put(exc)

        threading.Thread(target=add, name="headrace-offsets", daemon=True).start()
        try:
            failure = ended.get(timeout=self._timeout_s)
        except queue.Empty:
            self._broken = True
            raise MustAbort(f"no broker took the offsets within {self._timeout_s:g} s") from None
        if failure is not None:
            raise failure

    def abort(self, timeout_s: float) -> None:
        self._committing = False
        if not self._broken:
            try:
                self._producer.abort_transaction(timeout_s)
            except KafkaException as exc:
                meaning = self._meaning(exc.args[0])
                if not self._broken:
                    raise meaning from exc
        if self._broken:
            logger.warning("transactional id %s: begins anew with another client", self._id)
            # on a thread of its own: it may wait for ever
            threading.Thread(target=_close, args=(self._producer,), name="headrace-lost-producer", daemon=True).start()
            self._producer = self._connected()
            self.init()
            self._broken = False
        self._began = None

    def close(self) -> None:
        if self._began is not None and not self._broken:
            with suppress(KafkaException):  # fenced, or the broker is away: it ends the transaction in time
                self._producer.abort_transaction(_CALL_S)
        _close(self._producer)

    def _meaning(self, error: KafkaError) -> Exception:
        """What an error inside a transaction asks for: the end, an abort, or another try."""
        if error.fatal() or error.code() in _FENCED:
            too_long = self._began is not None and time.monotonic() - self._began > self._timeout_s
            if not self._committing and (too_long or error.code() not in _FENCED):
                self._broken = True
                return MustAbort(error.str())
            return FatalError(
                "transaction-fenced",
                f"transactional id {self._id}: {error.str()}. Another worker has this transactional id, or the broker "
                "ended a transaction that was open for longer than producer.transaction.timeout.ms. Nothing after the "
                "last commit counts; a restarted worker goes on there. Give every worker a transactional_id of its "
                "own.",
            )
        if error.txn_requires_abort():
            return CommitFailed(error.str()) if error.code() in _MOVED_ON else MustAbort(error.str())
        if error.retriable():
            return LogUnavailable(error.str())
        return FatalError("transaction-failed", f"transactional id {self._id}: {error.str()} ({error.name()})")


def _fatal(exc: KafkaException | SystemError) -> FatalError:
    """Of an error after which a client sends nothing more: librdkafka tells it once, out of whatever call serves its
    callbacks; where another callback was due then, as a SystemError whose cause it is."""
    return FatalError(
        "producer-failed",
        f"{exc.__cause__ or exc}. Nothing after the last commit counts; a restarted worker sends it again.",
    )


def _close(producer: Producer) -> None:
    with suppress(KafkaException, SystemError):  # it was fenced; the other where warnings are errors
        producer.close()
