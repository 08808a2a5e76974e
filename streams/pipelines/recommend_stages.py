"""The stages of the recommend pipeline as pure functions of their logs: by user and by item.

A stage sees Blocks and gives Blocks; no clock, no randomness, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, of_optional, optional_of, prefixed, under
from features.block import Block, BoolArray, IntArray
from features.engine import Dedupe
from features.plan import BoundError
from features.shopping import FAN, Contexts, ItemRecords, ItemState, UserState

__all__ = ["ItemStage", "ShopSettings", "UserRows", "UserStage", "said_times"]

#: before the names of the arrays of a stage's parts
_USERS, _SEEN, _ITEMS = "users/", "dedupe/", "items/"
#: rows by item, some seven for an event, after which items are published however time goes; powers of two
_ROWS_MIN, _ROWS_MAX = 1 << 12, 1 << 16


@dataclass(frozen=True, slots=True)
class ShopSettings:
    """What the results of the stages depend on besides their logs."""

    allowed_lateness_ms: int = 3_600_000
    dedupe_ms: int = 86_400_000
    dedupe_entries: int = 20_000_000
    #: event time between two publications of the items that have changed
    publish_ms: int = 60_000
    #: of the users or items of one partition, looked at before each block; None: no bound
    state_bytes_max: int | None = None


@dataclass(slots=True)
class UserRows:
    """What the user stage makes of a block: its rows without repeated events, and what is known of each one's user."""

    block: Block
    contexts: Contexts
    duplicates: int


def _check_room(key: str, whose: str, state: UserState | ItemState, settings: ShopSettings) -> None:
    """BoundError: the state has grown beyond the bound."""
    if settings.state_bytes_max is not None and state.nbytes > settings.state_bytes_max:
        raise BoundError(
            f"{key}: {len(state)} {whose} of one partition are held in {state.nbytes} bytes, more than the "
            f"{settings.state_bytes_max} allowed; raise the bound, or make topics with more partitions "
            "and read them with a new --group",
            0,
        )


