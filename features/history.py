"""Windows of one entity in one partition that need the events themselves: extremes, distinct values, sessions ..

Where `features.windows` keeps sums, a `HistoryWindows` keeps each event's values for as long as its features look back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from features.block import Block, BoolArray, FloatArray, IntArray, KeyArray
from features.durations import FeatureError
from features.entity_windows import SWEEP_ROWS, SWEEP_STEPS_PER_ROW
from features.history_kernels import DONE, OF_SUMS, OPERATIONS, POOL, HistoryPlan, HistoryRows, Store, history_rows
from features.kernel import own
from features.keys import joined_keys, word_of_keys
from features.plan import FORMAT, LATENESS_MS, Arrays, StateError
from features.rings import RingPool, Words
from features.state import NO_TIME, KeySlots
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


class HistoryWindows:
    """Windows of one entity, of one id field or several, whose aggregates look at the events they hold."""

    def __init__(self, features: Sequence[WindowFeature], *, allowed_lateness_ms: int = LATENESS_MS) -> None:
        if not features or len({f.entity for f in features}) != 1:
            raise FeatureError(
                f"window features of one entity are needed, got {sorted({f.entity for f in features}) or 'none'}; "
                "give the result of FeatureSet.for_entity(..)"
            )
        if allowed_lateness_ms < 0:
            raise ValueError(f"allowed_lateness_ms is {allowed_lateness_ms}; it cannot be negative: give 0 or more")
        for f in features:
            if f.aggregate not in OPERATIONS:
                raise FeatureError(f"{f.name}: a {f.aggregate} needs labels; use LabelledWindows for {f.entity}")
        self.allowed_lateness_ms = allowed_lateness_ms
        self.names = tuple(f.name for f in features)
        self.entity = features[0].entity
        self.keys = features[0].keys
        self._values = tuple(dict.fromkeys(name for f in features for name in f.fields))
        self._ids = frozenset(f.field for f in features if f.aggregate in _OF_IDS)
        self._plan = _plan(features, self._values, allowed_lateness_ms)
        definition = [[f.definition() for f in features], allowed_lateness_ms, FORMAT]
        digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).digest()
        self._identity = np.frombuffer(digest, np.uint8)
        self._slots = KeySlots()
        # after the head of a ring, `find_boundaries` passes over as many words as a row has values
        self._events = RingPool(1 + len(self._values), len(self._values) + len(self._plan.offsets))
        self._seen, self._uses = np.zeros(_SEEN_MIN, np.uint64), np.zeros(_SEEN_MIN, np.int64)
        self._use = 0
        self._unswept = 0

    def __len__(self) -> int:
        """Keys held."""
        return len(self._slots)

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns and ids of a block that are read besides the event time and the entity's first field."""
        return tuple(dict.fromkeys((*self.keys[1:], *self._values)))

    @property
    def stream_time_ms(self) -> int | None:
        """Largest event time seen; None before the first row."""
        return None if self._slots.stream_time_ms == NO_TIME else self._slots.stream_time_ms

    @property
    def nbytes(self) -> int:
        """Bytes of memory the state holds."""
        return self._slots.nbytes + self._events.nbytes + self._seen.nbytes + self._uses.nbytes

    def process(self, block: Block) -> tuple[FloatArray, BoolArray]:
        """Features (n, k) float64 and late mask (n,) of the block's rows, which become part of the state."""
        return self.process_columns(*self.columns(block))

    def columns(self, block: Block) -> tuple[KeyArray, IntArray, Words]:
        """What `process_columns` takes of a block; StateError where a value cannot be, and nothing has changed."""
        parts = [block.ids[name].keys() for name in self.keys]
        words = np.empty((len(block), len(self._values)), np.uint64)
        for f, name in enumerate(self._values):
            words[:, f] = word_of_keys(block.ids[name].keys()) if name in self._ids else self._number(block, name)
        return parts[0] if len(parts) == 1 else joined_keys(parts), block.event_time_ms, words

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

    def process_columns(self, keys: KeyArray, times: IntArray, words: Words) -> tuple[FloatArray, BoolArray]:
        """`process` for bare columns: keys (n, 2), event times (n,) and ``words`` (n, fields), see `columns`."""
        n = len(times)
        keys, times, words = own(keys, np.uint64), own(times, np.int64), own(words, np.uint64)
        out = np.empty((n, len(self.names)), np.float64)
        cursor = np.array([0, self._slots.stream_time_ms, self._use], np.int64)
        slots, late = self._slots.assign(keys, times, self.allowed_lateness_ms)
        self._reserve()
        rows = HistoryRows(slots, late, times, words, words.view(np.float64))
        while (need := history_rows(self._store(), self._plan, rows, cursor, out)) != DONE:
            if need == POOL:
                self._events.grow()
            else:
                self._seen, self._uses = (
                    np.zeros(2 * len(self._seen), np.uint64),
                    np.zeros(2 * len(self._uses), np.int64),
                )
        self._use = int(cursor[2])
        self._sweep(n)
        return out, late

    def _store(self) -> Store:
        ring = self._events.view
        return Store(ring, ring.pool.view(np.float64), self._seen, self._uses)

    def _reserve(self) -> None:
        if self._slots.capacity > len(self._events.heads):
            self._events.reserve_slots(self._slots.capacity)

    @property
    def _horizon(self) -> int:
        return self._slots.stream_time_ms - self._plan.span_ms

    def _sweep(self, n: int) -> None:
        """Frees some of the idle keys now and then: work in proportion to the rows, invisible in results."""
        self._unswept += n
        if self._unswept < SWEEP_ROWS:
            return
        freed = self._slots.sweep(SWEEP_STEPS_PER_ROW * self._unswept, self._horizon)
        self._unswept = 0
        if len(freed):
            self._events.release(freed)

    def to_arrays(self) -> Arrays:
        """The state as arrays in canonical form.

        ``identity`` (32,) uint8 says of what features, ``stream_time`` (1,) int64, ``keys`` (m, 2) uint64 in order,
        ``event_counts`` (m,), ``event_rows`` (sum, 1 + fields) uint64: time, and per field the bits of the number
        or the hash of the id.
        """
        keys, slots, _ = self._slots.live(self._horizon)
        counts, rows = self._events.export(slots, self._horizon)
        return {
            "identity": self._identity.copy(),
            "stream_time": np.array([self._slots.stream_time_ms], np.int64),
            "keys": keys,
            "event_counts": counts,
            "event_rows": rows,
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], features: Sequence[WindowFeature], **settings: int
    ) -> Self:
        """The reverse of `to_arrays`; ``settings`` as for the constructor. StateError if of other features."""
        state = cls(features, **settings)
        if not np.array_equal(arrays["identity"], state._identity):
            raise StateError(
                f"the saved state by {state.entity} is of other features or another allowed lateness than "
                f"{', '.join(state.names)} with {state.allowed_lateness_ms} ms; rebuild it by replaying the log"
            )
        counts = arrays["event_counts"].astype(np.int64)
        rows = np.array(arrays["event_rows"], np.uint64, order="C")
        newest = rows[np.cumsum(counts) - 1, 0].view(np.int64) if len(counts) else np.empty(0, np.int64)
        keys = np.ascontiguousarray(arrays["keys"], np.uint64)
        slots = state._slots.load(keys, newest, int(arrays["stream_time"][0]))
        state._reserve()
        state._events.load(slots, counts, rows)
        return state
