"""Rows -> one Arrow IPC message per target partition, and back; and dropping rows that were sent twice.

A message is an Arrow stream (schema, one record batch, end mark) that any Arrow reader takes, and a trailer of 24
bytes: next_offset and watermark (int64, little endian, least value = none) and the xxh3-64 of all before it. The
schema's metadata says what it is: format version, kind and source; it is the same bytes for all blocks of a source
partition, so that both sides look it up instead of building and parsing it. Columns:
``offset``, ``timestamp``, then ``id:NAME`` (int64 or text), ``json:NAME`` (ids of both kinds, each as JSON text),
``f8:``, ``i8:`` and ``b1:NAME`` (float64, int64, bool) and ``extra`` (JSON text or null).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np
import pyarrow as pa
import xxhash
from numba import njit

from features.block import Block, Ids, IntArray
from streams.errors import FatalError, HeadraceError

__all__ = ["FORMAT_VERSION", "TO_ALL", "MessageKind", "ShuffleError", "Shuffled", "Source", "SourcePositions"]
__all__ += ["pack", "unpack"]

FORMAT_VERSION = 1
#: as a row's target: every partition
TO_ALL = -1

#: ``watermark`` and ``idle`` have no rows
MessageKind = Literal["rows", "labels", "watermark", "idle"]
_KINDS = get_args(MessageKind)
_WITH_ROWS = ("rows", "labels")

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_TRAILER = struct.Struct("<qq")
_NO_WATERMARK = -(2**63)
_CHECKSUM_BYTES = 8
_BEHIND_BATCH_BYTES = len(_END_OF_STREAM) + _TRAILER.size + _CHECKSUM_BYTES
#: heads kept by each side: source partitions times sets of columns
_HEADS_MAX = 1024
#: by the dtype itself: to ask a dtype's name takes 2 us
_PREFIX_OF_DTYPE = {np.dtype(np.float64): "f8:", np.dtype(np.int64): "i8:", np.dtype(np.bool_): "b1:"}
_ARROW_TYPES = {"f8:": pa.float64(), "i8:": pa.int64(), "b1:": pa.bool_(), "json:": pa.string()}
#: by the part of a column's name up to the colon
_TYPES_READ = {
    "offset": ("int64",),
    "timestamp": ("int64",),
    "id:": ("int64", "string"),
    "json:": ("string",),
    "f8:": ("double",),
    "i8:": ("int64",),
    "b1:": ("bool",),
    "extra": ("string",),
}
_WRITE_ID = msgspec.json.Encoder().encode
_READ_ID = msgspec.json.Decoder(int | str).decode


class ShuffleError(HeadraceError):
    """A message that cannot be read: damaged, from a newer version, or not ours."""


class Source(NamedTuple):
    """The partition that rows came from; ``topic_id`` changes when a topic is deleted and made again."""

    topic: str
    topic_id: str
    partition: int


@dataclass(slots=True)
class Shuffled:
    """A message read back: the rows of ``block`` carry the source's offsets and timestamps, ``block.next_offset``
    is the source block's, and topic and partition are the source's."""

    kind: MessageKind
    source: Source
    block: Block
    watermark_ms: int | None


# --- writing ---


def pack(
    kind: MessageKind,
    source: Source,
    block: Block,
    partitions: IntArray | None,
    n_partitions: int,
    *,
    watermark_ms: int | None = None,
) -> list[tuple[int, bytes]]:
    """One message per target partition that gets rows: (partition, value), by rising partition.

    ``partitions`` (n,) int64 is each row's target, `TO_ALL` sends the row everywhere; None sends all rows
    everywhere. Rows keep their order. Rows of one source block for one topic belong in one call: the receiver takes
    rows of a source only in rising order of offsets. ``watermark`` and ``idle`` go to all partitions, without rows.
    ValueError: a target out of range or a column of another type than float64, int64, bool.
    """
    trailer = _TRAILER.pack(block.next_offset, _NO_WATERMARK if watermark_ms is None else watermark_ms)
    n = len(block)
    if kind not in _WITH_ROWS:
        message = _sealed(_head(kind, source, (), ())[1], None, trailer)
        return [(p, message) for p in range(n_partitions)]
    if n == 0:
        return []
    if partitions is None:
        head, batch = _batch(kind, source, block, None)
        message = _sealed(head, batch, trailer)
        return [(p, message) for p in range(n_partitions)]
    if len(partitions) != n or partitions.min() < TO_ALL or partitions.max() >= n_partitions:
        raise ValueError(f"partitions: {n} targets from {TO_ALL} to {n_partitions - 1} expected, one per row")
    if n == 1 and partitions[0] != TO_ALL:
        head, batch = _batch(kind, source, block, None)
        return [(int(partitions[0]), _sealed(head, batch, trailer))]
    order, starts = _by_target(partitions, n_partitions)
    head, batch = _batch(kind, source, block, order)
    bounds: list[int] = starts.tolist()
    return [
        (p, _sealed(head, batch.slice(bounds[p], bounds[p + 1] - bounds[p]), trailer))
        for p in range(n_partitions)
        if bounds[p + 1] > bounds[p]
    ]


def _sealed(head: bytes, batch: pa.RecordBatch | None, trailer: bytes) -> bytes:
    """The stream of this schema and batch, its trailer and their checksum."""
    body = b"" if batch is None else batch.serialize()
    stream = b"".join((head, body, _END_OF_STREAM, trailer))
    return stream + xxhash.xxh3_64_digest(stream)


def _by_target(partitions: IntArray, n_partitions: int) -> tuple[IntArray, IntArray]:
    """(order, starts): the rows of target p are ``order[starts[p]:starts[p + 1]]``, in their own order."""
    everywhere = int(np.count_nonzero(partitions == TO_ALL))
    order = np.empty(len(partitions) + everywhere * (n_partitions - 1), np.int64)
    starts = np.empty(n_partitions + 1, np.int64)
    _sort_by_target(partitions, n_partitions, order, starts)
    return order, starts


@njit(cache=True)
def _sort_by_target(partitions: IntArray, n_partitions: int, order: IntArray, starts: IntArray) -> None:
    """A stable counting sort in which a row with target -1 is in every partition."""
    counts = np.zeros(n_partitions, np.int64)
    everywhere = 0
    for p in partitions:
        if p < 0:
            everywhere += 1
        else:
            counts[p] += 1
    starts[0] = 0
    for p in range(n_partitions):
        starts[p + 1] = starts[p] + counts[p] + everywhere
        counts[p] = starts[p]
    for row in range(partitions.shape[0]):
        p = partitions[row]
        if p < 0:
            for q in range(n_partitions):
                order[counts[q]] = row
                counts[q] += 1
        else:
            order[counts[p]] = row
            counts[p] += 1


def _batch(kind: str, source: Source, block: Block, order: IntArray | None) -> tuple[bytes, pa.RecordBatch]:
    """The head of the message and the block's columns as a record batch, rows by ``order``."""
    names = ["offset", "timestamp"]
    columns: list[Any] = [block.offsets, block.timestamps]
    texts: list[tuple[str, Any]] = []
    for name, ids in block.ids.items():
        if ids.ints is not None:
            names.append(f"id:{name}")
            columns.append(ids.ints)
        else:
            texts.append(_id_texts(name, ids.to_list()))
    for name, column in block.columns.items():
        prefix = _PREFIX_OF_DTYPE.get(column.dtype)
        if prefix is None:
            raise ValueError(f"column {name}: dtype {column.dtype} cannot be sent; use float64, int64 or bool")
        names.append(prefix + name)
        columns.append(column)
    if block.extra is not None:
        texts.append(("extra", pa.array(block.extra, pa.string())))
    arrays = [pa.array(column if order is None else column[order]) for column in columns]
    if texts:
        index = None if order is None else pa.array(order)
        arrays += [array if index is None else array.take(index) for _, array in texts]
    schema, head = _head(kind, source, tuple(names), tuple(name for name, _ in texts))
    return head, pa.RecordBatch.from_arrays(arrays, schema=schema)


