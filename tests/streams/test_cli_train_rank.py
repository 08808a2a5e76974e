"""`headrace train --pipeline recommend`: from a file of interactions to a champion that a worker serves."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest
from fraud_logs import Record
from recommend_logs import NOW, walk

from features.shopping import FEATURES, SCHEMA_HASH
from models.package import Draft
from models.registry import Registry
from streams.cli.main import main
from streams.config import load_settings
from streams.log import connect
from streams.recommend_worker import make_pipeline

RECORDS = walk(2_500, users=20, items=40)


def when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


def write(path: Path, records: list[Record]) -> Path:
    path.write_bytes(b"".join((record.value or b"") + b"\n" for record in records))
    return path


def words(events: Path, models: Path, *more: str) -> list[str]:
    begin, middle = NOW - 1_500 * 7_000, NOW - 500 * 7_000
    ranges = ["--train", f"{when(begin)}:{when(middle)}", "--test", f"{when(middle)}:{when(NOW)}"]
    train = ["train", "--pipeline", "recommend", "--threads", "1", "--lists", "400"]
    return [*train, "--from", str(events), "--models", str(models), *ranges, *more]


def test_a_ranker_that_a_worker_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = write(tmp_path / "events.jsonl", [*RECORDS[1_000:], Record(b'{"user_id": 1}'), *RECORDS[:1_000]])
    models = tmp_path / "models"
    assert main(words(events, models, "--alias", "champion", "--json")) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out.splitlines()[-1])
    assert figures["model"] == "recommend@1" and 0 < figures["test_lists"] <= figures["train_lists"] == 400
    assert figures["recall_20"] > 90 and figures["mrr_20"] > 30 and figures["candidates_mrr_20"] > 0
    assert "1 of 2,501 rows are invalid and left out" in err
    loaded = Registry(models).get("champion", FEATURES, SCHEMA_HASH)
    assert loaded.manifest.label == "recommend@1"
    settings = load_settings(None, {}, {"bootstrap": "memory://rank", "models": str(models)})
    assert make_pipeline(settings, connect("memory://rank")).slot.label == "recommend@1"
    beside = load_settings(None, {}, {"models": str(tmp_path), "recommend_models": str(models)})
    assert make_pipeline(beside, connect("memory://rank")).slot.label == "recommend@1", "a registry beside fraud's"


def test_the_champion_of_another_pipeline_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = lgb.Dataset(np.array([[0.0], [1.0]]), [0.0, 1.0])
    model = lgb.train({"verbosity": -1, "min_data_in_leaf": 1, "num_threads": 1}, data, 1)
    text = model.model_to_string()
    settings = load_settings(None, {}, {"bootstrap": "memory://rank", "models": str(tmp_path)})
    for alias, says in ((None, []), ("champion", ["fraud@2 is refused: .* made for another"])):
        Registry(tmp_path).add(Draft("fraud", text, ("Column_0",), "another", "2026-01-01T00:00:00+00:00"), alias)
        caplog.clear()
        assert make_pipeline(settings, connect("memory://rank")).slot.model is None
        says = [*says, "has no champion for lists: they come without a model"]
        for record, said in zip(caplog.records, says, strict=True):
            assert re.search(said, record.getMessage())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--labels", "x.jsonl"], "--labels: the recommend pipeline learns from what is clicked next"),
        (["--test", "2001-01-01:2001-01-02"], "--test: begins before the training's end; give a later range"),
        (["--name", "Not A Name"], "--name: model name: 'Not A Name' cannot be used"),
    ],
)
def test_wrong_use_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert main(words(write(tmp_path / "events.jsonl", RECORDS[:50]), tmp_path / "models", *more)) == 2
    assert says in capsys.readouterr().err


def test_nothing_to_learn_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = write(tmp_path / "events.jsonl", RECORDS[:50])
    assert main(words(events, tmp_path / "models")) == 1
    assert "--train: 0 lists, none with the item that came next" in capsys.readouterr().err
    assert main(words(write(events, [Record(b"{}")]), tmp_path / "models")) == 1
    assert "no valid interaction in it" in capsys.readouterr().err


def test_the_fraud_pipeline_still_needs_its_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events, models = write(tmp_path / "events.jsonl", RECORDS[:50]), str(tmp_path / "models")
    assert main(["train", "--from", str(events), "--train", "2018-01-01:2018-01-02", "--models", models]) == 2
    assert "--labels: missing; give a file, or --from-topics" in capsys.readouterr().err
