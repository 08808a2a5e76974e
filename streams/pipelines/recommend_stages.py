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
from features.block import Block, IntArray
from features.engine import Dedupe
from features.shopping import FAN, Contexts, ItemRecords, ItemState, UserState

__all__ = ["ItemStage", "ShopSettings", "UserRows", "UserStage", "said_times"]

#: before the names of the arrays of a stage's parts
_USERS, _SEEN, _ITEMS = "users/", "dedupe/", "items/"


@dataclass(frozen=True, slots=True)
class ShopSettings:
    """What the results of the stages depend on besides their logs."""

    allowed_lateness_ms: int = 3_600_000
    dedupe_ms: int = 86_400_000
    dedupe_entries: int = 20_000_000
    #: event time between two publications of the items that have changed
    publish_ms: int = 60_000


@dataclass(slots=True)
class UserRows:
    """What the user stage makes of a block: its rows without repeated events, and what is known of each one's user."""

    block: Block
    contexts: Contexts
    duplicates: int


class UserStage:
    """What users have done last, and the events seen before."""

    def __init__(self, settings: ShopSettings) -> None:
        self._users = UserState(allowed_lateness_ms=settings.allowed_lateness_ms)
        self._seen = Dedupe(**_dedupe_settings(settings))

    @property
    def identity(self) -> list[int]:
        """The settings that a saved state of users is tied to."""
        numbers: list[int] = self._users.to_arrays()["identity"].tolist()
        return numbers

    def process(self, block: Block) -> UserRows:
        """Drops repeated events; the others become part of the state."""
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


class ItemStage:
    """What is known of items; those that have changed are published when event time passes a multiple of
    ``publish_ms``, see `said_times`, before the row that passes it counts, so that the boundaries of blocks never
    show."""

    def __init__(self, settings: ShopSettings) -> None:
        self._items = ItemState()
        self._publish_ms = settings.publish_ms
        self._newest_ms: int | None = None

    @property
    def identity(self) -> list[int]:
        """The settings that a saved state of items is tied to."""
        numbers: list[int] = self._items.to_arrays()["identity"].tolist()
        return numbers

    def process(self, block: Block) -> Iterator[ItemRecords]:
        """Takes the rows; yields what is to be published meanwhile. To be exhausted."""
        times = said_times(block)
        if not len(times):
            return
        before = int(times[0]) if self._newest_ms is None else self._newest_ms
        newest = np.maximum(np.maximum.accumulate(times), before)
        spans = newest // self._publish_ms
        passed = np.flatnonzero(np.diff(spans, prepend=before // self._publish_ms)).tolist()
        begin = 0
        for row in passed:
            if row > begin:
                self._items.process(block.part(begin, row))
            begin = row
            yield self._items.changed()
        self._items.process(block.part(begin, len(block)))
        self._newest_ms = int(newest[-1])

    def to_arrays(self) -> Arrays:
        """The state in canonical form: equal for equal input, however it was cut into blocks."""
        return {"newest_ms": of_optional(self._newest_ms), **prefixed(_ITEMS, self._items.to_arrays())}

    @classmethod
    def from_arrays(cls, settings: ShopSettings, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The reverse of `to_arrays`. StateError if of other settings."""
        stage = cls(settings)
        stage._items = ItemState.from_arrays(under(_ITEMS, arrays))
        stage._newest_ms = optional_of(arrays["newest_ms"])
        return stage
