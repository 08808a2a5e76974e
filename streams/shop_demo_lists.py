"""The shop's demo as a consumer: reads lists, measures latency and hits, follows one user."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from streams.demo_reader import DemoReader
from streams.log import Log
from streams.shop_simulator import ShopChunk
from streams.topics import BY_ITEM, INTERACTIONS, RECOMMENDATIONS

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


class ListReader(DemoReader):
    """Counts all lists and dead letters, and knows each user's last list; once `go_live`, looks into more of them.

    `sending` is called by the sender, on its thread.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(log, RECOMMENDATIONS, (INTERACTIONS, BY_ITEM))
        self._last: dict[int | str, frozenset[int | str]] = {}
        self.rungs: Counter[str] = Counter()
        #: clicks whose user had a list before, and those whose item was in it
        self.asked = self.hits = 0
        self.followed: Followed | None = None

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

    def _look_into(self, values: Sequence[bytes], now: float) -> None:
        lists = [orjson.loads(value) for value in values]
        for listed in lists:
            self._last[listed["user_id"]] = frozenset(item["item_id"] for item in listed["items"])
        if not self._live:
            return
        self._arrived((listed["event_id"] for listed in lists), now)
        for listed in lists:
            self.rungs[listed["rung"]] += 1
            followed = self.followed
            if followed is not None and followed.user == listed["user_id"]:
                followed.items, followed.rung = listed["items"], listed["rung"]
