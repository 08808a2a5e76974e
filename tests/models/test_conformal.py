"""Conformal sets hold the true label as often as they say, class by class."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from models.conformal import FRAUD, LEGITIMATE, Conformal, carried_over, coverage, fit_conformal
from models.errors import PackageError


def _drawn(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.1).astype(np.int8)
    return rng.normal(size=rows) + 2 * y, y


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_coverage_of_each_class_is_what_was_asked_for(alpha: float) -> None:
    """Mean over folds: the coverage of one fold of so few frauds varies."""
    covered = {"fraud": [], "legitimate": []}
    for seed in range(60):
        conformal = fit_conformal(*_drawn(seed, 800), alpha)
        found = coverage(conformal, *_drawn(1000 + seed, 2000), np.arange(2000))
        for name, values in covered.items():
            values.append(found[name]["coverage"])
    for name, values in covered.items():
        assert 1 - alpha - 0.01 < np.mean(values) < 1 - alpha + 0.03, name


def test_a_better_model_leaves_less_open() -> None:
    raw, y = _drawn(0, 5000)
    good, poor = (
        coverage(fit_conformal(scale * y + raw, y), scale * y + raw, y, np.arange(5000))["sets"]
        for scale in (1.0, -1.5)
    )
    assert good["both"] < poor["both"]
    assert sum(good.values()) == pytest.approx(1.0)


def test_sets() -> None:
    conformal = Conformal(0.1, fraud_from=-1.0, legitimate_to=2.0)
    both = LEGITIMATE | FRAUD
    got = conformal.sets(np.array([-np.inf, -1.5, -1.0, 0.0, 2.0, 2.5, np.inf, np.nan]))
    assert got.tolist() == [LEGITIMATE, LEGITIMATE, both, both, both, FRAUD, FRAUD, both]
    sharp = Conformal(0.3, fraud_from=2.0, legitimate_to=1.0)
    assert sharp.sets(np.array([0.0, 1.5, 3.0])).tolist() == [LEGITIMATE, 0, FRAUD]


def test_rank_of_the_threshold() -> None:
    """Of nine rows of a class and 0.9 the worst decides, of eight none may be left out."""
    raw = np.arange(18.0)
    y = np.array([0] * 9 + [1] * 9)
    assert fit_conformal(raw, y, 0.1) == Conformal(0.1, fraud_from=9.0, legitimate_to=8.0)
    assert fit_conformal(raw, y, 0.2) == Conformal(0.2, fraud_from=10.0, legitimate_to=7.0)
    few = fit_conformal(raw[1:17], y[1:17], 0.1)
    assert few.fraud_from == -math.inf and few.legitimate_to == math.inf
    assert set(few.sets(raw).tolist()) == {LEGITIMATE | FRAUD}


@pytest.mark.parametrize("conformal", [Conformal(0.1, -1.5, 2.25), Conformal(0.2, -math.inf, math.inf)])
def test_plain_data(conformal: Conformal) -> None:
    text = json.dumps(conformal.to_json() | {"measured": {}}, allow_nan=False)
    assert Conformal.from_json(json.loads(text)) == conformal


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"alpha": 0.1, "fraud_from": 0.0},
        {"alpha": 0.0, "fraud_from": 0.0, "legitimate_to": 0.0},
        {"alpha": 0.1, "fraud_from": "x", "legitimate_to": 0.0},
        {"alpha": 0.1, "fraud_from": math.nan, "legitimate_to": 0.0},
        {"alpha": [], "fraud_from": 0.0, "legitimate_to": 0.0},
    ],
)
def test_damaged_data_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(PackageError, match="conformal"):
        Conformal.from_json(data)


def test_without_rows_of_a_class_there_is_no_coverage() -> None:
    found = coverage(Conformal(0.1, 0.0, 0.0), np.array([1.0, -1.0]), np.array([0, 0]), np.array([0, 1]))
    assert found["fraud"] == {"rows": 0, "coverage": None, "low": 0.0, "high": 1.0}
    assert found["legitimate"]["coverage"] == 0.5


def test_rows_that_say_the_same_count_once() -> None:
    """The interval of rows in hundreds of equal ones is that of one row of each."""
    raw, y = _drawn(3, 3000)
    conformal = fit_conformal(raw, y)
    once = coverage(conformal, raw, y, np.arange(3000))
    many = coverage(conformal, np.repeat(raw, 100), np.repeat(y, 100), np.repeat(np.arange(3000), 100))
    alone = coverage(conformal, np.repeat(raw, 100), np.repeat(y, 100), np.arange(300_000))
    for name in ("fraud", "legitimate"):
        for end in ("low", "high", "coverage"):
            assert many[name][end] == pytest.approx(once[name][end])
        assert alone[name]["high"] - alone[name]["low"] < 0.15 * (many[name]["high"] - many[name]["low"])


def test_thresholds_are_carried_over_by_rank() -> None:
    """To a model that says the same on another scale, exactly but for the rows' own steps."""
    raw, y = _drawn(5, 5000)
    conformal = fit_conformal(raw, y)
    carried = carried_over(conformal, raw, np.exp(raw) - 7)
    assert carried == Conformal(0.1, np.exp(conformal.fraud_from) - 7, np.exp(conformal.legitimate_to) - 7)
    assert (carried.sets(np.exp(raw) - 7) == conformal.sets(raw)).all()
    open_ended = Conformal(0.1, -math.inf, math.inf)
    assert carried_over(open_ended, raw, raw) == open_ended
    extreme = Conformal(0.1, fraud_from=float(raw.max()), legitimate_to=float(raw.min()))
    assert carried_over(extreme, raw, raw) == extreme


def test_rows_of_few_cards_leave_the_interval_wide() -> None:
    conformal, rows = fit_conformal(*_drawn(0, 2000), 0.1), 300
    raw, y = np.full(rows, 100.0), np.ones(rows, np.int8)
    widths = []
    for cards in (1, 3, rows):
        found = coverage(conformal, raw, y, np.arange(rows) % cards)["fraud"]
        assert found["coverage"] == 1.0 and found["high"] == pytest.approx(1.0)
        widths.append(1.0 - found["low"])
    assert widths[0] > widths[1] > 0.4 and widths[2] < 0.02
