"""Records of `recommendations` -> what the monitor of lists takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np

from features.block import FloatArray, Ids, IntArray
from features.schema import TIME_MS_MAX, TIME_MS_MIN
from features.shopping import codes_of
from monitoring.list_counts import LIST_SOURCES, RUNGS
from monitoring.list_join import LIST_MAX, Shown
from monitoring.lists import Pairs
from streams.codec import Dead
from streams.log import RecordBatch

__all__ = ["SCORE", "ListRun", "ListRuns", "read_lists"]

#: the name, among the features of a pair, of what the item was ranked by
SCORE = "rank_score"
_RUNGS = {name: i for i, name in enumerate(RUNGS)}
_SOURCES = {name: i for i, name in enumerate(LIST_SOURCES)}
_BOUGHT = ("cart", "purchase")
#: partitions and offsets are numbers up to this
_PLACE_MAX = 2**63 - 1
_MIX = np.uint64(0x9E3779B97F4A7C15)


class _Item(msgspec.Struct):
    item_id: int | str
    source: str
    score: float | None = None


class _List(msgspec.Struct):
    event_id: int | str
    event_time: Annotated[int, msgspec.Meta(ge=TIME_MS_MIN, le=TIME_MS_MAX)]
    user_id: int | str
    items: list[_Item]
    rung: str
    model: str | None = None
    item_id: int | str | None = None
    action: str | None = None
    features: dict[str, list[float | None]] | None = None


_READ = msgspec.json.Decoder(_List).decode


@dataclass(frozen=True, slots=True)
class ListRun:
    """Lists of one model, one after the other: its label (empty: none), the lists, and of each that has features one
    pair of user and item, chosen by its place in the log of events."""

    model: str
    shown: Shown
    pairs: Pairs | None


class ListRuns:
    """Lists of a batch that could be read: ``partition`` and ``offset`` (n,) of their events."""

    def __init__(self, lists: list[_List], sent_ms: Sequence[int], partition: list[int], offset: list[int]) -> None:
        self._lists, self._sent_ms = lists, np.array(sent_ms, np.int64)
        self.partition, self.offset = np.array(partition, np.int64), np.array(offset, np.int64)

    def __len__(self) -> int:
        return len(self._lists)

    def runs(self, rows: IntArray) -> Iterator[ListRun]:
        """The lists ``rows`` in runs of one model, whose features have the same names."""
        begin, model, names = 0, "", None
        for i, row in enumerate(rows.tolist()):
            listed = self._lists[row]
            other = None if listed.features is None else tuple(listed.features)
            if i > begin and ((listed.model or "") != model or (names and other and names != other)):
                yield self._run(model, rows[begin:i], names)
                begin, names = i, None
            model, names = listed.model or "", names or other
        if begin < len(rows):
            yield self._run(model, rows[begin:], names)

    def _run(self, model: str, rows: IntArray, names: tuple[str, ...] | None) -> ListRun:
        lists = [self._lists[row] for row in rows.tolist()]
        n, length = len(lists), np.array([min(len(one.items), LIST_MAX) for one in lists], np.int64)
        there = np.arange(LIST_MAX) < length[:, None]
        items, sources = np.zeros((n, LIST_MAX), np.uint64), np.zeros((n, LIST_MAX), np.int8)
        scores = np.zeros((n, LIST_MAX))
        shown = [item for one in lists for item in one.items[:LIST_MAX]]
        items[there] = codes_of(Ids.of([item.item_id for item in shown]))
        sources[there] = [_SOURCES.get(item.source, len(_SOURCES) - 1) for item in shown]
        scores[there] = np.array([item.score for item in shown], np.float64)  # None is NaN
        times, sent = np.array([one.event_time for one in lists], np.int64), self._sent_ms[rows]
        return ListRun(
            model,
            Shown(
                # as in `said_times`: an event of a clock that is ahead must not end a period
                time_ms=np.where(sent > 0, np.minimum(times, sent), times),
                user=Ids.of([one.user_id for one in lists]).keys(),
                clicked=codes_of(Ids.of([0 if one.item_id is None else one.item_id for one in lists])),
                known=np.array([one.item_id is not None for one in lists], np.bool_),
                bought=np.array([one.action in _BOUGHT for one in lists], np.bool_),
                items=items,
                sources=sources,
                scores=scores,
                length=length,
                rung=np.array([_RUNGS.get(one.rung, len(_RUNGS) - 1) for one in lists], np.int64),
                model=np.zeros(n, np.int64),
            ),
            None if names is None else _pairs(lists, self.offset[rows], names),
        )


def _pairs(lists: Sequence[_List], offset: IntArray, names: tuple[str, ...]) -> Pairs:
    hashed = (offset.view(np.uint64) * _MIX >> np.uint64(33)).tolist()
    rows, event, x = [], [], []
    for row, (one, word) in enumerate(zip(lists, hashed, strict=True)):
        if one.features is None or not one.items:
            continue
        place = word % len(one.items)
        rows.append(row)
        event.append(one.event_id)
        x.append([*(column[place] for column in one.features.values()), one.items[place].score])
    matrix: FloatArray = np.array(x, np.float64).reshape(len(rows), len(names) + 1)  # None is NaN
    return Pairs(np.array(rows, np.int64), Ids.of(event), matrix, (*names, SCORE))


def read_lists(batch: RecordBatch) -> tuple[ListRuns, list[Dead]]:
    """The records of a batch, and why some cannot be read."""
    lists: list[_List] = []
    sent_ms, partition, offset = [], [], []
    dead: list[Dead] = []
    for i, value in enumerate(batch.values):
        try:
            if value is None:
                raise ValueError("no value, which lists always have")
            listed = _READ(value)
            if any(len(column) < len(listed.items) for column in (listed.features or {}).values()):
                raise ValueError("features: not one value for each item")
            source = next((text for name, text in batch.headers(i) if name == "source"), b"")
            _, p, at = source.rsplit(b"/", 2)
            place = int(p), int(at)
            if not (0 <= place[0] <= _PLACE_MAX and 0 <= place[1] <= _PLACE_MAX):
                raise ValueError("source: no place in a log")
            listed.features = listed.features or None  # of no names: none
        except (ValueError, OverflowError) as error:  # msgspec's are ValueErrors
            dead.append(Dead(i, f"not a list of the recommend pipeline with its header `source`: {error}"))
            continue
        lists.append(listed)
        sent_ms.append(batch.timestamps[i])
        partition.append(place[0])
        offset.append(place[1])
    return ListRuns(lists, sent_ms, partition, offset), dead
