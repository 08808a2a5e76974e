"""`headrace report`: what the page says is what is in the topics, and nothing that is in them becomes markup."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import orjson
import pytest

from features.block import Block, Ids
from features.state import NO_TIME
from models.evidence import average_precision
from models.histogram import reference
from models.package import Draft
from models.registry import Registry
from streams.cli.main import main
from streams.encode import ScoreEncoder, source_headers
from streams.labelled import LabelledEncoder, LabelledRows
from streams.log import OutBatch, connect
from streams.monitor_report import read_labelled
from streams.pipelines.fraud_monitor import FEATURE, MODEL
from streams.topics import ALERTS, FRAUD_SCORES, LABELLED, TRANSACTIONS, topic_infos
from streams.what_if import Span
from streams.what_if_served import read_served

DAY = 86_400_000
START = 18_000 * DAY
DAYS, A_DAY = 20, 60
NAMES = ("a", "<b>$")
ALERT = {
    "alert_id": "0123456789abcdef", "event_time": START + DAYS * DAY, "kind": "input_drift", "subject": "<b>$",
    "severity": "critical", "value": 0.5, "threshold": 0.1, "action": "none",
    "evidence": {"model": "m@1", "since": START + 18 * DAY, "strength": 5.0, "features": ["<b>$"]},
}  # fmt: skip


@pytest.fixture
def quiet() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


def rows() -> tuple[Block, Any, Any]:
    """Rows of 20 days, whose second feature moves on the last; their matrix and labels."""
    rng = np.random.default_rng(5)
    n = DAYS * A_DAY
    at = np.arange(n)
    times = START + at // A_DAY * DAY + rng.integers(0, DAY, n)
    a, b = rng.normal(0, 1, n), rng.gamma(2.0, 2.0, n) + np.where(at >= n - A_DAY, 4.0, 0.0)
    score = 1 / (1 + np.exp(2 - a))
    named = {"transaction_id": at, "card_id": at % 50, "terminal_id": at % 9}
    ids = {name: Ids(ints=values.astype(np.int64)) for name, values in named.items()}
    ids[MODEL] = Ids(mixed=["m@1"] * n)
    columns = {"event_time": times, "source_partition": at * 0, "source_offset": at, "late": at < 0, "amount": b}
    columns |= {"raw": a, "score": score, f"{FEATURE}a": a, f"{FEATURE}<b>$": b}
    block = Block(TRANSACTIONS, 0, n, at, times, ids, columns)
    return block, np.column_stack([a, b]), (rng.random(n) < score).astype(np.int64)


def fill(url: str, monitored: bool = True) -> tuple[Block, Any]:
    log = connect(url)
    log.admin().create_topics(topic_infos((FRAUD_SCORES, LABELLED, ALERTS) if monitored else (FRAUD_SCORES,), 1))
    block, matrix, labels = rows()
    n = len(block)
    scored = Block(TRANSACTIONS, 0, n, block.offsets, block.timestamps, dict(block.ids), block.columns)
    del scored.ids[MODEL]
    values = ScoreEncoder(NAMES).encode(
        scored, features=matrix, late=block.columns["late"], model="m@1", score=block.columns["score"],
        raw=block.columns["raw"],
    )  # fmt: skip
    headers = [{"source": source} for source in source_headers(TRANSACTIONS, block.offsets * 0, block.offsets)]
    producer = log.producer()
    for _ in range(2):  # at least once
        producer.send(OutBatch(FRAUD_SCORES, values, None, 0, headers))
    if monitored:
        known = np.arange(n - 2 * A_DAY)  # of the last two days none has come
        times = block.event_time_ms[known]
        sent = np.where(known % 5 == 0, NO_TIME, times + 2 * DAY)
        columns = (labels[known], times + 2 * DAY, sent)
        part = LabelledRows(known, block.take(known), NAMES, matrix[known], *columns)
        producer.send(LabelledEncoder().encode([part]))
        producer.send(OutBatch(ALERTS, [orjson.dumps(ALERT)], [b"a"]))
    producer.close()
    return block, labels


def test_a_day_is_compared_with_those_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_LABEL_MATURE_MS", str(2 * DAY))
    url = f"memory://{uuid.uuid4().hex}"
    block, labels = fill(url)
    assert main(["report", "--to", str(tmp_path), "--bootstrap", url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["rows"] == A_DAY and found["reference_rows"] == (DAYS - 1) * A_DAY
    columns = {column["name"]: column for column in found["columns"]}
    assert columns["score"]["psi"] is None, "60 rows cannot say"
    assert columns["<b>$"]["mean_now"] - columns["<b>$"]["mean_then"] == pytest.approx(4.0, abs=1.0)
    assert [alert["alert_id"] for alert in found["alerts"]] == [ALERT["alert_id"]]
    # the last day whose labels are all final, two days after its end
    last = found["performance"]
    assert last["day"] == START + 16 * DAY or last["day"] == START + 15 * DAY
    week = np.flatnonzero((block.event_time_ms < last["day"] + DAY) & (block.event_time_ms >= last["day"] - 6 * DAY))
    assert last["rows"] == len(week) and last["frauds"] == labels[week].sum()
    score = block.columns["score"][week].astype(np.float64)
    expected = average_precision(labels[week], score)
    assert last["average_precision"]["value"] == pytest.approx(expected, abs=0.03)
    assert last["average_precision"]["low"] < expected < last["average_precision"]["high"]
    two_days = [point for point in found["maturity"] if point["age_ms"] == 2 * DAY]
    # four of five came after two days; the others by the horizon
    assert two_days[0]["labelled"] == pytest.approx(0.8, abs=0.08)
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "http://" not in page and "https://" not in page
    assert "<b>" not in page and "&lt;b&gt;$" in page and "changed about" in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"distributions.png", "performance.png", "maturity.png"}


def test_a_range_has_distances_and_the_feature_that_moved_is_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None
) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    fill(url, monitored=False)
    words = ["report", "--to", str(tmp_path), "--bootstrap", url, "--from", str(START + 18 * DAY)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["rows"] == 2 * A_DAY and not found["monitored"] and found["performance"] is None
    assert [column["name"] for column in found["columns"]] == ["score", "<b>$", "a"]
    assert found["columns"][1]["psi"] > 0.3 > found["columns"][2]["psi"]
    assert main(words) == 0
    assert "no monitor has run" in capsys.readouterr().out
    assert "no monitor has run" in (tmp_path / "index.html").read_text()


def test_what_the_model_was_tested_on_is_compared_with_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None
) -> None:
    url, models = f"memory://{uuid.uuid4().hex}", tmp_path / "models"
    fill(url, monitored=False)
    block, matrix, _ = rows()
    x = np.random.default_rng(1).random((200, 2))
    data = lgb.Dataset(x, x[:, 0] > 0.5, feature_name=["a", "b"])
    text = lgb.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, 1).model_to_string()
    tested = reference(
        matrix[: 10 * A_DAY] + np.array([0.0, 3.0]), NAMES, block.columns["score"][: 10 * A_DAY].astype(float)
    )
    draft = Draft("m", text, ("a", "b"), "", "2026-01-01T00:00:00+00:00", reference=tested)
    Registry(models).add(draft)
    words = ["report", "--to", str(tmp_path / "r"), "--bootstrap", url, "--from", str(START + 17 * DAY), "--json"]
    words += ["--until", str(START + 19 * DAY)]
    assert main([*words, "--models", str(models)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    psi = {column["name"]: (column["psi"], column["psi_trained"]) for column in found["columns"]}
    assert max(psi["a"]) < 0.25 and psi["<b>$"][1] > 0.5 > psi["<b>$"][0]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["columns"][0]["psi_trained"] is None


def test_a_page_for_each_day_and_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    fill(url)
    words = ["report", "--to", str(tmp_path), "--daily", "--bootstrap", url, "--reference-days", "3"]
    words += ["--from", str(START + 17 * DAY), "--json"]
    assert main(words) == 0
    days = json.loads(capsys.readouterr().out.splitlines()[-1])["days"]
    assert [figures["rows"] for figures in days.values()] == [A_DAY] * 3
    assert [figures["reference_rows"] for figures in days.values()] == [3 * A_DAY] * 3
    index = (tmp_path / "index.html").read_text()
    for day in days:
        assert f'href="{day}/index.html"' in index and (tmp_path / day / "index.html").is_file()


def test_a_label_of_a_clock_that_is_ahead_is_as_new_as_its_record() -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    log.admin().create_topics(topic_infos((LABELLED,), 1))
    now = int(time.time() * 1000)
    record = {"event_time": START, "label_time": now + 3_650 * DAY, "label": 1, "score": 0.5, "by": "label"}
    log.producer().send(OutBatch(LABELLED, [orjson.dumps(record)], None, 0))
    found = read_labelled(log, Span(0, 1 << 62))
    assert len(found.times) == 1 and found.newest_ms < now + DAY


def test_of_the_newest_day_nothing_older_than_its_reference_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, read = f"memory://{uuid.uuid4().hex}", []
    fill(url)

    def reading(*args: Any) -> Any:
        read.append(read_served(*args))
        return read[-1]

    monkeypatch.setattr("streams.what_if_served.read_served", reading)
    assert main(["report", "--to", str(tmp_path), "--bootstrap", url, "--reference-days", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["rows"] == A_DAY and found["reference_rows"] == 3 * A_DAY and found["monitored"]
    assert 4 * A_DAY <= len(read[0]) <= 5 * A_DAY


def test_wrong_use_of_the_report_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    words = ["report", "--bootstrap", url, "--to", str(tmp_path)]
    assert main(words) == 2
    assert "topic fraud-scores: not there" in capsys.readouterr().err
    fill(url, monitored=False)
    for more, said in (
        (["--day", "2001-01-01"], "no scored transaction in this range"),
        (["--day", "2001-01-01", "--daily"], "give one or the other"),
        (["--from", "2001-01-02", "--until", "2001-01-01"], "not after --from"),
        (["--reference-days", "0"], "--reference-days 0: below 1"),
        (["--day", "2019-04-20T12:00"], "--day 2019-04-20T12:00: not a whole day"),
        (["--daily", "--from", "2019-04-20T12:00"], "--from 2019-04-20T12:00: not a whole day"),
        (["--daily", "--until", "2019-04-20T12:00"], "--until 2019-04-20T12:00: not a whole day"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", "--bootstrap", url, "--to", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be made" in capsys.readouterr().err
