"""A demo as a consumer: counts what comes out, and measures how long it took."""

from __future__ import annotations

import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np

from streams.latency import LatencyDigest
from streams.listeners import FromStart
from streams.log import Log, RecordBatch
from streams.topics import DEAD_LETTERS

__all__ = ["DemoReader"]


class DemoReader(threading.Thread, ABC):
    """Counts all records of ``topic``, and the dead letters of records of ``inputs``, from the start of the log.

    The counters are written by this thread alone and may be read by any other.
    """

    def __init__(self, log: Log, topic: str, inputs: Sequence[str]) -> None:
        super().__init__(name=f"demo-{topic}", daemon=True)
        self._log = log
        self._topic = topic
        self._sources = tuple(f"{name}/".encode() for name in inputs)
        self._closing = threading.Event()
        self._grown = threading.Condition()
        self._live = False
        #: of each event that was sent and has not come out yet, when
        self._sent_at: dict[int, float] = {}
        self.error: Exception | None = None
        self.subscribed = threading.Event()
        self.count = self.dead_letters = self.history = 0
        self.latency = LatencyDigest()

    def go_live(self) -> None:
        """All records so far were of the history: from now on they are of the live part."""
        self.history = self.count
        self._live = True

    def wait_for(self, count: int, timeout_s: float) -> bool:
        """Waits until there are so many records."""
        with self._grown:
            return self._grown.wait_for(lambda: self.count >= count, timeout_s)

    def close(self) -> None:
        """Leaves the log."""
        self._closing.set()
        if self.is_alive():
            self.join(10.0)

    def run(self) -> None:
        try:
            consumer = self._log.consumer(f"headrace-demo-{uuid.uuid4().hex}")
            consumer.subscribe([self._topic, DEAD_LETTERS], FromStart(consumer))
            try:
                while not self._closing.is_set():
                    batches = consumer.poll(0.1, 5_000)
                    if consumer.assignment():
                        self.subscribed.set()
                    for batch in batches:
                        self._take(batch)
            finally:
                consumer.close()
        except Exception as error:  # noqa: BLE001 - reported by the demo, which looks at it all the time
            self.error = error

    def _take(self, batch: RecordBatch) -> None:
        now = time.perf_counter()
        if batch.tp.topic == DEAD_LETTERS:
            headers = (dict(batch.headers(i)) for i in range(len(batch)))
            self.dead_letters += sum((of.get("source") or b"").startswith(self._sources) for of in headers)
            return
        self._look_into([value for value in batch.values if value is not None], now)
        with self._grown:
            self.count += len(batch)
            self._grown.notify_all()

    @abstractmethod
    def _look_into(self, values: Sequence[bytes], now: float) -> None:
        """Records that have come ``now``; ``_live`` says whether they are of the live part."""

    def _arrived(self, events: Iterable[int], now: float) -> None:
        """What became of these events has come."""
        sent = [self._sent_at.pop(event, None) for event in events]
        self.latency.add(np.array([1000 * (now - at) for at in sent if at is not None]))
