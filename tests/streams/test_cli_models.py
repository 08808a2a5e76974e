"""headrace features, train, models and score, on files of a small simulated world."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import lightgbm
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from live_fraud import SETTINGS, LiveFraud, lines

from features.fraud import DEFAULT, RICH, SETS, set_of
from features.schema import TRANSACTION_LABELS, TRANSACTIONS
from models.explain_policy import ReasonsPolicy
from models.predictor import PredictorKind
from models.registry import ALIASES, Registry
from models.slot import ModelSlot
from streams.cli import train as train_command
from streams.cli.main import main
from streams.cli.offline_io import ALIAS_CHOICES, PREDICTOR_CHOICES, SET_CHOICES
from streams.config import Settings
from streams.errors import HeadraceError
from streams.fraud_worker import feature_set
from streams.offline import block_of, feature_matrix
from streams.simulator import DAY_MS, World

START = int(np.datetime64("2024-01-01", "ms").astype(np.int64))
DELAY = 2 * DAY_MS
RANGES = ["--train", "2024-01-08:2024-01-21", "--test", "2024-01-24:2024-01-28", "--label-delay", "2d"]
# threads of OpenMP wait for each other by spinning: on a machine that has more to do, two are far slower than one
RANGES += ["--threads", "1", "--no-report"]


@dataclass(frozen=True)
class Files:
    """One world as files, and the columns that are in them."""

    events: Path
    labels: Path
    transactions: dict[str, Any]
    said: dict[str, Any]

    @property
    def options(self) -> list[str]:
        return ["--from", str(self.events), "--labels", str(self.labels)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    world = World(5, start_ms=START, cards=150, terminals=200, label_delay_ms=DELAY)
    transactions, labels = world.history(28)
    pq.write_table(pa.table(transactions), folder / "events.parquet")
    pq.write_table(pa.table(labels), folder / "labels.parquet")
    return Files(folder / "events.parquet", folder / "labels.parquet", transactions, labels)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


Headrace = Callable[..., Result]


@pytest.fixture
def headrace(capsys: pytest.CaptureFixture[str]) -> Headrace:
    def run(*words: object) -> Result:
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture(scope="module")
def models(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with one trained champion, fraud@1."""
    folder = tmp_path_factory.mktemp("models")
    assert main(["train", *files.options, *RANGES, "--models", str(folder), "--alias", "champion"]) == 0
    return folder


