"""The obvious validator: one record at a time, one `if` per rule of the contract."""

from __future__ import annotations

from typing import Any

import orjson

from features.schema import EventSchema


def read_event(schema: EventSchema, value: bytes | None, timestamp_ms: int, bytes_max: int) -> dict[str, Any] | str:
    """The event's fields plus ``extra`` (a dict), or the name of what is wrong (a field, or "value")."""
    if value is None or len(value) > bytes_max:
        return "value"
    try:
        event = orjson.loads(value)
    except ValueError:
        return "value"
    if not isinstance(event, dict):
        return "value"
    known = {name: event.pop(name, None) for name in schema.names}
    try:
        orjson.dumps(event)
    except TypeError:
        return "value"
    for field in schema.fields:
        v = known[field.name]
        if v is None and not field.required:
            continue
        if field.kind == "id" and not id_is_right(v):
            return field.name
        if field.kind in ("time_ms", "flag") and type(v) is not int:
            return field.name
        if field.kind == "number" and type(v) not in (int, float):
            return field.name
        if field.kind != "id" and not field.minimum <= v <= field.maximum:
            return field.name
        if field.future_ms_max is not None and timestamp_ms >= 0 and v > timestamp_ms + field.future_ms_max:
            return field.name
    return {**known, "extra": event}


def id_is_right(v: Any) -> bool:
    if type(v) is int:
        return -(2**63) <= v < 2**64
    return type(v) is str and 1 <= len(v.encode()) <= 256
