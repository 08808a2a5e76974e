"""Typed fields of the events that pipelines read: what a record must hold before it becomes a row of a Block.

Plain data: `streams.codec` checks records against it, `features.engine` looks up which fields are numbers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["SCHEMAS", "TRANSACTIONS", "TRANSACTION_LABELS", "EventSchema", "Field", "Kind"]

#: ``id``: integer or string; ``time_ms``: integer ms since the epoch, UTC; ``number``: finite float64; ``flag``: 0 or 1
Kind = Literal["id", "time_ms", "number", "flag"]

TIME_MS_MIN = 946_684_800_000  # 2000-01-01T00:00:00Z
TIME_MS_MAX = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z, the last time that text forms can hold
ID_TEXT_BYTES_MAX = 256
FUTURE_MS_MAX = 3_600_000


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an event.

    ``minimum`` and ``maximum`` are inclusive, in ``unit``. ``text_bytes_max`` bounds an id given as a string
    (UTF-8 bytes). ``future_ms_max`` says how far a time may lie after the record's own timestamp; None means
    that any time up to ``maximum`` is right (a label may be known before it is due).
    """

    name: str
    kind: Kind
    required: bool = True
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    text_bytes_max: int | None = None
    future_ms_max: int | None = None


@dataclass(frozen=True, slots=True)
class EventSchema:
    """The fields of one topic's events; ``key`` is the field whose text is the record's Kafka key."""

    topic: str
    key: str
    time: str
    fields: tuple[Field, ...]

    def field(self, name: str) -> Field:
        """The field called ``name``; KeyError says which there are."""
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        raise KeyError(f"{self.topic} has no field {name!r}; it has {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.fields)

    def of_kind(self, *kinds: Kind) -> tuple[str, ...]:
        """Names of the fields of these kinds, in order."""
        return tuple(f.name for f in self.fields if f.kind in kinds)

    @property
    def schema_hash(self) -> str:
        """sha256 (hex) over the canonical JSON of the definition."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _id(name: str, *, required: bool = True) -> Field:
    return Field(name, "id", required=required, text_bytes_max=ID_TEXT_BYTES_MAX)


def _time(name: str, *, future_ms_max: int | None = None) -> Field:
    return Field(name, "time_ms", minimum=TIME_MS_MIN, maximum=TIME_MS_MAX, unit="ms", future_ms_max=future_ms_max)


TRANSACTIONS = EventSchema(
    topic="transactions",
    key="card_id",
    time="event_time",
    fields=(
        _id("transaction_id"),
        _time("event_time", future_ms_max=FUTURE_MS_MAX),
        _id("card_id"),
        _id("terminal_id"),
        Field("amount", "number", minimum=0.0, maximum=1e12, unit="currency"),
    ),
)

TRANSACTION_LABELS = EventSchema(
    topic="transaction-labels",
    key="transaction_id",
    time="label_time",
    fields=(
        _id("transaction_id"),
        _time("label_time"),
        Field("is_fraud", "flag", minimum=0, maximum=1),
        _id("terminal_id", required=False),
    ),
)

SCHEMAS = {schema.topic: schema for schema in (TRANSACTIONS, TRANSACTION_LABELS)}
