"""Features of the row alone: declared, checked and computed here; all calendar features are in UTC.

A missing number (NaN) stays NaN in every feature made of it; an id without a code becomes NaN.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from features.block import Block, FloatArray, Ids, IntArray
from features.durations import FeatureError
from features.keys import word_of_keys
from features.schema import TRANSACTIONS, EventSchema

__all__ = [
    "RowFeature",
    "bucket",
    "category",
    "checked_name",
    "day_of_month",
    "field",
    "hour",
    "log",
    "night",
    "number_unit",
    "row_features",
    "weekday",
    "weekend",
]

RowOperation = Literal["field", "weekend", "night", "hour", "weekday", "day_of_month", "log", "bucket", "category"]

_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
_NIGHT_HOUR_LAST = 6
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class RowFeature:
    """A feature of the row alone.

    ``operation`` is ``field`` (its value), ``log`` (ln(1 + value)) or ``bucket`` (how many of ``edges`` are at or below
    the value) of a number, ``category`` (code of an id in ``codes``), or a calendar part of a time field.
    """

    name: str
    operation: RowOperation
    field: str
    unit: str = ""
    edges: tuple[float, ...] = ()
    codes: tuple[tuple[str, int], ...] = ()

    def definition(self) -> dict[str, object]:
        """What is computed, as plain data: the part that goes into the schema hash."""
        plain: dict[str, object] = {"name": self.name, "operation": self.operation, "field": self.field}
        if self.edges:
            plain["edges"] = list(self.edges)
        if self.codes:
            plain["codes"] = [list(pair) for pair in self.codes]
        return plain

    def what(self) -> str:
        """What is computed, in words."""
        if self.operation == "field":
            return self.field
        if self.operation == "log":
            return f"ln(1 + {self.field})"
        if self.operation == "bucket":
            return f"bucket of {self.field} by {', '.join(f'{edge:g}' for edge in self.edges)}"
        if self.operation == "category":
            return f"code of {self.field}, {len(self.codes)} values"
        return f"{self.operation} of {self.field} (UTC)"


def checked_name(name: str) -> str:
    """``name``; FeatureError where it cannot be one of a feature."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FeatureError(f"{name!r} is not a feature name; use letters, digits and _, starting with a letter")
    return name


def number_unit(schema: EventSchema, feature: str, name: str) -> str:
    """Unit of the number field ``name``; FeatureError where there is no such field."""
    numbers = schema.of_kind("number")
    if name not in numbers:
        kind = f"is of kind {schema.field(name).kind}" if name in schema.names else "does not exist"
        raise FeatureError(
            f"{feature}: field {name!r} of {schema.topic} {kind}; "
            f"choose a number: {', '.join(numbers) or 'there is none'}"
        )
    return schema.field(name).unit


def field(name: str, *, schema: EventSchema = TRANSACTIONS) -> RowFeature:
    """The row's own value of a number field."""
    return RowFeature(name, "field", name, number_unit(schema, name, name))


def weekend(*, schema: EventSchema = TRANSACTIONS) -> RowFeature:
    """1 on Saturday and Sunday (UTC), else 0."""
    return RowFeature("is_weekend", "weekend", schema.time, "flag")


def night(*, schema: EventSchema = TRANSACTIONS) -> RowFeature:
    """1 from 00:00:00 to 06:59:59.999 (UTC), else 0."""
    return RowFeature("is_night", "night", schema.time, "flag")


def hour(*, schema: EventSchema = TRANSACTIONS) -> RowFeature:
    """Hour of the day, 0 to 23 (UTC)."""
    return RowFeature("hour", "hour", schema.time, "hour")


def weekday(*, schema: EventSchema = TRANSACTIONS) -> RowFeature:
    """Day of the week, 0 = Monday to 6 = Sunday (UTC)."""
    return RowFeature("weekday", "weekday", schema.time, "day")


def day_of_month(*, schema: EventSchema = TRANSACTIONS) -> RowFeature:
    """Day of the month, 1 to 31 (UTC)."""
    return RowFeature("day_of_month", "day_of_month", schema.time, "day")


def log(name: str, *, schema: EventSchema = TRANSACTIONS) -> RowFeature:
    """ln(1 + value) of a number field that its schema keeps at 0 and above."""
    feature = f"log_{name}"
    unit = number_unit(schema, feature, name)
    minimum = schema.field(name).minimum
    if minimum is None or minimum < 0:
        raise FeatureError(
            f"{feature}: field {name!r} of {schema.topic} may be negative; give it a minimum of 0 in the schema, "
            f"or use bucket({name!r}, edges)"
        )
    return RowFeature(feature, "log", name, f"ln {unit}".strip())


