"""`headrace bootstrap`: a group that begins at a seam gives the features of the whole history, to the bit."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from workers import until

from features.fraud import SETS
from streams.cli.main import main
from streams.config import load_settings
from streams.fraud_worker import make_worker
from streams.log import TP, Log, OutBatch, connect
from streams.memory import MemoryLog
from streams.offline import feature_matrix, read_events, read_labels
from streams.pipelines.fraud_stages import StageSettings
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS, topic_infos

DAY, HOUR = 86_400_000, 3_600_000
START = 1_600_000_000_000
TOPICS = (TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES)
N = 500
Event = dict[str, Any]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


def history(text: bool, after_ms: int) -> tuple[list[Event], list[Event]]:
    """Sixty days of events in time order, some twice, and labels, each at least ``after_ms`` later, by label time."""
    rng = np.random.default_rng(7)
    name = (lambda kind, k: f"{kind}-{k}") if text else (lambda kind, k: k)
    times = START + np.cumsum(rng.integers(1, 2 * 60 * DAY // N, N))
    events: list[Event] = []
    labels: list[Event] = []
    for i, at in enumerate(times.tolist()):
        terminal = name("shop", int(rng.integers(7)))
        event = {"transaction_id": name("t", i), "event_time": at, "card_id": name("card", int(rng.integers(9)))}
        events.append({**event, "terminal_id": terminal, "amount": float(rng.integers(1, 9999)) / 100})
        if rng.random() < 0.1:
            events.append({**events[-1], "event_time": at + 1})
        if rng.random() < 0.8:
            due = at + int(rng.integers(after_ms, 9 * DAY))
            label = {"transaction_id": name("t", i), "label_time": due, "is_fraud": int(rng.random() < 0.4)}
            labels.append({**label, "terminal_id": terminal} if i % 3 else label)
    events.sort(key=lambda e: int(e["event_time"]))
    labels.sort(key=lambda e: int(e["label_time"]))
    return events, labels


def written(path: Path, rows: Sequence[Event]) -> Path:
    if path.suffix == ".parquet":
        names = {name for row in rows for name in row}
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    else:
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def send(log: Log, topic: str, rows: Sequence[Event], key: str) -> None:
    producer = log.producer()
    producer.send(OutBatch(topic, [orjson.dumps(r) for r in rows], [str(r[key]).encode() for r in rows]))
    assert producer.flush(20) == 0
    producer.close()


class Live:
    """A worker of the group in a thread of its own."""

    def __init__(self, **overrides: Any) -> None:
        ready = threading.Event()
        settings = load_settings(None, {}, {"commit_interval_ms": 50, **overrides})
        self.worker, self.pipeline = make_worker(settings, ready.set)
        self._code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert ready.wait(60)

    def _run(self) -> None:
        self._code = asyncio.run(self.worker.run())

    def stop(self) -> dict[str, int]:
        self.worker.stop()
        self._thread.join(20)
        assert self._code == 0
        return self.pipeline.figures()


def fresh(name: str, partitions: int) -> MemoryLog:
    log = connect(f"memory://{name}")
    assert isinstance(log, MemoryLog)
    log.admin().create_topics(topic_infos(TOPICS, partitions))
    return log


def vectors(log: MemoryLog) -> dict[str, tuple[float, ...]]:
    """By transaction id, of the records of fraud-scores."""
    rows = [row for p in log.partitions(FRAUD_SCORES) for row in p.rows if row is not None]
    records = [orjson.loads(row[2] or b"") for row in rows]
    return {str(r["transaction_id"]): tuple(r["features"].values()) for r in records}


def offline(folder: Path, events: Sequence[Event], labels: Sequence[Event], order: str, kind: str) -> dict[str, Any]:
    block = read_events(written(folder / "all.jsonl", events))
    made = feature_matrix(
        block,
        read_labels(written(folder / "all-labels.jsonl", labels)),
        StageSettings(SETS[kind]),
        order,  # type: ignore[arg-type]
    )
    ids = block.ids["transaction_id"].take(made.row).to_list()
    return {str(i): tuple(row) for i, row in zip(ids, made.matrix.tolist(), strict=True)}


CASES = [
    ("arrival", False, "parquet", 0.5, "default"),
    ("event_time", True, "jsonl", 0.3, "default"),
    ("event_time", False, "jsonl", 0.8, "rich"),
    ("arrival", True, "parquet", 0.7, "tiled"),
]


@pytest.mark.parametrize(("order", "text", "kind", "share", "features"), CASES)
def test_after_the_seam_live_equals_offline_over_all(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    order: str,
    text: bool,
    kind: str,
    share: float,
    features: str,
) -> None:
    # what has no transaction yet is dropped where labels are taken as they come
    events, labels = history(text, HOUR if order == "event_time" else 4 * DAY)
    cut = int(share * len(events))
    while events[cut]["event_time"] == events[cut - 1]["event_time"] or not _repeats(events, cut):
        cut += 1
    # labels up to two days after the newest event are in the files already; all others come through the topics
    until_ms = events[cut - 1]["event_time"] + 2 * DAY
    known = [r for r in labels if r["label_time"] <= until_ms]
    assert 0 < len(known) < len(labels) and known[-1]["label_time"] > events[cut - 1]["event_time"]
    name = uuid.uuid4().hex
    # in the order of arrival, partitions of transactions overtake each other
    partitions = 1 if order == "arrival" else 3
    log = fresh(name, partitions)
    # what the topics held before is in the files too
    send(log, TRANSACTIONS, events[cut - 50 : cut], "card_id")
    kept = str(tmp_path / "kept")
    words = ["bootstrap", "--bootstrap", f"memory://{name}", "--group", "g", "--checkpoints", kept, "--order", order]
    words += ["--from", str(written(tmp_path / f"events.{kind}", events[:cut])), "--set", features, "--json"]
    assert main([*words, "--labels", str(written(tmp_path / f"labels.{kind}", known))]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    of = {topic: [p for p in figures["partitions"] if p["topic"] == topic] for topic in TOPICS[:3]}
    assert figures["rows"] + figures["duplicates"] == cut and figures["labels"] == len(known)
    assert sum(p["rows"] for p in of[TRANSACTIONS]) == sum(p["rows"] for p in of[BY_TERMINAL]) == figures["rows"]
    assert sum(p["seam"] for p in of[TRANSACTIONS]) == 50 and sum(p["rows"] for p in of[LABELS]) == len(known)
    assert sum(p["keys"] for p in of[TRANSACTIONS]) == 9 and sum(p["keys"] for p in of[BY_TERMINAL]) == 7

    overrides = {"bootstrap": f"memory://{name}", "group": "g", "checkpoints": kept, "order": order}
    overrides |= {"feature_set": features}
    expected = offline(tmp_path, events, labels, order, features)
    behind = {str(e["transaction_id"]) for e in events[cut:]} - {str(e["transaction_id"]) for e in events[:cut]}
    # a restart in the middle goes on from the worker's own checkpoint
    middle = cut + (len(events) - cut) // 2
    duplicates, due = 0, labels[len(known) :]
    for part in (events[cut:middle], events[middle:]):
        soon = [r for r in due if r["label_time"] <= part[-1]["event_time"]]
        due = due[len(soon) :]
        if order == "event_time":
            # a backlog: before a worker that hears nothing for a second says so, and labels of what is to come are due
            send(log, LABELS, soon, "transaction_id")
            send(log, TRANSACTIONS, part, "card_id")
        worker = Live(**overrides)
        if order == "arrival":
            _in_rounds(log, part, soon, partitions)
        wanted = behind & {str(e["transaction_id"]) for e in [*events[:cut], *part]}
        until(lambda wanted=wanted: wanted <= vectors(log).keys(), "scores")  # type: ignore[misc]
        duplicates += worker.stop()["duplicates"]
    got = vectors(log)
    assert got.keys() == behind, "nothing of the files is scored"
    assert got == {i: expected[i] for i in behind}
    assert duplicates == len(events) - cut - len(behind) > 0


def _repeats(events: Sequence[Event], cut: int) -> bool:
    """Whether a transaction is on both sides of the cut."""
    return events[cut]["transaction_id"] == events[cut - 1]["transaction_id"]


def _in_rounds(log: MemoryLog, events: Sequence[Event], labels: Sequence[Event], partitions: int) -> None:
    """As offline has them: labels of three days, once they are taken the transactions of these days."""
    begin = events[0]["event_time"]
    first, last = min([begin, *(r["label_time"] for r in labels[:1])]), events[-1]["event_time"]
    for start in range(first, last + 1, 3 * DAY):
        send(log, LABELS, [r for r in labels if start <= r["label_time"] < start + 3 * DAY], "transaction_id")
        until(lambda: _all_taken(log, LABELS, partitions), "the labels to go on")
        send(log, TRANSACTIONS, [e for e in events if start <= e["event_time"] < start + 3 * DAY], "card_id")
        until(lambda: _all_taken(log, TRANSACTIONS, partitions), "the transactions to go on")


def _all_taken(log: MemoryLog, topic: str, partitions: int) -> bool:
    consumer = log.consumer("g")
    try:
        done = consumer.committed([TP(topic, p) for p in range(partitions)])
    finally:
        consumer.close()
    return all(done[TP(topic, p)] == len(log.partitions(topic)[p].rows) for p in range(partitions))


def test_what_is_refused_and_what_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events, labels = history(text=False, after_ms=HOUR)
    name, kept = uuid.uuid4().hex, str(tmp_path / "kept")
    words = [
        "bootstrap",
        "--bootstrap",
        f"memory://{name}",
        "--group",
        "g",
        "--checkpoints",
        kept,
        "--seam",
        "earliest",
    ]
    words += ["--from", str(written(tmp_path / "events.jsonl", events[:300]))]
    words += ["--labels", str(written(tmp_path / "labels.jsonl", labels))]

    def refused(*more: str) -> tuple[int, str]:
        code = main([*words, *more])
        return code, capsys.readouterr().err

    assert refused("--checkpoints", "none") == (
        2,
        "headrace bootstrap: --checkpoints none: there is nowhere to put them; name a directory or an fsspec URL\n",
    )
    code, text = refused()
    assert code == 2 and "transactions, transaction-labels, fraud.by-terminal: not there" in text

    log = fresh(name, 2)
    worker = Live(bootstrap=f"memory://{name}", group="g", checkpoints="none")
    code, text = refused()
    assert code == 1 and "group g has other members" in text and "new --group" in text
    assert not list(Path(kept).rglob("*.ckpt")), "nothing is written for a group that has begun"
    worker.stop()

    # the topics hold the last of the files again, and a first try was killed before it committed another seam
    send(log, TRANSACTIONS, events[295:], "card_id")
    assert main([*words, "--seam", "end"]) == 0
    folders = {path.parent for path in Path(kept).rglob("*.ckpt")}
    with log.changed:
        log.group("g").committed.clear()
    code, text = refused()
    assert code == 0 and "is not older than what is behind the seam" in text
    files = sorted(Path(kept).rglob("*.ckpt"))
    assert len(folders) == 4 and files == sorted(f / n for f in folders for n in (f"{0:019}.ckpt", "seam.ckpt"))
    with log.changed:
        assert set(log.group("g").committed.values()) == {0}

    code, text = refused()
    assert code == 1 and "group g has committed offsets already (transactions/0 at 0, 6 partitions in all)" in text
    assert "name a new one with --group" in text


def test_text_ids_and_a_block_without_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A partition, a label topic and a whole block can be empty."""
    name = uuid.uuid4().hex
    fresh(name, 5)
    event = {"transaction_id": "a", "event_time": START, "card_id": "c", "terminal_id": "t", "amount": 1.5}
    source = written(tmp_path / "events.jsonl", [event] * 70_000)
    words = ["bootstrap", "--bootstrap", f"memory://{name}", "--checkpoints", str(tmp_path), "--order", "event_time"]
    assert main([*words, "--from", str(source)]) == 0
    out = capsys.readouterr().out
    assert "the state of 1 events and 0 labels (69,999 duplicates left out" in out
    assert "2020-09-13 12:26:40.000" in out
