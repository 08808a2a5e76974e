"""Which lists were followed: each user's last list, and whether what the user did next was in it, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, of_texts
from features.block import BoolArray, FloatArray, IntArray, KeyArray
from features.shopping_state import Columns, ShoppingState
from features.state import NO_TIME

__all__ = ["LIST_MAX", "ListJoin", "Outcomes", "Shown"]

Codes = npt.NDArray[np.uint64]

#: places of a list that are looked at
LIST_MAX = 50
_NOBODY = -1
# columns of a user's head
_TIME, _KEPT, _RUNG, _MODEL = range(4)


@dataclass(frozen=True, slots=True)
class Shown:
    """Lists (n,) in log order, each given to a user right after the user did something.

    ``time_ms`` (n,) of that; ``user`` (n, 2) its key; ``clicked`` (n,) the code of its item, where ``known`` (n,)
    says that there is one, and ``bought`` (n,), that it was put into a cart or purchased. ``items``, ``sources`` and
    ``scores`` (n, LIST_MAX): codes, numbers of the sources and scores (NaN: none) of the first ``length`` (n,) places.
    ``rung`` (n,) are numbers, and ``model`` (n,), of who ranked them.
    """

    time_ms: IntArray
    user: KeyArray
    clicked: Codes
    known: BoolArray
    bought: BoolArray
    items: Codes
    sources: npt.NDArray[np.int8]
    scores: FloatArray
    length: IntArray
    rung: IntArray
    model: IntArray

    def __len__(self) -> int:
        return len(self.time_ms)

    def part(self, begin: int, end: int) -> Shown:
        """The lists from ``begin`` to before ``end``."""
        return Shown(*(getattr(self, of.name)[begin:end] for of in fields(self)))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Lists (m,) after which their user did something in time: ``row`` of what was done among those of the block,
    ``time_ms``, ``rung`` and ``model`` of the list; ``place`` in it of what was done, 0 the first and -1 where it was
    not there, the ``source`` of that place (-1), and ``bought``. Of the first ``length`` places of the list their
    ``sources`` and ``scores`` (m, LIST_MAX)."""

    row: IntArray
    time_ms: IntArray
    rung: IntArray
    model: IntArray
    place: IntArray
    source: IntArray
    bought: BoolArray
    length: IntArray
    sources: npt.NDArray[np.int8]
    scores: FloatArray


class ListJoin(ShoppingState):
    """The last list of each user of one partition.

    What a user does counts for the newest list given before, not more than ``within_ms`` later: so of each list there
    is one outcome at most. Lists are forgotten once nothing that is at most ``lateness_ms`` late can follow them any
    more. Memory: 950 bytes per user who had a list within ``within_ms + lateness_ms``.
    """

    _whose, _settings = "users' last lists", "time within, lateness"

    def __init__(self, *, within_ms: int, lateness_ms: int) -> None:
        if within_ms < 1 or lateness_ms < 0:
            raise ValueError(
                f"within_ms is {within_ms}, lateness_ms {lateness_ms}: give a time, and a lateness of 0 on"
            )
        self.within_ms, self.lateness_ms = within_ms, lateness_ms
        columns: Columns = {
            "items": ((LIST_MAX,), np.uint64),
            "sources": ((LIST_MAX,), np.int8),
            "scores": ((LIST_MAX,), np.float64),
            "heads": ((4,), np.int64),
        }
        super().__init__(columns, (within_ms, lateness_ms, LIST_MAX))

    def process(self, shown: Shown) -> Outcomes:
        """Takes lists; the outcomes of earlier ones, in the order of what was done."""
        n, times = len(shown), shown.time_ms
        stream = self._slots.stream_time_ms
        slots, _ = self._slots.assign(shown.user, times, 2**62)
        self._grow()
        of = {name: part.array for name, part in self._parts.items()}
        order = np.argsort(slots, kind="stable")
        same = np.append(False, slots[order[1:]] == slots[order[:-1]])[:n]
        before = np.full(n, _NOBODY)
        before[order[same]] = order[:-1][same[1:]]
        here = before >= 0
        head = of["heads"][slots]
        head[here] = np.column_stack([times, shown.length, shown.rung, shown.model])[before[here]]
        # what is forgotten by the sweep, at a time of its own, must not count before either
        newest = np.maximum.accumulate(np.append(stream, times[:-1])[:n])
        age = times - np.where(head[:, _KEPT] > 0, head[:, _TIME], times)
        joined = (head[:, _KEPT] > 0) & shown.known & (age >= 0) & (age <= self.within_ms)
        joined &= head[:, _TIME] > newest - self.horizon_ms
        rows = np.flatnonzero(joined)
        outcomes = self._outcomes(shown, rows, before[rows], head[rows], slots[rows])
        last = order[np.append(~same[1:], True)[:n]]
        at = slots[last]
        for name in ("items", "sources", "scores"):
            of[name][at] = getattr(shown, name)[last]
        of["heads"][at] = np.column_stack([times, shown.length, shown.rung, shown.model])[last]
        self._sweep(n)
        return outcomes

    def _outcomes(self, shown: Shown, rows: IntArray, before: IntArray, head: IntArray, slots: IntArray) -> Outcomes:
        """Of the ``rows`` whose user had the lists ``before``, or, where that is -1, the one in the state."""
        of = {name: part.array for name, part in self._parts.items()}
        here = (before >= 0)[:, None]
        items, sources, scores = (
            np.where(here, getattr(shown, name)[before], of[name][slots]) for name in ("items", "sources", "scores")
        )
        there = (items == shown.clicked[rows][:, None]) & (np.arange(LIST_MAX) < head[:, _KEPT : _KEPT + 1])
        hit, place = there.any(1), there.argmax(1)
        source = sources[np.arange(len(rows)), place].astype(np.int64)
        return Outcomes(
            rows,
            head[:, _TIME],
            head[:, _RUNG],
            head[:, _MODEL],
            np.where(hit, place, -1),
            np.where(hit, source, -1),
            shown.bought[rows],
            head[:, _KEPT],
            sources,
            scores,
        )

    @property
    def horizon_ms(self) -> int:
        """How long a list may matter, by the time of the newest."""
        return self.within_ms + self.lateness_ms

    @property
    def _horizon(self) -> int:
        return self._slots.stream_time_ms - self.horizon_ms

    def _free(self, slots: IntArray) -> None:
        self._parts["heads"].array[slots] = np.array([NO_TIME, 0, 0, 0])

    def _named(self) -> Codes:
        """Items need no names here."""
        return np.zeros(0, np.uint64)

    def to_arrays(self) -> Arrays:
        """The state as plain arrays, users in the order of their keys: equal states give equal arrays."""
        keys, slots, newest = self._slots.live(self._horizon)
        of = {name: part.array[slots] for name, part in self._parts.items()}
        return {
            "identity": self._identity,
            "stream_time_ms": np.array([self._slots.stream_time_ms], np.int64),
            "keys": keys,
            "newest": newest,
            **of,
            "texts": of_texts([]),
        }

    @staticmethod
    def _saved_keys(arrays: Mapping[str, npt.NDArray[Any]]) -> KeyArray:
        return arrays["keys"]
