"""Windows of one entity in one partition, without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from features.block import Block, BoolArray, FloatArray, IntArray, KeyArray
from features.declare import FeatureError, WindowFeature
from features.kernel import own
from features.plan import LATENESS_MS, Arrays, StateError, WindowPlan
from features.rings import RingPool
from features.state import NO_TIME, KeySlots
from features.windows import Rows, prefixes_of_values, values_of_prefixes, window_rows

__all__ = ["EntityWindows"]

_VALUE_MAX = 2.0**62
SWEEP_STEPS_PER_ROW = 4
#: rows between two sweeps, at the least
SWEEP_ROWS = 64


class EntityWindows:
    """Windows of one entity in one partition: counts, sums and means, with or without delay."""

    def __init__(self, features: Sequence[WindowFeature], *, allowed_lateness_ms: int = LATENESS_MS) -> None:
        self._plan = WindowPlan(features, allowed_lateness_ms)
        self.allowed_lateness_ms = allowed_lateness_ms
        self.names = tuple(f.name for f in features)
        self._check()
        self._slots = KeySlots()
        self._events = RingPool(self._plan.ring_width, self._plan.ring_own)
        self._unswept = 0

    def _check(self) -> None:
        for feature in self._plan.features:
            if feature.aggregate == "risk":
                raise FeatureError(f"{feature.name}: a risk needs labels; use LabelledWindows for {feature.entity}")

    def __len__(self) -> int:
        """Keys held."""
        return len(self._slots)

    @property
    def entity(self) -> str:
        return self._plan.entity

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of a block that are read besides the event time."""
        return self._plan.fields

    @property
    def stream_time_ms(self) -> int | None:
        """Largest event time seen; None before the first row."""
        return None if self._slots.stream_time_ms == NO_TIME else self._slots.stream_time_ms

    @property
    def nbytes(self) -> int:
        """Bytes of memory the state holds."""
        return self._slots.nbytes + self._events.nbytes

    def process(self, block: Block) -> tuple[FloatArray, BoolArray]:
        """Features (n, k) float64 and late mask (n,) of the block's rows, which become part of the state."""
        return self.process_columns(*self._columns(block))

    def process_columns(self, keys: KeyArray, times: IntArray, values: FloatArray) -> tuple[FloatArray, BoolArray]:
        """`process` for bare columns: keys (n, 2), event times (n,) and one row of ``values`` (fields, n) per field."""
        n = len(times)
        keys, times, values = own(keys, np.uint64), own(times, np.int64), own(values, np.float64)
        out = np.empty((n, len(self.names)), np.float64)
        cursor = np.array([0, self._slots.stream_time_ms], np.int64)
        rows = self._rows(keys, times, values)
        while not window_rows(self._events.view, self._plan.kernel, rows, cursor, out):
            self._events.grow()
        self._sweep(n)
        return out, rows.late

    def _columns(self, block: Block) -> tuple[KeyArray, IntArray, FloatArray]:
        values = np.empty((len(self._plan.fields), len(block)), np.float64)
        for f, name in enumerate(self._plan.fields):
            values[f] = block.columns[name]
        if values.size and not np.abs(values).max() < _VALUE_MAX:  # also when one is NaN
            f, row = np.argwhere(~(np.abs(values) < _VALUE_MAX))[0]
            raise StateError(
                f"{self._plan.fields[f]}: {values[f, row]} in row {row} cannot be summed exactly (not finite or 2**62 "
                "and above); check records against the schema before they reach the windows"
            )
        return block.ids[self.entity].keys(), block.event_time_ms, values

    def _rows(self, keys: KeyArray, times: IntArray, values: FloatArray) -> Rows:
        slots, late = self._slots.assign(keys, times, self.allowed_lateness_ms)
        self._reserve()
        return Rows(slots, late, times, values)

    def _reserve(self) -> None:
        if self._slots.capacity <= len(self._events.heads):
            return
        for rings in self._pools():
            rings.reserve_slots(self._slots.capacity)

    def _pools(self) -> tuple[RingPool, ...]:
        return (self._events,)

    @property
    def _horizon(self) -> int:
        return self._slots.stream_time_ms - self._plan.span_ms

    def _sweep(self, n: int) -> None:
        """Frees some of the idle keys now and then: work in proportion to the rows, invisible in results."""
        self._unswept += n
        if self._unswept >= SWEEP_ROWS:
            self._sweep_steps(SWEEP_STEPS_PER_ROW * self._unswept)
            self._unswept = 0

    def _sweep_steps(self, steps: int) -> None:
        freed = self._slots.sweep(steps, self._horizon)
        if len(freed):
            for rings in self._pools():
                rings.release(freed)

    def to_arrays(self) -> Arrays:
        """The state as arrays in canonical form.

        ``identity`` (32,) uint8 says of what features, ``stream_time`` (1,) int64, ``keys`` (m, 2) uint64 in order,
        ``event_counts`` (m,), ``event_rows`` (sum, 1 + 2 fields) uint64: time and the values in 128-bit fixed point.
        """
        keys, slots, _ = self._slots.live(self._horizon)
        counts, rows = self._events.export(slots, self._horizon)
        values_of_prefixes(self._events.heads, slots, counts, rows)
        return {
            "identity": self._plan.identity.copy(),
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
        if not np.array_equal(arrays["identity"], state._plan.identity):
            raise StateError(
                f"the saved state by {state.entity} is of other features or another allowed lateness than "
                f"{', '.join(state.names)} with {state.allowed_lateness_ms} ms; rebuild it by replaying the log"
            )
        state._load(arrays)
        return state

    def _load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        counts = arrays["event_counts"].astype(np.int64)
        rows = np.array(arrays["event_rows"], np.uint64, order="C")
        newest = rows[np.cumsum(counts) - 1, 0].view(np.int64) if len(counts) else np.empty(0, np.int64)
        keys = np.ascontiguousarray(arrays["keys"], np.uint64)
        slots = self._slots.load(keys, newest, int(arrays["stream_time"][0]))
        self._reserve()
        prefixes_of_values(self._events.heads, slots, counts, rows)
        self._events.load(slots, counts, rows)
