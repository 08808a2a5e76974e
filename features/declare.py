"""The little language of features: say per entity what is counted over which window, by plain Python.

>>> cards = by("card_id").count("1d").mean("amount", "1d")
>>> [f.name for f in cards]
['card_count_1d', 'card_mean_amount_1d']

A window of width ``w`` and delay ``d`` at time ``t`` holds the entity's events with event time in
``(t-d-w, t-d]``; without a delay the event itself is in it. Events of the same time count only if they are
earlier in the log. Everything is checked when declared: a `FeatureError` names feature, field and remedy.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from features.schema import TRANSACTIONS, EventSchema

__all__ = [
    "Aggregate",
    "Feature",
    "FeatureError",
    "FeatureSet",
    "Group",
    "RowFeature",
    "WindowFeature",
    "by",
    "duration_ms",
    "field",
    "night",
    "weekend",
]

Aggregate = Literal["count", "sum", "mean", "risk"]
RowOperation = Literal["field", "weekend", "night"]

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"([0-9]+)([smhd])")
_DURATION_MS_MAX = 3_660 * _UNITS_MS["d"]
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class FeatureError(ValueError):
    """A feature that cannot be: the text names the feature, the field and what to write instead."""


def duration_ms(text: str, *, feature: str = "window") -> int:
    """Milliseconds of a duration such as "90s", "5m", "1h", "7d"; `FeatureError` names ``feature``."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise FeatureError(
            f"{feature}: {text!r} is not a duration; write a whole number and s, m, h or d, as in '90s', '1h' or '7d'"
        )
    value = int(match[1]) * _UNITS_MS[match[2]]
    if value > _DURATION_MS_MAX:
        raise FeatureError(f"{feature}: {text!r} is longer than ten years; choose a shorter duration")
    return value


@dataclass(frozen=True, slots=True)
class RowFeature:
    """A feature of the row alone: ``field`` (its value), ``weekend`` or ``night`` of a time field, in UTC."""

    name: str
    operation: RowOperation
    field: str
    unit: str = ""

    def definition(self) -> dict[str, object]:
        """What is computed, as plain data: the part that goes into the schema hash."""
        return {"name": self.name, "operation": self.operation, "field": self.field}


@dataclass(frozen=True, slots=True)
class WindowFeature:
    """An aggregate over the entity's events in ``(t - delay - window, t - delay]``.

    ``field`` is None for count and risk. risk = share of the window's events with a visible positive label,
    0 where there is none; mean = sum / count, 0 for an empty window.
    """

    name: str
    entity: str
    aggregate: Aggregate
    field: str | None
    window_ms: int
    delay_ms: int = 0
    unit: str = ""

    def definition(self) -> dict[str, object]:
        """What is computed, as plain data: the part that goes into the schema hash."""
        return {
            "name": self.name,
            "entity": self.entity,
            "aggregate": self.aggregate,
            "field": self.field,
            "window_ms": self.window_ms,
            "delay_ms": self.delay_ms,
        }


Feature = RowFeature | WindowFeature


def _number_field(schema: EventSchema, feature: str, name: str) -> str:
    """Unit of the number field ``name``; FeatureError where there is no such field."""
    numbers = schema.of_kind("number")
    if name not in numbers:
        kind = f"is of kind {schema.field(name).kind}" if name in schema.names else "does not exist"
        raise FeatureError(
            f"{feature}: field {name!r} of {schema.topic} {kind}; "
            f"choose a number: {', '.join(numbers) or 'there is none'}"
        )
    return schema.field(name).unit


@dataclass(frozen=True, slots=True)
class Group:
    """Features of one entity; each method returns the group with one more. Made by `by`."""

    entity: str
    schema: EventSchema
    features: tuple[WindowFeature, ...] = ()

    def __iter__(self) -> Iterator[WindowFeature]:
        return iter(self.features)

    def count(self, window: str, *, delay: str = "0s", name: str | None = None) -> Group:
        """Number of events in the window."""
        return self._with("count", None, window, delay, name)

    def sum(self, field: str, window: str, *, delay: str = "0s", name: str | None = None) -> Group:
        """Sum of the field over the window, the exact sum correctly rounded; 0 for an empty window."""
        return self._with("sum", field, window, delay, name)

    def mean(self, field: str, window: str, *, delay: str = "0s", name: str | None = None) -> Group:
        """Mean of the field over the window; 0 for an empty window."""
        return self._with("mean", field, window, delay, name)

    def risk(self, window: str, *, delay: str, name: str | None = None) -> Group:
        """Share of positively labelled events in the window; the delay keeps the event's own label out."""
        return self._with("risk", None, window, delay, name)

    def _with(self, aggregate: Aggregate, field: str | None, window: str, delay: str, name: str | None) -> Group:
        stem = self.entity.removesuffix("_id")
        default = "_".join(part for part in (stem, aggregate, field, window) if part)
        feature = name or default
        if not _NAME.fullmatch(feature):
            raise FeatureError(f"{feature!r} is not a feature name; use letters, digits and _, starting with a letter")
        window_ms = duration_ms(window, feature=feature)
        delay_ms = duration_ms(delay, feature=feature)
        if window_ms == 0:
            raise FeatureError(f"{feature}: a window of {window!r} holds nothing; give a width such as '1d'")
        if aggregate == "risk" and delay_ms == 0:
            raise FeatureError(
                f"{feature}: a risk without a delay would read the event's own label; give delay= the time after which "
                "labels are known, such as delay='7d'"
            )
        unit = {"count": "events", "risk": "share"}.get(aggregate) or _number_field(self.schema, feature, field or "")
        made = WindowFeature(feature, self.entity, aggregate, field, window_ms, delay_ms, unit)
        return replace(self, features=(*self.features, made))


