"""Champion against challenger: the intervals hold what they promise, and rows that are not mature say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss

from models.errors import ModelError
from models.evidence import average_precision, paired_evidence


def rows(seed: int, n: int = 4000, better: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(y, champion, challenger, card): both see the truth through noise of their own, the challenger ``better``."""
    rng = np.random.default_rng(seed)
    card = rng.integers(0, n // 4, n)
    truth = -2.5 + rng.normal(size=n) + rng.normal(size=n // 4)[card]
    y = (rng.random(n) < expit(truth)).astype(int)
    noise = rng.normal(size=(2, n)) * np.array([[1.0], [1.0 - better]])
    champion, challenger = expit(truth + noise)
    return y, champion, challenger, card


def test_average_precision_is_scikit_learn_s() -> None:
    rng = np.random.default_rng(1)
    for ties in (2, 10, 10_000):
        y, score = rng.integers(0, 2, 500), rng.integers(0, ties, 500) / ties
        weight = rng.integers(0, 4, 500).astype(float)
        assert average_precision(y, score) == pytest.approx(average_precision_score(y, score), abs=1e-12)
        expected = average_precision_score(y, score, sample_weight=weight)
        assert average_precision(y, score, weight) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(average_precision(np.zeros(3), np.arange(3.0)))


def test_the_figures_are_the_metrics() -> None:
    y, champion, challenger, card = rows(2)
    found = paired_evidence(y, champion, challenger, card, np.ones(len(y), bool), resamples=50)
    assert (found.rows, found.frauds, found.groups) == (4000, y.sum(), len(np.unique(card)))
    for name, metric in (("log_loss", log_loss), ("brier", brier_score_loss)):
        difference = found.differences[name]  # type: ignore[index]
        assert difference.champion == pytest.approx(metric(y, champion))
        assert difference.gain == pytest.approx(metric(y, champion) - metric(y, challenger))
    ranking = found.differences["average_precision"]
    assert ranking.gain == pytest.approx(ranking.challenger - ranking.champion)
    assert ranking.low < ranking.gain < ranking.high


@pytest.mark.parametrize("metric", ["average_precision", "log_loss", "brier"])
def test_a_better_challenger_is_found_and_a_worse_one_too(metric: str) -> None:
    y, champion, challenger, card = rows(3, better=0.6)
    all_of_them = np.ones(len(y), bool)
    assert paired_evidence(y, champion, challenger, card, all_of_them).better(metric) == "challenger"  # type: ignore[arg-type]
    assert paired_evidence(y, challenger, champion, card, all_of_them).better(metric) == "champion"  # type: ignore[arg-type]
    assert paired_evidence(y, champion, champion, card, all_of_them).better(metric) is None  # type: ignore[arg-type]


def test_of_models_that_are_alike_the_wrong_one_wins_as_often_as_the_confidence_says() -> None:
    trials = 120
    wins = dict.fromkeys(("average_precision", "log_loss", "brier"), 0)
    for seed in range(trials):
        y, champion, challenger, card = rows(100 + seed, 800)
        found = paired_evidence(y, champion, challenger, card, np.ones(800, bool), confidence=0.8, resamples=80)
        for metric in wins:
            wins[metric] += found.better(metric) is not None  # type: ignore[arg-type]
    # 20% of 120 are 24, give or take 3 times 4.4
    assert all(10 <= won <= 38 for won in wins.values()), wins


def test_only_mature_rows_count() -> None:
    y, champion, challenger, card = rows(5)
    matured = np.arange(len(y)) < 3000
    found = paired_evidence(y, champion, challenger, card, matured)
    y[3000:], champion[3000:] = 1, np.nan
    assert paired_evidence(y, champion, challenger, card, matured) == found and found.rows == 3000


def test_too_few_frauds_say_nothing() -> None:
    y, champion, challenger, card = rows(6)
    few = (y == 0) | (np.cumsum(y) <= 29)
    found = paired_evidence(y, champion, challenger, card, few)
    assert found.frauds == 29 and not found.differences and found.better() is None
    with pytest.raises(ModelError, match="challenger scores"):
        paired_evidence(y, champion, challenger * 2, card, few)