@pytest.fixture(scope="module")
def model_text(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the file of a small model on features of these names."""

    def make(*names: str) -> Path:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(200, len(names)))
        data = lightgbm.Dataset(x, x[:, 0] > 0, feature_name=list(names), params={"verbosity": -1})
        path = tmp_path_factory.mktemp("text") / "model.txt"
        lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, 5).save_model(path)
        return path

    return make


# --- features ---


def test_features_are_the_stages_in_the_order_of_the_file(headrace: Headrace, files: Files, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    n = len(files.transactions["event_time"])
    order = rng.permutation(n)
    table = pq.read_table(files.events).take(order)
    doubled = pa.concat_tables([table, table.slice(0, 3)])
    pq.write_table(doubled, tmp_path / "shuffled.parquet")
    result = headrace(
        "features", "--from", tmp_path / "shuffled.parquet", "--labels", files.labels, "--to", tmp_path / "f.parquet",
        "--json",
    )  # fmt: skip
    assert result.code == 0
    assert {name: result.figures[name] for name in ("received", "rows", "duplicates", "late")} == {
        "received": n + 3, "rows": n, "duplicates": 3, "late": 0,
    }  # fmt: skip
    written = pq.read_table(tmp_path / "f.parquet")
    assert written.column_names == ["transaction_id", *DEFAULT.names]
    types = {field.name: str(field.type) for field in written.schema}
    assert types["transaction_id"] == "int64" and types["amount"] == types["terminal_risk_7d"] == "double"
    assert types["is_night"] == types["card_count_30d"] == "int32"
    np.testing.assert_array_equal(written["transaction_id"], files.transactions["transaction_id"][order])
    made = feature_matrix(
        block_of(TRANSACTIONS, files.transactions), block_of(TRANSACTION_LABELS, files.said), SETTINGS
    )
    for j, name in enumerate(DEFAULT.names):
        np.testing.assert_array_equal(written[name], made.matrix[order, j], err_msg=name)


def test_features_by_arrival_of_text_ids_and_invalid_lines(headrace: Headrace, tmp_path: Path) -> None:
    event = {"transaction_id": "a", "event_time": START, "card_id": "c", "terminal_id": "t", "amount": 2}
    older = {**event, "transaction_id": 2, "event_time": START - 2 * DAY_MS}
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join([*lines([event]), b"{}", *lines([older])]))
    result = headrace("features", "--from", path, "--order", "arrival", "--to", tmp_path / "f.parquet")
    assert result.code == 0 and "2 rows with 15 features" in result.out and "1 late" in result.out
    assert "1 of 3 rows are invalid and left out; row 1: transaction_id: missing" in result.err
    written = pq.read_table(tmp_path / "f.parquet")
    assert written["transaction_id"].to_pylist() == ["a", "2"]
    assert written["card_count_7d"].to_pylist() == [1, 1]


def test_what_was_found_wrong_is_counted_by_topic_and_field(
    headrace: Headrace, files: Files, models: Path, tmp_path: Path
) -> None:
    good = {"transaction_id": 1, "event_time": START, "card_id": "c", "terminal_id": "t", "amount": 2}
    odd = [{**good, "amount": -1}, {**good, "amount": None, "card_id": ""}, {**good, "event_time": "now"}]
    events, labels = tmp_path / "events.jsonl", tmp_path / "labels.jsonl"
    events.write_bytes(b"\n".join([*lines([good, *odd]), b"{"]))
    labels.write_bytes(
        b"\n".join(lines([{"transaction_id": 1, "label_time": START, "is_fraud": flag} for flag in (1, 2)]))
    )
    words = ("--from", events, "--labels", labels)
    found = {
        "transactions": {
            "": {"unreadable": 1},
            "amount": {"missing": 1, "out_of_range": 1},
            "card_id": {"out_of_range": 1},
            "event_time": {"wrong_type": 1},
        },
        "transaction-labels": {"is_fraud": {"out_of_range": 1}, "terminal_id": {"missing": 2}},
    }
    figures = headrace("features", *words, "--to", tmp_path / "f.parquet", "--json").figures
    assert figures["quality"] == found and figures["invalid_events"] == 4 and figures["invalid_labels"] == 1
    scored = headrace("score", *words, "--models", models, "--to", tmp_path / "s.parquet", "--json").figures
    assert scored["quality"] == found
    said = headrace("features", *words, "--to", tmp_path / "f.parquet").out
    assert "transactions: 1 unreadable; amount: 1 missing, 1 out of range; card_id: 1 out of range" in said
    assert "transaction-labels: is_fraud: 1 out of range; terminal_id: 2 missing" in said
    clean = headrace("features", "--from", files.events, "--to", tmp_path / "f.parquet", "--json").figures
    assert clean["quality"] == {}


def test_describe(headrace: Headrace) -> None:
    result = headrace("features", "--pipeline", "fraud", "--describe")
    header, *rows = result.out.split("\n\n")[0].splitlines()
    assert result.code == 0 and len(rows) == 15
    assert header.split() == ["name", "entity", "what", "window", "delay", "unit", "memory"]
    row = next(line for line in rows if line.startswith("terminal_risk_7d"))
    assert row.split()[:6] == ["terminal_risk_7d", "terminal_id", "risk", "7d", "7d", "share"]
    assert row.index("share") == header.index("unit") and row.index("B/key") > header.index("memory")
    assert "memory: of the state that the features of an entity share" in result.out
    bound = "of whole tiles of 1d, so that either edge is off by less than one tile"
    assert bound in headrace("features", "--describe", "--set", "tiled").out and bound not in result.out
    figures = headrace("features", "--describe", "--json").figures
    assert figures["schema_hash"] == DEFAULT.schema_hash and figures["name"] == "fraud-default"
    assert figures["features"] == DEFAULT.describe()


def test_describe_on_a_terminal(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    out = headrace("features", "--describe").out
    assert "fraud-default: 15 features" in out
    assert all(name in out for name in DEFAULT.names) and "terminal_id" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--describe", "--from", "e.jsonl", "--to", "f.parquet"], "--from e.jsonl --to f.parquet: --describe reads"),
        (["--describe", "--labels", "l.jsonl"], "--labels l.jsonl: --describe reads and writes no file; leave out one"),
        ([], "--from and --to: missing; give both, or --describe alone to see the features"),
        (["--from", "e.jsonl"], "--to: missing; give both"),
        (["--to", "f.parquet"], "--from: missing; give both"),
    ],
)
def test_files_or_a_description(headrace: Headrace, words: list[str], says: str) -> None:
    result = headrace("features", *words)
    assert result.code == 2 and result.err.startswith(f"headrace features: {says}")


def test_another_feature_set(headrace: Headrace, tmp_path: Path) -> None:
    described = headrace("features", "--describe", "--set", "rich", "--json").figures
    assert described["name"] == "fraud-rich" and described["schema_hash"] == RICH.schema_hash
    events = [
        {"transaction_id": i, "event_time": START + i * 1_000, "card_id": 1, "terminal_id": i % 2, "amount": 2.5 * i}
        for i in range(3)
    ]
    (tmp_path / "e.jsonl").write_bytes(b"\n".join(lines(events)))
    words = ["--from", tmp_path / "e.jsonl", "--to", tmp_path / "f.parquet", "--set", "rich"]
    assert headrace("features", *words).code == 0
    written = pq.read_table(tmp_path / "f.parquet")
    assert written.column_names == ["transaction_id", *RICH.names]
    assert written["card_count_1h"].to_pylist() == [1, 2, 3]
    assert written["card_max_amount_7d"].to_pylist() == [0.0, 2.5, 5.0]
    assert written["card_distinct_terminal_id_1d"].to_pylist() == [1, 2, 2]
    assert headrace("features", "--describe", "--set", "richest").code == 2


def test_the_choices_of_set_are_the_sets_there_are() -> None:
    assert tuple(SETS) == SET_CHOICES
    assert set_of(RICH.schema_hash) is RICH and set_of(DEFAULT.schema_hash) is DEFAULT is set_of("")


def test_a_model_of_another_set_says_itself_what_it_needs(headrace: Headrace, files: Files, tmp_path: Path) -> None:
    """Trained with --set rich; show, score and the worker's settings find the set by the package alone."""
    result = headrace(
        "train", *files.options, *RANGES, "--models", tmp_path, "--set", "rich", "--alias", "champion", "--json"
    )
    assert result.code == 0
    shown = headrace("models", "show", "champion", "--models", tmp_path, "--json").figures
    assert shown["schema_hash"] == RICH.schema_hash and shown["features"] == list(RICH.names)
    words = ["--models", tmp_path, "--to", tmp_path / "s.jsonl"]
    assert headrace("score", *files.options, *words).code == 0
    with (tmp_path / "s.jsonl").open("rb") as scores:
        assert list(orjson.loads(next(scores))["features"]) == list(RICH.names)
    assert feature_set(Settings(models=str(tmp_path))) is RICH
    assert feature_set(Settings(models=str(tmp_path), feature_set="default")) is DEFAULT
    assert feature_set(Settings()) is DEFAULT


# --- train ---


def test_train_packages_a_tested_model(headrace: Headrace, files: Files, models: Path, tmp_path: Path) -> None:
    result = headrace("train", *files.options, *RANGES, "--models", tmp_path, "--name", "mine", "--json")
    assert result.code == 0
    figures = result.figures
    assert figures["model"] == "mine@1" and figures["alias"] is None
    assert figures["auc"] > 0.6 and figures["test_frauds"] > 0
    assert {"average_precision", "card_precision_100", "log_loss", "brier"} <= set(figures)
    registry = Registry(tmp_path)
    assert registry.aliases() == {}
    manifest = registry.entries()[0].manifest
    assert manifest.schema_hash == DEFAULT.schema_hash and manifest.features == DEFAULT.names
    assert manifest.training["train_to"] == START + 21 * DAY_MS
    times = files.transactions["event_time"]
    in_training = (times >= START + 7 * DAY_MS) & (times < START + 21 * DAY_MS)
    assert figures["train_rows"] == np.count_nonzero(in_training)
    # of the labels only those that are known when the test begins
    said = dict(zip(files.said["transaction_id"].tolist(), zip(*map(np.ndarray.tolist, (
        files.said["label_time"], files.said["is_fraud"])), strict=True), strict=True))  # fmt: skip
    frauds = [said[i] for i in files.transactions["transaction_id"][in_training].tolist() if said[i][1]]
    known = [label for label in frauds if label[0] <= START + 23 * DAY_MS]
    assert figures["train_frauds"] == len(known) < len(frauds)
    # the same files and ranges give the same model
    texts = [(folder / "1" / "model.txt").read_text() for folder in (tmp_path / "mine", models / "fraud")]
    assert texts[0] == texts[1]


def test_training_says_what_it_found(headrace: Headrace, files: Files, tmp_path: Path) -> None:
    result = headrace("train", *files.options, *RANGES, "--models", tmp_path)
    assert result.code == 0
    assert "headrace models promote fraud@1" in result.out and "average precision" in result.out


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("2024-01-02:2024-01-03", DAY_MS, 3 * DAY_MS),
        ("2024-01-02T00:00:2024-01-02T12:00:00.250", DAY_MS, DAY_MS + 43_200_250),
        ("2024-01-02:2024-01-02T12:00:00Z", DAY_MS, DAY_MS + 43_200_000),
        ("2024-01-02T01:00+01:00:2024-01-02", DAY_MS, 2 * DAY_MS),
    ],
)
def test_ranges_of_days_and_times(text: str, begin: int, end: int) -> None:
    assert train_command.time_range(text) == (START + begin, START + end)


