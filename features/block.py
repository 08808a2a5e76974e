"""Block: a run of consecutive records of one partition as columns; the one type that crosses packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = ["Block", "BoolArray", "FloatArray", "Ids", "IntArray", "KeyArray", "key_of_text"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
#: (n, 2) uint64: the 128-bit identity of an id, see `Ids.keys`
KeyArray = npt.NDArray[np.uint64]

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def key_of_text(text: str) -> tuple[int, int]:
    """128-bit identity of a string id: ``(hi, lo)``.

    A string that is an int64 in canonical decimal form is the same key as that integer, as both are the
    same bytes when they are a Kafka key. Any other string is its xxh3-128 hash with the top bit set, so
    it never equals an integer's key ``(0, value)``.
    """
    digits = text[1:] if text[:1] == "-" else text
    if digits.isascii() and digits.isdigit() and len(digits) <= 19:
        value = int(text)
        if str(value) == text and _INT64_MIN <= value <= _INT64_MAX:
            return 0, value & 0xFFFF_FFFF_FFFF_FFFF
    digest = xxhash.xxh3_128_intdigest(text.encode("utf-8", "surrogatepass"))
    return (digest >> 64) | (1 << 63), digest & 0xFFFF_FFFF_FFFF_FFFF


def _keys_of_texts(texts: list[str]) -> KeyArray:
    """`key_of_text` of each, five times as fast: the hashes of all at once, then those that are integers."""
    digests = b"".join([xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")) for text in texts])
    out = np.frombuffer(digests, dtype=">u8").reshape(-1, 2).astype(np.uint64)
    out[:, 0] |= np.uint64(1 << 63)
    for i, text in enumerate(texts):
        if text.isdigit() or text[:1] == "-":
            out[i] = key_of_text(text)
    return out


@dataclass(slots=True)
class Ids:
    """A column of ids, each an integer or a string, kept as they came.

    Exactly one of the two is set: ``ints`` (n,) int64 where all are integers that fit, else ``mixed``.
    """

    ints: IntArray | None = None
    mixed: list[int | str] | None = None

    @classmethod
    def of(cls, values: Sequence[int | str]) -> Ids:
        """The column of these ids; integers outside int64 are kept as they are in ``mixed``."""
        if all(type(v) is int for v in values):
            try:
                return cls(ints=np.array(values, dtype=np.int64))
            except OverflowError:
                pass
        return cls(mixed=list(values))

    def __len__(self) -> int:
        if self.ints is not None:
            return len(self.ints)
        assert self.mixed is not None
        return len(self.mixed)

    def keys(self) -> KeyArray:
        """(n, 2) uint64: identity of each id; equal rows are the same entity (5 and "5" are)."""
        if self.ints is not None:
            out = np.zeros((len(self), 2), dtype=np.uint64)
            out[:, 1] = self.ints.view(np.uint64)
            return out
        assert self.mixed is not None
        return _keys_of_texts([str(value) for value in self.mixed])

    def to_list(self) -> list[int | str]:
        """The ids as Python values."""
        if self.ints is not None:
            values: list[int | str] = self.ints.tolist()
            return values
        assert self.mixed is not None
        return list(self.mixed)

    def texts(self) -> list[bytes]:
        """The ids as UTF-8 text, the form they have as a Kafka key."""
        return [str(v).encode("utf-8", "surrogatepass") for v in self.to_list()]

    def take(self, index: IntArray | BoolArray) -> Ids:
        """The rows at ``index`` (positions or a mask)."""
        if self.ints is not None:
            return Ids(ints=self.ints[index])
        assert self.mixed is not None
        positions = np.flatnonzero(index) if index.dtype == np.bool_ else index
        return Ids(mixed=[self.mixed[i] for i in positions])

    def part(self, start: int, stop: int) -> Ids:
        """The rows from ``start`` up to ``stop``, sharing memory."""
        if self.ints is not None:
            return Ids(ints=self.ints[start:stop])
        assert self.mixed is not None
        return Ids(mixed=self.mixed[start:stop])

    @staticmethod
    def concat(parts: Sequence[Ids]) -> Ids:
        """The rows of all parts, in order."""
        if all(p.ints is not None for p in parts):
            ints = [p.ints for p in parts if p.ints is not None]
            return Ids(ints=np.concatenate(ints) if ints else np.empty(0, np.int64))
        return Ids(mixed=[v for p in parts for v in p.to_list()])


@dataclass(slots=True)
class Block:
    """Rows of one partition in log order.

    ``offsets`` (n,) int64 and ``timestamps`` (n,) int64 ms (time of sending) are the source records' own.
    ``ids`` holds the id columns, ``columns`` the numeric ones, each (n,); ``extra`` is one JSON object text
    per row or None. ``next_offset`` is the first offset after the block: it also covers records of the run
    that are not rows (dead letters, gaps).
    """

    topic: str
    partition: int
    next_offset: int
    offsets: IntArray
    timestamps: IntArray
    ids: dict[str, Ids] = field(default_factory=dict)
    columns: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    extra: list[bytes | None] | None = None
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def event_time_ms(self) -> IntArray:
        """(n,) int64: event time, milliseconds since the epoch, UTC."""
        return self.columns["event_time"].astype(np.int64, copy=False)

    def take(self, index: IntArray | BoolArray) -> Block:
        """The rows at ``index`` (positions or a mask), the same run of the log otherwise."""
        extra = self.extra
        if extra is not None:
            positions = np.flatnonzero(index) if index.dtype == np.bool_ else index
            extra = [extra[i] for i in positions]
        return Block(
            topic=self.topic,
            partition=self.partition,
            next_offset=self.next_offset,
            offsets=self.offsets[index],
            timestamps=self.timestamps[index],
            ids={name: column.take(index) for name, column in self.ids.items()},
            columns={name: column[index] for name, column in self.columns.items()},
            extra=extra,
            epoch=self.epoch,
        )

    def part(self, start: int, stop: int) -> Block:
        """The rows from ``start`` up to ``stop``, sharing memory; the same run of the log otherwise."""
        rows = slice(start, stop)
        return Block(
            topic=self.topic,
            partition=self.partition,
            next_offset=self.next_offset,
            offsets=self.offsets[rows],
            timestamps=self.timestamps[rows],
            ids={name: column.part(start, stop) for name, column in self.ids.items()},
            columns={name: column[rows] for name, column in self.columns.items()},
            extra=None if self.extra is None else self.extra[rows],
            epoch=self.epoch,
        )

    @staticmethod
    def concat(blocks: Sequence[Block]) -> Block:
        """The rows of all blocks, in order; they have the same columns. Position and topic are the last block's."""
        if len(blocks) == 1:
            return blocks[0]
        last = blocks[-1]
        extra: list[bytes | None] | None = None
        if any(b.extra is not None for b in blocks):
            extra = [text for b in blocks for text in (b.extra if b.extra is not None else [None] * len(b))]
        return Block(
            topic=last.topic,
            partition=last.partition,
            next_offset=last.next_offset,
            offsets=np.concatenate([b.offsets for b in blocks]),
            timestamps=np.concatenate([b.timestamps for b in blocks]),
            ids={name: Ids.concat([b.ids[name] for b in blocks]) for name in last.ids},
            columns={name: np.concatenate([b.columns[name] for b in blocks]) for name in last.columns},
            extra=extra,
            epoch=last.epoch,
        )
