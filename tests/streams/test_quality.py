"""`streams.quality`: what is counted, when, and by whom."""

from __future__ import annotations

import json
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.schema import TRANSACTION_LABELS, TRANSACTIONS, Field
from streams.codec import Decoder, decode_together, decode_transactions
from streams.log import TP, RecordBatch
from streams.quality import RECORD, QualityCounters
from streams.verdict import why_bad

NOW_MS = 1_722_540_800_000
GOOD = {"transaction_id": 7, "event_time": NOW_MS, "card_id": 11, "terminal_id": 13, "amount": 12.5}
LABEL = {"transaction_id": 7, "label_time": NOW_MS, "is_fraud": 1}


def batch_of(*values: bytes | None, partition: int = 0, replay: bool = False) -> RecordBatch:
    n = len(values)
    tp = TP("transactions", partition)
    offsets, timestamps = list(range(10, 10 + n)), [NOW_MS] * n
    return RecordBatch(tp, offsets, timestamps, [None] * n, list(values), lambda i: [], 10 + n, 1, replay)


def event(**fields: object) -> bytes:
    return orjson.dumps({**GOOD, **fields})


def test_counters_add_up_and_leave_zeros_out() -> None:
    counters = QualityCounters()
    assert not counters and counters.to_dict() == {} and str(counters) == "nothing found"
    counters.add("amount", "missing", 0)
    assert not counters and counters.to_dict() == {}
    counters.add("card_id", "trimmed")
    counters.add("amount", "out_of_range", 2)
    counters.add(RECORD, "unreadable", 3)
    other = QualityCounters()
    other.add("amount", "out_of_range")
    other.add("amount", "missing", 4)
    counters.update(other)
    figures = {
        "": {"unreadable": 3},
        "amount": {"missing": 4, "out_of_range": 3},
        "card_id": {"trimmed": 1},
    }
    assert counters and counters.to_dict() == figures == json.loads(json.dumps(counters.to_dict()))
    assert other.to_dict() == {"amount": {"missing": 4, "out_of_range": 1}}
    assert str(counters) == "3 unreadable; amount: 4 missing, 3 out of range; card_id: 1 trimmed"


def test_good_records_leave_no_trace() -> None:
    decoder = Decoder(TRANSACTIONS)
    decoder.decode(batch_of(event(), event(card_id="c"), event(note=1), event(card_id=2**63)))
    assert not decoder.quality
    labels = Decoder(TRANSACTION_LABELS)
    labels.decode(batch_of(orjson.dumps({**LABEL, "terminal_id": 5})))
    assert not labels.quality


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, {"": {"unreadable": 1}}),
        (b"{", {"": {"unreadable": 1}}),
        (b"[]", {"": {"unreadable": 1}}),
        (b" " * 2_000_000, {"": {"unreadable": 1}}),
        (event()[:-1] + b',"x":' + b"[" * 300 + b"]" * 300 + b"}", {"": {"unreadable": 1}}),
        (event(amount=-1), {"amount": {"out_of_range": 1}}),
        (event(amount=None), {"amount": {"missing": 1}}),
        (event(amount="1"), {"amount": {"wrong_type": 1}}),
        (event(event_time=NOW_MS + 3_600_001), {"event_time": {"out_of_range": 1}}),
        (event(event_time=2**64 - 1), {"event_time": {"out_of_range": 1}}),
        (event(event_time=1.5), {"event_time": {"wrong_type": 1}}),
        (event(card_id=""), {"card_id": {"out_of_range": 1}}),
        (event(card_id="é" * 129), {"card_id": {"out_of_range": 1}}),
        (event(card_id=[]), {"card_id": {"wrong_type": 1}}),
        (b"{}", {name: {"missing": 1} for name in GOOD}),
    ],
)
def test_each_finding(value: bytes | None, found: dict[str, dict[str, int]]) -> None:
    decoder = Decoder(TRANSACTIONS)
    for neighbours in ([], [event()], [event(extra="x")]):
        decoder.quality = QualityCounters()
        _, dead = decoder.decode(batch_of(*neighbours, value, *neighbours))
        assert decoder.quality.to_dict() == found and len(dead) == 1


def test_what_is_optional_may_be_missing() -> None:
    decoder = Decoder(TRANSACTION_LABELS)
    values = [orjson.dumps({**LABEL, **more}) for more in ({}, {"terminal_id": None}, {"terminal_id": "t"})]
    block, dead = decoder.decode(batch_of(*values))
    assert len(block) == 3 and not dead
    assert decoder.quality.to_dict() == {"terminal_id": {"missing": 2}}


def test_replayed_batches_were_counted_before() -> None:
    decoder = Decoder(TRANSACTIONS)
    values = [event(), event(amount=-1), b"x"]
    _, dead = decoder.decode(batch_of(*values, replay=True))
    assert [d.index for d in dead] == [1, 2] and not decoder.quality
    decoder.decode(batch_of(*values))
    assert decoder.quality.to_dict() == {"": {"unreadable": 1}, "amount": {"out_of_range": 1}}


def test_decoders_do_not_share_counters() -> None:
    first, second = Decoder(TRANSACTIONS), Decoder(TRANSACTIONS)
    first.decode(batch_of(b"x"))
    decode_transactions(batch_of(b"x"))
    assert first.quality.to_dict() == {"": {"unreadable": 1}} and not second.quality


def test_no_verdict_on_what_is_mended() -> None:
    clipped = Field("x", "number", minimum=0.0, maximum=9.0, clip=True)
    assert why_bad(clipped, 10, -1) is None and why_bad(clipped, -1.5, -1) is None
    reason = "x 10: above the maximum 9; send a finite number from 0 up to 9"
    assert why_bad(replace(clipped, clip=False), 10, -1) == ("out_of_range", reason)
    trimmed = Field("x", "id", trim=True, text_bytes_max=1)
    assert why_bad(trimmed, " a ", -1) is None
    assert why_bad(replace(trimmed, trim=False), " a ", -1) is not None


VALUES = st.sampled_from(
    [event(), event(), event(card_id="c"), event(note=2), event(amount=-1), event(amount=None), b"x", None]
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.lists(VALUES, max_size=4), st.booleans()), min_size=1, max_size=5))
def test_batches_decoded_together_are_as_decoded_alone(parts: list[tuple[list[bytes | None], bool]]) -> None:
    batches = [batch_of(*values, partition=p, replay=replay) for p, (values, replay) in enumerate(parts)]
    alone, together = Decoder(TRANSACTIONS), Decoder(TRANSACTIONS)
    expected = [alone.decode(batch) for batch in batches]
    got = decode_together(together.decode, batches)
    for (block, dead), (block_alone, dead_alone) in zip(got, expected, strict=True):
        assert dead == dead_alone
        assert (block.topic, block.partition, block.next_offset) == (
            block_alone.topic, block_alone.partition, block_alone.next_offset,
        )  # fmt: skip
        assert block.offsets.tolist() == block_alone.offsets.tolist() and block.extra == block_alone.extra
        for name, ids in block_alone.ids.items():
            assert block.ids[name].to_list() == ids.to_list()
        for name, column in block_alone.columns.items():
            assert block.columns[name].tolist() == column.tolist()
    assert together.quality.to_dict() == alone.quality.to_dict()
    fresh = [value for values, replay in parts if not replay for value in values]
    assert together.quality.to_dict().get("", {}).get("unreadable", 0) == sum(v in (b"x", None) for v in fresh)