def by(entity: str, *, schema: EventSchema = TRANSACTIONS) -> Group:
    """An empty group of features per value of the id field ``entity``."""
    ids = schema.of_kind("id")
    if entity not in ids:
        raise FeatureError(f"by({entity!r}): {schema.topic} has no such id field; choose one of {', '.join(ids)}")
    return Group(entity, schema)


def field(name: str, *, schema: EventSchema = TRANSACTIONS) -> RowFeature:
    """The row's own value of a number field."""
    return RowFeature(name, "field", name, _number_field(schema, name, name))


def weekend(*, schema: EventSchema = TRANSACTIONS) -> RowFeature:
    """1 on Saturday and Sunday (UTC), else 0."""
    return RowFeature("is_weekend", "weekend", schema.time, "flag")


def night(*, schema: EventSchema = TRANSACTIONS) -> RowFeature:
    """1 from 00:00:00 to 06:59:59.999 (UTC), else 0."""
    return RowFeature("is_night", "night", schema.time, "flag")


def _duration_text(value_ms: int) -> str:
    for unit in ("d", "h", "m"):
        if value_ms and value_ms % _UNITS_MS[unit] == 0:
            return f"{value_ms // _UNITS_MS[unit]}{unit}"
    return f"{value_ms // 1_000}s"


@dataclass(frozen=True, slots=True, init=False)
class FeatureSet:
    """An ordered set of features: the columns of a model's input, in this order.

    >>> FeatureSet("demo", [field("amount"), by("card_id").count("1d")]).names
    ('amount', 'card_count_1d')
    """

    name: str
    features: tuple[Feature, ...]

    def __init__(self, name: str, parts: Iterable[Feature | Group]) -> None:
        features: list[Feature] = []
        for part in parts:
            features.extend(part if isinstance(part, Group) else [part])
        if not features:
            raise FeatureError(f"feature set {name!r} is empty; declare at least one feature")
        seen: dict[str, Feature] = {}
        for feature in features:
            if feature.name in seen:
                raise FeatureError(f"{feature.name}: declared twice in {name!r}; drop one or give it another name=")
            seen[feature.name] = feature
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "features", tuple(features))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features)

    @property
    def schema_hash(self) -> str:
        """sha256 (hex) over the canonical JSON of all definitions, order included."""
        definitions = [f.definition() for f in self.features]
        return hashlib.sha256(json.dumps(definitions, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def entities(self) -> tuple[str, ...]:
        """Entities of the window features, in order of first mention."""
        return tuple(dict.fromkeys(f.entity for f in self.features if isinstance(f, WindowFeature)))

    @property
    def row_features(self) -> tuple[RowFeature, ...]:
        return tuple(f for f in self.features if isinstance(f, RowFeature))

    def for_entity(self, entity: str) -> tuple[WindowFeature, ...]:
        """The window features of ``entity``, in order; FeatureError where it has none."""
        found = tuple(f for f in self.features if isinstance(f, WindowFeature) and f.entity == entity)
        if not found:
            raise FeatureError(
                f"{self.name} has no features by {entity!r}; it has {', '.join(self.entities) or 'none'}"
            )
        return found

    def positions(self, features: Iterable[Feature]) -> list[int]:
        """Column of each of these features in the set's matrix."""
        index = {name: i for i, name in enumerate(self.names)}
        return [index[f.name] for f in features]

    def describe(self) -> list[dict[str, str]]:
        """One row per feature: name, entity, what, window, delay, unit ("" where there is none)."""
        rows = []
        for f in self.features:
            if isinstance(f, RowFeature):
                what = f.field if f.operation == "field" else f"{f.operation} of {f.field} (UTC)"
                rows.append({"name": f.name, "entity": "", "what": what, "window": "", "delay": "", "unit": f.unit})
                continue
            rows.append(
                {
                    "name": f.name,
                    "entity": f.entity,
                    "what": f"{f.aggregate} of {f.field}" if f.field else f.aggregate,
                    "window": _duration_text(f.window_ms),
                    "delay": _duration_text(f.delay_ms) if f.delay_ms else "",
                    "unit": f.unit,
                }
            )
        return rows
