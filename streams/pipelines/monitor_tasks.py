"""The monitor's task: joins what was scored with the labels that come later, and watches both."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, check_like, prefixed, under
from monitoring.labels import Joined, LabelJoin
from streams.codec import Dead
from streams.labelled import LabelledRows, Shelf, feature_names
from streams.log import TP, OutBatch, RecordBatch
from streams.pipelines.fraud_monitor import MODEL
from streams.pipelines.monitor_sources import Sources
from streams.pipelines.monitor_watch import Watches
from streams.rows import Layout
from streams.shuffle import Shuffled, ShuffleError, SourcePositions, unpack
from streams.stage import dead_letters, fresh_part
from streams.topics import BY_TERMINAL, BY_TRANSACTION, FINDINGS, LABELS

if TYPE_CHECKING:
    from streams.pipelines.monitor import MonitorPipeline

__all__ = ["MonitorTask"]

logger = logging.getLogger("headrace.monitor")

#: before the names of the arrays of a task's parts
_POSITIONS, _SOURCES, _JOIN, _SHELF, _WATCH = "positions/", "sources/", "join/", "shelf/", "watch/"
_VECTOR_WORDS = frozenset({"i8:event_time", "i8:source_partition", "i8:source_offset", "b1:late", "f8:raw", "f8:score"})
_VECTOR_IDS = frozenset({"id:transaction_id", "id:card_id", "id:terminal_id", f"id:{MODEL}"})
_LABEL_WORDS = frozenset({"i8:label_time", "i8:is_fraud"})


class MonitorTask:
    """fraud.by-transaction -> labelled, monitor.findings."""

    def __init__(self, pipeline: MonitorPipeline, tp: TP) -> None:
        self.pipeline = pipeline
        self.tp = tp
        self.next_offset = 0
        self.positions = SourcePositions()
        infos = pipeline.infos
        sources = ((t, p) for t in (LABELS, BY_TERMINAL) for p in range(infos[t].partitions))
        self.sources = Sources(sources, BY_TERMINAL)
        self.join = LabelJoin(pipeline.settings)
        self.shelf = Shelf()
        partitions = infos[BY_TRANSACTION].partitions
        self.watches = Watches(pipeline.watch, pipeline.settings, tp, partitions, pipeline.packages)

    def state(self) -> Arrays:
        """All that `process` depends on, as plain arrays, between two batches; equal for equal logs: ``next_offset``
        (1,), and ``positions/..``, ``sources/..``, ``join/..``, ``shelf/..`` and ``watch/..`` as these parts say."""
        return self._state_of_join() | prefixed(_WATCH, self.watches.to_arrays())

    def _state_of_join(self) -> Arrays:
        return {
            "next_offset": np.array([self.next_offset], np.int64),
            **prefixed(_POSITIONS, self.positions.to_arrays()),
            **prefixed(_SOURCES, self.sources.to_arrays()),
            **prefixed(_JOIN, self.join.to_arrays()),
            **prefixed(_SHELF, self.shelf.to_arrays(self.join.places)),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`, on a task that has seen nothing yet. StateError: of another kind of task or state."""
        join = {name: array for name, array in arrays.items() if not name.startswith(_WATCH)}
        check_like(join, self._state_of_join(), "{}/{}".format(*self.tp))
        self.watches.restore(under(_WATCH, arrays))
        self.next_offset = int(arrays["next_offset"][0])
        self.positions = SourcePositions.from_arrays(under(_POSITIONS, arrays))
        self.sources.restore(under(_SOURCES, arrays))
        places = self.shelf.load(under(_SHELF, arrays))
        self.join = LabelJoin.from_arrays(self.pipeline.settings, under(_JOIN, arrays), places)

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """Nothing to tell: nobody reads on from here in the order of time."""
        return []

    def process(self, batch: RecordBatch) -> list[OutBatch]:
        """Moves over the batch, message by message: what is due by the time is due behind a message, and a message is
        never cut."""
        meters = self.pipeline.meters
        batch = fresh_part(batch, self.next_offset)
        dead: list[Dead] = []
        outputs: list[OutBatch] = []
        with meters.part("join", batch.nbytes):
            for i, value in enumerate(batch.values):
                try:
                    message = _readable(unpack(value))
                except ShuffleError as exc:
                    dead.append(Dead(i, str(exc)))
                    continue
                for joined in self._take(message, batch.replay, outputs):
                    self._labelled(joined, batch.replay, outputs)
        self.next_offset = batch.next_offset
        if batch.replay:
            meters.counts["replayed"] += len(batch)
            return []
        meters.counts["findings"] += sum(len(out) for out in outputs if out.topic == FINDINGS)
        meters.counts["dead_letters"] += len(dead)
        if dead:
            outputs.append(dead_letters(batch, dead, "join"))
        return outputs

    def _take(self, message: Shuffled, replay: bool, outputs: list[OutBatch]) -> Iterator[Joined]:
        """What has become of the message's rows, then, at the time after it, what is due behind them; alerts go to
        ``outputs``. To be exhausted."""
        counts = self.pipeline.meters.counts
        start = self.positions.fresh(message.source, message.rows.offsets)
        rows = message.rows.part(start, len(message.rows)) if start else message.rows
        if not replay:
            counts["resent_rows"] += start
            counts["received" if message.kind == "rows" else "labels"] += len(rows)
        if len(rows):
            keys = rows.block("", 0, 0, ("transaction_id",)).ids["transaction_id"].keys()
            if message.kind == "rows":
                outputs += self.watches.scored(rows.block("", 0, 0), feature_names(rows.layout), self.join.time_ms)
                yield self.join.vectors(keys, rows.integers("event_time"), self.shelf.put(rows))
            else:
                times, labels = rows.integers("label_time"), rows.integers("is_fraud")
                yield self.join.labels(keys, times, labels, rows.words[1])
        time_ms = self.sources.push(message)
        due = None if time_ms is None else self.join.advance(time_ms)
        if due is not None:
            yield due

    def _labelled(self, joined: Joined, replay: bool, outputs: list[OutBatch]) -> None:
        self.shelf.free(joined.freed)
        if len(joined.places) == 0:
            return
        parts = LabelledRows.of(self.shelf.take(joined.places), joined)
        for rows in parts:
            outputs += self.watches.labelled(rows, self.join.time_ms)
        if not replay:
            self.pipeline.meters.counts["labelled"] += len(joined.places)
            outputs.append(self.pipeline.encoder.encode(parts))


def _readable(message: Shuffled) -> Shuffled:
    """The message. ShuffleError: it has other columns than the fraud pipeline sends here."""
    if message.kind in ("rows", "labels"):
        _check_columns(message.kind, message.rows.layout)
    return message


def _check_columns(kind: str, layout: Layout) -> None:
    names = {*layout.words, *layout.texts}
    wanted = _VECTOR_WORDS | _VECTOR_IDS if kind == "rows" else _LABEL_WORDS | {"id:transaction_id"}
    if not names >= wanted:
        missing = ", ".join(sorted(wanted - names))
        raise ShuffleError(
            f"shuffle message of {kind} without {missing}: not from a fraud pipeline of this version; let all its "
            "workers be of the monitor's version"
        )


def outputs_of(parts: Sequence[tuple[MonitorTask, RecordBatch]]) -> list[OutBatch]:
    """The tasks over their batches, one after the other."""
    return [out for task, batch in parts for out in task.process(batch)]
