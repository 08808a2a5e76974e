"""The shop's demo as a consumer: reads lists and dead letters, measures latency and hits, follows one user."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from streams.latency import LatencyDigest
from streams.log import TP, Log, LogConsumer, RecordBatch
from streams.shop_simulator import ShopChunk
from streams.topics import DEAD_LETTERS, RECOMMENDATIONS

__all__ = ["Followed", "ListReader"]

#: a followed user who does nothing for so long has gone
_GONE_S = 4.0
_CLICKS_SHOWN = 6


@dataclass(slots=True)
class Followed:
    """One user's last steps, newest last, each with whether the list before had it, and the list now."""

    user: int | str
    steps: deque[tuple[str, bool]] = field(default_factory=lambda: deque(maxlen=_CLICKS_SHOWN))
    items: Sequence[Mapping[str, Any]] = ()
    rung: str = ""
    seen_at: float = 0.0


class ListReader(threading.Thread):
    """Counts all lists and dead letters from the start of the log; once `go_live`, looks into the lists as well.

    `sending` is called by the sender, all else happens on this thread; counters may be read by any other.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(name="demo-lists", daemon=True)
        self._log = log
        self._closing = threading.Event()
        self._grown = threading.Condition()
        self._live = False
        self._sent_at: dict[int, float] = {}
        self._last: dict[int | str, frozenset[int | str]] = {}
        self.error: Exception | None = None
        self.subscribed = threading.Event()
        self.lists = self.dead_letters = self.history = 0
        self.latency = LatencyDigest()
        self.rungs: Counter[str] = Counter()
        #: clicks whose user had a list before, and those whose item was in it
        self.asked = self.hits = 0
        self.followed: Followed | None = None

    def go_live(self) -> None:
        """All lists so far were of the history."""
        self.history = self.lists
        self._live = True

    def sending(self, chunk: ShopChunk) -> None:
        """Notes when these events are sent, and whether their users' lists had what they chose."""
        now = time.perf_counter()
        for value in dict.fromkeys(chunk.values):
            try:
                event = orjson.loads(value)
            except orjson.JSONDecodeError:
                continue
            self._sent_at[event["event_id"]] = now
            last = self._last.get(event["user_id"])
            if last is not None:
                self.asked += 1
                self.hits += event["item_id"] in last
            self._follow(event, last is not None and event["item_id"] in last, now)

    def _follow(self, event: Mapping[str, Any], hit: bool, now: float) -> None:
        followed = self.followed
        if followed is None or now - followed.seen_at > _GONE_S:
            self.followed = followed = Followed(event["user_id"], seen_at=now)
        if followed.user == event["user_id"]:
            followed.seen_at = now
            followed.steps.append((f"{event['action']} {event['category']} {event['item_id']}", hit))

    def wait_for(self, lists: int, timeout_s: float) -> bool:
        """Waits until there are so many lists."""
        with self._grown:
            return self._grown.wait_for(lambda: self.lists >= lists, timeout_s)

    def close(self) -> None:
        """Leaves the log."""
        self._closing.set()
        if self.is_alive():
            self.join(10.0)

    def run(self) -> None:
        try:
            consumer = self._log.consumer(f"headrace-demo-{uuid.uuid4().hex}")
            consumer.subscribe([RECOMMENDATIONS, DEAD_LETTERS], _FromEarliest(consumer, self.subscribed))
            try:
                while not self._closing.is_set():
                    for batch in consumer.poll(0.1, 5_000):
                        self._take(batch)
            finally:
                consumer.close()
        except Exception as error:  # noqa: BLE001 - reported by the demo, which looks at it all the time
            self.error = error

    def _take(self, batch: RecordBatch) -> None:
        now = time.perf_counter()
        if batch.tp.topic == DEAD_LETTERS:
            self.dead_letters += len(batch)
            return
        for value in batch.values:
            listed = orjson.loads(value or b"")
            self._last[listed["user_id"]] = frozenset(item["item_id"] for item in listed["items"])
            if not self._live:
                continue
            self.rungs[listed["rung"]] += 1
            sent_at = self._sent_at.pop(listed["event_id"], None)
            if sent_at is not None:
                self.latency.add(np.array([1000 * (now - sent_at)]))
            followed = self.followed
            if followed is not None and followed.user == listed["user_id"]:
                followed.items, followed.rung = listed["items"], listed["rung"]
        with self._grown:
            self.lists += len(batch)
            self._grown.notify_all()


class _FromEarliest:
    def __init__(self, consumer: LogConsumer, assigned: threading.Event) -> None:
        self._consumer, self._assigned = consumer, assigned

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        starts = {tp: self._consumer.offset_range(tp)[0] for tp in partitions}
        self._assigned.set()
        return starts

    def on_revoke(self, partitions: list[TP]) -> None:
        """Nothing to give up."""

    def on_lost(self, partitions: list[TP]) -> None:
        """Nothing to give up."""
