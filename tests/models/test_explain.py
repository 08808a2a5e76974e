"""SHAP values: those of LightGBM's ``pred_contrib`` and of the definition, for every model and input."""

from __future__ import annotations

import functools
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import N_FEATURES, NAMES, model_text, random_text, training_matrix

from models import explain, golden
from models.errors import ModelError, UnsupportedModelError
from models.explain import LightGBMExplainer, TreeExplainer, explainer_of
from models.explain_policy import ReasonsPolicy, strongest
from models.modeltext import parse
from models.package import Draft
from models.registry import Registry
from models.slot import ModelSlot
from tests.oracles.shapley import shapley


def counted(text: str, seed: int) -> str:
    """The model of a text with other training counts: any at the leaves, and their sums above."""
    rng = np.random.default_rng(seed)
    head, *blocks = text.split("\nTree=")
    for number, tree in enumerate(parse(text).trees):
        leaves = rng.integers(1, 100, tree.n_leaves) ** int(rng.integers(1, 4))
        inner = np.zeros(tree.n_leaves - 1, np.int64)

        # children have higher numbers than their parents
        for node in reversed(range(len(inner))):
            inner[node] = sum(inner[c] if c >= 0 else leaves[-1 - c] for c in (tree.left[node], tree.right[node]))
        for name, counts in (("leaf_count", leaves), ("internal_count", inner)):
            line = f"{name}={' '.join(map(str, counts))}"
            blocks[number] = re.sub(rf"^{name}=.*$", line, blocks[number], count=1, flags=re.MULTILINE)
    return "\nTree=".join([head, *blocks])


def chain_text(features: list[int], n_features: int) -> str:
    """One tree that is a chain: node i splits features[i], its left child is a leaf."""
    n = len(features)
    rng = np.random.default_rng(n)
    inner = np.arange(n + 1, 1, -1) * 7
    lines = {
        "num_leaves": n + 1,
        "num_cat": 0,
        "split_feature": features,
        "split_gain": [1] * n,
        "threshold": [repr(float(v)) for v in rng.normal(size=n)],
        "decision_type": rng.choice([2, 8, 10], n),
        "left_child": -1 - np.arange(n),
        "right_child": [*range(1, n), -1 - n],
        "leaf_value": [repr(float(v)) for v in rng.normal(size=n + 1)],
        "leaf_weight": [1] * (n + 1),
        "leaf_count": [7] * (n + 1),
        "internal_value": [0] * n,
        "internal_weight": [1] * n,
        "internal_count": inner,
        "is_linear": 0,
        "shrinkage": 1,
    }
    head = ["tree", "version=v4", "num_class=1", "num_tree_per_iteration=1", "label_index=0"]
    head += [f"max_feature_idx={n_features - 1}", "objective=regression"]
    head += ["feature_names=" + " ".join(f"f{j}" for j in range(n_features))]
    head += ["feature_infos=" + " ".join(["none"] * n_features), "", "Tree=0"]
    body = [f"{k}={' '.join(map(str, np.atleast_1d(v)))}" for k, v in lines.items()]
    return "\n".join([*head, *body]) + "\n\nend of trees\n"


def assert_explains(text: str, x: np.ndarray, got: np.ndarray) -> None:
    """``got`` is what LightGBM gives, and each row adds up to its raw score, as exactly as these numbers can."""
    size = max(1.0, sum(float(np.abs(tree.leaf_value).max()) for tree in parse(text).trees))
    np.testing.assert_allclose(got, LightGBMExplainer(text).contributions(x), rtol=0, atol=1e-9 * size)
    raw = lightgbm.Booster(model_str=text).predict(x, raw_score=True)
    np.testing.assert_allclose(got.sum(axis=1), raw, rtol=0, atol=1e-9 * size)


@functools.cache
def explainer(model: str) -> TreeExplainer:
    return TreeExplainer(parse(model_text(model)))


@functools.cache
def rows_of(model: str) -> np.ndarray:
    traps = golden.inputs(parse(model_text(model)), rows=230, seed=11)
    return np.ascontiguousarray(np.concatenate([traps, training_matrix(30)[0]]))


