"""Checkpoint files: arrays and what they are the state of, checked to the last bit, nothing of Python in them.

Layout of format 1, integers little-endian and unsigned:

    magic (8) | format (4) | length of header (4) | xxh3_64 of the 16 bytes before and the header (8) | header, JSON
    per array, in the header's order, its bytes in C order and little-endian, cut to whole rows of some megabytes:
        per chunk: length (4) | xxh3_64 of the data, seeded with that length (8) | data, one zstd frame
    sha256 of all before (32)

A chunk's bytes lie in planes: the first byte of each row, then the second of each ... Rows of a state are alike byte
by byte (times, counts, fixed point), so that this is a third of the time to compress, and smaller.

The parts up to the header are the same in all formats, and every header names the version that wrote it. Writing and
reading hold a few chunks beside the arrays. Arrays are of numbers, booleans and bytes; objects are refused.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from streams.errors import HeadraceError

__all__ = [
    "FORMAT_VERSION",
    "Arrays",
    "Checkpoint",
    "CheckpointError",
    "CheckpointMeta",
    "Expected",
    "SettingsChanged",
    "Sink",
    "Written",
    "read_checkpoint",
    "read_meta",
    "write_checkpoint",
]

Arrays = Mapping[str, npt.NDArray[Any]]
Problem = Literal["truncated", "corrupt", "not a checkpoint", "newer format", "foreign", "settings", "unwritable"]

FORMAT_VERSION = 1
MAGIC = b"\x89HRCKPT\n"

_PREFIX = struct.Struct("<8sIIQ")
_CHUNK = struct.Struct("<IQ")
_CHUNK_BYTES = 4 << 20
#: of longer rows each element is one
_ROW_BYTES_MAX = 256
_HEADER_BYTES_MAX = 64 << 20
_DIGEST_BYTES = 32
_LEVEL = 1
#: numbers up to 8 bytes, booleans and fixed-length bytes; longer floats differ by machine
_KINDS = "biufS"
_OLDER = "an older checkpoint, or the log from its beginning, is used instead"

# Made here and copied: to find an algorithm takes locks of OpenSSL, which a forked child may find taken for ever.
_SHA256 = hashlib.sha256()


class Sink(Protocol):
    """What a checkpoint is written to: a file, or less."""

    def write(self, data: bytes, /) -> object:
        """Takes all of the data, or raises."""


class CheckpointError(HeadraceError):
    """A checkpoint that cannot be used (or written): names the file, the reason and what is done or to be done."""

    def __init__(self, file: str, problem: Problem, reason: str, remedy: str = _OLDER) -> None:
        super().__init__(f"checkpoint {file}: {problem}: {reason}; {remedy}")
        self.file, self.problem, self.reason, self.remedy = file, problem, reason, remedy


class SettingsChanged(CheckpointError):
    """A sound checkpoint of other settings: no older one will do, nor may the log be replayed in silence."""


class CheckpointMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is the state of: ``stage`` of ``group`` after all records of the partition below ``offset``.

    ``fingerprint`` names all settings that the state depends on; ``created_at`` is ISO 8601, UTC.
    """

    group: str
    stage: str
    topic: str
    topic_id: str
    partition: int
    offset: int
    fingerprint: str
    feature_set: str
    feature_set_hash: str
    headrace_version: str
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a checkpoint must be of to be used."""

    group: str
    stage: str
    topic: str
    topic_id: str
    partition: int
    fingerprint: str

    def check(self, file: str, meta: CheckpointMeta) -> None:
        """CheckpointError ("foreign") for another log or stage, SettingsChanged for other settings."""
        for name in ("group", "stage", "topic", "topic_id", "partition"):
            found, expected = getattr(meta, name), getattr(self, name)
            if found != expected:
                raise CheckpointError(file, "foreign", f"its {name} is {found!r}, not {expected!r}")
        if meta.fingerprint != self.fingerprint:
            raise SettingsChanged(
                file,
                "settings",
                f"written with fingerprint {meta.fingerprint} (feature set {meta.feature_set}"
                f" {meta.feature_set_hash}), the worker now has {self.fingerprint}",
                "go back to those settings, or start a new group, which reads the log from its beginning,"
                " and switch over when it has caught up",
            )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read: its arrays are the reader's own and can be written to."""

    meta: CheckpointMeta
    arrays: dict[str, npt.NDArray[Any]]


