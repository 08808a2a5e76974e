"""The online calibration: what it learns, that its state is all it knows, and the gate that it must pass."""

from __future__ import annotations

import numpy as np
import pytest

from models.calibrate import Calibration
from models.errors import ModelError
from models.metrics import log_losses
from models.online import Gate, OnlineCalibrator


def raw_and_labels(n: int, a: float, b: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    raw = rng.normal(-4.0, 1.5, n)
    return raw, (rng.random(n) < 1 / (1 + np.exp(-(a * raw + b)))).astype(np.int64)


def test_it_learns_a_shift_of_the_level() -> None:
    raw, y = raw_and_labels(20_000, 1.0, 1.5, 1)
    learner = OnlineCalibrator.of(Calibration("platt"))
    learner.update(raw, y)
    learned = learner.calibration(2)
    assert learned is not None and learned.version == 2
    fresh, label = raw_and_labels(20_000, 1.0, 1.5, 2)
    assert learned.apply(fresh).mean() == pytest.approx(label.mean(), rel=0.15)
    assert Calibration("platt").apply(fresh).mean() < 0.5 * label.mean()


def test_each_row_is_predicted_before_it_is_learned() -> None:
    raw, y = raw_and_labels(50, 1.0, 0.0, 1)
    calibration = Calibration("platt", a=0.8, b=0.3)
    learner = OnlineCalibrator.of(calibration)
    first = learner.update(raw, y)[0]
    assert first == pytest.approx(calibration.apply(raw)[0])
    # the last label cannot have been known to any prediction
    other = OnlineCalibrator.of(calibration)
    assert (other.update(raw, np.r_[y[:-1], 1 - y[-1]]) == OnlineCalibrator.of(calibration).update(raw, y)).all()
    assert (other.state() != learner.state()).any()


@pytest.mark.parametrize("cut", [0, 1, 7, 99, 100])
def test_the_state_is_all_that_it_knows(cut: int) -> None:
    raw, y = raw_and_labels(100, 1.2, 0.5, 3)
    whole = OnlineCalibrator.of(Calibration("platt"))
    expected = whole.update(raw, y)
    first = OnlineCalibrator.of(Calibration("platt"))
    got = [first.update(raw[:cut], y[:cut])]
    second = OnlineCalibrator.from_state(first.state().tolist())
    got.append(second.update(raw[cut:], y[cut:]))
    assert (np.concatenate(got) == expected).all() and (second.state() == whole.state()).all()


def test_what_would_reverse_the_ranking_is_no_calibration() -> None:
    assert OnlineCalibrator(-0.1, -3.0).calibration(2) is None
    for state in ([1.0, 2.0], [1.0, float("nan"), 3.0]):
        with pytest.raises(ModelError, match="online calibration"):
            OnlineCalibrator.from_state(state)


def test_the_gate_lets_through_what_is_better_and_hardly_ever_what_is_not() -> None:
    passed = 0
    for seed in range(60):
        gate, better = Gate(), Gate()
        for k in range(20):
            raw, y = raw_and_labels(200, 1.0, 0.0, 1000 * seed + k)
            base = log_losses(y.astype(np.float64), Calibration("platt").apply(raw))
            noise = np.random.default_rng(k).normal(0, 0.05)
            gate = gate.add(base, log_losses(y.astype(np.float64), Calibration("platt", b=noise).apply(raw)))
            raw, y = raw_and_labels(200, 1.0, 2.0, 1000 * seed + k)
            better = better.add(
                log_losses(y.astype(np.float64), Calibration("platt").apply(raw)),
                log_losses(y.astype(np.float64), Calibration("platt", b=2.0).apply(raw)),
            )
        passed += gate.passed(0.95, 0.0)
        assert better.passed(0.99, 0.01) and not better.passed(0.99, 0.99)
    assert passed <= 6


def test_of_few_rounds_no_more_pass_by_chance_than_asked_for() -> None:
    gains = np.random.default_rng(1).normal(size=(4000, 8))
    sums = zip(gains.sum(1).tolist(), (gains**2).sum(1).tolist(), strict=True)
    passed = np.mean([Gate(8, 800, gain, squares, 1.0).passed(0.95, 0.0) for gain, squares in sums])
    assert 0.018 < passed < 0.032  # 2.5% of an interval of 95%; by normal quantiles 4.5%


def test_a_few_rounds_say_nothing() -> None:
    gate = Gate()
    for _ in range(7):
        gate = gate.add(np.array([1.0, 2.0]), np.array([0.5, 0.5]))
    assert gate.figures(0.95)["gain"] is None and not gate.passed(0.5, 0.0)
    assert gate.add(np.empty(0), np.empty(0)) == gate