@pytest.mark.parametrize("model", NAMES)
def test_trained_models_on_traps(model: str) -> None:
    x = rows_of(model)
    assert_explains(model_text(model), x, explainer(model).contributions(x))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_random_models(seed: int) -> None:
    text = counted(random_text(seed), seed)
    x = golden.inputs(parse(text), rows=40, seed=seed)
    assert_explains(text, x, TreeExplainer(parse(text)).contributions(x))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_definition(seed: int) -> None:
    text = counted(random_text(seed, trees=3, leaves_max=12), seed)
    model = parse(text)
    x = golden.inputs(model, rows=3, seed=seed)
    got = TreeExplainer(model).contributions(x)
    size = max(1.0, sum(float(np.abs(tree.leaf_value).max()) for tree in model.trees))
    for row, values in zip(x, got, strict=True):
        np.testing.assert_allclose(values, shapley(model, row), rtol=0, atol=1e-11 * size)


@given(rows=st.lists(st.lists(st.floats(), min_size=N_FEATURES, max_size=N_FEATURES), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None, derandomize=True)
@pytest.mark.parametrize("model", ["zero_as_missing", "categorical", "leaves_300"])
def test_any_double(model: str, rows: list[list[float]]) -> None:
    x = np.array(rows)
    assert_explains(model_text(model), x, explainer(model).contributions(x))


@pytest.mark.parametrize(
    "features",
    [[0] * 300, [0, 1] * 100, [*range(12)] * 3, [*range(30)], [0, 0, *range(1, 20), 0, 5]],
    ids=["one", "two", "twelve", "thirty", "mixed"],
)
def test_chains(features: list[int]) -> None:
    text = chain_text(features, 31)
    x = golden.inputs(parse(text), rows=100)
    got = TreeExplainer(parse(text)).contributions(x)
    assert_explains(text, x, got)
    assert np.abs(got[:, :-1]).max() > 0.1


def test_a_constant_model_has_no_reasons_but_its_value() -> None:
    got = explainer("constant").contributions(np.zeros((3, N_FEATURES)))
    assert not got[:, :-1].any() and np.all(got[:, -1] != 0)


@pytest.mark.parametrize("model", ["categorical", "leaves_65"])
def test_rows_beside_a_row_do_not_show(model: str) -> None:
    x = rows_of(model)
    whole = explainer(model).contributions(x)
    for n in (1, 2, 7, 8, 9, 63, 64, 65, 129):
        assert golden.same_bits(explainer(model).contributions(x[n : 2 * n]), whole[n : 2 * n])
    assert golden.same_bits(explainer(model).contributions(x[::-1]), np.ascontiguousarray(whole[::-1]))
    assert explainer(model).contributions(x[:0]).shape == (0, N_FEATURES + 1)


def test_threads_do_not_disturb_each_other() -> None:
    x = rows_of("leaves_64")
    expected = explainer("leaves_64").contributions(x)
    cuts = [(i % 97, i % 97 + 1 + i * 13 % 150) for i in range(100)]
    with ThreadPoolExecutor(6) as pool:
        made = pool.map(lambda c: explainer("leaves_64").contributions(x[c[0] : c[1]]), cuts)
        for (a, b), got in zip(cuts, made, strict=True):
            assert golden.same_bits(got, expected[a:b])


def test_refuses_other_shapes() -> None:
    for made in (explainer("nan_missing"), LightGBMExplainer(model_text("nan_missing"))):
        with pytest.raises(ModelError, match=rf"takes \(n, {N_FEATURES}\)"):
            made.contributions(np.zeros((3, N_FEATURES + 1)))


# --- which explainer a model gets ---


def test_the_kernel_serves_what_it_explains() -> None:
    assert isinstance(explainer_of(model_text("nan_missing")), TreeExplainer)


def test_a_kernel_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    right = TreeExplainer.contributions
    monkeypatch.setattr(TreeExplainer, "contributions", lambda self, x: right(self, x) + 1e-6)
    with caplog.at_level(logging.WARNING):
        made = explainer_of(model_text("nan_missing"))
    assert isinstance(made, LightGBMExplainer) and made.contributions(np.zeros((0, N_FEATURES))).shape == (0, 6)
    assert [r.getMessage() for r in caplog.records] == [
        "reasons are made by LightGBM, slowly: the compiled ones differ on the golden batch"
    ]


def test_a_model_that_cannot_be_flattened(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(model: object) -> object:
        raise UnsupportedModelError("model: too odd")

    monkeypatch.setattr(explain, "TreeExplainer", refuse)
    with caplog.at_level(logging.WARNING):
        made = explainer_of(model_text("categorical"))
    assert isinstance(made, LightGBMExplainer) and "slowly: model: too odd" in caplog.text


def test_linear_trees_have_no_reasons(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert explainer_of(model_text("linear")) is None
    assert "no reasons: LightGBM does not explain this model" in caplog.text


def test_a_random_forest_is_explained_by_lightgbm(caplog: pytest.LogCaptureFixture) -> None:
    text, x = model_text("random_forest"), training_matrix(20)[0]
    with caplog.at_level(logging.WARNING):
        made = explainer_of(text)
    assert isinstance(made, LightGBMExplainer) and "slowly: model: random forest" in caplog.text
    assert_explains(text, x, made.contributions(x))


def test_explanations_that_do_not_add_up_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = LightGBMExplainer.contributions
    monkeypatch.setattr(LightGBMExplainer, "contributions", lambda self, x: right(self, x) + 1e-6)
    with caplog.at_level(logging.WARNING):
        assert explainer_of(model_text("categorical")) is None
    assert "do not add up" in caplog.text


def test_a_model_without_training_counts() -> None:
    text = re.sub(r"^internal_count=(\S+)", "internal_count=0", model_text("nan_missing"), flags=re.MULTILINE)
    with pytest.raises(UnsupportedModelError, match="how many training rows"):
        TreeExplainer(parse(text))


def test_a_model_whose_tables_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "_TABLE_MAX", 100)
    with pytest.raises(UnsupportedModelError, match="tables would take more than"):
        TreeExplainer(parse(model_text("nan_missing")))


# --- which scores are explained ---

SCORES = np.array([0.1, 0.5, np.nextafter(0.5, 1), 0.9, np.nan])
PLACES = np.arange(5)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("none", []),
        ("above:0.5", [2, 3]),
        ("above:-1e3", [0, 1, 2, 3]),
        ("sample:0", []),
        ("sample:1", [0, 1, 2, 3, 4]),
    ],
)
def test_rows_of_a_policy(text: str, rows: list[int]) -> None:
    assert ReasonsPolicy.parse(text).rows(SCORES, PLACES, PLACES).tolist() == rows


