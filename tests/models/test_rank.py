"""The ranker: what it learns, that it goes through packages bit for bit, and its figures against naive ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ModelError
from models.lightgbm import LightGBMPredictor
from models.package import load_package
from models.rank import Ranked, Ranking, ranks, train_rank
from models.registry import Registry


def lists(count: int = 400, size: int = 12) -> Ranked:
    """The next click is mostly the candidate with the largest first feature; every fourth list lacks it."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(count * size, 3))
    x[rng.random(len(x)) < 0.1, 2] = np.nan
    clicked = np.zeros(len(x), np.bool_)
    best = x[:, 0].reshape(count, size) + 0.2 * rng.normal(size=(count, size))
    clicked[np.arange(count) * size + best.argmax(axis=1)] = np.arange(count) % 4 > 0
    return Ranked(np.arange(count + 1) * size, x, clicked)


SMALL = {"min_child_samples": 20, "feature_fraction": 1.0}


def test_it_learns_and_its_package_scores_bit_for_bit(tmp_path: Path) -> None:
    served, steps = lists(), list[tuple[int, int]]()
    ranker = train_rank(served, ["a", "b", "c"], rounds=20, params=SMALL, progress=lambda *step: steps.append(step))
    assert steps[-1] == (20, 20)
    assert ranker.training["lists"] == 400 and ranker.training["lists_with_click"] == 300
    raw = LightGBMPredictor(ranker.model_text).predict_raw(served.x)
    before = Ranking.of(np.zeros(len(raw)), served.begin, served.clicked)
    after = Ranking.of(raw, served.begin, served.clicked)
    assert after.mrr_20 > 1.5 * before.mrr_20

    registry = Registry(tmp_path)
    manifest = registry.add(ranker.draft("shop", "abcd", "2024-05-01T00:00:00Z"))
    model = load_package(tmp_path / "shop" / str(manifest.version), ["c", "a", "b"], "abcd")
    assert "compiled is bit-equal" in model.choice.reason
    through, score = model.score(np.ascontiguousarray(served.x[:, [2, 0, 1]]))
    assert through.tobytes() == raw.tobytes() == score.tobytes()


def test_the_same_lists_give_the_same_model() -> None:
    one, two = (train_rank(lists(), ["a", "b", "c"], rounds=5, params=SMALL).model_text for _ in range(2))
    assert one == two


def test_only_the_first_of_a_list_teach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.rank._TAUGHT", 5)
    served = lists()
    first = served.first(5)
    for i in range(len(served)):
        rows = slice(served.begin[i], min(served.begin[i] + 5, served.begin[i + 1]))
        mine = slice(first.begin[i], first.begin[i + 1])
        np.testing.assert_array_equal(first.x[mine], served.x[rows])
        np.testing.assert_array_equal(first.clicked[mine], served.clicked[rows])
    ranker = train_rank(served, ["a", "b", "c"], rounds=2, params=SMALL)
    taught = len(first.with_a_click())
    assert ranker.training["lists_with_click"] == taught < len(served.with_a_click())


def test_no_click_no_model() -> None:
    served = lists()
    with pytest.raises(ModelError, match="400, none with the next click"):
        train_rank(Ranked(served.begin, served.x, np.zeros_like(served.clicked)), ["a", "b", "c"])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=30), st.integers(-1, 29)), min_size=1, max_size=8))
def test_figures_are_the_naive_ones(parts: list[tuple[list[int], int]]) -> None:
    found, reciprocal, expected = 0, 0.0, list[int]()
    scores, clicked = list[float](), list[bool]()
    for values, click in parts:
        order = sorted(range(len(values)), key=lambda i: (-values[i], i))
        expected += [order.index(i) for i in range(len(values))]
        scores += values
        clicked += [i == click for i in range(len(values))]
        if 0 <= click < len(values) and order.index(click) < 20:
            found += 1
            reciprocal += 1 / (order.index(click) + 1)
    begin = np.append(0, np.cumsum([len(values) for values, _ in parts])).astype(np.int64)
    y = np.array(clicked, np.bool_)
    raw = np.array(scores, np.float64)
    assert ranks(raw, begin).tolist() == expected
    figures = Ranking.of(raw, begin, y)
    assert (figures.lists, figures.found) == (len(parts), found)
    assert figures.reciprocal == pytest.approx(reciprocal)
    assert figures.recall_20 == pytest.approx(100 * found / len(parts))
    assert (figures + figures).mrr_20 == pytest.approx(figures.mrr_20)
    kept = Ranked(begin, raw[:, None], y).with_a_click()
    assert len(kept) == sum(0 <= click < len(values) for values, click in parts)
    assert kept.clicked.sum() == len(kept)
    both = Ranked.concat([kept, kept])
    assert len(both) == 2 * len(kept) and both.begin[-1] == len(both.x)
