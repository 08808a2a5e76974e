"""The seeded shop of the demo and the tests: users, items in categories, sessions, what is in fashion for some days.

Every day of the shop is a pure function of (seed, day), so any cut of its stream agrees with any other to the bit.
Nothing here reads a clock: the shop's first midnight is passed in. What makes it worth recommending in: users have
tastes, items have neighbours that are looked at after them, some items are loved by all, others for some days only, and
new ones come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from features.block import FloatArray, IntArray
from features.schema import ACTIONS, INTERACTIONS
from streams.errors import ConfigError
from streams.log import OutBatch
from streams.simulator import DAY_MS

__all__ = ["CATEGORIES", "Shop", "ShopChunk", "ShopDay", "shop_stream"]

CATEGORIES = ("shoes", "coats", "shirts", "jeans", "dresses", "bags", "hats", "watches", "books", "games", "lamps",
              "chairs", "tables", "rugs", "plants", "tools", "bikes", "tents", "skis", "toys")  # fmt: skip

# One random stream per (purpose, day): adding draws to one purpose never moves another.
_SHOP, _SESSIONS, _FASHION, _FAULTS = range(32, 36)

_SESSIONS_PER_USER_DAY = 0.25
_LENGTH_MEAN, _LENGTH_MAX = 5.0, 20
_EVENTS_PER_USER_DAY = _SESSIONS_PER_USER_DAY * _LENGTH_MEAN
#: no session that begins before lasts beyond midnight
_LAST_START_MS = DAY_MS - _LENGTH_MAX * 120_000
_DWELL_MS = (4_000, 115_000)
_NEIGHBOURS = 6
#: the next item is: the same again, a neighbour, one of the same category, else one of the user's taste
_AGAIN, _NEAR, _SAME_CATEGORY = 0.15, 0.70, 0.88
_TASTES = 3
#: of the items, those that are there from the first day; the others come one by one over so many days
_FIRST_SHARE, _ARRIVAL_DAYS = 0.8, 90
_FASHIONS_PER_DAY, _FASHION_DAYS, _FASHION_WEIGHT = 0.003, 3, 40.0
_VIEW, _CLICK, _CART, _PURCHASE = range(len(ACTIONS))


@dataclass(frozen=True, slots=True)
class ShopDay:
    """One day's interactions in the order of their times: columns (n,) int64, ``action`` a place in ``ACTIONS``."""

    event_id: IntArray
    event_time: IntArray
    user_id: IntArray
    session_id: IntArray
    item_id: IntArray
    action: IntArray

    def __len__(self) -> int:
        return len(self.event_id)


