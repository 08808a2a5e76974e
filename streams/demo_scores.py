"""The demo as a consumer: reads scores as they come, measures latency, keeps the newest high ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from features.block import IntArray
from streams.demo_reader import DemoReader
from streams.liveview import BINS, HighScore
from streams.log import Log
from streams.simulator_stream import Chunk, Tag
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS

__all__ = ["HIGH_SCORE", "ScoreReader"]

#: from here on a score is shown among the high ones, and counted
HIGH_SCORE = 0.5
_KEEP_HIGH = 50


class ScoreReader(DemoReader):
    """Counts all scores and dead letters; once `go_live`, looks into the scores as well.

    ``reason`` makes the text shown beside a high score of its record.
    """

    def __init__(self, log: Log, reason: Callable[[Mapping[str, Any]], str]) -> None:
        super().__init__(log, FRAUD_SCORES, (TRANSACTIONS, LABELS, BY_TERMINAL))
        self._reason = reason
        self.late = self.high = self.history_late = 0
        self.histogram: IntArray = np.zeros(BINS, np.int64)
        self.high_scores: deque[HighScore] = deque(maxlen=_KEEP_HIGH)

    def go_live(self) -> None:
        self.history_late, self.late = self.late, 0
        super().go_live()

    def sending(self, chunk: Chunk) -> None:
        """Notes when these transactions are sent."""
        now = time.perf_counter()
        for record in chunk.records:
            if record.tag in (Tag.TRANSACTION, Tag.LATE):
                # by the simulator's own form of a value, which begins with the id
                self._sent_at[int(record.value[18 : record.value.index(b",")])] = now

    def _look_into(self, values: Sequence[bytes], now: float) -> None:
        if not self._live:
            self.late += sum(b'"late":true' in value for value in values)
            return
        records: list[dict[str, Any]] = orjson.loads(b"[" + b",".join(values) + b"]")
        self._arrived((record["transaction_id"] for record in records), now)
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
