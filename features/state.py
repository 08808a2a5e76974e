"""Keys to slots without a Python object per key: an open-addressing table of 128-bit keys.

A table is an array ``(capacity, 4)`` uint64, capacity a power of two, of entries ``hi, lo, payload, time``;
payload 0 marks an empty place, ``time`` (int64 ms as bits) is the newest event time of the key. An entry whose
time is at or below the *horizon* is expired: lookups treat it as absent, and it is removed when convenient,
so that when exactly never shows. Kernels never allocate: they return where they stopped and Python grows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, IntArray, KeyArray
from features.kernel import helper, kernel, prefetch, signed
from features.memory import LINE_WORDS, UNBOUNDED, GrowingArray, larger, zeros

__all__ = [
    "NO_TIME",
    "KeySlots",
    "Table",
    "copy_entry",
    "live_places",
    "power_of_two",
    "table_capacity",
    "table_find",
    "table_full",
    "table_home",
    "table_prefetch",
    "table_remove",
    "table_sweep",
]

Table = npt.NDArray[np.uint64]

#: earlier than every event time, with room to subtract any window
NO_TIME = -(2**62)
TABLE_CAPACITY_MIN = 64
SLOT_CAPACITY_MIN = 64

_EMPTY = np.uint64(0)
_MIX_HI = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)

# rows ahead that are prefetched
_AHEAD = 16
# places swept for each new key, and rows for which one more is
_STEPS_PER_KEY, _ROWS_PER_STEP = 4, 2

# columns of KeySlots.meta
USED, FREE, CAPACITY, STREAM = 0, 1, 2, 3


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n`` (and 1)."""
    return 1 << max(0, int(n) - 1).bit_length()


def live_places(table: Table, horizon: int) -> IntArray:
    """(m,) places of the entries that are not expired, by key (hi, lo): the canonical order of exports."""
    places = np.flatnonzero((table[:, 2] != _EMPTY) & (table[:, 3].view(np.int64) > horizon))
    hi = table[places, 0]
    # integers first, as their upper word is 0: to sort them by one word takes a fifth of the time
    integers, texts = places[hi == 0], places[hi != 0]
    of_texts = np.lexsort((table[texts, 1], table[texts, 0]))
    return np.concatenate([integers[np.argsort(table[integers, 1])], texts[of_texts]])


@helper
def table_home(hi: np.uint64, lo: np.uint64, mask: int) -> int:
    """The place where the key would stand were there no others."""
    x = lo ^ (hi * _MIX_HI)
    x = (x ^ (x >> _SHIFT_1)) * _MIX_1
    x = (x ^ (x >> _SHIFT_2)) * _MIX_2
    return signed((x ^ (x >> _SHIFT_3)) & np.uint64(mask))


@helper
def table_prefetch(table: Table, keys: KeyArray, row: int) -> None:
    """Asks for where the key of ``row`` (any number) stands: its home's cache line and the next one."""
    if row < keys.shape[0]:
        home = 4 * table_home(keys[row, 0], keys[row, 1], table.shape[0] - 1)
        prefetch(table, home)
        prefetch(table, home + LINE_WORDS)


@helper
def table_find(table: Table, hi: np.uint64, lo: np.uint64) -> int:
    """Place of the key, or ``-1 - place`` with the empty place where it belongs."""
    mask = table.shape[0] - 1
    place = table_home(hi, lo, mask)
    while table[place, 2] != _EMPTY:
        if table[place, 1] == lo and table[place, 0] == hi:
            return place
        place = (place + 1) & mask
    return -1 - place


@helper
def table_full(table: Table, count: int) -> bool:
    """True where one more entry needs a larger table (load 0.7)."""
    full: bool = (count + 1) * 10 > table.shape[0] * 7
    return full


