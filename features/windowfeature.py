"""What a feature over an entity's events is, as plain data; `features.declare` makes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from features.durations import FeatureError, duration_text
from features.memory import head_words

__all__ = [
    "HALF_LIVES",
    "PAST",
    "TILED",
    "Aggregate",
    "WindowFeature",
    "check_tiles",
    "memory_text",
    "present_fields",
]

Aggregate = Literal[
    "count", "sum", "mean", "risk", "min", "max", "std", "first", "last", "previous", "since_last", "since_first",
    "distinct", "first_seen", "ratio", "zscore", "decayed_count", "decayed_sum", "distance", "speed",
]  # fmt: skip

#: aggregates that prefix sums give in O(log n); the others look at the window's events
_PREFIX_SUMS = frozenset({"count", "sum", "mean", "risk"})
#: aggregates that compare the event with those before it: it is not in their window itself
PAST = frozenset({"previous", "since_last", "since_first", "first_seen", "ratio", "zscore", "distance", "speed"})
#: aggregates that can be made of tiles
TILED = frozenset({"count", "sum", "mean"})
#: a decayed sum forgets an event after so many half-lives, when a millionth of it is left
HALF_LIVES = 20
_TABLE_BYTES = 46  # an entry of 32 bytes in a table that is full at 70%


@dataclass(frozen=True, slots=True)
class WindowFeature:
    """An aggregate over the entity's events in ``(t - delay - window, t - delay]``.

    ``field`` is None where only times matter. ``last`` > 0 keeps the newest so many of these events, ``gap_ms`` > 0
    those of the session: since the last gap of that length or longer. ``second`` is the longitude beside ``field`` =
    latitude. ``optional`` says that a value may be missing (NaN), which prefix sums cannot hold. ``tile_ms`` > 0 makes
    the window of whole tiles, see `features.tiled`.
    risk = share of the window's events with a visible positive label, 0 where there is none.
    """

    name: str
    entity: str
    aggregate: Aggregate
    field: str | None
    window_ms: int
    delay_ms: int = 0
    unit: str = ""
    last: int = 0
    gap_ms: int = 0
    half_life_ms: int = 0
    second: str | None = None
    optional: bool = False
    tile_ms: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """The id fields that make up the entity."""
        return tuple(self.entity.split("+"))

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that are aggregated."""
        return tuple(name for name in (self.field, self.second) if name is not None)

    @property
    def by_prefix_sums(self) -> bool:
        """True where prefix sums hold it (`EntityWindows`, `LabelledWindows`); else tiles do, or a history."""
        plain = self.aggregate in _PREFIX_SUMS and not (self.last or self.gap_ms or self.optional or self.tile_ms)
        return plain and len(self.keys) == 1

    @property
    def span_ms(self) -> int:
        """How far back of an event it looks."""
        return self.window_ms + self.delay_ms

    def definition(self) -> dict[str, object]:
        """What is computed, as plain data: the part that goes into the schema hash."""
        plain: dict[str, object] = {
            "name": self.name,
            "entity": self.entity,
            "aggregate": self.aggregate,
            "field": self.field,
            "window_ms": self.window_ms,
            "delay_ms": self.delay_ms,
        }
        more = {"last": self.last, "gap_ms": self.gap_ms, "half_life_ms": self.half_life_ms, "second": self.second}
        more |= {"tile_ms": self.tile_ms}
        return plain | {name: value for name, value in more.items() if value}

    def what(self) -> str:
        """What is computed, in words."""
        words = self.aggregate.replace("_", " ")
        return f"{words} of {', '.join(self.fields)}" if self.fields else words

    def extent(self) -> str:
        """Over which events: "7d", "last 5 within 90d", "session 30m within 1d", "half-life 1h", "30d by 1d"."""
        window = duration_text(self.window_ms)
        if self.last:
            return f"last {self.last} within {window}"
        if self.gap_ms:
            return f"session {duration_text(self.gap_ms)} within {window}"
        if self.tile_ms:
            return f"{window} by {duration_text(self.tile_ms)}"
        return f"half-life {duration_text(self.half_life_ms)}" if self.half_life_ms else window


def present_fields(features: Iterable[WindowFeature]) -> tuple[str, ...]:
    """Fields of which tiles must count the values: those with a mean and values that may be missing."""
    return tuple(dict.fromkeys(f.fields[0] for f in features if f.aggregate == "mean" and f.optional))


def check_tiles(features: Iterable[WindowFeature]) -> None:
    """FeatureError where an entity's tiles do not lie within one another, as they are kept in one sequence."""
    widest: dict[str, WindowFeature] = {}
    for f in sorted((f for f in features if f.tile_ms), key=lambda f: f.tile_ms):
        finer = widest.setdefault(f.entity, f)
        if f.tile_ms % finer.tile_ms:
            tiles = f"{duration_text(finer.tile_ms)} (of {finer.name})"
            raise FeatureError(
                f"{f.name}: tiles of {duration_text(f.tile_ms)} are not made of whole tiles of {tiles}, which "
                f"{f.entity} has too; choose tiles that divide one another, such as 1h, 6h and 1d"
            )
        widest[f.entity] = f


def memory_text(features: Iterable[WindowFeature]) -> str:
    """Memory of the one state that holds these features, such as "24 B/event + 190 B/key", all arrays being full.

    An event or tile is kept for the longest window, its delay and the allowed lateness. Arrays grow ahead of need and
    rings are powers of two: two to three times as much may be reserved.
    """
    features = tuple(features)
    fields = len({name for f in features for name in f.fields})
    if features[0].tile_ms:
        return f"{8 * (1 + fields + len(present_fields(features)))} B/tile + {8 * 5 + _TABLE_BYTES} B/key"
    hints = len({edge for f in features for edge in (f.delay_ms, f.span_ms)} - {0})
    words = fields * (2 if features[0].by_prefix_sums else 1)  # a prefix sum is two words
    event, key = 8 * (1 + words), 8 * (head_words(3 + words + hints) + 1) + _TABLE_BYTES
    if any(f.aggregate == "risk" for f in features):
        event += _TABLE_BYTES  # the transaction, for its label to find it
        key += 8 * (head_words(3 + hints) + head_words(5))  # rings of known frauds and of labels not yet due
    return f"{event} B/event + {key} B/key"
