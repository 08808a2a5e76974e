"""One value of an event in words: what is wrong with it, and the remedy. Slow, and only asked about suspects."""

from __future__ import annotations

from reprlib import Repr
from typing import Any, NamedTuple

import orjson

from features.schema import EventSchema, Field
from streams.quality import Finding

__all__ = ["INT64_MAX", "INT64_MIN", "Verdict", "why_bad", "why_unreadable"]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_UINT64_MAX = 2**64 - 1
_SHOWN_CHARS_MAX = 60
_REPR = Repr()
_REPR.maxstring = _REPR.maxlong = _SHOWN_CHARS_MAX


class Verdict(NamedTuple):
    """Why a value is refused: what it counts as, and the text (field, value, reason, remedy; one line)."""

    finding: Finding
    reason: str


def why_bad(spec: Field, value: Any, timestamp_ms: int) -> Verdict | None:
    """Why the value, as it was sent, is not one of the field's; None when it is, or is mended by clip or trim.

    ``timestamp_ms`` is the record's own, -1 where it has none.
    """
    if value is None:
        return Verdict("missing", f"{spec.name}: missing or null; send {_wanted(spec)}")
    wrong_type, why = _WHY_BAD.get(spec.kind, _why_bad_number)(spec, value)
    if why is not None:
        outside: Finding = "unseen_category" if spec.kind == "choice" else "out_of_range"
        finding: Finding = "wrong_type" if wrong_type else outside
        return Verdict(finding, f"{spec.name} {_shown(value)}: {why}; send {_wanted(spec)}")
    if spec.future_ms_max is not None and timestamp_ms >= 0 and value > timestamp_ms + spec.future_ms_max:
        ahead = value - timestamp_ms
        why = f"{ahead} ms after the record's own timestamp {timestamp_ms}, more than {spec.future_ms_max} ms"
        remedy = "check the sender's clock and unit (milliseconds, UTC)"
        return Verdict("out_of_range", f"{spec.name} {_shown(value)}: {why}; {remedy}")
    return None


def why_unreadable(schema: EventSchema, value: bytes | None, value_bytes_max: int) -> str:
    """Why this record is not an object with fields that can be kept."""
    names = ", ".join(f.name for f in schema.fields if f.required)
    if value is None:
        return f"value null: no event in it; send a JSON object with {names}"
    if len(value) > value_bytes_max:
        return f"value of {len(value)} bytes: above the maximum {value_bytes_max}; send smaller records"
    shown = _shortened(value[: _SHOWN_CHARS_MAX + 1].decode("utf-8", "replace"))
    try:
        event = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        return f"value {shown}: not JSON ({error}); send a JSON object with {names}"
    if type(event) is not dict:
        return f"value {shown}: {_json_name(event)}, not an object; send a JSON object with {names}"
    return f"value {shown}: nested too deep to be kept; send fewer than 250 levels"


def _why_bad_number(spec: Field, value: Any) -> tuple[bool, str | None]:
    """(it is the type that is wrong, why); why is None for a good number."""
    if type(value) is not int and not (spec.kind == "number" and type(value) is float):
        return True, f"{_json_name(value)}, not {'a number' if spec.kind == 'number' else 'an integer'}"
    if spec.clip:
        return False, None
    if spec.minimum is not None and value < spec.minimum:
        return False, f"below the minimum {spec.minimum:.15g}"
    if spec.maximum is not None and value > spec.maximum:
        return False, f"above the maximum {spec.maximum:.15g}"
    if not INT64_MIN <= value <= INT64_MAX and spec.kind != "number":
        return False, "does not fit in 64 bits"
    return False, None


def _why_bad_id(spec: Field, value: Any) -> tuple[bool, str | None]:
    """(it is the type that is wrong, why); why is None for a good id."""
    if type(value) is int:
        return False, None if INT64_MIN <= value <= _UINT64_MAX else "does not fit in 64 bits"
    if type(value) is not str:
        return True, f"{_json_name(value)}, not an integer or a string"
    text = value.strip() if spec.trim else value
    if not text:
        return False, "nothing but white space" if value else "an empty string"
    size = len(text.encode())
    if spec.text_bytes_max is not None and size > spec.text_bytes_max:
        return False, f"{size} bytes of text, above the maximum {spec.text_bytes_max}"
    return False, None


def _why_bad_choice(spec: Field, value: Any) -> tuple[bool, str | None]:
    """(it is the type that is wrong, why); why is None for one of the texts."""
    if type(value) is not str:
        return True, f"{_json_name(value)}, not a string"
    return False, None if value in (spec.categories or ()) else "none of those that are known"


_WHY_BAD = {"id": _why_bad_id, "choice": _why_bad_choice}


def _wanted(spec: Field) -> str:
    if spec.kind == "choice":
        return "one of " + ", ".join(map(str, spec.categories or ()))
    if spec.kind == "id":
        limit = "" if spec.text_bytes_max is None else f" of at most {spec.text_bytes_max} bytes"
        return f"an integer of 64 bits or a non-empty string{limit}"
    if spec.kind == "flag":
        return "0 or 1"
    if spec.kind == "time_ms":
        return "an integer, milliseconds since the epoch, UTC"
    if spec.clip:
        return "a finite number"
    low = "" if spec.minimum is None else f" from {spec.minimum:.15g}"
    return f"a finite number{low}" + ("" if spec.maximum is None else f" up to {spec.maximum:.15g}")


def _json_name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number with a fraction or exponent" if type(value) is float else "a number")


def _shown(value: Any) -> str:
    """The value as short text on one line: a reason is a header, and the value may be a megabyte or deep."""
    return _shortened(_REPR.repr(value))


def _shortened(text: str) -> str:
    if len(text) > _SHOWN_CHARS_MAX:
        text = text[:_SHOWN_CHARS_MAX] + "..."
    return "".join(c if c.isprintable() else "?" for c in text)
