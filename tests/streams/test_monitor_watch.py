"""Alerts as records: from the vectors of the monitor's log to the command that explains them."""

from __future__ import annotations

import io
import json
import uuid
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from fraud_logs import DAY, Record, batch, processed
from monitor_logs import monitor_pipeline

from features.block import Block, Ids
from models.histogram import reference
from monitoring.labels import JoinSettings
from streams.cli.main import main
from streams.config import load_settings
from streams.errors import ConfigError, FatalError
from streams.log import TP, OutBatch, connect
from streams.monitor_worker import make_pipeline
from streams.pipelines.fraud_monitor import FEATURE, MODEL
from streams.pipelines.monitor_watch import WatchSettings, values_of
from streams.shuffle import Sent, Source, pack
from streams.topics import ALERTS, BY_TERMINAL, BY_TRANSACTION, FINDINGS, LABELS, topic_infos
from tests.features.streams_of_rows import same_arrays

START = 18_000 * DAY
A_DAY = 450
CONTRACT = ["alert_id", "event_time", "kind", "subject", "severity", "value", "threshold", "evidence", "action"]


@cache
def log_of(
    days: int, shift: float, models: int = 1, frauds_only: bool = False, in_segment: float = 0.0
) -> list[Record]:
    """A message of vectors for each day, whose feature ``a`` moves by ``shift`` after 36 days, and the log odds of its
    score by ``in_segment`` where ``s`` is 2 (of 0, 1, 2 and missing); and one of the labels of that day, a day later by
    their own time."""
    rng = np.random.default_rng(8)
    out: list[Record] = []
    for day in range(days):
        at = np.arange(day * A_DAY, (day + 1) * A_DAY)
        a, b = rng.normal(shift if day >= 36 else 0.0, 1.0, A_DAY), rng.gamma(2.0, 2.0, A_DAY)
        s = np.where(at % 4 == 3, np.nan, at % 4).astype(np.float64)
        score = 1 / (1 + np.exp(3 - b / 2 - np.where((s == 2) & (day >= 36), in_segment, 0.0)))
        times = START + day * DAY + np.sort(rng.integers(0, DAY, A_DAY))
        named = Ids(mixed=[f"m@{1 + i % models}" for i in range(A_DAY)])
        ids = {name: Ids(ints=at % n) for name, n in (("transaction_id", 10**9), ("card_id", 50), ("terminal_id", 9))}
        columns = {"event_time": times, "source_partition": at * 0, "source_offset": at, "late": at < 0}
        floats = {"raw": b, "score": score, f"{FEATURE}a": a, f"{FEATURE}b": b, f"{FEATURE}s": s}
        vectors = Block(BY_TERMINAL, 0, int(at[-1]) + 1, at, times, ids | {MODEL: named}, columns | floats)
        labels = Block(LABELS, 0, int(at[-1]) + 1, at, times + DAY, {"transaction_id": ids["transaction_id"]})
        labels.columns |= {"label_time": times + DAY, "is_fraud": (rng.random(A_DAY) < score).astype(np.int64)}
        if frauds_only:
            labels = labels.take(labels.columns["is_fraud"] == 1)
        for kind, block in (("rows", vectors), ("labels", labels)):
            sent = Sent(Source(block.topic, f"id-{block.topic}", 0), block, START + day * DAY)
            out += [Record(value) for _, value in pack(kind, [sent], None, 1)]  # type: ignore[arg-type]
    return out


def task_of(watch: WatchSettings | None = None, join: JoinSettings | None = None, packages: Any = None) -> Any:
    pipeline = monitor_pipeline(join or JoinSettings(30 * DAY), 1)
    pipeline.watch = watch or WatchSettings(mature_ms=DAY)
    pipeline.packages = packages
    return pipeline.task(TP(BY_TRANSACTION, 0))


def alerts_of(task: Any, records: list[Record], first: int = 0) -> list[tuple[bytes | None, bytes | None]]:
    outputs = processed(task, batch(BY_TRANSACTION, records, first))
    return [(key, out.values[i]) for out in outputs if out.topic == FINDINGS for i, key in enumerate(out.keys or ())]


@cache
def moved(models: int = 1) -> tuple[Any, list[tuple[bytes | None, bytes | None]]]:
    """A task that has read everything, and the alerts of it; feature ``a`` has moved."""
    task = task_of()
    return task, alerts_of(task, log_of(44, 1.5, models))


def of_inputs(alerts: list[tuple[bytes | None, bytes | None]]) -> list[dict[str, Any]]:
    return [alert for _, value in alerts for alert in [orjson.loads(value or b"")] if alert["kind"] == "input_drift"]


def test_a_drift_is_one_alert_with_all_of_the_contract() -> None:
    task, alerts = moved()
    [alert] = of_inputs(alerts)
    assert {key for key, _ in alerts} == {b"findings"}, "one task sees them all"
    assert list(alert) == CONTRACT
    assert alert["subject"] == "a"
    assert alert["evidence"]["model"] == "m@1" and alert["evidence"]["partition"] == f"{BY_TRANSACTION}/0"
    assert START + 36 * DAY < alert["event_time"] <= START + 38 * DAY
    figures = task.pipeline.figures()
    assert figures["findings"] == len(alerts) and figures["labelled"] == 44 * A_DAY
    watched = task.pipeline.details()["watched"][f"{BY_TRANSACTION}/0"]["m@1"]
    assert watched["scored"]["incidents"] >= 1 and watched["labelled"]["periods"] > 30


