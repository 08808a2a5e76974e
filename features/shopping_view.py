"""The read side: what all item stages published, joined; candidates and features for contexts."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.block import FloatArray, Ids, IntArray
from features.kernel import own
from features.shopping_items import HALF_LIVES_MS, ItemRecords
from features.shopping_kernels import CLASSES, COUNTS
from features.shopping_known import (
    CATEGORY,
    COUNT,
    FIRST,
    HELD,
    NEWEST,
    PUBLISHED,
    SEEN,
    TOUCHED,
    VIEW_WORDS,
    Known,
    Popular,
    Scratch,
    Served,
    Sessions,
    add_visits,
)
from features.shopping_said import POSITIONS, SAID
from features.shopping_serve import FEATURES, serve
from features.shopping_state import DAY_MS, Columns, Names, codes_of, growing, keys_of, ragged
from features.shopping_users import Contexts
from features.state import NO_TIME, KeySlots, power_of_two

__all__ = ["Candidates", "ItemView"]

#: candidates of one context before the best are taken
_CANDIDATES_MAX = 4096
_SESSIONS_FOUND_MAX = 1024
_SESSION_ITEMS = 12
_TRENDING = 20
_OF_A_CATEGORY = 20
_POPULAR = 1000
_CROWDED_MIN = 8192


@dataclass(frozen=True, slots=True)
class Candidates:
    """Of each row asked for the candidates ``begin[i]:begin[i + 1]``, best ``prior`` first, with their features.

    ``numbers`` (m,) are the view's own, for `ItemView.ids`; ``source`` (m,) int8 into `SOURCES`; ``x`` (m, d).
    """

    begin: IntArray
    numbers: IntArray
    source: npt.NDArray[np.int8]
    prior: FloatArray
    x: FloatArray


class ItemView:
    """All items' knowledge for reading; not safe for two threads at once.

    ``neighbours`` and ``visits`` are read of each item's record, ``sessions`` (a power of two) are kept in all. Memory:
    ``28 * neighbours + 8 * visits + 186`` bytes per item and 160 per session, and up to a third more: 1 M items and
    2**20 sessions take 2.7 to 3.6 GB.
    An item that nobody has touched for ``horizon_ms``, which the item stage has forgotten, is not recommended any more
    once `refresh` has found that; its memory is for others as soon as it is in no session and nobody's neighbour, so
    that at most twice the items needed are held.
    """

    def __init__(
        self, *, neighbours: int = 64, visits: int = 64, sessions: int = 2**17, horizon_ms: int = 60 * DAY_MS
    ) -> None:
        if sessions != power_of_two(sessions) or neighbours < 1 or visits < 1:
            raise ValueError(
                f"neighbours is {neighbours}, visits {visits}, sessions {sessions}: give 1 or more, and a power of two"
            )
        self.neighbours, self.visits, self.horizon_ms = neighbours, visits, horizon_ms
        self._slots = KeySlots()
        self._names = Names()
        columns: Columns = {
            "others": ((neighbours,), np.int32),
            "strengths": ((neighbours, CLASSES), np.float32),
            "totals": ((CLASSES,), np.float32),
            "counts": ((COUNTS,), np.float32),
            "price": ((), np.float64),
            "recent": ((visits,), np.int64),
            "heads": ((VIEW_WORDS,), np.int64),
            "mark": ((), np.int64),
            "codes": ((), np.uint64),
        }
        self._known = growing(columns)
        self._sessions = Sessions(
            np.zeros((2 * sessions, 4), np.uint64),
            np.zeros((sessions, 3), np.int64),
            np.zeros((sessions, _SESSION_ITEMS), np.int32),
            np.zeros(1, np.int64),
        )
        self._touched, self._similarity = np.zeros(sessions, np.int64), np.zeros(sessions)
        self._matched = np.zeros(sessions, np.int64)
        self._order, self._numbers = np.zeros(_SESSIONS_FOUND_MAX, np.int64), np.zeros(_CANDIDATES_MAX, np.int64)
        self._said, self._stamp = np.zeros((_CANDIDATES_MAX, SAID)), np.ones(2, np.int64)
        self._context, self._best, self._prior = np.zeros(POSITIONS, np.int64), np.zeros(4), np.zeros(1)
        self._popular = Popular(*(np.zeros(n, np.int64) for n in (0, 0, 1, 0)))
        self._looked_at: IntArray = np.zeros(0, np.int64)
        self._published = 0
        #: items, with and without a record, from which on those that nobody needs are looked for
        self._crowded = _CROWDED_MIN
        self._grow()

    def __len__(self) -> int:
        """Items with a record."""
        return self._published

    @property
    def nbytes(self) -> int:
        """Bytes of memory reserved, texts of ids not counted."""
        return (
            self._slots.nbytes
            + sum(part.array.nbytes for part in self._known.values())
            + sum(part.nbytes for part in self._sessions)
        )

    def copy(self) -> ItemView:
        """A view that holds what this one holds now, and goes its own way."""
        sessions = len(self._sessions.heads)
        other = ItemView(neighbours=self.neighbours, visits=self.visits, sessions=sessions, horizon_ms=self.horizon_ms)
        other._slots, other._crowded = deepcopy(self._slots), self._crowded
        other._grow()
        other._names = Names(self._names.by_code)
        other._popular, other._looked_at, other._published = self._popular, self._looked_at, self._published
        for name, part in self._known.items():
            if name != "mark":
                other._known[name].array[:] = part.array
        table, heads, items, following = self._sessions
        other._sessions = Sessions(table.copy(), heads.copy(), items.copy(), following.copy())
        return other

    def ids(self, numbers: IntArray) -> Ids:
        """The ids of items, in the order of ``numbers``."""
        return self._names.ids(self._known["codes"].array[numbers])

    def published(self) -> IntArray:
        """Numbers of all items with a record, ascending."""
        return np.flatnonzero(self._known["heads"].array[:, PUBLISHED])

    def popular(self, n: int) -> IntArray:
        """Numbers of at most ``n`` items, and 1,000, those looked at most within weeks first, as `refresh` found them:
        for who is not known at all."""
        return self._looked_at[:n]

    def categories(self, numbers: IntArray) -> IntArray:
        """(n,) codes of the items' categories, 0 where none is known."""
        codes: IntArray = self._known["heads"].array[numbers, CATEGORY]
        return codes

    def numbers_of(self, codes: npt.NDArray[np.uint64]) -> IntArray:
        """(n,) the items' numbers, new ones where they have none yet."""
        numbers, _ = self._slots.assign(keys_of(codes), np.zeros(len(codes), np.int64), 2**62)
        self._grow()
        self._known["codes"].array[numbers] = codes
        return numbers

    def withdraw(self, ids: Ids) -> None:
        """These items are not recommended any more, until a record of theirs is applied."""
        table = self._slots.table
        gone = table[(table[:, 2] != 0) & np.isin(table[:, 1], codes_of(ids)), 2].view(np.int64) - 1
        heads = self._known["heads"].array
        self._published -= int(np.count_nonzero(heads[gone, PUBLISHED]))
        heads[gone, PUBLISHED] = 0
        trending, categories, begin, of_categories = self._popular
        there = ~np.isin(of_categories, gone)
        begin = np.append(0, np.cumsum(there))[begin]
        self._popular = Popular(trending[~np.isin(trending, gone)], categories, begin, of_categories[there])
        self._looked_at = self._looked_at[~np.isin(self._looked_at, gone)]

    def apply(self, records: ItemRecords) -> None:
        """Takes the records of items, each once; one older than what is known of its item changes nothing."""
        numbers = self.numbers_of(self._names.learn(records.ids))
        of = {name: part.array for name, part in self._known.items()}
        heads = of["heads"]
        fresh = (heads[numbers, PUBLISHED] == 0) | (records.heads[:, 3] >= heads[numbers, TOUCHED])
        at = numbers[fresh]
        self._add_visits(records, numbers, fresh)
        others = self.numbers_of(records.others)
        of = {name: part.array for name, part in self._known.items()}
        heads = of["heads"]
        held = np.diff(records.others_begin)
        row, place = ragged(held)
        use = fresh[row] & (place < self.neighbours)
        of["others"][numbers[row[use]], place[use]] = others[use]
        of["strengths"][numbers[row[use]], place[use]] = records.strengths[use]
        heads[at, HELD] = np.minimum(held[fresh], self.neighbours)
        heads[at, SEEN] = records.heads[fresh, 0]
        heads[at, FIRST], heads[at, NEWEST] = records.heads[fresh, 1], records.heads[fresh, 2]
        heads[at, TOUCHED], heads[at, CATEGORY] = records.heads[fresh, 3], records.heads[fresh, 4]
        self._published += int(np.count_nonzero(heads[at, PUBLISHED] == 0))
        heads[at, PUBLISHED] = 1
        of["totals"][at], of["counts"][at] = records.totals[fresh], records.counts[fresh]
        of["price"][at] = records.price[fresh]

    def _add_visits(self, records: ItemRecords, numbers: IntArray, fresh: npt.NDArray[np.bool_]) -> None:
        """Those of the visits that were not there in the item's record before."""
        heads = self._known["heads"].array
        seen = heads[numbers, SEEN]
        # the stage had forgotten the item since, and counts anew: all its visits are
        anew = (records.heads[:, 0] < seen) & (records.heads[:, 3] > heads[numbers, TOUCHED])
        new = np.minimum(records.heads[:, 0] - np.where(anew, 0, seen), np.diff(records.visits_begin))
        new = np.where(fresh, np.maximum(new, 0), 0)
        row, nth = ragged(new)
        at = records.visits_begin[1:][row] - new[row] + nth
        visits = records.visits[at]
        order = np.lexsort((numbers[row], visits[:, 0], visits[:, 1]))
        codes, times = visits[order, 0].view(np.uint64), visits[order, 1]
        add_visits(self._view(), self._sessions, numbers[row[order]], own(codes, np.uint64), own(times, np.int64))

    @property
    def trending(self) -> IntArray:
        """Numbers of the items looked at most lately, as `refresh` found them: of the day first, then of the hour."""
        return self._popular.trending

    def refresh(self, now_ms: int) -> None:
        """Finds anew what is looked at most within the hour, the day and the weeks before ``now_ms``, and in each
        category; gives up what nobody has touched for too long."""
        heads, numbers = self._known["heads"].array, self.published()
        stale = heads[numbers, TOUCHED] <= now_ms - self.horizon_ms
        heads[numbers[stale], PUBLISHED] = 0
        numbers = numbers[~stale]
        self._published = len(numbers)
        if len(self._slots) >= self._crowded:
            self._forget_dead(numbers)
        of = {name: self._known[name].array[numbers] for name in ("heads", "counts")}
        age = np.maximum(now_ms - of["heads"][:, NEWEST], 0)[:, None]
        looks = of["counts"][:, :3] * 2.0 ** (-age / np.array(HALF_LIVES_MS[:3]))
        self._looked_at = numbers[_largest(looks[:, 2], _POPULAR)]
        hour, day = (numbers[_largest(looks[:, c], _TRENDING)] for c in (0, 1))
        trending = np.concatenate([day, hour[~np.isin(hour, day)]])
        categories = of["heads"][:, CATEGORY]
        there = np.flatnonzero(categories)
        order = there[np.lexsort((-looks[there, 1], categories[there]))]
        codes, held = np.unique(categories[order], return_counts=True)
        _, nth = ragged(held)
        ends = np.append(0, np.cumsum(np.minimum(held, _OF_A_CATEGORY)))
        self._popular = Popular(trending, codes, ends, numbers[order[nth < _OF_A_CATEGORY]])

    def _forget_dead(self, live: IntArray) -> None:
        """Frees the numbers of items that nothing ``live`` has to do with: without a record, nobody's neighbour, in no
        session that is kept."""
        needed = np.zeros(self._slots.capacity, np.bool_)
        needed[live] = True
        rows, nth = ragged(self._known["heads"].array[live, HELD])
        needed[self._known["others"].array[live[rows], nth]] = True
        visited = np.arange(_SESSION_ITEMS) < self._sessions.heads[:, COUNT, None]
        needed[self._sessions.items[visited]] = True
        self._slots.set_newest(np.arange(len(needed)), np.where(needed, 0, NO_TIME))
        freed = self._slots.sweep(len(self._slots.table), NO_TIME)
        for name in ("heads", "totals", "counts", "price"):
            self._known[name].array[freed] = 0
        _, numbers, _ = self._slots.live(NO_TIME)
        self._names = self._names.kept(self._known["codes"].array[numbers])
        self._crowded = max(_CROWDED_MIN, 2 * len(self._slots))

    def recommendable(self, contexts: Contexts, rows: IntArray, n: int) -> Candidates:
        """At most ``n`` candidates for each of the contexts ``rows``."""
        count = len(rows)
        begin = np.zeros(count + 1, np.int64)
        out = Served(
            np.zeros(count * n, np.int64),
            np.zeros(count * n, np.int8),
            np.zeros(count * n),
            np.empty((count * n, len(FEATURES))),
        )
        scratch = Scratch(
            self._stamp,
            self._known["mark"].array,
            self._touched,
            self._similarity,
            self._matched,
            self._order,
            self._numbers,
            self._said,
            self._context,
            self._best,
            self._prior,
        )
        serve(
            self._view(),
            self._sessions,
            scratch,
            own(rows, np.int64),
            contexts.items,
            contexts.times,
            contexts.actions,
            contexts.kept,
            contexts.length,
            contexts.session,
            contexts.event_time_ms,
            self._popular,
            np.array(HALF_LIVES_MS),
            n,
            begin,
            out,
        )
        end = int(begin[-1])
        return Candidates(begin, out.numbers[:end], out.source[:end], out.prior[:end], out.x[:end])

    def _view(self) -> Known:
        return Known(self._slots.table, *(self._known[name].array for name in Known._fields[1:]))

    def _grow(self) -> None:
        for part in self._known.values():
            part.grow(self._slots.capacity)


def _largest(values: FloatArray, n: int) -> IntArray:
    """Places of the ``n`` largest values, or of all, the largest first, ties by place."""
    if len(values) <= n:
        return np.argsort(-values, kind="stable")
    least = np.partition(values, len(values) - n)[len(values) - n]
    above = np.flatnonzero(values > least)
    at = np.concatenate([above, np.flatnonzero(values == least)[: n - len(above)]])
    return at[np.lexsort((at, -values[at]))]
