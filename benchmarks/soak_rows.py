"""What a soak compares: the features of every transaction as they must be, and what has come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.machine import BenchError
from features.block import FloatArray, IntArray, KeyArray
from features.fraud import DEFAULT
from models.slot import ModelSlot
from streams.latency import LatencyDigest
from streams.log import TP, OutBatch, RecordBatch, TopicInfo
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_stages import StageSettings
from streams.pipelines.fraud_tasks import TerminalTask
from streams.topics import BY_TERMINAL, LABELS, TRANSACTIONS

__all__ = ["Expected", "Tally"]

_ODD = np.uint64(0x9E37_79B9_7F4A_7C15)


def _hashes(matrix: FloatArray) -> KeyArray:
    """(n,) uint64 of the bits of each row of (n, d); never 0, every NaN the same."""
    bits = np.ascontiguousarray(np.where(np.isnan(matrix), np.nan, matrix)).view(np.uint64)
    mixed = (bits ^ (bits >> np.uint64(31))) * _ODD
    mixed = (mixed ^ (mixed >> np.uint64(29))) * (np.arange(matrix.shape[1], dtype=np.uint64) * np.uint64(2) + _ODD)
    out: KeyArray = (mixed ^ (mixed >> np.uint64(32))).sum(axis=1, dtype=np.uint64) | np.uint64(1)
    return out


class Expected:
    """The stages on one partition each, without broker: hands the features of each transaction to ``found``."""

    def __init__(self, found: Callable[[IntArray, FloatArray], None]) -> None:
        self._pipeline = FraudPipeline(StageSettings(DEFAULT), ModelSlot(), "event_time", 1)
        self._pipeline.bind({info.name: TopicInfo(info.name, 1, "soak") for info in self._pipeline.topics})
        self._tasks = {topic: self._pipeline.task(TP(topic, 0)) for topic in (TRANSACTIONS, LABELS, BY_TERMINAL)}
        self._ends = dict.fromkeys(self._tasks, 0)
        self._found = found

    def take(self, batches: list[OutBatch]) -> None:
        """The next records, in the order of their times."""
        for out in batches:
            self._route(self._pipeline.process([(self._tasks[out.topic], self._batch(out.topic, list(out.values)))]))

    def finish(self) -> None:
        """Both sources come to rest, so that nothing waits any more."""
        for now_s in (0.0, 1.0, 10.0, 100.0):
            for topic in (TRANSACTIONS, LABELS):
                self._route(self._tasks[topic].tick(now_s, at_end=True))

    def _batch(self, topic: str, values: list[bytes | None]) -> RecordBatch:
        start, n = self._ends[topic], len(values)
        end = self._ends[topic] = start + n
        return RecordBatch(TP(topic, 0), [*range(start, end)], [-1] * n, [None] * n, values, lambda _: [], end)

    def _route(self, outputs: list[OutBatch]) -> None:
        for out in outputs:
            if out.topic != BY_TERMINAL:
                raise BenchError(f"a simulated event was not read: it went to {out.topic}")
            task: Any = self._tasks[BY_TERMINAL]
            vectors = TerminalTask.vectors(self._pipeline, [(task, self._batch(BY_TERMINAL, list(out.values)))], [])
            if vectors is not None:
                ids = vectors.rows.ids["transaction_id"].ints
                assert ids is not None
                self._found(ids, vectors.matrix)


class Tally:
    """Which transactions were expected and have come, by their ids, which count up from 0. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: KeyArray = np.zeros(1 << 16, np.uint64)
        self._came: KeyArray = np.zeros(1 << 16, np.uint64)
        self._planned: FloatArray = np.full(1 << 16, np.nan)
        self.latencies = LatencyDigest()
        self.count = self.repeated = 0
        #: ids of scores that came again with other features
        self._contradicting: set[int] = set()

    def _grow(self, n: int) -> None:
        while n > len(self._expected):
            more = len(self._expected)
            self._expected = np.concatenate([self._expected, np.zeros(more, np.uint64)])
            self._came = np.concatenate([self._came, np.zeros(more, np.uint64)])
            self._planned = np.concatenate([self._planned, np.full(more, np.nan)])

    def plan(self, ids: list[int], at_s: float) -> None:
        """These are to be sent at this time."""
        with self._lock:
            self._grow(max(ids) + 1)
            self._planned[ids] = at_s

    def expect(self, ids: IntArray, matrix: FloatArray) -> None:
        """(n,) ids and (n, d) features, offline."""
        with self._lock:
            self._grow(int(ids.max()) + 1)
            self._expected[ids] = _hashes(matrix)

    def come(self, ids: IntArray, matrix: FloatArray, at_s: float) -> None:
        """(n,) ids and (n, d) features of scores."""
        found = _hashes(matrix)
        with self._lock:
            self._grow(int(ids.max()) + 1)
            _, first = np.unique(ids, return_index=True)
            again = np.ones(len(ids), np.bool_)
            again[first] = False
            again |= self._came[ids] != 0
            self._came[ids[~again]] = found[~again]
            self.repeated += int(np.count_nonzero(again))
            self._contradicting.update(ids[again][self._came[ids[again]] != found[again]].tolist())
            self.count += int(np.count_nonzero(~again))
            took_ms = (at_s - self._planned[ids[~again]]) * 1000
            self.latencies.add(took_ms[~np.isnan(took_ms)])

    def next_slice(self) -> LatencyDigest:
        """The latencies since the last call."""
        with self._lock:
            done, self.latencies = self.latencies, LatencyDigest()
            return done

    def result(self) -> dict[str, int]:
        """Rows: ``missing`` scores, ``unexpected`` ones, and those ``differing`` from offline in any copy."""
        with self._lock:
            expected, came = self._expected != 0, self._came != 0
            differing = set(np.flatnonzero(expected & came & (self._expected != self._came)).tolist())
            return {
                "rows": int(np.count_nonzero(expected)),
                "missing": int(np.count_nonzero(expected & ~came)),
                "unexpected": int(np.count_nonzero(came & ~expected)),
                "differing": len(differing | self._contradicting),
                "repeated": self.repeated,
            }
