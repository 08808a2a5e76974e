"""The scanner of plain records: it reads what a JSON parser reads, to the bit, and leaves what it is not sure of."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.schema import INTERACTIONS, TRANSACTION_LABELS, TRANSACTIONS, EventSchema
from streams.scan import PlainScanner

_BYTES_MAX = 1000
_SCANNERS = {schema.topic: PlainScanner(schema) for schema in (TRANSACTIONS, TRANSACTION_LABELS)}
_INTEGER = re.compile(r"-?(0|[1-9]\d*)\Z")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?\Z")

digits = st.text("0123456789", min_size=1, max_size=20)
literals = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.builds("{}{}.{}".format, st.sampled_from(["", "-"]), st.integers(0, 10**9).map(str), digits),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(
        ["0", "-0", "0.0", "-0.0", "00", "01", "1.", ".5", "+1", "1e3", "1E3", "--1", "", "null", "true", '"7"']
    ),
)
space = st.sampled_from(["", "", " ", "\n\t", "\r  "])


def is_plain(schema: EventSchema, values: dict[str, str]) -> bool:
    """The rules of the module, said for texts."""
    for field in schema.fields:
        text = values.get(field.name)
        if text is None:
            if field.required:
                return False
            continue
        form, digits_max = (_NUMBER, 15) if field.kind == "number" else (_INTEGER, 18)
        if not form.match(text) or sum(map(str.isdigit, text)) > digits_max:
            return False
        if text.startswith("-") and float(text) == 0:
            return False
    return True


@st.composite
def records(draw: st.DrawFn, schema: EventSchema) -> tuple[dict[str, str], bytes]:
    """A record's values as texts, and it as bytes."""
    names = draw(st.permutations([f.name for f in schema.fields if f.required or draw(st.booleans())]))
    values = {
        name: draw(literals if draw(st.integers(0, 4)) == 0 else st.integers(0, 10**17).map(str)) for name in names
    }
    pairs = [f'{draw(space)}"{name}"{draw(space)}:{draw(space)}{text}{draw(space)}' for name, text in values.items()]
    return values, (draw(space) + "{" + ",".join(pairs) + "}" + draw(space)).encode()


def check(schema: EventSchema, found: Any, row: int, event: dict[str, Any]) -> None:
    assert set(event) <= set(schema.names)
    for f, field in enumerate(schema.fields):
        assert found.present[f, row] == (field.name in event)
        value = event.get(field.name, 0)
        if field.kind == "number":
            assert np.float64(found.numbers[f, row]).tobytes() == np.float64(value).tobytes()
        else:
            assert type(value) is int and found.integers[f, row] == value


@pytest.mark.parametrize("topic", list(_SCANNERS))
def test_reads_what_a_parser_reads(topic: str) -> None:
    scanner = _SCANNERS[topic]
    schema = scanner.schema

    @settings(max_examples=150, derandomize=True, deadline=None)
    @given(st.lists(records(schema), min_size=1, max_size=4))
    def run(made: list[tuple[dict[str, str], bytes]]) -> None:
        found = scanner.scan([value for _, value in made], _BYTES_MAX)
        assert (found is not None) == all(is_plain(schema, values) for values, _ in made)
        if found is not None:
            for row, (_, value) in enumerate(made):
                check(schema, found, row, orjson.loads(value))

    run()


_GOOD = b'{"transaction_id": 7, "event_time": 1522540800000, "card_id": 1, "terminal_id": 2, "amount": 12.34}'


@settings(max_examples=600, derandomize=True, deadline=None)
@given(st.integers(0, len(_GOOD)), st.integers(0, 3), st.binary(max_size=3))
def test_never_reads_what_a_parser_refuses(at: int, cut: int, put: bytes) -> None:
    value = _GOOD[:at] + put + _GOOD[at + cut :]
    found = _SCANNERS[TRANSACTIONS.topic].scan([value], _BYTES_MAX)
    if found is not None:
        check(TRANSACTIONS, found, 0, orjson.loads(value))


@pytest.mark.parametrize(
    "values",
    [
        [_GOOD, None],
        [_GOOD, b""],
        [_GOOD, _GOOD.replace(b"12.34", b"1e2"), _GOOD],
        [_GOOD[:20], _GOOD[20:]],  # a record ends where it ends
        [_GOOD + _GOOD],
        [_GOOD + b" x"],
        [_GOOD.replace(b"card_id", b"terminal_id")],
        [_GOOD.replace(b'"card_id": 1', b'"card_id": 1, "card_id": 2')],
        [_GOOD.replace(b'"card_id": 1', b'"card_id": 1, "more": 2')],
        [_GOOD.replace(b'"card_id"', rb'"card\u005fid"')],
        [_GOOD.replace(b" 12.34", b" " * _BYTES_MAX + b"12.34")],
        [b"{}"],
    ],
)
def test_leaves_the_rest(values: list[bytes | None]) -> None:
    assert _SCANNERS[TRANSACTIONS.topic].scan(values, _BYTES_MAX) is None


def test_nothing_to_scan() -> None:
    found = _SCANNERS[TRANSACTIONS.topic].scan([], _BYTES_MAX)
    assert found is not None and found.integers.shape == (5, 0)


def test_fits() -> None:
    assert PlainScanner.fits(TRANSACTIONS) and not PlainScanner.fits(INTERACTIONS)
