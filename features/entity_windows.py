"""Windows of one entity in one partition, without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays
from features.block import Block, BoolArray, FloatArray, IntArray, KeyArray
from features.declare import FeatureError, WindowFeature
from features.kernel import own
from features.memory import room_below
from features.plan import LATENESS_MS, BoundError, StateError, WindowPlan, check_identity, key_name
from features.ring_windows import SWEEP_ROWS
from features.rings import RingPool, Words, export_rows, newest_times
from features.spill import new_spill, spill_drop
from features.state import NO_TIME, KeySlots
from features.windows import Plan, Rows, prefixes_of_values, values_of_prefixes, window_rows

__all__ = ["EntityWindows"]

_VALUE_MAX = 2.0**62


class EntityWindows:
    """Windows of one entity in one partition: counts, sums and means, with or without delay.

    ``bytes_max`` bounds `nbytes`. Where a row needs more, idle keys are dropped first, and if that is not enough
    `BoundError` says so.
    """

    def __init__(
        self,
        features: Sequence[WindowFeature],
        *,
        allowed_lateness_ms: int = LATENESS_MS,
        bytes_max: int | None = None,
    ) -> None:
        self._plan = WindowPlan(features, allowed_lateness_ms)
        self.allowed_lateness_ms = allowed_lateness_ms
        self.names = tuple(f.name for f in features)
        self._check()
        self._slots = KeySlots()
        self._events = RingPool(self._plan.ring_width, self._plan.ring_own)
        self._spill = new_spill(self._events.heads.shape[1])
        self._unswept = 0
        self._bytes_max: int | None = None
        #: from so many bytes on, idle keys are dropped before more is taken
        self.bytes_eager: int | None = None
        self.bytes_max = bytes_max

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
        """Bytes of memory the state has reserved; large arrays take real memory only where they were written."""
        pools = sum(rings.pool.nbytes for rings in self._pools())
        # slots that are promised but not yet reserved count already
        return self._slots.nbytes + pools + self._slots.capacity * self._slot_bytes

    @property
    def bytes_max(self) -> int | None:
        """Bound of `nbytes`; it may be changed at any time."""
        return self._bytes_max

    @bytes_max.setter
    def bytes_max(self, value: int | None) -> None:
        if value is not None and value < self.nbytes:
            raise ValueError(
                f"bytes_max is {value}; the state by {self.entity} has reserved {self.nbytes} bytes with {len(self)} "
                "keys: give more"
            )
        self._bytes_max = value

    @property
    def _slot_bytes(self) -> int:
        return sum(rings.head_bytes for rings in self._pools())

    def _room(self) -> int:
        """Bytes that may still be taken."""
        return room_below(self.nbytes, self.bytes_max, self.bytes_eager)

    def _lifted(self) -> bool:
        """Where nothing is idle, more may be taken up to the bound itself; False if that was so already."""
        lifted, self.bytes_eager = self.bytes_eager is not None, None
        return lifted

    def process(self, block: Block, *, wanted: bool = True) -> tuple[FloatArray, BoolArray]:
        """Features (n, k) float64 and late mask (n,) of the block's rows, which become part of the state.

        Where they are not ``wanted`` no features are computed, (n, 0): the state is the same.
        """
        return self.process_columns(*self._columns(block), wanted=wanted)

    def process_columns(
        self, keys: KeyArray, times: IntArray, values: FloatArray, *, wanted: bool = True
    ) -> tuple[FloatArray, BoolArray]:
        """`process` for bare columns: keys (n, 2), event times (n,) and one row of ``values`` (fields, n) per field."""
        n, assigned = len(times), 0
        keys, times, values = own(keys, np.uint64), own(times, np.int64), own(values, np.float64)
        plan, out = self._asked(n, wanted)
        cursor = np.array([0, self._slots.stream_time_ms], np.int64)
        rows = Rows(np.full(n, -1), np.empty(n, np.bool_), times, values)  # -1: not assigned yet, not to be looked at
        while assigned < n:
            assigned = self._assign(keys, rows, assigned)
            ready = rows if assigned == n else rows._replace(times=times[:assigned])
            while not window_rows(self._events.view, self._spill, plan, ready, cursor, out):
                if not self._events.grow(self._room()):
                    self._need_room(keys, rows, assigned, int(cursor[0]), int(cursor[1]))
            if assigned < n:
                self._need_room(keys, rows, assigned, assigned, int(cursor[1]))
        self._sweep(n)
        return out, rows.late

    def _asked(self, n: int, wanted: bool) -> tuple[Plan, FloatArray]:
        """What the kernels are to compute of n rows, and where to."""
        if wanted:
            return self._plan.kernel, np.empty((n, len(self.names)), np.float64)
        return self._plan.unasked, np.empty((n, 0), np.float64)

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

    def _assign(self, keys: KeyArray, rows: Rows, begin: int) -> int:
        """Slots and late flags of the rows from ``begin`` on; returns n, or the row for which there is no room."""
        end = self._slots.assign_from(
            begin, keys, rows.times, self.allowed_lateness_ms, rows.slots, rows.late, self._room, self._slot_bytes
        )
        self._reserve()
        return end

    def _need_room(self, keys: KeyArray, rows: Rows, assigned: int, row: int, stream: int) -> None:
        """Drops idle keys; BoundError where there are none. ``row`` is the next one, ``stream`` the time before it."""
        if self._sweep_all(stream - self._plan.span_ms) == 0 and not self._lifted():
            self._take_back(rows, assigned, row, stream)
            raise self._bound_error(f"row {row} of the block, of {self.entity} {key_name(keys[row])},", row)

    def _take_back(self, rows: Rows, assigned: int, row: int, stream: int) -> None:
        """Undoes what `_assign` did for rows from ``row`` on: it moved the stream time and their keys' newest times."""
        slots = np.unique(rows.slots[row:assigned])
        slots = slots[slots >= 0]
        self._slots.set_newest(slots, newest_times(self._events, slots, NO_TIME))
        self._slots.stream_time_ms = stream
        self._sweep_all(NO_TIME)

    def _bound_error(self, what: str, row: int, label: int = 0) -> BoundError:
        return BoundError(
            f"windows by {self.entity}: {what} needs more memory than bytes_max = {self.bytes_max} allows; {len(self)} "
            f"keys are held in {self.nbytes} bytes, none of them idle. Raise bytes_max, spread the keys over more "
            "partitions, or declare shorter windows",
            row,
            label,
        )

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
            self._sweep_some(self._unswept)
            self._unswept = 0

    def _sweep_some(self, rows: int) -> None:
        """The share of a sweep that so many rows owe."""
        self._free_keys(self._slots.steps(rows), self._horizon)

    def _sweep_all(self, horizon: int) -> int:
        """Frees all that is idle; returns how many entries."""
        total = 0
        while freed := self._free_keys(len(self._slots.table), horizon):
            total += freed
        return total

    def _free_keys(self, steps: int, horizon: int) -> int:
        """Frees what is idle among the next so many places; returns how many keys."""
        freed = self._slots.sweep(steps, horizon)
        if len(freed):
            spill_drop(self._events.view, self._spill, freed)
            for rings in self._pools():
                rings.release(freed)
        return len(freed)

    def to_arrays(self) -> Arrays:
        """The state as arrays in canonical form.

        ``identity`` (32,) uint8 says of what features, ``stream_time`` (1,) int64, ``keys`` (m, 2) uint64 in order,
        ``event_counts`` (m,), ``event_rows`` (sum, 1 + 2 fields) uint64: time and the values in 128-bit fixed point.
        """
        keys, slots, _ = self._slots.live(self._horizon)
        counts, rows = self._event_rows(slots)
        return {
            "identity": self._plan.identity.copy(),
            "stream_time": np.array([self._slots.stream_time_ms], np.int64),
            "keys": keys,
            "event_counts": counts,
            "event_rows": rows,
        }

    def _event_rows(self, slots: IntArray) -> tuple[IntArray, Words]:
        """Rows per slot (m,) and all rows with their values, in order of time, spilled or not."""
        counts, rows = self._events.export(slots, self._horizon)
        values_of_prefixes(self._events.heads, slots, counts, rows)
        position = np.full(self._slots.capacity + 1, -1)  # the last is for spills that nobody owns
        position[slots] = np.arange(len(slots))
        owners = position[self._spill.owners]
        numbers = np.argsort(owners)[np.count_nonzero(owners < 0) :]  # of keys that are not expired
        if len(numbers) == 0:
            return counts, rows
        owners = owners[numbers]
        spills = self._events.view._replace(heads=self._spill.heads)
        spilled_counts, spilled = export_rows(spills, numbers, self._horizon)
        values_of_prefixes(self._spill.heads, numbers, spilled_counts, spilled)
        ends, spilled_ends = np.cumsum(counts), np.cumsum(spilled_counts)
        times, spilled_times = rows[:, 0].view(np.int64), spilled[:, 0].view(np.int64)
        # spilled rows come after those of the same time, as they came
        places = [
            begin + np.searchsorted(times[begin:end], spilled_times[first:last], side="right")
            for begin, end, first, last in zip(
                ends[owners] - counts[owners], ends[owners], spilled_ends - spilled_counts, spilled_ends, strict=True
            )
        ]
        counts[owners] += spilled_counts
        return counts, np.insert(rows, np.concatenate(places), spilled, axis=0)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], features: Sequence[WindowFeature], **settings: int
    ) -> Self:
        """The reverse of `to_arrays`; ``settings`` as for the constructor. StateError if of other features."""
        state = cls(features, **settings)
        check_identity(arrays, state._plan.identity, state)
        needed = sum(array.nbytes for array in arrays.values())
        if state.bytes_max is not None and needed > state.bytes_max:
            raise StateError(
                f"the saved state by {state.entity} has {len(arrays['keys'])} keys in {needed} bytes, more than "
                f"bytes_max = {state.bytes_max}; raise bytes_max"
            )
        state._load(arrays)
        return state

    def _load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        counts = arrays["event_counts"].astype(np.int64)
        rows = np.array(arrays["event_rows"], np.uint64, order="C")
        newest = rows[np.cumsum(counts) - 1, 0].view(np.int64) if len(counts) else np.empty(0, np.int64)
        keys = own(arrays["keys"], np.uint64)
        slots = self._slots.load(keys, newest, int(arrays["stream_time"][0]))
        self._reserve()
        prefixes_of_values(self._events.heads, slots, counts, rows)
        self._events.load(slots, counts, rows)
