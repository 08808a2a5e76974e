"""Checkpoint files: what was written is read, and nothing else ever is."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streams import checkpoint as module
from streams.checkpoint import (
    Arrays,
    CheckpointError,
    CheckpointMeta,
    Expected,
    SettingsChanged,
    Written,
    read_checkpoint,
    read_meta,
    write_checkpoint,
)
from tests.golden.make_checkpoints import META, golden_arrays, golden_file

EXPECTED = Expected(
    group=META.group,
    stage=META.stage,
    topic=META.topic,
    topic_id=META.topic_id,
    partition=META.partition,
    fingerprint=META.fingerprint,
)
_PREFIX_BYTES = 24


def written(arrays: Arrays, meta: CheckpointMeta = META) -> bytes:
    file = io.BytesIO()
    assert write_checkpoint(file, meta, arrays).file_bytes == len(file.getvalue())
    return file.getvalue()


def read(content: bytes, expected: Expected | None = EXPECTED) -> dict[str, npt.NDArray[Any]]:
    return read_checkpoint(io.BytesIO(content), "file.ckpt", expected).arrays


def refused(content: bytes, expected: Expected | None = EXPECTED) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read(content, expected)
    assert str(caught.value).startswith(f"checkpoint file.ckpt: {caught.value.problem}: ")
    return caught.value


def same(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()


# What was written is read

_DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.byte_string_dtypes(min_len=1, max_len=9),
)
_ARRAYS = _DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=9)))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    arrays=st.dictionaries(st.text(max_size=4), _ARRAYS, max_size=3),
    chunk=st.sampled_from([1, 7, 16, 100, 1 << 20]),
    transposed=st.booleans(),
)
def test_what_was_written_is_read(arrays: dict[str, npt.NDArray[Any]], chunk: int, transposed: bool) -> None:
    if transposed:
        arrays = {name: array.T[::-1] if array.ndim else array for name, array in arrays.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_BYTES", chunk)
        content = written(arrays)
    found = read(content)
    same(found, arrays)
    for array in found.values():
        assert array.flags.writeable and array.flags.c_contiguous and array.dtype.isnative
        array[...] = array[...]


def test_the_same_state_is_the_same_file() -> None:
    assert written(golden_arrays()) == written(golden_arrays())


def test_chunks_of_rows_and_of_what_is_wider_than_rows() -> None:
    rng = np.random.default_rng(1)
    arrays = {
        "rows": rng.integers(0, 1000, (400_000, 3)).astype(np.uint64),
        "wide": rng.random((20, 40_000)),
        "bytes": rng.integers(0, 255, 9_000_001).astype(np.uint8),
    }
    content = written(arrays)
    same(read(content), arrays)
    assert len(content) < sum(array.nbytes for array in arrays.values())


def test_the_size_is_told() -> None:
    file = io.BytesIO()
    assert write_checkpoint(file, META, {"a": np.zeros(1000)}) == Written(len(file.getvalue()), 8000)


def test_the_meta_alone() -> None:
    assert read_meta(io.BytesIO(written(golden_arrays())[:1500]), "x") == META


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array(["text"]),
        np.zeros(2, np.longdouble),
        np.zeros(2, np.complex128),
        np.zeros(2, "datetime64[ms]"),
        np.zeros(2, [("a", "i4")]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_what_is_no_plain_array_is_not_written(array: npt.NDArray[Any]) -> None:
    file = io.BytesIO()
    with pytest.raises(CheckpointError, match=r"unwritable: array state has dtype .*; keep state in arrays of numbers"):
        write_checkpoint(file, META, {"fine": np.zeros(3), "state": array})
    assert file.getvalue() == b""


def test_memory_is_a_few_chunks() -> None:
    arrays = {"a": np.arange(8 << 20, dtype=np.int64), "b": np.arange(2 << 20, dtype=np.int64)}
    total = sum(array.nbytes for array in arrays.values())

    class Sink:
        def write(self, data: bytes) -> None:
            pass

    content = written(arrays)
    tracemalloc.start()
    try:
        write_checkpoint(Sink(), META, arrays)
        assert tracemalloc.get_traced_memory()[1] < 6 * module._CHUNK_BYTES
        tracemalloc.reset_peak()
        found = read(content)
        assert tracemalloc.get_traced_memory()[1] < total + 6 * module._CHUNK_BYTES
    finally:
        tracemalloc.stop()
    same(found, arrays)


# Nothing else ever is

_DAMAGED = {"corrupt", "truncated", "not a checkpoint"}


def small(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A file of several arrays and chunks."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 64)
    return written({"a": np.arange(30), "b": np.arange(12.0).reshape(4, 3), "c": np.zeros(0)})


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_is_found_anywhere(monkeypatch: pytest.MonkeyPatch, bit: int) -> None:
    content = small(monkeypatch)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        assert refused(bytes(damaged)).problem in _DAMAGED, position


def test_a_flipped_bit_is_found_in_a_large_file() -> None:
    content = written({"a": np.random.default_rng(1).integers(0, 1 << 40, 1 << 20)})
    for position in np.linspace(0, len(content) - 1, 23).astype(int):
        damaged = bytearray(content)
        damaged[position] ^= 16
        assert refused(bytes(damaged)).problem in _DAMAGED, position
    damaged = bytearray(content)
    damaged[len(content) * 3 // 4] ^= 16
    assert "the checksum of array a, chunk 1, before byte" in refused(bytes(damaged)).reason


def test_a_file_that_ends_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    content = small(monkeypatch)
    for length in range(len(content)):
        error = refused(content[:length])
        assert error.problem == "truncated", length
    assert "it ends at byte" in error.reason
    assert "an older checkpoint, or the log from its beginning, is used instead" in str(error)


def test_zeros_at_the_end_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash leaves of a file whose size was written before its content."""
    content = small(monkeypatch)
    for length in range(len(content) - 1):
        assert refused(content[:length].ljust(len(content), b"\0")).problem in _DAMAGED


