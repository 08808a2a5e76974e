"""Closed periods -> findings: learns the reference, sets the limits, and holds each further period against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.arrays import Arrays, check_like, prefixed, under
from features.block import BoolArray, FloatArray, IntArray
from monitoring.budget import Limits, Watch, calibrate
from monitoring.family import Family
from monitoring.incidents import Incidents
from monitoring.panel import Panel
from monitoring.settings import MonitorSettings

__all__ = ["Finding", "Track"]

#: closed periods that are kept, to find since when
_HISTORY = 64
_NO_ERRORS = np.zeros(0)


@dataclass(frozen=True, slots=True)
class Finding:
    """An incident that opens with ``period``: strengths and values of all watches (m,), by falling strength those that
    opened it; ``windows`` (m,) their lengths in periods, 0 for detectors."""

    period: int
    opened: IntArray
    strength: FloatArray
    values: FloatArray
    watches: tuple[Watch, ...]
    windows: IntArray


class Track:
    """One half's closed periods. ``chance``: of a false alarm, per watch and period. ``reference`` (P, size) counts of
    the periods that all others are held against; None: the first ones are."""

    def __init__(self, settings: MonitorSettings, family: Family, chance: float, reference: IntArray | None) -> None:
        self.settings, self.family, self.chance = settings, family, chance
        self.panel = Panel(settings, family)
        self.watches = (*(w for _ in settings.windows for w in family.watches), *self.panel.watches)
        windows = [w for w in settings.windows for _ in family.watches]
        self.windows = np.array([*windows, *(0 for _ in self.panel.watches)], np.int64)
        self.incidents = Incidents(
            [w.subject for w in self.watches], settings.windows[-1] + 1, settings.release, settings.quiet_periods
        )
        self.reference = np.zeros((0, family.size), np.int64) if reference is None else reference
        self.learning = reference is None
        self.limits: list[Limits] = []
        #: of the newest period judged, by watch
        self.strength = np.zeros(len(self.watches))
        #: closed periods, the newest last, (k,) number, (k, 2) first and last event time, (k, size) counts
        self.period = np.zeros(0, np.int64)
        self.times = np.zeros((0, 2), np.int64)
        self.counts = np.zeros((0, family.size), np.int64)
        #: periods closed, and periods held against the reference
        self.closed = self.judged = 0
        if not self.learning:
            self._set_limits()
            self.panel.calibrate(self.reference, chance)

    def close(self, period: int, counts: IntArray, times: IntArray, errors: FloatArray = _NO_ERRORS) -> Finding | None:
        """Takes the next period that is complete: its counts (size,), first and last event time (2,), and the errors of
        its first rows (k,) 0 or 1."""
        self.closed += 1
        self.period = np.append(self.period, period)[-_HISTORY:]
        self.times = np.concatenate([self.times, times[None]])[-_HISTORY:]
        self.counts = np.concatenate([self.counts, counts[None]])[-_HISTORY:]
        if self.learning:
            self._learn(counts, times)
            return None
        self.judged += 1
        strength, values = self._judge(period, counts, errors)
        self.strength = strength
        opened = self.incidents.step(period, strength)
        if len(opened) == 0:
            return None
        opened = opened[np.argsort(-strength[opened], kind="stable")]
        return Finding(period, opened, strength, values, self.watches, self.windows)

    def _learn(self, counts: IntArray, times: IntArray) -> None:
        settings = self.settings
        # by event time, the first period began before the first row
        whole = settings.period_rows is not None or self.closed > 1
        begun = settings.start_ms is None or times[0] >= settings.start_ms
        if whole and begun and counts[0] >= settings.rows_min:
            self.reference = np.concatenate([self.reference, counts[None]])
        if len(self.reference) == settings.reference_periods:
            self.learning = False
            self._set_limits()
            self.panel.calibrate(self.reference, self.chance)

    def _set_limits(self) -> None:
        """All that follows from the reference, but for the detectors' sensitivities, which take longer to find."""
        rows = self.reference[:, 0]
        self.limits = [
            calibrate(self.family.watches, self.family.values, self.reference, rows, window, self.chance)
            for window in self.settings.windows
        ]
        self.panel.use(self.reference)

    def _judge(self, period: int, counts: IntArray, errors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(strength, value) of all watches (m,), of the windows that end with ``period``."""
        strengths, values = [], []
        for window, limits in zip(self.settings.windows, self.limits, strict=True):
            now = self.counts[self.period > period - window].sum(0)
            rows = int(now[0])
            if rows < self.settings.rows_min:
                strengths.append(np.zeros(len(limits.watches)))
                values.append(np.full(len(limits.watches), np.nan))
                continue
            values.append(self.family.values(now[None], self.then)[0])
            strengths.append(limits.strength(values[-1], rows))
        heard, seen = self.panel.step(counts, errors)
        return np.concatenate([*strengths, heard]), np.concatenate([*values, seen])

    @property
    def then(self) -> IntArray:
        """(1, size) what windows are held against."""
        return self.family.against(self.reference.sum(0))[None]

    def limits_of(self, i: int, value: float) -> tuple[float, float]:
        """(threshold, expected value) of watch i of `watches`, which has this value; of a detector its sensitivity and
        0."""
        at, j = divmod(i, len(self.family.watches))
        if at < len(self.limits):
            return self.limits[at].value_at_limit(j, value), self.limits[at].expected(j)
        detector = self.panel.detectors[i - len(self.family.watches) * len(self.limits)]
        return np.nan if detector is None else detector.sensitivity, 0.0

    def left_out(self) -> BoolArray:
        """(m,) the watches of which the reference could not say what is usual."""
        out = [np.isinf(limits.limit) for limits in self.limits]
        return np.concatenate([*out, [detector is None for detector in self.panel.detectors]])

    def state(self) -> Arrays:
        """What `close` depends on: ``meta`` (3,) learning, closed, judged; ``reference``, ``period``, ``times``,
        ``counts``; ``incidents/..`` and ``panel/..``. Limits follow from the reference."""
        return {
            "meta": np.array([self.learning, self.closed, self.judged], np.int64),
            "reference": self.reference,
            "period": self.period,
            "times": self.times,
            "counts": self.counts,
            **prefixed("incidents/", self.incidents.state()),
            **prefixed("panel/", self.panel.state()),
        }

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """The reverse of `state`."""
        own = {name: array for name, array in arrays.items() if not name.startswith("panel/")}
        expected = {name: array for name, array in self.state().items() if not name.startswith("panel/")}
        check_like(own, expected, f"the monitor's {self.family.name} half")
        self.learning, self.reference = bool(arrays["meta"][0]), arrays["reference"].copy()
        if not self.learning:
            self._set_limits()
        self.closed, self.judged = (int(v) for v in arrays["meta"][1:])
        self.period, self.times, self.counts = (arrays[name].copy() for name in ("period", "times", "counts"))
        self.incidents.restore(under("incidents/", arrays))
        self.panel.restore(under("panel/", arrays))
