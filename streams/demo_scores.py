"""The demo as a consumer: reads scores and dead letters as they come, measures latency, keeps the newest high ones."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from features.block import IntArray
from streams.latency import LatencyDigest
from streams.liveview import BINS, HighScore
from streams.log import TP, Log, LogConsumer, RecordBatch
from streams.simulator_stream import Chunk, Tag
from streams.topics import DEAD_LETTERS, FRAUD_SCORES

__all__ = ["HIGH_SCORE", "ScoreReader"]

#: from here on a score is shown among the high ones, and counted
HIGH_SCORE = 0.5
_KEEP_HIGH = 50


class ScoreReader(threading.Thread):
    """Counts all scores and dead letters from the start of the log; once `go_live`, looks into the scores as well.

    The counters are written by this thread alone and may be read by any other. ``reason`` makes the text shown beside
    a high score of its record.
    """

    def __init__(self, log: Log, reason: Callable[[Mapping[str, Any]], str]) -> None:
        super().__init__(name="demo-scores", daemon=True)
        self._log = log
        self._reason = reason
        self._closing = threading.Event()
        self._grown = threading.Condition()
        self._sent_at: dict[int, float] = {}
        self._live = False
        self.error: Exception | None = None
        self.subscribed = threading.Event()
        self.scores = self.dead_letters = 0
        self.history_scores = self.history_late = 0
        self.late = self.high = 0
        self.latency = LatencyDigest()
        self.histogram: IntArray = np.zeros(BINS, np.int64)
        self.high_scores: deque[HighScore] = deque(maxlen=_KEEP_HIGH)

    def go_live(self) -> None:
        """All scores so far were of the history: from now on they are of the live part."""
        self.history_scores, self.history_late, self.late = self.scores, self.late, 0
        self._live = True

    def sending(self, chunk: Chunk) -> None:
        """Notes when these transactions are sent."""
        now = time.perf_counter()
        for record in chunk.records:
            if record.tag in (Tag.TRANSACTION, Tag.LATE):
                # by the simulator's own form of a value, which begins with the id
                self._sent_at[int(record.value[18 : record.value.index(b",")])] = now

    def wait_for(self, scores: int, timeout_s: float) -> bool:
        """Waits until there are so many scores."""
        with self._grown:
            return self._grown.wait_for(lambda: self.scores >= scores, timeout_s)

    def close(self) -> None:
        """Leaves the log."""
        self._closing.set()
        if self.is_alive():
            self.join(10.0)

    def run(self) -> None:
        try:
            consumer = self._log.consumer(f"headrace-demo-{uuid.uuid4().hex}")
            consumer.subscribe([FRAUD_SCORES, DEAD_LETTERS], _FromEarliest(consumer, self.subscribed))
            try:
                while not self._closing.is_set():
                    for batch in consumer.poll(0.1, 5_000):
                        self._take(batch)
            finally:
                consumer.close()
        except Exception as error:  # noqa: BLE001 - reported by the demo, which looks at it all the time
            self.error = error

    def _take(self, batch: RecordBatch) -> None:
        now = time.perf_counter()
        if batch.tp.topic == DEAD_LETTERS:
            self.dead_letters += len(batch)
            return
        values = [value for value in batch.values if value is not None]
        if self._live:
            self._look_into(values, now)
        else:
            self.late += sum(b'"late":true' in value for value in values)
        with self._grown:
            self.scores += len(batch)
            self._grown.notify_all()

    def _look_into(self, values: Sequence[bytes], now: float) -> None:
        records: list[dict[str, Any]] = orjson.loads(b"[" + b",".join(values) + b"]")
        sent = [self._sent_at.pop(record["transaction_id"], None) for record in records]
        self.latency.add(np.array([1000 * (now - at) for at in sent if at is not None]))
        scores = np.array([record["score"] for record in records], np.float64)
        self.histogram += np.bincount(np.minimum((scores * BINS).astype(np.int64), BINS - 1), minlength=BINS)
        self.late += sum(record["late"] for record in records)
        for row in np.flatnonzero(scores >= HIGH_SCORE):
            record = records[row]
            self.high += 1
            self.high_scores.appendleft(
                HighScore(
                    event_time=record["event_time"],
                    card_id=record["card_id"],
                    terminal_id=record["terminal_id"],
                    amount=record["amount"],
                    score=record["score"],
                    reason=self._reason(record),
                )
            )


class _FromEarliest:
    def __init__(self, consumer: LogConsumer, assigned: threading.Event) -> None:
        self._consumer, self._assigned = consumer, assigned

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        starts = {tp: self._consumer.offset_range(tp)[0] for tp in partitions}
        self._assigned.set()
        return starts

    def on_revoke(self, partitions: list[TP]) -> None:
        """Nothing to give up."""

    def on_lost(self, partitions: list[TP]) -> None:
        """Nothing to give up."""
