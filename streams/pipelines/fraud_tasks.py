"""The fraud pipeline's tasks: one per topic and partition, with its state; a run of them is processed together.

What needs no state (decoding, scoring, encoding) is done once for all batches of a run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from features.arrays import Arrays, check_like, of_optional, optional_of, prefixed, under
from features.block import Block, BoolArray, FloatArray, Ids, IntArray
from streams.codec import Dead
from streams.encode import source_headers
from streams.log import TP, OutBatch, RecordBatch
from streams.merge import ArrivalOrder, EventTimeOrder, Merged, Order
from streams.model_cuts import runs_by_lineup
from streams.partitioner import partitions_of
from streams.pipelines.fraud_lineup import score_rows
from streams.pipelines.fraud_monitor import LabelOutlet, Numbered, VectorOutlet, send_labels
from streams.pipelines.fraud_records import SOURCE_PARTITION, late_by_terminal, unscored
from streams.pipelines.fraud_sender import Sender
from streams.pipelines.fraud_stages import CardRows, CardStage, TerminalStage, empty_rows, label_targets, late_by_ms
from streams.rows import Rows
from streams.shedding import SHED, report, shed_rows
from streams.shuffle import Sent, ShuffleError, SourcePositions, pack_for, unpack
from streams.stage import dead_letters, fresh_part, late_records
from streams.topics import BY_TERMINAL, LABELS, TRANSACTIONS

if TYPE_CHECKING:
    from streams.pipelines.fraud import FraudPipeline

__all__ = ["CardTask", "LabelTask", "TerminalTask", "Vectors"]

logger = logging.getLogger("headrace.fraud")

#: rows that wait so long are worth a line in the log
_WAIT_SAID_S = 15.0
_TOO_MANY = "too many rows wait; the oldest go on before all sources have passed them"
_TOO_LATE = (
    "rows or labels came when later ones had gone on: they are out of order by more than watermark_delay_ms, or their "
    "producer held them while their partition was quiet for idle_after_ms or without any record for first_wait_ms"
)
#: before the names of the arrays of a task's parts
_POSITIONS, _ORDER, _STAGE = "positions/", "order/", "stage/"


class CardTask(Sender):
    """transactions -> windows by card -> rows by terminal."""

    def __init__(self, pipeline: FraudPipeline, tp: TP) -> None:
        super().__init__(pipeline, tp)
        self.stage = CardStage(pipeline.settings)

    def state(self) -> Arrays:
        """As `Sender.state`, and ``stage/..`` of `CardStage.to_arrays`."""
        return super().state() | prefixed(_STAGE, self.stage.to_arrays())

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        super().restore(arrays)
        self.stage = CardStage.from_arrays(self.pipeline.settings, under(_STAGE, arrays))

    @staticmethod
    def process_run(pipeline: FraudPipeline, parts: Sequence[tuple[CardTask, RecordBatch]]) -> list[OutBatch]:
        """See `streams.worker.Pipeline.process`."""
        batches = [fresh_part(batch, task.next_offset) for task, batch in parts]
        nbytes = sum(batch.nbytes for batch in batches)
        with pipeline.meters.part("decode", nbytes):
            decoded = pipeline.guard.decode(pipeline.transactions.decode, batches)
        with pipeline.meters.part("features", nbytes):
            made = [task._features(block, batch) for (task, batch), (block, _) in zip(parts, decoded, strict=True)]
        outputs: list[OutBatch] = []
        sent: list[Sent] = []
        for (task, _), batch, (_, dead), rows in zip(parts, batches, decoded, made, strict=True):
            task._account(batch, dead, rows, outputs)
            if not batch.replay and len(rows.block):
                shed = None if pipeline.shedder is None else pipeline.shedder.choose(rows.block)
                if shed is not None:
                    rows.block.columns[SHED] = shed
                sent.append(task.sent(rows.block, rows.block.event_time_ms))
        if sent:
            with pipeline.meters.part("shuffle", nbytes):
                terminals = Ids.concat([s.block.ids["terminal_id"] for s in sent])
                n = pipeline.infos[BY_TERMINAL].partitions
                # before what else goes out: the terminal stage is waiting
                outputs = pack_for(BY_TERMINAL, "rows", sent, partitions_of(terminals, n), n) + outputs
        return outputs

    def _features(self, block: Block, batch: RecordBatch) -> CardRows:
        if batch.replay:
            return self.stage.process(block, wanted=False)
        self._watch_placement(block)
        return self.stage.process(block)

    def _account(self, batch: RecordBatch, dead: list[Dead], result: CardRows, outputs: list[OutBatch]) -> None:
        """Counts the batch; its dead letters and late events go to ``outputs``."""
        counts = self.pipeline.meters.counts
        self.next_offset = batch.next_offset
        rows = result.block
        if batch.replay:
            self.pipeline.meters.replayed(len(batch))
            self.remember(rows.event_time_ms)
            return
        counts["received"] += len(batch)
        counts["dead_letters"] += len(dead)
        counts["duplicates"] += result.duplicates
        rows.columns[SOURCE_PARTITION] = np.full(len(rows), self.tp.partition, np.int64)
        if dead:
            outputs.append(dead_letters(batch, dead, "card"))
        if rows.columns["late"].any():
            outputs.append(self._late_events(batch, result))

    def _watch_placement(self, block: Block) -> None:
        infos = self.pipeline.infos
        warning = self.pipeline.placement.observe(
            self.tp.partition, block.ids["card_id"], infos[TRANSACTIONS].partitions
        )
        if warning:
            logger.warning("%s", warning)

    def _late_events(self, batch: RecordBatch, result: CardRows) -> OutBatch:
        late = np.flatnonzero(result.block.columns["late"])
        rows = result.block.take(late)
        index = np.searchsorted(np.array(batch.offsets, np.int64), rows.offsets).tolist()
        events = [orjson.Fragment(batch.values[i] or b"null") for i in index]
        sources = source_headers(self.tp.topic, np.full(len(rows), self.tp.partition), rows.offsets)
        return late_records("card", events, [batch.keys[i] for i in index], sources, result.lateness_ms[late])


class LabelTask(Sender):
    """transaction-labels -> by terminal, or to every partition where a label does not name its terminal; and to the
    monitor."""

    def __init__(self, pipeline: FraudPipeline, tp: TP) -> None:
        super().__init__(pipeline, tp)
        self.to_monitor = LabelOutlet(pipeline, tp)

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        told = self.to_monitor.tick(now_s, at_end, self.watermark_ms, self.next_offset)
        return super().tick(now_s, at_end) + told

    def wake(self) -> list[OutBatch]:
        return super().wake() + self.to_monitor.wake(self.watermark_ms, self.next_offset)

    @property
    def may_sleep(self) -> bool:
        return super().may_sleep or self.to_monitor.may_sleep

    @staticmethod
    def process_run(pipeline: FraudPipeline, parts: Sequence[tuple[LabelTask, RecordBatch]]) -> list[OutBatch]:
        """See `streams.worker.Pipeline.process`."""
        batches = [fresh_part(batch, task.next_offset) for task, batch in parts]
        outputs: list[OutBatch] = []
        with pipeline.meters.part("labels", sum(batch.nbytes for batch in batches)):
            decoded = pipeline.guard.decode(pipeline.labels.decode, batches)
            sent = []
            for (task, _), batch, (block, dead) in zip(parts, batches, decoded, strict=True):
                task._account(batch, block, dead, outputs)
                if not batch.replay and len(block):
                    sent.append((task, block))
            if sent:
                n = pipeline.infos[BY_TERMINAL].partitions
                targets = np.concatenate([label_targets(block, n) for _, block in sent])
                slim = [task.sent(_slim(block), block.columns["label_time"].astype(np.int64)) for task, block in sent]
                outputs = pack_for(BY_TERMINAL, "labels", slim, targets, n) + outputs
                if pipeline.monitor:
                    for task, _ in sent:
                        task.to_monitor.teller.sent()
                    outputs += send_labels(pipeline, slim)
        return outputs

    def _account(self, batch: RecordBatch, block: Block, dead: list[Dead], outputs: list[OutBatch]) -> None:
        """Counts the batch; its dead letters go to ``outputs``."""
        counts = self.pipeline.meters.counts
        self.next_offset = batch.next_offset
        if batch.replay:
            self.remember(block.columns["label_time"].astype(np.int64, copy=False))
            return
        counts["labels"] += len(block)
        counts["dead_labels"] += len(dead)
        if dead:
            outputs.append(dead_letters(batch, dead, "labels"))


def _slim(block: Block) -> Block:
    """What the terminal stage needs of labels."""
    return Block(
        topic=block.topic,
        partition=block.partition,
        next_offset=block.next_offset,
        offsets=block.offsets,
        timestamps=block.timestamps,
        ids={"transaction_id": block.ids["transaction_id"]},
        columns={name: block.columns[name].astype(np.int64) for name in ("label_time", "is_fraud")},
        epoch=block.epoch,
    )


class TerminalTask:
    """fraud.by-terminal -> windows by terminal -> scores."""

    def __init__(self, pipeline: FraudPipeline, tp: TP) -> None:
        self.pipeline = pipeline
        self.tp = tp
        self.next_offset = 0
        self.positions = SourcePositions()
        self.stage = TerminalStage(pipeline.settings)
        self._none = empty_rows(pipeline.settings)
        self._reads = self.stage.reads
        self._waits_since: float | None = None
        self._come_to_ms: int | None = None
        self.to_monitor = VectorOutlet(pipeline, tp)
        self.order: Order = ArrivalOrder()
        if pipeline.order == "event_time":
            infos = pipeline.infos
            self.order = EventTimeOrder((t, p) for t in (TRANSACTIONS, LABELS) for p in range(infos[t].partitions))

    def state(self) -> Arrays:
        """All that `process` depends on, as plain arrays, between two batches; equal for equal logs: ``next_offset``
        (1,), ``next_number`` (0 or 1,) of `VectorOutlet`, and ``positions/..``, ``order/..`` and ``stage/..`` as these
        parts say."""
        return {
            "next_offset": np.array([self.next_offset], np.int64),
            "next_number": of_optional(self.to_monitor.next_number),
            **prefixed(_POSITIONS, self.positions.to_arrays()),
            **prefixed(_ORDER, self.order.to_arrays()),
            **prefixed(_STAGE, self.stage.to_arrays()),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`, on a task that has seen nothing yet. StateError: of another kind of task or state."""
        check_like(arrays, self.state(), "{}/{}".format(*self.tp))
        self.next_offset = int(arrays["next_offset"][0])
        self.to_monitor.next_number = optional_of(arrays["next_number"])
        self.positions = SourcePositions.from_arrays(under(_POSITIONS, arrays))
        self.order.restore(under(_ORDER, arrays))
        self.stage = TerminalStage.from_arrays(self.pipeline.settings, under(_STAGE, arrays))

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """Tells the monitor how far this stage is; says in the log whom it waits for when that takes long."""
        waits_for = self.order.waits_for()
        come_to_ms = self.stage.stream_time_ms
        if not waits_for or come_to_ms != self._come_to_ms:  # under load some rows always wait, but not the same ones
            self._waits_since, self._come_to_ms = None, come_to_ms
        elif self._waits_since is None:
            self._waits_since = now_s
        elif now_s - max(self._waits_since, self.pipeline.wait_said_s) >= _WAIT_SAID_S:
            self.pipeline.wait_said_s = now_s
            names = ", ".join(f"{topic}/{partition}" for topic, partition in waits_for[:4])
            logger.warning(
                "%s/%d: %d rows have waited %.0f s for %s%s, which have not passed them and are not known to be idle",
                *self.tp,
                self.order.waiting,
                now_s - self._waits_since,
                names,
                f" and {len(waits_for) - 4} more" if len(waits_for) > 4 else "",
            )
        return self.to_monitor.tick(now_s, at_end, self.stage.stream_time_ms)

    def wake(self) -> list[OutBatch]:
        """See `VectorOutlet.wake`."""
        return self.to_monitor.wake(self.stage.stream_time_ms)

    @property
    def may_sleep(self) -> bool:
        """See `VectorOutlet.may_sleep`."""
        return self.to_monitor.may_sleep

    @staticmethod
    def process_run(pipeline: FraudPipeline, parts: Sequence[tuple[TerminalTask, RecordBatch]]) -> list[OutBatch]:
        """See `streams.worker.Pipeline.process`."""
        outputs: list[OutBatch] = []
        for lineup, pieces in runs_by_lineup(pipeline.slot, parts):
            vectors = TerminalTask.vectors(pipeline, pieces, outputs)
            if vectors is not None:
                score = partial(score_rows, pipeline, lineup, vectors, sum(batch.nbytes for _, batch in pieces))
                scored, poisoned = pipeline.guard.run("score", score, len(vectors.rows))
                outputs += [out for part in scored for out in part]
                if poisoned:
                    outputs.append(unscored(vectors.rows, poisoned))
                    pipeline.meters.counts["dead_letters"] += len(poisoned)
        return outputs

    @staticmethod
    def vectors(
        pipeline: FraudPipeline, parts: Sequence[tuple[TerminalTask, RecordBatch]], outputs: list[OutBatch]
    ) -> Vectors | None:
        """Moves the tasks over their batches; the rows that have become due, ready to be scored. Dead letters and late
        events go to ``outputs``."""
        nbytes = sum(batch.nbytes for _, batch in parts)
        windows: list[_Windows] = []
        numbered = Numbered()
        with pipeline.meters.part("shuffle", nbytes):
            due = [task._due(batch, outputs) for task, batch in parts]
        with pipeline.meters.part("features", nbytes):
            for (task, batch), merged in zip(parts, due, strict=True):
                made = task._windows(merged, not batch.replay)
                numbers = task.to_monitor.number(batch, len(made.late))
                if batch.replay:
                    pipeline.meters.replayed(len(made.late))
                elif merged.rows is not None:
                    windows.append(made)
                    numbered.add(task.to_monitor, numbers, task.stage.stream_time_ms)
            if not windows:
                return None
            rows = Rows.concat([made.rows for made in windows if made.rows is not None]).block("", 0, 0)
            late_here = np.concatenate([made.late for made in windows])
            by_terminal = np.concatenate([made.matrix for made in windows])
            # what was late by card is in late-events already, as its original bytes
            only_here = np.flatnonzero(late_here & (rows.columns["late"] == 0))
            if len(only_here):
                lateness_ms = np.concatenate([made.lateness_ms for made in windows])[only_here]
                outputs.append(late_by_terminal(rows.take(only_here), lateness_ms))
            shed = shed_rows(rows)
            if shed is not None:
                if shed.all():
                    return None
                rows, by_terminal, late_here = rows.take(~shed), by_terminal[~shed], late_here[~shed]
                numbered = numbered.without(shed)
            matrix, late = parts[0][0].stage.assembly.of(rows, by_terminal, late_here)
        pipeline.meters.counts["late"] += int(np.count_nonzero(late))
        return Vectors(rows, matrix, late, numbered)

    def _due(self, batch: RecordBatch, outputs: list[OutBatch]) -> Merged:
        """Takes the batch's messages, unreadable ones to ``outputs``; returns what has become due."""
        counts = self.pipeline.meters.counts
        batch = fresh_part(batch, self.next_offset)
        forced, overtaken = self.order.forced, self.order.late
        dead: list[Dead] = []
        for i, value in enumerate(batch.values):
            try:
                message = unpack(value)
            except ShuffleError as exc:
                dead.append(Dead(i, str(exc)))
                continue
            start = self.positions.fresh(message.source, message.rows.offsets)
            if start:
                message.rows = message.rows.part(start, len(message.rows))
            if not batch.replay:
                counts["resent_rows"] += start
                shed, named = report(message, f"{self.tp.topic}/{self.tp.partition}/{batch.offsets[i]}")
                counts["shed"] += shed
                outputs += [] if named is None else [named]
            self.pipeline.wakes_heard += self.order.push(message)
        self.next_offset = batch.next_offset
        if dead and not batch.replay:
            outputs.append(dead_letters(batch, dead, "terminal"))
        if not batch.replay:
            self._count_disorder("forced", self.order.forced - forced, _TOO_MANY)
            self._count_disorder("overtaken", self.order.late - overtaken, _TOO_LATE)
        return self.order.due()

    def _count_disorder(self, name: str, n: int, what: str) -> None:
        """Counts; the first of a worker is told of."""
        counts = self.pipeline.meters.counts
        if n and not counts[name]:
            told = "%s/%d: %s, so that features may differ from the exact ones (counted as %s)"
            logger.warning(told, *self.tp, what, name)
        counts[name] += n

    def _windows(self, due: Merged, wanted: bool) -> _Windows:
        """The rows and labels that are due, through the windows by terminal; features where they are wanted."""
        rows = self._none if due.rows is None else due.rows.block("", 0, 0, self._reads)
        labels = None if due.labels is None else due.labels.block("", 0, 0)
        stream_time_ms = self.stage.stream_time_ms
        matrix, late = self.stage.windows(rows, labels, None if labels is None else due.kinds, wanted=wanted)
        lateness_ms = late_by_ms(rows.event_time_ms, stream_time_ms) if late.any() else np.zeros(len(late), np.int64)
        return _Windows(due.rows, matrix, late, lateness_ms)


class Vectors(NamedTuple):
    """n rows with their features (n, d) in the set's order and late flags (n,), and whose they are."""

    rows: Block
    matrix: FloatArray
    late: BoolArray
    numbered: Numbered

    @property
    def source_partitions(self) -> IntArray:
        """(n,) partition of transactions that each row came from; its offset there is ``rows.offsets``."""
        return self.rows.columns[SOURCE_PARTITION].astype(np.int64, copy=False)

    def part(self, start: int, stop: int) -> Vectors:
        """The rows from ``start`` up to ``stop``."""
        n = len(self.rows)
        if stop - start == n:
            return self
        others = np.ones(n, np.bool_)
        others[start:stop] = False
        rows, numbered = self.rows.part(start, stop), self.numbered.without(others)
        return Vectors(rows, self.matrix[start:stop], self.late[start:stop], numbered)


class _Windows(NamedTuple):
    """n rows (None = 0) with their features by terminal (n, k), late flags (n,) and how far they are behind (n,)."""

    rows: Rows | None
    matrix: FloatArray
    late: BoolArray
    lateness_ms: IntArray
