"""One suite for all detectors: they hear a change, say the same however they are fed, and come back from arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from features.plan import StateError
from monitoring.detectors import DETECTORS, RiverDetector, budgeted, make
from monitoring.settings import MonitorError

pytestmark = pytest.mark.parametrize("name", DETECTORS)


def series(name: str, n: int, at: int | None = None, seed: int = 0) -> Any:
    """(n,) errors or numbers, whose mean rises at ``at``."""
    rng = np.random.default_rng(seed)
    later = np.arange(n) >= (n if at is None else at)
    if DETECTORS[name].errors:
        return (rng.random(n) < np.where(later, 0.6, 0.1)).astype(np.float64)
    return rng.normal(size=n) + 3.0 * later


def test_hears_a_change_soon_after_it(name: str) -> None:
    alarms = make(name).update(series(name, 1200, at=600))
    assert any(600 <= position < 900 for position in alarms)


def test_cuts_never_show(name: str) -> None:
    values = series(name, 700, at=300)
    whole = make(name).update(values).tolist()
    assert whole
    for step in (1, 7, 299):
        detector = make(name)
        parts = [detector.update(values[i : i + step]) + i for i in range(0, len(values), step)]
        assert np.concatenate(parts).tolist() == whole


def test_a_restored_detector_goes_on(name: str) -> None:
    values = series(name, 900, at=500)
    whole = make(name).update(values).tolist()
    for cut in (0, 1, 450, 650):
        detector, again = make(name), make(name)
        first = detector.update(values[:cut]).tolist()
        again.restore(detector.state())
        assert [*first, *(again.update(values[cut:]) + cut).tolist()] == whole


def test_the_state_is_bounded_and_restoring_does_not_show_beyond_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = DETECTORS[name]
    short = type(kind)(kind.make, kind.grid, kind.default, 120, kind.bound, kind.errors)
    monkeypatch.setitem(DETECTORS, name, short)
    values = series(name, 1500, at=1000)
    whole = make(name).update(values).tolist()
    detector, heard = make(name), []
    for i in range(0, 1500, 50):
        heard += (detector.update(values[i : i + 50]) + i).tolist()
        arrays = detector.state()
        assert len(arrays["since"]) <= 240
        detector = make(name)
        detector.restore(arrays)
    assert heard == whole


def test_within_its_tail_it_is_river_s(name: str) -> None:
    values = series(name, 400, at=200)
    kind, expected = DETECTORS[name], []
    river = kind.make(kind.default)
    for i, value in enumerate(values.tolist()):
        river.update(bool(value) if kind.errors else value)
        if river.drift_detected:
            expected.append(i)
    assert make(name).update(values).tolist() == expected


def test_nan_is_skipped(name: str) -> None:
    values = series(name, 600, at=300)
    gaps = np.repeat(values, 2)
    gaps[1::2] = np.nan
    assert make(name).update(gaps).tolist() == (2 * make(name).update(values)).tolist()


def test_a_budget_is_held_and_still_hears(name: str) -> None:
    quiet = series(name, 400 if name == "kswin" else 3000, seed=1)
    sensitivity = budgeted(name, quiet, 1e-4)
    assert sensitivity is not None
    assert len(RiverDetector(name, sensitivity).update(quiet)) == 0
    # EDDM looks at all distances between errors since it began: it takes its time
    changed = np.concatenate([quiet, series(name, 6000 if name == "eddm" else 600, at=0, seed=3)])
    assert len(RiverDetector(name, sensitivity).update(changed)) > 0


def test_the_grid_runs_from_most_to_least_sensitive(name: str) -> None:
    noisy = series(name, 300 if name == "kswin" else 2000, at=150, seed=2)
    counts = [len(RiverDetector(name, s).update(noisy)) for s in (DETECTORS[name].grid[0], DETECTORS[name].grid[-1])]
    assert counts[0] >= counts[1]


def test_wrong_use_is_named(name: str) -> None:
    with pytest.raises(StateError):
        make(name).restore({"other": np.zeros(1)})
    with pytest.raises(MonitorError, match="unknown"):
        make(name + "x")
    if DETECTORS[name].errors:
        with pytest.raises(MonitorError, match="no error"):
            make(name).update(np.array([0.5]))


def test_always_firing_has_no_budget(name: str) -> None:
    if name in ("adwin", "page_hinkley"):
        jumps = np.repeat(np.tile([-10.0, 10.0], 20), 60)
        assert budgeted(name, jumps * 1000, 1e-4) is None
