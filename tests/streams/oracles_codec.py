"""The obvious validator: one record at a time, one `if` per rule of the contract."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson

from features.schema import EventSchema, Field

Counts = Counter[tuple[str, str]]


def read_event(
    schema: EventSchema, value: bytes | None, timestamp_ms: int, bytes_max: int, counts: Counts | None = None
) -> dict[str, Any] | str:
    """The event's fields as mended plus ``extra`` (a dict), or the name of what is wrong (a field, or "value").

    ``counts`` gets what was found, by (field, finding).
    """
    counts = Counter() if counts is None else counts
    event = read_object(schema, value, bytes_max)
    if event is None:
        counts["", "unreadable"] += 1
        return "value"
    row: dict[str, Any] = {}
    wrong = []
    for field in schema.fields:
        refused, mends, row[field.name] = judge(field, event.pop(field.name, None), timestamp_ms)
        counts.update((field.name, finding) for finding in ([refused] if refused else mends))
        if refused and not (refused == "missing" and not field.required):
            wrong.append(field.name)
    return wrong[0] if wrong else {**row, "extra": event}


def read_object(schema: EventSchema, value: bytes | None, bytes_max: int) -> dict[str, Any] | None:
    if value is None or len(value) > bytes_max:
        return None
    try:
        event = orjson.loads(value)
    except ValueError:
        return None
    if not isinstance(event, dict):
        return None
    try:
        orjson.dumps({name: v for name, v in event.items() if name not in schema.names})
    except TypeError:
        return None
    return event


def judge(field: Field, v: Any, timestamp_ms: int) -> tuple[str, list[str], Any]:
    """("" or the finding for which the value is refused or not there, what was mended or noted, the value)."""
    if v is None:
        return "missing", [], None
    if field.kind == "id":
        return judge_id(field, v)
    if field.kind == "choice":
        if type(v) is not str:
            return "wrong_type", [], None
        if v not in (field.categories or ()):
            return "unseen_category", [], None
        return "", [], (field.categories or ()).index(v)
    if type(v) is not int and not (field.kind == "number" and type(v) is float):
        return "wrong_type", [], None
    if field.clip:
        bounded = min(max(v, float("-inf") if field.minimum is None else field.minimum),
                      float("inf") if field.maximum is None else field.maximum)  # fmt: skip
        return "", ["clipped"] if bounded != v else [], bounded
    if not field.minimum <= v <= field.maximum:
        return "out_of_range", [], None
    if field.future_ms_max is not None and timestamp_ms >= 0 and v > timestamp_ms + field.future_ms_max:
        return "out_of_range", [], None
    return "", [], v


def judge_id(field: Field, v: Any) -> tuple[str, list[str], Any]:
    if type(v) not in (int, str):
        return "wrong_type", [], None
    if type(v) is int and not -(2**63) <= v < 2**64:
        return "out_of_range", [], None
    mends = []
    if field.trim and type(v) is str and v != v.strip():
        mends.append("trimmed")
        v = v.strip()
    if type(v) is str and not 1 <= len(v.encode()) <= (field.text_bytes_max or 10**9):
        return "out_of_range", [], None
    if field.categories is not None and str(v) not in [str(category) for category in field.categories]:
        mends.append("unseen_category")
    return "", mends, v
