"""`streams.codec`: one verdict per record, equal to the obvious validator's, whatever the neighbours are."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_codec import Counts, read_event

from features.block import Block
from features.schema import SCHEMAS, TIME_MS_MAX, TIME_MS_MIN, TRANSACTION_LABELS, TRANSACTIONS, EventSchema, Field
from streams.codec import (
    VALUE_BYTES_MAX,
    Dead,
    Decoder,
    decode_labels,
    decode_together,
    decode_transactions,
    present_column,
)
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


def as_dict(counts: Counts) -> dict[str, dict[str, int]]:
    out: dict[str, dict[str, int]] = {}
    for (name, finding), n in counts.items():
        out.setdefault(name, {})[finding] = n
    return out


def check_against_oracle(schema: EventSchema, values: list[bytes | None], timestamps: list[int]) -> None:
    batch = batch_of(values, timestamps, schema.topic)
    decoder = Decoder(schema, SMALL_BYTES_MAX)
    block, dead = decoder.decode(batch)
    counts: Counts = Counter()
    verdicts = [read_event(schema, v, t, SMALL_BYTES_MAX, counts) for v, t in zip(values, timestamps, strict=True)]
    assert decoder.quality.to_dict() == as_dict(counts)
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
            np.testing.assert_array_equal(
                column, np.array([np.nan if v is None else v for v in expected], column.dtype)
            )
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
    decoder = Decoder(EventSchema("transactions", "card_id", "event_time", fields))
    block, dead = decoder.decode(batch_of([with_fields(), with_fields(price=3), with_fields(price=10)]))
    np.testing.assert_array_equal(block.columns["price"], [np.nan, 3.0])
    assert [d.index for d in dead] == [2]
    assert decoder.quality.to_dict() == {"price": {"missing": 1, "out_of_range": 1}}


# --- clip, trim, categories ---

#: every rule that mends or notes, beside those of transactions
PICKY = EventSchema(
    "payments",
    "transaction_id",
    "event_time",
    (
        Field("transaction_id", "id", text_bytes_max=256),
        Field("event_time", "time_ms", minimum=TIME_MS_MIN, maximum=TIME_MS_MAX, future_ms_max=3_600_000),
        Field("card_id", "id", text_bytes_max=256, trim=True),
        Field("terminal_id", "id", required=False, trim=True, categories=("t3", 5, "06", 2**63, -4), text_bytes_max=20),
        Field("amount", "number", minimum=1.0, maximum=1e3, clip=True),
        Field("price", "number", required=False, minimum=0.0, clip=True),
        Field("country", "id", required=False, categories=("NL", "BE")),
    ),
)


def picky(*events: dict[str, Any]) -> tuple[Block, list[Dead], dict[str, dict[str, int]]]:
    decoder = Decoder(PICKY)
    block, dead = decoder.decode(batch_of([orjson.dumps({**GOOD, "terminal_id": 5, **e}) for e in events]))
    return block, dead, decoder.quality.to_dict()


def test_clipped_numbers_are_set_to_the_bound() -> None:
    block, dead, quality = picky({"amount": 0.5}, {"amount": 1}, {"amount": -7}, {"amount": 1e300}, {"price": -1})
    assert not dead
    assert block.columns["amount"].tolist() == [1, 1, 1, 1000, 12.5]
    assert block.columns["price"].tolist()[4] == 0
    assert quality["amount"] == {"clipped": 3}
    assert quality["price"] == {"clipped": 1, "missing": 4}


def test_what_is_not_a_number_is_not_clipped() -> None:
    block, dead, quality = picky({"amount": "9999"}, {"amount": True}, {"amount": None}, {"amount": 9999})
    assert [d.reason.split(";")[0] for d in dead] == [
        "amount '9999': a string, not a number",
        "amount True: a boolean, not a number",
        "amount: missing or null",
    ]
    assert dead[0].reason.endswith("send a finite number")
    assert block.columns["amount"].tolist() == [1000]
    assert quality["amount"] == {"clipped": 1, "missing": 1, "wrong_type": 2}


def test_trimmed_ids_are_those_without_white_space() -> None:
    block, dead, quality = picky({"card_id": " a\u00a0b\t\n"}, {"card_id": 7}, {"card_id": "7 "}, {"card_id": "ab"})
    assert not dead
    assert block.ids["card_id"].to_list() == ["a\u00a0b", 7, "7", "ab"]
    np.testing.assert_array_equal(block.ids["card_id"].keys()[1], block.ids["card_id"].keys()[2])
    assert quality["card_id"] == {"trimmed": 2}


def test_white_space_alone_is_no_id_and_the_reason_shows_what_was_sent() -> None:
    block, dead, quality = picky({"card_id": " \t"}, {"card_id": " " * 300 + "x"}, {"terminal_id": f" {'y' * 21} "})
    assert [d.index for d in dead] == [0, 2] and block.ids["card_id"].to_list() == ["x"]
    assert dead[0].reason.startswith("card_id ' \\t': nothing but white space; send an integer of 64 bits")
    assert "21 bytes of text, above the maximum 20" in dead[1].reason
    assert quality["card_id"] == {"out_of_range": 1, "trimmed": 1}
    assert quality["terminal_id"] == {"out_of_range": 1}


def test_an_unseen_category_is_a_row() -> None:
    ids = ["t3", " t3 ", 5, "5", "05", 6, "06", 2**63, str(2**63), -4, "-4", None, "T3", "t4 ", True]
    block, dead, quality = picky(*({"terminal_id": v} for v in ids))
    assert len(block) == 14 and [d.index for d in dead] == [14]
    assert quality["terminal_id"] == {"missing": 1, "trimmed": 2, "unseen_category": 4, "wrong_type": 1}
    assert quality["country"] == {"missing": 15}
    assert picky({"terminal_id": 5}, {"terminal_id": 0}, {})[2]["terminal_id"] == {"unseen_category": 1}


def test_a_value_counts_whatever_else_is_in_its_record() -> None:
    block, dead, quality = picky({"event_time": 1, "card_id": [], "amount": 5000, "terminal_id": "?", "country": "NL"})
    assert len(block) == 0 and dead[0].reason.startswith("event_time 1: below the minimum")
    assert quality == {
        "amount": {"clipped": 1},
        "card_id": {"wrong_type": 1},
        "event_time": {"out_of_range": 1},
        "price": {"missing": 1},
        "terminal_id": {"unseen_category": 1},
    }


def test_shipped_schemas_mend_nothing() -> None:
    assert not [
        f.name for s in SCHEMAS.values() for f in s.fields if f.clip or f.trim or (f.categories and f.kind == "id")
    ]
    (reason,) = reasons_of(with_fields(amount=-1))
    assert reason.startswith("amount -1: below the minimum 0")
    block, _ = decode_transactions(batch_of([with_fields(card_id=" 7 ")]))
    assert block.ids["card_id"].to_list() == [" 7 "]


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


PADDED_IDS = st.one_of(
    st.sampled_from(["t3", " t3", "5 ", 5, "06", 2**63, -4, "\u00a0", "a b ", "\x1f", "NL", " NL", "DE", "x" * 21]),
    ODD_IDS,
)
PICKY_EVENTS = st.fixed_dictionaries(
    {
        "transaction_id": rarely(PADDED_IDS, 1),
        "event_time": rarely(ODD_TIMES, NOW_MS),
        "card_id": rarely(PADDED_IDS, "c 2"),
        "amount": rarely(ODD_NUMBERS, 9.99),
    },
    optional={"terminal_id": PADDED_IDS, "price": ODD_NUMBERS, "country": PADDED_IDS, "extra": JSON},
).map(json_bytes)
VALUES = st.one_of(EVENTS, EVENTS, damaged(), st.none(), st.binary(max_size=30), JSON.map(json_bytes))
PICKY_VALUES = st.one_of(PICKY_EVENTS, PICKY_EVENTS, PICKY_EVENTS, VALUES)
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
@given(st.lists(st.tuples(PICKY_VALUES, TIMESTAMPS), max_size=10))
def test_mended_events_equal_the_oracle(records: list[tuple[bytes | None, int]]) -> None:
    check_against_oracle(PICKY, [v for v, _ in records], [t for _, t in records])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(damaged() | EVENTS)
def test_one_record_alone_takes_the_typed_parser_to_the_same_verdict(value: bytes) -> None:
    check_against_oracle(TRANSACTIONS, [value], [NOW_MS])
    check_against_oracle(PICKY, [value], [NOW_MS])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from([TRANSACTIONS, PICKY]), st.lists(PICKY_VALUES, min_size=2, max_size=8), st.data())
def test_verdicts_and_counts_do_not_depend_on_the_cuts(
    schema: EventSchema, values: list[bytes | None], data: st.DataObject
) -> None:
    whole, parted, together = Decoder(schema), Decoder(schema), Decoder(schema)
    _, dead = whole.decode(batch_of(values))
    ends = sorted({*data.draw(st.lists(st.integers(1, len(values) - 1), max_size=3)), len(values)})
    batches = [batch_of(values[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    one_by_one = [parted.decode(batch) for batch in batches]
    at_once = decode_together(together.decode, batches)
    for results in (one_by_one, at_once):
        starts = [0, *ends]
        assert dead == [Dead(d.index + a, d.reason) for a, (_, bad) in zip(starts, results, strict=False) for d in bad]
    assert whole.quality.to_dict() == parted.quality.to_dict() == together.quality.to_dict()


@pytest.mark.parametrize("depth", [240, 250, 253, 254, 255, 300, 900, 1000])
def test_depth_limit_does_not_depend_on_the_stack(depth: int) -> None:
    value = with_fields()[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"

    def at_stack(levels: int) -> int:
        return at_stack(levels - 1) if levels else len(reasons_of(value))

    assert at_stack(0) == at_stack(300) == at_stack(600) == (0 if depth <= 253 else 1)
