"""The fraud stages replayed from their own input logs: one task per partition, moved over the log's records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from streams.checkpoint import Checkpoint
from streams.checkpoint_store import CheckpointStore
from streams.checkpoints import expected_of
from streams.log import TP, Log, RecordBatch, TopicInfo
from streams.pipelines.fraud import FraudPipeline
from streams.replay import read_up_to

__all__ = ["StageReplays"]


@dataclass(slots=True)
class StageReplays:
    """How the stages are replayed: each partition from the state in ``begins``, where it has one, else from its log's
    first record.

    ``make`` gives pipelines with the settings that the group's workers ran with, order included.
    """

    log: Log
    make: Callable[[], FraudPipeline]
    infos: Mapping[str, TopicInfo]
    progress: Callable[[int], None]
    begins: dict[TP, Checkpoint] = field(default_factory=dict)

    def pipeline(self) -> FraudPipeline:
        """A new pipeline, bound to the log's topics."""
        pipeline = self.make()
        pipeline.bind(self.infos)
        return pipeline

    def find_seams(self, store: CheckpointStore, group: str) -> None:
        """Begins each partition of a group that was bootstrapped at its seam. CheckpointError: of other settings."""
        pipeline = self.pipeline()
        for topic in pipeline.inputs:
            of = pipeline.state_of(topic)
            for p in range(self.infos[topic].partitions):
                found = store.seam(expected_of(group, TP(topic, p), of))
                if found is not None:
                    self.begins[TP(topic, p)] = found

    def read(self, stops: Mapping[TP, int], *, from_start: bool = True) -> Iterator[RecordBatch]:
        """Each partition's records behind its begin; see `read_up_to`."""
        starts = {tp: found.meta.offset for tp, found in self.begins.items()}
        for batch in read_up_to(self.log, stops, starts=starts, from_start=from_start):
            yield batch
            self.progress(len(batch))

    def tasks(self, pipeline: FraudPipeline) -> Callable[[TP], Any]:
        """The task of each partition, made when it is first asked for."""

        @cache
        def task(tp: TP) -> Any:
            made = pipeline.task(tp)
            if tp in self.begins:
                made.restore(self.begins[tp].arrays)
            return made

        return task
