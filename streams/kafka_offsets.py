"""Where partitions begin and end, as the broker says now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # a public name that its stubs leave out
    AdminClient,
    ListOffsetsResultInfo,
    OffsetSpec,
)

from streams.kafka_connection import BrokerWatch, client_settings, retry
from streams.log import TP, LogUnavailable

__all__ = ["Offsets"]

logger = logging.getLogger("headrace.kafka")

_ASK_S = 5.0
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
            asked = [self._ask([tp], spec) for spec in (_EARLIEST, _LATEST)]
            try:
                low, high = (future.result().offset for futures in asked for future in futures.values())
            except KafkaException:
                self._client = None
                raise
            return int(low), int(high)

        return retry(ask, f"ask the end of {tp.topic}/{tp.partition}", self._watch)

    def ends(self, partitions: Sequence[TP]) -> Callable[[], dict[TP, int] | None]:
        """Where they end, without waiting: see `LogConsumer.ends`."""
        asked = self._ask(partitions, _LATEST)

        def answer() -> dict[TP, int] | None:
            if not all(future.done() for future in asked.values()):
                return None
            try:
                return {tp: int(future.result().offset) for tp, future in asked.items()}
            except KafkaException as exc:
                self._client = None  # one that lost its brokers might not find back
                raise LogUnavailable(exc.args[0].str()) from exc

        return answer

    def _ask(self, partitions: Sequence[TP], spec: OffsetSpec) -> dict[TP, Future[ListOffsetsResultInfo]]:
        if self._client is None:
            self._client = AdminClient(self._settings, logger=logger)
        futures = self._client.list_offsets(
            {TopicPartition(tp.topic, tp.partition): spec for tp in partitions},
            isolation_level=self._isolation,
            request_timeout=_ASK_S,
        )
        return {TP(part.topic, part.partition): future for part, future in futures.items()}
