"""Latencies in bounded memory: a histogram with logarithmic buckets, as HdrHistogram keeps them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from features.block import FloatArray, IntArray

__all__ = ["LatencyDigest"]

_LOWEST_MS, _HIGHEST_MS = 1e-3, 3.6e6
#: neighbouring bucket edges differ by 2 %, so a bucket's middle is within 1 % of all that is in it
_LOG_STEP = math.log(1.02)
_LOG_LOWEST = math.log(_LOWEST_MS)
_BUCKETS = math.ceil((math.log(_HIGHEST_MS) - _LOG_LOWEST) / _LOG_STEP) + 1


class LatencyDigest:
    """Percentiles of any number of latencies, each within 1 % between 1 us and an hour; about 9 KB.

    Values outside that range count as its ends; ``min_ms``, ``max_ms`` and ``mean_ms`` are exact. Not thread-safe: one
    writer, or one digest a thread and `merge`.

    >>> digest = LatencyDigest()
    >>> digest.add(np.array([1.0, 2.0, 300.0]))
    >>> round(digest.percentile(50), 1)
    2.0
    """

    __slots__ = ("_buckets", "_max", "_min", "_sum", "count")

    def __init__(self) -> None:
        self._buckets: IntArray = np.zeros(_BUCKETS, np.int64)
        self._min, self._max, self._sum = math.inf, -math.inf, 0.0
        self.count = 0

    def add(self, values_ms: FloatArray | npt.NDArray[np.generic]) -> None:
        """Counts latencies, (n,) of any number type, in milliseconds; NaN raises `ValueError`."""
        values = np.asarray(values_ms, np.float64)
        if not len(values):
            return
        low, high = float(values.min()), float(values.max())
        if math.isnan(low):
            raise ValueError("values_ms holds NaN: not a latency; drop the rows without one first")
        logs = np.log(np.clip(values, _LOWEST_MS, _HIGHEST_MS))
        logs -= _LOG_LOWEST
        logs /= _LOG_STEP
        self._buckets += np.bincount(logs.astype(np.int64), minlength=_BUCKETS)
        self._min, self._max = min(self._min, low), max(self._max, high)
        self._sum += float(values.sum())
        self.count += len(values)

    def merge(self, other: LatencyDigest) -> None:
        """Adds all that ``other`` has counted."""
        self._buckets += other._buckets
        self._min, self._max = min(self._min, other._min), max(self._max, other._max)
        self._sum += other._sum
        self.count += other.count

    def clear(self) -> None:
        """Forgets everything."""
        self._buckets[:] = 0
        self._min, self._max, self._sum = math.inf, -math.inf, 0.0
        self.count = 0

    def percentile(self, percent: float) -> float:
        """The smallest latency that at least ``percent`` % of all are at or below, ms; NaN when there is none."""
        if not 0.0 <= percent <= 100.0:
            raise ValueError(f"percent={percent}: must be in [0, 100]; for the 99.9th percentile give 99.9")
        if not self.count:
            return math.nan
        # The least excess keeps 99.9 % of 1000 at rank 999 although 99.9 / 100 * 1000 > 999 in floating point.
        rank = max(1, math.ceil(percent / 100.0 * self.count - 1e-9))
        bucket = int(np.searchsorted(np.cumsum(self._buckets), rank))
        middle: float = math.exp(_LOG_LOWEST + (bucket + 0.5) * _LOG_STEP)
        return float(min(max(middle, self._min), self._max))

    @property
    def min_ms(self) -> float:
        """The least latency, NaN when there is none."""
        return self._min if self.count else math.nan

    @property
    def max_ms(self) -> float:
        """The greatest latency, NaN when there is none."""
        return self._max if self.count else math.nan

    @property
    def mean_ms(self) -> float:
        """The mean latency, NaN when there is none."""
        return self._sum / self.count if self.count else math.nan

    def to_dict(self) -> dict[str, float | None]:
        """Figures for ``--json``: count, mean, p50, p99, p99.9 and max in ms, null when there is none."""
        figures = {
            "latency_ms_mean": self.mean_ms,
            "latency_ms_p50": self.percentile(50.0),
            "latency_ms_p99": self.percentile(99.0),
            "latency_ms_p999": self.percentile(99.9),
            "latency_ms_max": self.max_ms,
        }
        return {"count": self.count, **{k: None if math.isnan(v) else round(v, 3) for k, v in figures.items()}}
