"""Training: the protocol of the open data, and its metrics against naive ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ModelError
from models.folds import Folds
from models.metrics import card_precision, not_known_before
from models.modeltext import parse
from models.train import DAY_MS, Recipe, Split, train_fraud

DATA = Path(os.environ.get("HEADRACE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _ms(day: str) -> int:
    return int(np.datetime64(day, "ms").astype(np.int64))


def _split(days: int = 7) -> Split:
    end = _ms("2018-08-01")
    return Split(end - days * DAY_MS, end, _ms("2018-08-08"), _ms("2018-08-15"), known_from=end - 7 * DAY_MS)


@pytest.mark.skipif(not (DATA / "fraud_expected.parquet").exists(), reason=f"the open card-fraud data is not in {DATA}")
def test_published_protocol_on_the_open_data() -> None:
    import pyarrow.parquet as pq

    columns = pq.read_table(DATA / "fraud_expected.parquet").drop_columns(["transaction_id"])
    x = np.stack([column.to_numpy().astype(np.float64) for column in columns.columns], axis=1)
    events = pq.read_table(DATA / "fraud_transactions.parquet", columns=["event_time", "card_id"])
    y = pq.read_table(DATA / "fraud_labels.parquet", columns=["is_fraud"])["is_fraud"].to_numpy()
    time, card = events["event_time"].to_numpy(), events["card_id"].to_numpy().astype(np.int64)

    week = train_fraud(x, y, time, card, columns.column_names, _split(), num_threads=1)
    assert (week.training["rows"], week.training["frauds"]) == (67_240, 598)
    assert (week.metrics["rows"], week.metrics["frauds"]) == (58_264, 385)
    assert 0.67 < week.metrics["average_precision"] < 0.75
    assert 0.28 < week.metrics["card_precision_100"] < 0.31
    assert 0.86 < week.metrics["auc"] < 0.89
    # of each class nine tenths were asked for; the fold that it rests on has some 150 frauds
    for name in ("fraud", "legitimate"):
        assert 0.82 < week.conformal["measured"][name]["coverage"] < 0.97


def _toy(rows: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(rows, 2))
    time = np.sort(rng.integers(_ms("2018-07-20"), _ms("2018-08-20"), rows))
    return x, (x[:, 0] + rng.normal(size=rows) > 1.5).astype(np.int8), time, rng.integers(0, 900, rows)


def test_trained_model_is_calibrated_and_becomes_a_draft() -> None:
    steps: list[tuple[int, int]] = []
    trained = train_fraud(*_toy(), ["a", "b"], _split(), progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (400, 400)
    assert trained.metrics["auc"] > 0.8
    assert trained.calibration.kind == "platt"
    draft = trained.draft("toy", "abcd", "2024-05-01T00:00:00Z")
    assert draft.features == ("a", "b") and draft.training["rounds"] == 200 and draft.metrics == trained.metrics
    assert (draft.evaluation, draft.conformal, draft.reference) == (
        trained.evaluation, trained.conformal, trained.reference,
    )  # fmt: skip
    assert "intervals" not in trained.evaluation
    # the reference is of all rows of the test range, the metrics of those that the protocol measures
    assert trained.reference["rows"] >= trained.metrics["rows"] == len(trained.tested.y)
    assert sum(trained.reference["score"]["counts"]) == trained.reference["rows"]
    assert trained.conformal["fold"]["fraud"] + trained.conformal["fold"]["legitimate"] > 0
    assert sum(row["frauds"] for row in trained.evaluation["calibration_table"]) == trained.metrics["frauds"]


def test_a_recipe_is_followed() -> None:
    x, y, time, card = _toy()
    recipe = Recipe("isotonic", class_weight="balanced", search=2, budget_us=1e6, resamples=20, seed=4, alpha=0.2)
    steps: list[tuple[int, int]] = []
    trained = train_fraud(
        x, y, time, card, ["a", "b"], _split(), recipe, progress=lambda done, total: steps.append((done, total))
    )
    assert steps[-1] == (200 * recipe.trainings, 200 * recipe.trainings)
    assert trained.calibration.kind == "isotonic" and trained.conformal["alpha"] == 0.2
    training = trained.training
    assert training["validation_from"] < training["calibration_from"] < training["train_to"]
    # there are five days before the training range, and the label's delay is a week
    assert training["validation_gap_ms"] == 7 * DAY_MS
    before = (time >= training["train_from"]) & (time < training["calibration_from"])
    assert training["params"]["scale_pos_weight"] == pytest.approx(np.sum(y[before] == 0) / np.sum(y[before] == 1))
    assert len(training["search"]["tried"]) == 2 and training["budget"]["cut"] is False
    assert len(parse(trained.model_text).trees) == training["rounds"]
    low, high = (trained.evaluation["intervals"]["auc"][name] for name in ("low", "high"))
    assert low < trained.metrics["auc"] < high


def test_validation_is_as_far_from_what_is_fitted_as_the_test() -> None:
    """The gap is the label's delay where the rows reach back so far, else what leaves half of the rows to fit."""
    split, time = Split(40 * DAY_MS, 48 * DAY_MS, 55 * DAY_MS, 60 * DAY_MS), np.arange(0, 60 * DAY_MS, DAY_MS // 8)
    y = (np.arange(len(time)) % 3 == 0).astype(np.int8)
    for begin, gap, fit in ((0, 7, (33, 37)), (36, 6, (36, 38)), (40, 2, (40, 42))):
        part = time[time >= begin * DAY_MS]
        folds = Folds.of(part, y[: len(part)], split, 0.25, True)
        assert folds.gap_ms == gap * DAY_MS and folds.validation_from == 44 * DAY_MS
        assert (part[folds.fit].min(), part[folds.fit].max()) == (fit[0] * DAY_MS, fit[1] * DAY_MS - DAY_MS // 8)
    assert Folds.of(time, y, split, 0.25, False).gap_ms == 0
    stray = time[(time == 10 * DAY_MS) | (time >= 40 * DAY_MS)]
    assert Folds.of(stray, y[: len(stray)], split, 0.25, True).gap_ms == 2 * DAY_MS, "one row is no history"


def test_what_is_chosen_does_not_depend_on_the_test_range() -> None:
    x, y, time, card = _toy()
    recipe = Recipe(search=2)
    first = train_fraud(x, y, time, card, ["a", "b"], _split(), recipe)
    test = time >= _ms("2018-08-08")
    y[test] = 1 - y[test]
    again = train_fraud(x, y, time, card, ["a", "b"], _split(), recipe)
    assert again.training["search"] == first.training["search"] and again.calibration == first.calibration
    assert again.model_text == first.model_text and again.metrics["auc"] < 0.5


def test_a_budget_is_kept_by_the_model_that_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "models.budget.us_per_row", lambda text, x: sum(tree.n_leaves for tree in parse(text).trees) / 1000
    )
    trained = train_fraud(*_toy(), ["a", "b"], _split(), Recipe(budget_us=0.3))
    leaves = [tree.n_leaves for tree in parse(trained.model_text).trees]
    budget = trained.training["budget"]
    assert len(leaves) == budget["rounds"] == trained.training["rounds"] < 200
    assert sum(leaves) / 1000 == budget["us_per_row"] <= 0.3 < budget["us_per_row_full"]
    assert trained.metrics["auc"] > 0.75


def test_without_calibration_probabilities_are_lightgbms() -> None:
    import lightgbm

    trained = train_fraud(*_toy(), ["a", "b"], _split(), Recipe("none"))
    booster = lightgbm.Booster(model_str=trained.model_text)
    np.testing.assert_allclose(trained.tested.probability, booster.predict(trained.tested.x), rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"calibration": "beta"}, "calibration: 'beta' is unknown; use one of platt, isotonic, none"),
        ({"calibration_share": 0.5}, "calibration share: 0.5 is not above 0 and at most 0.4"),
        ({"class_weight": 0.0}, "class weight: 0.0 is neither"),
        ({"class_weight": "heavy"}, "class weight: 'heavy' is neither"),
        ({"search": -1}, "search: -1 trials"),
        ({"budget_us": 0.0}, "budget: 0.0 us"),
        ({"alpha": 1.0}, "conformal alpha: 1.0"),
        ({"resamples": -1}, "resamples: -1"),
    ],
)
def test_recipes_that_cannot_be(values: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Recipe(**values)  # type: ignore[arg-type]


def test_rows_outside_the_ranges_do_not_matter() -> None:
    x, y, time, card = _toy()
    trained = train_fraud(x, y, time, card, ["a", "b"], _split())
    gap = (time >= _ms("2018-08-01")) & (time < _ms("2018-08-08"))
    x[gap] = 99.0
    x[time >= _ms("2018-08-15")] = -99.0
    again = train_fraud(x, y, time, card, ["a", "b"], _split(), num_threads=1)
    # the text ends with the settings, the number of threads among them
    assert again.model_text.split("parameters:")[0] == trained.model_text.split("parameters:")[0]
    assert again.metrics == trained.metrics


def test_a_test_range_before_the_labels_are_known_is_refused() -> None:
    with pytest.raises(ModelError, match="before the labels"):
        Split(0, 10 * DAY_MS, 17 * DAY_MS - 1, 20 * DAY_MS)
    with pytest.raises(ModelError, match="train range: ends"):
        Split(5, 5, 17 * DAY_MS, 20 * DAY_MS)
    with pytest.raises(ModelError, match="test range: ends"):
        Split(0, 5, 17 * DAY_MS, 17 * DAY_MS)


def test_ranges_without_both_classes_are_refused() -> None:
    x, y, time, card = _toy()
    y[time < _ms("2018-07-31")] = 0
    with pytest.raises(ModelError, match=r"train range: \d+ rows, 0 frauds"):
        train_fraud(x, y, time, card, ["a", "b"], _split())


def test_frauds_that_are_all_on_known_cards_measure_nothing() -> None:
    x, y, time, card = _toy()
    card[y == 1] = card.max() + 1
    with pytest.raises(ModelError, match=r"test range .*: of \d+ transactions of cards without a known fraud 0 are"):
        train_fraud(x, y, time, card, ["a", "b"], _split())


def _naive_card_precision(rows: list[tuple[int, int, int, int]], top: int) -> float:
    found: set[int] = set()
    precisions = []
    for today in sorted({day for day, *_ in rows}):
        best: dict[int, int] = {}
        fraud: dict[int, bool] = {}
        for day, card, score, label in rows:
            if day == today and card not in found:
                best[card] = max(best.get(card, score), score)
                fraud[card] = fraud.get(card, False) or label == 1
        listed = sorted(best, key=lambda c: (-best[c], c))[:top]
        found |= {c for c in listed if fraud[c]}
        precisions.append(sum(fraud[c] for c in listed) / top)
    return sum(precisions) / len(precisions)


ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=60
)


@given(rows=ROWS, top=st.integers(1, 5))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_card_precision_is_the_naive_one(rows: list[tuple[int, int, int, int]], top: int) -> None:
    day, card, score, y = np.array(rows, dtype=np.int64).T
    assert card_precision(score.astype(np.float64), y, day, card, top) == pytest.approx(
        _naive_card_precision(rows, top)
    )


@given(rows=ROWS, delay=st.integers(0, 3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_known_cards_are_the_naive_ones(rows: list[tuple[int, int, int, int]], delay: int) -> None:
    day, card, _, y = np.array(rows, dtype=np.int64).T
    expected = [
        not any(c == card_ and label and d + 1 + delay <= day_ for d, c, _, label in rows) for day_, card_, *_ in rows
    ]
    assert not_known_before(day, card, y, delay).tolist() == expected
