"""Recommendations in plain Python: lists of events per user and item, every number summed from them when asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

NEVER = -(2**62)
LAGS = 3
CLASSES = 2 * LAGS
HOUR_MS = 3_600_000
HALF_LIVES_MS = (HOUR_MS, 24 * HOUR_MS, 168 * HOUR_MS, 168 * HOUR_MS, 168 * HOUR_MS)


@dataclass
class User:
    events: list[tuple[Any, int, int]] = field(default_factory=list)  # item, time, action; newest last
    session: list[Any] = field(default_factory=list)
    began: tuple[str, Any] = ("", None)
    newest: int = NEVER
    quick: bool = False


class NaiveUsers:
    """Row by row, as the docstring of features.shopping_users.UserState says."""

    def __init__(self, last: int, gap_ms: int, horizon_ms: int, lateness_ms: int) -> None:
        self.last, self.gap_ms, self.horizon_ms, self.lateness_ms = last, gap_ms, horizon_ms, lateness_ms
        self.stream, self.users = NEVER, dict[Any, User]()

    def row(self, name: Any, item: Any, time: int, action: int, session: Any) -> tuple[list[Any], int, list[Any]]:
        """(the last events, newest first; clicks in the session; what the items are told)."""
        user, late = self.users.get(name, User()), time < self.stream - self.lateness_ms
        if user.newest <= self.stream - self.horizon_ms:
            user = User()
        self.stream = max(self.stream, time)
        told: list[Any] = []
        if not late:
            self.users[name] = user
            fresh = not user.events or (user.began[1] != session if session is not None else self._gap(user, time))
            if fresh:
                user.began = ("given", session) if session is not None else ("time", time)
            if fresh and (user.quick or not user.events):
                user.session, user.quick = [], False
            user.quick = user.quick or not fresh
            told = [(item, 0, None)]
            for lag, before in enumerate(user.session[: -LAGS - 1 : -1][: self.last - 1], 1):
                told += [(item, -lag, before), (before, lag, item)]
            user.session.append(item)
            user.events.append((item, time, action))
            user.newest = max(user.newest, time)
        return user.events[: -self.last - 1 : -1], len(user.session), told

    def _gap(self, user: User, time: int) -> bool:
        return time - user.newest > self.gap_ms


@dataclass
class Item:
    own: list[tuple[int, int, int]] = field(default_factory=list)  # time, action, session
    near: list[tuple[Any, list[tuple[int, int]]]] = field(default_factory=list)  # other, [(time, class)], by place
    pairs: list[tuple[int, int]] = field(default_factory=list)
    category: Any = None
    price: float = math.nan
    touched: int = NEVER


class NaiveItems:
    """Row by row, as the docstring of features.shopping_items.ItemState says."""

    def __init__(self, neighbours: int, visits: int, half_life_ms: int, horizon_ms: int) -> None:
        self.neighbours, self.visits, self.half_life_ms, self.horizon_ms = neighbours, visits, half_life_ms, horizon_ms
        self.stream, self.items = NEVER, dict[Any, Item]()

    def row(
        self,
        name: Any,
        time: int,
        action: int,
        lag: int,
        other: Any,
        session: int,
        category: Any = None,
        price: float = math.nan,
    ) -> None:
        item = self.items.get(name, Item())
        if item.touched <= self.stream - self.horizon_ms:
            item = Item()
        self.items[name] = item
        self.stream = max(self.stream, time)
        item.touched = max(item.touched, time)
        if lag == 0:
            item.own.append((time, action, session))
            item.category = item.category if category is None else category
            item.price = item.price if math.isnan(price) else price
            return
        kind = lag - 1 if lag > 0 else LAGS - lag - 1
        item.pairs.append((time, kind))
        for held, events in item.near:
            if held == other:
                events.append((time, kind))
                return
        if len(item.near) < self.neighbours:
            item.near.append((other, [(time, kind)]))
            return
        masses = [sum(self._strengths(events, self.stream)) for _, events in item.near]
        item.near[masses.index(min(masses))] = (other, [(time, kind)])

    def _strengths(self, events: list[tuple[int, int]], now: int) -> list[float]:
        out = [0.0] * CLASSES
        for time, kind in events:
            out[kind] += 2.0 ** ((time - now) / self.half_life_ms)
        return out

    def record(self, name: Any) -> Record:
        """What is published of the item."""
        item = self.items[name]
        near = [(other, self._strengths(events, item.touched)) for other, events in item.near]
        newest = max((time for time, _, _ in item.own), default=NEVER)
        counts = [0.0] * 5
        for time, action, _ in item.own:
            for c, half_life in enumerate(HALF_LIVES_MS):
                if c < 3 or action == c - 1:
                    counts[c] += 2.0 ** ((time - newest) / half_life)
        return Record(
            near=sorted(near, key=lambda pair: -sum(pair[1])),
            totals=self._strengths(item.pairs, item.touched),
            counts=counts,
            visits=[(session, time) for time, _, session in item.own][-self.visits :],
            seen=len(item.own),
            first=min((time for time, _, _ in item.own), default=NEVER),
            newest=newest,
            touched=item.touched,
            category=item.category,
            price=item.price,
        )

    def live(self) -> list[Any]:
        return [name for name, item in self.items.items() if item.touched > self.stream - self.horizon_ms]


@dataclass
class Record:
    near: list[tuple[Any, list[float]]]
    totals: list[float]
    counts: list[float]
    visits: list[tuple[int, int]]
    seen: int
    first: int
    newest: int
    touched: int
    category: Any
    price: float

    def share(self, events: list[float], kind: int) -> float:
        return events[kind] / self.totals[kind] if self.totals[kind] > 0 else 0.0

    def looks(self, count: int, now: int) -> float:
        return self.counts[count] * 2.0 ** (-max(now - self.newest, 0) / HALF_LIVES_MS[count])


class NaiveView:
    """The features of one context and all candidates, summed anew from the records."""

    def __init__(self, records: dict[Any, Record]) -> None:
        self.records = records
        visits = sorted((time, session, name) for name, r in records.items() for session, time in r.visits)
        self.sessions: dict[int, list[Any]] = {}
        self.newest: dict[int, int] = {}
        self.order: dict[Any, list[int]] = {}
        for time, session, name in visits:
            items = self.sessions.setdefault(session, [])
            self.newest[session] = time
            if name not in items and len(items) < 12:
                items.append(name)
                self.order.setdefault(name, []).append(session)

    def said(
        self, events: list[tuple[Any, int, int]], length: int, session: int, now: int
    ) -> dict[Any, dict[str, float]]:
        """What the neighbours, paths and sessions say of each candidate."""
        out: dict[Any, dict[str, float]] = {}

        def add(name: Any, **values: float) -> None:
            said = out.setdefault(name, {})
            for key, value in values.items():
                said[key] = said.get(key, 0.0) + value

        mine = [item for item, _, _ in events]
        for item in mine:
            add(item)
        context = list(dict.fromkeys(mine[:length]))[:8]
        for place, name in enumerate(context):
            record = self.records[name]
            for other, events_ in record.near:
                add(other, covisit=0.7**place * sum(events_) / sum(record.totals), near=1)
                if place == 0:
                    add(other, mass=sum(events_), **{f"class{c}": record.share(events_, c) for c in range(CLASSES)})
                if place == 1:
                    before = sum(record.totals[LAGS:])
                    back = sum(events_[LAGS:]) / before if before > 0 else 0.0
                    add(other, second1=record.share(events_, 0), second2=record.share(events_, 1), back=back)
                if place == 2:
                    add(other, third=record.share(events_, 2))
        if context:
            self._paths(context[0], add)
        self._sessions(context, mine, session, now, add)
        return out

    def _paths(self, last: Any, add: Any) -> None:
        record = self.records[last]
        for between, first in record.near[:8]:
            if between == last or between not in self.records:
                continue
            second = self.records[between]
            for other, events in second.near[:24]:
                add(other, path=sum(first) / sum(record.totals) * sum(events) / sum(second.totals))

    def _sessions(self, context: list[Any], mine: list[Any], session: int, now: int, add: Any) -> None:
        alike: dict[int, float] = {}
        match: dict[int, Any] = {}
        for place, name in enumerate(context):
            for found in self.order.get(name, [])[-64:]:
                if found != session:
                    alike[found] = alike.get(found, 0.0) + 0.7**place
                    match.setdefault(found, name)
        for found, similarity in alike.items():
            items = self.sessions[found]
            at = items.index(match[found])
            age = max(now - self.newest[found], 0)
            weight = similarity / math.sqrt(len(items)) * 2.0 ** (-age / (168 * HOUR_MS))
            for i, other in enumerate(items):
                if i != at and other not in mine:
                    near = weight / abs(i - at)
                    add(other, knn=near, knn_next=near if i > at else 0.0, knn_sessions=1)
