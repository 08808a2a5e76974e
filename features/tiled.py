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

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays
from features.block import Block, BoolArray, FloatArray, IntArray
from features.durations import FeatureError
from features.plan import LATENESS_MS, StateError
from features.ring_windows import RingWindows
from features.rings import RingPool
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


class TiledWindows(RingWindows):
    """Counts, sums and means over windows of whole tiles, of an entity of one id field or several."""

    def __init__(
        self,
        features: Sequence[WindowFeature],
        *,
        allowed_lateness_ms: int = LATENESS_MS,
        bytes_max: int | None = None,
    ) -> None:
        super().__init__(features, allowed_lateness_ms=allowed_lateness_ms, bytes_max=bytes_max)
        for f in features:
            if not f.tile_ms:
                raise FeatureError(f"{f.name}: its window is not made of tiles; give tile=, or use StageWindows")
        check_tiles(features)
        self._present = present_fields(features)
        self._span_ms = max(f.span_ms for f in features) + allowed_lateness_ms
        self._plan = _plan(features, self._values, self._present, allowed_lateness_ms)
        self._rings = RingPool(1 + len(self._values) + len(self._present), _RING_OWN)

    def _row_values(self, block: Block) -> FloatArray:
        """(n, fields + optional ones with a mean) float64: the numbers, 0 where missing, and 1 where one is there."""
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
        return values

    def _run(
        self, slots: IntArray, late: BoolArray, times: IntArray, values: FloatArray, cursor: IntArray, out: FloatArray
    ) -> int:
        ring = self._rings.view
        done = tiled_rows(ring, ring.pool.view(np.float64), self._plan, Rows(slots, late, times, values), cursor, out)
        return 0 if done else 1

    def to_arrays(self) -> Arrays:
        """The state as arrays in canonical form.

        ``identity`` (32,) uint8 says of what features, ``stream_time`` (1,) int64, ``keys`` (m, 2) uint64 in order,
        ``key_times`` (m,) int64 their newest event times, ``tile_counts`` (m,), ``tile_rows`` (sum, 1 + columns)
        uint64: first finest tile * 2**32 + events, and per column the bits of the sum.
        """
        keys, slots, times = self._slots.live(self._horizon)
        oldest = (self._slots.stream_time_ms - self.allowed_lateness_ms) // self._plan.unit_ms
        find_bounds(self._plan, oldest, self._plan.bounds)
        counts, rows = self._rings.export(slots, rows_before(self._plan.bounds[-1]) if len(slots) else 0)
        return {
            **self._head_arrays(keys),
            "key_times": times,
            "tile_counts": counts,
            "tile_rows": rows,
        }

    def _load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        slots = self._load_slots(arrays["keys"], arrays["key_times"], int(arrays["stream_time"][0]))
        rows = np.array(arrays["tile_rows"], np.uint64, order="C")
        self._rings.load(slots, arrays["tile_counts"].astype(np.int64), rows)
