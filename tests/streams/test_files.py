"""Event files as records: JSONL byte for byte, Parquet as JSON, keys from a field."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streams.errors import ConfigError
from streams.files import count_rows, file_kind, read_records, read_values


def values(path: Path) -> list[bytes]:
    return [value for chunk in read_values(path) for value in chunk]


def test_lines_come_byte_for_byte_without_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\n  \n {"b":\t2.50}\nnot json \xff\n{"last": 1}')
    assert values(path) == [b'{"a": 1}', b' {"b":\t2.50}', b"not json \xff", b'{"last": 1}']
    assert count_rows(path) is None


def test_parquet_rows_are_json_with_the_columns_names(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    table = pa.table({"id": [1, 2], "name": ["x", None], "amount": [0.1, float("nan")], "flag": [True, False]})
    pq.write_table(table, path)
    assert values(path) == [
        b'{"id":1,"name":"x","amount":0.1,"flag":true}',
        b'{"id":2,"name":null,"amount":null,"flag":false}',
    ]
    assert count_rows(path) == 2


def test_decimals_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pq.write_table(pa.table({"amount": pa.array([Decimal("12.34")])}), path)
    assert values(path) == [b'{"amount":12.34}']


def test_long_files_come_in_chunks_and_order(tmp_path: Path) -> None:
    n = 20_000
    parquet, jsonl = tmp_path / "e.parquet", tmp_path / "e.jsonl"
    pq.write_table(pa.table({"i": list(range(n))}), parquet)
    jsonl.write_bytes(b"".join(b'{"i":%d,"pad":"%s"}\n' % (i, b"x" * 90) for i in range(n)))
    for path in (parquet, jsonl):
        chunks = list(read_values(path))
        assert len(chunks) > 1
        assert [orjson.loads(v)["i"] for chunk in chunks for v in chunk] == list(range(n))


def test_keys_are_the_fields_text_and_what_has_none_goes_without(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [b'{"card":7}', b'{"card":"\xc3\xa9-1"}', b'{"card":null}', b"{}", b"[1]", b"5", b"{", b'"card"']
    path.write_bytes(b"\n".join(lines))
    [(got, keys)] = read_records(path, "card")
    assert got == lines
    assert keys == [b"7", "é-1".encode(), None, None, None, None, None, None]
    [(got, keys)] = read_records(path, None)
    assert (got, keys) == (lines, None)


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.touch()
    assert values(path) == []


def test_what_is_not_an_event_file_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not there; check the path"):
        values(tmp_path / "no.jsonl")
    (tmp_path / "events.csv").touch()
    with pytest.raises(ConfigError, match=r"ending \.csv is not known; use \.parquet or \.jsonl"):
        values(tmp_path / "events.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for read in (values, count_rows):
        with pytest.raises(ConfigError, match=r"broken\.parquet: not readable as Parquet"):
            read(tmp_path / "broken.parquet")
    pq.write_table(pa.table({"raw": [b"\x00"]}), tmp_path / "binary.parquet")
    with pytest.raises(ConfigError, match="columns raw binary"):
        values(tmp_path / "binary.parquet")


@pytest.mark.parametrize(("name", "kind"), [("a.PARQUET", "parquet"), ("a.pq", "parquet"), ("a.ndjson", "jsonl")])
def test_the_ending_tells_the_kind(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).touch()
    assert file_kind(tmp_path / name) == kind
