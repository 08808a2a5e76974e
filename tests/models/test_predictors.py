"""One conformance suite for every predictor: the same bits as `Booster.predict(raw_score=True)`, but of the one on a
graphics card, which is held to its tolerance on its library's CPU device."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import SimpleNamespace

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import N_FEATURES, NAMES, REFUSED, model_text, random_text, training_matrix

from models import auto, compiled, golden, kernels
from models.auto import BATCH_SIZES, AutoPredictor, choose
from models.compiled import CompiledPredictor
from models.errors import ModelError, PredictorUnavailableError, UnsupportedModelError
from models.forest import flatten
from models.gpu import GpuPredictor, agree
from models.lightgbm import LightGBMPredictor
from models.modeltext import parse
from models.predictor import ColumnSelect, Predictor


class Walking(CompiledPredictor):
    """The compiled predictor on its kernel for trees of any size, whatever the batch."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._block = kernels.score_walk


PREDICTORS: dict[str, Callable[[str], Predictor]] = {
    "lightgbm": LightGBMPredictor,
    "compiled": CompiledPredictor,
    "compiled_walk": Walking,
    "auto": lambda text: choose(text).predictor,
    "auto_mixed": lambda text: AutoPredictor(
        tuple((CompiledPredictor, LightGBMPredictor)[i % 2](text) for i in range(len(BATCH_SIZES)))
    ),
    "gpu": lambda text: GpuPredictor(text, device="cpu"),
    "column_select": lambda text: ColumnSelect(CompiledPredictor(text), np.arange(N_FEATURES), N_FEATURES),
}


@functools.cache
def predictor_of(kind: str, model: str) -> Predictor:
    return PREDICTORS[kind](model_text(model))


@functools.cache
def booster_of(model: str) -> lightgbm.Booster:
    return lightgbm.Booster(model_str=model_text(model))


@functools.cache
def rows_of(model: str, kind: str = "") -> np.ndarray:
    traps = golden.inputs(parse(model_text(model)), rows=1500, seed=5)
    rows = np.concatenate([traps, training_matrix(500)[0]])
    return np.ascontiguousarray(rows[~np.isposinf(rows).any(axis=1)] if kind == "gpu" else rows)


def assert_bits(got: np.ndarray, expected: np.ndarray, x: np.ndarray) -> None:
    assert got.dtype == np.float64 and got.shape == expected.shape
    wrong = np.flatnonzero(got.view(np.int64) != expected.view(np.int64))
    assert len(wrong) == 0, f"{len(wrong)} of {len(x)} rows, first {x[wrong[0]]}: {got[wrong[0]]} {expected[wrong[0]]}"


def assert_right(kind: str, got: np.ndarray, expected: np.ndarray, x: np.ndarray) -> None:
    if kind == "gpu":
        assert got.dtype == np.float64 and agree(got, expected)
    else:
        assert_bits(got, expected, x)


_NEEDS_NVFOREST = pytest.mark.skipif(
    find_spec("nvforest") is None,
    reason="nvForest (2.3 GB) is not installed: `make test-gpu` installs it and runs the tests of the gpu predictor",
)


@pytest.fixture(params=[pytest.param(name, marks=[_NEEDS_NVFOREST] * (name == "gpu")) for name in PREDICTORS])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("model", NAMES)
def test_same_scores_on_traps(kind: str, model: str) -> None:
    x = rows_of(model, kind)
    if (kind, model) == ("gpu", "zero_as_missing"):
        with pytest.raises(UnsupportedModelError, match="zero_as_missing"):
            predictor_of(kind, model)
        return
    assert_right(kind, predictor_of(kind, model).predict_raw(x), booster_of(model).predict(x, raw_score=True), x)


@pytest.mark.parametrize("model", ["categorical", "leaves_65", "constant"])
def test_batch_size_does_not_show(kind: str, model: str) -> None:
    predictor, x = predictor_of(kind, model), rows_of(model, kind)
    whole = predictor.predict_raw(x)
    for n in (1, 2, 5, 6, 7, 8, 9, 15, 63, 64, 65, 128, 131):
        assert_right(kind, predictor.predict_raw(x[n : 2 * n]), whole[n : 2 * n], x[n : 2 * n])
    assert predictor.predict_raw(x[:0]).shape == (0,)


def test_takes_any_layout_of_a_matrix(kind: str) -> None:
    predictor, x = predictor_of(kind, "nan_missing"), rows_of("nan_missing", kind)
    expected = predictor.predict_raw(x)
    assert_right(kind, predictor.predict_raw(np.asfortranarray(x)), expected, x)
    assert_right(kind, predictor.predict_raw(x[::3]), expected[::3], x[::3])
    whole_numbers = np.round(np.nan_to_num(x, posinf=5, neginf=5).clip(-99, 99))
    got = predictor.predict_raw(whole_numbers.astype(np.int32))
    assert_right(kind, got, predictor.predict_raw(whole_numbers), x)