def _id_texts(name: str, values: list[int | str]) -> tuple[str, Any]:
    if all(type(v) is str for v in values):
        return f"id:{name}", pa.array(values, pa.string())
    return f"json:{name}", pa.array(list(map(_WRITE_ID, values)), pa.string())


@lru_cache(maxsize=_HEADS_MAX)
def _head(kind: str, source: Source, numeric: tuple[str, ...], texts: tuple[str, ...]) -> tuple[pa.Schema, bytes]:
    """The schema with its metadata, and its bytes."""
    fields = []
    for name in numeric:
        prefix = name[: name.index(":") + 1] if ":" in name else ""
        fields.append(pa.field(name, _ARROW_TYPES.get(prefix, pa.int64()), nullable=False))
    fields += [pa.field(name, pa.string(), nullable=name == "extra") for name in texts]
    metadata = {
        b"headrace.version": b"%d" % FORMAT_VERSION,
        b"kind": kind.encode(),
        b"topic": source.topic.encode(),
        b"topic_id": source.topic_id.encode(),
        b"partition": b"%d" % source.partition,
    }
    schema = pa.schema(fields, metadata)
    return schema, schema.serialize().to_pybytes()


# --- reading ---


def unpack(value: bytes | None) -> Shuffled:
    """The message of `pack`. Arrays are the caller's own and writable. ShuffleError: it cannot be read."""
    if value is None or len(value) < _SHORTEST_BYTES:
        raise ShuffleError(f"shuffle message of {len(value or b'')} bytes: not one of headrace's; {_REMEDY}")
    if xxhash.xxh3_64_digest(memoryview(value)[:-_CHECKSUM_BYTES]) != value[-_CHECKSUM_BYTES:]:
        raise ShuffleError(f"shuffle message of {len(value)} bytes: its checksum differs, it is damaged; {_REMEDY}")
    try:
        # an Arrow stream begins with a mark of 4 bytes, the length of the schema (4 bytes) and the schema
        head_bytes = 8 + int.from_bytes(value[4:8], "little")
        head = _read_head(value[:head_bytes])
        if value[-_BEHIND_BATCH_BYTES:][: len(_END_OF_STREAM)] != _END_OF_STREAM:
            raise ValueError("no end mark before the trailer")
        next_offset, watermark_ms = _TRAILER.unpack_from(value, len(value) - _CHECKSUM_BYTES - _TRAILER.size)
        if head.kind in _WITH_ROWS:
            body = pa.py_buffer(value).slice(head_bytes, len(value) - head_bytes - _BEHIND_BATCH_BYTES)
            block = _block(head, next_offset, pa.ipc.read_record_batch(body, head.schema))
        else:
            empty = np.empty(0, np.int64)
            block = Block(head.source.topic, head.source.partition, next_offset, empty, empty.copy())
        return Shuffled(head.kind, head.source, block, None if watermark_ms == _NO_WATERMARK else watermark_ms)
    except ShuffleError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, EOFError, msgspec.MsgspecError) as error:
        raise ShuffleError(f"shuffle message of {len(value)} bytes: {error!r}; {_REMEDY}") from error


