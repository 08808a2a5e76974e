"""Weighted metrics against scikit-learn and naive ones, intervals, calibration tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from models.intervals import difference_noise, metric_intervals
from models.metrics import CardDays, Ranked, calibration_table, card_precision, evaluate, wilson

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=40)


@given(rows=ROWS)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_weighted_ranking_is_scikit_learns(rows: list[tuple[int, int, int]]) -> None:
    score, y, weight = np.array(rows, np.float64).T
    ranked = Ranked(y, score)
    frauds, all_rows = float(weight @ y), float(weight.sum())
    if frauds == 0:
        assert np.isnan(ranked.average_precision(weight)) and np.isnan(ranked.auc(weight))
        return
    assert ranked.average_precision(weight) == pytest.approx(average_precision_score(y, score, sample_weight=weight))
    if frauds < all_rows:
        assert ranked.auc(weight) == pytest.approx(roc_auc_score(y, score, sample_weight=weight))
    else:
        assert np.isnan(ranked.auc(weight))


def _scored(rows: int = 3000, cards: int = 400) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(4)
    y = (rng.random(rows) < 0.1).astype(np.int64)
    raw = rng.normal(size=rows) + 1.5 * y - 3
    return raw, 1 / (1 + np.exp(-raw)), y, rng.integers(0, 6, rows), rng.integers(0, cards, rows)


def test_figures_are_scikit_learns() -> None:
    raw, p, y, day, card = _scored()
    p[:2] = [0.0, 1.0]
    found = evaluate(raw, p, y, day, card)
    assert found["rows"] == 3000 and found["frauds"] == y.sum()
    assert found["auc"] == pytest.approx(roc_auc_score(y, raw))
    assert found["average_precision"] == pytest.approx(average_precision_score(y, raw))
    assert found["log_loss"] == pytest.approx(log_loss(y, p))
    assert found["brier"] == pytest.approx(brier_score_loss(y, p))


@given(rows=ROWS, weight=st.lists(st.integers(0, 3), min_size=6, max_size=6), top=st.integers(1, 4))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_card_of_weight_two_is_two_cards(rows: list[tuple[int, int, int]], weight: list[int], top: int) -> None:
    card, y, day = np.array(rows, np.int64).T
    score = ((card * 7 + day * 3) % 5).astype(np.float64)
    days = CardDays(score, y, day, card)
    of_card = np.array(weight, np.float64)[np.unique(card)]
    # copies are cards of their own, next to each other in the order of cards
    copies = np.array(weight)[card]
    number = np.concatenate([10 * card[copies > k] + k for k in range(3)])
    score, y, day = (np.concatenate([v[copies > k] for k in range(3)]) for v in (score, y, day))
    if len(number) == 0 or len(np.unique(day)) < len(np.unique(np.array(rows)[:, 2])):
        return
    assert days.precision(of_card, top) == pytest.approx(card_precision(score, y, day, number, top))


def test_intervals_hold_the_figures_and_are_those_of_the_seed() -> None:
    raw, p, y, day, card = _scored()
    found = metric_intervals(raw, p, y, day, card, resamples=120, seed=3)
    assert found == metric_intervals(raw, p, y, day, card, resamples=120, seed=3)
    assert found["auc"] != metric_intervals(raw, p, y, day, card, resamples=120, seed=4)["auc"]
    assert (found["by"], found["resamples"], found["confidence"], found["seed"]) == ("card", 120, 0.95, 3)
    for name, value in evaluate(raw, p, y, day, card).items():
        if name not in ("rows", "frauds"):
            assert found[name]["low"] < value < found[name]["high"], name
            assert found[name]["deviation"] > 0


def test_intervals_are_as_wide_as_the_noise_is() -> None:
    """Of independent rows the deviation of a mean is known: here each card is a row."""
    rng = np.random.default_rng(0)
    n = 1500
    y = (rng.random(n) < 0.2).astype(np.int64)
    p = np.full(n, 0.2)
    found = metric_intervals(rng.normal(size=n), p, y, np.zeros(n, np.int64), np.arange(n), resamples=250)
    assert found["brier"]["deviation"] == pytest.approx(np.std((p - y) ** 2) / np.sqrt(n), rel=0.2)
    # cards of ten equal rows: as if there were a tenth of them
    ten = [np.repeat(v, 10) for v in (p, y)]
    card = np.repeat(np.arange(n), 10)
    wide = metric_intervals(rng.normal(size=10 * n), *ten, np.zeros(10 * n, np.int64), card, resamples=250)
    assert wide["brier"]["deviation"] == pytest.approx(found["brier"]["deviation"], rel=0.2)


def test_noise_of_a_difference() -> None:
    raw, _, y, _, card = _scored()
    worse = raw + np.random.default_rng(1).normal(size=len(raw))
    assert difference_noise(y, raw, raw, card) == 0.0
    assert 0.001 < difference_noise(y, raw, worse, card) < 0.1
    assert difference_noise(y, raw, worse, card, seed=1) == difference_noise(y, raw, worse, card, seed=1)


def test_calibration_table() -> None:
    p = np.array([0.0, 0.0005, 0.001, 0.3, 0.4, 1.0])
    y = np.array([0, 0, 1, 0, 1, 1])
    table = calibration_table(p, y)
    bins = [(row["from"], row["to"], row["rows"], row["frauds"], row["share"]) for row in table]
    assert bins == [(0.0, 0.001, 2, 0, 0.0), (0.001, 0.002, 1, 1, 1.0), (0.2, 0.5, 2, 1, 0.5), (0.95, 1.0, 1, 1, 1.0)]
    assert table[2]["probability"] == pytest.approx(0.35)
    assert all(row["low"] <= row["share"] <= row["high"] for row in table)
    assert calibration_table(p[:0], y[:0]) == []


def test_wilson_is_the_textbooks() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(1, 10)
    assert (low, high) == (pytest.approx(0.0179, abs=1e-4), pytest.approx(0.4042, abs=1e-4))
    assert wilson(0, 50)[0] == 0.0 and wilson(50, 50)[1] == 1.0
