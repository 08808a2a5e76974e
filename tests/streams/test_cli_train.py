"""headrace train: options of the training, what it prints, and its report."""

from __future__ import annotations

import argparse
import json
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.compare import compare
from models.registry import Registry
from streams.cli import train as command
from streams.cli.main import main
from streams.log import OutBatch, connect
from streams.simulator import DAY_MS, World
from streams.topics import LABELS, TRANSACTIONS, topic_infos

START = int(np.datetime64("2024-01-01", "ms").astype(np.int64))
METRICS = ("auc", "average_precision", "card_precision_100", "log_loss", "brier")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """``train`` on the files of a small world."""
    folder = tmp_path_factory.mktemp("files")
    world = World(5, start_ms=START, cards=120, terminals=150, label_delay_ms=2 * DAY_MS)
    transactions, labels = world.history(28)
    pq.write_table(pa.table(transactions), folder / "events.parquet")
    pq.write_table(pa.table(labels), folder / "labels.parquet")
    inputs = ["--from", str(folder / "events.parquet"), "--labels", str(folder / "labels.parquet")]
    ranges = ["--train", "2024-01-08:2024-01-21", "--test", "2024-01-24:2024-01-28", "--label-delay", "2d"]
    return ["train", *inputs, *ranges, "--threads", "1"]


