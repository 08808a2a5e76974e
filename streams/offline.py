"""The fraud features of event files, by the stages that the live tasks run, in one pass and one partition."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.block import Block, BoolArray, FloatArray, Ids, IntArray
from features.schema import INTERACTIONS, TRANSACTION_LABELS, TRANSACTIONS, EventSchema, Field
from streams.codec import Dead, Decoder, present_column
from streams.errors import ConfigError
from streams.files import file_kind, read_values
from streams.log import TP, RecordBatch
from streams.pipelines.fraud_stages import CardStage, StageSettings, TerminalStage
from streams.quality import QualityCounters
from streams.time_order import order_by_time

__all__ = [
    "OfflineFeatures",
    "OfflineOrder",
    "block_of",
    "feature_matrix",
    "fraud_rows",
    "read_events",
    "read_interactions",
    "read_labels",
    "read_rows",
    "time_order",
]

logger = logging.getLogger("headrace.offline")

OfflineOrder = Literal["event_time", "arrival"]

_CHUNK_ROWS = 65_536
_DECODE_ROWS = 8_192


@dataclass(frozen=True, slots=True)
class OfflineFeatures:
    """Features of the rows that are not repeated transactions, in the order in which they were computed.

    ``matrix`` (n, d) float64 in the order of the feature set's names; ``row`` (n,) int64 says which row of the input
    each is of; ``late`` (n,) bool. ``duplicates`` rows of the input were dropped. ``label_counts``: labels that did
    not simply count.
    """

    matrix: FloatArray
    row: IntArray
    late: BoolArray
    duplicates: int
    label_counts: Mapping[str, int]

    def in_input_order(self) -> OfflineFeatures:
        """The same with ``row`` rising."""
        if bool(np.all(self.row[1:] > self.row[:-1])):
            return self
        order = np.argsort(self.row)
        return OfflineFeatures(
            self.matrix[order], self.row[order], self.late[order], self.duplicates, self.label_counts
        )


def feature_matrix(
    transactions: Block,
    labels: Block | None,
    settings: StageSettings,
    order: OfflineOrder = "event_time",
    progress: Callable[[int], None] | None = None,
) -> OfflineFeatures:
    """Features of the transactions as one partition of the live pipeline computes them.

    ``transactions`` has ids transaction_id, card_id, terminal_id and columns event_time (ms), amount; ``labels`` has
    id transaction_id and columns label_time (ms), is_fraud. A label comes before the first row at its time or later.

    - ``event_time``: rows by (event_time, transaction_id);
    - ``arrival``: rows as they are, and a row's time, to place labels, is the newest event time up to it.

    ``progress`` is told how many more rows are done. The inputs are not changed.
    """
    n = len(transactions)
    rows = time_order(transactions, "event_time") if order == "event_time" else np.arange(n, dtype=np.int64)
    clock = np.maximum.accumulate(transactions.event_time_ms[rows])
    if labels is not None:
        labels = labels.take(time_order(labels, "label_time"))
    # how many rows come before each label
    before = np.empty(0, np.int64)
    if labels is not None:
        before = np.searchsorted(clock, labels.columns["label_time"].astype(np.int64), side="left")
    card, terminal = CardStage(settings), TerminalStage(settings)
    matrix = np.empty((n, len(settings.features)), np.float64)
    row, late = np.empty(n, np.int64), np.empty(n, np.bool_)
    done = duplicates = labels_done = 0
    for start in range(0, n, _CHUNK_ROWS):
        end = min(start + _CHUNK_ROWS, n)
        made = card.process(_numbered(transactions, rows, start, end))
        kept = made.block.offsets
        labels_end = len(before) if end == n else int(np.searchsorted(before, end, side="left"))
        due, kinds = None, None
        if labels is not None and labels_end > labels_done:
            due = labels.take(np.arange(labels_done, labels_end))
            kinds = np.zeros(len(kept) + len(due), np.bool_)
            kinds[np.searchsorted(kept, before[labels_done:labels_end], side="left") + np.arange(len(due))] = True
            labels_done = labels_end
        out = slice(done, done + len(kept))
        matrix[out], late[out] = terminal.process(made.block, due, kinds)
        row[out] = rows[kept]
        done += len(kept)
        duplicates += made.duplicates
        if progress is not None:
            progress(end - start)
    return OfflineFeatures(matrix[:done], row[:done], late[:done], duplicates, terminal.label_counts)


def time_order(block: Block, field: str) -> IntArray:
    """(n,) positions of the rows by (time, transaction_id): the order of `EventTimeOrder`."""
    return order_by_time(block.columns[field].astype(np.int64, copy=False), block.ids["transaction_id"])


def fraud_rows(transactions: Block, labels: Block, known_by_ms: int | None = None) -> BoolArray:
    """(n,) transactions with a positive label; with ``known_by_ms`` only by labels of that time or earlier.

    A transaction without a label counts as legitimate, as in the risk features.
    """
    said = labels.columns["is_fraud"] != 0
    if known_by_ms is not None:
        said = said & (labels.columns["label_time"].astype(np.int64, copy=False) <= known_by_ms)
    n = len(transactions)
    keys = np.concatenate([transactions.ids["transaction_id"].keys(), labels.ids["transaction_id"].keys()[said]])
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    group = np.zeros(len(keys), np.int64)
    group[order[1:]] = np.cumsum((ordered[1:] != ordered[:-1]).any(axis=1))
    fraud = np.zeros(len(keys), np.bool_)
    fraud[group[n:]] = True
    return fraud[group[:n]]


def _numbered(transactions: Block, rows: IntArray, start: int, end: int) -> Block:
    """Rows ``rows[start:end]`` with their place in ``rows`` as offset; without extra fields, which no stage reads."""
    index = rows[start:end]
    return Block(
        topic=transactions.topic,
        partition=transactions.partition,
        next_offset=end,
        offsets=np.arange(start, end, dtype=np.int64),
        timestamps=transactions.timestamps[index],
        ids={name: column.take(index) for name, column in transactions.ids.items()},
        columns={name: column[index] for name, column in transactions.columns.items()},
    )


# --- event files ---


def block_of(schema: EventSchema, columns: Mapping[str, Any]) -> Block:
    """Columns that are known to be right as a Block: (n,) arrays by field name; ids may be sequences of int or str.

    An optional field may be left out. Other columns are ignored. Offsets are row numbers, timestamps event times.
    """
    times = np.asarray(columns[schema.time], np.int64)
    n = len(times)
    block = Block(schema.topic, 0, n, np.arange(n, dtype=np.int64), times)
    for spec in schema.fields:
        values = columns.get(spec.name)
        if not spec.required:
            block.columns[present_column(spec.name)] = np.full(n, values is not None)
            values = np.zeros(n, np.int64) if values is None else values
        if spec.kind == "id":
            is_array = isinstance(values, np.ndarray) and values.dtype.kind in "iu"
            block.ids[spec.name] = Ids(ints=np.asarray(values, np.int64)) if is_array else Ids.of(list(values or ()))
        else:
            block.columns[spec.name] = np.asarray(values, np.float64 if spec.kind == "number" else np.int64)
    return block


def read_events(
    path: Path,
    rejected: list[Dead] | None = None,
    *,
    keep_extra: bool = False,
    quality: QualityCounters | None = None,
) -> Block:
    """The transactions of a file, as `read_rows`."""
    return read_rows(path, TRANSACTIONS, rejected, keep_extra=keep_extra, quality=quality)


def read_labels(path: Path, rejected: list[Dead] | None = None, *, quality: QualityCounters | None = None) -> Block:
    """The labels of a file, as `read_rows`."""
    return read_rows(path, TRANSACTION_LABELS, rejected, quality=quality)


def read_interactions(path: Path, rejected: list[Dead] | None = None) -> Block:
    """The interactions of a file, as `read_rows`."""
    return read_rows(path, INTERACTIONS, rejected)


def read_rows(
    path: Path,
    schema: EventSchema,
    rejected: list[Dead] | None = None,
    *,
    keep_extra: bool = False,
    quality: QualityCounters | None = None,
) -> Block:
    """The rows of a .parquet or .jsonl file that are valid by the schema, in file order.

    ``Block.offsets`` are row numbers in the file (blank lines of JSONL do not count), ``timestamps`` event times.
    Invalid rows are appended to ``rejected`` with their row number and the reason that the live codec gives; where no
    list is given a warning says how many there were and why. ``quality`` counts by field what was missing, refused or
    mended, as a worker counts it in the same records. ``keep_extra`` fills ``Block.extra`` with the fields that are
    not the schema's. ConfigError for a file that is not there, not readable or lacks a column.
    """
    path = Path(path)
    dead: list[Dead] = []
    found = QualityCounters() if quality is None else quality
    read = _read_parquet if file_kind(path) == "parquet" else _read_jsonl
    block = read(path, schema, dead, found, keep_extra)
    block.timestamps = block.columns[schema.time].astype(np.int64, copy=False)
    if rejected is not None:
        rejected += dead
    elif dead:
        total = len(block) + len(dead)
        logger.warning(
            "%s: %d of %d rows are invalid and left out; row %d: %s",
            path, len(dead), total, dead[0].index, dead[0].reason,
        )  # fmt: skip
    return block


def _read_jsonl(path: Path, schema: EventSchema, dead: list[Dead], found: QualityCounters, keep_extra: bool) -> Block:
    def numbered() -> Iterator[tuple[IntArray, list[bytes]]]:
        start = 0
        for values in read_values(path):
            yield np.arange(start, start + len(values), dtype=np.int64), values
            start += len(values)

    return _decoded(schema, numbered(), dead, found, keep_extra)


def _decoded(
    schema: EventSchema,
    parts: Iterator[tuple[IntArray, list[bytes]]],
    dead: list[Dead],
    found: QualityCounters,
    keep_extra: bool,
) -> Block:
    """(row numbers, JSON values) through the live codec; a record without timestamp is never in the future."""
    decoder = Decoder(schema)
    blocks = [_decode(decoder, np.empty(0, np.int64), [], dead)]
    for numbers, values in parts:
        blocks.append(_decode(decoder, numbers, values, dead))
        if not keep_extra:
            blocks[-1].extra = None
    found.update(decoder.quality)
    # the block without rows has columns of integers, whatever the others hold
    return Block.concat([b for b in blocks if len(b)] or blocks[:1])


def _decode(decoder: Decoder, numbers: IntArray, values: list[bytes], dead: list[Dead]) -> Block:
    n = len(values)
    next_offset = int(numbers[-1]) + 1 if n else 0
    tp = TP(decoder.schema.topic, 0)
    batch = RecordBatch(tp, numbers.tolist(), [-1] * n, [None] * n, list(values), lambda i: [], next_offset)
    block, bad = decoder.decode(batch)
    dead += [Dead(int(numbers[d.index]), d.reason) for d in bad]
    return block


def _read_parquet(path: Path, schema: EventSchema, dead: list[Dead], found: QualityCounters, keep_extra: bool) -> Block:
    """Columns straight to numpy; rows with a value that is not plainly right go through the codec as JSON."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        missing = [f.name for f in schema.fields if f.required and f.name not in names]
        if missing:
            raise ConfigError(
                f"file {path}: no column {', '.join(missing)} (it has {', '.join(names)}); "
                f"rename its columns to those of {schema.topic}: {', '.join(schema.names)}"
            )
        wanted = names if keep_extra else [name for name in schema.names if name in names]
        table = _without_views(file.read(columns=wanted).combine_chunks())
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"file {path}: not readable as Parquet ({error}); write it again") from error
    n = table.num_rows
    block = Block(schema.topic, 0, n, np.arange(n, dtype=np.int64), np.full(n, -1, np.int64))
    plain = np.ones(n, np.bool_)
    for spec in schema.fields:
        _fill(block, spec, table.column(spec.name) if spec.name in names else None, plain)
    extra_names = [name for name in table.column_names if name not in schema.names]
    if extra_names and keep_extra:
        block.extra = list(_json_rows(table.select(extra_names)))
    for spec in schema.fields:
        if not spec.required:
            found.add(spec.name, "missing", int(np.count_nonzero(_absent(block, spec) & plain)))
    if plain.all():
        return block
    odd = np.flatnonzero(~plain)
    chunks = (odd[i : i + _DECODE_ROWS] for i in range(0, len(odd), _DECODE_ROWS))
    parts = ((numbers, list(_json_rows(table.take(numbers)))) for numbers in chunks)
    mended = _decoded(schema, parts, dead, found, keep_extra)
    if len(mended) == 0:
        return block.take(plain)
    if not plain.any():
        return mended
    both = Block.concat([block.take(plain), mended])
    return both.take(np.argsort(both.offsets))


