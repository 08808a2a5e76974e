"""Windows of one entity in one partition that need the events themselves: extremes, distinct values, sessions ..

Where `features.windows` keeps sums, a `HistoryWindows` keeps each event's values for as long as its features look back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays
from features.block import Block, BoolArray, FloatArray, IntArray
from features.durations import FeatureError
from features.history_kernels import OF_SUMS, OPERATIONS, POOL, HistoryPlan, HistoryRows, Store, history_rows
from features.keys import word_of_keys
from features.plan import LATENESS_MS, StateError
from features.ring_windows import RingWindows
from features.rings import RingPool, Words
from features.windowfeature import PAST, WindowFeature

__all__ = ["HistoryWindows"]

_VALUE_MAX = 2.0**62
_SEEN_MIN = 64
_OF_IDS = frozenset({"distinct", "first_seen"})


def _plan(features: Sequence[WindowFeature], fields: tuple[str, ...], lateness_ms: int) -> HistoryPlan:
    offsets = np.array(sorted({edge for f in features for edge in (f.delay_ms, f.span_ms)}), np.int64)
    boundary = {int(edge): b for b, edge in enumerate(offsets)}
    keys = [(boundary[f.delay_ms], boundary[f.span_ms], int(f.aggregate in PAST), f.last, f.gap_ms) for f in features]
    ranges = list(dict.fromkeys(keys))
    sums: list[tuple[int, int]] = []
    compiled = []
    for f, key in zip(features, keys, strict=True):
        at, words = ranges.index(key), [fields.index(name) for name in f.fields]
        if f.aggregate in OF_SUMS:
            if (at, words[0]) not in sums:
                sums.append((at, words[0]))
            words.append(sums.index((at, words[0])))
        compiled.append((OPERATIONS[f.aggregate], at, *words, *[0] * (2 - len(words))))
    return HistoryPlan(
        offsets=offsets,
        ranges=np.array(ranges, np.int64),
        sums=np.array(sums, np.int64).reshape(-1, 2),
        features=np.array(compiled, np.int64),
        half_lives_ms=np.array([f.half_life_ms for f in features], np.float64),
        span_ms=int(offsets[-1]) + lateness_ms,
        below=np.zeros(len(offsets), np.int64),
        bounds=np.zeros((len(ranges), 2), np.int64),
        totals=np.zeros((len(sums), 2), np.float64),
    )


class HistoryWindows(RingWindows):
    """Windows of one entity, of one id field or several, whose aggregates look at the events they hold."""

    def __init__(
        self,
        features: Sequence[WindowFeature],
        *,
        allowed_lateness_ms: int = LATENESS_MS,
        bytes_max: int | None = None,
    ) -> None:
        super().__init__(features, allowed_lateness_ms=allowed_lateness_ms, bytes_max=bytes_max)
        for f in features:
            if f.aggregate not in OPERATIONS:
                raise FeatureError(f"{f.name}: a {f.aggregate} needs labels; use LabelledWindows for {f.entity}")
        self._ids = frozenset(f.field for f in features if f.aggregate in _OF_IDS)
        self._plan = _plan(features, self._values, allowed_lateness_ms)
        self._span_ms = self._plan.span_ms
        # after the head of a ring, `find_boundaries` passes over as many words as a row has values
        hints = int(np.count_nonzero(self._plan.offsets))
        self._rings = RingPool(1 + len(self._values), len(self._values) + hints)
        self._seen, self._uses = np.zeros(_SEEN_MIN, np.uint64), np.zeros(_SEEN_MIN, np.int64)
        self._use = np.zeros(1, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of memory the state holds."""
        return super().nbytes + self._seen.nbytes + self._uses.nbytes

    def _row_values(self, block: Block) -> Words:
        """(n, fields) uint64: per field the bits of the number, or the hash of the id."""
        words = np.empty((len(block), len(self._values)), np.uint64)
        for f, name in enumerate(self._values):
            words[:, f] = word_of_keys(block.ids[name].keys()) if name in self._ids else self._number(block, name)
        return words

    def _number(self, block: Block, name: str) -> Words:
        values = np.array(block.columns[name], np.float64)
        missing = np.isnan(values)
        wrong = ~missing & ~(np.abs(values) < _VALUE_MAX)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise StateError(
                f"{name}: {values[row]} in row {row} cannot be summed exactly (infinite or 2**62 and above); check "
                "records against the schema before they reach the windows"
            )
        values[missing] = np.nan  # one of many bit patterns, for states to be canonical
        return values.view(np.uint64)

    def _run(
        self, slots: IntArray, late: BoolArray, times: IntArray, values: Words, cursor: IntArray, out: FloatArray
    ) -> int:
        rows = HistoryRows(slots, late, times, values, values.view(np.float64))
        ring = self._rings.view
        store = Store(ring, ring.pool.view(np.float64), self._seen, self._uses, self._use)
        return history_rows(store, self._plan, rows, cursor, out)

    def _grow(self, need: int) -> bool:
        if need == POOL:
            return super()._grow(need)
        if self._room() < 2 * (self._seen.nbytes + self._uses.nbytes):  # old and new stand beside each other
            return False
        places = 2 * len(self._seen)
        self._seen, self._uses = np.zeros(places, np.uint64), np.zeros(places, np.int64)
        return True

    def to_arrays(self) -> Arrays:
        """The state as arrays in canonical form.

        ``identity`` (32,) uint8 says of what features, ``stream_time`` (1,) int64, ``keys`` (m, 2) uint64 in order,
        ``event_counts`` (m,), ``event_rows`` (sum, 1 + fields) uint64: time, and per field the bits of the number
        or the hash of the id.
        """
        keys, slots, _ = self._slots.live(self._horizon)
        counts, rows = self._rings.export(slots, self._horizon)
        return {
            **self._head_arrays(keys),
            "event_counts": counts,
            "event_rows": rows,
        }

    def _load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        counts = arrays["event_counts"].astype(np.int64)
        rows = np.array(arrays["event_rows"], np.uint64, order="C")
        newest = rows[np.cumsum(counts) - 1, 0].view(np.int64) if len(counts) else np.empty(0, np.int64)
        slots = self._load_slots(arrays["keys"], newest, int(arrays["stream_time"][0]))
        self._rings.load(slots, counts, rows)
