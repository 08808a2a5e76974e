"""Where no reference is given: the first rows are kept until they can tell the bins, then counted like all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, check_like
from features.block import BoolArray, FloatArray, Ids, IntArray
from monitoring.bins import Bins
from monitoring.drift import SEGMENT_VALUES
from monitoring.halves import segment_text
from monitoring.settings import MonitorSettings

__all__ = ["FirstRows", "frequent", "rows_of"]

#: rows from which bins are made
_ROWS = 20_000
#: rows that they need at least, however long that takes
_ROWS_MIN = 1_000


def rows_of(columns: Mapping[str, Any], index: slice | BoolArray | IntArray) -> dict[str, Any]:
    """The rows at ``index`` of columns as `monitoring.monitor` takes them."""
    positions = np.arange(len(columns["event_time"]))[index]
    return {
        name: (
            column.take(positions)
            if isinstance(column, Ids)
            else {key: ids.take(positions) for key, ids in column.items()}
            if isinstance(column, Mapping)
            else np.asarray(column)[positions]
        )
        for name, column in columns.items()
    }


def frequent(texts: Sequence[str]) -> tuple[str, ...]:
    """The most frequent values of a segment, ties by text."""
    ranked = sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0]))
    return tuple(text for text, _ in ranked[:SEGMENT_VALUES])


class FirstRows:
    """The first rows, in log order. Complete with 20,000 of them, or with those of half the reference's time."""

    def __init__(self, settings: MonitorSettings) -> None:
        self.settings = settings
        self._times: list[IntArray] = []
        self._clocks: list[IntArray] = []
        self._x: list[FloatArray] = []
        self._ids: list[str] = []
        self._segments: list[list[str]] = [[] for _ in settings.segments]
        self.rows = 0

    def take(self, columns: Mapping[str, Any]) -> int | None:
        """Keeps rows (n,) up to the one that makes it complete: how many these are; None: it is not, all are kept."""
        settings, times = self.settings, np.asarray(columns["event_time"], np.int64)
        count = self.rows + np.arange(1, len(times) + 1)
        half = settings.reference_periods // 2
        if settings.period_rows:
            done = count >= min(_ROWS, half * settings.period_rows)
        else:
            first = int(self._times[0][0]) if self.rows else int(times[0])
            enough = (count >= _ROWS_MIN) & (times >= first + half * settings.period_ms)
            done = (count >= _ROWS) | enough
        stop = int(np.argmax(done)) + 1 if done.any() else len(times)
        part = rows_of(columns, slice(0, stop))
        self._times.append(part["event_time"].astype(np.int64))
        self._clocks.append(part.get("clock", part["event_time"]).astype(np.int64))
        self._x.append(np.column_stack([part["features"], part["score"]]).astype(np.float64))
        self._ids += [segment_text(v) for v in part["transaction_id"].to_list()]
        for s, name in enumerate(settings.segments):
            self._segments[s] += [segment_text(v) for v in part["segments"][name].to_list()]
        self.rows += stop
        return stop if done.any() else None

    def columns(self) -> dict[str, Any]:
        """The rows kept, as columns."""
        x = np.concatenate(self._x)
        return {
            "event_time": np.concatenate(self._times),
            "clock": np.concatenate(self._clocks),
            "transaction_id": Ids.of(self._ids),
            "features": np.ascontiguousarray(x[:, :-1]),
            "score": np.ascontiguousarray(x[:, -1]),
            "segments": {n: Ids.of(texts) for n, texts in zip(self.settings.segments, self._segments, strict=True)},
        }

    def bins(self) -> tuple[Bins, tuple[tuple[str, ...], ...]]:
        """The bins, and the values of each segment."""
        return Bins.of(np.concatenate(self._x)), tuple(frequent(texts) for texts in self._segments)

    def state(self) -> Arrays:
        """``times`` and ``clocks`` (k,), ``x`` (k, d + 1), ``ids`` (k,) and ``segment/i`` (k,) texts."""
        columns = len(self.settings.features) + 1
        out: Arrays = {
            "times": np.concatenate([np.zeros(0, np.int64), *self._times]),
            "clocks": np.concatenate([np.zeros(0, np.int64), *self._clocks]),
            "x": np.concatenate([np.zeros((0, columns)), *self._x]),
            "ids": _texts(self._ids),
        }
        return out | {f"segment/{s}": _texts(texts) for s, texts in enumerate(self._segments)}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`."""
        check_like(arrays, self.state(), "the monitor's first rows")
        self.rows = len(arrays["times"])
        there = self.rows > 0
        self._times, self._clocks, self._x = (
            [arrays[name].copy()] if there else [] for name in ("times", "clocks", "x")
        )
        self._ids = _list(arrays["ids"])
        self._segments = [_list(arrays[f"segment/{s}"]) for s in range(len(self._segments))]


def _texts(texts: Sequence[str]) -> npt.NDArray[np.bytes_]:
    return np.array([text.encode("utf-8", "surrogatepass") for text in texts], np.bytes_)


def _list(array: npt.NDArray[Any]) -> list[str]:
    return [text.decode("utf-8", "surrogatepass") for text in array.tolist()]
