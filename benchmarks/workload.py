"""What is measured with: transactions and their labels as records and columns, a model, and the scores read back."""

from __future__ import annotations

import hashlib
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.machine import BenchError
from features.block import Block, FloatArray, Ids, IntArray
from features.declare import FeatureSet
from features.fraud import DEFAULT
from models.package import package_from_text
from models.registry import Registry
from streams.codec import decode_labels, decode_transactions
from streams.files import read_records
from streams.listeners import FromStart
from streams.log import TP, Log, OutBatch, RecordBatch
from streams.offline import feature_matrix
from streams.pipelines.fraud_stages import StageSettings
from streams.simulator import World
from streams.simulator_stream import label_json, transaction_json
from streams.topics import LABELS, TRANSACTIONS

__all__ = ["Records", "Scores", "Workload", "expected", "from_files", "read_scores", "send", "simulated", "train"]

#: a Monday; in the past, so no event is in the future of its record
START_MS = 1_704_067_200_000
CARDS, TERMINALS = 2_000, 4_000
TREES, LEAVES = 300, 31
MODEL = "bench"
_TRAINING_ROWS_MAX = 100_000
_SEND_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Records:
    """Values and keys to send, in order."""

    values: Sequence[bytes]
    keys: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Workload:
    """Transactions in event order, and their labels in order of label_time."""

    name: str
    transactions: Records
    labels: Records

    def head(self, n: int) -> Workload:
        """The first n transactions and their labels."""
        sent = Records(self.transactions.values[:n], self.transactions.keys[:n])
        return Workload(self.name, sent, _labels_of(sent, self.labels))


def _labels_of(transactions: Records, labels: Records) -> Records:
    ids = {str(msgspec.json.decode(value)["transaction_id"]).encode() for value in transactions.values}
    mine = [i for i, key in enumerate(labels.keys) if key in ids]
    return Records([labels.values[i] for i in mine], [labels.keys[i] for i in mine])


