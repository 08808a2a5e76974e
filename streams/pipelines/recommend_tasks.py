"""The recommend pipeline's tasks: one per topic and partition, with its state; a run of them is processed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, check_like, prefixed, under
from features.block import Block
from models.slot import Serving
from streams.codec import Dead, decode_together
from streams.log import TP, OutBatch, RecordBatch
from streams.model_cuts import runs_by_lineup
from streams.partitioner import partitions_of
from streams.pipelines.recommend_stages import ItemStage, UserRows, UserStage, rows_by_item
from streams.rows import Rows
from streams.shuffle import Sent, ShuffleError, SourcePositions, pack_for, unpack
from streams.stage import dead_letters, fresh_part
from streams.topics import BY_ITEM, ITEMS

if TYPE_CHECKING:
    from streams.pipelines.recommend import RecommendPipeline

__all__ = ["ItemTask", "UserTask"]

#: before the names of the arrays of a task's parts
_STAGE, _POSITIONS = "stage/", "positions/"


class UserTask:
    """interactions -> what users did last -> rows by item, and a list for each event."""

    def __init__(self, pipeline: RecommendPipeline, tp: TP) -> None:
        self.pipeline = pipeline
        self.tp = tp
        self.source = pipeline.source(tp)
        self.next_offset = 0
        self.stage = UserStage(pipeline.settings)

    def state(self) -> Arrays:
        """All that `process` depends on but the view of the items, as plain arrays, between two batches; equal for
        equal logs: ``next_offset`` (1,), ``stage/..`` of `UserStage.to_arrays`."""
        return {
            "next_offset": np.array([self.next_offset], np.int64),
            **prefixed(_STAGE, self.stage.to_arrays()),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`, on a task that has seen nothing yet. StateError: of another kind of task or state."""
        check_like(arrays, self.state(), "{}/{}".format(*self.tp))
        self.next_offset = int(arrays["next_offset"][0])
        self.stage = UserStage.from_arrays(self.pipeline.settings, under(_STAGE, arrays))

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """What has come of the items is read, so that it does not pile up."""
        return self.pipeline.follow_items()

    @staticmethod
    def process_run(pipeline: RecommendPipeline, parts: Sequence[tuple[UserTask, RecordBatch]]) -> list[OutBatch]:
        """See `streams.pipeline.Pipeline.process`."""
        outputs: list[OutBatch] = []
        for lineup, run in runs_by_lineup(pipeline.slot, parts):
            outputs += UserTask._process_run(pipeline, lineup.champion, run)
        return outputs

    @staticmethod
    def _process_run(
        pipeline: RecommendPipeline, model: Serving, parts: Sequence[tuple[UserTask, RecordBatch]]
    ) -> list[OutBatch]:
        """As `process_run`, of what one model ranks."""
        batches = [fresh_part(batch, task.next_offset) for task, batch in parts]
        nbytes = sum(batch.nbytes for batch in batches)
        with pipeline.meters.part("decode", nbytes):
            decoded = decode_together(pipeline.interactions.decode, batches)
        with pipeline.meters.part("users", nbytes):
            made = [task.stage.process(block) for (task, _), (block, _) in zip(parts, decoded, strict=True)]
        outputs: list[OutBatch] = []
        live: list[UserRows] = []
        sent: list[Sent] = []
        for (task, _), batch, (_, dead), rows in zip(parts, batches, decoded, made, strict=True):
            task._account(batch, dead, rows, outputs)
            if not batch.replay and len(rows.block):
                live.append(rows)
                sent.append(Sent(task.source, rows_by_item(rows)))
        if not live:
            return outputs
        with pipeline.meters.part("shuffle", nbytes):
            n = pipeline.infos[BY_ITEM].partitions
            targets = np.concatenate([partitions_of(s.block.ids["item_id"], n) for s in sent])
            outputs = pack_for(BY_ITEM, "rows", sent, targets, n) + outputs
        return outputs + pipeline.serving.recommend(live, model, nbytes)

    def _account(self, batch: RecordBatch, dead: list[Dead], made: UserRows, outputs: list[OutBatch]) -> None:
        """Counts the batch; its dead letters go to ``outputs``."""
        counts = self.pipeline.meters.counts
        self.next_offset = batch.next_offset
        if batch.replay:
            counts["replayed"] += len(batch)
            return
        counts["received"] += len(batch)
        counts["dead_letters"] += len(dead)
        counts["duplicates"] += made.duplicates
        counts["late"] += int(np.count_nonzero(made.contexts.late))
        if dead:
            outputs.append(dead_letters(batch, dead, "user"))


class ItemTask:
    """interactions.by-item -> what is known of items -> items."""

    def __init__(self, pipeline: RecommendPipeline, tp: TP) -> None:
        self.pipeline = pipeline
        self.tp = tp
        self.next_offset = 0
        self.positions = SourcePositions()
        self.stage = ItemStage(pipeline.settings)

    def state(self) -> Arrays:
        """As `UserTask.state`, with ``positions/..``: what was taken from each source."""
        return {
            "next_offset": np.array([self.next_offset], np.int64),
            **prefixed(_POSITIONS, self.positions.to_arrays()),
            **prefixed(_STAGE, self.stage.to_arrays()),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`, on a task that has seen nothing yet. StateError: of another kind of task or state."""
        check_like(arrays, self.state(), "{}/{}".format(*self.tp))
        self.next_offset = int(arrays["next_offset"][0])
        self.positions = SourcePositions.from_arrays(under(_POSITIONS, arrays))
        self.stage = ItemStage.from_arrays(self.pipeline.settings, under(_STAGE, arrays))

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """Items are published by event time; what has come of them is read."""
        return self.pipeline.follow_items()

    @staticmethod
    def process_run(pipeline: RecommendPipeline, parts: Sequence[tuple[ItemTask, RecordBatch]]) -> list[OutBatch]:
        """See `streams.pipeline.Pipeline.process`."""
        outputs: list[OutBatch] = []
        for task, batch in parts:
            with pipeline.meters.part("items", batch.nbytes):
                outputs += task._process(fresh_part(batch, task.next_offset))
        return outputs

    def _process(self, batch: RecordBatch) -> list[OutBatch]:
        counts = self.pipeline.meters.counts
        rows: list[Rows] = []
        dead: list[Dead] = []
        for i, value in enumerate(batch.values):
            try:
                message = unpack(value)
            except ShuffleError as exc:
                dead.append(Dead(i, str(exc)))
                continue
            start = self.positions.fresh(message.source, message.rows.offsets)
            counts["resent_rows"] += 0 if batch.replay else start
            if start < len(message.rows):
                rows.append(message.rows.part(start, len(message.rows)))
        self.next_offset = batch.next_offset
        outputs = []
        if rows:
            outputs = self._published(Rows.concat(rows).block("", 0, 0), batch.replay)
        if dead and not batch.replay:
            outputs.append(dead_letters(batch, dead, "item"))
        return outputs

    def _published(self, block: Block, replay: bool) -> list[OutBatch]:
        """The changed items of each span of event time that the rows end, none where they were published before."""
        outputs = []
        for records in self.stage.process(block):
            if len(records) and not replay:
                self.pipeline.meters.counts["published"] += len(records)
                outputs.append(OutBatch(ITEMS, records.pack(), records.ids.texts()))
        return outputs
