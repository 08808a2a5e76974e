"""Outputs on their way to the producer's queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from streams.errors import FatalError
from streams.log import DeliveryFailed, LogProducer, OutBatch

__all__ = ["Outbox"]

logger = logging.getLogger("headrace.worker")


class Outbox:
    """Hands batches to a producer, in order; a full queue holds up whoever sends. ``cpu_s``: what that took so far."""

    def __init__(self, producer: LogProducer) -> None:
        self.cpu_s = 0.0
        self._producer = producer

    async def send(self, outputs: list[OutBatch], waiting: Callable[[], None]) -> None:
        """Returns when all are in the queue; ``waiting`` is called again and again while it is full."""
        started = time.thread_time()
        for out in outputs:
            try:
                sent = self._producer.send(out)
                if sent < len(out):
                    self.cpu_s += time.thread_time() - started
                    await self._send_rest(out, sent, waiting)
                    started = time.thread_time()
            except DeliveryFailed as exc:
                raise FatalError("delivery-failed", f"{exc}. A restarted worker sends it again.") from exc
        self.cpu_s += time.thread_time() - started

    async def _send_rest(self, out: OutBatch, sent: int, waiting: Callable[[], None]) -> None:
        """Back-pressure: the producer's queue is full; the stage waits, and with it the consumer."""
        since = warned = time.monotonic()
        while sent < len(out):
            waiting()
            self._producer.poll(0)
            await asyncio.sleep(0.005)
            sent = self._producer.send(out, sent)
            now = time.monotonic()
            if now - warned > 10:
                warned = now
                logger.warning("the producer's queue has been full for %.0f s: is the broker up?", now - since)