@pytest.mark.parametrize(
    "option", [["--train", "2024-01-02"], ["--test", "1:2"], ["--label-delay", "soon"], ["--threads", "0"]]
)
def test_ranges_that_are_none(headrace: Headrace, files: Files, option: list[str]) -> None:
    result = headrace("train", *files.options, *RANGES, "--models", "nowhere", *option)
    assert result.code == 2 and repr(option[1]) in result.err


def test_training_that_cannot_be(headrace: Headrace, files: Files, tmp_path: Path) -> None:
    early = ["--train", "2024-01-08:2024-01-21", "--test", "2024-01-22:2024-01-28"]
    result = headrace("train", *files.options, *early, "--models", tmp_path / "m")
    assert result.code == 2 and "before the labels of the training range are known" in result.err
    empty = ["--train", "2023-01-08:2023-01-21", "--test", "2024-01-24:2024-01-28"]
    result = headrace("train", *files.options, *empty, "--models", tmp_path / "m")
    assert result.code == 1 and "both classes needed" in result.err
    result = headrace("train", *files.options, *RANGES, "--models", tmp_path / "m", "--name", "champion")
    assert result.code == 2 and "--name: model name: 'champion'" in result.err
    assert not (tmp_path / "m").exists()


# --- models ---


def test_any_text_model_of_named_features(headrace: Headrace, model_text: Callable[..., Path], tmp_path: Path) -> None:
    add = ["models", "add", "--models", tmp_path, "--name", "other"]
    assert "no models" in headrace("models", "list", "--models", tmp_path).out
    source = model_text("card_count_1d", "amount")
    result = headrace(*add, "--from", source, "--alias", "champion", "--json")
    assert result.code == 0 and result.figures == {"model": "other@1", "alias": "champion"}
    assert headrace(*add, "--from", source).out == "added other@2\n"
    shown = headrace("models", "list", "--models", tmp_path)
    assert [line.split()[:2] for line in shown.out.splitlines()] == [["other@1", "champion"], ["other@2", "-"]]
    listed = headrace("models", "list", "--models", tmp_path, "--json").figures["models"]
    assert [(m["model"], m["aliases"], m["features"]) for m in listed] == [
        ("other@1", ["champion"], 2), ("other@2", [], 2),
    ]  # fmt: skip

    unknown = headrace(*add, "--from", model_text("amount", "mood"))
    assert unknown.code == 1
    assert "the model needs mood" in unknown.err and "terminal_risk_30d" in unknown.err
    assert headrace(*add, "--from", tmp_path / "none.txt").code == 2
    (tmp_path / "no_model.txt").write_text("tree of life")
    assert headrace(*add, "--from", tmp_path / "no_model.txt").code == 1
    assert len(Registry(tmp_path).entries()) == 2


