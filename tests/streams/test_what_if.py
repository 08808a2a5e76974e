"""`headrace replay`: the same model gives the same bits, another set its own features, and what is lost is said."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow.parquet as pq
import pytest
from fraud_history import partitioned
from fraud_logs import DAY, HOUR, NOW, Logs, Record, batch, label, make_pipeline, processed, transaction

from features.declare import FeatureSet
from features.fraud import DEFAULT, RICH
from models.package import Draft, LoadedModel
from models.registry import Registry
from models.slot import ModelSlot
from monitoring.labels import JoinSettings
from streams.checkpoint_store import CheckpointStore
from streams.checkpoints import meta_of
from streams.cli.main import main
from streams.dead_letters import log_ends
from streams.errors import ConfigError
from streams.log import TP, OutBatch, connect
from streams.memory import MemoryConsumer, MemoryLog
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_stages import StageSettings
from streams.pipelines.fraud_tasks import CardTask, TerminalTask
from streams.replay import ReplayError
from streams.store import open_store
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS, topic_infos
from streams.what_if import Span, replay_range
from streams.what_if_cost import CostMatrix, cost_curve, saving
from streams.what_if_served import known_labels, read_served

PARTITIONS = 2
TOPICS = (TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES)
ROWS = 240
#: events of 18 days in the midst, whose windows reach back to the first days of the log
SPAN = Span(NOW - 38 * DAY, NOW - 20 * DAY)


@pytest.fixture
def quiet() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@cache
def model_text(features: FeatureSet, seed: int) -> str:
    rng = np.random.default_rng(seed)
    x = rng.random((400, len(features))) * 60
    y = (x[:, 0] + x[:, 4] + 20 * rng.random(400) > 80).astype(float)
    data = lgb.Dataset(x, y, feature_name=list(features.names))
    params = {"objective": "binary", "verbosity": -1, "num_leaves": 6, "num_threads": 1, "min_data_in_leaf": 5}
    text: str = lgb.train(params, data, 8).model_to_string()
    return text


def add(
    models: Path, features: FeatureSet = DEFAULT, seed: int = 1, alias: str | None = None, known: bool = True
) -> str:
    schema_hash = features.schema_hash if known else ""
    text = model_text(features, seed)
    draft = Draft("m", text, features.names, schema_hash, "2026-01-01T00:00:00+00:00")
    return Registry(models).add(draft, alias).label


def loaded(models: Path, reference: str, features: FeatureSet = DEFAULT) -> LoadedModel:
    return Registry(models).get(reference, features.names, features.schema_hash)


def stream(n: int = ROWS) -> list[tuple[str, Record]]:
    """Transactions over 80 days, some late, one repeated; labels a week later for nine of ten."""
    rng = np.random.default_rng(3)
    out: list[tuple[int, str, Record]] = []
    for i in range(n):
        time = NOW - 80 * DAY + i * (80 * DAY // n)
        terminal = int(rng.integers(6))
        own = time - (HOUR // 2 if i % 11 == 0 else 0)
        amount = round(float(rng.gamma(2.0, 20.0)), 2)
        record = transaction(i if i % 5 else f"t{i}", own, int(rng.integers(9)), terminal, amount)
        out.append((time, TRANSACTIONS, record))
        if i == 17:
            out.append((time, TRANSACTIONS, record))
        if i % 10:
            more = {"terminal_id": terminal} if i % 2 else {}
            fraud = int(amount > 60)
            out.append((time + 7 * DAY, LABELS, label(i if i % 5 else f"t{i}", time + 7 * DAY, fraud, **more)))
    out.sort(key=lambda item: item[0])
    return [(topic, record) for _, topic, record in out]


def served_log(slot: ModelSlot, order: str = "arrival", features: FeatureSet = DEFAULT) -> tuple[str, MemoryLog]:
    """A log as two partitions' workers leave it, its topics' records of one time sent together."""
    name = uuid.uuid4().hex
    log = connect(f"memory://{name}")
    assert isinstance(log, MemoryLog)
    log.admin().create_topics(topic_infos(TOPICS, PARTITIONS))
    pipeline = make_pipeline(order, PARTITIONS, StageSettings(features), slot)
    pipeline.bind(log.admin().topics(TOPICS))
    serve(log, pipeline, stream())
    return name, log


def serve(log: MemoryLog, pipeline: FraudPipeline, records: list[tuple[str, Record]]) -> None:
    producer, logs = log.producer(), Logs()
    tasks = {TP(t, p): pipeline.task(TP(t, p)) for t in pipeline.inputs for p in range(PARTITIONS)}
    ends = dict.fromkeys(tasks, 0)

    def take(tp: TP, piece: list[Record]) -> None:
        logs.take(processed(tasks[tp], batch(tp.topic, piece, ends[tp], tp.partition)), PARTITIONS)
        ends[tp] += len(piece)

    def shuffled() -> None:
        for p in range(PARTITIONS):
            if piece := logs.records[BY_TERMINAL, p][ends[TP(BY_TERMINAL, p)] :]:
                take(TP(BY_TERMINAL, p), piece)

    for start in range(0, len(records), 5):
        for tp, piece in partitioned(records[start : start + 5], PARTITIONS).items():
            if piece:
                producer.send(OutBatch(tp.topic, [r.value for r in piece], [r.key for r in piece], tp.partition))
                take(tp, piece)
        shuffled()
    for now_s in (0.0, 10.0, 90.0):
        for tp in [tp for tp in tasks if tp.topic != BY_TERMINAL]:
            logs.take(tasks[tp].tick(now_s, True), PARTITIONS)
        shuffled()
    for (topic, p), made in logs.records.items():
        if topic in (BY_TERMINAL, FRAUD_SCORES):
            headers = [list(r.headers) for r in made]
            producer.send(OutBatch(topic, [r.value for r in made], [r.key for r in made], p, headers))


def save_states(log: MemoryLog, store: CheckpointStore) -> dict[int, int]:
    """Checkpoints of the terminal stage every 8 records; returns the offset of the newest one before the range."""
    pipeline = make_pipeline("arrival", PARTITIONS)
    pipeline.bind(log.admin().topics(TOPICS))
    kept: dict[int, int] = {}
    for p in range(PARTITIONS):
        task = TerminalTask(pipeline, TP(BY_TERMINAL, p))
        rows = [row for row in log.partitions(BY_TERMINAL)[p].rows if row is not None]
        for start in range(0, len(rows) - 8, 8):
            records = [Record(value) for _, _, value, _ in rows[start : start + 8]]
            processed(task, batch(BY_TERMINAL, records, start, p))
            store.save(meta_of("g", task.tp, pipeline.state_of(BY_TERMINAL), start + 8), task.state())
            if (task.stage.stream_time_ms or 0) < SPAN.begin_ms:
                kept[p] = start + 8
    return kept


def again(log: MemoryLog, model: LoadedModel, order: str = "arrival", served: FeatureSet = DEFAULT, **more: Any) -> Any:
    features = more.pop("features", DEFAULT)
    settings = StageSettings(features)
    return replay_range(
        log,
        lambda: make_pipeline(order, PARTITIONS, settings),
        model,
        more.pop("span", SPAN),
        served_set=served,
        **more,
    )


# --- the scores ---


@pytest.mark.parametrize("order", ["arrival", "event_time"])
def test_the_model_that_served_gives_the_same_bits(tmp_path: Path, order: str) -> None:
    add(tmp_path, alias="champion")
    model = loaded(tmp_path, "m@1")
    _, log = served_log(ModelSlot(model), order)
    served = read_served(log, SPAN)
    assert 40 < len(served) < ROWS / 2
    assert SPAN.holds(served.times).all()
    replayed = again(log, model, order)
    assert replayed.places.tolist() == served.places.tolist()
    assert replayed.scores.tobytes() == served.scores.tobytes()
    assert len(set(served.scores.tolist())) > 5, "a model that says something"
    assert replayed.names == served.names
    np.testing.assert_array_equal(replayed.matrix, served.matrix)
    for name in served.ids:
        assert replayed.ids[name].to_list() == served.ids[name].to_list()


@pytest.mark.parametrize("order", ["arrival", "event_time"])
def test_another_set_has_the_features_that_its_own_workers_would_have_served(tmp_path: Path, order: str) -> None:
    add(tmp_path)
    add(tmp_path, RICH)
    rich = loaded(tmp_path, "m@2", RICH)
    _, log = served_log(ModelSlot(loaded(tmp_path, "m@1")), order)
    _, other = served_log(ModelSlot(rich), order, RICH)
    would = read_served(other, SPAN)
    replayed = again(log, rich, order, features=RICH)
    assert replayed.places.tolist() == would.places.tolist()
    np.testing.assert_array_equal(replayed.matrix, would.matrix)
    assert replayed.scores.tobytes() == would.scores.tobytes()


def test_rows_that_workers_add_meanwhile_are_not_taken_for_rows_without_a_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, RICH)
    rich = loaded(tmp_path, "m@1", RICH)
    _, log = served_log(ModelSlot())
    asked: list[str] = []

    def growing(log: MemoryLog, topic: str) -> dict[TP, int]:
        asked.append(topic)
        return {tp: end - (20 if len(asked) == 1 else 0) for tp, end in log_ends(log, topic).items()}

    monkeypatch.setattr("streams.what_if.log_ends", growing)
    replayed = again(log, rich, features=RICH, span=Span(SPAN.begin_ms, 1 << 62))
    assert len(replayed) > 40 and asked == [BY_TERMINAL, TRANSACTIONS]


def test_a_checkpoint_before_the_range_stands_for_the_log_before_it(tmp_path: Path) -> None:
    add(tmp_path / "models")
    model = loaded(tmp_path / "models", "m@1")
    _, log = served_log(ModelSlot(model))
    whole = again(log, model)
    store = CheckpointStore(open_store(str(tmp_path / "states")), "g")
    kept = save_states(log, store)
    for p in range(PARTITIONS):  # what was read before the checkpoint before the range is gone
        rows = log.partitions(BY_TERMINAL)[p].rows
        rows[: kept[p]] = [(0, None, b"not one of ours", [])] * kept[p]
    found = again(log, model, store=store, group="g")
    assert found.scores.tobytes() == whole.scores.tobytes()
    np.testing.assert_array_equal(found.matrix, whole.matrix)
    assert not np.array_equal(again(log, model).matrix, whole.matrix), "the checkpoint made the difference"


def test_what_was_before_a_seam_is_known_for_the_groups_own_set_only(tmp_path: Path) -> None:
    add(tmp_path / "models", RICH)
    _, log = served_log(ModelSlot())
    store = CheckpointStore(open_store(str(tmp_path / "states")), "g")
    pipeline = make_pipeline("arrival", PARTITIONS)
    pipeline.bind(log.admin().topics(TOPICS))
    task = CardTask(pipeline, TP(TRANSACTIONS, 0))
    store.save_seam(meta_of("g", task.tp, pipeline.state_of(TRANSACTIONS), 0), task.state())
    with pytest.raises(ReplayError, match=r"group g began at a seam, .* another set than fraud-rich"):
        again(log, loaded(tmp_path / "models", "m@1", RICH), features=RICH, store=store, group="g")


@pytest.mark.parametrize("gone", [1, 12])
def test_a_log_that_lost_its_start_is_replayed_where_what_is_left_reaches_back_far_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: int
) -> None:
    add(tmp_path)
    model = loaded(tmp_path, "m@1")
    _, log = served_log(ModelSlot(model))
    whole = again(log, model)

    def ranged(consumer: MemoryConsumer, tp: TP) -> tuple[int, int]:
        return gone if tp.topic == BY_TERMINAL else 0, len(log.partitions(tp.topic)[tp.partition].rows)

    monkeypatch.setattr(MemoryConsumer, "offset_range", ranged)
    if gone == 1:
        assert again(log, model).scores.tobytes() == whole.scores.tobytes()
    else:
        with pytest.raises(ReplayError, match=r"fraud.by-terminal/\d: its first records are gone .* h too late"):
            again(log, model)


# --- labels and costs ---


def test_labels_are_joined_by_policy_and_count_when_they_are_final(tmp_path: Path) -> None:
    add(tmp_path)
    _, log = served_log(ModelSlot(loaded(tmp_path, "m@1")))
    producer = log.producer()
    contradicting, time = 135, NOW - 80 * DAY + 135 * (80 * DAY // ROWS)
    late = label(131, time + 16 * DAY, 1)
    for record in (label("t135", time + 9 * DAY, 1), late):
        producer.send(OutBatch(LABELS, [record.value], [record.key]))
    served = read_served(log, SPAN)
    ids = served.ids["transaction_id"].to_list()
    unlabelled, contradicted = ids.index("t140"), ids.index(f"t{contradicting}")
    first = known_labels(log, served, JoinSettings(), 7 * DAY)
    assert first.labels[unlabelled] == -1 and not first.judged[unlabelled] and first.matured.all()
    truth = (served.amounts > 60).astype(int)
    known = first.labels >= 0
    assert known.sum() > 40 and known[contradicted] and truth[contradicted] == 0
    assert first.labels[known].tolist() == truth[known].tolist()
    last = known_labels(log, served, JoinSettings(conflicts="last"), 7 * DAY)
    assert last.labels[contradicted] == 1
    assert not last.matured[served.times > NOW - 23 * DAY].any() and last.matured[0], (
        "the last label is known at the horizon"
    )
    by_horizon = known_labels(log, served, JoinSettings(15 * DAY, negatives="horizon"), 7 * DAY)
    assert by_horizon.labels[unlabelled] == 0
    assert by_horizon.labels[ids.index(131)] == truth[ids.index(131)], "a label behind the horizon counts for nothing"


def test_costs_are_those_of_each_alert_and_each_missed_fraud() -> None:
    matrix = CostMatrix.parse("fn:amount, fp:4,review:1")
    labels, amounts = np.array([1, 1, 0, 0]), np.array([50.0, 70.0, 9.0, 9.0])
    alerts = np.array([True, False, True, False])
    assert matrix.of(alerts, labels, amounts).tolist() == [1.0, 70.0, 5.0, 0.0]
    assert CostMatrix.parse("fn:20").of(alerts, labels, amounts).tolist() == [0.0, 20.0, 0.0, 0.0]
    scores = np.array([0.9, 0.4, 0.4, 0.1])
    curve = cost_curve(matrix, scores, labels, amounts)
    for threshold, cost in zip(curve.thresholds, curve.costs, strict=True):
        assert cost == matrix.of(scores >= threshold, labels, amounts).sum()
    assert curve.least == (0.4, 7.0)
    found = saving(np.array([3.0, 2.0, 2.0]), np.array([2.0, 2.0, 0.0]), np.array([1, 2, 2]))
    assert found.saved == 3.0 and found.low < 3.0 < found.high


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("fn", "not pairs NAME:COST"),
        ("fn:1,tp:2", "tp is none of fn, fp, review"),
        ("fp:amount", "fp 'amount' is not a cost"),
        ("fp:-1", "fp '-1' is not a cost"),
        ("fp:nan", "fp 'nan' is not a cost"),
        ("absent.toml", "cannot be read"),
    ],
)
def test_a_cost_matrix_that_cannot_be_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        CostMatrix.parse(text)


def test_a_cost_matrix_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('fn = "amount"\nreview = 2.5\n')
    (tmp_path / "c.json").write_text('{"fn": 100, "fp": 7}')
    assert CostMatrix.parse(str(tmp_path / "c.toml")) == CostMatrix(None, 0.0, 2.5)
    assert CostMatrix.parse(str(tmp_path / "c.json")) == CostMatrix(100.0, 7.0)
    (tmp_path / "c.toml").write_text("fn")
    with pytest.raises(ConfigError, match="neither JSON nor TOML"):
        CostMatrix.parse(str(tmp_path / "c.toml"))


# --- the command ---


def test_the_command_says_what_is_gained_and_lost_and_writes_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None
) -> None:
    models = tmp_path / "models"
    add(models, alias="champion")
    add(models, seed=2)
    name, log = served_log(ModelSlot(loaded(models, "m@1")))
    served = read_served(log, SPAN)
    middle = float(np.median(served.scores))
    words = ["replay", "--bootstrap", f"memory://{name}", "--models", str(models), "--json"]
    words += ["--from", str(SPAN.begin_ms), "--to", str(SPAN.end_ms), "--served-threshold", str(middle)]

    def found(*more: str) -> Any:
        assert main([*words, *more]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    same = found("--model", "champion")
    assert same["rows"] == same["score_difference"]["equal_rows"] == len(served)
    assert same["differing_features"] == {"rows": 0, "names": []}
    assert same["only_served"] == same["only_replayed"] == same["alerts"]["gained"] == same["alerts"]["lost"] == 0
    assert same["served_models"] == {"m@1": len(served)} and same["model"] == "m@1"

    report = tmp_path / "report"
    other = found("--model", str(models / "m" / "2"), "--cost", "fn:amount,review:1", "--report", str(report))
    replayed = again(log, loaded(models, "m@2"))
    before, after = served.scores >= middle, replayed.scores >= middle
    assert other["alerts"]["gained"] == int((after & ~before).sum())
    assert other["alerts"]["lost"] == int((before & ~after).sum())
    assert other["alerts"]["gained"] + other["alerts"]["lost"] > 0
    rows = pq.read_table(report / "rows.parquet").to_pydict()
    assert rows["served"] == served.scores.tolist() and rows["replayed"] == replayed.scores.tolist()
    labels = np.array([-1 if label is None else label for label in rows["label"]])
    costs = [
        CostMatrix(None, 0.0, 1.0).of(alerts, labels, served.amounts)[np.array(rows["final"])].sum()
        for alerts in (before, after)
    ]
    assert [other["cost"]["served"], other["cost"]["replayed"]] == pytest.approx(costs)
    page = (report / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "http:" not in page and "https:" not in page
    assert {path.name for path in report.glob("*.png")} == {"scores.png", "alerts.png", "performance.png"}

    only = found("--threshold", str(float(np.quantile(served.scores, 0.9))))
    assert only["model"] == "as served" and only["alerts"]["gained"] == 0 < only["alerts"]["lost"]
    assert main([word for word in words if word != "--json"] + ["--model", "m@2", "--cost", "fn:5"]) == 0
    said = capsys.readouterr().out
    assert f"{len(served)} rows scored by m@2 beside what was served: m@1 ({len(served)})" in said
    assert "saves" in said and "gained (" in said


def test_ids_that_are_markup_stay_text_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None
) -> None:
    models = tmp_path / "models"
    add(models, alias="champion")
    add(models, seed=2)
    name = uuid.uuid4().hex
    log = connect(f"memory://{name}")
    assert isinstance(log, MemoryLog)
    log.admin().create_topics(topic_infos(TOPICS, PARTITIONS))
    pipeline = make_pipeline("arrival", PARTITIONS, slot=ModelSlot(loaded(models, "m@1")))
    pipeline.bind(log.admin().topics(TOPICS))
    records = [transaction(f"<script>{i}</script>", NOW + i, "<b>", "&amp;", float(i)) for i in range(60)]
    serve(log, pipeline, [(TRANSACTIONS, record) for record in records])
    words = ["replay", "--bootstrap", f"memory://{name}", "--models", str(models), "--model", "m@2"]
    scores = read_served(log, Span(0, 1 << 62)).scores
    words += ["--served-threshold", str(scores.max() + 1.0), "--threshold", "0"]
    assert main([*words, "--report", str(tmp_path / "r")]) == 0
    capsys.readouterr()
    page = (tmp_path / "r" / "index.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "<b>" not in page


def test_what_cannot_be_replayed_is_refused_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None
) -> None:
    models = tmp_path / "models"
    add(models, alias="champion")
    add(models, RICH)
    add(models, RICH, known=False)
    name, _ = served_log(ModelSlot(loaded(models, "m@1")))
    memory = ["replay", "--bootstrap", f"memory://{name}"]
    registry = ["--models", str(models)]

    def refused(*words: str) -> str:
        assert main([*memory, *words]) == 2
        return capsys.readouterr().err

    assert "--model: none given" in refused(*registry)
    assert "--from yesterday: not a time" in refused(*registry, "--model", "m@1", "--from", "yesterday")
    assert "not after --from" in refused(*registry, "--model", "m@1", "--from", "2026-01-02", "--to", "2026-01-02")
    assert "no transaction in the range 2001-01-01T00:00 to 2001-01-02T00:00" in refused(
        *registry, "--model", "m@1", "--from", "2001-01-01", "--to", "2001-01-02"
    )
    assert "'m@9' is not in" in refused(*registry, "--model", "m@9")
    assert "was made for fraud-rich" in refused(*registry, "--model", "m@2", "--features", "default")
    assert "the model needs" in refused(*registry, "--model", "m@3", "--features", "default")
    assert "give --models DIR" in refused("--model", "m@1")
    assert main(["replay", "--bootstrap", "memory://empty", *registry, "--model", "m@1"]) == 2
    assert "topic fraud-scores: not there" in capsys.readouterr().err


def test_settings_other_than_the_workers_show_in_the_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None
) -> None:
    models = tmp_path / "models"
    add(models, alias="champion")
    name, _ = served_log(ModelSlot(loaded(models, "m@1")), "event_time")
    words = ["replay", "--bootstrap", f"memory://{name}", "--models", str(models), "--model", "champion"]
    words += ["--from", str(SPAN.begin_ms)]
    assert main([*words, "--order", "event_time"]) == 0
    assert "with other values" not in capsys.readouterr().out
    assert main([*words, "--order", "arrival"]) == 0
    said = capsys.readouterr().out
    assert "rows were served with other values of terminal_" in said and "give their --order and --config" in said
