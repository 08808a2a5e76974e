"""Reasons in score records: as JSON, in the live tasks, whatever the blocks, and only where the policy says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import orjson
import pytest
from fraud_logs import DAY, NOW, Fed, Logs, batch, cut, label, make_pipeline, processed, transaction
from hypothesis import given, settings
from hypothesis import strategies as st

from features.fraud import DEFAULT
from models.explain_policy import Reasons, ReasonsPolicy
from models.modeltext import parse
from models.package import Draft, LoadedModel
from models.registry import Registry
from models.slot import ModelSlot
from streams import fraud_worker
from streams.cli.main import main
from streams.config import Settings
from streams.errors import HeadraceError
from streams.log import TP
from streams.reasons import reason_texts
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS

FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1e16, 1e-7, 5e-324, float("nan"), float("inf")]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), st.lists(st.text(max_size=8), min_size=1, max_size=4), st.integers(1, 8))
def test_texts_equal_orjson(data: st.DataObject, names: list[str], rows: int) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1)))
    each = data.draw(st.integers(1, len(names)))
    reason = st.tuples(st.integers(0, len(names) - 1), FLOATS, FLOATS)
    made = data.draw(
        st.lists(st.lists(reason, min_size=each, max_size=each), min_size=len(chosen), max_size=len(chosen))
    )
    columns = [np.array([[r[i] for r in row] for row in made]) for i in range(3)]
    got = reason_texts(rows, Reasons(tuple(names), np.array(chosen), *columns))
    expected: list[list[dict[str, Any]]] = [[] for _ in range(rows)]
    for row, reasons in zip(chosen, made, strict=True):
        expected[row] = [{"feature": names[f], "value": v, "contribution": c} for f, v, c in reasons]
    assert got == [orjson.dumps(row) for row in expected]


def test_no_reasons_are_no_texts() -> None:
    assert reason_texts(3, None) is None


# --- as options ---


def test_the_options_of_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[Settings] = []

    def stop(settings: Settings, on_ready: object) -> None:
        given.append(settings)
        raise HeadraceError("far enough")

    monkeypatch.setattr(fraud_worker, "make_worker", stop)
    words = ["run", "--pipeline", "fraud", "--bootstrap", "memory://reasons"]
    assert main([*words, "--reasons", "sample:0.5", "--reasons-max", "0"]) == 1
    assert main(words) == 1
    assert [s.reasons_policy() for s in given] == [ReasonsPolicy("sample", 0.5, 0), ReasonsPolicy("above", 0.5, 5)]
    assert main([*words, "--reasons", "most"]) == 2
    assert "setting reasons: 'most' does not say which scores are explained" in capsys.readouterr().err


# --- in the live tasks ---


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    rng = np.random.default_rng(5)
    x = rng.random((800, len(DEFAULT))) * 10
    data = lgb.Dataset(x, (x[:, 0] + x[:, 4] > 10).astype(float), feature_name=list(DEFAULT.names))
    params = {"objective": "binary", "verbosity": -1, "num_leaves": 7, "num_threads": 1}
    text = lgb.train(params, data, 10).model_to_string()
    registry = Registry(Path(tmp_path_factory.mktemp("models")))
    registry.add(Draft("m", text, parse(text).feature_names, "", "2026-01-01T00:00:00+00:00"), alias="champion")
    return registry.get("champion", DEFAULT.names)


EVENTS = [
    transaction(i, NOW - DAY + 1000 * i, card=i % 4, terminal=i % 3, amount=[0.5, 4.0, 9.0][i % 3]) for i in range(40)
]


def scores(slot: ModelSlot, cuts: list[int] | None = None) -> list[bytes]:
    fed = Fed(make_pipeline(slot=slot))
    for _, piece in cut(EVENTS, cuts or []):
        fed.feed(piece)
    return [r.value for r in fed.logs.of(FRAUD_SCORES) if r.value is not None]


def test_a_score_carries_its_reasons_largest_first(model: LoadedModel) -> None:
    booster = lgb.Booster(model_str=model.model_text)
    records = [orjson.loads(v) for v in scores(ModelSlot(model, ReasonsPolicy("above", 0.5, most=3)))]
    explained = [r for r in records if r["reasons"]]
    assert {r["transaction_id"] for r in explained} == {r["transaction_id"] for r in records if r["score"] > 0.5}
    assert 0 < len(explained) < len(records)
    for record in explained:
        vector = np.array([list(record["features"].values())], np.float64)
        [contributions] = booster.predict(vector, pred_contrib=True)
        order = sorted(range(len(DEFAULT)), key=lambda j: -abs(contributions[j]))[:3]
        assert [list(r) for r in record["reasons"]] == [["feature", "value", "contribution"]] * 3
        assert [r["feature"] for r in record["reasons"]] == [DEFAULT.names[j] for j in order]
        assert [r["value"] for r in record["reasons"]] == vector[0, order].tolist()
        np.testing.assert_allclose([r["contribution"] for r in record["reasons"]], contributions[order], atol=1e-9)


def test_all_reasons_add_up_to_the_raw_score(model: LoadedModel) -> None:
    base = lgb.Booster(model_str=model.model_text).predict(np.zeros((1, len(DEFAULT))), pred_contrib=True)[0, -1]
    for value in scores(ModelSlot(model, ReasonsPolicy("all", most=0))):
        record = orjson.loads(value)
        assert sorted(r["feature"] for r in record["reasons"]) == sorted(DEFAULT.names)
        assert sum(r["contribution"] for r in record["reasons"]) + base == pytest.approx(record["raw"], abs=1e-9)


@pytest.mark.parametrize("policy", ["all", "above:0.5", "sample:0.4"])
def test_blocks_do_not_show(model: LoadedModel, policy: str) -> None:
    slot = ModelSlot(model, ReasonsPolicy.parse(policy))
    whole = scores(slot)
    some = [bool(orjson.loads(value)["reasons"]) for value in whole]
    assert any(some) and (policy == "all") == all(some)
    for cuts in ([1], [7, 8, 25], list(range(40))):
        assert scores(slot, cuts) == whole


def test_no_scores_no_reasons_and_none_means_none(model: LoadedModel) -> None:
    for slot in (ModelSlot(None, ReasonsPolicy("all")), ModelSlot(model, ReasonsPolicy("none"))):
        assert {bytes(orjson.dumps(orjson.loads(v)["reasons"])) for v in scores(slot)} == {b"[]"}


def test_a_replay_explains_nothing_and_what_is_sent_again_is_the_same(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = ModelSlot(model, ReasonsPolicy("all"))
    fed = Fed(make_pipeline(slot=slot))
    fed.feed([label(0, NOW)], LABELS)
    fed.feed(EVENTS[:20])
    first = len(fed.logs.records[BY_TERMINAL, 0])
    fed.feed(EVENTS[20:])
    shuffled = fed.logs.records[BY_TERMINAL, 0]

    explainer = slot.serving.explainer
    calls: list[int] = []
    right = type(explainer).contributions
    monkeypatch.setattr(type(explainer), "contributions", lambda self, x: (calls.append(len(x)), right(self, x))[1])
    task = make_pipeline(slot=slot).task(TP(BY_TERMINAL, 0))
    assert processed(task, batch(BY_TERMINAL, shuffled[:first], replay=True)) == [] and calls == []
    again = Logs()
    again.take(processed(task, batch(BY_TERMINAL, shuffled[first:], first)), 1)
    assert calls == [20]
    assert again.of(FRAUD_SCORES) == fed.logs.of(FRAUD_SCORES)[20:]
