"""Budgets are held where nothing changes; one cause is one alert."""

from __future__ import annotations

import numpy as np
import pytest

from features.block import FloatArray, IntArray
from monitoring.budget import Watch, calibrate, chance_per_watch
from monitoring.drift import distances
from monitoring.incidents import Incidents
from tests.monitoring.rows import SETTINGS


def values_of(now: IntArray, then: IntArray) -> FloatArray:
    """PSI, and the share of the first of ten bins."""
    return np.stack([distances(now, then)[:, 0], now[:, 0] / now.sum(1), np.full(len(now), np.nan)], 1)


WATCHES = (
    Watch("input_drift", "x", "psi", "high", 1e-6, True),
    Watch("missing_rate", "x", "missing_rate", "both", 0.0),
    Watch("input_drift", "y", "psi", "high", 0.0, True),
)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("chance", [0.01, 0.001])
def test_the_chance_of_a_false_alarm_is_at_most_what_was_set(window: int, chance: float) -> None:
    rng = np.random.default_rng(0)
    share = np.full(10, 0.1)
    alarms, judged = np.zeros(2), 0
    for _ in range(60):
        periods = rng.multinomial(1000, share, 28)
        limits = calibrate(WATCHES, values_of, periods, periods.sum(1), window, chance)
        for now in rng.multinomial(1000 * window, share, 60):
            strength = limits.strength(values_of(now[None], periods.sum(0)[None])[0], 1000 * window)
            alarms += strength[:2] >= 1
            judged += 1
            assert strength[2] == 0  # never had a value
    # 3600 windows; by chance 36 or 3.6, with room for luck
    assert (alarms <= judged * chance + 4 * np.sqrt(judged * chance)).all()
    assert limits.chance == chance


def test_limits_still_hear_a_change_and_floors_do_not_hear_a_small_one() -> None:
    rng = np.random.default_rng(0)
    periods = rng.multinomial(1000, np.full(10, 0.1), 28)
    changed = rng.multinomial(1000, np.array([0.2, *[0.8 / 9] * 9]))
    limits = calibrate(WATCHES, values_of, periods, periods.sum(1), 1, 1e-4)
    values = values_of(changed[None], periods.sum(0)[None])[0]
    assert (limits.strength(values, 1000)[:2] >= 1).all()
    assert limits.expected(0) < limits.value_at_limit(0, values[0]) < values[0]
    high = (Watch("input_drift", "x", "psi", "high", 0.5, True), Watch("m", "x", "r", "both", 0.5), WATCHES[2])
    limits = calibrate(high, values_of, periods, periods.sum(1), 1, 1e-4)
    assert limits.value_at_limit(0, values[0]) == pytest.approx(0.5)
    low, usual, high_ = limits.value_at_limit(1, -1e9), limits.expected(1), limits.value_at_limit(1, 1e9)
    assert low < usual < high_, "a watch of both sides says the limit that was passed"
    assert (limits.strength(values, 1000) < 1).all()


def test_fewer_rows_scatter_more_and_are_allowed_to() -> None:
    rng = np.random.default_rng(0)
    periods = rng.multinomial(10_000, np.full(10, 0.1), 28)
    limits = calibrate(WATCHES, values_of, periods, periods.sum(1), 1, 1e-3)
    few = rng.multinomial(300, np.full(10, 0.1), 300)
    alarms = [limits.strength(values_of(now[None], periods.sum(0)[None])[0], 300)[:2] >= 1 for now in few]
    assert np.sum(alarms) <= 3


def test_the_budget_is_divided_by_watches_and_periods() -> None:
    # one alert in 30 periods, over 100 watches
    assert chance_per_watch(SETTINGS, 100) == pytest.approx(1 / 3000)


def test_an_incident_opens_once_and_groups_what_follows() -> None:
    incidents = Incidents(["a", "a", "b"], span=3, release=0.7, quiet_periods=2)
    steps = [[2, 0, 0], [2, 2, 0], [2, 2, 2], [2, 2, 2], [0.8, 0.8, 0.8], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1]]
    opened = [incidents.step(p, np.array(s, np.float64)).tolist() for p, s in enumerate(steps)]
    assert opened == [[0], [], [], [], [], [], []]
    assert incidents.count == 1 and incidents.member.tolist() == [0, 0, 0]
    assert incidents.step(20, np.array([0, 0, 1.0])).tolist() == [2]
    assert incidents.count == 2


def test_hysteresis_and_later_causes() -> None:
    incidents = Incidents(["a", "b"], span=2, release=0.7, quiet_periods=2)
    assert incidents.step(0, np.array([1.2, 0])).tolist() == [0]
    # up and down around the limit is one incident
    for p, strength in enumerate([0.9, 1.1, 0.6, 1.3, 0.8, 1.0], 1):
        assert incidents.step(p, np.array([strength, 0])).tolist() == []
    # another subject, long after: another cause, though the first still stands
    assert incidents.step(10, np.array([1.5, 1.5])).tolist() == [1]
    again = Incidents(["a", "b"], span=2, release=0.7, quiet_periods=2)
    again.restore(incidents.state())
    assert again.member.tolist() == [1, 2] and again.count == 2


def test_what_single_periods_know_once_has_a_limit_by_its_windows() -> None:
    """A metric that is known of windows only: of one value there is no deviation, and no warning."""

    def known_once(now: IntArray, then: IntArray) -> FloatArray:
        values = values_of(now, then)
        if len(now) == 28:
            values[1:, 1] = np.nan
        return values

    periods = np.random.default_rng(0).multinomial(1000, np.full(10, 0.1), 28)
    limits = calibrate(WATCHES, known_once, periods, periods.sum(1), 4, 1e-3)
    assert 0.0 < limits.limit[1] < 0.2
