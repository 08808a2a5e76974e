"""The monitor pipeline: what was scored, joined with the labels that come later, and both watched; and what was
recommended, joined with what users did next.

fraud.by-transaction ──► join ──► labelled
                          └─────┐
recommendations ──► lists ──────┴──► monitor.findings ──► incidents ──► alerts
                      └──► source-weights
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import orjson

from features.block import Block, Ids
from monitoring.causes import LENGTH_MS, SPAN_MS
from monitoring.labels import JoinSettings, LabelJoin
from monitoring.lists import ListSettings
from streams.checkpoints import StateOf
from streams.labelled import LabelledEncoder
from streams.log import TP, OutBatch, RecordBatch, TopicInfo
from streams.pipelines.fraud_monitor import FEATURE, MODEL
from streams.pipelines.incident_tasks import IncidentTask
from streams.pipelines.list_tasks import ListTask
from streams.pipelines.monitor_tasks import MonitorTask, outputs_of
from streams.pipelines.monitor_watch import Packages, WatchSettings
from streams.shuffle import Sent, Source, pack
from streams.stage import Meters
from streams.topics import (
    ALERTS,
    BY_TERMINAL,
    BY_TRANSACTION,
    DEAD_LETTERS,
    FINDINGS,
    INTERACTIONS,
    LABELLED,
    LABELS,
    RECOMMENDATIONS,
    SOURCE_WEIGHTS,
    topic_infos,
)
from streams.worker import Task

__all__ = ["MonitorPipeline"]

#: version of what `state` of the tasks gives, and of what `process` makes of a log: to be raised when either changes
_STATE_FORMAT = 3
#: the same of the tasks of lists
_LISTS_FORMAT = 2
#: and of incidents
_INCIDENTS_FORMAT = 2

_COUNTS = ("received", "labels", "labelled", "lists", "findings", "alerts", "dead_letters", "replayed", "resent_rows")
_STAGES = {BY_TRANSACTION: "join", RECOMMENDATIONS: "lists", FINDINGS: "incidents"}

_TOPICS = (
    LABELS, BY_TERMINAL, BY_TRANSACTION, LABELLED, FINDINGS, ALERTS, DEAD_LETTERS, INTERACTIONS,
    RECOMMENDATIONS, SOURCE_WEIGHTS,
)  # fmt: skip


@dataclass(slots=True)
class MonitorPipeline:
    """Three stages, ``join``, ``lists`` and ``incidents``. ``packages``: what models were made on, which the present is
    then held against too; None: nobody is asked."""

    settings: JoinSettings
    partitions: int = 4
    watch: WatchSettings = field(default_factory=WatchSettings)
    lists: ListSettings = field(default_factory=ListSettings)
    packages: Packages | None = None
    meters: Meters = field(default_factory=Meters)
    encoder: LabelledEncoder = field(default_factory=LabelledEncoder)
    infos: Mapping[str, TopicInfo] = field(default_factory=dict)
    _tasks: WeakValueDictionary[TP, MonitorTask] = field(default_factory=WeakValueDictionary)
    _list_tasks: WeakValueDictionary[TP, ListTask] = field(default_factory=WeakValueDictionary)

    @property
    def topics(self) -> Sequence[TopicInfo]:
        return topic_infos(_TOPICS, self.partitions)

    @property
    def inputs(self) -> Sequence[str]:
        return (BY_TRANSACTION, RECOMMENDATIONS, FINDINGS)

    def bind(self, topics: Mapping[str, TopicInfo]) -> None:
        self.infos = topics

    def is_stateful(self, topic: str) -> bool:
        return True

    def state_of(self, topic: str) -> StateOf:
        """What the state of this topic's tasks is of."""
        return StateOf(_STAGES[topic], self.infos[topic].topic_id, self.fingerprint(topic), "", "")

    def fingerprint(self, topic: str = BY_TRANSACTION) -> str:
        """(64 hex digits) What the saved state of a task on this topic means besides its log: all settings of the join
        and of the watches, and how many sources it has and tasks it is spread over."""
        topics: tuple[str, ...] = (LABELS, BY_TERMINAL, BY_TRANSACTION)
        meaning: list[Any] = [_STATE_FORMAT, asdict(self.settings), asdict(self.watch)]
        meaning.append(self.packages is not None)
        if topic == RECOMMENDATIONS:
            topics, meaning = (INTERACTIONS, RECOMMENDATIONS), [_LISTS_FORMAT, asdict(self.lists)]
        if topic == FINDINGS:
            topics, meaning = (), [_INCIDENTS_FORMAT, SPAN_MS, LENGTH_MS]
        partitions = [self.infos[name].partitions for name in topics]
        return hashlib.sha256(orjson.dumps([*meaning, partitions], option=orjson.OPT_SORT_KEYS)).hexdigest()

    def task(self, tp: TP) -> Task:
        if tp.topic == FINDINGS:
            return IncidentTask(self, tp)
        if tp.topic == RECOMMENDATIONS:
            share = self.lists.false_alarms_per_30d / self.infos[tp.topic].partitions
            lists = self._list_tasks[tp] = ListTask(self, replace(self.lists, false_alarms_per_30d=share), tp)
            return lists
        task = self._tasks[tp] = MonitorTask(self, tp)
        return task

    def use_ends(self, confirmed: Callable[[TP, float], bool]) -> None:
        """Nothing is told to anybody, so no end is asked for."""

    def wake(self, parts: Sequence[tuple[Any, RecordBatch]], tasks: Callable[[], Sequence[Any]]) -> list[OutBatch]:
        return []

    def process(self, parts: Sequence[tuple[Any, RecordBatch]]) -> list[OutBatch]:
        return outputs_of(parts)

    def warm(self) -> None:
        """A vector and its label through a pipeline of its own: compiles every kernel."""
        trial = MonitorPipeline(self.settings, 1, self.watch, self.lists)
        trial.bind({info.name: TopicInfo(info.name, 1, "warm") for info in trial.topics})
        now, one = 1_600_000_000_000, np.array([1], np.int64)
        ids = {name: Ids(ints=one) for name in ("transaction_id", "card_id", "terminal_id")}
        words = {"event_time": one * now, "source_partition": one, "source_offset": one, "late": one == 0}
        floats = {name: np.array([0.5]) for name in ("raw", "score", FEATURE + "amount")}
        vector = Block(BY_TERMINAL, 0, 2, one, one * now, ids | {MODEL: Ids(mixed=[""])}, words | floats)
        label = Block(LABELS, 0, 2, one, one * now, {"transaction_id": Ids(ints=one)})
        label.columns |= {"label_time": one * now, "is_fraud": one}
        values = [
            value
            for kind, block in (("rows", vector), ("labels", label))
            for _, value in pack(kind, [Sent(Source(block.topic, "warm", 0), block, now)], None, 1)  # type: ignore[arg-type]
        ]
        batch = RecordBatch(TP(BY_TRANSACTION, 0), [0, 1], [now] * 2, [None] * 2, list(values), lambda i: [], 2)
        trial.process([(trial.task(batch.tp), batch)])

    def quality(self) -> dict[str, dict[str, dict[str, int]]]:
        """Nothing is parsed here."""
        return {}

    def figures(self) -> dict[str, int]:
        """What this worker has done since its start: ``received`` vectors, ``labels``, ``labelled`` records,
        ``lists``, ``findings`` of partitions and models, and the ``alerts`` that they became."""
        return {name: self.meters.counts[name] for name in _COUNTS}

    def details(self) -> dict[str, Any]:
        """Of this worker's partitions, since the beginning of their logs: ``join``, see `LabelJoin.counts`, and the
        ``maturity`` of labels, see `LabelJoin.curve`, where NaN is None; and by partition what is ``watched``, see
        `Monitor.figures`, and of lists see `ListTask.figures`."""
        joins = [task.join for task in self._tasks.values()]
        lists = {f"{tp.topic}/{tp.partition}": task.figures() for tp, task in sorted(self._list_tasks.items())}
        if not joins:
            return {"lists_watched": lists} if lists else {}
        totals: dict[str, int] = {}
        for join in joins:
            for name, count in join.counts.items():
                totals[name] = totals.get(name, 0) + count
        curve = LabelJoin.curve_of(joins)
        points = [{name: None if value != value else value for name, value in point.items()} for point in curve]
        watched = {f"{tp.topic}/{tp.partition}": task.watches.figures() for tp, task in sorted(self._tasks.items())}
        return {"join": totals, "maturity": points, "watched": watched, "lists_watched": lists}
