"""The log on Apache Kafka: topics, and the makers of its clients. With the other `streams.kafka_*` modules all that
knows confluent-kafka."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from streams.errors import FatalError
from streams.kafka_connection import BrokerWatch, client_settings, config_error, retry
from streams.kafka_consumer import KafkaConsumer
from streams.kafka_producer import KafkaProducer, KafkaTransactionalProducer
from streams.log import TopicInfo

__all__ = ["KafkaLog"]

logger = logging.getLogger("headrace.kafka")

_REQUEST_S = 5.0


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
        self._settings = client_settings(config, {}, "admin", watch)
        try:
            self._admin = AdminClient(self._settings, logger=logger)
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
        """After a request that failed: what the client has to say, and a new one, as it might not find back."""
        self._admin.poll(0)
        self._admin = AdminClient(self._settings, logger=logger)

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
        self._watch = BrokerWatch(bootstrap, self._config)

    def consumer(self, group: str, *, config: Mapping[str, Any] | None = None) -> KafkaConsumer:
        return KafkaConsumer(self._watch, group, {**self._config, **(config or {})})

    def producer(self, *, config: Mapping[str, Any] | None = None) -> KafkaProducer:
        return KafkaProducer(self._watch, {**self._config, **(config or {})})

    def transactional_producer(
        self, transactional_id: str, *, config: Mapping[str, Any] | None = None
    ) -> KafkaTransactionalProducer:
        return KafkaTransactionalProducer(self._watch, {**self._config, **(config or {})}, transactional_id)

    def admin(self) -> KafkaAdmin:
        return KafkaAdmin(self._watch, self._config)
