"""Rows -> one message per target partition, and back; and dropping rows that were sent twice.

A message: 4 bytes of mark, format version and length of the head (uint16 each); the head, JSON padded to a multiple
of 8 bytes: kind, source, names of words and texts; then int64 each next_offset, watermark (least value = none), number
of rows, bytes of the texts; the words of `streams.rows`, column after column; the texts in msgpack; and the xxh3-64 of
all before it. Little endian. The head is the same for all blocks of a source partition, so that both sides look it up
instead of building and parsing it. (An Arrow stream was here before: for one row it took six times as long.)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash
from numba import njit

from features.arrays import Arrays, of_texts, texts_of
from features.block import Block, IntArray
from streams.errors import FatalError, HeadraceError
from streams.log import OutBatch
from streams.rows import FIRST_WORDS, NO_ROWS, Layout, Rows

__all__ = ["FORMAT_VERSION", "TO_ALL", "MessageKind", "Sent", "ShuffleError", "Shuffled", "Source"]
__all__ += ["SourcePositions", "pack", "pack_for", "unpack"]

FORMAT_VERSION = 1
#: as a row's target: every partition
TO_ALL = -1

#: ``watermark`` and ``idle`` have no rows
MessageKind = Literal["rows", "labels", "watermark", "idle"]
_KINDS = get_args(MessageKind)
_WITH_ROWS = ("rows", "labels")

_MARK = b"HRsh"
_PREFIX = struct.Struct("<4sHH")
_FIXED = struct.Struct("<qqqq")
_NO_WATERMARK = -(2**63)
_CHECKSUM_BYTES = 8
_ALIGNED = 8
#: heads kept by each side: source partitions times sets of columns
_HEADS_MAX = 1024
_PREFIXES = ("id:", "f8:", "i8:", "b1:")
_WRITE_TEXTS = msgspec.msgpack.Encoder().encode
_READ_TEXTS = msgspec.msgpack.Decoder(list[list[Any]]).decode


class ShuffleError(HeadraceError):
    """A message that cannot be read: damaged, from a newer version, or not ours."""


class Source(NamedTuple):
    """The partition that rows came from; ``topic_id`` changes when a topic is deleted and made again."""

    topic: str
    topic_id: str
    partition: int


@dataclass(slots=True)
class Shuffled:
    """A message read back: the rows carry the source's offsets and timestamps, ``next_offset`` is the source
    block's."""

    kind: MessageKind
    source: Source
    rows: Rows
    next_offset: int
    watermark_ms: int | None

    @property
    def block(self) -> Block:
        """The rows as a block of the source."""
        return self.rows.block(self.source.topic, self.source.partition, self.next_offset)


# --- writing ---


class Sent(NamedTuple):
    """What one source sends: a block of its rows, and how far it has come."""

    source: Source
    block: Block
    watermark_ms: int | None = None


