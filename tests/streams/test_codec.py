"""`streams.codec`: one verdict per record, equal to the obvious validator's, whatever the neighbours are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_codec import read_event

from features.schema import TRANSACTION_LABELS, TRANSACTIONS, EventSchema, Field
from streams.codec import VALUE_BYTES_MAX, Decoder, decode_labels, decode_transactions, present_column
from streams.log import TP, RecordBatch

NOW_MS = 1_722_540_800_000
SMALL_BYTES_MAX = 4_000
GOOD = {"transaction_id": 7, "event_time": NOW_MS, "card_id": 11, "terminal_id": 13, "amount": 12.5}
GOOD_LABEL = {"transaction_id": 7, "label_time": NOW_MS, "is_fraud": 1}


def batch_of(
    values: list[bytes | None], timestamps: list[int] | None = None, topic: str = "transactions"
) -> RecordBatch:
    offsets = [100 + 2 * i for i in range(len(values))]  # gaps, as transaction markers leave them
    timestamps = [NOW_MS] * len(values) if timestamps is None else timestamps
    next_offset = 100 + 2 * len(values)
    return RecordBatch(TP(topic, 3), offsets, timestamps, [None] * len(values), values, lambda i: [], next_offset, 5)


def with_fields(**fields: Any) -> bytes:
    return orjson.dumps({**GOOD, **fields})


def without(name: str) -> bytes:
    return orjson.dumps({k: v for k, v in GOOD.items() if k != name})


def raw_field(name: str, text: str) -> bytes:
    """The good event with this JSON text, right or wrong, as one field."""
    return b"{%s}" % b",".join(
        b'"%s":%s' % (k.encode(), text.encode() if k == name else orjson.dumps(v)) for k, v in GOOD.items()
    )


def reasons_of(value: bytes | None, timestamp_ms: int = NOW_MS) -> list[str]:
    block, dead = decode_transactions(batch_of([value], [timestamp_ms]))
    assert len(block) + len(dead) == 1
    return [d.reason for d in dead]


def check_against_oracle(schema: EventSchema, values: list[bytes | None], timestamps: list[int]) -> None:
    batch = batch_of(values, timestamps, schema.topic)
    block, dead = Decoder(schema, SMALL_BYTES_MAX).decode(batch)
    verdicts = [read_event(schema, v, t, SMALL_BYTES_MAX) for v, t in zip(values, timestamps, strict=True)]
    good = [i for i, verdict in enumerate(verdicts) if isinstance(verdict, dict)]
    assert [d.index for d in dead] == [i for i in range(len(values)) if i not in good]
    for d in dead:
        assert d.reason.startswith(str(verdicts[d.index])), (d.reason, verdicts[d.index])
        assert len(d.reason) < 500 and d.reason.isprintable()
    assert block.offsets.tolist() == [batch.offsets[i] for i in good]
    assert block.timestamps.tolist() == [timestamps[i] for i in good]
    assert (block.topic, block.partition, block.next_offset, block.epoch) == (schema.topic, 3, batch.next_offset, 5)
    events = [verdicts[i] for i in good]
    for field in schema.fields:
        expected = [e[field.name] for e in events if isinstance(e, dict)]
        if field.kind == "id":
            present = [v is not None for v in expected]
            if not field.required:
                assert block.columns[present_column(field.name)].tolist() == present
            got = block.ids[field.name].to_list()
            pairs = [(a, b) for a, b, p in zip(got, expected, present, strict=True) if p]
            assert all(type(a) is type(b) and a == b for a, b in pairs)
        else:
            column = block.columns[field.name]
            assert column.dtype == (np.float64 if field.kind == "number" else np.int64)
            assert column.tolist() == expected
    extras = [e["extra"] for e in events if isinstance(e, dict)]
    if not any(extras):
        assert block.extra is None
    else:
        assert block.extra is not None
        assert [orjson.loads(x) if x is not None else {} for x in block.extra] == extras


# --- every way to be wrong, by name ---


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "value null: no event in it; send a JSON object with transaction_id, event_time"),
        (b"", "value : not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"transaction_id": 7', "not JSON"),
        (b"[1, 2]", "value [1, 2]: an array, not an object"),
        (b"17", "value 17: a number, not an object"),
        (b"null", "value null: null, not an object"),
        (b'{"a":' * 600 + b"1" + b"}" * 600, "nested too deep"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "not JSON"),
        (b" " * (VALUE_BYTES_MAX + 1), f"value of {VALUE_BYTES_MAX + 1} bytes: above the maximum {VALUE_BYTES_MAX}"),
        (b"[" * 10_000_000, "value of 10000000 bytes"),
        (without("amount"), "amount: missing or null; send a finite number from 0"),
        (without("card_id"), "card_id: missing or null; send an integer"),
        (with_fields(event_time=None), "event_time: missing or null; send an integer, milliseconds"),
        (with_fields(amount="12.5"), "amount '12.5': a string, not a number"),
        (with_fields(amount=True), "amount True: a boolean, not a number"),
        (with_fields(amount=-0.01), "amount -0.01: below the minimum 0"),
        (with_fields(amount=1.1e12), "amount 1100000000000.0: above the maximum 1000000000000;"),
        (raw_field("amount", "NaN"), "not JSON"),
        (raw_field("amount", "Infinity"), "not JSON"),
        (raw_field("amount", "1e999"), "not JSON"),
        (
            with_fields(event_time=1.5e12),
            "event_time 1500000000000.0: a number with a fraction or exponent, not an integer",
        ),
        (with_fields(event_time=str(NOW_MS)), "event_time '1722540800000': a string, not an integer"),
        (with_fields(event_time=946_684_799_999), "event_time 946684799999: below the minimum 946684800000"),
        (with_fields(event_time=1_722_540_800), "event_time 1722540800: below the minimum"),
        (with_fields(event_time=NOW_MS + 3_600_001), "3600001 ms after the record's own timestamp 1722540800000"),
        (raw_field("event_time", "99999999999999999999"), "event_time"),
        (raw_field("event_time", "18446744073709551615"), "event_time 18446744073709551615: above the maximum"),
        (with_fields(card_id=True), "card_id True: a boolean, not an integer or a string"),
        (with_fields(card_id=1.0), "card_id 1.0: a number with a fraction or exponent, not an integer or a string"),
        (with_fields(card_id=""), "card_id '': an empty string"),
        (with_fields(card_id="é" * 129), "258 bytes of text, above the maximum 256"),
        (with_fields(card_id={"a": [1] * 9_000}), "card_id {'a': [1, 1, 1, 1, 1, 1, ...]}: an object"),
        (raw_field("card_id", "[" * 1000 + "]" * 1000), "card_id [[[[[[[...]]]]]]]: an array"),
        (raw_field("card_id", "1" * 100), "card_id"),
        (raw_field("card_id", '"\\ud800"'), "not JSON"),
    ],
)
def test_reason_names_field_value_and_remedy(value: bytes | None, says: str) -> None:
    (reason,) = reasons_of(value)
    assert says in reason
    assert ";" in reason and len(reason) < 400


@pytest.mark.parametrize(
    "value",
    [
        with_fields(amount=0),
        with_fields(amount=-0.0),
        with_fields(amount=1e12),
        with_fields(event_time=NOW_MS + 3_600_000),
        with_fields(event_time=946_684_800_000),
        with_fields(card_id="é" * 128),
        with_fields(card_id=2**64 - 1),
        with_fields(card_id=-(2**63)),
        b" \n" + with_fields() + b"\t",
    ],
)
def test_edges_are_accepted(value: bytes) -> None:
    assert reasons_of(value) == []


@pytest.mark.parametrize("flag", [True, False, 2, -1, 1.0, "1", None])
def test_label_is_zero_or_one(flag: object) -> None:
    block, dead = decode_labels(batch_of([orjson.dumps({**GOOD_LABEL, "is_fraud": flag}), orjson.dumps(GOOD_LABEL)]))
    assert [d.index for d in dead] == [0] and dead[0].reason.endswith("send 0 or 1")
    assert block.columns["is_fraud"].tolist() == [1]


def test_optional_terminal_of_a_label() -> None:
    ids: list[object] = [None, 5, 2**63, "t-1", None]
    values: list[bytes | None] = [orjson.dumps({**GOOD_LABEL, "terminal_id": v}) for v in ids]
    values[4] = orjson.dumps(GOOD_LABEL)
    block, dead = decode_labels(batch_of(values))
    assert not dead
    assert block.columns["terminal_id_present"].tolist() == [False, True, True, True, False]
    assert block.ids["terminal_id"].to_list() == ["", 5, 2**63, "t-1", ""]
    block, _ = decode_labels(batch_of(values[:2]))
    assert block.ids["terminal_id"].ints is not None and block.ids["terminal_id"].to_list() == [0, 5]


def test_label_time_may_lie_after_the_record() -> None:
    value = orjson.dumps({**GOOD_LABEL, "label_time": NOW_MS + 7 * 86_400_000})
    assert decode_labels(batch_of([value]))[1] == []


def test_record_without_timestamp_is_bounded_by_the_maximum_only() -> None:
    assert reasons_of(with_fields(event_time=NOW_MS + 10**10), -1) == []
    assert reasons_of(with_fields(event_time=NOW_MS + 10**10), 2**63 - 1) == []
    assert reasons_of(with_fields(event_time=253_402_300_800_000), -1) != []


def test_other_fields_are_kept() -> None:
    plain, rich = with_fields(), with_fields(country="NL", items=[1, {"a": None}])
    block, _ = decode_transactions(batch_of([plain, rich, plain]))
    assert block.extra == [None, b'{"country":"NL","items":[1,{"a":null}]}', None]
    block, _ = decode_transactions(batch_of([plain, with_fields(country="NL", amount=-1)]))
    assert block.extra is None and len(block) == 1


def test_all_dead_and_empty_batches() -> None:
    block, dead = decode_transactions(batch_of([b"x", None, b"{}"]))
    assert len(block) == 0 and [d.index for d in dead] == [0, 1, 2] and block.next_offset == 106
    assert set(block.ids) == {"transaction_id", "card_id", "terminal_id"}
    block, dead = decode_transactions(batch_of([]))
    assert len(block) == 0 and dead == []


def test_optional_number_is_nan_when_absent() -> None:
    fields = (*TRANSACTIONS.fields, Field("price", "number", required=False, minimum=0.0, maximum=9.0))
    schema = EventSchema("transactions", "card_id", "event_time", fields)
    block, dead = Decoder(schema).decode(batch_of([with_fields(), with_fields(price=3), with_fields(price=10)]))
    np.testing.assert_array_equal(block.columns["price"], [np.nan, 3.0])
    assert [d.index for d in dead] == [2]


def test_optional_flag_is_refused_at_construction() -> None:
    schema = EventSchema("t", "a", "b", (Field("f", "flag", required=False, minimum=0, maximum=1),))
    with pytest.raises(ValueError, match=r"t\.f: only an id or a number can be optional"):
        Decoder(schema)


# --- against the oracle ---

ODD_IDS = st.one_of(
    st.integers(0, 20),
    st.integers(-(2**65), 2**65),
    st.text(max_size=8),
    st.sampled_from(["5", "", "é" * 128, "é" * 129, "x" * 65, "\x00", True, None, 1.0, [], {}]),
)
ODD_TIMES = st.one_of(
    st.integers(NOW_MS - 10**10, NOW_MS + 3_600_002),
    st.sampled_from([NOW_MS, 0, -1, 946_684_799_999, 946_684_800_000, 2**63, 2**64, 1e12, "1", True, None]),
)
ODD_NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(0, 1e4),
    st.sampled_from([0, 1, -0.0, -1, 10**12, 10**12 + 1, 2**64 - 1, "1", False, None, []]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def rarely(odd: st.SearchStrategy[Any], usual: object) -> st.SearchStrategy[Any]:
    return st.integers(0, 5).flatmap(lambda n: odd if n == 0 else st.just(usual))


def json_bytes(value: Any) -> bytes:
    """JSON text, integers of any size included."""
    return json.dumps(value).encode()


EVENTS = st.fixed_dictionaries(
    {
        "transaction_id": rarely(ODD_IDS, 1),
        "event_time": rarely(ODD_TIMES, NOW_MS),
        "card_id": rarely(ODD_IDS, 2),
        "terminal_id": rarely(ODD_IDS, "t3"),
        "amount": rarely(ODD_NUMBERS, 9.99),
    },
    optional={"extra": JSON, "": JSON},
).map(json_bytes)
LABELS = st.fixed_dictionaries(
    {"transaction_id": ODD_IDS, "label_time": rarely(ODD_TIMES, NOW_MS), "is_fraud": rarely(ODD_NUMBERS, 1)},
    optional={"terminal_id": ODD_IDS, "note": JSON},
).map(json_bytes)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good event with a few bytes changed, cut or doubled."""
    value = bytearray(orjson.dumps({**GOOD, "card_id": "ça\n€"}))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(value) - 1))
        value[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(value)


VALUES = st.one_of(EVENTS, EVENTS, damaged(), st.none(), st.binary(max_size=30), JSON.map(json_bytes))
TIMESTAMPS = st.sampled_from([NOW_MS, NOW_MS, NOW_MS - 1, -1, 0, 2**63 - 1])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(VALUES, TIMESTAMPS), max_size=12))
def test_transactions_equal_the_oracle(records: list[tuple[bytes | None, int]]) -> None:
    check_against_oracle(TRANSACTIONS, [v for v, _ in records], [t for _, t in records])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(LABELS | st.binary(max_size=5), max_size=8))