class Shop:
    """A shop and who comes to it, from ``start_ms`` (a UTC midnight, ms since the epoch) on.

    Events are numbered from ``first_event_id`` on. ConfigError for values that no shop can have.
    """

    def __init__(
        self, seed: int, *, start_ms: int, users: int = 20_000, items: int = 5_000, first_event_id: int = 0
    ) -> None:
        for name, value, least in (
            ("seed", seed, 0),
            ("start_ms", start_ms, 0),
            ("users", users, 1),
            ("items", items, len(CATEGORIES)),
            ("first_event_id", first_event_id, 0),
        ):
            if value < least:
                raise ConfigError(f"{name}={value}: must be at least {least}; give a larger value")
        if start_ms % DAY_MS:
            raise ConfigError(f"start_ms={start_ms}: not a UTC midnight; use simulator.midnight({start_ms})")
        self.seed, self.start_ms, self.users, self.items = seed, start_ms, users, items
        self._first_ids = [first_event_id]
        rng = self._rng(_SHOP)
        self.category = np.sort(rng.integers(0, len(CATEGORIES), items))
        self.category[: len(CATEGORIES)] = np.arange(len(CATEGORIES))  # none is empty
        self.category.sort()
        self.cents: IntArray = np.maximum(rng.lognormal(8.0, 1.0, items), 99).astype(np.int64)
        self._begin = np.searchsorted(self.category, np.arange(len(CATEGORIES) + 1))
        born = rng.integers(1, _ARRIVAL_DAYS + 1, items)
        self._born = np.where(rng.random(items) < _FIRST_SHARE, 0, born)
        self._weight = np.minimum(rng.pareto(1.2, items) + 0.05, 30.0)
        self._tastes = rng.integers(0, len(CATEGORIES), (users, _TASTES))
        low, high = self._begin[self.category], self._begin[self.category + 1]
        pick = rng.random((items, _NEIGHBOURS))
        self._neighbours = (low[:, None] + pick * (high - low)[:, None]).astype(np.int64)

    @classmethod
    def for_pace(
        cls, seed: int, *, start_ms: int, rate: float, speed_up: float, items: int = 5_000, first_event_id: int = 0
    ) -> Shop:
        """A shop with as many users as give ``rate`` interactions/s of wall time when its event time runs ``speed_up``
        times faster than the clock."""
        users = max(1, round(rate * 86_400 / (speed_up * _EVENTS_PER_USER_DAY)))
        return cls(seed, start_ms=start_ms, users=users, items=items, first_event_id=first_event_id)

    def day(self, day: int) -> ShopDay:
        """All interactions of ``day`` (0 is the first) by rising event_time; ids go on from the day before."""
        while len(self._first_ids) <= day:
            self._first_ids.append(self._first_ids[-1] + len(self._walk(len(self._first_ids) - 1)[0]))
        time, user, session, item, action = self._walk(day)
        order = np.argsort(time, kind="stable")
        first = self._first_ids[day]
        if len(self._first_ids) == day + 1:
            self._first_ids.append(first + len(order))
        return ShopDay(
            event_id=np.arange(first, first + len(order), dtype=np.int64),
            event_time=self.start_ms + day * DAY_MS + time[order],
            user_id=user[order],
            session_id=session[order],
            item_id=item[order],
            action=action[order],
        )

    def attraction(self, day: int) -> FloatArray:
        """(items,) float64: how likely each item is to be found on ``day``, 0 where it has not come yet."""
        weight = np.where(self._born <= day, self._weight, 0.0)
        for began in range(max(0, day - _FASHION_DAYS + 1), day + 1):
            rng = self._rng(_FASHION, began)
            chosen = rng.integers(0, self.items, 1 + rng.poisson(_FASHIONS_PER_DAY * self.items))
            weight[chosen] += np.where(self._born[chosen] <= day, _FASHION_WEIGHT, 0.0)
        return weight

    def _walk(self, day: int) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
        """The sessions of a day: time in the day, user, session, item, action, session after session."""
        rng = self._rng(_SESSIONS, day)
        sums = np.concatenate([[0.0], np.cumsum(self.attraction(day))])
        n = int(rng.poisson(self.users * _SESSIONS_PER_USER_DAY))
        user = rng.integers(0, self.users, n)
        time = rng.integers(0, _LAST_START_MS, n)
        length = np.minimum(rng.geometric(1 / _LENGTH_MEAN, n), _LENGTH_MAX)
        item = self._found(rng, sums, self._taste(rng, user))
        action = np.where(rng.random(n) < 0.7, _VIEW, _CLICK)
        session = (self.start_ms // DAY_MS + day) * 10_000_000 + np.arange(n)
        steps = [(time, user, session, item, action)]
        for step in range(1, int(length.max(initial=1))):
            go = length > step
            user, session, item, time = user[go], session[go], item[go], time[go]
            length = length[go]
            which = rng.random(len(user))
            near = self._neighbours[item, rng.integers(0, _NEIGHBOURS, len(user))]
            near = np.where(self._born[near] <= day, near, item)
            same = self._found(rng, sums, self.category[item])
            other = self._found(rng, sums, self._taste(rng, user))
            again = which < _AGAIN
            later = np.where(which < _NEAR, near, np.where(which < _SAME_CATEGORY, same, other))
            bought = np.where(rng.random(len(user)) < 0.6, _CART, _PURCHASE)
            action = np.where(again, bought, np.where(rng.random(len(user)) < 0.6, _VIEW, _CLICK))
            item = np.where(again, item, later)
            time = time + rng.integers(*_DWELL_MS, len(user))
            steps.append((time, user, session, item, action))
        columns = [np.concatenate(column) for column in zip(*steps, strict=True)]
        return columns[0], columns[1], columns[2], columns[3], columns[4]

    def _taste(self, rng: np.random.Generator, user: IntArray) -> IntArray:
        taste: IntArray = self._tastes[user, rng.integers(0, _TASTES, len(user))]
        return taste

    def _found(self, rng: np.random.Generator, sums: FloatArray, category: IntArray) -> IntArray:
        """An item of each category, by attraction; ``sums`` (items + 1,) are those of the items before."""
        low, high = sums[self._begin[category]], sums[self._begin[category + 1]]
        place = np.searchsorted(sums, low + rng.random(len(category)) * (high - low), side="right") - 1
        found: IntArray = np.clip(place, self._begin[category], self._begin[category + 1] - 1)
        return found

    def _rng(self, purpose: int, day: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, purpose, day])))

    def values(self, rows: ShopDay) -> list[bytes]:
        """The value of a record of `interactions` for each row."""
        form = (
            b'{"event_id":%d,"event_time":%d,"user_id":%d,"item_id":%d,"action":"%s","session_id":%d,"category":"%s",'
            b'"price":%d.%02d}'
        )
        actions, categories = [a.encode() for a in ACTIONS], [c.encode() for c in CATEGORIES]
        columns = (rows.event_id, rows.event_time, rows.user_id, rows.item_id, rows.action, rows.session_id)
        return [
            form % (event, time, user, item, actions[action], session, categories[category], cents // 100, cents % 100)
            for event, time, user, item, action, session, category, cents in zip(
                *(column.tolist() for column in columns),
                self.category[rows.item_id].tolist(),
                self.cents[rows.item_id].tolist(),
                strict=True,
            )
        ]


@dataclass(frozen=True, slots=True)
class ShopChunk:
    """Records to send once ``due_s`` seconds have gone since the start of the stream.

    ``send_time`` is the shop's own time at the last of them, ms; of the records so many are ``malformed``, and so many
    ``duplicates`` of one sent before.
    """

    due_s: float
    send_time: int
    keys: list[bytes]
    values: list[bytes]
    malformed: int = 0
    duplicates: int = 0

    def batches(self) -> list[OutBatch]:
        """The records as a batch of `interactions`."""
        return [OutBatch(INTERACTIONS.topic, self.values, self.keys)]


def shop_stream(
    shop: Shop, first_day: int, *, speed_up: float, chunk_s: float = 0.05, malformed: float = 0.0, repeated: float = 0.0
) -> Iterator[ShopChunk]:
    """The shop's interactions from ``first_day`` on, without end, its time running ``speed_up`` times faster.

    ``malformed`` and ``repeated`` are shares of rows beside which an unreadable record, or the same once more, is sent.
    The records do not depend on ``chunk_s``.
    """
    chunk_ms = max(1, round(chunk_s * 1000 * speed_up))
    begin_ms = shop.start_ms + first_day * DAY_MS
    for day in count(first_day):
        rows = shop.day(day)
        values = shop.values(rows)
        faults = shop._rng(_FAULTS, day).random(len(rows))
        place = (rows.event_time - begin_ms) // chunk_ms
        users = rows.user_id.tolist()
        starts = np.flatnonzero(np.diff(place, prepend=-1)).tolist()
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            keys, sent = [], []
            bad = again = 0
            for i in range(start, stop):
                copies = [values[i]]
                if faults[i] < malformed:
                    bad += 1
                    copies.append(values[i][:-7])
                elif faults[i] < malformed + repeated:
                    again += 1
                    copies.append(values[i])
                keys += [b"%d" % users[i]] * len(copies)
                sent += copies
            due_s = float(place[start] + 1) * chunk_ms / 1000 / speed_up
            yield ShopChunk(due_s, int(rows.event_time[stop - 1]), keys, sent, bad, again)
