"""The order in which a stage takes the rows and labels of its log: as they are there, or by event time.

Both are pure functions of the log's messages. By event time, rows wait until every source has passed them: the
senders' watermarks and idle marks say so, and they are in the log too (rule 5 of the design).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, of_texts, prefixed, texts_of, under
from features.block import BoolArray, IntArray
from features.engine import StateError
from streams.row_arrays import rows_from_arrays, rows_to_arrays
from streams.rows import Rows
from streams.shuffle import Shuffled
from streams.time_order import order_by_time

__all__ = ["ArrivalOrder", "EventTimeOrder", "Merged", "Order"]

_EVERYTHING = 2**63 - 1


@dataclass(slots=True)
class Merged:
    """Rows and labels that are due, and their common order: ``kinds`` (rows + labels,) True = the next label."""

    rows: Rows | None
    labels: Rows | None
    kinds: BoolArray


class Order(Protocol):
    """Takes messages, gives back what is due."""

    def push(self, message: Shuffled) -> bool:
        """The log's next message; its rows were not taken before. Whether it ended a silence of all sources, so that
        those that are idle must say so again."""

    def due(self) -> Merged:
        """What has become due since the last call, in order."""

    @property
    def waiting(self) -> int:
        """Rows and labels that are not due yet."""

    @property
    def forced(self) -> int:
        """Rows and labels that went on early because too many were waiting."""

    @property
    def late(self) -> int:
        """Rows and labels that came when later ones had gone on."""

    def waits_for(self) -> list[tuple[str, int]]:
        """The sources (topic, partition) that hold up what waits."""

    def to_arrays(self) -> Arrays:
        """What must be known to go on from here; equal for equal messages. After `due`, before the next `push`."""

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from where the order of the same kind was that gave these arrays. StateError: it cannot."""


class ArrivalOrder:
    """The log's own order: everything is due at once, so that nothing is left to be remembered."""

    waiting = forced = late = 0

    def __init__(self) -> None:
        self._parts: list[tuple[bool, Rows]] = []

    def waits_for(self) -> list[tuple[str, int]]:
        return []

    def to_arrays(self) -> Arrays:
        _check_all_taken(self._parts)
        return {}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Nothing to restore."""

    def push(self, message: Shuffled) -> bool:
        if len(message.rows):
            self._parts.append((message.kind == "labels", message.rows))
        return False

    def due(self) -> Merged:
        parts, self._parts = self._parts, []
        rows = [part for is_label, part in parts if not is_label]
        labels = [part for is_label, part in parts if is_label]
        if not labels:
            return Merged(_joined(rows), None, np.zeros(sum(map(len, rows)), np.bool_))
        kinds = np.repeat([is_label for is_label, _ in parts], [len(part) for _, part in parts])
        return Merged(_joined(rows), _joined(labels), kinds)


def _check_all_taken(parts: Sequence[Any]) -> None:
    if parts:
        raise StateError(f"{len(parts)} messages were pushed since due() was called; take what is due first")


def _joined(parts: list[Rows]) -> Rows | None:
    return Rows.concat(parts) if parts else None


@dataclass(slots=True)
class _Source:
    watermark_ms: int | None = None
    idle: bool = False
    #: the source offset up to which its sender had come
    next_offset: int = 0


class _Wait(NamedTuple):
    """Rows that wait; ``times`` (n,) are their or their labels' times, ``arrival`` their place in the log."""

    oldest_ms: int
    arrival: int
    is_label: bool
    rows: Rows
    times: IntArray