def _columns(
    n: int, seed: int, cards: int = CARDS, terminals: int = TERMINALS
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    world = World(seed, start_ms=START_MS, cards=cards, terminals=terminals)
    days = int(n / (world.rows_per_day * 0.9)) + 2
    transactions, labels = world.history(days)
    if len(transactions["transaction_id"]) < n:
        raise BenchError(f"the simulated world has {len(transactions['transaction_id'])} events, {n} wanted")
    known = labels["transaction_id"] < n
    return {k: v[:n] for k, v in transactions.items()}, {k: v[known] for k, v in labels.items()}


def simulated(n: int, seed: int = 1, cards: int = CARDS, terminals: int = TERMINALS) -> Workload:
    """n simulated transactions, about two a card and day, and their labels, most of them a week later."""
    transactions, labels = _columns(n, seed, cards, terminals)
    cents = np.rint(transactions["amount"] * 100).astype(np.int64)
    names = ("transaction_id", "event_time", "card_id", "terminal_id")
    rows = zip(*(transactions[name].tolist() for name in names), cents.tolist(), strict=True)
    known = zip(*(labels[name].tolist() for name in ("transaction_id", "label_time", "is_fraud")), strict=True)
    return Workload(
        f"simulated, seed {seed}, {cards} cards, {terminals} terminals",
        Records([transaction_json(*row) for row in rows], [b"%d" % card for card in transactions["card_id"].tolist()]),
        Records([label_json(*row) for row in known], [b"%d" % i for i in labels["transaction_id"].tolist()]),
    )


def from_files(transactions: Path, labels: Path, n: int) -> Workload:
    """The first n events of a file of transactions, and the labels of another that are about them."""
    sent = _first(transactions, "card_id", n)
    known = _labels_of(sent, _first(labels, "transaction_id", None))
    return Workload(f"{transactions.name}, first {len(sent)} events", sent, known)


def _first(path: Path, key: str, n: int | None) -> Records:
    values: list[bytes] = []
    keys: list[bytes] = []
    for some, their_keys in read_records(path, key):
        values += some
        keys += [k or b"" for k in their_keys or ()]
        if n is not None and len(values) >= n:
            break
    return Records(values[:n], keys[:n])


def train(
    folder: Path, seed: int = 2, rows: int = _TRAINING_ROWS_MAX, trees: int = TREES, features: FeatureSet = DEFAULT
) -> Path:
    """A model of `TREES` x `LEAVES` of another simulated world, in ``folder``/models; returns its text's file."""
    transactions, labels = _columns(rows, seed)
    block = _block(transactions, ("transaction_id", "card_id", "terminal_id"))
    made = feature_matrix(block, _block(labels, ("transaction_id",)), StageSettings(features))
    y = np.zeros(rows, np.int64)
    y[labels["transaction_id"]] = labels["is_fraud"]
    settings = {"objective": "binary", "num_leaves": LEAVES, "learning_rate": 0.05, "min_data_in_leaf": 5}
    settings |= {"num_threads": 1, "verbosity": -1, "seed": seed, "deterministic": True, "force_row_wise": True}
    data = lightgbm.Dataset(made.matrix, y[made.row], feature_name=list(features.names), params=settings)
    path = folder / "model.txt"
    lightgbm.train(settings, data, trees).save_model(path)
    draft = package_from_text(
        path, MODEL, created_at="2024-01-01T00:00:00Z", features=features.names, schema_hash=features.schema_hash
    )
    Registry(folder / "models").add(draft, "champion")
    return path


def expected(workload: Workload) -> FloatArray:
    """(n, d) float64: the features of the transactions, offline, by the stages that the worker runs."""

    def batch(topic: str, records: Records) -> RecordBatch:
        n = len(records)
        return RecordBatch(TP(topic, 0), [*range(n)], [-1] * n, [*records.keys], [*records.values], lambda _: [], n)

    transactions, _ = decode_transactions(batch(TRANSACTIONS, workload.transactions))
    labels, _ = decode_labels(batch(LABELS, workload.labels))
    return feature_matrix(transactions, labels, StageSettings(DEFAULT)).matrix


def _block(columns: Mapping[str, npt.NDArray[Any]], ids: Sequence[str]) -> Block:
    n = len(columns["transaction_id"])
    return Block(
        topic="",
        partition=0,
        next_offset=n,
        offsets=np.arange(n),
        timestamps=np.zeros(n, np.int64),
        ids={name: Ids(ints=columns[name]) for name in ids},
        columns={name: column for name, column in columns.items() if name not in ids},
    )


def send(log: Log, topic: str, records: Records) -> None:
    """Sends all records and waits until the broker has them."""
    producer = log.producer()
    for start in range(0, len(records), _SEND_ROWS):
        batch = OutBatch(topic, records.values[start : start + _SEND_ROWS], records.keys[start : start + _SEND_ROWS])
        done = producer.send(batch)
        while done < len(batch):
            producer.poll(0.05)
            done = producer.send(batch, done)
    left = producer.flush(120.0)
    producer.close()
    if left:
        raise BenchError(f"{left} of {len(records)} records were not delivered to {topic} within 120 s")


class _Score(msgspec.Struct, gc=False):
    transaction_id: int | str
    score: float | None
    raw: float | None
    features: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores read back: ``values`` (n, 2 + features) float64 = score, raw and the features, rows by transaction id.

    ``first_ms`` and ``last_ms``: when the first and the last were handed to the producer.
    """

    ids: Sequence[int | str]
    values: FloatArray
    first_ms: int
    last_ms: int

    def sha256(self) -> str:
        """Of all ids and the bits of all values."""
        digest = hashlib.sha256("\n".join(map(str, self.ids)).encode())
        digest.update(np.ascontiguousarray(self.values).tobytes())
        return digest.hexdigest()

    def difference(self, other: Scores) -> dict[str, int]:
        """``common`` ids, and how many of them differ in the bits of ``score`` and of any of ``features``."""
        place = {key: i for i, key in enumerate(other.ids)}
        pairs = [(i, place[key]) for i, key in enumerate(self.ids) if key in place]
        mine, theirs = self.values[[i for i, _ in pairs]], other.values[[j for _, j in pairs]]
        differs = mine.view(np.int64) != theirs.view(np.int64)
        return {
            "common": len(pairs),
            "different_scores": int(differs[:, :2].any(axis=1).sum()),
            "different_features": int(differs[:, 2:].any(axis=1).sum()),
        }


def read_scores(log: Log, topic: str, count: int, timeout_s: float = 120.0) -> Scores:
    """The ``count`` scores of a topic. BenchError: another number is there, or one came twice."""
    consumer = log.consumer(f"bench-{uuid.uuid4().hex}")
    consumer.subscribe([topic], FromStart(consumer))
    decode = msgspec.json.Decoder(_Score).decode
    ids: list[int | str] = []
    rows: list[list[float]] = []
    times: list[int] = []
    deadline = time.monotonic() + timeout_s
    try:
        while len(ids) < count and time.monotonic() < deadline:
            for batch in consumer.poll(0.5, 10_000):
                times += batch.timestamps
                for value in batch.values:
                    score = decode(value or b"{}")
                    ids.append(score.transaction_id)
                    numbers = (score.score, score.raw, *score.features.values())
                    rows.append([math.nan if number is None else number for number in numbers])
    finally:
        consumer.close()
    if len(ids) != count or len(set(ids)) != count:
        raise BenchError(f"{topic}: {len(ids)} scores of {len(set(ids))} transactions, {count} expected")
    order: IntArray = np.array(sorted(range(count), key=ids.__getitem__), np.int64)
    return Scores([ids[i] for i in order], np.array(rows)[order], min(times), max(times))