def test_show_says_which_predictor_and_why(headrace: Headrace, models: Path) -> None:
    text = headrace("models", "show", "champion", "--models", models).out
    assert "fraud@1" in text and "compiled is bit-equal" in text and "average_precision" in text
    shown = headrace("models", "show", "fraud@1", "--models", models, "--json").figures
    assert shown["aliases"] == ["champion"] and shown["features"] == list(DEFAULT.names)
    assert set(shown["predictor_us_per_row"]) == {"lightgbm", "compiled"}
    missing = headrace("models", "show", "fraud@7", "--models", models)
    assert missing.code == 2 and "there: fraud@1" in missing.err


def test_a_name_alone_is_its_champion_or_its_newest(
    headrace: Headrace, model_text: Callable[..., Path], tmp_path: Path
) -> None:
    where = ["--models", tmp_path]
    for name, alias in (("a", ["--alias", "champion"]), ("a", []), ("b", []), ("b", [])):
        assert headrace("models", "add", "--from", model_text("amount"), "--name", name, *alias, *where).code == 0
    assert headrace("models", "show", "a", *where, "--json").figures["model"] == "a@1"
    assert headrace("models", "show", "b", *where, "--json").figures["model"] == "b@2"
    unknown = headrace("models", "show", "c", *where)
    assert unknown.code == 2 and "there: a@1, a@2, b@1, b@2" in unknown.err
    which = headrace("models", "promote", "b", *where)
    assert which.code == 2 and "which version?" in which.err
    assert Registry(tmp_path).aliases() == {"champion": "a@1"}