_REMEDY = "make sure that only headrace writes to its shuffle topics"
_SHORTEST_BYTES = 8 + _BEHIND_BATCH_BYTES


class _Head(NamedTuple):
    """What all messages of one source partition have in common: positions of the columns that are read as one int64
    or float64 matrix, and of the others; what each column is."""

    kind: Any
    source: Source
    schema: pa.Schema
    ints: list[int]
    floats: list[int]
    others: list[int]
    names: list[tuple[int, str, str]]


@lru_cache(maxsize=_HEADS_MAX)
def _read_head(data: bytes) -> _Head:
    schema = pa.ipc.read_schema(pa.py_buffer(data))
    metadata: dict[bytes, bytes] = schema.metadata or {}
    version = int(metadata[b"headrace.version"])
    if version > FORMAT_VERSION:
        raise ShuffleError(
            f"shuffle message of format {version}: this worker reads up to {FORMAT_VERSION}; upgrade every worker of "
            "the group before one of them writes the new format"
        )
    kind = metadata[b"kind"].decode()
    if kind not in _KINDS:
        raise ValueError(f"kind {kind} is none of {', '.join(_KINDS)}")
    source = Source(metadata[b"topic"].decode(), metadata[b"topic_id"].decode(), int(metadata[b"partition"]))
    if kind in _WITH_ROWS and (
        schema.names[:2] != ["offset", "timestamp"] or len(set(schema.names)) < len(schema.names)
    ):
        raise ValueError(f"columns are {', '.join(schema.names)}; offset, timestamp and others, each once, expected")
    places: dict[str, list[int]] = {"int64": [], "double": [], "": []}
    names = []
    for i, field in enumerate(schema):
        prefix, colon, name = field.name.partition(":")
        if str(field.type) not in _TYPES_READ.get(prefix + colon, ()):
            raise ValueError(f"column {field.name} has type {field.type}")
        places[str(field.type) if str(field.type) in places else ""].append(i)
        if i > 1:
            names.append((i, prefix, name))
    return _Head(kind, source, schema, places["int64"], places["double"], places[""], names)


