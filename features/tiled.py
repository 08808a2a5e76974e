"""Windows of one entity in one partition that are made of whole tiles: buckets are kept, not events.

An event of time t is in tile ``floor(t / tile)``. The window ``(t-d-w, t-d]`` becomes the tiles ``floor((t-d-w)/tile) +
1`` to ``floor((t-d)/tile)``, so that each edge is off by less than a tile. What it holds is bounded on both sides:

    exact (t-d-w+tile, t-d]   is within   tiled   is within   exact (t-d-w, t-d+tile)

of the events that have come, the present one included where d = 0. Where no delay is given and a key's events come in
order, a count is therefore too small, if at all, by the events of the oldest tile, never too large. A late row sees the
tiles that a row just within the allowed lateness sees at its far edge, so the left half of the bound is not for it.

Sums are float64 in the order of arrival: with rows out of order their last bits may differ from those in order.
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
from features.kernel import own
from features.keys import joined_keys
from features.plan import FORMAT, LATENESS_MS, Arrays, StateError
from features.rings import RingPool
from features.state import NO_TIME, KeySlots
from features.tiled_kernels import COUNT, MEAN, SUM, Rows, TilePlan, find_bounds, rows_before, tiled_rows
from features.windowfeature import WindowFeature, check_tiles, present_fields

__all__ = ["TiledWindows"]

_AGGREGATES = {"count": COUNT, "sum": SUM, "mean": MEAN}
_VALUE_MAX = 2.0**62
#: of a slot in the rings: when its tiles were last joined
_RING_OWN = 1


def _plan(
    features: Sequence[WindowFeature], fields: tuple[str, ...], present: tuple[str, ...], lateness_ms: int
) -> TilePlan:
    unit_ms = min(f.tile_ms for f in features)
    keys = [(f.tile_ms // unit_ms, f.delay_ms // unit_ms, f.span_ms // unit_ms) for f in features]
    windows = list(dict.fromkeys(keys))
    spans: dict[int, int] = {}
    for ratio, _, span in sorted(windows):
        spans[ratio] = max(span, spans.get(ratio, 0))
    compiled = []
    for f, key in zip(features, keys, strict=True):
        value = fields.index(f.fields[0]) if f.fields else 0
        counted = len(fields) + present.index(f.fields[0]) if f.aggregate == "mean" and f.optional else -1
        compiled.append((_AGGREGATES[f.aggregate], windows.index(key), value, counted))
    return TilePlan(
        unit_ms=unit_ms,
        lateness_ms=lateness_ms,
        levels=np.array(list(spans.items()), np.int64),
        windows=np.array(windows, np.int64),
        features=np.array(compiled, np.int64),
        spans=np.maximum.accumulate(np.array(list(spans.values()), np.int64)),
        bounds=np.zeros(len(spans), np.int64),
        totals=np.zeros((len(windows), 1 + len(fields) + len(present)), np.float64),
    )


class TiledWindows:
    """Counts, sums and means over windows of whole tiles, of an entity of one id field or several."""

    def __init__(self, features: Sequence[WindowFeature], *, allowed_lateness_ms: int = LATENESS_MS) -> None:
        if not features or len({f.entity for f in features}) != 1:
            raise FeatureError(
                f"window features of one entity are needed, got {sorted({f.entity for f in features}) or 'none'}; "
                "give the result of FeatureSet.for_entity(..)"
            )
        if allowed_lateness_ms < 0:
            raise ValueError(f"allowed_lateness_ms is {allowed_lateness_ms}; it cannot be negative: give 0 or more")
        for f in features:
            if not f.tile_ms:
                raise FeatureError(f"{f.name}: its window is not made of tiles; give tile=, or use StageWindows")
        check_tiles(features)
        self.allowed_lateness_ms = allowed_lateness_ms
        self.names = tuple(f.name for f in features)
        self.entity = features[0].entity
        self.keys = features[0].keys
        self._values = tuple(dict.fromkeys(name for f in features for name in f.fields))
        self._present = present_fields(features)
        self._span_ms = max(f.span_ms for f in features) + allowed_lateness_ms
        self._plan = _plan(features, self._values, self._present, allowed_lateness_ms)
        definition = [[f.definition() for f in features], allowed_lateness_ms, FORMAT]
        digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).digest()
        self._identity = np.frombuffer(digest, np.uint8)
        self._slots = KeySlots()
        self._tiles = RingPool(1 + len(self._values) + len(self._present), _RING_OWN)
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
        """Bytes of memory the state has reserved; large arrays take real memory only where they were written."""
        return self._slots.nbytes + self._tiles.nbytes

    def process(self, block: Block) -> tuple[FloatArray, BoolArray]:
        """Features (n, k) float64 and late mask (n,) of the block's rows, which become part of the state."""
        return self.process_columns(*self.columns(block))

    def columns(self, block: Block) -> tuple[KeyArray, IntArray, FloatArray]:
        """What `process_columns` takes of a block; StateError where a value cannot be, and nothing has changed."""
        parts = [block.ids[name].keys() for name in self.keys]
        values = np.empty((len(block), len(self._values) + len(self._present)), np.float64)
        for f, name in enumerate(self._values):
            values[:, f] = block.columns[name]
        numbers = values[:, : len(self._values)]
        missing = np.isnan(numbers)
        wrong = ~missing & ~(np.abs(numbers) < _VALUE_MAX)
        if wrong.any():
            row, f = np.argwhere(wrong)[0]
            raise StateError(
                f"{self._values[f]}: {numbers[row, f]} in row {row} cannot be summed (infinite or 2**62 and above); "
                "check records against the schema before they reach the windows"
            )
        numbers[missing] = 0.0
        for p, name in enumerate(self._present):
            values[:, len(self._values) + p] = ~missing[:, self._values.index(name)]
        return parts[0] if len(parts) == 1 else joined_keys(parts), block.event_time_ms, values

    def process_columns(self, keys: KeyArray, times: IntArray, values: FloatArray) -> tuple[FloatArray, BoolArray]:
        """`process` for bare columns: keys (n, 2), event times (n,) and ``values`` (n, columns), see `columns`."""
        n = len(times)
        keys, times, values = own(keys, np.uint64), own(times, np.int64), own(values, np.float64)
        out = np.empty((n, len(self.names)), np.float64)
        cursor = np.array([0, self._slots.stream_time_ms], np.int64)
        slots, late = self._slots.assign(keys, times, self.allowed_lateness_ms)
        self._reserve()
        rows = Rows(slots, late, times, values)
        while True:
            ring = self._tiles.view
            if tiled_rows(ring, ring.pool.view(np.float64), self._plan, rows, cursor, out):
                break
            del ring  # so that the pool can grow where it is
            self._tiles.grow()
        self._sweep(n)
        return out, late

    def _reserve(self) -> None:
        if self._slots.capacity > len(self._tiles.heads):
            self._tiles.reserve_slots(self._slots.capacity)

    @property
    def _horizon(self) -> int:
        return self._slots.stream_time_ms - self._span_ms

    def _sweep(self, n: int) -> None:
        """Frees some of the idle keys now and then: work in proportion to the rows, invisible in results."""
        self._unswept += n
        if self._unswept < SWEEP_ROWS:
            return
        freed = self._slots.sweep(SWEEP_STEPS_PER_ROW * self._unswept, self._horizon)
        self._unswept = 0
        if len(freed):
            self._tiles.release(freed)

    def to_arrays(self) -> Arrays:
        """The state as arrays in canonical form.

        ``identity`` (32,) uint8 says of what features, ``stream_time`` (1,) int64, ``keys`` (m, 2) uint64 in order,
        ``key_times`` (m,) int64 their newest event times, ``tile_counts`` (m,), ``tile_rows`` (sum, 1 + columns)
        uint64: first finest tile * 2**32 + events, and per column the bits of the sum.
        """
        keys, slots, times = self._slots.live(self._horizon)
        oldest = (self._slots.stream_time_ms - self.allowed_lateness_ms) // self._plan.unit_ms
        find_bounds(self._plan, oldest, self._plan.bounds)
        counts, rows = self._tiles.export(slots, rows_before(self._plan.bounds[-1]) if len(slots) else 0)
        return {
            "identity": self._identity.copy(),
            "stream_time": np.array([self._slots.stream_time_ms], np.int64),
            "keys": keys,
            "key_times": times,
            "tile_counts": counts,
            "tile_rows": rows,
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
        keys = np.ascontiguousarray(arrays["keys"], np.uint64)
        times = np.ascontiguousarray(arrays["key_times"], np.int64)
        slots = state._slots.load(keys, times, int(arrays["stream_time"][0]))
        state._reserve()
        rows = np.array(arrays["tile_rows"], np.uint64, order="C")
        state._tiles.load(slots, arrays["tile_counts"].astype(np.int64), rows)
        return state
