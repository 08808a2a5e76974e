"""The noise of a gain in average precision is that of the difference, not of either score."""

from __future__ import annotations

import numpy as np

from benchmarks.feature_sets import paired_noise


def test_noise_is_of_the_difference() -> None:
    rng = np.random.default_rng(3)
    card = rng.integers(0, 80, 1_500)
    y = (rng.random(80) < 0.2)[card] & (rng.random(1_500) < 0.5)
    score = y + rng.normal(0.0, 1.0, 1_500)
    assert paired_noise(score, score.copy(), y, card) == 0.0
    other = y + rng.normal(0.0, 1.0, 1_500)
    assert 0.005 < paired_noise(score, other, y, card) < 0.2
    assert paired_noise(score, other, y, card) > 3 * paired_noise(score, score + rng.normal(0.0, 0.01, 1_500), y, card)