def _block(head: _Head, next_offset: int, batch: pa.RecordBatch) -> Block:
    """The batch's columns as a block, in their order."""
    batch.validate(full=True)
    if batch.num_rows == 0:
        raise ValueError("no rows")
    values: dict[int, Any] = {}
    for places in (head.ints, head.floats):
        if places:
            # one copy for all columns of a type: a fifth of the time of one by one on short messages
            matrix = batch.select(places).to_tensor(row_major=False).to_numpy()
            values.update(zip(places, matrix.T, strict=True))
    for place in head.others:
        values[place] = column = batch.column(place)
        if column.null_count and head.schema.names[place] != "extra":
            raise ValueError(f"column {head.schema.names[place]} has nulls")
    block = Block(head.source.topic, head.source.partition, next_offset, values[0], values[1])
    if not _rising(block.offsets):
        raise ValueError("offsets do not rise")
    for place, prefix, name in head.names:
        column = values[place]
        if prefix == "id":
            of_ints = isinstance(column, np.ndarray)
            block.ids[name] = Ids(ints=column) if of_ints else Ids(mixed=column.to_pylist())
        elif prefix == "json":
            block.ids[name] = Ids(mixed=list(map(_READ_ID, column.to_pylist())))
        elif prefix == "extra":
            block.extra = column.cast(pa.binary()).to_pylist()
        else:
            block.columns[name] = column.to_numpy(zero_copy_only=False) if prefix == "b1" else column
    return block


@njit(cache=True)
def _rising(offsets: IntArray) -> bool:
    last = -1
    for offset in offsets:
        if offset <= last:
            return False
        last = offset
    return True


# --- each row once ---


class SourcePositions:
    """The highest offset taken from each source partition: part of a task's state and of its checkpoints.

    ``dropped`` counts the rows that came again.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._topic_ids: dict[str, str] = {}
        self._highest: dict[tuple[str, int], int] = {}

    def fresh(self, source: Source, offsets: IntArray) -> int:
        """Where the rows begin that were not taken before; they count as taken from now on.

        ``offsets`` (n,) rise, as in a message. FatalError ``topic-recreated``: the source topic has another id than
        the one that the state was made from, so its offsets mean other records.
        """
        known = self._topic_ids.setdefault(source.topic, source.topic_id)
        if known != source.topic_id:
            raise FatalError(
                "topic-recreated",
                f"topic {source.topic} was deleted and made again (id {known} before, {source.topic_id} now): "
                "the checkpoints hold state of records that no longer exist. Use a new --group, or delete this group's "
                "checkpoints and shuffle topics, to start from the new topic's beginning.",
            )
        if len(offsets) == 0:
            return 0
        place = (source.topic, source.partition)
        highest = self._highest.get(place, -1)
        start = 0 if offsets[0] > highest else int(np.searchsorted(offsets, highest, side="right"))
        self.dropped += start
        self._highest[place] = max(highest, int(offsets[-1]))
        return start

    def to_plain(self) -> dict[str, Any]:
        """JSON-able, equal for equal positions: ``topic_ids`` {topic: id}, ``highest`` [[topic, partition, offset]]."""
        return {
            "topic_ids": dict(sorted(self._topic_ids.items())),
            "highest": [[topic, partition, at] for (topic, partition), at in sorted(self._highest.items())],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> SourcePositions:
        """The positions that `to_plain` gave."""
        positions = cls()
        positions._topic_ids = dict(plain["topic_ids"])
        positions._highest = {(topic, partition): at for topic, partition, at in plain["highest"]}
        return positions
