"""What the web page shows of scores: how long they took, how they are spread, the newest high ones; of lists, how long
they took.

Where scores are encoded, a block costs a copy of two columns; all else is done about once a second, for all blocks
together, on the web server's thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from features.block import Block, FloatArray, IntArray
from monitoring.metrics import LATENCY_BOUNDS_S, SCORE_BOUNDS, Buckets
from streams.encode import ScoreEncoder
from streams.latency import LatencyDigest
from streams.recommend_encode import RecommendationEncoder, Served

__all__ = ["HIGH_SCORE", "Drained", "ScoreFigures", "ScoreTap", "TappedEncoder", "TappedLists"]

#: from here on a score is shown among the high ones
HIGH_SCORE = 0.5
_KEEP_HIGH = 50
#: blocks that nobody has asked for: of more, the oldest are not counted
_BLOCKS_MAX = 10_000
#: latencies of so many turns are what percentiles are told of
_TURNS = 10


class Drained(NamedTuple):
    """Blocks since the last time, of each when its scores were encoded (s), its rows' timestamps and scores; and the
    newest records with a high score, all that are kept, oldest first."""

    blocks: Sequence[tuple[float, IntArray, FloatArray]]
    high: Sequence[bytes]


class ScoreTap:
    """Filled on the event loop of the worker and drained on another thread: what both call of a deque is atomic."""

    def __init__(self) -> None:
        self._blocks: deque[tuple[float, IntArray, FloatArray]] = deque(maxlen=_BLOCKS_MAX)
        self._high: deque[bytes] = deque(maxlen=_KEEP_HIGH)

    def take(self, timestamps: IntArray, score: FloatArray, values: Sequence[bytes]) -> None:
        """Rows whose scores were just encoded: when their events were sent (n,) ms, the scores (n,), the records."""
        if len(score) == 0:
            return
        # copies: views would keep the whole block
        self._blocks.append((time.time(), timestamps.copy(), score.copy()))
        self._high += [values[i] for i in np.flatnonzero(score >= HIGH_SCORE)[-_KEEP_HIGH:].tolist()]

    def drain(self) -> Drained:
        """What has come since the last call."""
        blocks = [self._blocks.popleft() for _ in range(len(self._blocks))]
        return Drained(blocks, self._high.copy())


class TappedEncoder(ScoreEncoder):
    """A `ScoreEncoder` that tells ``tap`` what it has encoded."""

    def __init__(self, feature_names: Sequence[str] | None, tap: ScoreTap) -> None:
        super().__init__(feature_names)
        self._tap = tap

    def encode(self, block: Block, *, score: FloatArray | None = None, **rest: Any) -> list[bytes]:
        values = super().encode(block, score=score, **rest)
        if score is not None:
            self._tap.take(block.timestamps, score, values)
        return values


class TappedLists(RecommendationEncoder):
    """A `RecommendationEncoder` that tells ``tap`` what it has encoded: how long lists took, as they have no score."""

    def __init__(self, feature_names: Sequence[str] | None, tap: ScoreTap) -> None:
        super().__init__(feature_names)
        self._tap = tap

    def encode(
        self, block: Block, model: str | None, lists: Sequence[Served], weights: FloatArray | None = None
    ) -> list[bytes]:
        values = super().encode(block, model, lists, weights)
        self._tap.take(block.timestamps, np.full(len(values), np.nan), values)
        return values


class ScoreFigures:
    """All that was drained, counted. One thread."""

    def __init__(self) -> None:
        self._latency_counts: IntArray = np.zeros(len(LATENCY_BOUNDS_S) + 1, np.int64)
        self._latency_sum_s = 0.0
        self._score_counts: IntArray = np.zeros(len(SCORE_BOUNDS) + 1, np.int64)
        self._score_sum = 0.0
        self._recent: deque[LatencyDigest] = deque(maxlen=_TURNS)
        self._high: Sequence[bytes] = ()

    def take(self, drained: Drained) -> None:
        """Counts what has come in one turn, also where that is nothing."""
        digest = LatencyDigest()
        if drained.blocks:
            latencies = [np.maximum(0.0, 1000 * at - sent[sent > 0]) for at, sent, _ in drained.blocks]
            self._count(np.concatenate(latencies), np.concatenate([score for _, _, score in drained.blocks]), digest)
        self._recent.append(digest)
        self._high = drained.high

    def _count(self, latencies_ms: FloatArray, scores: FloatArray, digest: LatencyDigest) -> None:
        digest.add(latencies_ms)
        self._latency_counts += _counts(latencies_ms / 1000, LATENCY_BOUNDS_S)
        self._latency_sum_s += float(latencies_ms.sum()) / 1000
        scores = scores[np.isfinite(scores)]
        self._score_counts += _counts(scores, SCORE_BOUNDS)
        self._score_sum += float(scores.sum())

    @property
    def latency(self) -> Buckets:
        """Of all scores, in seconds."""
        return Buckets(LATENCY_BOUNDS_S, self._latency_counts.tolist(), self._latency_sum_s)

    @property
    def scores(self) -> Buckets:
        """All scores."""
        return Buckets(SCORE_BOUNDS, self._score_counts.tolist(), self._score_sum)

    def recent_latency(self) -> dict[str, float | None]:
        """Of the last turns, see `LatencyDigest.to_dict`."""
        total = LatencyDigest()
        for digest in self._recent:
            total.merge(digest)
        return total.to_dict()

    def high(self) -> list[dict[str, Any]]:
        """The newest records with a high score, newest first, without their features."""
        records = [orjson.loads(value) for value in reversed(self._high)]
        return [{name: value for name, value in record.items() if name != "features"} for record in records]


def _counts(values: FloatArray, bounds: Sequence[float]) -> IntArray:
    """(bounds + 1,) how many values are in each bucket; the upper end belongs to its bucket."""
    counts: IntArray = np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1)
    return counts
