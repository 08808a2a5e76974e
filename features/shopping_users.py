"""The stage by user: what each user did last, and what the items are to be told of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, check_like, of_texts, texts_of
from features.block import Block, BoolArray, Ids, IntArray
from features.kernel import own
from features.memory import GrowingArray
from features.plan import LATENESS_MS, StateError
from features.shopping_kernels import LAGS, LENGTH, USER_WORDS, Codes, UserRows, Users, user_rows
from features.state import NO_TIME, KeySlots

__all__ = ["FAN", "Contexts", "Moves", "Names", "UserState", "codes_of"]

#: rows that one event can send to the item stage
FAN = 1 + 2 * LAGS
DAY_MS = 86_400_000
_SWEEP_ROWS = 256
_SWEEP_STEPS_PER_ROW = 2
_FOLD = np.uint64(0x9E3779B97F4A7C15)


def codes_of(ids: Ids) -> Codes:
    """(n,) uint64: 64 bits that stand for an id: of an integer itself, of a text the fold of its 128-bit key."""
    keys = ids.keys()
    folded: Codes = np.where(keys[:, 0] == 0, keys[:, 1], keys[:, 1] ^ (keys[:, 0] * _FOLD))
    return folded


class Names:
    """From codes back to ids: integers are their codes, the others are kept here."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.by_code: dict[int, str] = {}
        self.learn(Ids(mixed=list(texts)))

    def learn(self, ids: Ids) -> Codes:
        """`codes_of` the ids, which are known from now on."""
        codes = codes_of(ids)
        if ids.ints is None:
            keys = ids.keys()
            for code, name, hi in zip(codes.tolist(), ids.to_list(), keys[:, 0].tolist(), strict=True):
                if hi:
                    self.by_code[code] = str(name)
        return codes

    def ids(self, codes: Codes) -> Ids:
        """The ids of codes that were learnt."""
        ints = codes.view(np.int64)
        if not self.by_code:
            return Ids(ints=ints)
        known = self.by_code
        return Ids.of([known.get(code, number) for code, number in zip(codes.tolist(), ints.tolist(), strict=True)])

    def keep(self, codes: Codes) -> None:
        """Forgets all but these."""
        if self.by_code:
            self.by_code = {code: self.by_code[code] for code in np.unique(codes).tolist() if code in self.by_code}

    def texts(self) -> npt.NDArray[np.bytes_]:
        """All names, sorted; integers too large for 64 bits are texts here."""
        return of_texts(sorted(self.by_code.values()))


@dataclass(frozen=True, slots=True)
class Moves:
    """Rows for the item stage, see `features.shopping`: ``rows`` and ``place`` (m,) say of which event, ``item_id`` and
    ``columns`` (int64) are what is sent."""

    rows: IntArray
    place: IntArray
    item_id: Ids
    columns: dict[str, IntArray]


@dataclass(frozen=True, slots=True)
class Contexts:
    """What was known of each event's user right after it, the event included unless it was late.

    ``items`` (n, last) uint64 codes, newest first, of which ``kept`` (n,) are there, with ``times`` and ``actions``;
    the first ``length`` (n,) of them (all, where it is more) are of the present session, whose number is ``session``
    (n,).
    ``late`` (n,) bool.
    """

    items: Codes
    times: IntArray
    actions: npt.NDArray[np.int8]
    kept: IntArray
    length: IntArray
    session: IntArray
    late: BoolArray
    event_time_ms: IntArray
    event_actions: IntArray
    names: Names

    def __len__(self) -> int:
        return len(self.kept)

    def moves(self) -> Moves:
        """What the item stage is to be told of the events that were not late."""
        n = len(self)
        items, others, lags = np.zeros((n, FAN), np.uint64), np.zeros((n, FAN), np.uint64), np.zeros((n, FAN), np.int64)
        there = np.zeros((n, FAN), np.bool_)
        there[:, 0] = ~self.late
        items[:, 0] = self.items[:, 0]
        in_session = np.minimum(self.kept, self.length)
        for lag in range(1, min(LAGS, self.items.shape[1] - 1) + 1):
            here, back = 2 * lag - 1, 2 * lag
            there[:, here] = there[:, back] = ~self.late & (in_session > lag)
            items[:, here], others[:, here], lags[:, here] = self.items[:, 0], self.items[:, lag], -lag
            items[:, back], others[:, back], lags[:, back] = self.items[:, lag], self.items[:, 0], lag
        rows, place = np.nonzero(there)
        columns = {
            "event_time": self.event_time_ms[rows],
            "action": self.event_actions[rows],
            "lag": lags[there],
            "other": others[there].view(np.int64),
            "session": self.session[rows],
        }
        return Moves(rows.astype(np.int64), place.astype(np.int64), self.names.ids(items[there]), columns)


