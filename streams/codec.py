"""Bytes of JSON records -> Block, and what cannot be read -> dead letters.

One verdict per record, whatever its neighbours are. Four steps, from fast to slow: a batch of plain records
(`streams.scan`) becomes columns in native code; records that hold exactly the schema's fields are parsed by msgspec
straight into typed structs; a batch with any other record goes through orjson, record by record; and only values that a
whole-column test finds suspect are looked at one by one (`streams.columns`) and counted (`streams.quality`).
Records are never joined into one JSON array: a crafted value could then shift the rows behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import orjson

from features.block import Block
from features.schema import TRANSACTION_LABELS, TRANSACTIONS, EventSchema, Field
from streams.columns import Findings, fill_column, fill_plain, known_ids, present_column
from streams.log import RecordBatch
from streams.quality import RECORD, QualityCounters
from streams.scan import PlainScanner
from streams.verdict import why_unreadable

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
_SURELY_SHALLOW_BYTES = 500
_WRITE = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Dead:
    """A record that is not a row: its index in the batch and why, with the remedy."""

    index: int
    reason: str


class Decoder:
    """Records of one topic -> Blocks, by its schema.

    ``quality`` counts what was missing, refused or mended in all that this decoder has decoded, except batches marked
    ``replay``: those were counted when they were new. A pipeline that reports it has a decoder of its own,
    ``Decoder(TRANSACTIONS)``, and gives ``decoder.decode`` to `decode_together`.

    >>> from streams.log import TP, RecordBatch
    >>> value = b'{"transaction_id": 7, "label_time": 1522540800000, "is_fraud": 2, "terminal_id": 5}'
    >>> batch = RecordBatch(TP("transaction-labels", 0), [5], [1522540800000], [b"7"], [value], lambda i: [], 6)
    >>> decoder = Decoder(TRANSACTION_LABELS)
    >>> block, dead = decoder.decode(batch)
    >>> len(block), block.next_offset, dead[0].reason
    (0, 6, 'is_fraud 2: above the maximum 1; send 0 or 1')
    >>> decoder.quality.to_dict()
    {'is_fraud': {'out_of_range': 1}}
    """

    def __init__(self, schema: EventSchema, value_bytes_max: int = VALUE_BYTES_MAX) -> None:
        self.schema = schema
        self.value_bytes_max = value_bytes_max
        self.quality = QualityCounters()
        self._scanner = PlainScanner(schema) if PlainScanner.fits(schema) else None
        self._known = {f.name: known_ids(f.categories) for f in schema.fields if f.kind == "id" and f.categories}
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
        `present_column` tells; an optional number is NaN. Never raises on any bytes. Numbers are clipped and ids
        trimmed where the schema says so.
        """
        plain = self._plain(batch)
        if plain is not None:
            return plain, []
        raw = self._parse_whole(batch.values)
        if raw is not None:
            found = Findings()
            block = self._columns(batch, None, raw, found)
            if not found.bad:
                self._count(batch, found)
                return block, []
        # also for records that msgspec read: it keeps integers beyond 64 bits that orjson makes floats of, and a
        # reason must not depend on what else is in the batch
        found = Findings()
        reasons: dict[int, str] = {}
        rows, raw, extra = self._parse_each(batch.values, reasons)
        found.quality.add(RECORD, "unreadable", len(reasons))
        block = self._columns(batch, rows, raw, found)
        block.extra = extra
        if found.bad:
            reasons.update({rows[i]: why for i, why in found.bad.items()})
            good = np.ones(len(block), dtype=np.bool_)
            good[list(found.bad)] = False
            block = block.take(good)
        if block.extra is not None and not any(block.extra):
            block.extra = None
        self._count(batch, found)
        return block, [Dead(i, reasons[i]) for i in sorted(reasons)]

    def _plain(self, batch: RecordBatch) -> Block | None:
        """The Block of a batch of which all records are plain and in range."""
        scanned = None if self._scanner is None else self._scanner.scan(batch.values, self.value_bytes_max)
        if scanned is None:
            return None
        found = Findings()
        block = _empty(batch, None)
        if not fill_plain(block, self.schema.fields, scanned, found):
            return None
        self._count(batch, found)
        return block

    def _count(self, batch: RecordBatch, found: Findings) -> None:
        if found.quality and not batch.replay:
            self.quality.update(found.quality)

    def _columns(self, batch: RecordBatch, rows: list[int] | None, raw: list[list[Any]], found: Findings) -> Block:
        """The Block of the records at ``rows`` (None = all); rows that ``found`` names as bad hold any value."""
        block = _empty(batch, rows)
        for spec, values in zip(self.schema.fields, raw, strict=True):
            fill_column(block, spec, values, self._known.get(spec.name), found)
        return block

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
                reasons[i] = why_unreadable(self.schema, value, self.value_bytes_max)
        raw = [[event.pop(name, None) for event in events] for name in self.schema.names]
        extra = [_object_text(event) if event else None for event in events]
        kept = [i for i, event in enumerate(events) if extra[i] is not None or not event]
        if len(kept) == len(events):
            return rows, raw, extra
        for i in set(range(len(rows))) - set(kept):
            reasons[rows[i]] = why_unreadable(self.schema, values[rows[i]], self.value_bytes_max)
        return [rows[i] for i in kept], [[column[i] for i in kept] for column in raw], [extra[i] for i in kept]


