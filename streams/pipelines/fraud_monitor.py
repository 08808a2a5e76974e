"""What the fraud pipeline sends to the monitor: the vectors with their scores, and the labels, by transaction.

Off unless asked for (setting ``monitor``). Vectors are numbered by the terminal stage, one number after the other, so
that rows which are sent again are known again (rule 3): the source of a vector is its partition of fraud.by-terminal
with that number as offset. Where the record lies in ``transactions`` is in columns of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from features.block import Block, BoolArray, FloatArray, Ids, IntArray
from streams.log import TP, OutBatch, RecordBatch
from streams.partitioner import partitions_of
from streams.pipelines.fraud_sender import Teller
from streams.shuffle import Sent, pack_for
from streams.topics import BY_TRANSACTION

if TYPE_CHECKING:
    from streams.pipelines.fraud import FraudPipeline
    from streams.pipelines.fraud_tasks import Vectors

__all__ = ["FEATURE", "MODEL", "LabelOutlet", "Numbered", "VectorOutlet", "send_labels", "send_vectors"]

#: before the names of the columns that are features
FEATURE = "x:"
#: the id column that holds name@version of the model, empty without
MODEL = "model"
#: no message has as many rows: so a task that begins in the midst of its log gives higher numbers than any before it
_ROWS_MAX_BITS = 20
#: least time between two marks for the monitor, which is in no hurry
_TOLD_EVERY_S = 1.0
_IDS = ("transaction_id", "card_id", "terminal_id")


class VectorOutlet:
    """Numbers the vectors of one terminal task. ``next_number`` is part of its state, monitored or not."""

    def __init__(self, pipeline: FraudPipeline, tp: TP) -> None:
        self._pipeline = pipeline
        self.tp = tp
        self.next_number: int | None = None
        self.teller = Teller(pipeline, tp, BY_TRANSACTION, _TOLD_EVERY_S)

    def number(self, batch: RecordBatch, n: int) -> IntArray:
        """(n,) the numbers of the n rows that this batch made due."""
        if self.next_number is None:
            if not batch.offsets:
                return np.empty(0, np.int64)
            self.next_number = batch.offsets[0] << _ROWS_MAX_BITS
        first, self.next_number = self.next_number, self.next_number + n
        return np.arange(first, first + n)

    def tick(self, now_s: float, at_end: bool, stream_time_ms: int | None) -> list[OutBatch]:
        """See `Teller.tick`."""
        if not self._pipeline.monitor:
            return []
        return self.teller.tick(now_s, at_end, self.watermark_ms(stream_time_ms), self.next_number or 0)

    def wake(self, stream_time_ms: int | None) -> list[OutBatch]:
        """See `Teller.wake`."""
        if not self._pipeline.monitor:
            return []
        return self.teller.wake(self.watermark_ms(stream_time_ms), self.next_number or 0)

    @property
    def may_sleep(self) -> bool:
        """Whether the log may say that this source is idle."""
        return self._pipeline.monitor and self.teller.may_sleep

    def watermark_ms(self, stream_time_ms: int | None) -> int | None:
        """As `Sender.watermark_ms`."""
        return None if stream_time_ms is None else stream_time_ms - 1 - self._pipeline.watermark_delay_ms


class Numbered:
    """Which of n scored rows are whose: for each run of rows of one terminal task, the task's outlet, the rows' numbers
    and the task's newest event time."""

    def __init__(self) -> None:
        self._runs: list[tuple[VectorOutlet, IntArray, int | None]] = []

    def add(self, outlet: VectorOutlet, numbers: IntArray, stream_time_ms: int | None) -> None:
        """The next rows are of this task."""
        self._runs.append((outlet, numbers, stream_time_ms))

    def without(self, left_out: BoolArray) -> Numbered:
        """Of the rows that stay."""
        kept, at = Numbered(), 0
        for outlet, numbers, stream_time_ms in self._runs:
            kept.add(outlet, numbers[~left_out[at : at + len(numbers)]], stream_time_ms)
            at += len(numbers)
        return kept

    def sent(self, pipeline: FraudPipeline, rows: Block) -> list[Sent]:
        """The rows, of which each task's are a block that it sends."""
        out, begin = [], 0
        for outlet, numbers, stream_time_ms in self._runs:
            end = begin + len(numbers)
            part = rows.part(begin, end)
            part.offsets, part.next_offset = numbers, outlet.next_number or 0
            outlet.teller.sent()
            out.append(Sent(pipeline.source(outlet.tp), part, outlet.watermark_ms(stream_time_ms)))
            begin = end
        return out


def send_vectors(
    pipeline: FraudPipeline, vectors: Vectors, raw: FloatArray, score: FloatArray, models: Sequence[str]
) -> list[OutBatch]:
    """n vectors and what came of them, to the monitor: ``raw`` and ``score`` (n,), ``models`` (n) as "name@version", or
    empty."""
    rows, matrix = vectors.rows, vectors.matrix
    features = pipeline.settings.features.names
    block = Block(
        topic="",
        partition=0,
        next_offset=0,
        offsets=rows.offsets,
        timestamps=rows.timestamps,
        ids={**{name: rows.ids[name] for name in _IDS}, MODEL: Ids(mixed=list(models))},
        columns={
            "event_time": rows.event_time_ms,
            "source_partition": vectors.source_partitions,
            "source_offset": rows.offsets,
            "late": vectors.late,
            "raw": raw,
            "score": score,
            **{FEATURE + name: matrix[:, j] for j, name in enumerate(features)},
        },
    )
    n_partitions = pipeline.infos[BY_TRANSACTION].partitions
    targets = partitions_of(rows.ids["transaction_id"], n_partitions)
    return pack_for(BY_TRANSACTION, "rows", vectors.numbered.sent(pipeline, block), targets, n_partitions)


class LabelOutlet:
    """How far one label task is, for the monitor."""

    def __init__(self, pipeline: FraudPipeline, tp: TP) -> None:
        self._pipeline = pipeline
        self.teller = Teller(pipeline, tp, BY_TRANSACTION, _TOLD_EVERY_S)

    def tick(self, now_s: float, at_end: bool, watermark_ms: int | None, next_offset: int) -> list[OutBatch]:
        """See `Teller.tick`."""
        return self.teller.tick(now_s, at_end, watermark_ms, next_offset) if self._pipeline.monitor else []

    def wake(self, watermark_ms: int | None, next_offset: int) -> list[OutBatch]:
        """See `Teller.wake`."""
        return self.teller.wake(watermark_ms, next_offset) if self._pipeline.monitor else []

    @property
    def may_sleep(self) -> bool:
        """Whether the log may say that this source is idle."""
        return self._pipeline.monitor and self.teller.may_sleep


def send_labels(pipeline: FraudPipeline, sent: Sequence[Sent]) -> list[OutBatch]:
    """Labels (transaction_id, label_time, is_fraud) to the monitor."""
    ids = Ids.concat([one.block.ids["transaction_id"] for one in sent])
    n_partitions = pipeline.infos[BY_TRANSACTION].partitions
    return pack_for(BY_TRANSACTION, "labels", sent, partitions_of(ids, n_partitions), n_partitions)
