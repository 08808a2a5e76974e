"""The open click log of `bench recommend`: its protocol, and a replay that serves lists as the pipeline does.

`../shared/data/README.md` states the protocol. Events go through the stages in blocks; a block's contexts are served
from what was published before it, so that a list knows nothing later than the click it follows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.block import Block, BoolArray, FloatArray, Ids, IntArray
from features.shopping import Candidates, Contexts, ItemState, ItemView, Moves, UserState
from models.rank import Ranked

__all__ = ["BLOCK_ROWS", "TOP", "Clicks", "Lists", "Replay", "load", "sessions_file", "told"]

#: what is published lags by as many events at most
BLOCK_ROWS = 512
#: the first list of day 0, which only trains, is served when half of it is known
_LEARNT_OF_DAY_0 = 0.5
TOP = 20


def sessions_file() -> Path:
    """Where the click log is expected: `$HEADRACE_DATA`, or beside the project."""
    return Path(os.environ.get("HEADRACE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "sessions.parquet"


@dataclass(frozen=True, slots=True)
class Clicks:
    """Clicks (n,) in event order: user (a session), item, time and day."""

    user: IntArray
    item: IntArray
    time: IntArray
    day: IntArray

    def __len__(self) -> int:
        return len(self.day)

    def part(self, begin: int, end: int) -> Block:
        """A run of them as a block of ``interactions``."""
        rows = slice(begin, end)
        ids = {"user_id": Ids(ints=self.user[rows]), "item_id": Ids(ints=self.item[rows])}
        ids["session_id"] = ids["user_id"]
        columns: dict[str, npt.NDArray[Any]] = {"event_time": self.time[rows], "action": np.ones(end - begin, np.int64)}
        return Block("interactions", 0, end, np.arange(begin, end), self.time[rows], ids, columns)

    def next_clicks(self) -> IntArray:
        """(n,) the row of the next click of the same session and day, -1 where there is none to be asked for.

        From day 1 on, clicks on items never seen on an earlier day are not there.
        """
        seen_first = np.full(int(self.item.max(initial=0)) + 1, np.iinfo(np.int64).max)
        np.minimum.at(seen_first, self.item, self.day)
        asked = (self.day == 0) | (seen_first[self.item] < self.day)
        order = np.lexsort((np.arange(len(self)), self.user, self.day))
        order = order[asked[order]]
        here, there = order[:-1], order[1:]
        same = (self.user[here] == self.user[there]) & (self.day[here] == self.day[there])
        out = np.full(len(self), -1)
        out[here[same]] = there[same]
        return out

    def sampled(self, share: float) -> BoolArray:
        """(n,) bool: clicks of a share of the users, chosen by a hash; a larger share has those of a smaller one."""
        mixed = (self.user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        return mixed.astype(np.float64) < share * 2.0**32


def load(path: Path) -> Clicks:
    """The clicks of a parquet file with columns event_time, user_id, item_id, day, in event order."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["user_id", "item_id", "event_time", "day"])
    return Clicks(*(column.to_numpy().astype(np.int64) for column in table.columns))


@dataclass(slots=True)
class Lists:
    """Lists served after the clicks ``rows``, with the next click's item in ``target``, in parts."""

    rows: list[IntArray] = field(default_factory=list)
    sizes: list[IntArray] = field(default_factory=list)
    x: list[FloatArray] = field(default_factory=list)
    clicked: list[BoolArray] = field(default_factory=list)
    #: (rows, 2) place of the next click among the 20 most popular items, of all time and of the day; 20: not there
    popular: list[IntArray] = field(default_factory=list)

    def add(self, rows: IntArray, found: Candidates, items: IntArray, target: IntArray, view: ItemView) -> None:
        """The lists of one block; ``items`` are the candidates', ``target`` (rows,) what was clicked next."""
        self.rows.append(rows)
        self.sizes.append(np.diff(found.begin))
        self.x.append(found.x)
        self.clicked.append(items == np.repeat(target, np.diff(found.begin)))
        places = np.full((len(rows), 2), TOP)
        for column, numbers in enumerate((view.popular(TOP), view.trending[:TOP])):
            row, place = np.nonzero(target[:, None] == view.ids(numbers).ints)
            places[row, column] = place
        self.popular.append(places)

    def of(self, chosen: BoolArray) -> Ranked:
        """Those after clicks that are ``chosen``, out of all clicks."""
        sizes, keep = np.concatenate(self.sizes), chosen[np.concatenate(self.rows)]
        rows = np.repeat(keep, sizes)
        begin = np.append(0, np.cumsum(sizes[keep]))
        return Ranked(begin, np.concatenate(self.x)[rows], np.concatenate(self.clicked)[rows])

    def popularity(self, chosen: BoolArray) -> IntArray:
        """(lists, 2) as ``popular``, after clicks that are ``chosen``, out of all clicks."""
        places: IntArray = np.concatenate(self.popular)[chosen[np.concatenate(self.rows)]]
        return places


class Replay:
    """All stages in one process, fed with the click log day by day."""

    def __init__(self, clicks: Clicks, candidates: int) -> None:
        self.clicks, self.candidates = clicks, candidates
        self.users, self.items, self.view = UserState(), ItemState(), ItemView()
        self._next = clicks.next_clicks()

    def days(self, first: int, last: int, asked: BoolArray) -> Iterator[tuple[int, dict[str, Lists]]]:
        """The days ``first`` to ``last`` with both protocols' lists after the clicks ``asked`` (n,) that have a next.

        Of day 0 only its second half.
        """
        bounds = np.searchsorted(self.clicks.day, np.arange(last + 2))
        for day in range(last + 1):
            begin, end = int(bounds[day]), int(bounds[day + 1])
            served_from = end if day < first else begin if day else int(end * _LEARNT_OF_DAY_0)
            lists = self._day(begin, end, served_from, asked)
            if day >= first:
                yield day, lists

    def _day(self, begin: int, end: int, served_from: int, asked: BoolArray) -> dict[str, Lists]:
        lists = {"frozen": Lists(), "streaming": Lists()}
        frozen: ItemView | None = None
        for first in range(begin, end, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, end)
            contexts = self.users.process(self.clicks.part(first, last))
            if last > served_from:
                self.view.refresh(int(self.clicks.time[first]))
                frozen = frozen or self.view.copy()
                rows = np.arange(max(first, served_from), last)
                rows = rows[asked[rows] & (self._next[rows] >= 0)]
                for name, view in (("frozen", frozen), ("streaming", self.view)):
                    self._serve(lists[name], view, contexts, rows, first)
            self.items.process(told(contexts.moves()))
            self.view.apply(self.items.changed())
        return lists

    def _serve(self, lists: Lists, view: ItemView, contexts: Contexts, rows: IntArray, first: int) -> None:
        if len(rows):
            found = view.recommendable(contexts, rows - first, self.candidates)
            items = view.ids(found.numbers).ints
            assert items is not None
            lists.add(rows, found, items, self.clicks.item[self._next[rows]], view)


def told(moves: Moves) -> Block:
    """What the user stage tells the item stage, as the block that comes of it."""
    n = len(moves.rows)
    return Block("interactions.by-item", 0, n, moves.rows, moves.rows, {"item_id": moves.item_id}, {**moves.columns})