def pack(
    kind: MessageKind, sent: Sequence[Sent], partitions: IntArray | None, n_partitions: int
) -> list[tuple[int, bytes]]:
    """One message per source and target partition that gets rows: (partition, value), source by source and by rising
    partition.

    ``partitions`` (n,) int64 is the target of each row of all blocks, `TO_ALL` sends the row everywhere; None sends all
    rows everywhere. Rows keep their order. Rows of one source block for one topic belong in one call: the receiver
    takes rows of a source only in rising order of offsets. ``watermark`` and ``idle`` go to all partitions, without
    rows. ValueError: a target out of range or a column of another type than float64, int64, bool.
    """
    if kind not in _WITH_ROWS:
        return [(p, message) for s in sent for message in [_message(kind, s, NO_ROWS)] for p in range(n_partitions)]
    sent = [s for s in sent if len(s.block)]
    if not sent:
        return []
    rows = Rows.of(*[s.block for s in sent])
    n = len(rows)
    if partitions is None:
        partitions = np.full(n, TO_ALL, np.int64)
    if len(partitions) != n or partitions.min() < TO_ALL or partitions.max() >= n_partitions:
        raise ValueError(f"partitions: {n} targets from {TO_ALL} to {n_partitions - 1} expected, one per row")
    order, starts = _by_target(partitions, [len(s.block) for s in sent], n_partitions)
    rows = rows.take(order)
    return [
        (place % n_partitions, _message(kind, sent[place // n_partitions], rows.part(start, stop)))
        for place, (start, stop) in enumerate(pairwise(starts))
        if stop > start
    ]


def pack_for(
    topic: str, kind: MessageKind, sent: Sequence[Sent], partitions: IntArray | None, n_partitions: int
) -> list[OutBatch]:
    """The messages of `pack`, a batch for each target partition of the topic."""
    values: dict[int, list[bytes]] = {}
    for p, value in pack(kind, sent, partitions, n_partitions):
        values.setdefault(p, []).append(value)
    return [OutBatch(topic, of, None, p) for p, of in values.items()]


def _message(kind: str, sent: Sent, rows: Rows) -> bytes:
    texts = _WRITE_TEXTS(rows.texts) if rows.texts else b""
    watermark = _NO_WATERMARK if sent.watermark_ms is None else sent.watermark_ms
    fixed = _FIXED.pack(sent.block.next_offset, watermark, len(rows), len(texts))
    parts = (_head(kind, sent.source, rows.layout), fixed, np.ascontiguousarray(rows.words).data, texts)
    checksum = xxhash.xxh3_64()
    for part in parts:
        checksum.update(part)
    return b"".join((*parts, checksum.digest()))  # copied once: of large messages, copies are most of the cost


@lru_cache(maxsize=_HEADS_MAX)
def _head(kind: str, source: Source, layout: Layout) -> bytes:
    """Mark, version and head."""
    text = msgspec.json.encode(_HeadText(kind, *source, *layout))
    text += b" " * (-len(text) % _ALIGNED)
    return _PREFIX.pack(_MARK, FORMAT_VERSION, len(text)) + text


class _HeadText(msgspec.Struct, array_like=True):
    """The head as JSON: an array of these."""

    kind: str
    topic: str
    topic_id: str
    partition: int
    words: tuple[str, ...]
    texts: tuple[str, ...]


def _by_target(partitions: IntArray, sizes: Sequence[int], n_partitions: int) -> tuple[IntArray, list[int]]:
    """(order, starts): the rows of block k for target p are ``order[starts[i]:starts[i + 1]]`` with
    i = k * n_partitions + p, in their own order."""
    everywhere = int(np.count_nonzero(partitions == TO_ALL))
    order = np.empty(len(partitions) + everywhere * (n_partitions - 1), np.int64)
    ends = np.cumsum(np.array(sizes, np.int64))
    starts = np.empty(len(sizes) * n_partitions + 1, np.int64)
    _sort_by_target(partitions, ends, n_partitions, order, starts)
    return order, starts.tolist()


@njit(cache=True)
def _sort_by_target(partitions: IntArray, ends: IntArray, n_partitions: int, order: IntArray, starts: IntArray) -> None:
    """A stable counting sort, block by block, in which a row with target -1 is in every partition."""
    begin = 0
    starts[0] = 0
    counts = np.empty(n_partitions, np.int64)
    for k in range(ends.shape[0]):
        counts[:] = 0
        everywhere = 0
        for row in range(begin, ends[k]):
            if partitions[row] < 0:
                everywhere += 1
            else:
                counts[partitions[row]] += 1
        for p in range(n_partitions):
            i = k * n_partitions + p
            starts[i + 1] = starts[i] + counts[p] + everywhere
            counts[p] = starts[i]
        for row in range(begin, ends[k]):
            p = partitions[row]
            if p < 0:
                for q in range(n_partitions):
                    order[counts[q]] = row
                    counts[q] += 1
            else:
                order[counts[p]] = row
                counts[p] += 1
        begin = ends[k]


# --- reading ---


def unpack(value: bytes | None) -> Shuffled:
    """The message of `pack`. ShuffleError: it cannot be read. The rows' memory may be the message's, not writable."""
    if value is None or len(value) < _SHORTEST_BYTES:
        raise ShuffleError(f"shuffle message of {len(value or b'')} bytes: not one of headrace's; {_REMEDY}")
    if xxhash.xxh3_64_digest(memoryview(value)[:-_CHECKSUM_BYTES]) != value[-_CHECKSUM_BYTES:]:
        raise ShuffleError(f"shuffle message of {len(value)} bytes: its checksum differs, it is damaged; {_REMEDY}")
    try:
        head_stop = _PREFIX.size + int.from_bytes(value[_PREFIX.size - 2 : _PREFIX.size], "little")
        kind, source, layout = _read_head(value[:head_stop])
        next_offset, watermark, n, texts_bytes = _FIXED.unpack_from(value, head_stop)
        start = head_stop + _FIXED.size
        width = len(layout.words)
        stop = start + 8 * width * n
        if stop + texts_bytes + _CHECKSUM_BYTES != len(value) or n < 0 or texts_bytes < 0:
            raise ValueError(f"{n} rows of {width} words and {texts_bytes} bytes of texts are another length")
        words = np.frombuffer(value, np.int64, width * n, start).reshape(width, n)
        if kind in _WITH_ROWS:
            if n == 0:
                raise ValueError("no rows")
            if words[0, 0] < 0 or (n > 1 and not _rising(words[0])):
                raise ValueError("offsets do not rise")
        texts = _texts(layout, n, value[stop:-_CHECKSUM_BYTES]) if layout.texts else []
        watermark_ms = None if watermark == _NO_WATERMARK else watermark
        return Shuffled(kind, source, Rows(layout, words, texts), next_offset, watermark_ms)
    except ShuffleError:
        raise
    except (ValueError, TypeError, struct.error, RecursionError, msgspec.MsgspecError) as error:
        raise ShuffleError(f"shuffle message of {len(value)} bytes: {error!r}; {_REMEDY}") from error


_REMEDY = "make sure that only headrace writes to its shuffle topics"
_SHORTEST_BYTES = _PREFIX.size + _FIXED.size + _CHECKSUM_BYTES


@lru_cache(maxsize=_HEADS_MAX)
def _read_head(data: bytes) -> tuple[Any, Source, Layout]:
    mark, version, length = _PREFIX.unpack_from(data)
    if mark != _MARK:
        raise ValueError("it does not begin with headrace's mark")
    if version > FORMAT_VERSION:
        raise ShuffleError(
            f"shuffle message of format {version}: this worker reads up to {FORMAT_VERSION}; upgrade every worker of "
            "the group before one of them writes the new format"
        )
    if length % _ALIGNED:
        raise ValueError(f"a head of {length} bytes")
    head = msgspec.json.decode(data[_PREFIX.size :], type=_HeadText)
    if head.kind not in _KINDS:
        raise ValueError(f"kind {head.kind} is none of {', '.join(_KINDS)}")
    names = (*head.words, *head.texts)
    if head.words[: len(FIRST_WORDS)] != FIRST_WORDS or len(set(names)) < len(names):
        raise ValueError(f"columns are {', '.join(names)}; {', '.join(FIRST_WORDS)} and others, each once, expected")
    for word in head.words[len(FIRST_WORDS) :]:
        if not word.startswith(_PREFIXES):
            raise ValueError(f"column {word} is of no known type")
    for text in head.texts:
        if text != "extra" and not text.startswith("id:"):
            raise ValueError(f"text {text} is of no known type")
    return head.kind, Source(head.topic, head.topic_id, head.partition), Layout(head.words, head.texts)


def _texts(layout: Layout, n: int, data: bytes) -> list[list[Any]]:
    texts = _READ_TEXTS(data)
    if len(texts) != len(layout.texts):
        raise ValueError(f"{len(texts)} texts for {', '.join(layout.texts)}")
    for name, text in zip(layout.texts, texts, strict=True):
        wanted: set[type] = {bytes, type(None)} if name == "extra" else {int, str}
        if len(text) != n or not set(map(type, text)) <= wanted:
            raise ValueError(f"text {name}: {n} of {' or '.join(sorted(t.__name__ for t in wanted))} expected")
    return texts


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

    def to_arrays(self) -> Arrays:
        """Equal for equal positions: ``topics``, ``topic_ids`` (t,); ``sources`` (s, 3) int64: number of the topic,
        partition, highest offset; ``dropped`` (1,)."""
        topics = sorted(self._topic_ids)
        number = {topic: i for i, topic in enumerate(topics)}
        sources = [(number[topic], partition, at) for (topic, partition), at in sorted(self._highest.items())]
        return {
            "topics": of_texts(topics),
            "topic_ids": of_texts(self._topic_ids[topic] for topic in topics),
            "sources": np.array(sources, np.int64).reshape(-1, 3),
            "dropped": np.array([self.dropped], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> SourcePositions:
        """The positions that `to_arrays` gave."""
        positions = cls()
        topics = texts_of(arrays["topics"])
        positions._topic_ids = dict(zip(topics, texts_of(arrays["topic_ids"]), strict=True))
        positions._highest = {(topics[i], partition): at for i, partition, at in arrays["sources"].tolist()}
        positions.dropped = int(arrays["dropped"][0])
        return positions
