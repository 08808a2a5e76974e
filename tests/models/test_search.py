"""Search and budget: chosen on the validation rows alone, the same again by the same seed, kept to what was asked."""

from __future__ import annotations

import numpy as np
import pytest

from models import budget
from models.boosting import FRAUD_PARAMS, Rows, Settings, Steps, fit
from models.budget import Cut, cut_to, shrink, us_per_row
from models.errors import ModelError
from models.modeltext import load_booster, parse
from models.search import search

ROWS = 3000
START = Settings(FRAUD_PARAMS | {"max_bin": 63}, 40)


def _data(seed: int = 0) -> tuple[Rows, np.ndarray, np.ndarray, np.ndarray]:
    """Data, and the masks of its train and validation rows, and cards."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 4))
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=ROWS) > 2).astype(np.int8)
    place = np.arange(ROWS)
    return Rows(x, y, ("a", "b", "c", "d")), place < 1500, (place >= 1500) & (place < 2500), rng.integers(0, 500, ROWS)


def test_search_is_repeated_by_its_seed_and_never_sees_other_rows() -> None:
    data, train, validation, card = _data()
    said: list[tuple[int, int]] = []

    def found(data: Rows, seed: int) -> dict[str, object]:
        steps = Steps(lambda done, total: said.append((done, total)), 4)
        return search(data, train, validation, card, START, trials=3, seed=seed, num_threads=1, steps=steps).summary

    first = found(data, 7)
    assert said[-1] == (800, 800) and [done for done, _ in said] == sorted(done for done, _ in said)
    other = Rows(data.x.copy(), data.y.copy(), data.features)
    other.x[~(train | validation)] = 77.0
    other.y[~(train | validation)] = 1
    assert found(other, 7) == first
    assert [trial["num_leaves"] for trial in first["tried"]] != [t["num_leaves"] for t in found(data, 8)["tried"]]
    # the first trial is what it began with, stopped early
    assert first["tried"][0]["learning_rate"] == 0.03 and first["tried"][0]["num_leaves"] == 15
    assert first["best"] == max(trial["average_precision"] for trial in first["tried"])


def test_what_is_not_better_by_more_than_the_noise_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    data, train, validation, card = _data()

    def chosen(noise: float) -> tuple[Settings, str]:
        monkeypatch.setattr("models.search.difference_noise", lambda *_, **__: noise)
        found = search(data, train, validation, card, START, trials=2, seed=0, num_threads=1, steps=Steps(None, 3))
        return found.settings, found.summary["chosen"]

    settings, name = chosen(-1.0)
    assert name.startswith("trial ") and settings != START
    assert chosen(1.0) == (START, "start")


def test_a_class_weight_that_was_asked_for_is_not_searched() -> None:
    data, train, validation, card = _data()
    start = START.changed(scale_pos_weight=3.5)
    found = search(data, train, validation, card, start, trials=3, seed=0, num_threads=1, steps=Steps(None, 4))
    assert {trial["scale_pos_weight"] for trial in found.summary["tried"]} == {3.5}


def _cost(text: str, x: np.ndarray) -> float:
    """In place of the clock: a fixed cost, and a thousandth of a microsecond for each leaf."""
    return 0.05 + sum(tree.n_leaves for tree in parse(text).trees) / 1000


def test_a_model_is_cut_until_it_keeps_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    data, train, *_ = _data()
    text = fit(data, train, START, 1, Steps(None, 1)).text
    monkeypatch.setattr(budget, "us_per_row", _cost)
    whole = _cost(text, data.x)
    assert cut_to(text, whole, data.x) == Cut(text, 40, whole)
    smaller = cut_to(text, 0.25, data.x)
    trees = parse(smaller.text).trees
    assert smaller.rounds == len(trees) and smaller.us_per_row == _cost(smaller.text, data.x) <= 0.25
    # no more than was needed
    assert len(trees) >= 10
    with pytest.raises(ModelError, match=r"one tree takes 0\.06\d* us per row, 64 rows at a time, more than 0\.055"):
        cut_to(text, 0.055, data.x)


def test_shrinking_says_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    data, train, validation, card = _data()
    monkeypatch.setattr(budget, "us_per_row", _cost)

    def shrunk(budget_us: float) -> budget.Shrunk:
        return shrink(data, train, validation, card, START, budget_us, num_threads=1, steps=Steps(None, 7))

    same = shrunk(100.0)
    assert same.settings == START and same.summary["cut"] is False
    found = shrunk(0.2)
    summary, settings = found.summary, found.settings
    assert summary["cut"] and summary["us_per_row_validation"] <= 0.2 < summary["us_per_row_full"]
    assert settings.rounds == summary["rounds"] < START.rounds
    assert settings.params["num_leaves"] == summary["num_leaves"] in (15, 7, 3)
    assert 0.03 < settings.params["learning_rate"] <= 0.3
    assert summary["noise"] > 0 and 0 < summary["average_precision"] < 1
    with pytest.raises(ModelError, match="give a larger budget"):
        shrunk(0.051)


def test_more_trees_cost_more() -> None:
    """The clock itself: fifty times the trees are not cheaper."""
    data, train, *_ = _data()
    text = fit(data, train, START.changed(rounds=100), 1, Steps(None, 1)).text
    assert cut_to(text, 1e9, data.x).text == text
    two_trees = load_booster(text).model_to_string(num_iteration=2)
    assert 0 < us_per_row(two_trees, data.x) < us_per_row(text, data.x)


def test_early_stopping_keeps_the_best_rounds() -> None:
    data, train, validation, _ = _data()
    fitted = fit(data, train, START.changed(rounds=400, learning_rate=0.3), 1, Steps(None, 1), validation=validation)
    assert 0 < fitted.rounds < 350 and len(parse(fitted.text).trees) == fitted.rounds


def test_categories_are_split_as_categories() -> None:
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 12, 2000).astype(np.float64)
    y = (np.isin(kind, [1, 5, 9]) ^ (rng.random(2000) < 0.05)).astype(np.int8)
    data = Rows(np.column_stack([kind, rng.normal(size=2000)]), y, ("kind", "b"), ("kind",))
    trees = parse(fit(data, np.ones(2000, np.bool_), START.changed(rounds=2), 1, Steps(None, 1)).text).trees
    assert any(decision & 1 for tree in trees for decision in tree.decision)
