"""River's drift detectors behind one protocol, as plain data and within a budget.

A detector of River is an object that only grows; ours is defined by the values since its *anchor*: after ``2 * tail``
values River's object is made anew and fed with the last ``tail`` of them, alarms unsaid. So its state is these values,
an array of bounded length, restoring is replaying them, and what it says depends on nothing else: no pickle, no
private attribute of River.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from river import drift
from river.drift import binary

from features.arrays import Arrays, check_like
from features.block import FloatArray, IntArray
from monitoring.settings import MonitorError

__all__ = ["DETECTORS", "Detector", "Kind", "RiverDetector", "budgeted", "make"]


class Detector(Protocol):
    """What tells that a series of numbers has changed."""

    def update(self, values: FloatArray) -> IntArray:
        """Takes ``values`` (n,) float64, in order; positions in them (k,) int64, rising, at which it gave an alarm.
        How a series is cut into calls never shows."""
        ...

    def state(self) -> Arrays:
        """All that later alarms depend on, as plain arrays."""
        ...

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """The reverse of `state`, on a new detector with the same settings."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A detector of River: how it is made from its sensitivity, and the sensitivities, from most to least sensitive.
    ``bound``: its sensitivity bounds the chance of a false alarm per value, so that it can be set for chances that no
    replay is long enough to show. ``errors``: it takes errors, 0 or 1, and tells a rise of their rate; else numbers.
    ``tail`` as above."""

    make: Callable[[float], Any]
    grid: tuple[float, ...]
    default: float
    tail: int
    bound: bool = False
    errors: bool = False


#: parts of River have no types
_RIVER: Any = drift
_BINARY: Any = binary

_SMALL = tuple(10.0**-k for k in range(1, 13))

DETECTORS: dict[str, Kind] = {
    "adwin": Kind(lambda delta: _RIVER.ADWIN(delta=delta, clock=1, grace_period=5), _SMALL, 0.002, 2048, True),
    "page_hinkley": Kind(
        lambda t: _RIVER.PageHinkley(min_instances=5, delta=0.25, threshold=t, alpha=1.0),
        (4, 6, 8, 10, 12, 15, 18, 22, 27, 33, 40, 50, 65, 80, 100, 150, 200, 400),
        50.0,
        2048,
    ),
    "kswin": Kind(lambda a: _RIVER.KSWIN(alpha=a, window_size=100, stat_size=30, seed=1), _SMALL, 0.005, 200, True),
    "ddm": Kind(
        lambda t: _BINARY.DDM(drift_threshold=t), (2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10), 3.0, 8192, errors=True
    ),
    "eddm": Kind(lambda b: _BINARY.EDDM(beta=b), (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4), 0.9, 8192, errors=True),
    "hddm_a": Kind(lambda c: _BINARY.HDDMA(drift_confidence=c), _SMALL, 0.001, 8192, True, True),
    "hddm_w": Kind(lambda c: _BINARY.HDDMW(drift_confidence=c), _SMALL, 0.001, 8192, True, True),
}


class RiverDetector:
    """See the module and `Detector`. ``name`` of `DETECTORS`; ``sensitivity`` of its grid, default River's own.

    MonitorError: an unknown name, or, of a detector of errors, a value that is neither 0 nor 1. NaN is skipped.
    """

    def __init__(self, name: str, sensitivity: float | None = None) -> None:
        if name not in DETECTORS:
            raise MonitorError(f"detector: {name!r} is unknown; use one of {', '.join(DETECTORS)}")
        self.name = name
        self.kind = DETECTORS[name]
        self.sensitivity = self.kind.default if sensitivity is None else sensitivity
        self._river = self.kind.make(self.sensitivity)
        self._since: list[float] = []

    def update(self, values: FloatArray) -> IntArray:
        alarms = []
        for i, value in enumerate(values.tolist()):
            if value != value:
                continue
            if self.kind.errors and value not in (0.0, 1.0):
                raise MonitorError(f"{self.name}: {value} is no error, which is 0 or 1; use a detector of numbers")
            if self._step(value):
                alarms.append(i)
        return np.array(alarms, np.int64)

    def _step(self, value: float) -> bool:
        if len(self._since) == 2 * self.kind.tail:
            self._replay(self._since[-self.kind.tail :])
        self._since.append(value)
        return self._feed(value)

    def _feed(self, value: float) -> bool:
        # River's detectors of errors take truth values
        self._river.update(value == 1.0 if self.kind.errors else value)
        return bool(self._river.drift_detected)

    def _replay(self, values: list[float]) -> None:
        self._river = self.kind.make(self.sensitivity)
        self._since = list(values)
        for value in values:
            self._feed(value)

    def state(self) -> Arrays:
        """``since`` (k,) float64: the values since the anchor."""
        return {"since": np.array(self._since, np.float64)}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        check_like(arrays, self.state(), f"detector {self.name}")
        self._replay(arrays["since"].tolist())


def make(name: str, sensitivity: float | None = None) -> Detector:
    """A new detector, see `RiverDetector`."""
    return RiverDetector(name, sensitivity)


def budgeted(name: str, series: FloatArray, chance: float) -> float | None:
    """The most sensitive setting of detector ``name`` that gives on ``series`` (n,), in which nothing changes, no
    more alarms than ``chance`` per value allows; None: even the least sensitive gives more.

    Of detectors with a bound only sensitivities up to ``chance``. One step of the grid is added, since a series that is
    short of 1 / ``chance`` values proves little.
    """
    kind = DETECTORS[name]
    grid = tuple(s for s in kind.grid if s <= chance) or kind.grid[-1:] if kind.bound else kind.grid
    allowed = chance * len(series)

    def holds(sensitivity: float) -> bool:
        return len(RiverDetector(name, sensitivity).update(series)) <= allowed

    low, high = 0, len(grid)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(grid[middle]) else (middle + 1, high)
    return None if low == len(grid) else grid[min(low + 1, len(grid) - 1)]