@pytest.mark.parametrize(
    "text",
    ["", "some", "all:", "all:1", "none:0", "above", "above:", "above:x", "above:nan", "above:inf", "sample:1.01",
     "sample:-0.1", "sample:nan", "Above:0.5", ":0.5"],
)  # fmt: skip
def test_texts_that_are_no_policy(text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(repr(text)) + ".*above:THRESHOLD"):
        ReasonsPolicy.parse(text)


def test_a_sample_is_of_its_rate_and_of_places_alone() -> None:
    n = 100_000
    partitions, offsets = np.repeat(np.arange(4), n // 4), np.tile(np.arange(n // 4), 4)
    policy, scores = ReasonsPolicy.parse("sample:0.1"), np.zeros(n)
    rows = policy.rows(scores, partitions, offsets)
    by_partition = np.bincount(partitions[rows], minlength=4) / (n // 4)
    assert np.all(np.abs(by_partition - 0.1) < 0.01)
    # neither the block nor the order matters, other partitions and seeds choose other rows
    shuffled = np.random.default_rng(1).permutation(n)
    again = policy.rows(scores, partitions[shuffled], offsets[shuffled])
    assert np.array_equal(np.sort(shuffled[again]), rows)
    cut = [policy.rows(scores[:7], partitions[i : i + 7], offsets[i : i + 7]) + i for i in range(0, n - 7, 7)]
    assert np.array_equal(np.concatenate(cut), rows[rows < 7 * len(cut)])
    first, second = (set(offsets[rows[partitions[rows] == p]].tolist()) for p in (0, 1))
    assert len(first & second) < 0.3 * len(first)
    other = ReasonsPolicy("sample", 0.1, seed=1).rows(scores, partitions, offsets)
    assert len(set(other.tolist()) & set(rows.tolist())) < 0.3 * len(rows)
    higher = ReasonsPolicy.parse("sample:0.2").rows(scores, partitions, offsets)
    assert set(rows.tolist()) < set(higher.tolist())


def test_the_strongest_come_first_and_equal_ones_by_name() -> None:
    values = np.array([[1.0, 2.0, np.nan, 4.0], [5.0, 6.0, 7.0, 8.0]])
    contributions = np.array([[0.5, -2.0, 0.5, 0.0, 9.0], [0.0, 0.0, 1.0, -1.0, 9.0]])
    made = strongest(("a", "b", "c", "d"), np.array([3, 8]), values, contributions, 3)
    assert made.rows.tolist() == [3, 8]
    assert made.feature.tolist() == [[1, 0, 2], [2, 3, 0]]
    assert made.contribution.tolist() == [[-2.0, 0.5, 0.5], [1.0, -1.0, 0.0]]
    np.testing.assert_array_equal(made.value, [[2.0, 1.0, np.nan], [7.0, 8.0, 5.0]])
    assert strongest(("a", "b", "c", "d"), np.array([3, 8]), values, contributions, 0).feature.shape == (2, 4)
    assert strongest(("a", "b", "c", "d"), np.array([3, 8]), values, contributions, 99).feature.shape == (2, 4)


# --- the slot ---


def test_the_slot_explains_the_model_s_own_features(tmp_path: Path) -> None:
    x = training_matrix(60)[0]
    registry = Registry(tmp_path)
    text = model_text("categorical")
    registry.add(Draft("m", text, parse(text).feature_names, "", "2026-01-01T00:00:00+00:00"), alias="champion")
    # the matrix has the model's columns backwards, and one that it does not know
    names = ["other", *(f"f{j}" for j in reversed(range(N_FEATURES)))]
    wide = np.column_stack([np.full(60, 7.0), x[:, ::-1]])
    model = registry.get("champion", names, None)
    serving = ModelSlot(model, ReasonsPolicy("above", 0.5, most=2)).serving
    _, score = serving.score(wide)
    made = serving.reasons(wide, score, np.zeros(60, np.int64), np.arange(60))
    assert made is not None and made.names == tuple(f"f{j}" for j in range(N_FEATURES))
    assert made.rows.tolist() == np.flatnonzero(score > 0.5).tolist() and 0 < len(made.rows) < 60
    expected = LightGBMExplainer(text).contributions(x[made.rows])
    for i, row in enumerate(made.rows):
        order = sorted(range(N_FEATURES), key=lambda j: -abs(expected[i, j]))[:2]
        assert made.feature[i].tolist() == order
        np.testing.assert_allclose(made.contribution[i], expected[i, order], atol=1e-9)
        np.testing.assert_array_equal(made.value[i], x[row, order])


def test_no_model_and_no_policy_give_no_reasons(tmp_path: Path) -> None:
    x, places = training_matrix(9)[0], np.arange(9)
    everything = ReasonsPolicy("all")
    assert ModelSlot(None, everything).serving.reasons(x, np.full(9, np.nan), places, places) is None
    registry = Registry(tmp_path)
    text = model_text("nan_missing")
    registry.add(Draft("m", text, parse(text).feature_names, "", "2026-01-01T00:00:00+00:00"), alias="champion")
    slot = ModelSlot(registry.get("champion"))
    assert slot.serving.explainer is None and slot.serving.reasons(x, np.ones(9), places, places) is None
    above = ModelSlot(registry.get("champion"), ReasonsPolicy("above", 2.0))
    assert above.serving.explainer is not None and above.serving.reasons(x, np.ones(9), places, places) is None
