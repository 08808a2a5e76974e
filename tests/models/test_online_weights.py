"""Weights of sources learned from clicks: they win where a source is underrated, and only there; cuts never show."""

from __future__ import annotations

import numpy as np
import pytest

from features.plan import StateError
from models.online_weights import WEIGHT_MAX, SourceWeights
from tests.features.streams_of_rows import same_arrays

SOURCES = ("near", "far")


def lists_of(n: int, lift: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lists of ten; the click is drawn by the softmax of the scores, with ``lift`` for those of source 1."""
    rng = np.random.default_rng(seed)
    scores, source = -np.sort(-rng.normal(0, 1, (n, 10)), axis=1), rng.integers(0, 2, (n, 10))
    true = scores + lift * source + rng.gumbel(0, 1, (n, 10))
    clicked = np.zeros((n, 10), np.bool_)
    clicked[np.arange(n), true.argmax(1)] = True
    clicked[::7] = False  # these were not followed
    return np.arange(0, 10 * n + 1, 10), scores.ravel(), source.ravel(), clicked.ravel()


def test_an_underrated_source_is_lifted_and_once_it_is_as_good_as_the_others_again_no_more() -> None:
    weights = SourceWeights(SOURCES)
    changes = weights.update(*lists_of(4_000, 1.5))
    assert changes and np.array_equal(changes[-1][1], weights.served)
    assert weights.served[1] - weights.served[0] == pytest.approx(1.5, abs=0.4)
    assert weights.lists == 4_000 - len(range(0, 4_000, 7))
    weights.update(*lists_of(8_000, 0.0, seed=2))
    assert abs(weights.served[1] - weights.served[0]) < 0.4


def test_where_scores_are_right_nothing_is_served() -> None:
    weights = SourceWeights(SOURCES)
    assert weights.update(*lists_of(4_000, 0.0)) == [] and not weights.served.any()
    assert abs(weights.weights[1] - weights.weights[0]) < 0.5


def test_too_few_lists_change_nothing_and_weights_are_bounded() -> None:
    weights = SourceWeights(SOURCES, rate=1.0)
    assert weights.update(*lists_of(500, 3.0)) == [] and not weights.served.any()
    weights.update(*lists_of(2_000, 50.0))
    assert weights.weights.tolist() == [-WEIGHT_MAX, WEIGHT_MAX]


@pytest.mark.parametrize("cuts", [[1], [300, 301, 2_900]])
def test_neither_cuts_nor_restarts_show(cuts: list[int]) -> None:
    begin, scores, source, clicked = lists_of(3_000, 1.0)
    whole, parts = SourceWeights(SOURCES), SourceWeights(SOURCES)
    changes, found = whole.update(begin, scores, source, clicked), []
    for a, b in zip([0, *cuts], [*cuts, 3_000], strict=True):
        rows = slice(begin[a], begin[b])
        told = parts.update(begin[a : b + 1] - begin[a], scores[rows], source[rows], clicked[rows])
        found += [(a + i, served.tolist()) for i, served in told]
        state = parts.state()
        parts = SourceWeights(SOURCES)
        parts.restore(state)
    assert found == [(i, served.tolist()) for i, served in changes] and found
    assert same_arrays(whole.state(), parts.state())


def test_lists_without_scores_or_items_teach_nothing() -> None:
    weights = SourceWeights(SOURCES)
    clicked = np.array([True, False])
    weights.update(np.array([0, 2, 2]), np.array([np.nan, 1.0]), np.array([0, 1]), clicked)
    assert weights.lists == 0 and not weights.weights.any()
    weights.update(np.array([0, 3]), np.array([np.nan, 1.0, 0.5]), np.array([0, 1, 0]), np.array([False, False, True]))
    assert weights.lists == 1 and weights.weights[0] > 0 > weights.weights[1]


def test_weights_of_other_sources_are_refused() -> None:
    with pytest.raises(StateError, match="are of near, far, not of near, new; let them be learned anew"):
        SourceWeights(("near", "new")).restore(SourceWeights(SOURCES).state())