def test_search_budget_and_report(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--models", str(tmp_path / "models"), "--report", str(tmp_path / "report"), "--json"]
    options += ["--search", "1", "--budget", "100us", "--calibration", "isotonic", "--coverage", "0.8", "--seed", "3"]
    assert main([*words, *options]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in METRICS:
        low, high = figures["intervals"][name]
        assert low <= figures[name] <= high and low < high
    assert figures["search"]["trials"] == 1 and figures["search"]["seed"] == 3 and "tried" not in figures["search"]
    assert figures["budget"]["cut"] is False and figures["budget"]["us_per_row"] <= 100
    assert figures["conformal"]["alpha"] == pytest.approx(0.2)
    assert figures["report"] == str(tmp_path / "report" / "report.html") and Path(figures["report"]).is_file()
    registry = Registry(tmp_path / "models")
    manifest = registry.entries()[0].manifest
    assert manifest.calibration.kind == "isotonic" and manifest.categories == {}
    assert manifest.conformal == figures["conformal"]
    assert manifest.evaluation["intervals"]["seed"] == 3
    assert set(manifest.reference["features"]) == set(manifest.features)
    assert len(manifest.training["search"]["tried"]) == 1
    assert not (registry.resolve("fraud@1") / "report.html").exists()
    loaded = registry.get("fraud@1")
    assert loaded.conformal is not None and loaded.conformal.alpha == pytest.approx(0.2)


def test_what_is_printed(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--models", str(tmp_path), "--class-weight", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"fraud@1 in {tmp_path}")
    assert sum(line.startswith("  ") and "[" in line for line in lines) == len(METRICS)
    assert any(line.startswith("conformal sets for 90% hold the true label of") for line in lines)
    assert lines[-1] == f"report: {tmp_path / 'fraud' / '1' / 'report.html'}"
    manifest = Registry(tmp_path).entries()[0].manifest
    assert manifest.training["params"]["scale_pos_weight"] == 2.0
    # the noise of every figure is known
    package = Registry(tmp_path).resolve("fraud@1")
    for name, difference in compare(package, package)["metrics"].items():
        deviation = manifest.evaluation["intervals"][name]["deviation"]
        assert difference.noise == pytest.approx(1.96 * 2**0.5 * deviation) and difference.beyond_noise is False
    # what was not there when the package was made does not keep it from being loaded
    assert Registry(tmp_path).get("fraud@1").manifest == manifest


def test_topics_give_the_model_of_the_files(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, ranges = words[1:5], words[5:]
    url = f"memory://{uuid.uuid4().hex}"
    log = connect(url)
    log.admin().create_topics(topic_infos((TRANSACTIONS, LABELS), 2))
    producer = log.producer()
    for topic, path, key in ((TRANSACTIONS, files[1], "card_id"), (LABELS, files[3], "transaction_id")):
        rows = pq.read_table(path).to_pylist()
        values = [orjson.dumps(row) for row in rows]
        producer.send(OutBatch(topic, [*values, b"nothing"], [*(b"%d" % row[key] for row in rows), b"0"]))
    # after the test's end: not to be seen
    late = orjson.dumps(rows[0] | {"event_time": START + 300 * DAY_MS, "card_id": 1, "terminal_id": 1, "amount": 1.0})
    producer.send(OutBatch(TRANSACTIONS, [late], [b"1"]))
    assert producer.flush(30) == 0
    producer.close()

    models = str(tmp_path)
    assert main([*words, "--models", models, "--no-report"]) == 0
    topics = ["train", "--from-topics", "--bootstrap", url, *ranges]
    assert main([*topics, "--models", models, "--no-report"]) == 0
    err = capsys.readouterr().err
    for topic in (TRANSACTIONS, LABELS):
        assert re.search(rf"^{topic}: 1 of [\d,]+ rows are invalid and left out; {topic}/\d/[1-9]\d*: ", err, re.M)
    one, two = (entry.manifest for entry in Registry(models).entries())
    assert one.sha256 == two.sha256 and one.metrics == two.metrics and one.conformal == two.conformal

    assert main([*topics, *files, "--models", models]) == 2
    assert "--from-topics reads no file" in capsys.readouterr().err
    assert main(["train", *ranges, "--models", models]) == 2
    assert "--from: missing; give a file, or --from-topics" in capsys.readouterr().err
    assert main([*words, "--bootstrap", url, "--models", models]) == 2
    empty = [url if word == url else word.replace("2024-01", "2023-01") for word in topics]
    assert main([*empty, "--models", models]) == 1
    assert "no valid transaction before the test's end" in capsys.readouterr().err


def test_a_report_folder_that_is_a_file(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([*words, "--models", str(tmp_path / "m"), "--report", str(tmp_path / "file")]) == 2
    assert "cannot be made" in capsys.readouterr().err and not (tmp_path / "m").exists()


def test_a_budget_that_no_model_keeps(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--models", str(tmp_path / "m"), "--budget", "0.001ns", "--no-report"]) == 1
    assert "give a larger budget" in capsys.readouterr().err and not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--search", "-1"),
        ("--class-weight", "0"),
        ("--class-weight", "nan"),
        ("--calibration", "beta"),
        ("--budget", "2"),
        ("--budget", "0us"),
        ("--budget", "two us"),
        ("--coverage", "1"),
        ("--coverage", "0.2"),
        ("--seed", "x"),
    ],
)
def test_values_that_cannot_be(
    words: list[str], option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--models", str(tmp_path / "m"), f"{option}={value}"])
    assert repr(value) in capsys.readouterr().err


def test_times_per_row() -> None:
    assert [command.budget(text) for text in ("2us", "500ns", "0.5 us", "1ms", "3µs")] == [2.0, 0.5, 0.5, 1000.0, 3.0]
    with pytest.raises(argparse.ArgumentTypeError, match="give one such as 2us"):
        command.budget("2s")


@pytest.mark.parametrize(
    "option",
    [["--search", "1"], ["--class-weight", "2"], ["--calibration", "none"], ["--budget", "1us"], ["--coverage", "0.8"],
     ["--report", "x"]],
)  # fmt: skip
def test_the_ranker_has_no_such_option(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--pipeline", "recommend", "--from", "x.parquet", "--train", "2024-01-01:2024-01-02"]
    assert main([*words, "--models", str(tmp_path), *option]) == 2
    assert f"{option[0]}: only the fraud pipeline has it" in capsys.readouterr().err