def _empty(batch: RecordBatch, rows: list[int] | None) -> Block:
    """The Block of the records at ``rows`` (None = all), without its columns."""
    timestamps = np.array(batch.timestamps, dtype=np.int64)
    offsets = np.array(batch.offsets, dtype=np.int64)
    if rows is not None and len(rows) < len(batch):
        index = np.array(rows, dtype=np.int64)
        offsets, timestamps = offsets[index], timestamps[index]
    return Block(batch.tp.topic, batch.tp.partition, batch.next_offset, offsets, timestamps, epoch=batch.epoch)


def _json_type(spec: Field) -> Any:
    return {"id": int | str, "time_ms": int, "number": float, "flag": int, "choice": str}[spec.kind]


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


_TRANSACTIONS = Decoder(TRANSACTIONS)
_LABELS = Decoder(TRANSACTION_LABELS)


def decode_transactions(batch: RecordBatch) -> tuple[Block, list[Dead]]:
    """Transactions: ids transaction_id, card_id, terminal_id; columns event_time (int64 ms), amount (float64).

    For those who do not ask about quality: the decoder, and so its counters, are the process's.
    """
    return _TRANSACTIONS.decode(batch)


def decode_labels(batch: RecordBatch) -> tuple[Block, list[Dead]]:
    """Labels: ids transaction_id, terminal_id; columns label_time (int64 ms), is_fraud (int64 0 or 1),
    terminal_id_present (bool)."""
    return _LABELS.decode(batch)


def decode_together(
    decode: Callable[[RecordBatch], tuple[Block, list[Dead]]], batches: Sequence[RecordBatch]
) -> list[tuple[Block, list[Dead]]]:
    """``decode`` of each batch of a topic, at the cost of one; of two where some are replayed and some are not.

    Results, and what a `Decoder` counts, are those of decoding one by one.
    """
    if len(batches) == 1:
        return [decode(batches[0])]
    if len({batch.replay for batch in batches}) > 1:
        fresh, replayed = (
            iter(decode_together(decode, [b for b in batches if b.replay is replay])) for replay in (False, True)
        )
        return [next(replayed if batch.replay else fresh) for batch in batches]
    joined = RecordBatch(
        tp=batches[0].tp,
        offsets=[offset for batch in batches for offset in batch.offsets],
        timestamps=[stamp for batch in batches for stamp in batch.timestamps],
        keys=[],
        values=[value for batch in batches for value in batch.values],
        headers=batches[0].headers,
        next_offset=0,
        replay=batches[0].replay,
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
