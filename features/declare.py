"""The little language of features: say per entity what is counted over which window, by plain Python.

>>> cards = by("card_id").count("1d").mean("amount", "1d")
>>> [f.name for f in cards]
['card_count_1d', 'card_mean_amount_1d']

A window of width ``w`` and delay ``d`` at time ``t`` holds the entity's events with event time in
``(t-d-w, t-d]``; without a delay the event itself is in it. Events of the same time count only if they are
earlier in the log. Instead of a width, ``last=5`` takes the newest five of them, ``session="30m"`` those since
the last gap of 30 minutes or longer; ``within=`` says how far back such a window may reach at most (90d, 1d).

``tile="1d"`` makes the window of a count, sum or mean of whole tiles, from ``floor((t-d-w)/tile) + 1`` to
``floor((t-d)/tile)``: less to keep, and either edge is off by less than a tile. See `features.tiled`.

What compares the event with its past (previous, since_last, since_first, first_seen, ratio, zscore, distance,
speed) has the same window without the event itself.

A missing value (NaN) is skipped, while count counts events. A sum or mean of no value is 0, a count, distinct
count or decayed sum too; any other aggregate of no value is NaN. Everything is checked when declared: a
`FeatureError` names feature, field and remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

from features.durations import DURATION_MS_MAX, FeatureError, duration_ms, duration_text
from features.featureset import Feature, FeatureSet
from features.rowfeatures import (
    RowFeature,
    bucket,
    category,
    checked_name,
    day_of_month,
    field,
    hour,
    log,
    night,
    number_unit,
    weekday,
    weekend,
)
from features.schema import TRANSACTIONS, EventSchema
from features.windowfeature import HALF_LIVES, TILED, Aggregate, WindowFeature

__all__ = [
    "Aggregate",
    "Feature",
    "FeatureError",
    "FeatureSet",
    "Group",
    "Over",
    "RowFeature",
    "WindowFeature",
    "bucket",
    "by",
    "category",
    "day_of_month",
    "duration_ms",
    "field",
    "hour",
    "log",
    "night",
    "weekday",
    "weekend",
]

_LAST_WITHIN = "90d"
_SESSION_WITHIN = "1d"
_LAST_MAX = 100_000
_TILE_MS_MIN = 600_000
_TILES_MAX = 1_000  # a row looks at all of them
_UNITS = {
    "count": "events", "risk": "share", "since_last": "s", "since_first": "s", "distinct": "values",
    "first_seen": "flag", "ratio": "ratio", "zscore": "std", "decayed_count": "decayed events",
    "distance": "km", "speed": "km/h",
}  # fmt: skip


class Over(TypedDict, total=False):
    """Over which events, besides the width of a window; and the feature's name if it is to be another."""

    delay: str
    last: int
    session: str
    within: str
    tile: str
    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """Features of one entity; each method returns the group with one more. Made by `by`."""

    entity: str
    schema: EventSchema
    features: tuple[WindowFeature, ...] = ()

    def __iter__(self) -> Iterator[WindowFeature]:
        return iter(self.features)

    def count(self, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Number of events in the window."""
        return self._with("count", (), window, **over)

    def sum(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Sum of the field over the window, the exact sum correctly rounded; 0 for an empty window."""
        return self._with("sum", (field,), window, **over)

    def mean(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Mean of the field over the window; 0 for an empty window."""
        return self._with("mean", (field,), window, **over)

    def risk(self, window: str, *, delay: str = "0s", name: str | None = None) -> Group:
        """Share of positively labelled events in the window; the delay keeps the event's own label out."""
        return self._with("risk", (), window, delay=delay, name=name)

    def min(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Smallest value in the window."""
        return self._with("min", (field,), window, **over)

    def max(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Largest value in the window."""
        return self._with("max", (field,), window, **over)

    def std(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Standard deviation of the window's values as a population (divided by n): 0 for one value."""
        return self._with("std", (field,), window, **over)

    def first(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Oldest value in the window."""
        return self._with("first", (field,), window, **over)

    def last(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Newest value in the window: the event's own where there is no delay, see `previous`."""
        return self._with("last", (field,), window, **over)

    def previous(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Newest value before the event."""
        return self._with("previous", (field,), window, **over)

    def since_last(self, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Seconds since the newest event before this one; NaN where the window has none."""
        return self._with("since_last", (), window, **over)

    def since_first(self, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Seconds since the oldest event before this one; NaN where the window has none."""
        return self._with("since_first", (), window, **over)

    def distinct(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Number of different values of an id field in the window."""
        return self._with("distinct", (field,), window, **over)

    def first_seen(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """1 where no earlier event in the window has this event's value of an id field, else 0."""
        return self._with("first_seen", (field,), window, **over)

    def ratio(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """The event's value divided by the mean of those before it; NaN where that is 0 or of no value."""
        return self._with("ratio", (field,), window, **over)

    def zscore(self, field: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """(value - mean) / std of the values before the event; NaN where std is 0 or of no value."""
        return self._with("zscore", (field,), window, **over)

    def decayed_count(self, *, half_life: str, delay: str = "0s", name: str | None = None) -> Group:
        """Events of the last 20 half-lives, each counted as 2 ** -(age / half-life)."""
        return self._with("decayed_count", (), None, delay=delay, name=name, half_life=half_life)

    def decayed_sum(self, field: str, *, half_life: str, delay: str = "0s", name: str | None = None) -> Group:
        """Sum over the last 20 half-lives, each value weighted with 2 ** -(age / half-life)."""
        return self._with("decayed_sum", (field,), None, delay=delay, name=name, half_life=half_life)

    def distance(self, latitude: str, longitude: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """Kilometres (great circle) from the newest earlier event with a position; NaN where there is none."""
        return self._with("distance", (latitude, longitude), window, **over)

    def speed(self, latitude: str, longitude: str, window: str | None = None, **over: Unpack[Over]) -> Group:
        """`distance` by the time between the two events, km/h; less than a second between them counts as one."""
        return self._with("speed", (latitude, longitude), window, **over)

    def _with(
        self,
        aggregate: Aggregate,
        fields: tuple[str, ...],
        window: str | None,
        *,
        delay: str = "0s",
        last: int | None = None,
        session: str | None = None,
        within: str | None = None,
        half_life: str | None = None,
        tile: str | None = None,
        name: str | None = None,
    ) -> Group:
        stem = "_".join(part.removesuffix("_id") for part in self.entity.split("+"))
        for width in (window, half_life, session):
            if width is not None:  # before it is part of a name
                duration_ms(width, feature=name or f"{stem}_{aggregate}")
        text = window or half_life or (session and f"session_{session}") or (last and f"last{last}") or ""
        parts = (stem, aggregate, *map(str, fields), text)
        feature = checked_name("_".join(part for part in parts if part) if name is None else name)
        units = [_field_unit(self.schema, feature, aggregate, name) for name in fields]
        delay_ms = duration_ms(delay, feature=feature)
        made = WindowFeature(
            feature,
            self.entity,
            aggregate,
            field=fields[0] if fields else None,
            window_ms=_window_ms(feature, window, last, session, within, half_life),
            delay_ms=delay_ms,
            unit=_UNITS.get(aggregate) or units[0],
            last=last or 0,
            gap_ms=duration_ms(session, feature=feature) if session else 0,
            half_life_ms=duration_ms(half_life, feature=feature) if half_life else 0,
            second=fields[1] if len(fields) > 1 else None,
            optional=any(not self.schema.field(name).required for name in fields),
            tile_ms=duration_ms(tile, feature=feature) if tile is not None else 0,
        )
        _check_delay(made)
        if tile is not None:
            _check_tile(made, tile)
        return replace(self, features=(*self.features, made))


def _field_unit(schema: EventSchema, feature: str, aggregate: Aggregate, name: str) -> str:
    """Unit of a field that the aggregate can be of; FeatureError where it cannot."""
    if aggregate not in ("distinct", "first_seen"):
        return number_unit(schema, feature, name)
    ids = tuple(known for known in schema.of_kind("id") if schema.field(known).required)
    if name not in ids:
        raise FeatureError(
            f"{feature}: {schema.topic} has no id field {name!r} that every event has; "
            f"choose one of {', '.join(ids) or 'none there is'}"
        )
    return ""


def _window_ms(
    feature: str, window: str | None, last: int | None, session: str | None, within: str | None, half_life: str | None
) -> int:
    """How far back the window reaches at most; FeatureError where it is not given in exactly one way."""
    if half_life is not None:
        value = duration_ms(half_life, feature=feature)
        if value == 0:
            raise FeatureError(f"{feature}: a half-life of {half_life!r} forgets at once; give one such as '1h'")
        if HALF_LIVES * value > DURATION_MS_MAX:
            raise FeatureError(
                f"{feature}: a half-life of {half_life!r} reaches back {HALF_LIVES} times as far, more than ten years; "
                "give a shorter one"
            )
        return HALF_LIVES * value
    given = {"a window": window, "last=": last, "session=": session}
    named = [kind for kind, value in given.items() if value is not None]
    if len(named) != 1:
        have = " and ".join(named) or "no window"
        raise FeatureError(f"{feature}: {have} given; give one of a window such as '7d', last=5 or session='30m'")
    if window is not None:
        if within is not None:
            raise FeatureError(f"{feature}: within={within!r} bounds last= and session=; drop it beside a window")
        value = duration_ms(window, feature=feature)
        if value == 0:
            raise FeatureError(f"{feature}: a window of {window!r} holds nothing; give a width such as '1d'")
        return value
    if last is not None and (type(last) is not int or not 1 <= last <= _LAST_MAX):
        raise FeatureError(
            f"{feature}: last={last!r} is no number of events; give a whole number from 1 to {_LAST_MAX}"
        )
    if within is None:
        within = _LAST_WITHIN if last is not None else _SESSION_WITHIN
    reach = duration_ms(within, feature=feature)
    gap_ms = duration_ms(session, feature=feature) if session is not None else 0
    if session is not None and not 0 < gap_ms < reach:
        raise FeatureError(
            f"{feature}: a session's gap of {session!r} is not between 0 and the {duration_text(reach)} that it may "
            "reach back; give a gap such as '30m', or a longer within="
        )
    if reach == 0:
        raise FeatureError(f"{feature}: within={within!r} holds nothing; give a width such as '90d'")
    return reach


def _check_delay(feature: WindowFeature) -> None:
    if feature.gap_ms and feature.delay_ms:
        raise FeatureError(f"{feature.name}: a session is the one the event is in; drop the delay or give a window")
    if feature.aggregate != "risk":
        return
    if feature.delay_ms == 0:
        raise FeatureError(
            f"{feature.name}: a risk without a delay would read the event's own label; give delay= the time after "
            "which labels are known, such as delay='7d'"
        )
    if len(feature.keys) > 1:
        raise FeatureError(
            f"{feature.name}: a risk is of an entity of one field, not of {feature.entity}; "
            f"write by({feature.keys[0]!r}).risk(..)"
        )


def _check_tile(feature: WindowFeature, tile: str) -> None:
    name, tile_ms = feature.name, feature.tile_ms
    if feature.aggregate not in TILED or feature.last or feature.gap_ms:
        raise FeatureError(
            f"{name}: tile={tile!r} is for count, sum and mean over a width, this is {feature.what()} over "
            f"{feature.extent()}; drop tile="
        )
    if tile_ms < _TILE_MS_MIN:
        raise FeatureError(f"{name}: a tile of {tile!r} is below 10m; give a longer one, or drop tile= to be exact")
    if tile_ms >= feature.window_ms:
        raise FeatureError(f"{name}: a tile of {tile!r} is as long as the window; give a shorter one such as '1h'")
    for what, value in (("window", feature.window_ms), ("delay", feature.delay_ms)):
        if value % tile_ms:
            raise FeatureError(
                f"{name}: a {what} of {duration_text(value)} is not a whole number of tiles of {tile!r}; give a tile "
                "that divides it"
            )
    if feature.window_ms > _TILES_MAX * tile_ms:
        raise FeatureError(
            f"{name}: the window has {feature.window_ms // tile_ms} tiles of {tile!r}, more than {_TILES_MAX}; give "
            "a longer tile"
        )


def by(*fields: str, schema: EventSchema = TRANSACTIONS) -> Group:
    """An empty group of features per value of the id field, or per combination of values of several.

    Rows are partitioned by the first field.
    """
    ids = tuple(name for name in schema.of_kind("id") if schema.field(name).required)
    for name in fields:
        if name not in ids:
            raise FeatureError(f"by({name!r}): {schema.topic} has no such id field; choose one of {', '.join(ids)}")
    if not fields or len(set(fields)) < len(fields):
        raise FeatureError(f"by{fields}: name each field of the entity once; choose from {', '.join(ids)}")
    return Group("+".join(fields), schema)