class Written(msgspec.Struct, frozen=True):
    """Bytes of a checkpoint file, and of the arrays in it."""

    file_bytes: int
    array_bytes: int


class _Entry(msgspec.Struct, frozen=True):
    """An array of a header. ``row_bytes`` is how many planes a chunk has, ``chunk_bytes`` a multiple of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    row_bytes: int
    chunk_bytes: int

    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def check(self) -> None:
        """ValueError or TypeError where this is no array that could have been written."""
        dtype = np.dtype(self.dtype)
        if dtype.kind not in _KINDS or not dtype.itemsize or min(self.shape, default=0) < 0:
            raise ValueError(f"array {self.name} has dtype {self.dtype} and shape {self.shape}")
        if self.row_bytes < 1 or self.chunk_bytes < 1 or self.chunk_bytes % self.row_bytes:
            raise ValueError(f"array {self.name} has rows of {self.row_bytes} in chunks of {self.chunk_bytes}")
        if self.nbytes() % self.row_bytes or self.nbytes() >= 2**62:
            raise ValueError(f"array {self.name} has {self.nbytes()} bytes in rows of {self.row_bytes}")


class _Header(msgspec.Struct, frozen=True):
    meta: CheckpointMeta
    arrays: tuple[_Entry, ...]


class _Version(msgspec.Struct):
    headrace_version: str = "of another version"


class _AnyHeader(msgspec.Struct):
    """The part of a header that every format has."""

    meta: _Version


def write_checkpoint(file: Sink, meta: CheckpointMeta, arrays: Arrays) -> Written:
    """Writes a checkpoint from the file's position on; the caller syncs and closes.

    Safe in a forked child. CheckpointError for arrays of objects and the like; errors of the file pass.
    """
    entries = tuple(_entry(name, array) for name, array in arrays.items())
    header = msgspec.json.encode(_Header(meta, entries))
    start = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), 0)[:-8]
    digest = _SHA256.copy()
    size = 0

    def put(data: bytes) -> None:
        nonlocal size
        digest.update(data)
        file.write(data)
        size += len(data)

    put(start + struct.pack("<Q", xxhash.xxh3_64_intdigest(start + header)) + header)
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    for entry in entries:
        for piece in _pieces(arrays[entry.name], entry):
            data = compressor.compress(piece.data)
            put(_CHUNK.pack(len(data), _chunk_sum(data)))
            put(data)
    file.write(digest.digest())
    return Written(size + _DIGEST_BYTES, sum(entry.nbytes() for entry in entries))


def _entry(name: str, array: npt.NDArray[Any]) -> _Entry:
    dtype = array.dtype
    if dtype.kind not in _KINDS or not dtype.itemsize or (dtype.kind != "S" and dtype.itemsize > 8):
        remedy = "keep state in arrays of numbers, booleans or bytes"
        raise CheckpointError(name, "unwritable", f"array {name} has dtype {dtype}", remedy)
    row_bytes = math.prod(array.shape[1:]) * dtype.itemsize
    if not 0 < row_bytes <= _ROW_BYTES_MAX:
        row_bytes = dtype.itemsize
    chunk_bytes = max(1, _CHUNK_BYTES // row_bytes) * row_bytes
    return _Entry(name, dtype.newbyteorder("<").str, array.shape, row_bytes, chunk_bytes)


def _pieces(array: npt.NDArray[Any], entry: _Entry) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of each chunk, in planes."""
    dtype = np.dtype(entry.dtype)
    step = entry.chunk_bytes // dtype.itemsize
    elements = array.reshape(-1) if array.flags.c_contiguous else array.flat
    for begin in range(0, array.size, step):
        content = elements[begin : begin + step].astype(dtype, copy=False).view(np.uint8)
        yield np.ascontiguousarray(content.reshape(-1, entry.row_bytes).T)


def _chunk_sum(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data, seed=len(data))


class _Reader:
    """Reads a checkpoint file front to back, and hashes what it reads."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self.name = file, name
        self.position = 0
        self.digest = _SHA256.copy()

    def fail(self, problem: Problem, reason: str, remedy: str = _OLDER) -> CheckpointError:
        return CheckpointError(self.name, problem, reason, remedy)

    def exactly(self, size: int, what: str) -> bytes:
        data = self.some(size)
        if len(data) < size:
            raise self.fail("truncated", f"it ends at byte {self.position} within {what}")
        self.digest.update(data)
        return data

    def some(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end."""
        data = self._file.read(size)
        while len(data) < size and (more := self._file.read(size - len(data))):
            data += more
        self.position += len(data)
        return data


