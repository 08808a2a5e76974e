"""The stage by item: how much each item is looked at, what comes before and after it, and who was there lately."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays
from features.block import Block, BoolArray, FloatArray, Ids, IntArray, KeyArray
from features.kernel import own
from features.plan import StateError
from features.shopping_kernels import (
    CATEGORY,
    CLASSES,
    COUNTS,
    FIRST,
    ITEM_WORDS,
    LANDMARK,
    NEIGHBOURS,
    NEWEST,
    TOUCHED,
    VISITS,
    Codes,
    Items,
    Singles,
    item_rows,
)
from features.shopping_state import DAY_MS, Columns, ShoppingState, codes_of, keys_of, ragged
from features.state import NO_TIME

__all__ = ["HALF_LIVES_MS", "ItemRecords", "ItemState"]

#: of the counts: looks by the hour, the day and the week, carts and purchases by the week
HALF_LIVES_MS = (3_600_000.0, float(DAY_MS), 7.0 * DAY_MS, 7.0 * DAY_MS, 7.0 * DAY_MS)
_FORMAT = 1
#: stands for the category with id 0, as 0 says that there is none
_CATEGORY_0 = -(2**62)
#: format, neighbours, visits; visits in all, first, newest, touched, category; price
_HEAD = struct.Struct("<HHHqqqqqd")
_FIXED_BYTES = _HEAD.size + 4 * (COUNTS + CLASSES)
_NEIGHBOUR_BYTES = 8 + 4 * CLASSES
_VISIT_BYTES = 16


@dataclass(frozen=True, slots=True)
class ItemRecords:
    """What is published of m items.

    ``ids`` (m,) as they came. ``heads`` (m, 5) int64: visits there ever were, first and newest event time, time last
    touched, category code (0: none). ``price`` (m,). ``counts`` (m, COUNTS) decayed to the newest event, ``totals``
    (m, CLASSES) of all pairs, decayed to the time last touched as are the strengths. Neighbours of item i, the
    strongest first, are rows ``others_begin[i]:others_begin[i + 1]`` of ``others`` (codes) and ``strengths`` (by
    class); its visits, oldest first, ``visits_begin[i]:..`` of ``visits`` (session, time).
    """

    ids: Ids
    heads: IntArray
    price: FloatArray
    counts: Singles
    totals: Singles
    others_begin: IntArray
    others: Codes
    strengths: Singles
    visits_begin: IntArray
    visits: IntArray

    def __len__(self) -> int:
        return len(self.heads)

    def pack(self) -> list[bytes]:
        """One value per item, little endian: head, counts, totals, neighbours, strengths, visits."""
        out = []
        for i in range(len(self)):
            near = slice(int(self.others_begin[i]), int(self.others_begin[i + 1]))
            seen = slice(int(self.visits_begin[i]), int(self.visits_begin[i + 1]))
            head = _HEAD.pack(
                _FORMAT, near.stop - near.start, seen.stop - seen.start, *self.heads[i].tolist(), float(self.price[i])
            )
            columns = (self.counts[i], self.totals[i], self.others[near], self.strengths[near], self.visits[seen])
            out.append(head + b"".join(column.tobytes() for column in columns))
        return out

    @classmethod
    def unpack(cls, ids: Ids, values: Sequence[bytes]) -> ItemRecords:
        """The reverse of `pack`; StateError names an item whose value is not one."""
        m = len(values)
        heads, price = np.zeros((m, 5), np.int64), np.zeros(m)
        near, seen = np.zeros(m + 1, np.int64), np.zeros(m + 1, np.int64)
        for i, value in enumerate(values):
            try:
                version, others, visits, *words, price[i] = _HEAD.unpack_from(value)
            except struct.error as error:
                raise _unreadable(ids, i, str(error)) from error
            heads[i] = words
            near[i + 1], seen[i + 1] = near[i] + others, seen[i] + visits
            if version != _FORMAT or len(value) != _FIXED_BYTES + _NEIGHBOUR_BYTES * others + _VISIT_BYTES * visits:
                raise _unreadable(ids, i, f"format {version}, {len(value)} bytes")
        counts, totals = np.zeros((m, COUNTS), np.float32), np.zeros((m, CLASSES), np.float32)
        codes, strengths = np.zeros(near[-1], np.uint64), np.zeros((near[-1], CLASSES), np.float32)
        sessions = np.zeros((seen[-1], 2), np.int64)
        for i, value in enumerate(values):
            at = _HEAD.size
            parts = (counts[i], totals[i], codes[near[i] : near[i + 1]], strengths[near[i] : near[i + 1]])
            for part in (*parts, sessions[seen[i] : seen[i + 1]]):
                part[...] = np.frombuffer(value, part.dtype, part.size, at).reshape(part.shape)
                at += part.nbytes
        return cls(ids, heads, price, counts, totals, near, codes, strengths, seen, sessions)


def _unreadable(ids: Ids, i: int, reason: str) -> StateError:
    name = ids.take(np.array([i])).to_list()[0]
    return StateError(f"record of item {name}: not of this format ({reason}); have the item stage publish it again")


class ItemState(ShoppingState):
    """What is known of each item of one partition, see `ItemRecords`.

    At most ``neighbours`` other items are kept, the weakest giving way, and the ``visits`` last visits; an item is
    forgotten ``horizon_ms`` after it was last touched. Memory: ``36 * neighbours + 16 * visits + 171`` bytes per item
    and up to a third more, so 1 M items with 64 and 64 take 3.5 to 4.7 GB over all partitions.
    """

    _whose, _settings = "items", "neighbours, visits, half-life, horizon, format"

    def __init__(
        self,
        *,
        neighbours: int = 64,
        visits: int = 64,
        half_life_ms: int = 7 * DAY_MS,
        horizon_ms: int = 60 * DAY_MS,
    ) -> None:
        if not 1 <= neighbours < 2**16 or not 1 <= visits < 2**16 or half_life_ms <= 0 or horizon_ms <= 0:
            raise ValueError(
                f"neighbours is {neighbours}, visits {visits}, half_life_ms {half_life_ms}, horizon_ms {horizon_ms}: "
                "give 1 to 65535 neighbours and visits, and times above 0"
            )
        self.neighbours, self.visits = neighbours, visits
        self.half_life_ms, self.horizon_ms = half_life_ms, horizon_ms
        columns: Columns = {
            "others": ((neighbours,), np.uint64),
            "mass": ((neighbours,), np.float32),
            "strengths": ((neighbours, CLASSES), np.float32),
            "totals": ((CLASSES,), np.float32),
            "counts": ((COUNTS,), np.float32),
            "visits": ((visits,), np.int64),
            "visited": ((visits,), np.int64),
            "price": ((), np.float64),
            "heads": ((ITEM_WORDS,), np.int64),
            "dirty": ((), np.bool_),
            "codes": ((), np.uint64),
        }
        super().__init__(columns, (neighbours, visits, half_life_ms, horizon_ms, _FORMAT))

    def process(self, block: Block) -> None:
        """The block's rows become part of the state, see `features.shopping`."""
        n, times = len(block), own(block.event_time_ms, np.int64)
        words = {name: own(np.asarray(block.columns[name]), np.int64) for name in ("action", "lag", "other", "session")}
        codes, stream = self._names.learn(block.ids["item_id"]), self._slots.stream_time_ms
        slots, _ = self._slots.assign(keys_of(codes), times, 2**62)
        self._grow()
        self._parts["codes"].array[slots] = codes
        item_rows(
            self._view(),
            self._parts["dirty"].array,
            slots,
            times,
            words["action"],
            words["lag"],
            words["other"].view(np.uint64),
            words["session"],
            _categories(block),
            own(np.asarray(block.columns.get("price", np.full(n, np.nan))), np.float64),
            stream,
            self.horizon_ms,
            self.half_life_ms,
            np.array(HALF_LIVES_MS),
        )
        self._sweep(n)

    def changed(self) -> ItemRecords:
        """What was touched since the last call, and is not forgotten, in the order of the codes."""
        dirty = self._parts["dirty"].array
        slots = np.flatnonzero(dirty)
        dirty[slots] = False
        return self._take(slots[self._parts["heads"].array[slots, TOUCHED] > self._horizon])

    def records(self) -> ItemRecords:
        """All items that are not forgotten, in the order of their codes."""
        return self._take(np.flatnonzero(self._parts["heads"].array[:, TOUCHED] > self._horizon))

    def _take(self, slots: IntArray) -> ItemRecords:
        of = {name: part.array for name, part in self._parts.items()}
        slots = slots[np.argsort(of["codes"][slots])]
        heads = of["heads"][slots]
        scale = (2.0 ** ((heads[:, LANDMARK] - heads[:, TOUCHED]) / self.half_life_ms)).astype(np.float32)
        held, seen = heads[:, NEIGHBOURS], np.minimum(heads[:, VISITS], self.visits)
        # the strongest first, ties by place, so that lists can be cut anywhere; what is not there comes last
        mass = np.where(np.arange(self.neighbours) < held[:, None], -of["mass"][slots], np.inf)
        rows, nth = ragged(held)
        place = np.argsort(mass, axis=1, kind="stable")[rows, nth]
        visit_rows, nth = ragged(seen)
        at = (heads[visit_rows, VISITS] - seen[visit_rows] + nth) % self.visits
        visit_slots = slots[visit_rows]
        return ItemRecords(
            ids=self._names.ids(of["codes"][slots]),
            heads=heads[:, [VISITS, FIRST, NEWEST, TOUCHED, CATEGORY]],
            price=of["price"][slots],
            counts=of["counts"][slots],
            totals=of["totals"][slots] * scale[:, None],
            others_begin=np.append(0, np.cumsum(held)),
            others=of["others"][slots[rows], place],
            strengths=of["strengths"][slots[rows], place] * scale[rows, None],
            visits_begin=np.append(0, np.cumsum(seen)),
            visits=np.stack((of["visits"][visit_slots, at], of["visited"][visit_slots, at]), axis=1),
        )

    @property
    def _horizon(self) -> int:
        return self._slots.stream_time_ms - self.horizon_ms

    def _view(self) -> Items:
        return Items(*(self._parts[name].array for name in Items._fields))

    def _free(self, slots: IntArray) -> None:
        """The kernel clears an item that was never touched before it touches it."""
        self._parts["heads"].array[slots] = 0
        self._parts["heads"].array[slots, TOUCHED] = NO_TIME
        self._parts["dirty"].array[slots] = False

    def _named(self) -> Codes:
        held = self._parts["heads"].array[:, TOUCHED] != NO_TIME
        codes: Codes = self._parts["codes"].array[held]
        return codes

    def to_arrays(self) -> Arrays:
        """The state as plain arrays, items in the order of their codes: equal states give equal arrays."""
        keys, slots, newest = self._slots.live(self._horizon)
        of = {name: part.array[slots] for name, part in self._parts.items()}
        near = np.arange(self.neighbours) < of["heads"][:, NEIGHBOURS, None]
        seen = np.arange(self.visits) < of["heads"][:, VISITS, None]
        for name, there in (("others", near), ("mass", near), ("visits", seen), ("visited", seen)):
            of[name] = np.where(there, of[name], of[name].dtype.type(0))
        of["strengths"] = np.where(near[:, :, None], of["strengths"], np.float32(0))
        return of | {
            "identity": self._identity,
            "stream_time_ms": np.array([self._slots.stream_time_ms], np.int64),
            "newest": newest,
            "texts": self._names.kept(keys[:, 1]).texts(),
        }

    @staticmethod
    def _saved_keys(arrays: Mapping[str, npt.NDArray[Any]]) -> KeyArray:
        return keys_of(arrays["codes"])


def _categories(block: Block) -> IntArray:
    """(n,) int64 codes, 0 where there is none."""
    if "category" not in block.ids:
        return np.zeros(len(block), np.int64)
    there: BoolArray = np.asarray(block.columns.get("category_present", np.ones(len(block))), np.bool_)
    codes = codes_of(block.ids["category"]).view(np.int64)
    return np.where(there, np.where(codes == 0, _CATEGORY_0, codes), 0)
