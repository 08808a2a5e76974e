"""The River detectors of one half: each with the sensitivity that holds its budget, or none at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features.arrays import Arrays, prefixed, under
from features.block import FloatArray, IntArray
from monitoring.detectors import RiverDetector, budgeted
from monitoring.family import Family
from monitoring.settings import MonitorSettings

__all__ = ["Panel"]

#: detectors need a longer series than the reference to show how rarely they err
_REPLAYED_VALUES, _REPLAYED_ERRORS = 3_000, 5_000


class Panel:
    """``watches`` of `Family.detector_watches`, in its order. `use` it with a reference before `step`."""

    def __init__(self, settings: MonitorSettings, family: Family) -> None:
        self.settings, self.family = settings, family
        self.watches = family.detector_watches(settings)
        self._center = self._spread = np.zeros(len(family.detected))
        #: one per watch; None: the budget cannot be held, so there is none
        self.detectors: list[RiverDetector | None] = []

    def use(self, reference: IntArray) -> None:
        """Sets the scale of the series by the periods of the ``reference`` (P, size)."""
        series = self.family.series(reference)
        known = np.where(np.isnan(series).all(0), 0.0, series)
        self._center = np.nan_to_num(np.nanmean(known, 0))
        spread = np.nan_to_num(np.nanstd(known, 0, ddof=1))
        self._spread = np.maximum(spread, np.nan_to_num(self.family.steps(reference.sum(0))))

    def calibrate(self, reference: IntArray, chance: float) -> None:
        """Finds the sensitivities: on the series of the ``reference``, drawn again, and on errors of its rate, no
        detector may give alarms at more than ``chance`` per period."""
        settings = self.settings
        again = self._again(self.family.series(reference))
        found = [budgeted(name, one, chance) if one.any() else None for name in settings.detectors for one in again]
        if self.family.error_rate is not None:
            rate = self.family.error_rate(reference.sum(0))
            errors = (np.random.default_rng(0).random(_REPLAYED_ERRORS) < rate).astype(np.float64)
            found += [budgeted(name, errors, chance / settings.rows_min) for name in settings.error_detectors]
        self._make(found)

    def _make(self, sensitivity: Sequence[float | None]) -> None:
        self.detectors = [
            None if s is None else RiverDetector(watch.measure, s)
            for watch, s in zip(self.watches, sensitivity, strict=True)
        ]

    def _standard(self, series: FloatArray) -> FloatArray:
        """In standard deviations of the reference or, where these are less, smallest changes that matter: else a
        detector that adds up takes the slow wandering of a feature of many days for a drift. NaN where it had none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            z: FloatArray = np.where(self._spread > 0, (series - self._center) / self._spread, np.nan)
        return np.clip(z, -10.0, 10.0)

    def _again(self, series: FloatArray) -> FloatArray:
        """(u, n) the reference's series, drawn again in blocks that are as long as the longest window and begin at
        multiples of it, so that what is dependent or of one season stays so. From a fixed seed."""
        z = np.nan_to_num(self._standard(series)).T
        length = self.settings.windows[-1]
        blocks = z[:, : z.shape[1] // length * length].reshape(len(z), -1, length)
        picks = np.random.default_rng(0).integers(0, blocks.shape[1], (len(z), _REPLAYED_VALUES // length))
        again: FloatArray = blocks[np.arange(len(z))[:, None], picks].reshape(len(z), -1)
        return again

    def step(self, counts: IntArray, errors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Takes the next period: its ``counts`` (size,) and the ``errors`` (k,) of its rows, 0 or 1. (Strength,
        value) of all watches (m,): 1 for an alarm, else 0; the standardised mean, or the share of errors."""
        z = self._standard(self.family.series(counts[None]))[0]
        if counts[0] < self.settings.rows_min:
            z = np.full_like(z, np.nan)
        share = float(errors.mean()) if len(errors) else np.nan
        values = np.concatenate([np.tile(z, len(self.settings.detectors)), np.full(len(self.watches), share)])
        values = values[: len(self.watches)]
        strength = np.zeros(len(self.watches))
        for i, detector in enumerate(self.detectors):
            if detector is not None:
                seen = errors if detector.kind.errors else values[i : i + 1]
                strength[i] = len(detector.update(seen)) > 0
        return strength, values

    def state(self) -> Arrays:
        """``sensitivity`` (m,), NaN for no detector, and the detectors' own as ``i/..``."""
        out: Arrays = {
            "sensitivity": np.array([np.nan if d is None else d.sensitivity for d in self.detectors], np.float64)
        }
        for i, detector in enumerate(self.detectors):
            if detector is not None:
                out |= prefixed(f"{i}/", detector.state())
        return out

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """The reverse of `state`."""
        sensitivity = arrays["sensitivity"].tolist()
        if sensitivity:
            self._make([None if s != s else s for s in sensitivity])
        for i, detector in enumerate(self.detectors):
            if detector is not None:
                detector.restore(under(f"{i}/", arrays))