@pytest.mark.parametrize(
    "words",
    [
        ["models", "list"],
        ["models", "show", "champion"],
        ["models", "promote", "a@1"],
        ["models", "rollback"],
        ["score", "--from", "x.parquet", "--to", "s.parquet"],
        ["run", "--pipeline", "fraud"],
        ["verify"],
    ],
)
def test_a_registry_that_is_not_there_is_wrong_use(headrace: Headrace, tmp_path: Path, words: list[str]) -> None:
    result = headrace(*words, "--models", tmp_path / "none")
    assert result.code == 2
    assert f"headrace {words[0]}: --models {tmp_path / 'none'}: not there; name a registry" in result.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", [["run", "--pipeline", "fraud"], ["verify"]])
def test_another_set_than_the_champion_s_is_named(
    headrace: Headrace, model_text: Callable[..., Path], tmp_path: Path, command: list[str]
) -> None:
    where = ["--models", tmp_path]
    nothing = headrace(*command, *where)
    assert nothing.code == 2 and "'champion' is not in" in nothing.err
    add = ["models", "add", "--from", model_text("amount"), "--name", "a", "--set", "rich", "--alias", "champion"]
    assert headrace(*add, *where).code == 0
    result = headrace(*command, *where, "--set", "default")
    assert result.code == 2
    assert "--set default: the champion a@1 of" in result.err
    assert "was made for set rich; leave --set out, or give --set rich, or promote a model of set" in result.err
    assert RICH.schema_hash not in result.err


def test_promote_and_roll_back(headrace: Headrace, model_text: Callable[..., Path], tmp_path: Path) -> None:
    where = ["--models", tmp_path]
    for alias in (["--alias", "champion"], [], []):
        assert headrace("models", "add", "--from", model_text("amount"), "--name", "a", *alias, *where).code == 0
    nothing = headrace("models", "rollback", *where)
    assert nothing.code == 1 and "headrace models promote" in nothing.err
    assert headrace("models", "promote", "a@2", *where, "--json").figures == {"model": "a@2", "alias": "champion"}
    assert headrace("models", "promote", "a@3", *where).out == "a@3 is champion (before: a@2)\n"
    assert headrace("models", "promote", "a@3", *where).code == 0  # again: the one before stays
    registry = Registry(tmp_path)
    assert registry.aliases() == {"champion": "a@3"} and registry.previous == "a@2"
    assert headrace("models", "rollback", *where).out == "a@2 is champion again\n"
    assert registry.aliases() == {"champion": "a@2"} and registry.previous == "a@1"
    assert headrace("models", "rollback", *where).out == "a@1 is champion again\n"
    assert headrace("models", "rollback", *where).code == 1
    assert headrace("models", "promote", "a@9", *where).code == 2


