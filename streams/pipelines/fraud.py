"""The fraud pipeline: transactions and labels in, scores out.

transactions ──► card ──► fraud.by-terminal ──► terminal ──► fraud-scores
transaction-labels ──► label router ──┘
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import orjson

from features import engine
from features.block import Block, Ids, IntArray
from models.slot import ModelSlot
from streams.codec import Dead, decode_labels, decode_transactions
from streams.encode import ScoreEncoder, decimal_keys, source_headers
from streams.log import TP, OutBatch, RecordBatch, TopicInfo
from streams.merge import ArrivalOrder, EventTimeOrder, Order
from streams.partitioner import KeyPlacement, partitions_of
from streams.pipelines.fraud_stages import (
    CardRows,
    CardStage,
    StageSettings,
    TerminalStage,
    empty_rows,
    label_targets,
)
from streams.shuffle import ShuffleError, Source, SourcePositions, pack, unpack
from streams.stage import Meters, dead_letters, fresh_part
from streams.topics import BY_TERMINAL, DEAD_LETTERS, FRAUD_SCORES, LABELS, LATE_EVENTS, TRANSACTIONS, topic_infos
from streams.worker import Task

__all__ = ["FraudPipeline"]

logger = logging.getLogger("headrace.fraud")

_TOPICS = (TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES, DEAD_LETTERS, LATE_EVENTS)
#: a source that has nothing to send for so long says so, if it has read its log to the end
_IDLE_AFTER_S = 1.0


@dataclass(slots=True)
class FraudPipeline:
    """Three stages; `task` makes the one that a topic's partition needs."""

    settings: StageSettings
    slot: ModelSlot
    order: str = "arrival"
    partitions: int = 4
    log_features: bool = True
    meters: Meters = field(default_factory=Meters)
    placement: KeyPlacement = field(default_factory=lambda: KeyPlacement(TRANSACTIONS))
    infos: Mapping[str, TopicInfo] = field(default_factory=dict)

    @property
    def topics(self) -> Sequence[TopicInfo]:
        return topic_infos(_TOPICS, self.partitions)

    @property
    def inputs(self) -> Sequence[str]:
        return (TRANSACTIONS, LABELS, BY_TERMINAL)

    def bind(self, topics: Mapping[str, TopicInfo]) -> None:
        self.infos = topics

    def start_offset(self, tp: TP, live_from: int, earliest: int) -> int:
        """State is a function of the log, read from its start; the label router's is only its watermark."""
        return live_from if tp.topic == LABELS and self.order == "arrival" else earliest

    def task(self, tp: TP) -> Task:
        if tp.topic == TRANSACTIONS:
            return CardTask(self, tp)
        if tp.topic == LABELS:
            return LabelTask(self, tp)
        return TerminalTask(self, tp)

    def source(self, tp: TP) -> Source:
        """Who the rows of this partition are from."""
        return Source(tp.topic, self.infos[tp.topic].topic_id, tp.partition)

    def warm(self) -> None:
        """A tiny run through all stages, with a pipeline of its own: compiles every kernel."""
        engine.warm()
        trial = FraudPipeline(self.settings, self.slot, self.order, 2, self.log_features)
        trial.bind({name: TopicInfo(name, 2, "warm") for name in _TOPICS})
        now = 1_600_000_000_000
        for n in (1, 9):
            events = [
                orjson.dumps({"transaction_id": i, "event_time": now, "card_id": i, "terminal_id": i, "amount": 1.5})
                for i in range(n)
            ]
            known = [orjson.dumps({"transaction_id": i, "label_time": now, "is_fraud": 1}) for i in range(n)]
            outputs = trial.task(TP(TRANSACTIONS, 0)).process(_trial_batch(TRANSACTIONS, events, now))
            outputs += trial.task(TP(LABELS, 0)).process(_trial_batch(LABELS, known, now))
            shuffled = [v for out in outputs for v in out.values if v is not None]
            trial.task(TP(BY_TERMINAL, 0)).process(_trial_batch(BY_TERMINAL, shuffled, now))

    def figures(self) -> dict[str, int]:
        """What this worker has done since its start; once all is out, received = scored + dead_letters + duplicates."""
        names = ("received", "scored", "dead_letters", "duplicates", "late", "labels", "replayed", "resent_rows")
        figures = {name: self.meters.counts[name] for name in names}
        return {**figures, "keys_in_two_partitions": self.placement.keys_moved}


def _trial_batch(topic: str, values: Sequence[bytes], now: int) -> RecordBatch:
    n = len(values)
    return RecordBatch(TP(topic, 0), list(range(n)), [now] * n, [None] * n, list(values), lambda i: [], n)


