"""The fraud pipeline: transactions and labels in, scores out.

transactions ──► card ──► fraud.by-terminal ──► terminal ──► fraud-scores
transaction-labels ──► label router ──┘
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from features import engine, schema
from features.plan import FORMAT
from models.slot import ModelSlot
from streams.checkpoints import StateOf
from streams.codec import Decoder
from streams.encode import ScoreEncoder
from streams.log import TP, OutBatch, RecordBatch, TopicInfo
from streams.partitioner import KeyPlacement
from streams.pipelines.fraud_stages import StageSettings
from streams.pipelines.fraud_tasks import CardTask, LabelTask, TerminalTask
from streams.poison import Guard
from streams.quality import by_topic
from streams.shedding import Shedder
from streams.shuffle import Source
from streams.stage import Meters
from streams.topics import (
    BY_TERMINAL,
    BY_TRANSACTION,
    DEAD_LETTERS,
    FRAUD_SCORES,
    LABELS,
    LATE_EVENTS,
    MODEL_EVENTS,
    SHADOW_SCORES,
    SHED_EVENTS,
    TRANSACTIONS,
    topic_infos,
)
from streams.worker import Task

__all__ = ["FraudPipeline"]

#: version of what `state` of the tasks gives, and of what `process` makes of a log: to be raised when either changes
_STATE_FORMAT = 3

_STAGES = {TRANSACTIONS: "card", LABELS: "labels", BY_TERMINAL: "terminal"}
_TOPICS = (TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES, DEAD_LETTERS, LATE_EVENTS, SHED_EVENTS)
#: those of the models, where there are any
_MODEL_TOPICS = (MODEL_EVENTS, SHADOW_SCORES)


@dataclass(slots=True)
class FraudPipeline:
    """Three stages; `task` makes the one that a topic's partition needs."""

    settings: StageSettings
    slot: ModelSlot
    order: str = "arrival"
    partitions: int = 4
    log_features: bool = True
    #: whether score records say which labels the score leaves possible
    log_sets: bool = True
    #: for the order by event time: how far out of order the events of one partition may be, and so are waited for
    watermark_delay_ms: int = 0
    #: how long a partition that is read to its end is waited for before it is idle
    idle_after_s: float = 1.0
    #: and one without any record
    first_wait_s: float = 60.0
    #: whether vectors and labels go to the monitor as well
    monitor: bool = False
    #: decides what is not scored when this worker has fallen behind; None: everything is
    shedder: Shedder | None = None
    meters: Meters = field(default_factory=Meters)
    placement: KeyPlacement = field(default_factory=lambda: KeyPlacement(TRANSACTIONS))
    infos: Mapping[str, TopicInfo] = field(default_factory=dict)
    guard: Guard = field(default_factory=Guard)
    encoder: ScoreEncoder = field(init=False)
    #: of what a shadow says; the features are in the score
    shadow_encoder: ScoreEncoder = field(default_factory=lambda: ScoreEncoder(None))
    transactions: Decoder = field(init=False)
    labels: Decoder = field(init=False)
    #: whether a source's log is surely read to its end; see `use_ends`
    end_confirmed: Callable[[TP, float], bool] = lambda tp, since_s: True
    #: how often the terminal stage has read that a silence of all sources was over
    wakes_heard: int = 0
    #: when one of the tasks has last said, by its clock, for whom it waits
    wait_said_s: float = float("-inf")

    def __post_init__(self) -> None:
        self.transactions, self.labels = Decoder(schema.TRANSACTIONS), Decoder(schema.TRANSACTION_LABELS)
        self.encoder = ScoreEncoder(self.settings.features.names if self.log_features else None)

    @property
    def topics(self) -> Sequence[TopicInfo]:
        models = () if self.slot.model is None else _MODEL_TOPICS
        monitors = (BY_TRANSACTION,) if self.monitor else ()
        return topic_infos((*_TOPICS, *models, *monitors), self.partitions)

    @property
    def inputs(self) -> Sequence[str]:
        return (TRANSACTIONS, LABELS, BY_TERMINAL)

    def bind(self, topics: Mapping[str, TopicInfo]) -> None:
        self.infos = topics

    def is_stateful(self, topic: str) -> bool:
        """The label router's state is only its watermark."""
        return topic != LABELS or self.order != "arrival"

    def state_of(self, topic: str) -> StateOf:
        """What the state of this topic's tasks is of; see `fingerprint`."""
        features = self.settings.features
        return StateOf(
            _STAGES[topic], self.infos[topic].topic_id, self.fingerprint(topic), features.name, features.schema_hash
        )

    def task(self, tp: TP) -> Task:
        if tp.topic == TRANSACTIONS:
            return CardTask(self, tp)
        if tp.topic == LABELS:
            return LabelTask(self, tp)
        return TerminalTask(self, tp)

    def fingerprint(self, topic: str) -> str:
        """(64 hex digits) What the saved state of a task on this topic means besides its log: where it differs, going
        on from that state could give other results than a replay of the log, so the state is of no use. After `bind`.

        In it, of each topic what its own stage looks at: the format of the arrays; which records are rows (schema);
        the windows' declarations in their order, the allowed lateness; how long and how many transactions are known
        again; the order; and how many partitions each of the stages' topics has. Where one gets more, keys move to
        other partitions than their history and later rows go elsewhere: no state fits what comes then, and a replay of
        the log would be as wrong.

        Not in it: features of the row alone, the model and what is logged, which leave no state; the watermark's delay
        and the clock's settings, as the state has the newest time and no decision; and bounds of memory that end the
        worker rather than change a result.
        """
        settings, meaning = self.settings, dict[str, Any]()
        if topic == TRANSACTIONS:
            meaning = {
                "schema": self.transactions.schema.schema_hash,
                "windows": self._windows("card_id"),
                "allowed_lateness_ms": settings.allowed_lateness_ms,
                "dedupe_ms": settings.dedupe_ms,
                "dedupe_entries": settings.dedupe_entries,
            }
        elif topic == LABELS:
            meaning = {"schema": self.labels.schema.schema_hash}
        else:
            meaning = {
                "windows": self._windows("terminal_id"),
                "allowed_lateness_ms": settings.allowed_lateness_ms,
                "order": self.order,
            }
        meaning["partitions"] = [self.infos[t].partitions for t in _STAGES]
        text = orjson.dumps([_STATE_FORMAT, FORMAT, topic, meaning], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(text).hexdigest()

    def _windows(self, key: str) -> list[tuple[dict[str, object], bool]]:
        """What the windows of the stage are, and whether values may be missing, which is no part of a definition."""
        return [(f.definition(), f.optional) for f in self.settings.features.for_stage(key)]

    def use_ends(self, confirmed: Callable[[TP, float], bool]) -> None:
        self.end_confirmed = confirmed

    def wake(self, parts: Sequence[tuple[Any, RecordBatch]], tasks: Callable[[], Sequence[Any]]) -> list[OutBatch]:
        """When one source has something again, others probably have too: until they say that they are idle again, the
        terminal stage and the monitor wait for all. Else the first of several backlogs to be read would overtake the
        others."""
        if self.order == "arrival" and not self.monitor:
            return []
        if not any(task.may_sleep and not batch.replay for task, batch in parts):
            return []
        return [out for task in tasks() for out in task.wake()]

    def process(self, parts: Sequence[tuple[Any, RecordBatch]]) -> list[OutBatch]:
        outputs: list[OutBatch] = type(parts[0][0]).process_run(self, parts)
        return outputs

    def source(self, tp: TP) -> Source:
        """Who the rows of this partition are from."""
        return Source(tp.topic, self.infos[tp.topic].topic_id, tp.partition)

    def warm(self) -> None:
        """A tiny run through all stages, with a pipeline of its own: compiles every kernel."""
        engine.warm(self.settings.features)
        trial = FraudPipeline(
            self.settings, self.slot, self.order, 2, self.log_features, self.log_sets, monitor=self.monitor
        )
        trial.bind({info.name: TopicInfo(info.name, 2, "warm") for info in trial.topics})
        now = 1_600_000_000_000
        for n in (1, 9):
            events = [
                orjson.dumps({"transaction_id": i, "event_time": now, "card_id": i, "terminal_id": i, "amount": 1.5})
                for i in range(n)
            ]
            known = [orjson.dumps({"transaction_id": i, "label_time": now, "is_fraud": 1}) for i in range(n)]
            outputs: list[OutBatch] = []
            for topic, values in ((TRANSACTIONS, events), (LABELS, known)):
                outputs += trial.process([(trial.task(TP(topic, 0)), _trial_batch(topic, values, now))])
            shuffled = [v for out in outputs if out.topic == BY_TERMINAL for v in out.values if v is not None]
            trial.process([(trial.task(TP(BY_TERMINAL, 0)), _trial_batch(BY_TERMINAL, shuffled, now))])

    def quality(self) -> dict[str, dict[str, dict[str, int]]]:
        """By topic and field, how many values were missing, out of range, mended and so on; topics without are left
        out. A record can count in several fields."""
        return by_topic({TRANSACTIONS: self.transactions.quality, LABELS: self.labels.quality})

    def figures(self) -> dict[str, int]:
        """What this worker has done since its start; once all is out, received = scored + dead_letters
        + duplicates + shed."""
        names = (
            "received",
            "scored",
            "dead_letters",
            "duplicates",
            "late",
            "shed",
            "labels",
            "replayed",
            "resent_rows",
            "forced",
            "overtaken",
        )
        figures = {name: self.meters.counts[name] for name in names}
        return {**figures, "keys_in_two_partitions": self.placement.keys_moved}


def _trial_batch(topic: str, values: Sequence[bytes], now: int) -> RecordBatch:
    n = len(values)
    return RecordBatch(TP(topic, 0), list(range(n)), [now] * n, [None] * n, list(values), lambda i: [], n)
