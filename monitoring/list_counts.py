"""What is counted of the lists of a period, and the statistics that follow.

The counts of a period are one int64 vector, see `LAYOUT`; those of a window are the sum of its periods'. Shares are
quotients of two sums, so that those of a window are means weighted by what there was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays
from features.block import FloatArray, IntArray
from features.shopping import SOURCES
from monitoring.budget import Watch
from monitoring.list_join import LIST_MAX
from monitoring.settings import MonitorSettings

__all__ = [
    "LAYOUT",
    "LIST_SOURCES",
    "RUNGS",
    "STATISTICS",
    "ItemTally",
    "exposure",
    "figures_of",
    "list_values",
    "list_watches",
]

Codes = npt.NDArray[np.uint64]

#: of the ladder, the best first; the last is of lists that name another
RUNGS = ("ranked", "candidates", "category", "trending", "popular", "repeats", "other")
#: of what is in a list; the last is of items that name another
LIST_SOURCES = (*SOURCES, "popular", "exploration", "other")
#: in the order of `list_values`, before the shares of the rungs and of the sources
STATISTICS = ("click_through", "hit_rate", "reciprocal_rank", "coverage", "popularity_bias", "gini")
#: reciprocal ranks are summed in units of 1 / _SCALE
_SCALE = float(2**24)
# places of single counts
_LISTS, _SHOWN, _FOLLOWED, _HITS, _RECIPROCAL, _BOUGHT, _DISTINCT, _KNOWN, _GINI, _GINI_OF = range(10)
_SHOWN_TIMES, _SHOWN_BEFORE, _DONE_TIMES, _DONE_BEFORE, _PERIODS = range(10, 15)
_SINGLES = 15


@dataclass(frozen=True, slots=True)
class ListLayout:
    """Where a period's counts lie: single ones, then lists, followed lists and hits by rung, items shown and hits by
    source, and hits by place in the list."""

    @property
    def size(self) -> int:
        """Length of the vector."""
        return _SINGLES + 3 * len(RUNGS) + 2 * len(LIST_SOURCES) + LIST_MAX

    def rungs(self, counts: IntArray) -> IntArray:
        """(.., 3, rungs) view of ``counts`` (.., size): lists, followed, hits; the others are views alike."""
        part = counts[..., _SINGLES : _SINGLES + 3 * len(RUNGS)]
        return part.reshape(*counts.shape[:-1], 3, len(RUNGS))

    def sources(self, counts: IntArray) -> IntArray:
        """(.., 2, sources): items shown, hits."""
        begin = _SINGLES + 3 * len(RUNGS)
        part = counts[..., begin : begin + 2 * len(LIST_SOURCES)]
        return part.reshape(*counts.shape[:-1], 2, len(LIST_SOURCES))

    def places(self, counts: IntArray) -> IntArray:
        """(.., LIST_MAX) hits by place, the first of the list first."""
        return counts[..., -LIST_MAX:]

    def add_lists(self, counts: IntArray, rung: IntArray, length: IntArray, sources: IntArray) -> None:
        """Lists (n,) of these rungs and lengths, whose items (m,) are of these sources."""
        counts[_LISTS] += len(rung)
        counts[_SHOWN] += int(length.sum())
        self.rungs(counts)[0] += np.bincount(rung, minlength=len(RUNGS))
        self.sources(counts)[0] += np.bincount(sources, minlength=len(LIST_SOURCES))

    def add_outcomes(
        self, counts: IntArray, rung: IntArray, place: IntArray, source: IntArray, bought: npt.NDArray[np.bool_]
    ) -> None:
        """Outcomes (n,), see `monitoring.list_join.Outcomes`."""
        hit = place >= 0
        counts[_FOLLOWED] += len(rung)
        counts[_HITS] += int(np.count_nonzero(hit))
        counts[_BOUGHT] += int(np.count_nonzero(hit & bought))
        counts[_RECIPROCAL] += int((_SCALE / (place[hit] + 1)).astype(np.int64).sum())
        self.rungs(counts)[1] += np.bincount(rung, minlength=len(RUNGS))
        self.rungs(counts)[2] += np.bincount(rung[hit], minlength=len(RUNGS))
        self.sources(counts)[1] += np.bincount(source[hit], minlength=len(LIST_SOURCES))
        self.places(counts)[:] += np.bincount(place[hit], minlength=LIST_MAX)


LAYOUT = ListLayout()


class ItemTally:
    """By item how often it was shown and how often anything was done with it: exact, however it was counted in parts.

    Memory: 24 bytes per item.
    """

    def __init__(self, codes: Codes | None = None, counts: IntArray | None = None) -> None:
        self._codes = np.zeros(0, np.uint64) if codes is None else codes
        self._counts = np.zeros((0, 2), np.int64) if counts is None else counts
        self._more: list[tuple[int, Codes]] = []
        self._waiting = 0

    def add(self, column: int, codes: Codes) -> None:
        """Counts items (n,), each as often as it is there: ``column`` 0 as shown, 1 as done with."""
        if len(codes):
            self._more.append((column, codes))
            self._waiting += len(codes)
        if self._waiting > max(4096, 4 * len(self._codes)):
            self.counted()

    def counted(self) -> tuple[Codes, IntArray]:
        """The items (k,) by rising code, and their counts (k, 2)."""
        if self._more:
            codes, place = np.unique(
                np.concatenate([self._codes, *(codes for _, codes in self._more)]), return_inverse=True
            )
            counts = np.zeros((len(codes), 2), np.int64)
            counts[place[: len(self._codes)]] = self._counts
            begin = len(self._codes)
            for column, more in self._more:
                counts[:, column] += np.bincount(place[begin : begin + len(more)], minlength=len(codes))
                begin += len(more)
            self._codes, self._counts = codes, counts
            self._more, self._waiting = [], 0
        return self._codes, self._counts

    def state(self) -> Arrays:
        """``codes`` (k,), ``counts`` (k, 2)."""
        codes, counts = self.counted()
        return {"codes": codes, "counts": counts}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> ItemTally:
        """The reverse of `state`."""
        return cls(arrays["codes"].copy(), arrays["counts"].copy())


def exposure(counts: IntArray, tally: ItemTally, known: int, before: ItemTally) -> None:
    """Writes into a period's ``counts`` (size,) what its ``tally`` says of how evenly items are shown.

    ``known``: how many items there are. Popularity is how often anything was done with an item in the period
    ``before``: no list can have made it then.
    """
    codes, of = tally.counted()
    shown = np.sort(of[:, 0][of[:, 0] > 0])
    counts[_DISTINCT], counts[_KNOWN], counts[_PERIODS] = len(shown), known, 1
    # items that were never shown come first, and add nothing
    rank = np.arange(known - len(shown) + 1, known + 1)
    counts[_GINI], counts[_GINI_OF] = int(((2 * rank - known - 1) * shown).sum()), known * int(shown.sum())
    earlier, times = before.counted()
    at = np.minimum(np.searchsorted(earlier, codes), max(len(earlier) - 1, 0))
    popular = np.zeros(len(codes), np.int64)
    if len(earlier):
        popular = np.where(earlier[at] == codes, times[at, 1], 0)
    counts[_SHOWN_TIMES], counts[_DONE_TIMES] = (popular[:, None] * of).sum(0)
    counts[_SHOWN_BEFORE], counts[_DONE_BEFORE] = of.sum(0) if popular.any() else (0, 0)


def list_watches(settings: MonitorSettings) -> list[Watch]:
    """What `list_values` are the values of, in its order."""
    floor = settings.loss_min
    kinds = ("list_performance",) * 3 + ("list_coverage",) + ("popularity_bias",) * 2
    watches = [
        Watch(kind, name, name, "high" if kind == "popularity_bias" else "low", 0.0, relative_floor=floor)
        for kind, name in zip(kinds, STATISTICS, strict=True)
    ]
    watches += [Watch("rung_share", f"rung={rung}", "share", "both", settings.rate_min) for rung in RUNGS]
    return watches + [Watch("source_share", f"source={s}", "share", "both", settings.rate_min) for s in LIST_SOURCES]


def list_values(counts: IntArray) -> FloatArray:
    """(k, watches of `list_watches`) of windows of ``counts`` (k, size); NaN: nothing to tell it by.

    ``click_through``: hits of all lists. ``hit_rate``: of those after which the user did something in time.
    ``reciprocal_rank``: of the hit in these, 0 without. ``coverage``: items shown of all that are known.
    ``popularity_bias``: how popular the items shown are, relative to those that something was done with.
    ``gini`` of how often items are shown: 0 where all are alike.
    """
    of = counts[..., :_SINGLES].T.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        statistics = [
            of[_HITS] / of[_LISTS],
            of[_HITS] / of[_FOLLOWED],
            of[_RECIPROCAL] / _SCALE / of[_FOLLOWED],
            of[_DISTINCT] / of[_KNOWN],
            (of[_SHOWN_TIMES] / of[_SHOWN_BEFORE]) / (of[_DONE_TIMES] / of[_DONE_BEFORE]),
            of[_GINI] / of[_GINI_OF],
        ]
        rungs = LAYOUT.rungs(counts)[:, 0] / of[_LISTS][:, None]
        sources = LAYOUT.sources(counts)[:, 0] / of[_SHOWN][:, None]
    # no quotient by 0 is a value
    out = np.concatenate([np.column_stack(statistics), rungs, sources], 1)
    return np.where(np.isfinite(out), out, np.nan)


def figures_of(counts: IntArray) -> dict[str, Any]:
    """JSON data of a window's ``counts`` (size,): the statistics, and lists, hits and shares by rung and source;
    items are those of a period, on average."""
    values = [None if v != v else float(f"{v:.6g}") for v in list_values(counts[None])[0].tolist()]
    rungs, sources, places = LAYOUT.rungs(counts), LAYOUT.sources(counts), LAYOUT.places(counts)
    by_rung = {
        name: {"lists": int(rungs[0, i]), "followed": int(rungs[1, i]), "hits": int(rungs[2, i])}
        for i, name in enumerate(RUNGS)
        if rungs[0, i]
    }
    by_source = {
        name: {"shown": int(sources[0, i]), "hits": int(sources[1, i])}
        for i, name in enumerate(LIST_SOURCES)
        if sources[0, i]
    }
    return {
        "lists": int(counts[_LISTS]),
        "followed": int(counts[_FOLLOWED]),
        "hits": int(counts[_HITS]),
        "bought": int(counts[_BOUGHT]),
        "items_shown": round(int(counts[_DISTINCT]) / max(int(counts[_PERIODS]), 1), 1),
        "items_known": round(int(counts[_KNOWN]) / max(int(counts[_PERIODS]), 1), 1),
        **dict(zip(STATISTICS, values, strict=False)),
        "rungs": by_rung,
        "sources": by_source,
        "hits_by_place": np.trim_zeros(places, "b").tolist(),
    }