class UserStage:
    """What users have done last, and the events seen before."""

    def __init__(self, settings: ShopSettings) -> None:
        self._settings = settings
        self._users = UserState(allowed_lateness_ms=settings.allowed_lateness_ms)
        self._seen = Dedupe(**_dedupe_settings(settings))

    @property
    def identity(self) -> list[int]:
        """The settings that a saved state of users is tied to."""
        numbers: list[int] = self._users.to_arrays()["identity"].tolist()
        return numbers

    def process(self, block: Block) -> UserRows:
        """Drops repeated events; the others become part of the state. BoundError: see `ShopSettings`."""
        _check_room("user_id", "users", self._users, self._settings)
        repeated = self._seen.process(block.ids["event_id"].keys(), block.event_time_ms)
        duplicates = int(np.count_nonzero(repeated))
        rows = block.take(~repeated) if duplicates else block
        return UserRows(rows, self._users.process(rows), duplicates)

    def to_arrays(self) -> Arrays:
        """The state in canonical form: equal for equal input, however it was cut into blocks."""
        return prefixed(_USERS, self._users.to_arrays()) | prefixed(_SEEN, self._seen.to_arrays())

    @classmethod
    def from_arrays(cls, settings: ShopSettings, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The reverse of `to_arrays`. StateError if of other settings."""
        stage = cls(settings)
        stage._users = UserState.from_arrays(
            under(_USERS, arrays), allowed_lateness_ms=settings.allowed_lateness_ms
        )  # fmt: skip
        stage._seen = Dedupe.from_arrays(under(_SEEN, arrays), **_dedupe_settings(settings))
        return stage


def _dedupe_settings(settings: ShopSettings) -> dict[str, int]:
    return {
        "window_ms": settings.dedupe_ms,
        "allowed_lateness_ms": settings.allowed_lateness_ms,
        "entries_max": settings.dedupe_entries,
    }


def rows_by_item(made: UserRows) -> Block:
    """What the item stage is told of the rows.

    An event has up to `FAN` rows, for its own item and for those before it: the offset of each is the event's times
    `FAN` and its number among them, so that offsets rise and a row that is sent twice is known again.
    """
    block, moves = made.block, made.contexts.moves()
    rows = moves.rows
    own = moves.columns["lag"] == 0
    category = block.ids["category"].take(rows)
    return Block(
        topic=block.topic,
        partition=block.partition,
        next_offset=block.next_offset * FAN,
        offsets=block.offsets[rows] * FAN + moves.place,
        timestamps=block.timestamps[rows],
        ids={"item_id": moves.item_id, "category": category},
        columns={
            **moves.columns,
            "category_present": block.columns["category_present"][rows].astype(np.bool_) & own,
            "price": np.where(own, block.columns["price"][rows].astype(np.float64), np.nan),
        },
        epoch=block.epoch,
    )


def said_times(block: Block) -> IntArray:
    """(n,) the times of the events, none later than it was sent: one of a clock that is ahead is no reason to take all
    others for old. Records without a time of sending (0) are taken at their word."""
    sent = block.timestamps
    return np.where(sent > 0, np.minimum(block.event_time_ms, sent), block.event_time_ms)


def _enough(count: IntArray) -> BoolArray:
    """(n,) bool: after so many rows it is time to publish."""
    doubled = count // _ROWS_MIN + 1
    below = (count % _ROWS_MIN == 0) & (doubled & (doubled - 1) == 0) & (count < _ROWS_MAX)
    enough: BoolArray = (count > 0) & (below | (count % _ROWS_MAX == 0))
    return enough


class ItemStage:
    """What is known of items; those that have changed are published when event time passes a multiple of
    ``publish_ms``, see `said_times`, before the row that passes it counts, so that the boundaries of blocks never
    show. Of a log whose time stands still, as one of days, also after some thousand rows, then after twice as many, up
    to `_ROWS_MAX`, until time goes on."""

    def __init__(self, settings: ShopSettings) -> None:
        self._settings = settings
        self._items = ItemState()
        self._newest_ms: int | None = None
        #: rows since time went on
        self._rows = 0

    @property
    def identity(self) -> list[int]:
        """The settings that a saved state of items is tied to."""
        numbers: list[int] = self._items.to_arrays()["identity"].tolist()
        return numbers

    def process(self, block: Block) -> Iterator[ItemRecords]:
        """Takes the rows; yields what is to be published meanwhile. To be exhausted. BoundError: see `ShopSettings`."""
        _check_room("item_id", "items", self._items, self._settings)
        publish_ms = self._settings.publish_ms
        times = said_times(block)
        if not len(times):
            return
        before = int(times[0]) if self._newest_ms is None else self._newest_ms
        newest = np.maximum(np.maximum.accumulate(times), before)
        spans = newest // publish_ms
        goes_on = np.diff(spans, prepend=before // publish_ms) != 0
        # of each row, how many came before it since time went on
        place = np.arange(len(times))
        since = np.maximum.accumulate(np.where(goes_on, place, -self._rows))
        count = place - since
        self._rows = int(count[-1]) + 1
        begin = 0
        for row in np.flatnonzero(goes_on | _enough(count)).tolist():
            if row > begin:
                self._items.process(block.part(begin, row))
            begin = row
            yield self._items.changed()
        self._items.process(block.part(begin, len(block)))
        self._newest_ms = int(newest[-1])

    def to_arrays(self) -> Arrays:
        """The state in canonical form: equal for equal input, however it was cut into blocks."""
        return {
            "newest_ms": of_optional(self._newest_ms),
            "rows": np.array([self._rows], np.int64),
            **prefixed(_ITEMS, self._items.to_arrays()),
        }

    @classmethod
    def from_arrays(cls, settings: ShopSettings, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The reverse of `to_arrays`. StateError if of other settings."""
        stage = cls(settings)
        stage._items = ItemState.from_arrays(under(_ITEMS, arrays))
        stage._newest_ms, stage._rows = optional_of(arrays["newest_ms"]), int(arrays["rows"][0])
        return stage