@pytest.mark.parametrize("shape", [(3, N_FEATURES - 1), (3, N_FEATURES + 1), (N_FEATURES,)])
def test_refuses_other_shapes(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=rf"takes \(n, {N_FEATURES}\)"):
        predictor_of(kind, "nan_missing").predict_raw(np.zeros(shape))


def test_threads_do_not_disturb_each_other(kind: str) -> None:
    predictor, x = predictor_of(kind, "categorical"), rows_of("categorical", kind)
    expected = predictor.predict_raw(x)
    cuts = [(i % 97, i % 97 + 1 + i * 13 % 200) for i in range(200)]
    with ThreadPoolExecutor(6) as pool:
        for (a, b), got in zip(cuts, pool.map(lambda c: predictor.predict_raw(x[c[0] : c[1]]), cuts), strict=True):
            assert_right(kind, got, expected[a:b], x[a:b])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_random_models(seed: int) -> None:
    text = random_text(seed)
    x = golden.inputs(parse(text), rows=150, seed=seed)
    expected = lightgbm.Booster(model_str=text).predict(x, raw_score=True)
    for make in (CompiledPredictor, Walking):
        assert_bits(make(text).predict_raw(x), expected, x)


@given(rows=st.lists(st.lists(st.floats(), min_size=N_FEATURES, max_size=N_FEATURES), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None, derandomize=True)
@pytest.mark.parametrize("model", ["zero_as_missing", "categorical", "leaves_300"])
def test_any_double(model: str, rows: list[list[float]]) -> None:
    x = np.array(rows)
    assert_bits(predictor_of("compiled", model).predict_raw(x), booster_of(model).predict(x, raw_score=True), x)


@pytest.mark.parametrize("model", REFUSED)
def test_unsupported_models_are_refused_with_the_reason(model: str) -> None:
    with pytest.raises(UnsupportedModelError, match=REFUSED[model]):
        CompiledPredictor(model_text(model))


@pytest.mark.parametrize("model", ["linear", "random_forest"])
def test_auto_serves_unsupported_models_by_lightgbm(model: str) -> None:
    choice = choose(model_text(model))
    assert choice.predictor.name == "lightgbm"
    assert REFUSED[model] in choice.reason
    x = training_matrix(50)[0]
    assert_bits(choice.predictor.predict_raw(x), booster_of(model).predict(x, raw_score=True), x)


@_NEEDS_NVFOREST
def test_gpu_refuses_what_it_would_score_wrongly() -> None:
    predictor, x = predictor_of("gpu", "threshold_inf"), rows_of("threshold_inf", "gpu")[:3].copy()
    x[1, 2] = np.inf
    with pytest.raises(ModelError, match=r"\+inf in column 2"):
        predictor.predict_raw(x)
    for model, reason in REFUSED.items():
        with pytest.raises(UnsupportedModelError, match=reason):
            predictor_of("gpu", model)
    both = re.sub(r"\nsplit_feature=\d", "\nsplit_feature=3", model_text("categorical"))
    with pytest.raises(UnsupportedModelError, match="f3 is a number and a category"):
        GpuPredictor(both, device="cpu")


@_NEEDS_NVFOREST
def test_gpu_serves_who_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "GpuPredictor", lambda text: GpuPredictor(text, device="cpu"))
    choice = choose(model_text("categorical"), wanted="gpu")
    assert choice.predictor.name == "gpu" and "asked for" in choice.reason and set(choice.us_per_row) == {"gpu"}
    assert "gpu" not in choose(model_text("categorical")).predictor.name
    assert "zero_as_missing" in choose(model_text("zero_as_missing"), wanted="gpu").reason


def test_without_the_gpu_library_auto_serves_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "nvforest", None)
    with pytest.raises(PredictorUnavailableError, match=r"headrace\[gpu\]"):
        GpuPredictor(model_text("stumps"))
    choice = choose(model_text("stumps"), wanted="gpu")
    assert "nvForest is not to be had" in choice.reason and "bit-equal" in choice.reason
    assert "nvForest is not to be had" in caplog.text


def test_without_a_driver_the_gpu_predictor_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to detect a GPU device. Diagnostic:\n    cudaErrorInsufficientDriver: ...")

    monkeypatch.setitem(sys.modules, "nvforest", SimpleNamespace(load_model=load_model))
    choice = choose(model_text("stumps"), wanted="gpu")
    assert "cannot use the gpu (Failed to detect a GPU device. Diagnostic: cudaError" in choice.reason
    assert choice.predictor.name != "gpu"


def test_lightgbm_and_compiled_can_be_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    for wanted in ("lightgbm", "compiled"):
        choice = choose(model_text("stumps"), wanted=wanted)
        assert choice.predictor.name == wanted and "asked for" in choice.reason
    choice = choose(model_text("linear"), wanted="compiled")
    assert choice.predictor.name == "lightgbm" and choice.reason.startswith("compiled: asked for, but model: linear")
    assert caplog.messages == [f"{choice.reason.removesuffix('; so lightgbm')}; lightgbm serves the model"]


