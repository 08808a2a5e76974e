"""Counts, periods, distances and figures against oracles, SciPy and scikit-learn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from models.metrics import card_precision as card_precision_of_rows
from monitoring.bins import FINE, Bins, bin_of, count_labelled, count_matrix, count_scores, fine_probabilities
from monitoring.drift import distances, roc_auc
from monitoring.evidence import change_point
from monitoring.performance import LAYOUT, METRICS, card_precision, estimated, intervals, metrics
from monitoring.periods import LATE, Periods
from monitoring.settings import MonitorError
from tests.oracles import drift as oracle

VALUES = st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.0, -0.0, 1.0, 1.5, 2.0, 7.0, 1e300])


@given(rows=st.lists(st.tuples(VALUES, VALUES, st.integers(-1, 1)), max_size=40))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_counts_of_a_matrix(rows: list[tuple[float, float, int]]) -> None:
    x = np.array([row[:2] for row in rows], np.float64).reshape(-1, 2)
    slot = np.array([row[2] for row in rows], np.int64)
    bins = Bins(np.full((2, 15), np.nan), np.array([True, False]))
    bins.edges[0, :3], bins.edges[1, :15] = [0.0, 1.0, 2.0], np.arange(15) / 2
    counts, expected = np.zeros((2, 18), np.int64), np.zeros((2, 18), np.int64)
    count_matrix(x, slot, 0, bins.edges, bins.discrete, counts)
    for row, mine in zip(x.tolist(), slot.tolist(), strict=True):
        for j, value in enumerate(row):
            known = [e for e in bins.edges[j].tolist() if e == e] if j == 0 else bins.edges[j].tolist()
            if mine == 0:
                expected[j, oracle.bin_of(value, known, bool(bins.discrete[j]))] += 1
    np.testing.assert_array_equal(counts, expected)
    out = np.empty(len(x), np.int64)
    bin_of(np.ascontiguousarray(x[:, 0]), bins.edges[0], True, out)
    assert out.tolist() == [oracle.bin_of(v, [0.0, 1.0, 2.0], True) for v in x[:, 0].tolist()]


SCORES = st.one_of(st.floats(0, 1), st.sampled_from([np.nan, 0.0, 1.0, 0.5, 1e-300, 1 - 1e-16]))


@given(rows=st.lists(st.tuples(SCORES, st.integers(0, 1), st.integers(0, 1)), max_size=40))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_counts_of_scores_and_labels(rows: list[tuple[float, int, int]]) -> None:
    score = np.array([r[0] for r in rows], np.float64)
    label, slot = (np.array([r[i] for r in rows], np.int64) for i in (1, 2))
    head, fine = np.zeros(2, np.int64), np.zeros(FINE, np.int64)
    count_scores(score, slot, 1, 0.5, head, fine)
    mine = [r for r in rows if r[2] == 1]
    known = [r for r in mine if r[0] == r[0]]
    assert head.tolist() == [len(mine), sum(r[0] >= 0.5 for r in known)]
    assert fine.tolist() == np.bincount([oracle.fine_bin(r[0]) for r in known], minlength=FINE).tolist()

    head, both = np.zeros(8, np.int64), np.zeros((2, FINE), np.int64)
    count_labelled(score, label, slot, 1, 0.5, head, both)
    pairs = [(r[0] >= 0.5, r[1] == 1) for r in known]
    cells = [pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))]
    assert head[:5].tolist() == [len(known), sum(r[1] for r in known), *cells]
    np.testing.assert_array_equal(both.sum(0), fine)
    clipped = np.clip([r[0] for r in known], 1e-15, 1 - 1e-15)
    y = np.array([r[1] for r in known])
    losses = [-np.log(np.where(y == 1, clipped, 1 - clipped)), (clipped - y) ** 2, clipped]
    np.testing.assert_allclose(head[5:] / 2**24, [loss.sum() for loss in losses], atol=1e-6 * (len(known) + 1))


@given(
    rows=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    allowance=st.integers(0, 15),
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_periods_close_as_row_by_row(rows: list[tuple[int, int]], cuts: list[int], allowance: int) -> None:
    periods = Periods(7, allowance, by_rows=False)
    pending: dict[int, list[int]] = {}
    closed: list[tuple[int, list[int]]] = []
    ends = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    for a, b in pairwise(ends):
        times, clocks = (np.array(column, np.int64) for column in zip(*rows[a:b], strict=True))
        for run in periods.runs(times, clocks):
            closed += [(p, pending.pop(p)) for p in sorted(pending) if p < run.closed_to]
            for i, slot in enumerate(run.slot.tolist(), a + run.start):
                if slot != LATE:
                    pending.setdefault(slot, []).append(i)
    assert closed == oracle.closings(rows, 7, allowance)


@pytest.mark.parametrize("n", [1, 49, 50, 51, 500])
def test_periods_by_rows_are_full(n: int) -> None:
    periods, slots = Periods(50, 99, by_rows=True), []
    for start in range(0, n, 7):
        times = np.zeros(min(7, n - start), np.int64)
        slots += [s for run in periods.runs(times, times) for s in run.slot.tolist()]
    assert slots == [i // 50 for i in range(n)]
    assert periods.full() == n // 50


def test_distances_are_those_of_the_field() -> None:
    rng = np.random.default_rng(0)
    then = rng.integers(500, 1000, (4, 10))
    now = rng.integers(50_000, 100_000, (4, 10))
    far = distances(now, then)
    for i in range(4):
        q = (then[i] + 0.5) / (then[i].sum() + 5)
        p = (now[i] + 5 * q) / (now[i].sum() + 5)
        ks = np.abs(np.cumsum(p) - np.cumsum(q)).max()
        np.testing.assert_allclose(far[i], [oracle.psi(p.tolist(), q.tolist()), jensenshannon(p, q) ** 2, ks])
    np.testing.assert_allclose(distances(then, then), 0, atol=1e-4)


def test_bins_that_nobody_has_add_nothing() -> None:
    then, now = np.array([9_000, 1_000, 0, 0, 0, 0]), np.array([180, 20, 0, 0, 0, 0])
    assert distances(now, then)[0] < 0.01
    assert distances(np.array([150, 20, 30, 0, 0, 0]), then)[0] > 0.5


def rows_of_labels(n: int, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    score = 1 / (1 + np.exp(-rng.normal(-2, 2, n)))
    label = (rng.random(n) < score).astype(np.int64)
    counts = np.zeros(LAYOUT.size, np.int64)
    zero = np.zeros(n, np.int64)
    count_labelled(score, label, zero, 0, 0.5, LAYOUT.head(counts), LAYOUT.fine(counts))
    return score, label, counts


def test_figures_are_those_of_scikit_learn() -> None:
    score, label, counts = rows_of_labels(20_000)
    found = dict(zip(METRICS, metrics(counts[None])[0], strict=True))
    assert found["auc"] == pytest.approx(roc_auc_score(label, score), abs=2e-4)
    assert found["average_precision"] == pytest.approx(average_precision_score(label, score), abs=3e-3)
    assert found["log_loss"] == pytest.approx(log_loss(label, score), abs=1e-6)
    assert found["brier"] == pytest.approx(brier_score_loss(label, score), abs=1e-6)
    assert found["precision"] == pytest.approx(label[score >= 0.5].mean())
    assert found["recall"] == pytest.approx((label[score >= 0.5]).sum() / label.sum())
    assert found["calibration_gap"] == pytest.approx(label.mean() / score.mean() - 1, abs=1e-6)
    assert abs(found["calibration_gap"]) < 0.05 and found["calibration_error"] < 0.1
    binned = np.array([oracle.fine_bin(s) for s in score])
    fine = LAYOUT.fine(counts).astype(np.float64)
    assert float(roc_auc(*fine)) == pytest.approx(roc_auc_score(label, binned))


def test_figures_of_one_class_are_not_defined() -> None:
    empty = metrics(np.zeros((1, LAYOUT.size), np.int64))
    assert np.isnan(empty).all()
    counts = np.zeros(LAYOUT.size, np.int64)
    count_labelled(np.array([0.1]), np.array([0]), np.array([0]), 0, 0.5, LAYOUT.head(counts), LAYOUT.fine(counts))
    known = ~np.isnan(metrics(counts[None])[0])
    defined = {name for name, k in zip(METRICS, known, strict=True) if k}
    assert defined == {"log_loss", "brier", "calibration_gap", "calibration_error"}
    assert np.isnan(estimated(np.zeros((1, FINE), np.int64), 0.5)).all()


def test_what_is_estimated_without_labels_comes_true_where_scores_are_right() -> None:
    _, _, counts = rows_of_labels(200_000)
    guess, found = estimated(LAYOUT.fine(counts).sum(0)[None], 0.5)[0], metrics(counts[None])[0]
    np.testing.assert_allclose(guess, found[:6], atol=0.01)
    assert len(fine_probabilities()) == FINE


@pytest.mark.parametrize("periods", [1, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(periods: int) -> None:
    truth = metrics(rows_of_labels(400_000, seed=9)[2][None])[0]
    covered = np.zeros(2)
    for seed in range(40):
        counts = np.stack([rows_of_labels(3000, seed * 100 + p)[2] for p in range(periods)])
        ends = intervals(counts)[:2]
        covered += (ends[:, 0] <= truth[:2]) & (truth[:2] <= ends[:, 1])
    assert (covered >= 32).all()


def test_card_precision_is_that_of_the_protocol() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    card, day, score = rng.integers(0, 300, n), np.sort(rng.integers(0, 4, n)), np.round(rng.random(n), 2)
    label = (rng.random(n) < score / 5).astype(np.int64)
    found: set[int] = set()
    by_day = []
    for today in range(4):
        rows = np.flatnonzero(day == today)
        cards = np.unique(card[rows])
        best = np.array([score[rows][card[rows] == c].max() for c in cards])
        hit = np.array([label[rows][card[rows] == c].max() for c in cards])
        by_day.append(card_precision(cards, best, hit, found, top=50))
    assert np.mean(by_day) == pytest.approx(card_precision_of_rows(score, label, day, card, top=50))


@pytest.mark.parametrize("at", [0, 5, 30, 39])
def test_the_change_point_is_where_it_changed(at: int) -> None:
    deviation = np.random.default_rng(at).normal(size=40) * 0.2
    deviation[at:] += 1.0
    assert abs(change_point(deviation) - at) <= 1
    assert abs(change_point(-deviation) - at) <= 1


def test_too_few_rows_make_no_bins() -> None:
    with pytest.raises(MonitorError, match="reference rows: 99"):
        Bins.of(np.zeros((99, 2)))
