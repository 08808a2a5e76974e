"""Lists as the recommend pipeline would have served them, from events in a file or a simulation: what a ranker learns.

The stages are those that run live. As there, a list knows of the items what was published before its block of events,
and of its user all up to its own event; the next event only says which candidate was right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from features.block import Block, IntArray
from features.shopping import FAN, FEATURES, ItemView, codes_of
from models.rank import Ranked
from streams.pipelines.recommend_serving import Trends
from streams.pipelines.recommend_stages import ItemStage, ShopSettings, UserRows, UserStage, rows_by_item

__all__ = ["served_lists"]

_BLOCK_ROWS = 512


def served_lists(
    events: Block,
    settings: ShopSettings,
    candidates: int,
    ranges: Sequence[tuple[int, int]],
    most: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Ranked]:
    """For each range of event times, the second excluded, the lists of at most so many ``candidates`` after the events
    in it after which their session goes on.

    ``events`` (n,) are interactions in the order of their times, whose offsets rise. Of the lists of a range at most
    ``most`` are taken, evenly: each has some 40 KB of features. ``progress`` is told how many more events are done.
    """
    made = UserStage(settings).process(events)
    n, told = len(made.block), rows_by_item(made)
    following, times = _following(made), made.block.event_time_ms
    asked = [_evenly(np.flatnonzero((following >= 0) & (times >= a) & (times < b)), most) for a, b in ranges]
    items, stage, view = codes_of(made.block.ids["item_id"]), ItemStage(settings), ItemView()
    starts = np.arange(0, n, _BLOCK_ROWS)
    told_from = [*np.searchsorted(told.offsets, made.block.offsets[starts] * FAN).tolist(), len(told)]
    trends = Trends(view)
    parts: list[list[Ranked]] = [[_NO_LISTS] for _ in ranges]
    for k, start in enumerate(starts.tolist()):
        trends.look(int(times[start]))
        for of, part in zip(asked, parts, strict=True):
            rows = of[(of >= start) & (of < start + _BLOCK_ROWS)]
            if len(rows):
                found = view.recommendable(made.contexts, rows, candidates)
                right = np.repeat(items[following[rows]], np.diff(found.begin))
                part.append(Ranked(found.begin, found.x, codes_of(view.ids(found.numbers)) == right))
        for records in stage.process(told.part(told_from[k], told_from[k + 1])):
            view.apply(records)
        progress(min(_BLOCK_ROWS, n - start))
    return [Ranked.concat(part) for part in parts]


_NO_LISTS = Ranked(np.zeros(1, np.int64), np.empty((0, len(FEATURES))), np.empty(0, np.bool_))


def _evenly(rows: IntArray, most: int) -> IntArray:
    """At most so many of the rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _following(made: UserRows) -> IntArray:
    """(n,) the row of the next event of each row's session, -1 after the last and for late events."""
    sessions, late = made.contexts.session, made.contexts.late
    order = np.argsort(sessions, kind="stable")
    order = order[~late[order]]
    out = np.full(len(sessions), -1, np.int64)
    here, there = order[:-1], order[1:]
    same = sessions[here] == sessions[there]
    out[here[same]] = there[same]
    return out
