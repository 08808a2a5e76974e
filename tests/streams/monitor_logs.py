"""The log of the monitor in lists: what the fraud pipeline sends to fraud.by-transaction, without broker or clock."""

from __future__ import annotations

from typing import Any

import numpy as np
from fraud_history import history, partitioned
from fraud_logs import DAY, SETTINGS, Logs, Record, batch, processed

from models.slot import ModelSlot
from monitoring.labels import JoinSettings
from streams.log import TP, TopicInfo
from streams.partitioner import partition_of_key
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.monitor import MonitorPipeline
from streams.shuffle import unpack
from streams.topics import BY_TERMINAL, BY_TRANSACTION

PARTITIONS = 2
JOIN = JoinSettings(5 * DAY)


def fraud_pipeline(order: str = "arrival", partitions: int = PARTITIONS, monitor: bool = True) -> FraudPipeline:
    pipeline = FraudPipeline(SETTINGS, ModelSlot(), order, partitions, monitor=monitor)
    pipeline.bind({info.name: TopicInfo(info.name, partitions, f"id-{info.name}") for info in pipeline.topics})
    return pipeline


def monitor_pipeline(settings: JoinSettings = JOIN, partitions: int = PARTITIONS) -> MonitorPipeline:
    pipeline = MonitorPipeline(settings, partitions)
    pipeline.bind({info.name: TopicInfo(info.name, partitions, f"id-{info.name}") for info in pipeline.topics})
    return pipeline


class Stages:
    """All stages of a fraud pipeline with the monitor on; whoever has records is let go on at random."""

    def __init__(self, pipeline: FraudPipeline, seed: int) -> None:
        self.pipeline = pipeline
        self.rng = np.random.default_rng(seed)
        self.logs = Logs()
        self.queues: dict[TP, list[Record]] = partitioned([], pipeline.partitions)
        self.queues |= {TP(BY_TERMINAL, p): [] for p in range(pipeline.partitions)}
        self.tasks: dict[TP, Any] = {tp: pipeline.task(tp) for tp in self.queues}
        self._first = dict.fromkeys(self.queues, 0)
        self._read = dict.fromkeys(range(pipeline.partitions), 0)

    def send(self, topic: str, record: Record) -> None:
        self.queues[TP(topic, partition_of_key(record.key or b"", self.pipeline.partitions))].append(record)

    def step(self, tp: TP) -> None:
        """The task takes all that it has."""
        if piece := self.queues[tp]:
            outputs = processed(self.tasks[tp], batch(tp.topic, piece, self._first[tp], tp.partition))
            self._first[tp] += len(piece)
            self.queues[tp] = []
            self.take(outputs)

    def take(self, outputs: Any) -> None:
        self.logs.take(outputs, self.pipeline.partitions)
        for p, begin in self._read.items():
            shuffled = self.logs.records[BY_TERMINAL, p]
            self.queues[TP(BY_TERMINAL, p)] += shuffled[begin:]
            self._read[p] = len(shuffled)

    def run(self, stream: list[tuple[str, Record]]) -> None:
        for step, (topic, record) in enumerate(stream):
            self.send(topic, record)
            self.step(list(self.queues)[int(self.rng.integers(len(self.queues)))])
            told = list(self.queues)[int(self.rng.integers(len(self.queues)))]
            self.take(self.tasks[told].tick(0.4 * step, at_end=not self.queues[told]))
        for tp in self.queues:
            self.step(tp)


def monitor_log(seed: int, n: int, kind: str, order: str = "arrival", again: float = 0.1) -> list[Record]:
    """Partition 0 of fraud.by-transaction: all senders' messages and marks, some messages a second time."""
    stages = Stages(fraud_pipeline(order), seed)
    stages.run(history(seed, n, kind))
    out: list[Record] = []
    for record in stages.logs.records[BY_TRANSACTION, 0]:
        out.append(record)
        if stages.rng.random() < again:  # what a sender that was restarted sends again
            same = [r for r in out[-12:] if unpack(r.value).source == unpack(record.value).source]
            out += same[-2:]
    return out
