"""The tasks of the fraud pipeline on one partition each, fed by hand, with all that they send."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from live_fraud import SETTINGS

from models.slot import ModelSlot
from streams.log import TP, OutBatch, RecordBatch, TopicInfo
from streams.pipelines.fraud import FraudPipeline
from streams.shedding import Shedder
from streams.topics import BY_TERMINAL, LABELS, TRANSACTIONS

START = 1_600_000_000_000
HOUR = 3_600_000
N = 60


class Fed:
    """One partition of each stage, fed by hand; ``sent`` has all that goes out by topic."""

    def __init__(self, order: str, shed: Shedder | None = None) -> None:
        self.pipeline = FraudPipeline(SETTINGS, ModelSlot(), order, 1, shedder=shed)
        self.pipeline.bind({info.name: TopicInfo(info.name, 1, "test") for info in self.pipeline.topics})
        self.tasks = {topic: self.pipeline.task(TP(topic, 0)) for topic in (TRANSACTIONS, LABELS, BY_TERMINAL)}
        self.ends = dict.fromkeys(self.tasks, 0)
        self.sent: dict[str, list[OutBatch]] = {}

    def take(self, topic: str, values: list[bytes], sent_ms: list[int], at: int | None = None) -> None:
        start = self.ends[topic] if at is None else at
        end = start + len(values)
        self.ends[topic] = max(self.ends[topic], end)
        batch = RecordBatch(TP(topic, 0), list(range(start, end)), sent_ms, [None] * len(values), values, _none, end)
        self.route(self.pipeline.process([(self.tasks[topic], batch)]))

    def route(self, outputs: list[OutBatch]) -> None:
        for out in outputs:
            self.sent.setdefault(out.topic, []).append(out)
            if out.topic == BY_TERMINAL:
                self.take(BY_TERMINAL, [v for v in out.values if v is not None], [START] * len(out))

    def finish(self) -> None:
        for now_s in (0.0, 1.0, 10.0, 20.0, 90.0):
            for topic in (TRANSACTIONS, LABELS):
                self.route(self.tasks[topic].tick(now_s, True))

    def of(self, topic: str) -> list[dict[str, Any]]:
        return [orjson.loads(v) for out in self.sent.get(topic, []) for v in out.values if v is not None]


def _none(i: int) -> list[tuple[str, bytes]]:
    return []


def events() -> tuple[list[bytes], list[int]]:
    """Five cards at three terminals: values, and when each was sent, every third a minute earlier than the others."""
    rng = np.random.default_rng(5)
    values = [
        orjson.dumps(
            {
                "transaction_id": i,
                "event_time": START - (N - i) * HOUR,
                "card_id": int(rng.integers(5)),
                "terminal_id": int(rng.integers(3)),
                "amount": float(i),
            }
        )
        for i in range(N)
    ]
    return values, [START - 60_000 if i % 3 == 0 else START for i in range(N)]
