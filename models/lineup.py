"""The models that score a row together: the champion, the canary in its place for some keys, one in its shadow."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray, IntArray
from models.serving import Serving

__all__ = ["CanaryBounds", "CanaryGuard", "Lineup", "Scored", "Some", "halved", "in_canary"]

logger = logging.getLogger("headrace.models")

_GOLDEN = 0x9E37_79B9_7F4A_7C15
_MIX = ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB))
#: of so many blocks with canary rows, one is scored by the champion once more: what the canary takes is compared with
#: what the champion takes for the very same rows
_CONTROL_EVERY = 8

T = TypeVar("T")


def in_canary(keys: npt.NDArray[np.uint64], share: float, seed: int = 0) -> BoolArray:
    """(n,) whether the canary scores the rows with these keys, (n, 2) uint64 as of `Ids.keys`: by a hash of the key and
    ``seed`` (64 bits) alone.

    A key that is in a share is in every larger one of the same seed; shares of different seeds are independent.
    """
    word = (keys[:, 0] * np.uint64(_GOLDEN)) ^ keys[:, 1] ^ np.uint64(seed)
    for shift, factor in _MIX:
        word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    word ^= word >> np.uint64(31)
    chosen: BoolArray = (word >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share
    return chosen


@dataclass(frozen=True, slots=True)
class CanaryBounds:
    """Where a canary ends: above this share of failing rows, or this many times the champion's time."""

    error_rate_max: float = 0.01
    latency_ratio_max: float = 3.0
    #: before so many rows, and so many blocks that both models scored, nothing is said
    rows_min: int = 200
    controls_min: int = 20


@dataclass(slots=True)
class CanaryGuard:
    """What one worker has seen of a canary: rows, rows that failed, and its time beside the champion's.

    A row fails where the canary raises, gives a score that is not finite, or cannot say its reasons. Counted on the
    scoring thread, asked from another.
    """

    bounds: CanaryBounds = field(default_factory=CanaryBounds)
    rows: int = 0
    failed: int = 0
    blocks: int = 0
    controls: int = 0
    canary_s: float = 0.0
    champion_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, rows: int, failed: int) -> bool:
        """Counts a block; returns whether the champion is to score its rows once more, for comparison."""
        with self._lock:
            self.rows += rows
            self.failed += failed
            self.blocks += 1
            return failed == 0 and self.blocks % _CONTROL_EVERY == 0

    def fail(self, rows: int) -> None:
        """So many rows that were counted as good have failed after all."""
        with self._lock:
            self.failed += rows

    def compare(self, canary_s: float, champion_s: float) -> None:
        """What both took for the same rows, in seconds."""
        with self._lock:
            self.controls += 1
            self.canary_s += canary_s
            self.champion_s += champion_s

    def verdict(self) -> str | None:
        """Why the canary must end; None while it is within its bounds."""
        bounds = self.bounds
        with self._lock:
            if self.rows >= bounds.rows_min and self.failed > bounds.error_rate_max * self.rows:
                return f"{self.failed} of {self.rows} rows failed, more than {bounds.error_rate_max:.1%}"
            if self.controls >= bounds.controls_min and self.canary_s > bounds.latency_ratio_max * self.champion_s:
                ratio = self.canary_s / max(self.champion_s, 1e-9)
                return f"it takes {ratio:.1f} times as long as the champion, more than {bounds.latency_ratio_max:g}"
        return None


def halved(work: Callable[[int, int], T], n: int, what: str) -> list[tuple[int, int, T]]:
    """``work(start, stop)`` of n rows, as many as possible at a time: (start, stop, result) in order.

    Where it raises, the rows are halved until those are found that it cannot do, which are in no result: what becomes
    of a row never depends on the rows beside it. The log has the first error, of ``what``. MemoryError passes through.
    """
    done: list[tuple[int, int, T]] = []
    failing = False
    left = [(0, n)]
    while left:
        start, stop = left.pop()
        try:
            done.append((start, stop, work(start, stop)))
        except MemoryError:
            raise
        except Exception:
            if not failing:
                logger.exception("%s: of %d rows, those that fail are left out", what, n)
            failing = True
            if stop - start > 1:
                middle = (start + stop) // 2
                left += [(middle, stop), (start, middle)]
    return done


class Some(NamedTuple):
    """Scores of those of n rows that a model could score: ``rows`` (k,) rising; ``raw`` and ``score`` (k,)."""

    rows: IntArray
    raw: FloatArray
    score: FloatArray


class Scored(NamedTuple):
    """Scores of n rows: ``raw`` and ``score`` (n,); ``canary`` (k,) rows that the canary scored; the shadow's scores,
    None where there is no shadow."""

    raw: FloatArray
    score: FloatArray
    canary: IntArray
    shadow: Some | None


_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Lineup:
    """``share`` of the keys, chosen with ``seed``, are scored by ``canary``. Nothing that ``canary`` or ``shadow`` does
    stops the champion."""

    champion: Serving
    shadow: Serving | None = None
    canary: Serving | None = None
    share: float = 0.0
    guard: CanaryGuard | None = None
    seed: int = 0

    def score(self, x: FloatArray, keys: npt.NDArray[np.uint64] | None) -> Scored:
        """Scores of ``x`` (n, d); ``keys`` (n, 2) as of `Ids.keys`, needed where there is a canary."""
        raw, score = self.champion.score(x)
        canary = _NO_ROWS
        if self.canary is not None and keys is not None:
            if raw is score:  # of a calibration that changes nothing
                score = raw.copy()
            canary = self._by_canary(self.canary, x, np.flatnonzero(in_canary(keys, self.share, self.seed)), raw, score)
        return Scored(raw, score, canary, None if self.shadow is None else _some(self.shadow, x, "shadow"))

    def _by_canary(
        self, canary: Serving, x: FloatArray, rows: IntArray, raw: FloatArray, score: FloatArray
    ) -> IntArray:
        """Writes the canary's scores into ``raw`` and ``score``; returns the rows: those that failed are left out."""
        if len(rows) == 0:
            return rows
        part = x[rows]
        began = time.perf_counter()
        its = _some(canary, part, "canary")
        took_s = time.perf_counter() - began
        finite = np.isfinite(its.score)
        good = its.rows[finite]
        if self.guard is not None and self.guard.count(len(rows), len(rows) - len(good)):
            began = time.perf_counter()
            self.champion.score(part)
            self.guard.compare(took_s, time.perf_counter() - began)
        rows = rows[good]
        raw[rows], score[rows] = its.raw[finite], its.score[finite]
        return rows


def _some(serving: Serving, x: FloatArray, what: str) -> Some:
    """The scores of the rows of ``x`` (n, d) that do not raise."""
    parts = halved(lambda start, stop: serving.score(x[start:stop]), len(x), f"{what} {serving.label}")
    if not parts:
        return Some(_NO_ROWS, np.empty(0), np.empty(0))
    return Some(
        np.concatenate([np.arange(start, stop) for start, stop, _ in parts]),
        np.concatenate([raw for _, _, (raw, _) in parts]),
        np.concatenate([score for _, _, (_, score) in parts]),
    )
