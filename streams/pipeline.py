"""What a worker asks of a pipeline: its topics, and tasks that move over runs of batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from streams.checkpoints import Stateful, StateOf
from streams.log import TP, OutBatch, RecordBatch, TopicInfo

__all__ = ["Pipeline", "Task", "runs_of"]


class Task(Stateful, Protocol):
    """One stage on one partition: the state that `Pipeline.process` moves on."""

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """Decisions by the clock, written to the log for others (rule 5); never touches what `process` computes."""


class Pipeline(Protocol):
    """The stages of one worker, by input topic."""

    @property
    def topics(self) -> Sequence[TopicInfo]:
        """Every topic that is read or written."""

    @property
    def inputs(self) -> Sequence[str]:
        """The topics that are read, each by one stage, and each after those it is made from."""

    def warm(self) -> None:
        """Compiles and loads what the first batch would otherwise wait for."""

    def bind(self, topics: Mapping[str, TopicInfo]) -> None:
        """What the broker says of the topics, before the first task."""

    def is_stateful(self, topic: str) -> bool:
        """Whether a task of this topic depends on what it read before."""

    def state_of(self, topic: str) -> StateOf:
        """What the state of this topic's tasks is of."""

    def task(self, tp: TP) -> Task:
        """A task that has read nothing yet."""

    def use_ends(self, confirmed: Callable[[TP, float], bool]) -> None:
        """``confirmed`` says whether the broker, asked at that time (`time.monotonic`) or later, has said that a log is
        read to its end; asking makes it asked."""

    def wake(self, parts: Sequence[tuple[Any, RecordBatch]], tasks: Callable[[], Sequence[Any]]) -> list[OutBatch]:
        """What goes out before `process` of these parts; ``tasks()`` are all of this worker's. Decisions of the moment,
        written to the log for others (rule 5)."""

    def process(self, parts: Sequence[tuple[Any, RecordBatch]]) -> list[OutBatch]:
        """Moves tasks of one topic, each of another partition, over their batches; returns the outputs, none of a
        batch that is ``replay``. Equal to one after the other; together what they share is done once."""


def runs_of(batches: Sequence[RecordBatch], records_max: int, inputs: Sequence[str]) -> list[list[RecordBatch]]:
    """The batches in runs: of one topic, of different partitions, of at most so many records unless one alone has more.

    What a stage does for a run together costs less than for each of its batches; what it does without giving way
    stays bounded. Of the topics the last of ``inputs`` comes first: what is about to leave the pipeline need not wait
    for what has just come in, which is not back from the log before the next poll anyway.
    """
    runs: list[list[RecordBatch]] = []
    open_runs: dict[str, list[RecordBatch]] = {}
    for batch in sorted(batches, key=lambda batch: inputs.index(batch.tp.topic), reverse=True):
        run = open_runs.get(batch.tp.topic)
        if run is None or any(other.tp == batch.tp for other in run) or sum(map(len, run)) + len(batch) > records_max:
            run = open_runs[batch.tp.topic] = []
            runs.append(run)
        run.append(batch)
    return runs
