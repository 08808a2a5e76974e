"""Where partitions begin and end, as the broker says now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # a public name that its stubs leave out
    AdminClient,
    ListOffsetsResultInfo,
    OffsetSpec,
)

from streams.errors import no_such_partition
from streams.kafka_connection import BrokerWatch, client_settings, retry
from streams.log import TP, LogUnavailable

__all__ = ["Offsets"]

logger = logging.getLogger("headrace.kafka")

_ASK_S = 5.0
#: a client that was closed, or hangs, never answers
_GIVE_UP_S = 2 * _ASK_S
_EARLIEST, _LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]


class Offsets:
    """Asks with a client of its own.

    A broker answers a connection's requests one after the other, so on a consumer's own connection this question waits
    until a fetch that waits for records has ended (``fetch.wait.max.ms``, half a second), for each partition anew.
    """

    def __init__(self, watch: BrokerWatch, config: Mapping[str, Any], isolation: str) -> None:
        self._watch = watch
        self._settings = client_settings(config, {}, "admin", watch)
        committed = isolation == "read_committed"
        self._isolation = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        self._client: AdminClient | None = None

    def range(self, tp: TP) -> tuple[int, int]:
        """(earliest, end); waits for a broker that is away."""

        def ask() -> tuple[int, int]:
            client = self._reach()
            asked = [_ask(client, [tp], spec, self._isolation) for spec in (_EARLIEST, _LATEST)]
            try:
                low, high = (_known(future.result(_GIVE_UP_S)) for futures in asked for future in futures.values())
            except TimeoutError as exc:
                self._leave(client)
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer")) from exc
            except KafkaException as exc:
                self._leave(client)
                if exc.args[0].code() == KafkaError._NOENT:
                    _demand(client, tp)
                raise
            return low, high

        return retry(ask, f"ask the end of {tp.topic}/{tp.partition}", self._watch)

    def ends(self, partitions: Sequence[TP]) -> Callable[[], dict[TP, int] | None]:
        """Where they end, without waiting: see `LogConsumer.ends`."""
        # the answer holds its client: one that is gone answers nobody
        client = self._reach()
        asked = _ask(client, partitions, _LATEST, self._isolation)
        give_up_at = time.monotonic() + _GIVE_UP_S

        def answer() -> dict[TP, int] | None:
            if not all(future.done() for future in asked.values()):
                if time.monotonic() < give_up_at:
                    return None
                self._leave(client)
                raise LogUnavailable(f"no answer in {_GIVE_UP_S:.0f} s")
            try:
                return {tp: _known(future.result()) for tp, future in asked.items()}
            except KafkaException as exc:
                self._leave(client)
                raise LogUnavailable(exc.args[0].str()) from exc

        return answer

    def unstable(self, group: str, partitions: Sequence[TP]) -> list[TP]:
        """Those whose committed offset waits for a transaction to end; none where the broker does not say."""
        client = self._reach()
        asked = ConsumerGroupTopicPartitions(group, [TopicPartition(tp.topic, tp.partition) for tp in partitions])
        [future] = client.list_consumer_group_offsets([asked], require_stable=True, request_timeout=_ASK_S).values()
        try:
            parts = future.result(_GIVE_UP_S).topic_partitions
        except (TimeoutError, KafkaException):
            self._leave(client)
            return []
        unstable = [p for p in parts if p.error is not None and p.error.code() == KafkaError.UNSTABLE_OFFSET_COMMIT]
        return [TP(p.topic, p.partition) for p in unstable]

    def _reach(self) -> AdminClient:
        client = self._client
        if client is None:
            client = self._client = AdminClient(self._settings, logger=logger)
        return client

    def _leave(self, client: AdminClient) -> None:
        """One that lost its brokers might not find back."""
        if self._client is client:
            self._client = None


def _demand(client: AdminClient, tp: TP) -> None:
    """A partition without a leader may be new, or not be there at all."""
    topic = client.list_topics(tp.topic, timeout=_ASK_S).topics[tp.topic]
    if topic.partitions and tp.partition not in topic.partitions:
        raise no_such_partition(tp.topic, tp.partition, len(topic.partitions))


def _known(result: ListOffsetsResultInfo) -> int:
    """The offset; an answer without one, as of a broker that has just started, is none."""
    if result.offset < 0:
        raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, f"offset {result.offset} in the answer"))
    return int(result.offset)


def _ask(
    client: AdminClient, partitions: Sequence[TP], spec: OffsetSpec, isolation: IsolationLevel
) -> dict[TP, Future[ListOffsetsResultInfo]]:
    futures = client.list_offsets(
        {TopicPartition(tp.topic, tp.partition): spec for tp in partitions},
        isolation_level=isolation,
        request_timeout=_ASK_S,
    )
    return {TP(part.topic, part.partition): future for part, future in futures.items()}