def bucket(
    number: str, edges: Sequence[float], *, name: str | None = None, schema: EventSchema = TRANSACTIONS
) -> RowFeature:
    """How many of the rising ``edges`` are at or below the value: 0 below the first, len(edges) from the last on."""
    called = checked_name(name or f"bucket_{number}")
    number_unit(schema, called, number)
    try:
        values = tuple(float(edge) for edge in edges)
    except (TypeError, ValueError):
        raise FeatureError(f"{called}: the edges of {number!r} are {edges!r}; give numbers, as in [10, 100]") from None
    if not values or not np.isfinite(values).all() or any(a >= b for a, b in pairwise(values)):
        raise FeatureError(
            f"{called}: the edges of {number!r} are {values}; give finite numbers that rise, as in [10, 100]"
        )
    return RowFeature(called, "bucket", number, "bucket", edges=values)


def category(
    key: str, codes: Mapping[str | int, int], *, name: str | None = None, schema: EventSchema = TRANSACTIONS
) -> RowFeature:
    """The code of an id field's value, such as a model's manifest gives it; NaN for a value without a code."""
    called = checked_name(name or f"category_{key}")
    ids = schema.of_kind("id")
    if key not in ids:
        raise FeatureError(
            f"{called}: {schema.topic} has no id field {key!r}; choose one of {', '.join(ids) or 'none there is'}"
        )
    given = dict(codes) if isinstance(codes, Mapping) else {}
    if not given or any(type(code) is not int or code < 0 for code in given.values()):
        raise FeatureError(
            f"{called}: the codes of {key!r} are {codes!r}; give each value a whole number of 0 or more, as in "
            "{'web': 0}"
        )
    pairs = tuple(sorted((str(value), code) for value, code in given.items()))
    if len({value for value, _ in pairs}) < len(pairs):
        raise FeatureError(f"{called}: a value of {key!r} has two codes, as 5 and '5' are the same id; drop one")
    return RowFeature(called, "category", key, "code", codes=pairs)


def _number(column: npt.NDArray[Any], feature: RowFeature) -> npt.NDArray[Any]:
    return column


def _log(column: npt.NDArray[Any], feature: RowFeature) -> npt.NDArray[Any]:
    logs: FloatArray = np.log1p(column)
    return logs


def _bucket(column: npt.NDArray[Any], feature: RowFeature) -> npt.NDArray[Any]:
    found = np.searchsorted(np.array(feature.edges), column, side="right")
    return np.where(np.isnan(column), np.nan, found)


def _hour(times: npt.NDArray[Any], feature: RowFeature) -> npt.NDArray[Any]:
    return times.astype(np.int64) % _DAY_MS // _HOUR_MS


def _weekday(times: npt.NDArray[Any], feature: RowFeature) -> npt.NDArray[Any]:
    return (times.astype(np.int64) // _DAY_MS + 3) % 7  # day 0 was a Thursday


def _weekend(times: npt.NDArray[Any], feature: RowFeature) -> npt.NDArray[Any]:
    return _weekday(times, feature) >= 5


def _night(times: npt.NDArray[Any], feature: RowFeature) -> npt.NDArray[Any]:
    return _hour(times, feature) <= _NIGHT_HOUR_LAST


def _day_of_month(times: npt.NDArray[Any], feature: RowFeature) -> npt.NDArray[Any]:
    days = (times.astype(np.int64) // _DAY_MS).astype("datetime64[D]")
    day: IntArray = (days - days.astype("datetime64[M]")).astype(np.int64) + 1
    return day


_NUMBERS: dict[RowOperation, Callable[[npt.NDArray[Any], RowFeature], npt.NDArray[Any]]] = {
    "field": _number,
    "log": _log,
    "bucket": _bucket,
    "hour": _hour,
    "weekday": _weekday,
    "weekend": _weekend,
    "night": _night,
    "day_of_month": _day_of_month,
}


def _category(ids: Ids, feature: RowFeature) -> FloatArray:
    """(n,) codes, by binary search among the hashes of the known values."""
    known = word_of_keys(Ids.of([value for value, _ in feature.codes]).keys())
    order = np.argsort(known)
    known, codes = known[order], np.array([code for _, code in feature.codes], np.float64)[order]
    words = word_of_keys(ids.keys())
    place = np.minimum(np.searchsorted(known, words), len(known) - 1)
    return np.where(known[place] == words, codes[place], np.nan)


def row_features(features: Sequence[RowFeature], block: Block) -> FloatArray:
    """(n, len(features)) float64: features of each row alone; the calendar is UTC's."""
    out = np.empty((len(block), len(features)), np.float64)
    for j, feature in enumerate(features):
        if feature.operation == "category":
            out[:, j] = _category(block.ids[feature.field], feature)
        else:
            out[:, j] = _NUMBERS[feature.operation](block.columns[feature.field], feature)
    return out
