"""`headrace` commands as processes of their own, and what they leave in the topics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from features.block import FloatArray
from features.fraud import DEFAULT
from features.schema import TRANSACTION_LABELS, TRANSACTIONS
from streams.config import Settings
from streams.fraud_worker import stage_settings
from streams.log import TP, Headers, Log, LogConsumer, OutBatch
from streams.offline import block_of, feature_matrix
from streams.simulator import Columns, World

HEADRACE = [sys.executable, "-c", "import sys; from streams.cli.main import main; sys.exit(main())"]
#: a Monday, long ago
START_MS = 1_522_540_800_000 + 86_400_000
FIGURES = ("received", "scored", "dead_letters", "duplicates")


def environment() -> dict[str, str]:
    """Ours without what would change a command's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}


def headrace(*words: str | Path, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [*HEADRACE, *map(str, words)], capture_output=True, text=True, env=environment(), timeout=timeout_s
    )


class WorkerProcess:
    """``headrace run --pipeline fraud``; kills it on exit from a ``with``."""

    def __init__(self, bootstrap: str, folder: Path, *words: str, config: str = "") -> None:
        name = uuid.uuid4().hex[:8]
        self._out, self._log = folder / f"{name}.out", folder / f"{name}.log"
        settings = folder / f"{name}.toml"
        settings.write_text(config)
        command = [*HEADRACE, "run", "--pipeline", "fraud", "--json", "--bootstrap", bootstrap, *words]
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(settings)], stdout=out, stderr=log, env=environment()
            )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Waits for a condition while the worker lives."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before: {what}\n{self.log}"
            assert time.monotonic() < deadline, f"timed out waiting for: {what}\n{self.log}"
            time.sleep(0.02)

    def until_logged(self, text: str, timeout_s: float = 60) -> None:
        self.until(lambda: text in self.log, f"{text!r} in the log", timeout_s)

    def until_ready(self) -> None:
        self.until(lambda: "ready" in self._out.read_text(), "ready")

    def stop(self, within_s: float) -> dict[str, Any]:
        """SIGTERM; its figures, once it has left in time and with exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        assert self.wait(within_s) == 0, self.log
        figures: dict[str, Any] = json.loads(self._out.read_text().splitlines()[-1])
        return figures

    def wait(self, within_s: float) -> int:
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {within_s} s\n{self.log}") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Record(NamedTuple):
    tp: TP
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class _FromStart:
    def __init__(self, consumer: LogConsumer) -> None:
        self.consumer = consumer

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        return {tp: self.consumer.offset_range(tp)[0] for tp in partitions}

    def on_revoke(self, partitions: list[TP]) -> None:
        pass

    def on_lost(self, partitions: list[TP]) -> None:
        pass


class TopicReader:
    """All records of a topic from its start; `read` adds to ``records``."""

    def __init__(self, log: Log, topic: str, partitions: int) -> None:
        self._consumer = log.consumer(f"read-{uuid.uuid4().hex}")
        self._partitions = [TP(topic, p) for p in range(partitions)]
        self._consumer.subscribe([topic], _FromStart(self._consumer))
        self.records: list[Record] = []

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def _poll(self) -> None:
        for b in self._consumer.poll(0.05, 10_000):
            self.records += [
                Record(b.tp, *row)
                for row in zip(b.offsets, b.keys, b.values, map(b.headers, range(len(b))), strict=True)
            ]

    def until(self, enough: Callable[[list[Record]], bool], timeout_s: float = 60) -> list[Record]:
        """Reads until there is enough."""
        deadline = time.monotonic() + timeout_s
        while not enough(self.records):
            assert time.monotonic() < deadline, f"only {len(self.records)} records came"
            self._poll()
        return self.records

    def all(self) -> list[Record]:
        """Reads what is there now."""
        ends = sum(self._consumer.offset_range(tp)[1] for tp in self._partitions)
        return self.until(lambda records: len(records) >= ends)


def until_scored(scores: TopicReader, n: int, timeout_s: float = 60) -> list[Record]:
    """Reads until ``n`` different transactions are scored."""
    sources: set[bytes] = set()
    seen = 0

    def enough(records: list[Record]) -> bool:
        nonlocal seen
        sources.update(record.headers[0][1] for record in records[seen:])
        seen = len(records)
        return len(sources) >= n

    return scores.until(enough, timeout_s)


def by_source(scores: Sequence[Record]) -> dict[bytes, bytes]:
    """Value of each source; repeated ones are the same to the byte."""
    values: dict[bytes, bytes] = {}
    for record in scores:
        assert record.value is not None
        assert record.headers[0][0] == "source"
        assert values.setdefault(record.headers[0][1], record.value) == record.value
    return values


def world(days: int, cards: int) -> tuple[Columns, Columns]:
    """Transactions and labels of a small world; labels come after two days."""
    return World(7, start_ms=START_MS, cards=cards, terminals=cards // 5, label_delay_ms=2 * 86_400_000).history(days)


def values_of(columns: Columns) -> list[bytes]:
    lists = [column.tolist() for column in columns.values()]
    return [orjson.dumps(dict(zip(columns, row, strict=True))) for row in zip(*lists, strict=True)]


def keys_of(columns: Columns, name: str) -> list[bytes]:
    return [str(value).encode() for value in columns[name].tolist()]


def send(log: Log, topic: str, columns: Columns, key: str) -> None:
    """All rows, in order, delivered on return."""
    producer = log.producer()
    batch = OutBatch(topic, values_of(columns), keys_of(columns, key))
    sent = producer.send(batch)
    while sent < len(batch):
        producer.poll(0.05)
        sent = producer.send(batch, sent)
    assert producer.flush(30) == 0
    producer.close()


def assert_features(scores: Sequence[Record], transactions: Columns, labels: Columns) -> None:
    """Every transaction is scored, with the features that the same stages give offline, by event time."""
    expected = feature_matrix(
        block_of(TRANSACTIONS, transactions), block_of(TRANSACTION_LABELS, labels), stage_settings(Settings())
    ).in_input_order()
    live = features_of(by_source(scores).values())
    ids = transactions["transaction_id"].tolist()
    assert sorted(live) == sorted(ids)
    np.testing.assert_array_equal(np.array([live[i] for i in ids]), expected.matrix)


def features_of(values: Any) -> dict[int, FloatArray]:
    """Features by transaction id, one row each."""
    rows: dict[int, FloatArray] = {}
    for value in values:
        score = orjson.loads(value)
        assert score["transaction_id"] not in rows, "scored twice"
        rows[score["transaction_id"]] = np.array([score["features"][name] for name in DEFAULT.names], np.float64)
    return rows