def test_a_damaged_package_does_not_become_champion(
    headrace: Headrace, model_text: Callable[..., Path], tmp_path: Path
) -> None:
    where = ["--models", tmp_path]
    for _ in range(2):
        headrace("models", "add", "--from", model_text("amount"), "--name", "a", "--alias", "champion", *where)
    with (tmp_path / "a" / "1" / "model.txt").open("a") as file:
        file.write(" ")
    for words in (["promote", "a@1"], ["rollback"]):
        result = headrace("models", *words, *where)
        assert result.code == 1 and "sha256" in result.err
    assert Registry(tmp_path).aliases() == {"champion": "a@2"} and Registry(tmp_path).previous == "a@1"


# --- score ---


def test_scores_are_those_of_the_live_tasks(headrace: Headrace, files: Files, models: Path, tmp_path: Path) -> None:
    words = ["score", *files.options, "--models", models, "--json", "--to"]
    result = headrace(*words, tmp_path / "s.jsonl")
    assert result.code == 0
    n = len(files.transactions["event_time"])
    assert (result.figures["rows"], result.figures["model"]) == (n, "fraud@1")
    assert result.figures["rows_per_s"] > 0
    live = live_fraud(files, models, Settings().reasons_policy())
    assert (tmp_path / "s.jsonl").read_bytes().splitlines() == live.scores
    conformal = Registry(models).get("champion").conformal
    assert conformal is not None
    for record in map(orjson.loads, live.scores):
        held = int(conformal.sets(np.array([record["raw"]]))[0])
        assert record["set"] == [name for bit, name in ((1, "legitimate"), (2, "fraud")) if held & bit]

    assert headrace(*words, tmp_path / "s.parquet").code == 0
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.column_names == ["transaction_id", "score", "raw", "set"]
    records = [orjson.loads(value) for value in live.scores]
    for name in table.column_names:
        assert table[name].to_pylist() == [record[name] for record in records]


@pytest.mark.parametrize("policy", ["all", "above:0.01", "sample:0.3", "none"])
def test_reasons_are_those_of_the_live_tasks(
    headrace: Headrace, files: Files, models: Path, tmp_path: Path, policy: str
) -> None:
    words = ["--reasons", policy, "--reasons-max", 3, "--to", tmp_path / "s.jsonl"]
    assert headrace("score", *files.options, "--models", models, *words).code == 0
    live = live_fraud(files, models, ReasonsPolicy.parse(policy, 3))
    written = (tmp_path / "s.jsonl").read_bytes().splitlines()
    assert written == live.scores
    lengths = {len(orjson.loads(value)["reasons"]) for value in written}
    assert lengths == ({3} if policy == "all" else {0} if policy == "none" else {0, 3})


def test_a_policy_that_is_none_is_wrong_use(headrace: Headrace, files: Files, models: Path, tmp_path: Path) -> None:
    words = ["score", *files.options, "--models", models, "--to", tmp_path / "s.jsonl", "--reasons"]
    result = headrace(*words, "most")
    assert result.code == 2 and "setting reasons: 'most' does not say" in result.err
    assert not (tmp_path / "s.jsonl").exists()


def live_fraud(files: Files, models: Path, policy: ReasonsPolicy) -> LiveFraud:
    """The files through the live tasks, with the champion."""
    live = LiveFraud("event_time", ModelSlot(Registry(models).get("champion", DEFAULT.names), policy))
    for topic, path in (("transactions", files.events), ("transaction-labels", files.labels)):
        values = lines(pq.read_table(path).to_pylist())
        for start in range(0, len(values), 1000):
            live.send(topic, values[start : start + 1000])  # type: ignore[arg-type]
    live.finish()
    return live


def test_scores_of_some_lines_with_other_fields(headrace: Headrace, models: Path, tmp_path: Path) -> None:
    event = {"transaction_id": "a", "event_time": START, "card_id": "c", "terminal_id": "t", "amount": 2, "shop": "x"}
    (tmp_path / "e.jsonl").write_bytes(lines([event])[0])
    words = ["--models", models, "--model", "fraud@1", "--to", tmp_path / "s.jsonl"]
    result = headrace("score", "--from", tmp_path / "e.jsonl", *words)
    assert result.code == 0 and "1 scores by fraud@1" in result.out
    (record,) = map(orjson.loads, (tmp_path / "s.jsonl").read_bytes().splitlines())
    assert record["extra"] == {"shop": "x"} and record["features"]["amount"] == 2 and 0 <= record["score"] <= 1


