"""Typed fields of the events that pipelines read: what a record must hold before it becomes a row of a Block.

Plain data: `streams.codec` checks records against it, `features.engine` looks up which fields are numbers.

The shipped schemas repair nothing. ``trim`` is off although white space around an id is common: a card's events are in
the partition of the text that their sender wrote as the record's key, so that trimming here would give one card two
half states in two partitions; and other ids come back in scores and dead letters, where their sender must find them as
they were sent. ``clip`` is off since an amount that cannot be is more likely a fault of the sender than a large amount.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, get_args

__all__ = ["ACTIONS", "INTERACTIONS", "SCHEMAS", "TRANSACTIONS", "TRANSACTION_LABELS"]
__all__ += ["EventSchema", "Field", "Kind", "SchemaError"]

#: ``id``: integer or string; ``time_ms``: integer ms since the epoch, UTC; ``number``: finite float64; ``flag``: 0 or
#: 1; ``choice``: one of the field's texts, in a Block its place among them
Kind = Literal["id", "time_ms", "number", "flag", "choice"]

TIME_MS_MIN = 946_684_800_000  # 2000-01-01T00:00:00Z
TIME_MS_MAX = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z, the last time that text forms can hold
ID_TEXT_BYTES_MAX = 256
FUTURE_MS_MAX = 3_600_000


class SchemaError(ValueError):
    """A field or schema that cannot be: the text names the field, the value and what to write instead."""


#: Rules that came after the first schemas were hashed: where a field does not use one, it is not in the hash.
_LATER_RULES = ("categories", "clip", "trim")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an event.

    ``minimum`` and ``maximum`` are inclusive, in ``unit``. ``text_bytes_max`` bounds an id given as a string
    (UTF-8 bytes). ``future_ms_max`` says how far a time may lie after the record's own timestamp; None means
    that any time up to ``maximum`` is right (a label may be known before it is due).

    Three rules let a record through that is not quite right, and count it: ``clip`` sets a number outside its bounds
    to the nearer one, ``trim`` takes white space off both ends of an id given as a string, ``categories`` are the ids
    that are known (5 and "5" are the same): any other is still a row. Of a ``choice`` the ``categories`` are all there
    is: with another text a record is refused. SchemaError where the rules do not fit together.

    >>> Field("amount", "number", minimum=5, maximum=3)
    Traceback (most recent call last):
    features.schema.SchemaError: field 'amount': minimum 5 is above maximum 3; exchange them
    """

    name: str
    kind: Kind
    required: bool = True
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    text_bytes_max: int | None = None
    future_ms_max: int | None = None
    categories: tuple[int | str, ...] | None = None
    clip: bool = False
    trim: bool = False

    def __post_init__(self) -> None:
        for wrong in _faults(self):
            raise SchemaError(f"field {self.name!r}: {wrong}")


def _faults(spec: Field) -> Iterator[str]:
    """What is wrong with the field, each with its remedy."""
    if not (isinstance(spec.name, str) and spec.name.isidentifier()):
        yield "not a name; use letters, digits and _, starting with a letter"
    if spec.kind not in get_args(Kind):
        yield f"kind {spec.kind!r} is not known; choose one of {', '.join(get_args(Kind))}"
    if not spec.required and spec.kind not in ("id", "number"):
        yield f"only an id or a number can be optional, not a {spec.kind}; leave required out"
    bounds = [b for b in (spec.minimum, spec.maximum) if b is not None]
    for bound in bounds:
        if not math.isfinite(bound):
            yield f"bound {bound} is not finite; leave it out where there is no limit"
    if len(bounds) == 2 and bounds[0] > bounds[1]:
        yield f"minimum {bounds[0]:.15g} is above maximum {bounds[1]:.15g}; exchange them"
    if spec.kind == "id" and bounds:
        yield f"bound {bounds[0]:.15g} of an id; an id has text_bytes_max and categories only"
    if spec.kind == "flag" and bounds != [0, 1]:
        yield f"a flag with bounds {bounds}; write minimum=0, maximum=1"
    if spec.clip and spec.kind != "number":
        yield f"clip with kind {spec.kind}; only a number can be clipped, leave clip out"
    if spec.clip and not bounds:
        yield "clip without bounds; give minimum, maximum or both"
    if spec.future_ms_max is not None and (spec.kind != "time_ms" or spec.future_ms_max < 0):
        yield f"future_ms_max {spec.future_ms_max} with kind {spec.kind}; give a time_ms 0 or more, or leave it out"
    yield from _id_faults(spec)
    yield from _category_faults(spec)


