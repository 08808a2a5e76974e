"""Family: what is watched of one half's rows, and how it is computed from their counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from features.block import FloatArray, IntArray
from monitoring.budget import Watch
from monitoring.settings import MonitorSettings

__all__ = ["Family"]


@dataclass(frozen=True, slots=True)
class Family:
    """The statistics of one half, of periods' counts (size,) and of windows, sums of them.

    ``values(now, then)`` (k, watches) of windows of counts. ``series(counts)`` (k, u) what River's detectors see of
    single periods, of the subjects ``detected`` (kind, subject; u of them), ``steps(counts)`` (u,) the smallest
    change of it that matters, of the whole reference. ``error_rate(counts)`` that of the reference; None: rows have
    no errors. ``against(counts)`` (size,) what windows are held against, of the whole reference.
    """

    name: str
    size: int
    watches: tuple[Watch, ...]
    values: Callable[[IntArray, IntArray], FloatArray]
    series: Callable[[IntArray], FloatArray]
    steps: Callable[[IntArray], FloatArray]
    detected: tuple[tuple[str, str], ...]
    error_rate: Callable[[IntArray], float] | None = None
    against: Callable[[IntArray], IntArray] = lambda counts: counts

    def detector_watches(self, settings: MonitorSettings) -> list[Watch]:
        """Those of the detectors: of each all subjects, then those of errors."""
        watches = [Watch(kind, of, name, "both", 0.0) for name in settings.detectors for kind, of in self.detected]
        if self.error_rate is not None:
            watches += [Watch("performance_drift", "score", name, "high", 0.0) for name in settings.error_detectors]
        return watches

    def count(self, settings: MonitorSettings) -> int:
        """How many watches there are, over all windows and detectors."""
        return len(self.watches) * len(settings.windows) + len(self.detector_watches(settings))