def table_capacity(count: int) -> int:
    """Places of the smallest table that takes so many entries without growing."""
    return power_of_two((10 * count + 6) // 7)


@kernel
def copy_entry(source: Table, place: int, target: Table, at: int) -> None:
    """``target[at] = source[place]``, which numba would do by way of a copy on the heap."""
    for column in range(4):
        target[at, column] = source[place, column]


@kernel
def table_remove(table: Table, place: int) -> None:
    """Empties the place and moves later entries of its run back, so that no tombstones are needed."""
    mask = table.shape[0] - 1
    hole = place
    probe = (place + 1) & mask
    while table[probe, 2] != _EMPTY:
        home = table_home(table[probe, 0], table[probe, 1], mask)
        if ((probe - home) & mask) >= ((probe - hole) & mask):
            copy_entry(table, probe, table, hole)
            hole = probe
        probe = (probe + 1) & mask
    table[hole, 2] = _EMPTY


@kernel
def table_rebuild(old: Table, new: Table) -> int:
    """Puts all entries into the empty table ``new``; returns how many."""
    count = 0
    for place in range(old.shape[0]):
        if old[place, 2] != _EMPTY:
            copy_entry(old, place, new, -1 - table_find(new, old[place, 0], old[place, 1]))
            count += 1
    return count


@kernel
def table_sweep(table: Table, hand: int, steps: int, horizon: int, freed: IntArray) -> tuple[int, int]:
    """Removes expired entries among the next ``steps`` places from ``hand`` on.

    Writes their payloads to ``freed`` (at least ``steps`` long); returns (new hand, how many).
    """
    mask = table.shape[0] - 1
    count = 0
    for _ in range(steps):
        if table[hand, 2] != _EMPTY and signed(table[hand, 3]) <= horizon:
            freed[count] = signed(table[hand, 2])
            count += 1
            table_remove(table, hand)
        else:
            hand = (hand + 1) & mask
    return hand, count


@kernel
def _assign(
    table: Table,
    free: IntArray,
    meta: IntArray,
    keys: KeyArray,
    times: IntArray,
    lateness_ms: int,
    slots: IntArray,
    late: BoolArray,
    begin: int,
) -> int:
    """Rows ``begin..`` get slot and late flag; returns the row that needs a larger table or more slots, or n."""
    stream = meta[STREAM]
    row = begin
    while row < keys.shape[0]:
        table_prefetch(table, keys, row + _AHEAD)
        t = times[row]
        late[row] = t < stream - lateness_ms
        place = table_find(table, keys[row, 0], keys[row, 1])
        if place >= 0:
            slots[row] = signed(table[place, 2]) - 1
            if not late[row] and t > signed(table[place, 3]):
                table[place, 3] = np.uint64(t)
        elif late[row]:
            slots[row] = -1
        else:
            live = meta[USED] - meta[FREE]
            if (meta[FREE] == 0 and meta[USED] == meta[CAPACITY]) or table_full(table, live):
                break
            if meta[FREE] > 0:
                meta[FREE] -= 1
                slot = free[meta[FREE]]
            else:
                slot = meta[USED]
                meta[USED] += 1
            place = -1 - place
            table[place, 0] = keys[row, 0]
            table[place, 1] = keys[row, 1]
            table[place, 2] = np.uint64(slot + 1)
            table[place, 3] = np.uint64(t)
            slots[row] = slot
        stream = max(stream, t)
        row += 1
    meta[STREAM] = stream
    return row


class KeySlots:
    """Keys of one entity in one partition, each with a dense slot number, and the partition's stream time.

    ``stream_time_ms`` is the largest event time seen. A row is *late* if its event time is more than the
    allowed lateness below the stream time before it; a late row of an unknown key gets slot -1.
    """

    def __init__(self) -> None:
        self.table: Table = zeros((TABLE_CAPACITY_MIN, 4), np.uint64)
        self._free = GrowingArray((SLOT_CAPACITY_MIN,), np.int64)
        self._meta = np.array([0, 0, SLOT_CAPACITY_MIN, NO_TIME], np.int64)
        self._hand = 0
        #: keys after the last sweep
        self._swept = 0

    def __len__(self) -> int:
        """Slots in use."""
        return int(self._meta[USED] - self._meta[FREE])

    @property
    def capacity(self) -> int:
        """Slot numbers are below this; it grows."""
        return int(self._meta[CAPACITY])

    @property
    def stream_time_ms(self) -> int:
        return int(self._meta[STREAM])

    @stream_time_ms.setter
    def stream_time_ms(self, value: int) -> None:
        self._meta[STREAM] = value

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + self._free.array.nbytes

    def assign(self, keys: KeyArray, times: IntArray, lateness_ms: int) -> tuple[IntArray, BoolArray]:
        """Slot (n,) int64 and late flag (n,) of each row; moves the stream time."""
        slots, late = np.empty(len(keys), np.int64), np.empty(len(keys), np.bool_)
        self.assign_from(0, keys, times, lateness_ms, slots, late, lambda: UNBOUNDED, 0)
        return slots, late

    def assign_from(
        self,
        row: int,
        keys: KeyArray,
        times: IntArray,
        lateness_ms: int,
        slots: IntArray,
        late: BoolArray,
        room: Callable[[], int],
        slot_bytes: int,
    ) -> int:
        """`assign` of the rows from ``row`` on into ``slots`` and ``late``; returns n, or the row that does not fit.

        ``room`` says how many bytes more may be held, ``slot_bytes`` how many of them the owner needs per new slot.
        """
        while True:
            row = _assign(self.table, self._free.array, self._meta, keys, times, lateness_ms, slots, late, row)
            if row == len(keys) or not self._grow(room(), slot_bytes):
                return row

    def _grow(self, room: int, slot_bytes: int) -> bool:
        """Makes room for more keys; False where ``room`` bytes are too few."""
        if table_full(self.table, len(self)):
            if room < 2 * self.table.nbytes:  # for a moment the old table stands beside the new one
                return False
            grown = zeros((2 * len(self.table), 4), np.uint64)
            table_rebuild(self.table, grown)
            self.table, self._hand = grown, 0
            return True
        slot_bytes += self._free.row_bytes
        more = min(larger(self.capacity, slot_bytes) - self.capacity, room // slot_bytes)
        if more < SLOT_CAPACITY_MIN:
            return False
        self._meta[CAPACITY] += more
        self._free.grow(self.capacity)
        return True

    def set_newest(self, slots: IntArray, times: IntArray) -> None:
        """Says anew what the newest event times of these slots' keys are; NO_TIME has them freed by the next sweep."""
        newest = np.zeros(self.capacity, np.int64)
        newest[slots] = times
        named = np.zeros(self.capacity + 1, np.bool_)
        named[slots + 1] = True
        places = named[self.table[:, 2].view(np.int64)]
        self.table[places, 3] = newest[self.table[places, 2].view(np.int64) - 1].view(np.uint64)

    def load(self, keys: KeyArray, times: IntArray, stream_time_ms: int) -> IntArray:
        """Fills an empty table, of just the size, with these keys and their newest times; returns their slots."""
        self.table = zeros((max(TABLE_CAPACITY_MIN, table_capacity(len(keys))), 4), np.uint64)
        self._meta[CAPACITY] = max(self.capacity, len(keys))
        self._free.grow(self.capacity)
        slots, _ = self.assign(keys, times, 2**62)
        self.stream_time_ms = stream_time_ms
        return slots

    def steps(self, rows: int) -> int:
        """Places to sweep after so many rows: most for keys that are new, for which the idle ones are to make room."""
        return _STEPS_PER_KEY * max(0, len(self) - self._swept) + rows // _ROWS_PER_STEP

    def sweep(self, steps: int, horizon: int) -> IntArray:
        """Frees expired keys among the next ``steps`` places; returns their slots, to be cleared by the caller."""
        steps = min(steps, len(self.table))
        freed = np.empty(steps, np.int64)
        self._hand, count = table_sweep(self.table, self._hand, steps, horizon, freed)
        slots = freed[:count] - 1
        begin = int(self._meta[FREE])
        self._free.array[begin : begin + count] = slots
        self._meta[FREE] += count
        self._swept = len(self)
        return slots

    def live(self, horizon: int) -> tuple[KeyArray, IntArray, IntArray]:
        """Keys (m, 2), slots (m,) and newest times (m,) of the keys that are not expired, in canonical order."""
        places = live_places(self.table, horizon)
        times: IntArray = self.table[places, 3].view(np.int64)
        return self.table[places, :2], self.table[places, 2].view(np.int64) - 1, times