def test_scores_need_a_model(headrace: Headrace, files: Files, tmp_path: Path) -> None:
    result = headrace("score", *files.options, "--models", tmp_path, "--to", tmp_path / "s.parquet")
    assert result.code == 2 and "'champion' is not in" in result.err


# --- wrong use ---


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("f.csv", "ending .csv is not known; use .parquet"),
        ("no/such/f.parquet", "is not there; make it first"),
        ("folder.parquet", "a folder; name a file"),
        ("events.parquet", "would overwrite an input"),
    ],
)
def test_results_that_could_not_be_written(
    headrace: Headrace, files: Files, tmp_path: Path, to: str, said: str
) -> None:
    (tmp_path / "folder.parquet").mkdir()
    target = files.events if to == "events.parquet" else tmp_path / to
    result = headrace("features", *files.options, "--to", target)
    assert result.code == 2 and said in result.err


def test_labels_that_are_all_invalid_are_not_taken_for_none(headrace: Headrace, files: Files, tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_bytes(b'{"transaction_id": 1, "label_time": 1700000000000, "is_fraud": true}\n')
    words = ("features", "--from", files.events, "--labels", labels, "--to", tmp_path / "f.parquet")
    result = headrace(*words)
    assert result.code == 1 and "no valid label" in result.err and "is_fraud true" in result.err.lower()
    labels.write_bytes(b"")
    assert headrace(*words).code == 0


def test_files_that_hold_nothing(headrace: Headrace, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_bytes(b"nothing\n")
    result = headrace("features", "--from", tmp_path / "e.jsonl", "--to", tmp_path / "f.parquet")
    assert result.code == 1 and "no valid transaction" in result.err and "row 0" in result.err
    assert headrace("features", "--from", tmp_path / "none.jsonl", "--to", tmp_path / "f.parquet").code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["e.jsonl"]


@pytest.mark.parametrize(
    "words",
    [
        ["features"],
        ["features", "--pipeline", "recommend", "--describe"],
        ["train", "--from", "x.parquet"],
        ["models"],
        ["models", "shadow"],
        ["models", "promote", "--models", "m"],
        ["models", "add", "--models", "m", "--name", "a", "--from", "x", "--alias", "best"],
        ["score", "--from", "x.parquet", "--models", "m"],
    ],
)
def test_wrong_use_is_2(headrace: Headrace, words: list[str]) -> None:
    assert headrace(*words).code == 2


def test_the_registry_may_come_from_the_environment(
    headrace: Headrace, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADRACE_MODELS", raising=False)
    assert headrace("models", "list").code == 2
    monkeypatch.setenv("HEADRACE_MODELS", str(models))
    assert headrace("models", "list").code == 0


@pytest.mark.parametrize(
    "words", [[c] for c in ("features", "train", "models", "score")] + [["models", a] for a in
              ("list", "show", "add", "diff", "promote", "rollback", "shadow", "canary")]
)  # fmt: skip
def test_help_has_an_example(headrace: Headrace, words: list[str]) -> None:
    result = headrace(*words, "--help")
    assert result.code == 0 and f"example: headrace {' '.join(words)} " in result.out


def test_half_a_result_is_none(tmp_path: Path) -> None:
    from streams.cli.offline_io import written

    (tmp_path / "old").write_text("before")

    def fail() -> None:
        with written(tmp_path / "old") as path:
            path.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(HeadraceError, match="No space left"):
        fail()
    assert (tmp_path / "old").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_the_aliases_and_predictors_are_those_there_are() -> None:
    assert ALIAS_CHOICES == ALIASES
    assert get_args(PredictorKind) == PREDICTOR_CHOICES


def test_the_published_week_of_the_real_data(headrace: Headrace, data_dir: Path, tmp_path: Path) -> None:
    files = ["--from", data_dir / "fraud_transactions.parquet", "--labels", data_dir / "fraud_labels.parquet"]
    ranges = ["--train", "2018-07-25:2018-07-31", "--test", "2018-08-08:2018-08-14", "--threads", "1"]
    figures = headrace("train", *files, *ranges, "--models", tmp_path, "--json").figures
    assert (figures["train_rows"], figures["train_frauds"]) == (67_240, 598)
    assert (figures["test_rows"], figures["test_frauds"]) == (58_264, 385)
    assert figures["average_precision"] == pytest.approx(0.68, abs=0.02)