def _without_views(table: pa.Table) -> pa.Table:
    """The table with plain texts for views of texts, of which Arrow cannot take single rows."""
    fields = [f.with_type(pa.large_string()) if pa.types.is_string_view(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields))


def _json_rows(table: pa.Table) -> Iterator[bytes]:
    """The rows as `headrace produce` sends them, which refuses a column that JSON has no form for: here it is text."""
    names = table.column_names
    for batch in table.to_batches(max_chunksize=_DECODE_ROWS):
        columns = [column.to_pylist() for column in batch.columns]
        for row in zip(*columns, strict=True):
            yield orjson.dumps(dict(zip(names, row, strict=True)), default=_plain_json)


def _plain_json(value: Any) -> float | str:
    """What JSON has no form for; a decimal is sent as a number."""
    return float(value) if isinstance(value, Decimal) else str(value)


def _absent(block: Block, spec: Field) -> BoolArray:
    """(n,) rows without the optional field."""
    if spec.kind != "id":
        return np.asarray(np.isnan(block.columns[spec.name]))
    return ~block.columns[present_column(spec.name)].astype(np.bool_, copy=False)


def _fill(block: Block, spec: Field, column: pa.ChunkedArray | None, plain: BoolArray) -> None:
    """Puts the field into the block; ``plain`` becomes False where the value must be looked at."""
    n = len(plain)
    if spec.kind == "id" and not spec.required:
        present = np.zeros(n, np.bool_) if column is None else np.asarray(column.is_valid())
        block.columns[present_column(spec.name)] = present
    if column is not None and pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column is not None and (spec.trim or spec.categories):
        plain[:] = False  # the codec looks each value up, or mends it
    if spec.kind == "id":
        block.ids[spec.name] = _id_column(spec, column, plain)
    else:
        dtype = np.dtype(np.float64 if spec.kind == "number" else np.int64)
        block.columns[spec.name] = _number_column(spec, column, dtype, plain)


