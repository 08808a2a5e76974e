"""The stage by user: what each user did last, and what the items are to be told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays
from features.block import Block, BoolArray, Ids, IntArray, KeyArray
from features.kernel import own
from features.plan import LATENESS_MS
from features.shopping_kernels import LAGS, LENGTH, USER_WORDS, Codes, UserRows, Users, user_rows
from features.shopping_state import DAY_MS, Columns, Names, ShoppingState, codes_of, codes_of_keys

__all__ = ["FAN", "Contexts", "Moves", "UserState"]

#: rows that one event can send to the item stage
FAN = 1 + 2 * LAGS


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


class UserState(ShoppingState):
    """The last ``last`` events of each user of one partition, in sessions.

    A session ends where the ``session_id`` changes, or, of events without one, after ``gap_ms`` of silence; yet events
    that are all alone, as of users who come once a day, are one session until two belong together: that one and the
    last of those alone do. A user is forgotten ``horizon_ms`` after the last event. Memory: ``last * 17 + 102`` bytes
    per user, and up to a quarter more where room was just made: 10 M users take 4.5 to 5.5 GB over all partitions.
    """

    _whose, _settings = "users", "last, gap, horizon, lateness, format"

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
        columns: Columns = {
            "items": ((last,), np.uint64),
            "times": ((last,), np.int64),
            "actions": ((last,), np.int8),
            "heads": ((USER_WORDS,), np.int64),
        }
        super().__init__(columns, (last, gap_ms, horizon_ms, allowed_lateness_ms, LENGTH))

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
        self._grow()
        out = UserRows(
            np.zeros((n, self.last), np.uint64),
            np.zeros((n, self.last), np.int64),
            np.zeros((n, self.last), np.int8),
            *(np.zeros(n, np.int64) for _ in range(3)),
        )
        users = Users(*(self._parts[name].array for name in Users._fields))
        codes = codes_of_keys(keys)
        user_rows(
            users, out, slots, late, codes, items, times, actions, sessions, given, stream, self.gap_ms, self.horizon_ms
        )
        contexts = Contexts(*out, late, times, actions, self._names)
        self._sweep(n)
        return contexts

    @property
    def _horizon(self) -> int:
        return self._slots.stream_time_ms - self.horizon_ms

    def _free(self, slots: IntArray) -> None:
        self._parts["heads"].array[slots] = 0

    def _named(self) -> Codes:
        items: Codes = self._parts["items"].array
        return items

    def to_arrays(self) -> Arrays:
        """The state as plain arrays, users in the order of their keys: equal states give equal arrays."""
        keys, slots, newest = self._slots.live(self._horizon)
        of = {name: part.array[slots] for name, part in self._parts.items()}
        there = np.arange(self.last) < of["heads"][:, :1]
        return {
            "identity": self._identity,
            "stream_time_ms": np.array([self._slots.stream_time_ms], np.int64),
            "keys": keys,
            "newest": newest,
            "heads": of["heads"],
            "items": np.where(there, of["items"], np.uint64(0)),
            "times": np.where(there, of["times"], 0),
            "actions": np.where(there, of["actions"], np.int8(0)),
            "texts": self._names.kept(of["items"][there]).texts(),
        }

    @staticmethod
    def _saved_keys(arrays: Mapping[str, npt.NDArray[Any]]) -> KeyArray:
        return arrays["keys"]
