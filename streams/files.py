"""Event files: rows of Parquet or lines of JSONL, as records to send and as columns to compute on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from streams.errors import ConfigError

__all__ = ["count_rows", "file_kind", "read_records", "read_values"]

_CHUNK = 8192


def file_kind(path: Path) -> str:
    """ "parquet" or "jsonl" by the ending; ConfigError where it is neither or there is no such file."""
    if not path.exists():
        raise ConfigError(f"file {path}: not there; check the path")
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return "parquet"
    if suffix in (".jsonl", ".ndjson", ".json"):
        return "jsonl"
    raise ConfigError(f"file {path}: ending {suffix or '(none)'} is not known; use .parquet or .jsonl")


def count_rows(path: Path) -> int | None:
    """Rows of a Parquet file; None for JSONL, whose lines are not counted beforehand."""
    return int(_parquet(path).metadata.num_rows) if file_kind(path) == "parquet" else None


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as exc:
        raise ConfigError(f"file {path}: not readable as Parquet: {exc}") from exc


def read_values(path: Path) -> Iterator[list[bytes]]:
    """The file as JSON values, some thousand at a time, in file order; JSONL lines byte for byte."""
    if file_kind(path) == "jsonl":
        yield from _lines(path)
        return
    for batch in _parquet(path).iter_batches(batch_size=_CHUNK):
        names = batch.schema.names
        columns = [column.to_pylist() for column in batch.columns]
        try:
            yield [
                orjson.dumps(dict(zip(names, row, strict=True)), default=float) for row in zip(*columns, strict=True)
            ]
        except orjson.JSONEncodeError as exc:
            types = ", ".join(f"{field.name} {field.type}" for field in batch.schema)
            raise ConfigError(f"file {path}: columns {types}: {exc}; cast the column to a number or text") from exc


def _lines(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        while chunk := file.readlines(1 << 20):
            yield [line.rstrip(b"\r\n") for line in chunk if line.strip()]


def _key(value: bytes, field: str) -> bytes | None:
    try:
        event: Any = orjson.loads(value)
        key = event[field]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None  # sent as it is: the worker's dead letters say what is wrong with it
    return None if key is None else str(key).encode()


def read_records(path: Path, key_field: str | None) -> Iterator[tuple[list[bytes], Sequence[bytes | None] | None]]:
    """(values, keys) of the file's events, some thousand at a time; keys None without ``key_field``."""
    for values in read_values(path):
        yield values, None if key_field is None else [_key(v, key_field) for v in values]