class EventTimeOrder:
    """By event time; labels before rows of the same time; rows of the same time by transaction id.

    ``sources`` (topic, partition) are waited for until they have passed a row's time or say that they are idle; a
    source that never sent anything is waited for. At most ``rows_max`` rows wait: beyond it the oldest are
    released early, counted in ``forced``. ``late`` counts rows and labels that came when later ones had been released.

    A mark of a sender that another has overtaken meanwhile (it lost the partition and does not know yet) counts for
    nothing: its source offset is behind.

    Where all sources are idle and one wakes, the others count as awake until they say again that they are idle: what
    ended the quiet ended it for all, and the first of several workers to read on must not overtake the others.
    """

    def __init__(self, sources: Iterable[tuple[str, int]], rows_max: int = 2_000_000) -> None:
        self.rows_max = rows_max
        self.forced = 0
        self.late = 0
        self._sources = {source: _Source() for source in sources}
        #: a heap: what holds nothing that is due costs nothing
        self._waiting: list[_Wait] = []
        self._arrivals = itertools.count()
        self._count = 0
        self._parts: list[Merged] = []
        self._released_ms = -_EVERYTHING

    def push(self, message: Shuffled) -> bool:
        source = self._sources.setdefault((message.source.topic, message.source.partition), _Source())
        awake = message.kind == "watermark"  # its sender is, however far it has come
        if len(message.rows):
            times = self._keep(message.kind == "labels", message.rows)
            self.late += int(np.count_nonzero(times <= self._released_ms))
            awake = True
        overtaken = message.next_offset < source.next_offset
        source.next_offset = max(source.next_offset, message.next_offset)
        if message.watermark_ms is not None and (
            source.watermark_ms is None or message.watermark_ms > source.watermark_ms
        ):
            source.watermark_ms = message.watermark_ms
            awake = message.kind != "idle"
        woke_all = awake and source.idle and self._wake(source)
        if message.kind == "idle" and not overtaken:
            source.idle = True
        self._release(self._bound())
        if self._count > self.rows_max:
            self._force()
        return woke_all

    def _wake(self, source: _Source) -> bool:
        all_slept = all(any_source.idle for any_source in self._sources.values())
        for woken in self._sources.values() if all_slept else (source,):
            woken.idle = False
        return all_slept

    @property
    def waiting(self) -> int:
        """Rows and labels that are not due yet."""
        return self._count

    def waits_for(self) -> list[tuple[str, int]]:
        """The sources that have not passed the oldest row that waits."""
        if not self._waiting:
            return []
        oldest_ms = self._waiting[0].oldest_ms
        return [
            name
            for name, source in self._sources.items()
            if not source.idle and (source.watermark_ms is None or source.watermark_ms < oldest_ms)
        ]

    def to_arrays(self) -> Arrays:
        """``topics`` (s,), ``sources`` (s, 4) int64 by topic and partition: partition, next offset, idle, whether there
        is a watermark; ``watermarks_ms`` (s,), 0 where there is none. ``counts`` (3,) int64: newest time released,
        forced, late. ``waiting/``: the rows that wait, see `streams.row_arrays`, in order of arrival, and
        ``waiting/are_labels`` for each part.
        """
        _check_all_taken(self._parts)
        sources = sorted(self._sources.items())
        waiting = sorted(self._waiting, key=lambda wait: wait.arrival)
        told = [(p, s.next_offset, s.idle, s.watermark_ms is not None) for (_, p), s in sources]
        return {
            "topics": of_texts(topic for (topic, _), _ in sources),
            "sources": np.array(told, np.int64).reshape(-1, 4),
            "watermarks_ms": np.array([s.watermark_ms or 0 for _, s in sources], np.int64),
            "counts": np.array([self._released_ms, self.forced, self.late], np.int64),
            "waiting/are_labels": np.array([wait.is_label for wait in waiting], np.bool_),
            **prefixed("waiting/", rows_to_arrays([wait.rows for wait in waiting])),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        topics, told, marks = texts_of(arrays["topics"]), arrays["sources"].tolist(), arrays["watermarks_ms"].tolist()
        sources = {
            (topic, partition): _Source(mark if marked else None, bool(idle), next_offset)
            for topic, (partition, next_offset, idle, marked), mark in zip(topics, told, marks, strict=True)
        }
        if unknown := self._sources.keys() - sources.keys():
            names = ", ".join(f"{topic}/{partition}" for topic, partition in sorted(unknown))
            raise StateError(
                f"the saved order knows nothing of {names}: partitions were added; rebuild it by replaying the log"
            )
        self._sources.update(sources)
        self._released_ms, self.forced, self.late = arrays["counts"].tolist()
        self._waiting = []
        self._count = 0
        self._arrivals = itertools.count()
        parts = rows_from_arrays(under("waiting/", arrays))
        for is_label, rows in zip(arrays["waiting/are_labels"].tolist(), parts, strict=True):
            self._keep(is_label, rows)

    def _keep(self, is_label: bool, rows: Rows) -> IntArray:
        """Rows, at least one, begin to wait; returns their times."""
        times = rows.integers("label_time" if is_label else "event_time")
        heappush(self._waiting, _Wait(int(times.min()), next(self._arrivals), is_label, rows, times))
        self._count += len(times)
        return times

    def _bound(self) -> int:
        """Times up to here are complete: no source has anything at or before it still to send."""
        bound = _EVERYTHING
        for source in self._sources.values():
            if source.idle:
                continue
            if source.watermark_ms is None:
                return -_EVERYTHING
            bound = min(bound, source.watermark_ms)
        return bound

    def _release(self, bound: int) -> None:
        due: list[_Wait] = []
        rest: list[_Wait] = []
        while self._waiting and self._waiting[0].oldest_ms <= bound:
            wait = heappop(self._waiting)
            ready = wait.times <= bound
            if ready.all():
                due.append(wait)
                continue
            due.append(wait._replace(rows=wait.rows.take(ready), times=wait.times[ready]))
            later = wait.times[~ready]
            rest.append(wait._replace(oldest_ms=int(later.min()), rows=wait.rows.take(~ready), times=later))
        for wait in rest:
            heappush(self._waiting, wait)
        if due:
            due.sort(key=lambda wait: wait.arrival)
            self._count -= sum(len(wait.times) for wait in due)
            self._released_ms = max(self._released_ms, max(int(wait.times.max()) for wait in due))
            self._parts.append(_sorted(due))

    def _force(self) -> None:
        times = np.sort(np.concatenate([wait.times for wait in self._waiting]))
        excess = self._count - self.rows_max
        before = self._count
        self._release(int(times[excess - 1]))
        self.forced += before - self._count

    def due(self) -> Merged:
        parts, self._parts = self._parts, []
        rows = [p.rows for p in parts if p.rows is not None]
        labels = [p.labels for p in parts if p.labels is not None]
        kinds = np.concatenate([p.kinds for p in parts]) if parts else np.empty(0, np.bool_)
        return Merged(_joined(rows), _joined(labels), kinds)


def _sorted(parts: list[_Wait]) -> Merged:
    rows = _by_time([part.rows for part in parts if not part.is_label], "event_time")
    labels = _by_time([part.rows for part in parts if part.is_label], "label_time")
    row_times = rows.integers("event_time") if rows is not None else np.empty(0, np.int64)
    label_times = labels.integers("label_time") if labels is not None else np.empty(0, np.int64)
    kinds = np.zeros(len(row_times) + len(label_times), np.bool_)
    kinds[np.searchsorted(row_times, label_times, side="left") + np.arange(len(label_times))] = True
    return Merged(rows, labels, kinds)


def _by_time(parts: list[Rows], field: str) -> Rows | None:
    if not parts:
        return None
    rows = Rows.concat(parts)
    times = rows.integers(field)
    if len(rows) < 2 or bool(np.all(times[1:] > times[:-1])):
        return rows
    return rows.take(order_by_time(times, rows.block("", 0, 0, ("transaction_id",)).ids["transaction_id"]))