def test_where_nothing_drifts_nothing_is_said() -> None:
    assert of_inputs(alerts_of(task_of(), log_of(44, 0.0))) == []


def package_of(shift: float) -> dict[str, Any]:
    """What a package tells that was made on rows like those of `log_of`, feature ``a`` moved by so much."""
    rng = np.random.default_rng(9)
    n = 4000
    b = rng.gamma(2.0, 2.0, n)
    s = np.where(np.arange(n) % 4 == 3, np.nan, np.arange(n) % 4).astype(np.float64)
    x = np.column_stack([rng.normal(shift, 1.0, n), b, s])
    told: dict[str, Any] = json.loads(json.dumps(reference(x, ("a", "b", "s"), 1 / (1 + np.exp(3 - b / 2)))))
    return told


def test_what_is_other_than_the_model_was_made_on_is_found_though_nothing_changes() -> None:
    asked = []

    def packages(shift: float) -> Any:
        def told(model: str) -> dict[str, Any]:
            asked.append(model)
            return package_of(shift)

        return told

    records = log_of(44, 0.0)
    assert of_inputs(alerts_of(task_of(packages=packages(0.0)), records)) == []
    whole = task_of(packages=packages(0.8))
    [alert] = of_inputs(alerts_of(whole, records))
    evidence = alert["evidence"]
    # at once when the stream has told how far windows are apart by chance
    assert alert["subject"] == "a" and alert["event_time"] <= START + 31 * DAY
    assert {watch["measure"] for watch in evidence["watches"]} <= {"psi_trained", "js_trained", "ks_trained"}
    assert evidence["distribution"]["edges"] and sum(evidence["distribution"]["then"]) == pytest.approx(1)
    figures = whole.pipeline.details()["watched"][f"{BY_TRANSACTION}/0"]["m@1"]["scored"]
    assert figures["psi_trained"]["a"] > 0.3 > 0.1 > max(figures["psi_trained"]["b"], figures["psi"]["a"])
    # and who goes on from a checkpoint needs no package again
    task, got = task_of(packages=packages(0.8)), []
    asked.clear()
    for begin, end in pairwise([0, 41, 75, len(records)]):
        got += alerts_of(task, records[begin:end], begin)
        state = task.state()
        task = task_of(packages=packages(0.0))
        task.restore(state)
    assert of_inputs(got) == [alert] and asked == ["m@1"] and same_arrays(task.state(), whole.state())


def test_rows_of_a_model_whose_package_is_not_there_end_the_worker(tmp_path: Path) -> None:
    for folder, where in ((tmp_path, "is not in"), (tmp_path / "gone", "is no folder")):
        settings = load_settings(None, {}, {"models": str(folder), "bootstrap": "memory://m"})
        packages = make_pipeline(settings).packages
        with pytest.raises(FatalError, match=f"package-missing: m@1 has scored .*{where}.* run .* without --models"):
            alerts_of(task_of(packages=packages), log_of(2, 0.0))
        assert packages("") == {}, "of rows that no model has scored there is none"


def test_each_model_is_watched_apart() -> None:
    alerts = of_inputs(moved(2)[1])
    assert {alert["evidence"]["model"] for alert in alerts} == {"m@1", "m@2"}
    assert len({alert["alert_id"] for alert in alerts}) == len(alerts)


def test_the_same_alerts_however_the_log_is_cut_and_the_worker_restarted() -> None:
    records = log_of(44, 1.5, 2)
    whole, expected = moved(2)
    task, got = task_of(), []
    for begin, end in pairwise([0, 3, 71, 75, len(records)]):
        got += alerts_of(task, records[begin:end], begin)
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **task.state())
        file.seek(0)
        task = task_of()
        task.restore(dict(np.load(file, allow_pickle=False)))
    assert got == expected and len(got) >= 2
    assert same_arrays(task.state(), whole.state())


def test_what_changes_in_one_segment_only_is_said_of_it() -> None:
    found = {}
    for segments in ((), ("s", "of another set")):
        records = log_of(44, 0.0, in_segment=1.0)
        alerts = alerts_of(task_of(WatchSettings(mature_ms=DAY, segments=segments)), records)
        evidence = [orjson.loads(value or b"")["evidence"] for _, value in alerts]
        found[segments] = {name for one in evidence for name in one["segments"]}
    assert found == {(): set(), ("s", "of another set"): {"s=2"}}
    quiet = alerts_of(task_of(WatchSettings(mature_ms=DAY, segments=("s",))), log_of(44, 0.0))
    assert quiet == []


