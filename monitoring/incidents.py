"""One cause, one alert: hysteresis and grouping of the watches that are beyond their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features.arrays import Arrays, check_like
from features.block import FloatArray, IntArray

__all__ = ["Incidents"]


class Incidents:
    """Which of m watches are part of an incident.

    A watch that reaches its limit joins the incident of its subject, else the last one, if that grew within ``span``
    periods (a slow window sees the same cause later), else it opens a new one: only that is an alert. It leaves after
    ``quiet_periods`` periods in a row below ``release`` of its limit; so what stays changed is said once.
    """

    def __init__(self, subjects: Sequence[str], span: int, release: float, quiet_periods: int) -> None:
        self.span, self.release, self.quiet_periods = span, release, quiet_periods
        self._subject = np.unique(np.array(subjects, np.str_), return_inverse=True)[1]
        self.member = np.zeros(len(subjects), np.int64)
        self._quiet = np.zeros(len(subjects), np.int64)
        #: how many there were, and the period in which the last one grew
        self._last = np.array([0, np.iinfo(np.int64).min // 2], np.int64)

    @property
    def count(self) -> int:
        """How many incidents there were."""
        return int(self._last[0])

    def step(self, period: int, strength: FloatArray) -> IntArray:
        """Takes the strengths (m,) of a period; the watches that open a new incident (none: nothing to say)."""
        inside = self.member > 0
        self._quiet = np.where(inside & (strength < self.release), self._quiet + 1, 0)
        self.member[self._quiet >= self.quiet_periods] = 0
        crossing = (strength >= 1) & (self.member == 0)
        none = np.zeros(0, np.int64)
        if not crossing.any():
            return none
        of_subject = np.zeros(self._subject.max() + 1, np.int64)
        np.maximum.at(of_subject, self._subject, self.member)
        joins = of_subject[self._subject]
        recent = period - self._last[1] <= self.span
        opens = crossing & (joins == 0)
        self._last[1] = period if opens.any() else self._last[1]
        if opens.any() and not recent:
            self._last[0] += 1
        self.member = np.where(crossing, np.where(joins > 0, joins, self._last[0]), self.member)
        self._quiet[crossing] = 0
        return none if recent else np.flatnonzero(opens)

    def state(self) -> Arrays:
        """``member`` and ``quiet`` (m,), ``last`` (2,)."""
        return {"member": self.member.copy(), "quiet": self._quiet.copy(), "last": self._last.copy()}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """The reverse of `state`."""
        check_like(arrays, self.state(), "incidents")
        self.member, self._quiet, self._last = (arrays[name].copy() for name in ("member", "quiet", "last"))