def read_meta(file: BinaryIO, name: str) -> CheckpointMeta:
    """What a file says that it is, without its arrays. CheckpointError where it is no sound beginning of one."""
    return _header(_Reader(file, name)).meta


def read_checkpoint(file: BinaryIO, name: str, expected: Expected | None = None) -> Checkpoint:
    """The checkpoint in a file, all of it verified; ``name`` is what errors call it.

    CheckpointError where it is truncated, corrupt, no checkpoint, of a newer format or of another log or stage;
    SettingsChanged where only the settings differ. These two are found before the arrays are read.
    """
    reader = _Reader(file, name)
    header = _header(reader)
    if expected:
        expected.check(name, header.meta)
    arrays = {entry.name: _read_array(reader, entry) for entry in header.arrays}
    found = reader.digest.digest()
    if reader.exactly(_DIGEST_BYTES, "its sha256") != found:
        raise reader.fail("corrupt", "its sha256 is of another content")
    if reader.some(1):
        raise reader.fail("corrupt", f"something follows its end at byte {reader.position - 1}")
    return Checkpoint(header.meta, arrays)


def _header(reader: _Reader) -> _Header:
    prefix = reader.some(_PREFIX.size)
    if not prefix.startswith(MAGIC[: len(prefix)]):
        raise reader.fail("not a checkpoint", f"it begins with {prefix[:8]!r}")
    if len(prefix) < _PREFIX.size:
        raise reader.fail("truncated", f"it has {len(prefix)} bytes")
    reader.digest.update(prefix)
    _, version, length, checksum = _PREFIX.unpack(prefix)
    if length > _HEADER_BYTES_MAX:
        raise reader.fail("corrupt", f"a header of {length} bytes")
    header = reader.exactly(length, "its header")
    if xxhash.xxh3_64_intdigest(prefix[:-8] + header) != checksum:
        raise reader.fail("corrupt", "the checksum of its header is another")
    if version > FORMAT_VERSION:
        raise reader.fail(
            "newer format",
            f"written by headrace {_writer(header)}, format {version}; this headrace reads up to {FORMAT_VERSION}",
            "upgrade or delete it; " + _OLDER,
        )
    try:
        found = msgspec.json.decode(header, type=_Header)
        for entry in found.arrays:
            entry.check()
    except (msgspec.DecodeError, TypeError, ValueError) as exc:
        raise reader.fail("corrupt", f"its header is not of format {version}: {exc}") from exc
    return found


def _writer(header: bytes) -> str:
    try:
        return msgspec.json.decode(header, type=_AnyHeader).meta.headrace_version
    except msgspec.DecodeError:
        return _Version().headrace_version


def _read_array(reader: _Reader, entry: _Entry) -> npt.NDArray[Any]:
    array = np.empty(entry.shape, np.dtype(entry.dtype))
    rows = array.reshape(-1).view(np.uint8).reshape(-1, entry.row_bytes)
    step = entry.chunk_bytes // entry.row_bytes
    planes = np.empty(min(entry.chunk_bytes, rows.size), np.uint8)
    decompressor = zstandard.ZstdDecompressor()
    for begin in range(0, len(rows), step):
        target = rows[begin : begin + step]
        what = f"array {entry.name}, chunk {begin // step}"
        length, checksum = _CHUNK.unpack(reader.exactly(_CHUNK.size, what))
        # zstd never makes a chunk much longer: what claims to be is not read into memory at all.
        if length > target.size + (target.size >> 7) + 1024:
            raise reader.fail("corrupt", f"{what} has {length} bytes")
        data = reader.exactly(length, what)
        if _chunk_sum(data) != checksum:
            raise reader.fail("corrupt", f"the checksum of {what}, before byte {reader.position}, is another")
        try:
            with decompressor.stream_reader(data) as stream:
                complete = stream.readinto(planes[: target.size].data) == target.size and not stream.read(1)
        except zstandard.ZstdError as exc:
            raise reader.fail("corrupt", f"{what} is not zstd: {exc}") from exc
        if not complete:
            raise reader.fail("corrupt", f"{what} does not hold {target.size} bytes")
        target[...] = planes[: target.size].reshape(entry.row_bytes, -1).T
    return array