def test_multiclass_has_no_predictor() -> None:
    with pytest.raises(ModelError, match="3 scores per row"):
        choose(model_text("multiclass"))


def test_auto_reports_what_it_measured() -> None:
    choice = choose(model_text("nan_missing"))
    assert set(choice.us_per_row) == {"lightgbm", "compiled"}
    assert all(len(figures) == len(BATCH_SIZES) and min(figures) > 0 for figures in choice.us_per_row.values())
    assert "bit-equal" in choice.reason


@pytest.mark.parametrize("array", ["words", "ints"])
def test_auto_notices_a_compiled_predictor_that_is_wrong(monkeypatch: pytest.MonkeyPatch, array: str) -> None:
    def wrong(model: object) -> object:
        forest = flatten(model)  # type: ignore[arg-type]
        at = forest.ints[list(kernels.SLOTS).index("fill_nan" if array == "words" else "column_feature")]
        if array == "words":
            forest.words[at : at + 4] = np.float64(5.0).view(np.uint64)
        else:
            forest.ints[at] ^= 1
        return forest

    monkeypatch.setattr(compiled, "flatten", wrong)
    choice = auto.choose(model_text("nan_missing"))
    assert choice.predictor.name == "lightgbm"
    assert "differs" in choice.reason


def test_a_golden_batch_that_lightgbm_does_not_match_is_an_error() -> None:
    x = rows_of("nan_missing")[:50]
    raw = booster_of("nan_missing").predict(x, raw_score=True)
    raw[7] = np.nextafter(raw[7], 9)
    with pytest.raises(ModelError, match="1 of 50 rows"):
        choose(model_text("nan_missing"), (x, raw))


@pytest.mark.parametrize("text", ["", "not a model", "tree\nend of trees\n", "tree\nTree=0\n\nend of trees\n"])
def test_text_that_is_no_model(text: str) -> None:
    with pytest.raises(ModelError, match="model text"):
        choose(text)


@pytest.mark.parametrize("share", np.linspace(0.0, 1.0, 60)[:-1])
def test_a_text_that_was_cut_off_is_refused_or_the_whole_model(share: float) -> None:
    text = model_text("categorical")
    part = text[: int(len(text) * share)]
    if "end of trees" in part and ("\nparameters:" not in part or "end of parameters" in part):
        assert len(parse(part).trees) == len(parse(text).trees)
    else:
        with pytest.raises(ModelError, match="model text"):
            LightGBMPredictor(part)


@pytest.mark.parametrize("field", ["num_leaves", "leaf_value", "left_child", "cat_threshold", "threshold"])
def test_a_tree_without_a_field_is_refused(field: str) -> None:
    head, first, rest = model_text("categorical").partition("\nTree=3\n")
    with pytest.raises(ModelError, match="model text"):
        parse(head + first + re.sub(rf"^{field}=.*\n", "", rest, count=1, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("line", "value"),
    [("left_child", "1 2 3 99 "), ("right_child", "0 "), ("split_feature", "7 "), ("split_feature", "-1 ")],
)
def test_trees_with_loose_ends_are_refused(line: str, value: str) -> None:
    text = random_text(3)
    at = text.index(f"\n{line}=", text.index("num_leaves=", text.index("Tree=3"))) + len(line) + 2
    until = at
    for _ in value.split():
        until = text.index(" ", until) + 1
    with pytest.raises(ModelError, match="do not exist"):
        parse(text[:at] + value + text[until:])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_tree_per_iteration", "0", "not the same number above 0"),
        ("num_class", "99999999", "not the same number above 0"),
        ("decision_type", "1 1 1 1 1 1 1 1 1 1 1 1 1 1", "categories that do not exist"),
        ("cat_boundaries", "0 999999999", "categories that do not exist"),
        ("leaf_value", "nan", "no finite number"),
        ("leaf_value", "-inf", "no finite number"),
        ("feature_names", "f0 f1 f0 f3 f4", "f0 names several features"),
    ],
)
def test_texts_that_would_end_or_mislead_lightgbm_are_refused(field: str, value: str, said: str) -> None:
    """Some of them end the process, and some read memory that is not theirs."""
    text = model_text("categorical" if field == "cat_boundaries" else "no_missing")
    line = re.search(rf"^{field}=(.*)$", text, flags=re.MULTILINE)
    assert line is not None
    rest = line[1].split()[len(value.split()) :]
    text = text[: line.start(1)] + " ".join([value, *rest]) + text[line.end(1) :]
    with pytest.raises(ModelError, match=said):
        parse(text)


@pytest.mark.parametrize("field", ["threshold", "leaf_value"])
def test_a_tree_with_a_value_too_few_is_refused(field: str) -> None:
    text = re.sub(rf"^({field}=.*) \S+$", r"\1", model_text("categorical"), flags=re.MULTILINE)
    with pytest.raises(ModelError, match="tree 0 lacks fields"):
        parse(text)