class UserState:
    """The last ``last`` events of each user of one partition, in sessions.

    A session ends where the ``session_id`` changes, or, of events without one, after ``gap_ms`` of silence. A user is
    forgotten ``horizon_ms`` after the last event. Memory: ``last * 17 + 94`` bytes per user: 10 M users with 20 events
    each take 4.4 GB over all partitions.
    """

    def __init__(
        self,
        *,
        last: int = 20,
        gap_ms: int = 30 * 60_000,
        horizon_ms: int = 30 * DAY_MS,
        allowed_lateness_ms: int = LATENESS_MS,
    ) -> None:
        if last < 2 or not 0 < gap_ms <= horizon_ms or not 0 <= allowed_lateness_ms < horizon_ms:
            raise ValueError(
                f"last is {last}, gap_ms {gap_ms}, horizon_ms {horizon_ms}, allowed_lateness_ms {allowed_lateness_ms}: "
                "give 2 events or more, a gap within the horizon, and less lateness than the horizon"
            )
        self.last, self.gap_ms = last, gap_ms
        self.horizon_ms, self.allowed_lateness_ms = horizon_ms, allowed_lateness_ms
        self._slots = KeySlots()
        self._names = Names()
        self._names_max = 1024
        rows = self._slots.capacity
        self._items = GrowingArray((rows, last), np.uint64)
        self._times = GrowingArray((rows, last), np.int64)
        self._actions = GrowingArray((rows, last), np.int8)
        self._heads = GrowingArray((rows, USER_WORDS), np.int64)

    def __len__(self) -> int:
        """Users held."""
        return len(self._slots)

    @property
    def stream_time_ms(self) -> int | None:
        """Largest event time seen; None before the first row."""
        return None if self._slots.stream_time_ms == NO_TIME else self._slots.stream_time_ms

    @property
    def nbytes(self) -> int:
        """Bytes of memory reserved, texts of ids not counted."""
        return self._slots.nbytes + sum(part.array.nbytes for part in self._parts())

    def process(self, block: Block) -> Contexts:
        """The context of each row of the block, whose rows become part of the state."""
        n, times = len(block), own(block.event_time_ms, np.int64)
        items, keys = self._names.learn(block.ids["item_id"]), block.ids["user_id"].keys()
        given, sessions = np.zeros(n, np.bool_), np.zeros(n, np.uint64)
        if "session_id" in block.ids:
            given = np.asarray(block.columns.get("session_id_present", np.ones(n)), np.bool_)
            sessions = codes_of(block.ids["session_id"])
        actions = own(np.asarray(block.columns["action"]), np.int64)
        stream = self._slots.stream_time_ms
        slots, late = self._slots.assign(keys, times, self.allowed_lateness_ms)
        for part in self._parts():
            part.grow(self._slots.capacity)
        out = UserRows(
            np.zeros((n, self.last), np.uint64),
            np.zeros((n, self.last), np.int64),
            np.zeros((n, self.last), np.int8),
            *(np.zeros(n, np.int64) for _ in range(3)),
        )
        users = Users(*(part.array for part in self._parts()))
        codes = own(keys[:, 1] ^ (keys[:, 0] * _FOLD), np.uint64)
        user_rows(
            users, out, slots, late, codes, items, times, actions, sessions, given, stream, self.gap_ms, self.horizon_ms
        )
        contexts = Contexts(*out, late, times, actions, self._names)
        self._sweep(n)
        return contexts

    def _parts(self) -> tuple[GrowingArray, ...]:
        return self._items, self._times, self._actions, self._heads

    def _sweep(self, n: int) -> None:
        """Frees some idle users, which never shows, and the names of items that no user has any more."""
        steps = _SWEEP_STEPS_PER_ROW * n + _SWEEP_ROWS
        self._heads.array[self._slots.sweep(steps, self._slots.stream_time_ms - self.horizon_ms)] = 0
        if len(self._names.by_code) > self._names_max:
            names = Names()
            names.by_code = dict(self._names.by_code)  # contexts that are out keep the old ones
            names.keep(self._items.array)
            self._names, self._names_max = names, max(1024, 2 * len(names.by_code))

    def to_arrays(self) -> Arrays:
        """The state as plain arrays, users in the order of their keys: equal states give equal arrays."""
        keys, slots, newest = self._slots.live(self._slots.stream_time_ms - self.horizon_ms)
        heads = self._heads.array[slots]
        there = np.arange(self.last) < heads[:, :1]
        items = np.where(there, self._items.array[slots], 0)
        names = Names()
        names.by_code = dict(self._names.by_code)
        names.keep(items[there])
        return {
            "identity": self._identity(),
            "stream_time_ms": np.array([self._slots.stream_time_ms], np.int64),
            "keys": keys,
            "newest": newest,
            "heads": heads,
            "items": items,
            "times": np.where(there, self._times.array[slots], 0),
            "actions": np.where(there, self._actions.array[slots], np.int8(0)).astype(np.int8),
            "texts": names.texts(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], **settings: int) -> UserState:
        """The reverse of `to_arrays`; StateError where the arrays are of other settings."""
        state = cls(**settings)
        check_like(arrays, state.to_arrays(), "users")
        if not np.array_equal(arrays["identity"], state._identity()):
            raise StateError(
                f"the saved state of users has settings {arrays['identity'].tolist()}, this one "
                f"{state._identity().tolist()} (last, gap, horizon, lateness); give the same, or replay the log"
            )
        slots = state._slots.load(arrays["keys"], arrays["newest"], int(arrays["stream_time_ms"][0]))
        for part, name in zip(state._parts(), ("items", "times", "actions", "heads"), strict=True):
            part.grow(state._slots.capacity)
            part.array[slots] = arrays[name]
        state._names = Names(texts_of(arrays["texts"]))
        return state

    def _identity(self) -> IntArray:
        return np.array([self.last, self.gap_ms, self.horizon_ms, self.allowed_lateness_ms, LENGTH], np.int64)