def test_a_value_of_a_segment_has_one_name_whatever_the_others_are() -> None:
    whole = np.array([0.0, 3.0, -1.0, 2.0**53])
    assert values_of(whole[:3]).to_list() == [0, 3, -1]
    mixed = values_of(np.append(whole, [0.5, np.nan, np.inf])).to_list()
    assert mixed == ["0", "3", "-1", "9007199254740992.0", "0.5", "missing", "inf"]


@pytest.mark.parametrize(("text", "names"), [("", ()), (" is_night, is_weekend,is_night", ("is_night", "is_weekend"))])
def test_segments_are_named_in_the_settings(text: str, names: tuple[str, ...]) -> None:
    settings = load_settings(None, {}, {"monitor_segments": text, "bootstrap": "memory://m"})
    assert make_pipeline(settings).watch.segments == names


def test_a_segment_that_is_no_feature_is_refused() -> None:
    with pytest.raises(ConfigError, match="monitor_segments: 'channel' is a feature of no set; use some of amount, "):
        load_settings(None, {}, {"monitor_segments": "channel"})


def test_partitions_share_the_false_alarms() -> None:
    assert WatchSettings(false_alarms=2.0).of(("a",), JoinSettings(), 4).false_alarms_per_30d == 0.5


def labelled_figures(task: Any) -> dict[str, Any]:
    watched: dict[str, Any] = task.pipeline.details()["watched"][f"{BY_TRANSACTION}/0"]["m@1"]["labelled"]
    return watched


@pytest.mark.parametrize("rule", [{"negatives": "horizon"}, {"conflicts": "last"}])
def test_labels_that_are_known_at_the_horizon_are_in_time(rule: dict[str, Any]) -> None:
    task = task_of(join=JoinSettings(10 * DAY, **rule))
    processed(task, batch(BY_TRANSACTION, log_of(24, 0.0, frauds_only="negatives" in rule)))
    figures = labelled_figures(task)
    assert task.pipeline.figures()["labelled"] > 12 * A_DAY
    assert figures["late_rows"] == 0 and figures["periods"] >= 11


def test_a_label_of_a_wrong_clock_spoils_nothing_for_others() -> None:
    records = log_of(24, 0.0)
    one = Ids(ints=np.array([10 * A_DAY]))  # known by then, as is its vector
    label = Block(LABELS, 0, 11 * A_DAY, np.array([11 * A_DAY - 1]), np.array([START]), {"transaction_id": one})
    label.columns |= {"label_time": np.array([START + 39 * DAY]), "is_fraud": np.array([1])}
    source = Sent(Source(LABELS, f"id-{LABELS}", 0), label, 10**15)
    [wrong] = [Record(value) for _, value in pack("labels", [source], None, 1)]
    task = task_of()
    processed(task, batch(BY_TRANSACTION, [*records[:21], wrong, *records[22:]]))
    assert task.join.time_ms <= START + 24 * DAY, "nobody waits less long for labels"
    assert task.pipeline.figures()["labelled"] == 23 * A_DAY + 1
    assert labelled_figures(task)["late_rows"] == 0


# --- the command ---


@pytest.fixture
def url() -> str:
    name = f"memory://{uuid.uuid4().hex}"
    log = connect(name)
    log.admin().create_topics(topic_infos((ALERTS,), 2))
    [alert] = of_inputs(moved()[1])
    alerts = [(b"input_drift/a", orjson.dumps(alert))]
    other = alert | {"alert_id": "ffff000000000000", "kind": "score_drift", "evidence": {}}
    sent = [*alerts, *alerts, (b"other", orjson.dumps(other))]  # the first of them was sent twice
    producer = log.producer()
    producer.send(OutBatch(ALERTS, [value for _, value in sent], [key for key, _ in sent]))
    assert producer.flush(10) == 0
    producer.close()
    return name


def test_alerts_are_listed_and_counted_once(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alerts", "--bootstrap", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and sum("input_drift" in line and "2019-05-" in line for line in lines) == 1
    assert main(["alerts", "--kind", "score_drift", "--bootstrap", url, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [alert["alert_id"] for alert in figures["alerts"]] == ["ffff000000000000"] and figures["total"] == 2
    assert main(["alerts", "--kind", "none", "--bootstrap", url]) == 0
    assert "none of 2 alerts match" in capsys.readouterr().out


def test_an_alert_is_explained(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alerts", "--kind", "input_drift", "--bootstrap", url, "--json"]) == 0
    [alert] = json.loads(capsys.readouterr().out)["alerts"]
    assert main(["alerts", alert["alert_id"][:10], "ffff", "--bootstrap", url]) == 0
    text = capsys.readouterr().out
    for said in (
        f"{alert['alert_id']}: input_drift of a, ",
        "changed about 2019-05-20 00:00",
        "times as far from the usual as is allowed",
        "model     m@1, seen first in fraud.by-transaction/0",
        "features  a",
        "example   transaction ",
        "to alert always: ",
        "1 false alarms in 30 days over ",
        "action    none",
        "ffff000000000000: score_drift of a",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("words", "said"), [(["0123"], "0123: no such alert"), (["--limit", "0"], "--limit 0: below 1")]
)
def test_wrong_use_is_said(words: list[str], said: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alerts", *words, "--bootstrap", url]) == 2
    assert said in capsys.readouterr().err
