"""The recommend pipeline: interactions in, a list after each of them out.

interactions ──► user ──► interactions.by-item ──► item ──► items (compacted)
                  │                                           │ read by every worker
                  └──────────► candidates ─► rank ◄───────────┘
                                    └──► recommendations ──► monitor ──► source-weights (read by every worker)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from features import schema, shopping
from features.plan import FORMAT
from models.slot import ModelSlot
from streams.checkpoints import StateOf
from streams.codec import Decoder
from streams.item_feed import TopicFeed
from streams.log import TP, Log, OutBatch, RecordBatch, TopicInfo
from streams.memory import MemoryLog
from streams.pipelines.recommend_lists import ListRules
from streams.pipelines.recommend_serving import Serving
from streams.pipelines.recommend_stages import ItemStage, ShopSettings, UserStage
from streams.pipelines.recommend_tasks import ItemTask, UserTask
from streams.pipelines.recommend_withdrawn import notes
from streams.quality import by_topic
from streams.shuffle import Source
from streams.stage import Meters
from streams.topics import (
    BY_ITEM,
    DEAD_LETTERS,
    INTERACTIONS,
    ITEMS,
    MODEL_EVENTS,
    RECOMMENDATIONS,
    SOURCE_WEIGHTS,
    topic_infos,
)
from streams.worker import Task

__all__ = ["RecommendPipeline"]

#: version of what `state` of the tasks gives, and of what `process` makes of a log: to be raised when either changes
_STATE_FORMAT = 3

_STAGES = {INTERACTIONS: "user", BY_ITEM: "item"}
_TOPICS = (INTERACTIONS, BY_ITEM, ITEMS, SOURCE_WEIGHTS, RECOMMENDATIONS, DEAD_LETTERS, MODEL_EVENTS)


@dataclass(slots=True)
class RecommendPipeline:
    """Two stages and the view of all items; ``log`` is where the items, and the weights of sources if they are used,
    are read, from `bind` to `close`."""

    log: Log
    settings: ShopSettings
    rules: ListRules
    slot: ModelSlot
    partitions: int = 4
    log_features: bool = True
    source_weights: bool = True
    #: how long a worker that starts waits for the items that are there, once
    view_wait_s: float = 10.0
    meters: Meters = field(default_factory=Meters)
    infos: Mapping[str, TopicInfo] = field(default_factory=dict)
    interactions: Decoder = field(init=False)
    serving: Serving = field(init=False)
    feed: TopicFeed = field(init=False)
    weights_feed: TopicFeed = field(init=False)
    _waited: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.interactions = Decoder(schema.INTERACTIONS)
        self.feed = TopicFeed(self.log, ITEMS)
        self.weights_feed = TopicFeed(self.log, SOURCE_WEIGHTS)
        self.serving = Serving(self.rules, self._take, self.meters, self.log_features)

    @property
    def topics(self) -> Sequence[TopicInfo]:
        return topic_infos(_TOPICS, self.partitions)

    @property
    def inputs(self) -> Sequence[str]:
        return (INTERACTIONS, BY_ITEM)

    def bind(self, topics: Mapping[str, TopicInfo]) -> None:
        """Begins to read the items and the weights, too."""
        self.infos = topics
        self.feed.start()
        if self.source_weights:
            self.weights_feed.start()

    def close(self) -> None:
        """Ends reading them."""
        self.feed.close()
        self.weights_feed.close()

    def is_stateful(self, topic: str) -> bool:
        return True

    def state_of(self, topic: str) -> StateOf:
        """What the state of this topic's tasks is of; see `fingerprint`."""
        return StateOf(
            _STAGES[topic], self.infos[topic].topic_id, self.fingerprint(topic), "shopping", shopping.SCHEMA_HASH
        )

    def task(self, tp: TP) -> Task:
        """The first task of interactions comes once the items that were there at the start are known, or are not in
        time."""
        if tp.topic == BY_ITEM:
            return ItemTask(self, tp)
        if not self._waited:
            self.serving.catch_up(self._caught_up, self.view_wait_s)
            self._waited = True
        return UserTask(self, tp)

    def _take(self) -> list[RecordBatch]:
        return [*self.feed.take(), *self.weights_feed.take()]

    def _caught_up(self) -> bool:
        return self.feed.caught_up and (self.weights_feed.caught_up or not self.source_weights)

    def fingerprint(self, topic: str) -> str:
        """(64 hex digits) What the saved state of a task on this topic means besides its log, as in the fraud pipeline:
        the settings of the stage that reads it, and how many partitions the topics have."""
        settings = self.settings
        meaning: dict[str, Any] = {"publish_ms": settings.publish_ms, "items": ItemStage(settings).identity}
        if topic == INTERACTIONS:
            meaning = {
                "users": UserStage(settings).identity,
                "schema": self.interactions.schema.schema_hash,
                "allowed_lateness_ms": settings.allowed_lateness_ms,
                "dedupe_ms": settings.dedupe_ms,
                "dedupe_entries": settings.dedupe_entries,
            }
        meaning["partitions"] = [self.infos[t].partitions for t in _STAGES]
        text = orjson.dumps([_STATE_FORMAT, FORMAT, topic, meaning], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(text).hexdigest()

    def use_ends(self, confirmed: Callable[[TP, float], bool]) -> None:
        """No decision needs to know where a log ends."""

    def wake(self, parts: Sequence[tuple[Any, RecordBatch]], tasks: Callable[[], Sequence[Any]]) -> list[OutBatch]:
        """Nothing: no source waits for another."""
        return []

    def follow_items(self) -> list[OutBatch]:
        """Reads some of what has come of the items; what is to be told of those that were withdrawn."""
        self.serving.refresh()
        if not self.feed.caught_up:  # what comes later may say that it was told, or taken back
            return []
        return notes(self.serving.unnoted(), self.infos[ITEMS].partitions)

    def process(self, parts: Sequence[tuple[Any, RecordBatch]]) -> list[OutBatch]:
        outputs: list[OutBatch] = type(parts[0][0]).process_run(self, parts)
        return outputs

    def source(self, tp: TP) -> Source:
        """Who the rows of this partition are from."""
        return Source(tp.topic, self.infos[tp.topic].topic_id, tp.partition)

    def warm(self) -> None:
        """A tiny run through both stages, with a pipeline of its own: compiles every kernel."""
        trial = RecommendPipeline(
            MemoryLog(), self.settings, self.rules, self.slot, 1, self.log_features, view_wait_s=0.0
        )  # fmt: skip
        trial.infos = {name: TopicInfo(name, 1, "warm") for name in _TOPICS}
        users, items = trial.task(TP(INTERACTIONS, 0)), trial.task(TP(BY_ITEM, 0))
        now = 1_600_000_000_000
        for n, offset in ((1, 0), (9, 1)):
            events = [
                orjson.dumps({"event_id": offset + i, "event_time": now + offset * self.settings.publish_ms,
                              "user_id": 1, "item_id": i, "action": "view"})
                for i in range(n)
            ]  # fmt: skip
            outputs = trial.process([(users, _trial_batch(INTERACTIONS, None, events, offset, now))])
            rows = [value for out in outputs if out.topic == BY_ITEM for value in out.values]
            for out in trial.process([(items, _trial_batch(BY_ITEM, None, rows, offset, now))]):
                trial.serving.apply([_trial_batch(ITEMS, out.keys, out.values, 0, now)])

    def quality(self) -> dict[str, dict[str, dict[str, int]]]:
        """By topic and field, how many values were missing, out of range and so on; topics without are left out."""
        return by_topic({INTERACTIONS: self.interactions.quality})

    def figures(self) -> dict[str, int]:
        """What this worker has done since its start; once all is out, received = recommended + dead_letters +
        duplicates, and the lists by rung add up to recommended."""
        counts = self.meters.counts
        names = ["received", "recommended", "dead_letters", "duplicates", "late"]
        names += ["published", "replayed", "resent_rows"]
        rungs = {name: counts[name] for name in sorted(counts) if name.startswith("rung_")}
        return {name: counts[name] for name in names} | rungs | {"items_known": self.serving.known}


def _trial_batch(
    topic: str, keys: Sequence[bytes | None] | None, values: Sequence[bytes | None], first: int, now: int
) -> RecordBatch:
    n = len(values)
    offsets, of = list(range(first, first + n)), list(keys or [None] * n)
    return RecordBatch(TP(topic, 0), offsets, [now] * n, of, list(values), lambda i: [], first + n)