def test_something_after_the_end_is_found() -> None:
    assert "something follows its end" in refused(written({}) + b"\0").reason


@pytest.mark.parametrize("content", [b"PK\3\4" + bytes(100), b"\x93NUMPY", b"\x80\x04\x95pickle", b"text" * 100])
def test_what_is_no_checkpoint(content: bytes) -> None:
    error = refused(content)
    assert error.problem == "not a checkpoint"
    assert str(content[:8]) in error.reason


def forged(header: bytes, body: bytes = b"", version: int = 1) -> bytes:
    """A file whose checksums are right whatever its content."""
    start = struct.pack("<8sII", module.MAGIC, version, len(header))
    head = start + struct.pack("<Q", xxhash.xxh3_64_intdigest(start + header)) + header
    digest = module._SHA256.copy()
    digest.update(head + body)
    return head + body + digest.digest()


def header_of(**array: Any) -> bytes:
    entry = {"name": "a", "dtype": "<i8", "shape": [4], "row_bytes": 8, "chunk_bytes": 64}
    return msgspec.json.encode({"meta": META, "arrays": [entry | array]})


def chunk(data: bytes) -> bytes:
    return struct.pack("<IQ", len(data), xxhash.xxh3_64_intdigest(data, seed=len(data))) + data


def test_a_forged_file_is_as_good_as_a_written_one() -> None:
    """Else the refusals below would be for another reason."""
    assert read(forged(header_of(), chunk(zstandard.compress(bytes(32)))))["a"].tolist() == [0, 0, 0, 0]


def test_a_newer_format() -> None:
    header = msgspec.json.encode({"meta": {"headrace_version": "9.1.0", "new": 1}, "arrays": "elsewhere"})
    error = refused(forged(header, b"another layout", version=2))
    assert error.problem == "newer format"
    assert "written by headrace 9.1.0, format 2; this headrace reads up to 1; upgrade or delete it" in str(error)
    assert "written by headrace of another version, format 3" in str(refused(forged(b"[]", version=3)))


@pytest.mark.parametrize(
    "array",
    [
        {"dtype": "|O"},
        {"dtype": "<U4"},
        {"dtype": "|S0"},
        {"dtype": "nonsense"},
        {"shape": [-1]},
        {"shape": "x"},
        {"shape": [1 << 40, 1 << 40]},
        {"row_bytes": 0},
        {"row_bytes": 3},
        {"chunk_bytes": 0},
        {"row_bytes": 16, "chunk_bytes": 24},
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense(array: dict[str, Any]) -> None:
    error = refused(forged(header_of(**array), chunk(zstandard.compress(bytes(32)))))
    assert error.problem == "corrupt"
    assert "its header is not of format 1" in error.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (zstandard.compress(bytes(31)), "does not hold 32 bytes"),
        (zstandard.compress(bytes(33)), "does not hold 32 bytes"),
        (zstandard.compress(bytes(1 << 30)), "array a, chunk 0"),
        (b"not zstd", "is not zstd"),
        (b"", "does not hold 32 bytes"),
        (bytes(10_000), "has 10000 bytes"),
    ],
    ids=["short", "long", "bomb", "other", "empty", "large"],
)
def test_a_chunk_that_holds_something_else(data: bytes, reason: str) -> None:
    error = refused(forged(header_of(), chunk(data)))
    assert error.problem == "corrupt"
    assert reason in error.reason


@pytest.mark.parametrize("name", ["group", "stage", "topic", "topic_id", "partition"])
def test_a_foreign_checkpoint(name: str) -> None:
    other = 4 if name == "partition" else "other"
    error = refused(written({}, msgspec.structs.replace(META, **{name: other})))
    assert error.problem == "foreign"
    assert f"its {name} is {other!r}, not {getattr(META, name)!r}" in error.reason
    assert not isinstance(error, SettingsChanged)


def test_other_settings_are_an_error_of_their_own() -> None:
    error = refused(written({}, msgspec.structs.replace(META, fingerprint="other")))
    assert isinstance(error, SettingsChanged)
    assert f"fingerprint other (feature set fraud-default {META.feature_set_hash})" in error.reason
    assert f"now has {META.fingerprint}" in error.reason
    assert "start a new group" in error.remedy


def test_foreign_comes_before_other_settings() -> None:
    """The settings of another stage say nothing."""
    assert refused(written({}, msgspec.structs.replace(META, stage="x", fingerprint="y"))).problem == "foreign"


# Golden files


@pytest.mark.parametrize("version", range(1, module.FORMAT_VERSION + 1))
def test_every_format_that_ever_was_stays_loadable(version: int) -> None:
    path: Path = golden_file(version)
    with path.open("rb") as file:
        found = read_checkpoint(file, str(path), EXPECTED)
    assert found.meta == META
    same(found.arrays, golden_arrays())
    assert path.stat().st_size < 8192


def test_the_format_is_what_its_version_says() -> None:
    """A change of the layout needs a new version: the golden file's head is written today as it was then."""
    golden = golden_file(module.FORMAT_VERSION).read_bytes()
    length = _PREFIX_BYTES + struct.unpack("<I", golden[12:16])[0]
    assert written(golden_arrays())[:length] == golden[:length]