def _texts(ids: Ids) -> list[bytes]:
    return decimal_keys(ids.ints) if ids.ints is not None else ids.texts()


class _Sender:
    """A task that shuffles rows to the terminal stage, with the watermarks and idle marks of rule 5."""

    def __init__(self, pipeline: FraudPipeline, tp: TP) -> None:
        self.pipeline = pipeline
        self.source = pipeline.source(tp)
        self.tp = tp
        self.next_offset = 0
        self.watermark_ms: int | None = None
        self._told_ms: int | None = None
        self._told_idle = False
        self._quiet_since: float | None = None

    def send(self, kind: str, block: Block, targets: IntArray, times: IntArray) -> list[OutBatch]:
        """The block's rows as messages, one per target partition."""
        self.remember(times)
        self._told_idle = False
        self._quiet_since = None
        n = self.pipeline.infos[BY_TERMINAL].partitions
        messages = pack(kind, self.source, block, targets, n, watermark_ms=self.watermark_ms)  # type: ignore[arg-type]
        return [OutBatch(BY_TERMINAL, [value], None, p) for p, value in messages]

    def remember(self, times: IntArray) -> None:
        """How far this source has come: what has the newest time may still come, only what is before is complete."""
        if len(times):
            newest = int(times.max()) - 1
            self.watermark_ms = newest if self.watermark_ms is None else max(self.watermark_ms, newest)

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """By the sender's clock: tells all target partitions how far this source is, or that it is idle."""
        if self.pipeline.order == "arrival" or self.watermark_ms is None or self._told_idle:
            return []
        kind = None
        if self.watermark_ms != self._told_ms:
            kind = "watermark"
            self._told_ms = self.watermark_ms
        elif at_end:
            if self._quiet_since is None:
                self._quiet_since = now_s
            elif now_s - self._quiet_since >= _IDLE_AFTER_S:
                kind = "idle"
                self._told_idle = True
        else:
            self._quiet_since = None
        if kind is None:
            return []
        none = np.empty(0, np.int64)
        block = Block(self.tp.topic, self.tp.partition, self.next_offset, none, none)
        n = self.pipeline.infos[BY_TERMINAL].partitions
        messages = pack(kind, self.source, block, None, n, watermark_ms=self.watermark_ms)  # type: ignore[arg-type]
        return [OutBatch(BY_TERMINAL, [value], None, p) for p, value in messages]


class CardTask(_Sender):
    """transactions -> windows by card -> rows by terminal."""

    def __init__(self, pipeline: FraudPipeline, tp: TP) -> None:
        super().__init__(pipeline, tp)
        self.stage = CardStage(pipeline.settings)

    def process(self, batch: RecordBatch) -> list[OutBatch]:
        meters, counts = self.pipeline.meters, self.pipeline.meters.counts
        batch = fresh_part(batch, self.next_offset)
        with meters.part("decode", batch):
            block, dead = decode_transactions(batch)
        with meters.part("features", batch):
            self._watch_placement(block)
            result = self.stage.process(block)
        self.next_offset = batch.next_offset
        if batch.replay:
            counts["replayed"] += len(batch)
            self.remember(result.block.event_time_ms)
            return []
        counts["received"] += len(batch)
        counts["dead_letters"] += len(dead)
        counts["duplicates"] += result.duplicates
        outputs: list[OutBatch] = []
        with meters.part("shuffle", batch):
            rows = result.block
            if len(rows):
                targets = partitions_of(rows.ids["terminal_id"], self.pipeline.infos[BY_TERMINAL].partitions)
                outputs += self.send("rows", rows, targets, rows.event_time_ms)
        if dead:
            outputs.append(dead_letters(batch, dead, "card"))
        late = self._late_events(batch, result)
        if late is not None:
            counts["late"] += len(late)
            outputs.append(late)
        return outputs

    def _watch_placement(self, block: Block) -> None:
        infos = self.pipeline.infos
        warning = self.pipeline.placement.observe(
            self.tp.partition, block.ids["card_id"], infos[TRANSACTIONS].partitions
        )
        if warning:
            logger.warning("%s", warning)

    def _late_events(self, batch: RecordBatch, result: CardRows) -> OutBatch | None:
        late = np.flatnonzero(result.block.columns["late"])
        if len(late) == 0:
            return None
        place = {offset: i for i, offset in enumerate(batch.offsets)}
        values, keys, headers = [], [], []
        for row in late:
            offset = int(result.block.offsets[row])
            i = place[offset]
            record = {
                "event": orjson.Fragment(batch.values[i] or b"null"),
                "lateness_ms": int(result.lateness_ms[row]),
                "done": "scored and flagged late; not in the windows",
            }
            values.append(orjson.dumps(record))
            keys.append(batch.keys[i])
            source = f"{self.tp.topic}/{self.tp.partition}/{offset}".encode()
            headers.append([("stage", b"card"), ("source", source)])
        return OutBatch(LATE_EVENTS, values, keys, None, headers)


