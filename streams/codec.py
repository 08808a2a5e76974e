"""Bytes of JSON records -> Block, and what cannot be read -> dead letters.

One verdict per record, whatever its neighbours are. Three steps, from fast to slow: records that hold exactly
the schema's fields are parsed by msgspec straight into typed structs; a batch with any other record goes through
orjson, record by record; and only values that a whole-column test finds suspect are looked at one by one.
Records are never joined into one JSON array: a crafted value could then shift the rows behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from reprlib import Repr
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from features.block import Block, Ids, IntArray
from features.schema import TRANSACTION_LABELS, TRANSACTIONS, EventSchema, Field
from streams.log import RecordBatch

__all__ = [
    "VALUE_BYTES_MAX",
    "Dead",
    "Decoder",
    "decode_labels",
    "decode_together",
    "decode_transactions",
    "present_column",
]

VALUE_BYTES_MAX = 1 << 20
_SHOWN_CHARS_MAX = 60
_SURELY_SHALLOW_BYTES = 500
_WRITE = msgspec.json.Encoder().encode
_REPR = Repr()
_REPR.maxstring = _REPR.maxlong = _SHOWN_CHARS_MAX
_INT64_MIN, _INT64_MAX, _UINT64_MAX = -(2**63), 2**63 - 1, 2**64 - 1
#: An id as text no longer than this many characters is within any bound of four times as many UTF-8 bytes.
_UTF8_BYTES_PER_CHAR = 4


@dataclass(frozen=True, slots=True)
class Dead:
    """A record that is not a row: its index in the batch and why, with the remedy."""

    index: int
    reason: str


def present_column(name: str) -> str:
    """Name of the bool column that says in which rows the optional field ``name`` was given."""
    return f"{name}_present"


class Decoder:
    """Records of one topic -> Blocks, by its schema.

    >>> from streams.log import TP, RecordBatch
    >>> value = b'{"transaction_id": 7, "label_time": 1522540800000, "is_fraud": 2}'
    >>> batch = RecordBatch(TP("transaction-labels", 0), [5], [1522540800000], [b"7"], [value], lambda i: [], 6)
    >>> block, dead = Decoder(TRANSACTION_LABELS).decode(batch)
    >>> len(block), block.next_offset, dead[0].reason
    (0, 6, 'is_fraud 2: above the maximum 1; send 0 or 1')
    """

    def __init__(self, schema: EventSchema, value_bytes_max: int = VALUE_BYTES_MAX) -> None:
        for spec in schema.fields:
            if not spec.required and spec.kind not in ("id", "number"):
                raise ValueError(
                    f"{schema.topic}.{spec.name}: only an id or a number can be optional, not a {spec.kind}"
                )
        self.schema = schema
        self.value_bytes_max = value_bytes_max
        struct = msgspec.defstruct(
            "Event",
            [(f.name, _json_type(f)) if f.required else (f.name, _json_type(f) | None, None) for f in schema.fields],
            forbid_unknown_fields=True,
            kw_only=True,
            gc=False,
        )
        self._parse_exact = msgspec.json.Decoder(struct).decode
        self._getters = [attrgetter(f.name) for f in schema.fields]

    def decode(self, batch: RecordBatch) -> tuple[Block, list[Dead]]:
        """The good records as a Block, in log order, and the others as dead letters by rising index.

        Every record is in exactly one of the two. Fields besides the schema's are in ``Block.extra``, None when
        no row has any. An optional id that is absent or null is 0 (or "" in a mixed column), and the bool column
        `present_column` tells; an optional number is NaN. Never raises on any bytes.
        """
        raw = self._parse_whole(batch.values)
        if raw is not None:
            block, bad = self._columns(batch, None, raw)
            if not bad:
                return block, []
        # also for records that msgspec read: it keeps integers beyond 64 bits that orjson makes floats of, and a
        # reason must not depend on what else is in the batch
        reasons: dict[int, str] = {}
        rows, raw, extra = self._parse_each(batch.values, reasons)
        block, bad = self._columns(batch, rows, raw)
        block.extra = extra
        if bad:
            reasons.update({rows[i]: why for i, why in bad.items()})
            good = np.ones(len(block), dtype=np.bool_)
            good[list(bad)] = False
            block = block.take(good)
        if block.extra is not None and not any(block.extra):
            block.extra = None
        return block, [Dead(i, reasons[i]) for i in sorted(reasons)]

    def _columns(
        self, batch: RecordBatch, rows: list[int] | None, raw: list[list[Any]]
    ) -> tuple[Block, dict[int, str]]:
        """The Block of the records at ``rows`` (None = all) and, by row, why it is bad; bad rows hold any value."""
        timestamps = np.array(batch.timestamps, dtype=np.int64)
        offsets = np.array(batch.offsets, dtype=np.int64)
        if rows is not None and len(rows) < len(batch):
            index = np.array(rows, dtype=np.int64)
            offsets, timestamps = offsets[index], timestamps[index]
        block = Block(batch.tp.topic, batch.tp.partition, batch.next_offset, offsets, timestamps, epoch=batch.epoch)
        bad: dict[int, str] = {}
        for spec, values in zip(self.schema.fields, raw, strict=True):
            _COLUMNS[spec.kind](block, spec, values, bad)
        return block, bad

    def _parse_whole(self, values: Sequence[bytes | None]) -> list[list[Any]] | None:
        """One list per field when every record has exactly the schema's fields with the right JSON types."""
        try:
            if max(map(len, values), default=0) > self.value_bytes_max:  # type: ignore[arg-type]
                return None
            structs = list(map(self._parse_exact, values))  # type: ignore[arg-type]
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
            return None
        return [list(map(get, structs)) for get in self._getters]

    def _parse_each(
        self, values: Sequence[bytes | None], reasons: dict[int, str]
    ) -> tuple[list[int], list[list[Any]], list[bytes | None]]:
        """(indexes of the readable records, one list per field, extra fields); the others go to ``reasons``."""
        rows: list[int] = []
        events: list[dict[str, Any]] = []
        for i, value in enumerate(values):
            try:
                event = orjson.loads(value) if len(value) <= self.value_bytes_max else None  # type: ignore[arg-type]
            except (orjson.JSONDecodeError, TypeError):
                event = None
            if type(event) is dict:
                rows.append(i)
                events.append(event)
            else:
                reasons[i] = self._why_unreadable(value)
        raw = [[event.pop(name, None) for event in events] for name in self.schema.names]
        extra = [_object_text(event) if event else None for event in events]
        kept = [i for i, event in enumerate(events) if extra[i] is not None or not event]
        if len(kept) == len(events):
            return rows, raw, extra
        reasons.update({rows[i]: self._why_unreadable(values[rows[i]]) for i in set(range(len(rows))) - set(kept)})
        return [rows[i] for i in kept], [[column[i] for i in kept] for column in raw], [extra[i] for i in kept]

    def _why_unreadable(self, value: bytes | None) -> str:
        """Why this record is not an object with fields that can be kept."""
        names = ", ".join(f.name for f in self.schema.fields if f.required)
        if value is None:
            return f"value null: no event in it; send a JSON object with {names}"
        if len(value) > self.value_bytes_max:
            return f"value of {len(value)} bytes: above the maximum {self.value_bytes_max}; send smaller records"
        shown = _shortened(value[: _SHOWN_CHARS_MAX + 1].decode("utf-8", "replace"))
        try:
            event = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            return f"value {shown}: not JSON ({error}); send a JSON object with {names}"
        if type(event) is not dict:
            return f"value {shown}: {_json_name(event)}, not an object; send a JSON object with {names}"
        return f"value {shown}: nested too deep to be kept; send fewer than 250 levels"


