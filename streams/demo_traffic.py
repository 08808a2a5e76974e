"""Simulated records to the topics of a log: as a paced stream, or all at once. Used by the demo and `simulate`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from streams.log import LogProducer, OutBatch

__all__ = ["Paced", "send", "send_paced"]

logger = logging.getLogger("headrace.simulate")

_CAUGHT_UP_S = 1.0
_PATIENCE_S = 5.0


class Paced(Protocol):
    """Records to send once ``due_s`` seconds have gone since the start, not before ``send_time`` (ms)."""

    @property
    def due_s(self) -> float: ...

    @property
    def send_time(self) -> int: ...

    def batches(self) -> Sequence[OutBatch]: ...


_C = TypeVar("_C", bound=Paced)


def send(producer: LogProducer, batches: Iterable[OutBatch], stop: threading.Event) -> None:
    """Queues all records, waiting where the producer's queue is full: without end, or 5 s once ``stop`` is set."""
    for batch in batches:
        done = producer.send(batch)
        patience_s = _PATIENCE_S
        while done < len(batch) and patience_s > 0:
            producer.poll(0.05)
            patience_s -= 0.05 if stop.is_set() else 0
            done = producer.send(batch, done)


def send_paced(
    producer: LogProducer,
    chunks: Iterable[_C],
    stop: threading.Event,
    *,
    seconds: float | None = None,
    sending: Callable[[_C], None] = lambda chunk: None,
) -> None:
    """Sends each chunk when it is due, for ``seconds`` or until ``stop`` is set or the chunks end.

    ``sending`` is called just before a chunk is sent. A chunk of the future waits until its time has come (rule 11):
    a world that runs faster than life goes on at the pace of life once it has caught up.
    """
    started = time.monotonic()
    caught_up = False
    for chunk in chunks:
        ahead_s = chunk.send_time / 1000 - time.time()
        if ahead_s > _CAUGHT_UP_S and not caught_up:
            caught_up = True
            logger.warning("the simulated time has caught up with the present: going on at the pace of life")
        wait_s = max(started + chunk.due_s - time.monotonic(), ahead_s)
        if seconds is not None and time.monotonic() + wait_s - started >= seconds:
            stop.wait(max(0.0, started + seconds - time.monotonic()))
            return
        if stop.wait(wait_s) if wait_s > 0 else stop.is_set():
            return
        sending(chunk)
        send(producer, chunk.batches(), stop)
