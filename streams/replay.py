"""Reading a topic's partitions from their beginning up to given offsets, outside any group's work."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping

from streams.errors import HeadraceError
from streams.listeners import FromStart
from streams.log import TP, Log, RecordBatch

__all__ = ["ReplayError", "read_up_to"]

_SILENCE_S = 60.0
_RECORDS_MAX = 4096


class ReplayError(HeadraceError):
    """A log that cannot be read up to where it was said to go."""


def read_up_to(
    log: Log, stops: Mapping[TP, int], *, starts: Mapping[TP, int] | None = None, from_start: bool = True
) -> Iterator[RecordBatch]:
    """The records of one topic's partitions from ``starts``, else the earliest, to those before ``stops``, each
    partition's in order.

    ReplayError: nothing comes for a minute though there must be more; or, with ``from_start``, records at the beginning
    are gone.
    """
    starts = starts or {}
    left = {tp: stop for tp, stop in stops.items() if stop > starts.get(tp, 0)}
    if not left:
        return
    [topic] = {tp.topic for tp in left}
    consumer = log.consumer(f"headrace-replay-{uuid.uuid4().hex}")
    listener = FromStart(consumer, starts)
    try:
        consumer.subscribe([topic], listener)
        heard = time.monotonic()
        while left:
            batches = consumer.poll(0.1, _RECORDS_MAX)
            if batches or not consumer.assignment():
                heard = time.monotonic()
            if from_start and any(listener.ranges.get(tp, (0, 0))[0] > starts.get(tp, 0) for tp in stops):
                raise ReplayError(
                    f"{topic}: its first records are gone (retention), so its stage cannot be replayed from the start; "
                    "verify a group whose topics still hold everything, or keep them longer (retention.ms)"
                )
            for batch in batches:
                if batch.tp in left:
                    part = _before(batch, left[batch.tp])
                    if len(part):
                        yield part
            for tp in [tp for tp in left if (consumer.position(tp) or 0) >= left[tp]]:
                del left[tp]
            if time.monotonic() - heard > _SILENCE_S:
                raise ReplayError(f"{topic}: nothing came for {_SILENCE_S:.0f} s, yet {len(left)} partitions go on")
    finally:
        consumer.close()


def _before(batch: RecordBatch, stop: int) -> RecordBatch:
    """The records below ``stop``."""
    if batch.offsets[-1] < stop:
        return batch
    n = sum(offset < stop for offset in batch.offsets)
    return RecordBatch(
        batch.tp, batch.offsets[:n], batch.timestamps[:n], batch.keys[:n], batch.values[:n], batch.headers, stop
    )