def test_labels_equal_the_oracle(values: list[bytes | None]) -> None:
    check_against_oracle(TRANSACTION_LABELS, values, [NOW_MS] * len(values))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(damaged() | EVENTS)
def test_one_record_alone_takes_the_typed_parser_to_the_same_verdict(value: bytes) -> None:
    check_against_oracle(TRANSACTIONS, [value], [NOW_MS])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(VALUES, min_size=2, max_size=8), st.data())
def test_verdict_does_not_depend_on_neighbours(values: list[bytes | None], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    whole = [(d.index, d.reason) for d in decode_transactions(batch_of(values))[1]]
    first = [(d.index, d.reason) for d in decode_transactions(batch_of(values[:cut]))[1]]
    second = [(d.index + cut, d.reason) for d in decode_transactions(batch_of(values[cut:]))[1]]
    assert whole == first + second


@pytest.mark.parametrize("depth", [240, 250, 253, 254, 255, 300, 900, 1000])
def test_depth_limit_does_not_depend_on_the_stack(depth: int) -> None:
    value = with_fields()[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"

    def at_stack(levels: int) -> int:
        return at_stack(levels - 1) if levels else len(reasons_of(value))

    assert at_stack(0) == at_stack(300) == at_stack(600) == (0 if depth <= 253 else 1)
