"""The models that score a row together: the champion, the canary in its place for some keys, one in its shadow."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray
from models.serving import Serving

__all__ = ["CanaryBounds", "CanaryGuard", "Lineup", "Scored", "in_canary"]

logger = logging.getLogger("headrace.models")

_GOLDEN = 0x9E37_79B9_7F4A_7C15
_MIX = ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB))
#: of so many blocks with canary rows, one is scored by the champion once more: what the canary takes is compared with
#: what the champion takes for the very same rows
_CONTROL_EVERY = 8


def in_canary(keys: npt.NDArray[np.uint64], share: float) -> BoolArray:
    """(n,) whether the canary scores the rows with these keys, (n, 2) uint64 as of `Ids.keys`: by their hash alone.

    A key that is in a share is in every larger one.
    """
    word = (keys[:, 0] * np.uint64(_GOLDEN)) ^ keys[:, 1]
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

    A row fails where the canary raises or gives a score that is not finite. Counted on the scoring thread, asked from
    another.
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


class Scored(NamedTuple):
    """Scores of n rows: ``raw`` and ``score`` (n,); ``canary`` (k,) int64 rows that the canary scored; the shadow's
    raw scores and scores (n,), None where there is no shadow or it failed."""

    raw: FloatArray
    score: FloatArray
    canary: npt.NDArray[np.int64]
    shadow: tuple[FloatArray, FloatArray] | None


_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Lineup:
    """``share`` of the keys are scored by ``canary``. Nothing that ``canary`` or ``shadow`` does stops the champion."""

    champion: Serving
    shadow: Serving | None = None
    canary: Serving | None = None
    share: float = 0.0
    guard: CanaryGuard | None = None

    def score(self, x: FloatArray, keys: npt.NDArray[np.uint64] | None) -> Scored:
        """Scores of ``x`` (n, d); ``keys`` (n, 2) as of `Ids.keys`, needed where there is a canary."""
        raw, score = self.champion.score(x)
        canary = _NO_ROWS
        if self.canary is not None and keys is not None:
            if raw is score:  # of a calibration that changes nothing
                score = raw.copy()
            canary = self._by_canary(self.canary, x, np.flatnonzero(in_canary(keys, self.share)), raw, score)
        return Scored(raw, score, canary, None if self.shadow is None else self._by_shadow(self.shadow, x))

    def _by_canary(
        self, canary: Serving, x: FloatArray, rows: npt.NDArray[np.int64], raw: FloatArray, score: FloatArray
    ) -> npt.NDArray[np.int64]:
        """Writes the canary's scores into ``raw`` and ``score``; returns the rows: those that failed are left out."""
        if len(rows) == 0:
            return rows
        part = x[rows]
        began = time.perf_counter()
        try:
            its_raw, its_score = canary.score(part)
            good = np.isfinite(its_score)
        except Exception:
            logger.exception("canary %s: %d rows failed, the champion scores them", canary.label, len(rows))
            its_raw = its_score = np.full(len(rows), np.nan)
            good = np.zeros(len(rows), np.bool_)
        took_s = time.perf_counter() - began
        if self.guard is not None and self.guard.count(len(rows), len(rows) - int(np.count_nonzero(good))):
            began = time.perf_counter()
            self.champion.score(part)
            self.guard.compare(took_s, time.perf_counter() - began)
        rows = rows[good]
        raw[rows], score[rows] = its_raw[good], its_score[good]
        return rows

    @staticmethod
    def _by_shadow(shadow: Serving, x: FloatArray) -> tuple[FloatArray, FloatArray] | None:
        try:
            return shadow.score(x)
        except Exception:
            logger.exception("shadow %s: %d rows have no shadow score", shadow.label, len(x))
            return None
