"""Alarm budgets: how far a statistic may go before it is an alarm, so that a world that does not change gives few.

The budget, a number of alerts per month over all watches, is divided by the watches and the periods of a month
(Bonferroni): the chance p that one watch may pass its limit in one period. The reference is replayed, window by window,
each against the rest of it, and the limit is where a window like these passes with chance p, by Student's t: the
spread of few windows is itself uncertain, and a normal tail would be far too narrow. Distances are taken as their
logarithm, which is nearly normal, and their spread is at least what is usual among their kind. A change that is too
small to matter is none, however certain: each watch has a floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.stats import t as student_t

from features.block import BoolArray, FloatArray, IntArray
from monitoring.settings import MonitorSettings

__all__ = ["Limits", "Watch", "calibrate", "chance_per_watch"]

#: below it a distance is none; the logarithm needs a positive number
_TINY = 1e-7
#: windows without a value in the reference beyond this share: the watch is left out
_NAN_SHARE_MAX = 0.25


@dataclass(frozen=True, slots=True)
class Watch:
    """One statistic of one subject. ``bad``: the direction that is an alarm. ``floor``: a value (``distance``) or a
    change (else) below which there is none; ``relative_floor``: the same as a share of the reference's value.
    ``then_rows``: of a distance from something else than the reference, how many rows that has."""

    kind: str
    subject: str
    measure: str
    bad: Literal["high", "low", "both"]
    floor: float
    distance: bool = False
    relative_floor: float = 0.0
    then_rows: int | None = None

    @property
    def power(self) -> float:
        """A distance shrinks with rows to the minus this: by chance alone a window of more is nearer."""
        return 0.5 if self.measure.startswith("ks") else 1.0


@dataclass(frozen=True)
class Limits:
    """Limits of m watches over windows of one length.

    ``center`` and ``limit`` (m,) float64: a value v is an alarm where its deviation from the center in the bad
    direction reaches the limit; both of logarithms for distances. ``rows`` (m,) rows of a reference window. A limit of
    inf: the reference cannot say (``chance``, the share of periods with a false alarm that each was set for).
    """

    watches: tuple[Watch, ...]
    center: FloatArray
    limit: FloatArray
    rows: float
    chance: float

    def strength(self, values: FloatArray, rows: int) -> FloatArray:
        """(m,) deviation over limit of ``values`` (m,), of a window of ``rows``: an alarm from 1 on. 0 where NaN.

        Distances of fewer rows than the reference's windows are larger by chance, rates scatter more: allowed for.
        """
        fewer = max(1.0, self.rows / max(rows, 1))
        distance, power, side = self._kinds
        with np.errstate(invalid="ignore"):
            deviation = np.where(distance, np.log(values + _TINY) - power * np.log(fewer), values) - self.center
        deviation = np.where(side == 0, np.abs(deviation), side * deviation)
        out: FloatArray = deviation / (self.limit * np.where(distance, 1.0, np.sqrt(fewer)))
        return np.fmax(out, 0.0)

    @cached_property
    def _kinds(self) -> tuple[BoolArray, FloatArray, FloatArray]:
        """(m,) whether a distance; the power of rows by which it shrinks; the sign of what is bad, 0 for both."""
        return (
            np.array([w.distance for w in self.watches], np.bool_),
            np.array([w.power for w in self.watches]),
            np.array([{"high": 1.0, "low": -1.0, "both": 0.0}[w.bad] for w in self.watches]),
        )

    def value_at_limit(self, i: int, value: float) -> float:
        """The value of watch i from which on it is an alarm, on the side of ``value`` where both sides are."""
        watch, center, limit = self.watches[i], self.center[i], self.limit[i]
        if watch.distance:
            return float(np.exp(center + limit))
        low = watch.bad == "low" or (watch.bad == "both" and value < center)
        return float(center - limit if low else center + limit)

    def expected(self, i: int) -> float:
        """What watch i usually is."""
        return float(np.exp(self.center[i]) if self.watches[i].distance else self.center[i])


def chance_per_watch(settings: MonitorSettings, watches: int) -> float:
    """The chance of a false alarm per period that each of ``watches`` may have."""
    return min(0.5, settings.false_alarms_per_30d * settings.months_per_period / max(watches, 1))


def calibrate(
    watches: Sequence[Watch],
    values_of: Callable[[IntArray, IntArray], FloatArray],
    periods: IntArray,
    rows: IntArray,
    window: int,
    chance: float,
) -> Limits:
    """Limits of ``watches`` for windows of ``window`` periods, by replaying the reference.

    ``periods`` (P, size) are its periods' counts and ``rows`` (P,) their rows. ``values_of(now, then)`` gives the
    watches' values of windows ``now`` (k, size) against ``then`` (k, size). The limit of a watch with ``then_rows`` is
    how far windows of a world like that of the reference are from so many rows of it.
    """
    p = len(periods)
    totals = np.concatenate([np.zeros((1, periods.shape[1]), np.int64), np.cumsum(periods, 0)])
    windows = totals[window:] - totals[:-window]
    values = values_of(windows, totals[-1] - windows)
    singles = values if window == 1 else values_of(periods, totals[-1] - periods)
    distance = np.array([w.distance for w in watches], np.bool_)
    absent = np.isnan(values).mean(0) > _NAN_SHARE_MAX
    with np.errstate(invalid="ignore"):
        y = np.where(distance, np.log(values + _TINY), values)
        y1 = np.where(distance, np.log(singles + _TINY), singles)
    center, spread = _moments(y, absent)
    # windows overlap, so few are independent: their spread is at least what independent periods would give
    if window > 1:
        single = _moments(y1, absent)[1]
        spread = np.maximum(spread, np.where(distance, spread, single / np.sqrt(window)))
    for measure in {w.measure for w in watches if w.distance}:
        of = np.array([w.distance and w.measure == measure for w in watches]) & ~absent
        if of.any():
            spread[of] = np.maximum(spread[of], np.median(spread[of]))
    usual, mine = float(rows.mean()) * window, float(rows.sum())
    for i, watch in enumerate(watches):
        if watch.then_rows:
            # replayed against the rest of the reference; what it will be held against has other rows
            ratio = (1 / usual + 1 / watch.then_rows) / (1 / usual + 1 / max(mine - usual, 1.0))
            center[i] += watch.power * np.log(ratio)
    quantile = np.where([w.bad == "both" for w in watches], *student_t.isf([chance / 2, chance], p - 1))
    limit = quantile * spread * np.sqrt(1 + window / p)
    for i, watch in enumerate(watches):
        if watch.distance:
            limit[i] = max(limit[i], np.log(max(watch.floor, _TINY)) - center[i])
        else:
            limit[i] = max(limit[i], watch.floor, watch.relative_floor * abs(center[i]), _TINY)
    limit[absent] = np.inf
    center[absent] = 0.0
    return Limits(tuple(watches), center, limit, usual, chance)


def _moments(y: FloatArray, absent: BoolArray) -> tuple[FloatArray, FloatArray]:
    """(m,) mean and standard deviation of the columns of ``y`` (k, m) without NaN; 0 where ``absent``."""
    known = np.where(absent | np.isnan(y).all(0), 0.0, y)
    center: FloatArray = np.nanmean(known, 0)
    spread = np.zeros(y.shape[1])
    several = np.count_nonzero(~np.isnan(known), 0) > 1  # of one value there is no deviation
    spread[several] = np.nanstd(known[:, several], 0, ddof=1)
    return center, np.nan_to_num(spread)