def _json_type(spec: Field) -> Any:
    return {"id": int | str, "time_ms": int, "number": float, "flag": int}[spec.kind]


def _object_text(event: dict[str, Any]) -> bytes | None:
    """The object as JSON text; None when it is nested deeper than orjson writes (254 levels).

    msgspec writes small objects twenty times faster, but how deep it goes depends on the caller's stack, and a
    verdict must not. So text that is long enough to be that deep is judged by orjson.
    """
    try:
        text = _WRITE(event)
        if len(text) > _SURELY_SHALLOW_BYTES:
            orjson.dumps(event)
    except (RecursionError, orjson.JSONEncodeError):
        return None
    return text


# --- columns: each fills the block and notes bad rows; a row's first bad field gives its reason ---


def _reject(spec: Field, values: list[Any], suspects: Sequence[int], times: IntArray, bad: dict[int, str]) -> list[int]:
    """Looks at the suspects one by one; returns those that are bad."""
    found = []
    for i in suspects:
        why = _why_bad(spec, values[i], int(times[i]))
        if why is not None:
            bad.setdefault(i, why)
            found.append(i)
    return found


def _id_column(block: Block, spec: Field, values: list[Any], bad: dict[int, str]) -> None:
    kinds = set(map(type, values))
    present: npt.NDArray[np.bool_] | None = None
    if not spec.required:
        present = np.ones(len(values), dtype=np.bool_)
        if type(None) in kinds:
            present = np.array([v is not None for v in values], dtype=np.bool_)
            kinds.discard(type(None))
            absent: int | str = 0 if kinds <= {int} else ""
            values = [absent if v is None else v for v in values]
        block.columns[present_column(spec.name)] = present
    if kinds <= {int}:
        try:
            block.ids[spec.name] = Ids(ints=np.fromiter(values, dtype=np.int64, count=len(values)))
            return
        except OverflowError:
            pass
    chars_max = (spec.text_bytes_max or _INT64_MAX) // _UTF8_BYTES_PER_CHAR
    suspects = [
        i
        for i, v in enumerate(values)
        if not (0 < len(v) <= chars_max if type(v) is str else type(v) is int and _INT64_MIN <= v <= _INT64_MAX)
        and (present is None or present[i])
    ]
    for i in _reject(spec, values, suspects, block.timestamps, bad):
        values[i] = 0
    block.ids[spec.name] = Ids.of(values)


