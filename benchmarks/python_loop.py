"""The same job as a loop by hand on confluent-kafka: whole batches, Python state, LightGBM once a batch, one process.

What a good engineer writes in an afternoon who needs neither several partitions nor a restart: both topics in one
consumer, the windows of `plain_faust` in dicts, one matrix and one `Booster.predict` for each batch that comes, sends
that wait for nobody, offsets committed when the scores are flushed. There is no shuffle, so with more than one
partition, or a second process, its features of terminals would be wrong.
"""

from __future__ import annotations

import argparse
import math
import signal
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import orjson
from confluent_kafka import Consumer, Message, Producer

from benchmarks.plain_faust import Card, Terminal
from features.fraud import DEFAULT
from streams.topics import LABELS, TRANSACTIONS

__all__ = ["GROUP", "SCORES", "Loop"]

GROUP = "python-loop"
SCORES = "python-loop.scores"
_BATCH = 4_000
_LATENESS_MS = 3_600_000


class Loop:
    """The state, and what becomes of records."""

    def __init__(self, model_file: Path, model_label: str) -> None:
        self._booster = lightgbm.Booster(model_file=str(model_file))
        self._label = model_label
        self._cards: dict[Any, Card] = defaultdict(Card)
        self._terminals: dict[Any, Terminal] = defaultdict(Terminal)
        self._frauds: dict[Any, int] = {}
        self._seen: dict[Any, tuple[Any, int]] = {}
        self._newest = 0

    def known(self, value: bytes) -> None:
        """A label has come."""
        label = orjson.loads(value)
        if label["is_fraud"]:
            transaction_id = label["transaction_id"]
            if transaction_id in self._seen:
                terminal_id, t = self._seen[transaction_id]
                self._terminals[terminal_id].fraud(t, label["label_time"])
            else:
                self._frauds[transaction_id] = label["label_time"]

    def scored(self, values: list[bytes]) -> list[dict[str, Any]]:
        """The records of these transactions' scores, without what the model says of the first to the last."""
        out: list[dict[str, Any]] = []
        for value in values:
            row = orjson.loads(value)
            t, transaction_id = row["event_time"], row["transaction_id"]
            terminal = self._terminals[row["terminal_id"]]
            when = datetime.fromtimestamp(t / 1000, UTC)
            features = {
                "amount": row["amount"],
                "is_weekend": float(when.weekday() >= 5),
                "is_night": float(when.hour <= 6),
                **self._cards[row["card_id"]].features(t, row["amount"]),
                **terminal.features(t),
            }
            terminal.add(t, self._frauds.pop(transaction_id, None))
            self._seen[transaction_id] = (row["terminal_id"], t)
            self._newest = max(self._newest, t)
            late = t < self._newest - _LATENESS_MS
            out.append({**row, "late": late, "reasons": [], "features": features, "extra": {}, "model": self._label})
        matrix = np.array([[row["features"][name] for name in DEFAULT.names] for row in out])
        raws = self._booster.predict(matrix, raw_score=True, num_threads=1)
        for row, raw in zip(out, np.asarray(raws).tolist(), strict=True):
            row["raw"], row["score"] = raw, 1.0 / (1.0 + math.exp(-raw))
        return out


def _run(loop: Loop, consumer: Consumer, producer: Producer, ended: list[int]) -> None:
    while not ended:
        messages: list[Message] = consumer.consume(_BATCH, 0.01)
        for message in messages:
            if message.topic() == LABELS:
                loop.known(message.value() or b"")
        mine = [message for message in messages if message.topic() == TRANSACTIONS]
        if mine:
            for message, row in zip(mine, loop.scored([m.value() or b"" for m in mine]), strict=True):
                source = f"{message.topic()}/{message.partition()}/{message.offset()}".encode()
                key = str(row["transaction_id"]).encode()
                producer.produce(SCORES, orjson.dumps(row), key, headers=[("source", source)])
                producer.poll(0)
        if messages:
            producer.flush()
            consumer.commit(asynchronous=False)


def main() -> None:
    """Runs the loop until it is told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--model-label", default="bench@1")
    args = parser.parse_args()
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    settings = {"bootstrap.servers": args.bootstrap}
    group = {"group.id": GROUP, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer({**settings, **group})
    producer = Producer({**settings, "linger.ms": 5, "queue.buffering.max.messages": 200_000})
    consumer.subscribe([TRANSACTIONS, LABELS], on_assign=lambda *_: print("ready", flush=True))
    try:
        _run(Loop(args.model, args.model_label), consumer, producer, ended)
    finally:
        consumer.close()


if __name__ == "__main__":
    main()