def _id_column(spec: Field, column: pa.ChunkedArray | None, plain: BoolArray) -> Ids:
    none = Ids(ints=np.zeros(len(plain), np.int64))
    if column is None:
        return none
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return Ids(ints=_number_column(spec, column, np.dtype(np.int64), plain).astype(np.int64, copy=False))
    size = np.asarray(pc.fill_null(pc.binary_length(column), 0 if spec.required else 1))
    plain &= (size > 0) & (size <= (spec.text_bytes_max or size.max(initial=0)))
    return Ids.of(pc.fill_null(column, "").to_pylist()) if len(plain) else none


def _number_column(
    spec: Field, column: pa.ChunkedArray | None, dtype: np.dtype[Any], plain: BoolArray
) -> npt.NDArray[Any]:
    kind = None if column is None else column.type
    readable = kind is not None and (
        pa.types.is_integer(kind) or (dtype == np.float64 and pa.types.is_floating(kind) and kind != pa.float16())
    )
    if column is None or not readable:
        if column is not None or spec.required:
            plain[:] = False
        return np.full(len(plain), np.nan if spec.kind == "number" else 0, dtype)
    absent = np.zeros(len(plain), np.bool_)
    if column.null_count:
        absent = ~np.asarray(column.is_valid())
        column = pc.fill_null(column, 0)
    values = np.asarray(column)
    good = ~absent
    if values.dtype == np.uint64:
        good &= values < 2**63
    out = values.astype(dtype, copy=False)
    good &= np.isfinite(out)
    if spec.minimum is not None:
        good &= out >= spec.minimum
    if spec.maximum is not None:
        good &= out <= spec.maximum
    if not spec.required:
        good |= absent
        if spec.kind == "number" and absent.any():
            out = np.where(absent, np.nan, out)
    plain &= good
    return out
