"""What states with one ring per key have in common, whatever the rows of their rings mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays
from features.block import Block, BoolArray, FloatArray, IntArray, KeyArray
from features.kernel import own
from features.keys import joined_keys
from features.memory import room_below
from features.plan import LATENESS_MS, BoundError, check_identity, entity_of, identity_of, key_name
from features.rings import RingPool
from features.state import NO_TIME, KeySlots
from features.windowfeature import WindowFeature

__all__ = ["SWEEP_ROWS", "RingWindows"]

#: rows between two sweeps, at the least
SWEEP_ROWS = 64


class RingWindows(ABC):
    """Windows of one entity, of one id field or several, in one partition. A subclass makes ``_rings`` and ``_span_ms``
    when it is constructed, and says what the columns are and what becomes of them.

    ``bytes_max`` bounds `nbytes`. Where a row needs more, idle keys are dropped first, and if that is not enough
    `BoundError` says so; the state then holds the rows before it, but knows the keys and times of those after it, and
    is to be rebuilt from the log.
    """

    _rings: RingPool
    #: rows of a key that was last seen so long ago can be forgotten
    _span_ms: int

    def __init__(
        self,
        features: Sequence[WindowFeature],
        *,
        allowed_lateness_ms: int = LATENESS_MS,
        bytes_max: int | None = None,
    ) -> None:
        self.bytes_max = bytes_max
        #: from so many bytes on, idle keys are dropped before more is taken
        self.bytes_eager: int | None = None
        self.entity = entity_of(features, allowed_lateness_ms)
        self.allowed_lateness_ms = allowed_lateness_ms
        self.names = tuple(f.name for f in features)
        self.keys = features[0].keys
        self._values = tuple(dict.fromkeys(name for f in features for name in f.fields))
        self._identity = identity_of(features, allowed_lateness_ms)
        self._slots = KeySlots()
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
        # slots that are promised but not yet reserved count already
        return self._slots.nbytes + self._rings.pool.nbytes + self._slots.capacity * self._rings.head_bytes

    def _room(self) -> int:
        """Bytes that may still be taken."""
        return room_below(self.nbytes, self.bytes_max, self.bytes_eager)

    def process(self, block: Block) -> tuple[FloatArray, BoolArray]:
        """Features (n, k) float64 and late mask (n,) of the block's rows, which become part of the state."""
        return self.process_columns(*self.columns(block))

    def columns(self, block: Block) -> tuple[KeyArray, IntArray, npt.NDArray[Any]]:
        """What `process_columns` takes of a block; StateError where a value cannot be, and nothing has changed."""
        parts = [block.ids[name].keys() for name in self.keys]
        return parts[0] if len(parts) == 1 else joined_keys(parts), block.event_time_ms, self._row_values(block)

    @abstractmethod
    def _row_values(self, block: Block) -> npt.NDArray[Any]:
        """(n, columns) values of the block's rows, checked."""

    def process_columns(
        self, keys: KeyArray, times: IntArray, values: npt.NDArray[Any]
    ) -> tuple[FloatArray, BoolArray]:
        """`process` for bare columns: keys (n, 2), event times (n,) and ``values`` (n, columns), see `columns`."""
        n, assigned = len(times), 0
        keys, times, values = own(keys, np.uint64), own(times, np.int64), own(values, values.dtype.type)
        slots, late = np.full(n, -1), np.empty(n, np.bool_)  # -1: not assigned yet, not to be looked at
        out = np.empty((n, len(self.names)), np.float64)
        cursor = np.array([0, self._slots.stream_time_ms], np.int64)
        while assigned < n:
            assigned = self._slots.assign_from(
                assigned, keys, times, self.allowed_lateness_ms, slots, late, self._room, self._rings.head_bytes
            )
            self._reserve()
            while need := self._run(slots, late, times[:assigned], values, cursor, out):
                if not self._grow(need):
                    self._need_room(keys, int(cursor[0]), int(cursor[1]))
            if assigned < n:
                self._need_room(keys, assigned, int(cursor[1]))
        self._sweep(n)
        return out, late

    @abstractmethod
    def _run(
        self,
        slots: IntArray,
        late: BoolArray,
        times: IntArray,
        values: npt.NDArray[Any],
        cursor: IntArray,
        out: FloatArray,
    ) -> int:
        """Rows from ``cursor[0]`` on, as many as there are times; 0, or what must grow before it is called again."""

    def _grow(self, need: int) -> bool:
        """Makes room for what `_run` needs; False where the bound does not allow it."""
        return self._rings.grow(self._room())

    def _need_room(self, keys: KeyArray, row: int, stream: int) -> None:
        """Drops idle keys; BoundError where there are none. ``row`` is the next one, ``stream`` the time before it."""
        total = 0
        while freed := self._free_keys(len(self._slots.table), stream - self._span_ms):
            total += freed
        if total == 0 and self.bytes_eager is not None:
            self.bytes_eager = None  # nothing is idle: up to the bound itself
        elif total == 0:
            raise BoundError(
                f"windows by {self.entity}: row {row} of the block, of {self.entity} {key_name(keys[row])}, needs more "
                f"memory than bytes_max = {self.bytes_max} allows; {len(self)} keys are held in {self.nbytes} bytes, "
                f"none of them idle, for {', '.join(self.names)}. Raise bytes_max, spread the keys over more "
                "partitions, or declare shorter windows",
                row,
            )

    @abstractmethod
    def to_arrays(self) -> Arrays:
        """The state as arrays in canonical form."""

    @abstractmethod
    def _load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Fills an empty state with what `to_arrays` gave."""

    def _load_slots(self, keys: npt.NDArray[Any], newest: IntArray, stream_time_ms: int) -> IntArray:
        """Slots of these keys, put into an empty state."""
        slots = self._slots.load(own(keys, np.uint64), own(newest, np.int64), stream_time_ms)
        self._reserve()
        return slots

    def _reserve(self) -> None:
        if self._slots.capacity > len(self._rings.heads):
            self._rings.reserve_slots(self._slots.capacity)

    @property
    def _horizon(self) -> int:
        return self._slots.stream_time_ms - self._span_ms

    def _sweep(self, n: int) -> None:
        """Frees some of the idle keys now and then: work in proportion to the rows, invisible in results."""
        self._unswept += n
        if self._unswept < SWEEP_ROWS:
            return
        self._free_keys(self._slots.steps(self._unswept), self._horizon)
        self._unswept = 0

    def _free_keys(self, steps: int, horizon: int) -> int:
        """Frees the idle keys among the next so many places; returns how many."""
        freed = self._slots.sweep(steps, horizon)
        if len(freed):
            self._rings.release(freed)
        return len(freed)

    def _head_arrays(self, keys: KeyArray) -> Arrays:
        """``identity`` (32,) uint8 says of what features, ``stream_time`` (1,) int64, ``keys`` (m, 2) uint64."""
        stream_time = np.array([self._slots.stream_time_ms], np.int64)
        return {"identity": self._identity.copy(), "stream_time": stream_time, "keys": keys}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], features: Sequence[WindowFeature], **settings: Any
    ) -> Self:
        """The reverse of `to_arrays`; ``settings`` as for the constructor. StateError if of other features."""
        state = cls(features, **settings)
        check_identity(arrays, state._identity, state)
        state._load(arrays)
        return state