def _integer_column(block: Block, spec: Field, values: list[Any], bad: dict[int, str]) -> None:
    column = _numbers(block, spec, values, np.dtype(np.int64), {int}, bad)
    if spec.future_ms_max is not None:
        # a record without a timestamp has -1: nothing to compare with
        late = (column > block.timestamps + spec.future_ms_max) & (block.timestamps >= 0)
        if late.any():
            _reject(spec, values, np.flatnonzero(late).tolist(), block.timestamps, bad)


def _number_column(block: Block, spec: Field, values: list[Any], bad: dict[int, str]) -> None:
    if not spec.required:
        values = [math.nan if v is None else v for v in values]
    _numbers(block, spec, values, np.dtype(np.float64), {int, float}, bad)


def _numbers(
    block: Block, spec: Field, values: list[Any], dtype: np.dtype[Any], kinds: set[type], bad: dict[int, str]
) -> npt.NDArray[Any]:
    """The field as a column of ``dtype`` in the block, 0 where a row is bad; types and range checked."""
    times = block.timestamps
    if not set(map(type, values)) <= kinds:
        for i in _reject(spec, values, [i for i, v in enumerate(values) if type(v) not in kinds], times, bad):
            values[i] = 0
    try:
        column = np.fromiter(values, dtype=dtype, count=len(values))
    except OverflowError:
        for i in _reject(spec, values, [i for i, v in enumerate(values) if abs(v) > _INT64_MAX], times, bad):
            values[i] = 0
        column = np.fromiter(values, dtype=dtype, count=len(values))
    low = -math.inf if spec.minimum is None else spec.minimum
    high = math.inf if spec.maximum is None else spec.maximum
    # a NaN, which stands for an absent number, makes the first test look and the second find nothing
    if len(values) and not (low <= column.min() and column.max() <= high):
        outside = np.flatnonzero((column < low) | (column > high))
        _reject(spec, values, [i for i in outside.tolist() if i not in bad], times, bad)
    block.columns[spec.name] = column
    return column


_COLUMNS: dict[str, Callable[[Block, Field, list[Any], dict[int, str]], None]] = {
    "id": _id_column,
    "time_ms": _integer_column,
    "number": _number_column,
    "flag": _integer_column,
}


# --- one value, in words ---


