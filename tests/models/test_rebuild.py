"""Challengers of labelled rows: honest by time, the same in any order, and none where there is nothing to gain."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import lightgbm as lgb
import numpy as np
import pytest

from models.calibrate import Calibration
from models.conformal import Conformal, coverage
from models.lightgbm import LightGBMPredictor
from models.modeltext import parse
from models.rebuild import Champion, Declined, LabelledRows, rebuild

FEATURES = ("a", "b", "c")
BEFORE, AFTER = np.array([2.0, -1.0, 0.0]), np.array([0.0, 1.0, -2.0])
PARAMS = {"objective": "binary", "num_leaves": 7, "min_child_samples": 20, "learning_rate": 0.2, "verbosity": -1}
PARAMS |= {"num_threads": 1, "seed": 1}


def rows(n: int, weights: np.ndarray, seed: int, begin: int = 0) -> LabelledRows:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = (rng.random(n) < 1 / (1 + np.exp(-(x @ weights - 2.0)))).astype(np.int64)
    return LabelledRows(FEATURES, x, y, begin + np.arange(n, dtype=np.int64), rng.integers(0, 200, n))


def joined(first: LabelledRows, second: LabelledRows) -> LabelledRows:
    names = ("x", "y", "event_time_ms", "group")
    return LabelledRows(FEATURES, *(np.concatenate([getattr(r, name) for r in (first, second)]) for name in names))


@cache
def champion() -> Champion:
    known = rows(4000, BEFORE, 1)
    text = lgb.train(PARAMS, lgb.Dataset(known.x, known.y, feature_name=list(FEATURES)), 25).model_to_string()
    return Champion(text, Calibration("platt"), PARAMS, 25)


@cache
def moved() -> LabelledRows:
    return joined(rows(1500, BEFORE, 2), rows(1500, AFTER, 3, 1500))


def test_new_trees_of_the_rows_since_the_change() -> None:
    built = rebuild(moved(), 1500, champion(), "retrain")
    assert built.recipe == "rows since the change" and built.rows == 1500
    assert built.metrics["average_precision"] > built.metrics["champion_average_precision"] + 0.2
    assert built.metrics["rows"] == 501 and parse(built.model_text).feature_names == FEATURES


def test_its_conformal_sets_hold_on_later_rows() -> None:
    built = rebuild(moved(), 1500, replace(champion(), alpha=0.2), "retrain")
    assert built.conformal["alpha"] == 0.2 and sum(built.conformal["fold"].values()) == 501
    later = rows(20_000, AFTER, 6)
    raw = LightGBMPredictor(built.model_text).predict_raw(later.x)
    found = coverage(Conformal.from_json(built.conformal), raw, later.y, np.arange(len(later)))
    for name in ("fraud", "legitimate"):
        assert 0.7 < found[name]["coverage"] < 0.9


def test_all_rows_are_taken_where_they_are_better() -> None:
    few = joined(rows(3000, AFTER, 4), rows(500, AFTER, 5, 3000))
    assert rebuild(few, 3000, champion(), "retrain").recipe == "all rows"


def test_a_refit_keeps_the_trees_and_moves_their_leaves() -> None:
    built = rebuild(moved(), 1500, champion(), "refit")
    before, after = parse(champion().model_text), parse(built.model_text)
    assert built.recipe.startswith("refit, decay") and after.feature_names == FEATURES
    assert len(before.trees) == len(after.trees)
    for old, new in zip(before.trees, after.trees, strict=True):
        assert (old.feature == new.feature).all() and (old.threshold == new.threshold).all()
    assert built.model_text != champion().model_text


@pytest.mark.parametrize("kind", ["refit", "retrain"])
def test_the_order_of_the_rows_does_not_show(kind: str) -> None:
    shuffled = moved().take(np.random.default_rng(0).permutation(len(moved())))
    assert rebuild(shuffled, 1500, champion(), kind) == rebuild(moved(), 1500, champion(), kind)  # type: ignore[arg-type]


def test_what_chooses_is_later_than_what_was_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = lgb.Dataset

    def dataset(x: np.ndarray, *args: object, **kwargs: object) -> object:
        seen.append(len(x))
        return plain(x, *args, **kwargs)

    monkeypatch.setattr(lgb, "Dataset", dataset)
    rebuild(moved(), 1500, champion(), "retrain")
    # the last 501 rows are kept back from both, then the winner is fitted on all of its rows
    assert seen == [999, 2499, 1500]


def test_nothing_is_proposed_where_nothing_has_changed_or_too_little_is_known() -> None:
    with pytest.raises(Declined, match="the champion has"):
        rebuild(rows(900, BEFORE, 10), 0, champion(), "retrain")
    with pytest.raises(Declined, match="frauds"):
        rebuild(moved(), 2900, champion(), "retrain")
    with pytest.raises(Declined, match="nothing can be learned"):
        rebuild(moved(), 2999, champion(), "retrain")