class LabelTask(_Sender):
    """transaction-labels -> by terminal, or to every partition where a label does not name its terminal."""

    def process(self, batch: RecordBatch) -> list[OutBatch]:
        meters, counts = self.pipeline.meters, self.pipeline.meters.counts
        batch = fresh_part(batch, self.next_offset)
        with meters.part("labels", batch):
            block, dead = decode_labels(batch)
            self.next_offset = batch.next_offset
            if batch.replay:
                self.remember(block.columns["label_time"].astype(np.int64, copy=False))
                return []
            counts["labels"] += len(block)
            counts["dead_labels"] += len(dead)
            outputs: list[OutBatch] = []
            if len(block):
                targets = label_targets(block, self.pipeline.infos[BY_TERMINAL].partitions)
                slim = Block(
                    topic=block.topic,
                    partition=block.partition,
                    next_offset=block.next_offset,
                    offsets=block.offsets,
                    timestamps=block.timestamps,
                    ids={"transaction_id": block.ids["transaction_id"]},
                    columns={name: block.columns[name].astype(np.int64) for name in ("label_time", "is_fraud")},
                    epoch=block.epoch,
                )
                outputs += self.send("labels", slim, targets, slim.columns["label_time"].astype(np.int64))
        if dead:
            outputs.append(dead_letters(batch, dead, "labels"))
        return outputs


class TerminalTask:
    """fraud.by-terminal -> windows by terminal -> scores."""

    def __init__(self, pipeline: FraudPipeline, tp: TP) -> None:
        self.pipeline = pipeline
        self.tp = tp
        self.next_offset = 0
        self.positions = SourcePositions()
        self.stage = TerminalStage(pipeline.settings)
        self._none = empty_rows(pipeline.settings)
        self._encoder = ScoreEncoder(pipeline.settings.features.names if pipeline.log_features else None)
        self.order: Order = ArrivalOrder()
        if pipeline.order == "event_time":
            infos = pipeline.infos
            self.order = EventTimeOrder((t, p) for t in (TRANSACTIONS, LABELS) for p in range(infos[t].partitions))

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """Nothing: this stage's order is its log's."""
        return []

    def process(self, batch: RecordBatch) -> list[OutBatch]:
        meters, counts = self.pipeline.meters, self.pipeline.meters.counts
        batch = fresh_part(batch, self.next_offset)
        dead: list[Dead] = []
        with meters.part("shuffle", batch):
            for i, value in enumerate(batch.values):
                try:
                    message = unpack(value)
                except ShuffleError as exc:
                    dead.append(Dead(i, str(exc)))
                    continue
                start = self.positions.fresh(message.source, message.block.offsets)
                if start:
                    counts["resent_rows"] += 0 if batch.replay else start
                    message.block = message.block.take(np.arange(start, len(message.block)))
                if message.kind == "rows":
                    self._note_source(message.block)
                self.order.push(message)
            due = self.order.due()
        self.next_offset = batch.next_offset
        with meters.part("features", batch):
            rows = due.rows if due.rows is not None else self._none
            matrix, late = self.stage.process(rows, due.labels, due.kinds if due.labels is not None else None)
        if batch.replay:
            counts["replayed"] += len(rows)
            return []
        outputs = [dead_letters(batch, dead, "terminal")] if dead else []
        if len(rows) == 0:
            return outputs
        with meters.part("score", batch):
            slot = self.pipeline.slot
            raw, score = slot.score(matrix)
        with meters.part("encode", batch):
            values = self._encoder.encode(rows, features=matrix, late=late, model=slot.label, score=score, raw=raw)
            keys = _texts(rows.ids["transaction_id"])
            headers = [{"source": source} for source in self._sources(rows)]
        counts["scored"] += len(rows)
        outputs.append(OutBatch(FRAUD_SCORES, values, keys, None, headers))
        return outputs

    @staticmethod
    def _note_source(block: Block) -> None:
        """Blocks of several sources are joined: each row remembers the partition that it came from."""
        block.columns["source_partition"] = np.full(len(block), block.partition, np.int64)

    @staticmethod
    def _sources(rows: Block) -> list[bytes]:
        partitions = rows.columns["source_partition"]
        out: list[bytes] = []
        bounds = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), len(rows)]
        for start, end in pairwise(bounds):
            out += source_headers(TRANSACTIONS, int(partitions[start]), rows.offsets[start:end])
        return out