def _id_faults(spec: Field) -> Iterator[str]:
    if spec.trim and spec.kind != "id":
        yield f"trim with kind {spec.kind}; only an id can be trimmed, leave trim out"
    if spec.text_bytes_max is not None and (spec.kind != "id" or spec.text_bytes_max < 1):
        yield f"text_bytes_max {spec.text_bytes_max} with kind {spec.kind}; give an id 1 or more, or leave it out"


def _category_faults(spec: Field) -> Iterator[str]:
    if spec.categories is None:
        if spec.kind == "choice":
            yield "a choice without categories; name the texts that can be chosen"
        return
    if spec.kind not in ("id", "choice"):
        yield f"categories with kind {spec.kind}; only an id has categories, use minimum and maximum"
    if not isinstance(spec.categories, tuple) or not spec.categories:
        yield f"categories {spec.categories!r} is not a tuple of ids; write one as in ('NL', 'BE'), or leave it out"
        return
    seen: set[str] = set()
    for category in spec.categories:
        text = str(category)
        if spec.kind == "choice" and type(category) is not str:
            yield f"category {category!r} of a choice is not a text; give strings that are not empty"
        if type(category) not in (int, str) or not text:
            yield f"category {category!r} is not an id; give integers or strings that are not empty"
        if spec.trim and text != text.strip():
            yield f"category {category!r} begins or ends with white space, which trim takes off; take it off here too"
        if spec.text_bytes_max is not None and len(text.encode()) > spec.text_bytes_max:
            yield f"category {category!r} is longer than text_bytes_max {spec.text_bytes_max}; raise it"
        if text in seen:
            yield f"category {category!r} is there twice; take one out"
        seen.add(text)


@dataclass(frozen=True, slots=True)
class EventSchema:
    """The fields of one topic's events; ``key`` is the field whose text is the record's Kafka key.

    SchemaError where ``key`` is not a required id, ``time`` not a time of the schema, or a name is there twice.
    """

    topic: str
    key: str
    time: str
    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            if self.names.count(name) > 1:
                raise SchemaError(f"{self.topic}: field {name!r} is there twice; take one out")
        if self.key not in [f.name for f in self.fields if f.kind == "id" and f.required]:
            raise SchemaError(f"{self.topic}: key {self.key!r} is not a required id; name one of the schema's")
        if self.time not in self.of_kind("time_ms"):
            raise SchemaError(f"{self.topic}: time {self.time!r} is not a time_ms field; name one of the schema's")
        if self.field(self.key).trim:
            raise SchemaError(
                f"{self.topic}: trim of the key {self.key!r}; records are partitioned by the text as it was sent, a "
                "trimmed id would have its state in two partitions: leave trim out and trim before sending"
            )

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
        definition = asdict(self)
        for spec in definition["fields"]:
            for rule in _LATER_RULES:
                if not spec[rule]:
                    del spec[rule]
        text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
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

#: what a user can do with an item, from the weakest sign of interest to the strongest
ACTIONS = ("view", "click", "cart", "purchase")

INTERACTIONS = EventSchema(
    topic="interactions",
    key="user_id",
    time="event_time",
    fields=(
        _id("event_id"),
        _time("event_time", future_ms_max=FUTURE_MS_MAX),
        _id("user_id"),
        _id("item_id"),
        Field("action", "choice", categories=ACTIONS),
        _id("session_id", required=False),
        _id("category", required=False),
        Field("price", "number", required=False, minimum=0.0, maximum=1e12, unit="currency"),
    ),
)

SCHEMAS = {schema.topic: schema for schema in (TRANSACTIONS, TRANSACTION_LABELS, INTERACTIONS)}
