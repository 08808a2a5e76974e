"""Calibrations: maps of raw scores that are plain data, monotone and refused when damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.calibrate import Calibration, default_calibration, fit_calibration, fit_isotonic, fit_platt
from models.errors import PackageError

RAW = np.array([-np.inf, -800.0, -1.0, 0.0, 1.0, 800.0, np.inf, np.nan])


def _labelled(rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    raw = rng.normal(size=rows) * 2
    return raw, (rng.random(rows) < 1 / (1 + np.exp(-(0.5 * raw - 1)))).astype(np.int8)


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration("identity"),
        Calibration("platt", a=0.7, b=-2.0, version=4),
        Calibration("isotonic", x=(-1.0, 0.0, 2.0), y=(0.0, 0.25, 1.0)),
    ],
)
def test_plain_data_and_monotone(calibration: Calibration) -> None:
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
    got = calibration.apply(RAW)
    assert np.isnan(got[-1])
    assert (got[:-2] <= got[1:-1]).all()
    if calibration.kind != "identity":
        assert got[0] >= 0.0 and got[-2] <= 1.0


def test_defaults_follow_the_objective() -> None:
    assert default_calibration("binary sigmoid:2") == Calibration("platt", a=2.0)
    assert default_calibration("cross_entropy") == Calibration("platt")
    assert default_calibration("regression") == default_calibration("") == Calibration("identity")
    assert default_calibration("binary sigmoid:1").apply(np.zeros(1))[0] == 0.5


def test_platt_finds_the_map() -> None:
    fitted = fit_platt(*_labelled())
    assert fitted.a == pytest.approx(0.5, abs=0.03) and fitted.b == pytest.approx(-1.0, abs=0.05)


def test_isotonic_finds_the_map() -> None:
    raw = np.linspace(-3, 3, 7)
    got = fit_isotonic(*_labelled()).apply(raw)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-(0.5 * raw - 1))), atol=0.05)


def test_a_model_that_ranks_the_wrong_way_round_is_refused() -> None:
    raw, y = _labelled(2000)
    with pytest.raises(PackageError, match=r"of the 2000 rows of its fold, .*no better than chance"):
        fit_platt(-raw, y)


def test_methods() -> None:
    raw, y = _labelled(2000)
    assert fit_calibration("platt", raw, y) == fit_platt(raw, y)
    assert fit_calibration("isotonic", raw, y) == fit_isotonic(raw, y)
    assert fit_calibration("none", raw, y) == default_calibration("binary")


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_refused(fit: object, label: int) -> None:
    with pytest.raises(PackageError, match="5 rows of one class"):
        fit(np.arange(5.0), np.full(5, label))  # type: ignore[operator]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "beta"},
        {"kind": "platt", "a": 0.0},
        {"kind": "platt", "a": "x"},
        {"kind": "platt", "b": float("nan")},
        {"kind": "isotonic"},
        {"kind": "isotonic", "x": [0.0, 0.0], "y": [0.0, 1.0]},
        {"kind": "isotonic", "x": [0.0, 1.0], "y": [1.0, 0.0]},
        {"kind": "isotonic", "x": [0.0, 1.0], "y": [1.0]},
    ],
)
def test_damaged_parameters_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(PackageError, match="calibration"):
        Calibration.from_json(data)
