"""The monitor's task for lists: joins what was recommended with what users did next, watches both, and learns by what
weight of each source lists would have been better, which is written to `source-weights`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, check_like, of_texts, prefixed, texts_of, under
from features.block import IntArray
from models.online_weights import SourceWeights
from monitoring.list_counts import LIST_SOURCES
from monitoring.list_join import LIST_MAX, Outcomes
from monitoring.lists import ListMonitor, ListSettings
from streams.codec import Dead
from streams.list_records import ListRuns, read_lists
from streams.log import TP, OutBatch, RecordBatch, TopicInfo
from streams.pipelines.monitor_watch import alert_records
from streams.shuffle import Source, SourcePositions
from streams.source_weights import weights_record
from streams.stage import Meters, dead_letters, fresh_part
from streams.topics import INTERACTIONS

__all__ = ["ListTask"]

#: before the names of the arrays of a task's parts
_POSITIONS, _LISTS, _WEIGHTS = "positions/", "lists/", "weights/"
#: models of which weights are kept; a new one takes the place of the one unused for longest
_MODELS_MAX = 8


class _Pipeline(Protocol):
    meters: Meters

    @property
    def infos(self) -> Mapping[str, TopicInfo]: ...


class ListTask:
    """recommendations -> monitor.findings, source-weights. A list's record says what its user has just done: one log
    says all."""

    def __init__(self, pipeline: _Pipeline, settings: ListSettings, tp: TP) -> None:
        self.pipeline, self.settings, self.tp = pipeline, settings, tp
        self.next_offset = 0
        self.positions = SourcePositions()
        self.lists = ListMonitor(settings)
        #: by model, the last used last, see `SourceWeights`
        self.weights: dict[str, SourceWeights] = {}

    def state(self) -> Arrays:
        """All that `process` depends on, as plain arrays, between two batches; equal for equal logs: ``next_offset``
        (1,), ``positions/..`` and ``lists/..`` as these parts say; ``weighted`` (m,) models, and ``weights/i/..`` of
        each."""
        out = self._own() | prefixed(_LISTS, self.lists.state())
        for i, weights in enumerate(self.weights.values()):
            out |= prefixed(f"{_WEIGHTS}{i}/", weights.state())
        return out

    def _own(self) -> Arrays:
        return {
            "next_offset": np.array([self.next_offset], np.int64),
            "weighted": of_texts(self.weights),
            **prefixed(_POSITIONS, self.positions.to_arrays()),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`, on a task that has seen nothing yet. StateError: of another kind of task or state."""
        own = {name: array for name, array in arrays.items() if not name.startswith((_LISTS, _WEIGHTS))}
        check_like(own, self._own(), "{}/{}".format(*self.tp))
        self.lists.restore(under(_LISTS, arrays))
        for i, model in enumerate(texts_of(arrays["weighted"])):
            self.weights[model] = SourceWeights(LIST_SOURCES)
            self.weights[model].restore(under(f"{_WEIGHTS}{i}/", arrays))
        self.next_offset = int(arrays["next_offset"][0])
        self.positions = SourcePositions.from_arrays(under(_POSITIONS, arrays))

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """Nothing to tell: what closes, closes by event time."""
        return []

    def process(self, batch: RecordBatch) -> list[OutBatch]:
        """Takes the lists; those that were sent again count once."""
        meters = self.pipeline.meters
        batch = fresh_part(batch, self.next_offset)
        outputs: list[OutBatch] = []
        changed: list[OutBatch] = []
        with meters.part("lists", batch.nbytes):
            read, dead = read_lists(batch)
            rows = self._fresh(read)
            for run in read.runs(rows):
                for model, alert in self.lists.observe(run.shown, run.model, run.pairs, partial(self._learn, changed)):
                    outputs.append(alert_records(model, self.tp, [alert]))
        self.next_offset = batch.next_offset
        if batch.replay:
            meters.replayed(len(batch))
            return []
        self._count(len(rows), len(read) - len(rows), dead)
        meters.counts["findings"] += len(outputs)
        meters.counts["weights"] += len(changed)
        outputs += changed
        if dead:
            outputs.append(dead_letters(batch, dead, "lists"))
        return outputs

    def _learn(self, changed: list[OutBatch], outcomes: Outcomes, models: Sequence[str]) -> None:
        """From lists that were followed by a hit: what each source's items should have been lifted by. Goes to
        ``changed``: what lists are to be ordered with from now on."""
        hits = np.flatnonzero(outcomes.place >= 0)
        # in runs of one model, so that how lists are cut into batches does not say which one is unused for longest
        for at in np.split(hits, np.flatnonzero(np.diff(outcomes.model[hits])) + 1) if len(hits) else ():
            model = models[outcomes.model[at[0]]]
            weights = self.weights.pop(model, None) or SourceWeights(LIST_SOURCES)
            self.weights[model] = weights
            if len(self.weights) > _MODELS_MAX:
                del self.weights[next(iter(self.weights))]
            there = np.arange(LIST_MAX) < outcomes.length[at][:, None]
            clicked = np.arange(LIST_MAX) == outcomes.place[at][:, None]
            for i, served in weights.update(
                np.append(0, np.cumsum(outcomes.length[at])),
                outcomes.scores[at][there],
                outcomes.sources[at][there].astype(np.int64),
                clicked[there],
            ):
                changed.append(weights_record(model, self.tp, int(outcomes.time_ms[at[i]]), served, weights))

    def figures(self) -> dict[str, Any]:
        """By model, see `ListMonitor.figures`; and the ``weights`` of sources, see `SourceWeights.figures`."""
        out = self.lists.figures()
        for model, weights in self.weights.items():
            if model in out:
                out[model]["weights"] = weights.figures()
        return out

    def _count(self, lists: int, again: int, dead: Sequence[Dead]) -> None:
        counts = self.pipeline.meters.counts
        counts["lists"] += lists
        counts["resent_rows"] += again
        counts["dead_letters"] += len(dead)

    def _fresh(self, read: ListRuns) -> IntArray:
        """The rows that were not taken before, by the place of their events."""
        if not len(read):
            return np.zeros(0, np.int64)
        fall = (np.diff(read.offset) <= 0) | (np.diff(read.partition) != 0)
        starts = [0, *(np.flatnonzero(fall) + 1).tolist(), len(read)]
        topic_id = self.pipeline.infos[INTERACTIONS].topic_id
        kept = []
        for begin, end in pairwise(starts):
            source = Source(INTERACTIONS, topic_id, int(read.partition[begin]))
            kept.append(np.arange(begin + self.positions.fresh(source, read.offset[begin:end]), end))
        return np.concatenate(kept)