def _why_bad(spec: Field, value: Any, timestamp_ms: int) -> str | None:
    """Why the value is not one of the field's, with the remedy; None when it is."""
    if value is None:
        return f"{spec.name}: missing or null; send {_wanted(spec)}"
    why: str | None = None
    if spec.kind == "id":
        why = _why_bad_id(spec, value)
    elif type(value) is not int and not (spec.kind == "number" and type(value) is float):
        why = f"{_json_name(value)}, not {'a number' if spec.kind == 'number' else 'an integer'}"
    elif spec.minimum is not None and value < spec.minimum:
        why = f"below the minimum {spec.minimum:.15g}"
    elif spec.maximum is not None and value > spec.maximum:
        why = f"above the maximum {spec.maximum:.15g}"
    elif not _INT64_MIN <= value <= _INT64_MAX and spec.kind != "number":
        why = "does not fit in 64 bits"
    elif spec.future_ms_max is not None and timestamp_ms >= 0 and value > timestamp_ms + spec.future_ms_max:
        ahead = value - timestamp_ms
        why = f"{ahead} ms after the record's own timestamp {timestamp_ms}, more than {spec.future_ms_max} ms"
        return f"{spec.name} {_shown(value)}: {why}; check the sender's clock and unit (milliseconds, UTC)"
    return None if why is None else f"{spec.name} {_shown(value)}: {why}; send {_wanted(spec)}"


def _why_bad_id(spec: Field, value: Any) -> str | None:
    if type(value) is int:
        return None if _INT64_MIN <= value <= _UINT64_MAX else "does not fit in 64 bits"
    if type(value) is not str:
        return f"{_json_name(value)}, not an integer or a string"
    if not value:
        return "an empty string"
    if spec.text_bytes_max is not None and len(value.encode()) > spec.text_bytes_max:
        return f"{len(value.encode())} bytes of text, above the maximum {spec.text_bytes_max}"
    return None


def _wanted(spec: Field) -> str:
    if spec.kind == "id":
        limit = "" if spec.text_bytes_max is None else f" of at most {spec.text_bytes_max} bytes"
        return f"an integer of 64 bits or a non-empty string{limit}"
    if spec.kind == "flag":
        return "0 or 1"
    if spec.kind == "time_ms":
        return "an integer, milliseconds since the epoch, UTC"
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


_TRANSACTIONS = Decoder(TRANSACTIONS)
_LABELS = Decoder(TRANSACTION_LABELS)


def decode_transactions(batch: RecordBatch) -> tuple[Block, list[Dead]]:
    """Transactions: ids transaction_id, card_id, terminal_id; columns event_time (int64 ms), amount (float64)."""
    return _TRANSACTIONS.decode(batch)


def decode_labels(batch: RecordBatch) -> tuple[Block, list[Dead]]:
    """Labels: ids transaction_id, terminal_id; columns label_time (int64 ms), is_fraud (int64 0 or 1),
    terminal_id_present (bool)."""
    return _LABELS.decode(batch)


def decode_together(
    decode: Callable[[RecordBatch], tuple[Block, list[Dead]]], batches: Sequence[RecordBatch]
) -> list[tuple[Block, list[Dead]]]:
    """``decode`` of each batch of a topic, at the cost of one."""
    if len(batches) == 1:
        return [decode(batches[0])]
    joined = RecordBatch(
        tp=batches[0].tp,
        offsets=[offset for batch in batches for offset in batch.offsets],
        timestamps=[stamp for batch in batches for stamp in batch.timestamps],
        keys=[],
        values=[value for batch in batches for value in batch.values],
        headers=batches[0].headers,
        next_offset=0,
    )
    block, dead = decode(joined)
    out = []
    record = row = at = 0
    for batch in batches:
        end = record + len(batch)
        mine = []
        while at < len(dead) and dead[at].index < end:
            mine.append(Dead(dead[at].index - record, dead[at].reason))
            at += 1
        rows = len(batch) - len(mine)
        part = block.part(row, row + rows)
        part.topic, part.partition = batch.tp
        part.next_offset, part.epoch = batch.next_offset, batch.epoch
        if part.extra is not None and not any(part.extra):
            part.extra = None
        out.append((part, mine))
        record, row = end, row + rows
    return out
