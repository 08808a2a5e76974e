"""The live tasks of the fraud pipeline on one partition, fed by hand: what a worker does, without broker and clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import orjson

from features.fraud import DEFAULT
from models.slot import ModelSlot
from streams.log import TP, OutBatch, RecordBatch, TopicInfo
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_stages import StageSettings
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS

SETTINGS = StageSettings(DEFAULT)
Event = dict[str, object]


class LiveFraud:
    """``send`` takes events in the order in which they are sent; `scores` has the values of fraud-scores."""

    def __init__(self, order: str, slot: ModelSlot | None = None) -> None:
        self.pipeline = FraudPipeline(SETTINGS, slot or ModelSlot(), order, 1)
        self.pipeline.bind({info.name: TopicInfo(info.name, 1, "test") for info in self.pipeline.topics})
        self._tasks = {topic: self.pipeline.task(TP(topic, 0)) for topic in (TRANSACTIONS, LABELS, BY_TERMINAL)}
        self._ends = dict.fromkeys(self._tasks, 0)
        self.scores: list[bytes] = []

    def send(self, topic: Literal["transactions", "transaction-labels"], values: Sequence[bytes]) -> None:
        self._take(topic, values)

    def finish(self) -> None:
        """The senders come to rest: they tell their watermarks, then that they are idle."""
        for now_s in (0.0, 1.0, 10.0, 20.0):
            for topic in (TRANSACTIONS, LABELS):
                self._route(self._tasks[topic].tick(now_s, at_end=True))

    def _take(self, topic: str, values: Sequence[bytes]) -> None:
        start = self._ends[topic]
        end = self._ends[topic] = start + len(values)
        n = len(values)
        batch = RecordBatch(
            TP(topic, 0), list(range(start, end)), [-1] * n, [None] * n, list(values), lambda i: [], end
        )
        self._route(self.pipeline.process([(self._tasks[topic], batch)]))

    def _route(self, outputs: Sequence[OutBatch]) -> None:
        for out in outputs:
            if out.topic == FRAUD_SCORES:
                self.scores += [value for value in out.values if value is not None]
            elif out.topic == BY_TERMINAL:
                self._take(BY_TERMINAL, [value for value in out.values if value is not None])


def lines(events: Sequence[Event]) -> list[bytes]:
    return [orjson.dumps(event) for event in events]
