"""The recommend pipeline's logs in lists: tasks fed by hand, batch by batch, without broker, clock or threads."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from fraud_logs import NOW as SENT
from fraud_logs import Logs, Record, batch, processed

from features.block import FloatArray
from models.slot import ModelSlot
from streams.log import TP, TopicInfo
from streams.memory import MemoryLog
from streams.pipelines.recommend import RecommendPipeline
from streams.pipelines.recommend_lists import ListRules
from streams.pipelines.recommend_stages import ShopSettings
from streams.topics import BY_ITEM, INTERACTIONS, ITEMS, RECOMMENDATIONS

MINUTE = 60_000
#: within the hour before all is sent
NOW = SENT - 60 * MINUTE


def interaction(
    i: int | str, time: int = NOW, user: Any = 1, item: Any = 1, action: str = "view", **more: Any
) -> Record:
    event = {"event_id": i, "event_time": time, "user_id": user, "item_id": item, "action": action, **more}
    return Record(orjson.dumps(event), str(user).encode())


def walk(n: int, users: int = 7, items: int = 12, seed: int = 1, end: int = NOW) -> list[Record]:
    """Events of users who go from an item to one of the two behind it, in the order of their times.

    7 s apart, the last at ``end``.
    """
    rng = np.random.default_rng(seed)
    at = rng.integers(0, items, users)
    out = []
    for i in range(n):
        user = int(rng.integers(users))
        at[user] = (at[user] + rng.integers(1, 3)) % items
        action = "purchase" if rng.random() < 0.05 else "click"
        time = end - (n - 1 - i) * 7_000
        out.append(interaction(i, time, f"u{user}", int(at[user]), action, category=int(at[user]) % 3))
    return out


@dataclass
class Ranker:
    """Stands in for a loaded model: the score of a candidate is one of its features."""

    column: int = 0

    @property
    def manifest(self) -> Any:
        return type("Manifest", (), {"label": "ranker@1"})

    @property
    def predictor(self) -> Any:
        return type("Predictor", (), {"warm": lambda self: None})()

    def score(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        return x[:, self.column], x[:, self.column]


def shop_pipeline(
    rules: ListRules | None = None,
    partitions: int = 1,
    settings: ShopSettings | None = None,
    slot: ModelSlot | None = None,
) -> RecommendPipeline:
    """A pipeline whose items come by hand."""
    pipeline = RecommendPipeline(
        MemoryLog(uuid.uuid4().hex),
        settings or ShopSettings(publish_ms=MINUTE),
        rules or ListRules(),
        slot or ModelSlot(),
        partitions,
        view_wait_s=0.0,
    )
    pipeline.infos = {i.name: TopicInfo(i.name, partitions, f"id-{i.name}") for i in pipeline.topics}
    return pipeline


class ShopFed:
    """Both stages on one partition each; ``feed`` sends events, lets the item stage read and the view follow."""

    def __init__(self, pipeline: RecommendPipeline) -> None:
        self.pipeline = pipeline
        self.logs = Logs()
        self.users, self.items = (pipeline.task(TP(topic, 0)) for topic in (INTERACTIONS, BY_ITEM))
        self._sent: dict[str, int] = defaultdict(int)

    def feed(self, records: Sequence[Record], view: bool = True) -> list[dict[str, Any]]:
        """The lists for these events."""
        before = len(self.logs.of(RECOMMENDATIONS))
        self._through(self.users, INTERACTIONS, records)
        self._through(self.items, BY_ITEM, self._unread(BY_ITEM))
        if view:
            published = self._unread(ITEMS)
            if published:
                self.pipeline.serving.apply([batch(ITEMS, published)])
        return [orjson.loads(r.value or b"") for r in self.logs.of(RECOMMENDATIONS)[before:]]

    def _through(self, task: Any, topic: str, records: Sequence[Record]) -> None:
        first = task.next_offset
        if records:
            self.logs.take(processed(task, batch(topic, records, first)), 1)

    def _unread(self, topic: str) -> list[Record]:
        records = self.logs.of(topic)[self._sent[topic] :]
        self._sent[topic] += len(records)
        return records
