"""`streams.shuffle`: what is packed is unpacked, to the right partitions, once; nothing else gets through."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from features.block import Block, Ids
from streams.errors import FatalError
from streams.shuffle import TO_ALL, Sent, ShuffleError, Source, SourcePositions, pack, unpack
from tests.features.streams_of_rows import same_arrays

SOURCE = Source("transactions", "q1-Wd_x", 3)
IDS = st.integers(-(2**63), 2**64 - 1) | st.text(max_size=6) | st.sampled_from(["5", '"', "a,b"])
FLOATS = st.floats() | st.sampled_from([0.0, -0.0, float("nan")])


@st.composite
def blocks(draw: st.DrawFn, rows_min: int = 0) -> Block:
    n = draw(st.integers(rows_min, 8))

    def column(values: st.SearchStrategy[Any], dtype: type) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=n, max_size=n)), dtype)

    id_kind = draw(st.sampled_from([st.integers(-(2**63), 2**63 - 1), st.text(max_size=6), IDS]))
    integers = st.integers(-(2**63), 2**63 - 1)
    gaps = column(st.integers(1, 5), np.int64)
    names = draw(st.lists(st.sampled_from(["event_time", "amount", "offset", "late", "a:b", "é"]), unique=True))
    kinds = {
        name: draw(st.sampled_from([(integers, np.int64), (FLOATS, np.float64), (st.booleans(), np.bool_)]))
        for name in names
    }
    return Block(
        SOURCE.topic,
        SOURCE.partition,
        100 + int(gaps.sum()) + draw(st.integers(0, 3)),
        np.cumsum(gaps) + 99,
        column(integers, np.int64),
        {name: Ids.of(draw(st.lists(id_kind, min_size=n, max_size=n))) for name in ("card_id", "terminal_id")},
        {name: column(*kind) for name, kind in kinds.items()},
        draw(st.none() | st.lists(st.none() | st.just('{"é":1}'.encode()), min_size=n, max_size=n)),
    )


def assert_same_rows(got: Block, expected: Block) -> None:
    assert (got.topic, got.partition, got.next_offset) == (expected.topic, expected.partition, expected.next_offset)
    np.testing.assert_array_equal(got.offsets, expected.offsets)
    np.testing.assert_array_equal(got.timestamps, expected.timestamps)
    assert set(got.ids) == set(expected.ids)
    for name, ids in expected.ids.items():
        assert got.ids[name].to_list() == ids.to_list()
        assert list(map(type, got.ids[name].to_list())) == list(map(type, ids.to_list()))
    assert list(got.columns) == list(expected.columns)
    for name, column in expected.columns.items():
        assert got.columns[name].dtype == column.dtype and got.columns[name].tobytes() == column.tobytes()
    assert got.extra == expected.extra
    arrays = [
        got.offsets,
        got.timestamps,
        *got.columns.values(),
        *(i.ints for i in got.ids.values() if i.ints is not None),
    ]
    assert all(a.flags.c_contiguous for a in arrays)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(blocks(), st.integers(1, 5), st.sampled_from(["rows", "labels"]), st.data())
def test_round_trip_equals_taking_rows(block: Block, n: int, kind: Any, data: st.DataObject) -> None:
    targets = data.draw(st.lists(st.integers(TO_ALL, n - 1), min_size=len(block), max_size=len(block)))
    partitions = np.array(targets, np.int64)
    watermark_ms = data.draw(st.none() | st.integers(-(2**63) + 1, 2**63 - 1))
    messages = pack(kind, [Sent(SOURCE, block, watermark_ms)], partitions, n)
    expected = [p for p in range(n) if p in targets or TO_ALL in targets]
    assert [p for p, _ in messages] == expected
    for p, value in messages:
        got = unpack(value)
        assert (got.kind, got.source, got.watermark_ms) == (kind, SOURCE, watermark_ms)
        assert_same_rows(got.block, block.take((partitions == p) | (partitions == TO_ALL)))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(blocks(rows_min=1), st.integers(1, 3), st.data())
def test_blocks_of_several_sources_together_equal_one_after_the_other(
    block: Block, n: int, data: st.DataObject
) -> None:
    """Also where one block's ids are all integers and another's are not."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(block)), max_size=3)))
    sent = []
    for p, (start, stop) in enumerate(pairwise([0, *cuts, len(block)])):
        part = block.part(start, stop)
        part.ids = {name: Ids.of(ids.to_list()) for name, ids in part.ids.items()}
        sent.append(Sent(Source("transactions", "id", p), part, 7 * p))
    targets = np.array(data.draw(st.lists(st.integers(TO_ALL, n - 1), min_size=len(block), max_size=len(block))))
    together = pack("rows", sent, targets, n)
    ends = np.cumsum([len(s.block) for s in sent])
    alone = [
        m for s, end in zip(sent, ends, strict=True) for m in pack("rows", [s], targets[end - len(s.block) : end], n)
    ]
    assert [p for p, _ in together] == [p for p, _ in alone]
    for (_, a), (_, b) in zip(together, alone, strict=True):
        got, expected = unpack(a), unpack(b)
        assert (got.source, got.watermark_ms) == (expected.source, expected.watermark_ms)
        assert_same_rows(got.block, expected.block)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(blocks(), st.integers(1, 4))
def test_broadcast_gives_every_partition_all_rows(block: Block, n: int) -> None:
    messages = pack("labels", [Sent(SOURCE, block)], None, n)
    assert [p for p, _ in messages] == (list(range(n)) if len(block) else [])
    for _, value in messages:
        assert_same_rows(unpack(value).block, block)
    everywhere = pack("labels", [Sent(SOURCE, block)], np.full(len(block), TO_ALL), n)
    assert [p for p, _ in everywhere] == [p for p, _ in messages]


def test_same_block_same_bytes() -> None:
    block = some_block()
    assert pack("rows", [Sent(SOURCE, block)], None, 1) == pack("rows", [Sent(SOURCE, some_block())], None, 1)
    assert pack("rows", [Sent(SOURCE, block.take(np.array([2])))], np.array([1]), 4) == [
        (p, v) for p, v in pack("rows", [Sent(SOURCE, block)], np.array([0, 0, 1]), 4) if p == 1
    ]


def some_block() -> Block:
    return Block(
        "transactions",
        3,
        20,
        np.array([10, 12, 13]),
        np.array([5, 6, 7]),
        {
            "card_id": Ids.of([1, "x", 2**64 - 1]),
            "terminal_id": Ids.of(["a", "b", "c"]),
            "transaction_id": Ids.of([7, 8, 9]),
        },
        {
            "event_time": np.array([1, 2, 3]),
            "amount": np.array([0.5, np.nan, 2.0]),
            "late": np.array([True, False, True]),
        },
        [None, b'{"country":"NL"}', None],
    )


@pytest.mark.parametrize("kind", ["watermark", "idle"])
def test_headers_only_go_to_all_partitions(kind: Any) -> None:
    messages = pack(kind, [Sent(SOURCE, some_block(), 77)], None, 3)
    assert [p for p, _ in messages] == [0, 1, 2]
    got = unpack(messages[2][1])
    assert (got.kind, got.source, got.watermark_ms, len(got.block), got.block.next_offset) == (kind, SOURCE, 77, 0, 20)
    assert got.block.partition == 3


def test_the_words_are_where_the_format_says() -> None:
    """As another program would read it, from the format's description alone."""
    ((_, value),) = pack("rows", [Sent(SOURCE, some_block(), 77)], None, 1)
    assert value[:4] == b"HRsh" and int.from_bytes(value[4:6], "little") == 1
    head_bytes = int.from_bytes(value[6:8], "little")
    kind, topic, topic_id, partition, words, texts = orjson.loads(value[8 : 8 + head_bytes])
    assert (kind, topic, topic_id, partition) == ("rows", *SOURCE)
    fixed = np.frombuffer(value, "<i8", 4, 8 + head_bytes)
    assert fixed[:3].tolist() == [20, 77, 3]
    matrix = np.frombuffer(value, "<i8", len(words) * 3, 8 + head_bytes + 32).reshape(len(words), 3)
    assert words[:2] == ["offset", "timestamp"] and matrix[0].tolist() == [10, 12, 13]
    assert matrix[words.index("f8:amount")].view(np.float64)[2] == 2.0
    assert matrix[words.index("b1:late")].tolist() == [1, 0, 1]
    read = msgspec.msgpack.decode(value[-8 - int(fixed[3]) : -8])
    assert dict(zip(texts, read, strict=True)) == {
        "id:card_id": [1, "x", 2**64 - 1],
        "id:terminal_id": ["a", "b", "c"],
        "extra": [None, b'{"country":"NL"}', None],
    }


@pytest.mark.parametrize("targets", [[0, 1], [0, 1, 4], [0, 1, -2]])
def test_wrong_targets_are_refused(targets: list[int]) -> None:
    with pytest.raises(ValueError, match="targets from -1 to 3 expected, one per row"):
        pack("rows", [Sent(SOURCE, some_block())], np.array(targets), 4)


def test_other_dtypes_are_refused() -> None:
    block = some_block()
    block.columns["amount"] = block.columns["amount"].astype(np.float32)
    with pytest.raises(ValueError, match="column amount: dtype float32 cannot be sent; use float64, int64 or bool"):
        pack("rows", [Sent(SOURCE, block)], None, 1)


# --- what cannot be read ---


def sealed(stream: bytes) -> bytes:
    return stream + xxhash.xxh3_64_digest(stream)


def message_of(
    words: dict[str, list[int]] | None = None,
    texts: dict[str, list[Any]] | None = None,
    *,
    kind: str = "rows",
    version: int = 1,
    rows: int = 2,
) -> bytes:
    """A message with any columns, as somebody with another program could write it."""
    given = {"offset": [1, 2], "timestamp": [1, 2]} if words is None else words
    texts = texts or {}
    head = orjson.dumps([kind, "t", "i", 0, list(given), list(texts)])
    head += b" " * (-len(head) % 8)
    text = msgspec.msgpack.encode(list(texts.values())) if texts else b""
    fixed = np.array([3, 0, rows, len(text)], "<i8").tobytes()
    body = b"".join(np.array(column, "<i8").tobytes() for column in given.values())
    prefix = b"HRsh" + version.to_bytes(2, "little") + len(head).to_bytes(2, "little")
    return sealed(prefix + head + fixed + body + text)


def words(**more: list[int]) -> dict[str, list[int]]:
    return {"offset": [1, 2], "timestamp": [1, 2], **{k.replace("__", ":"): v for k, v in more.items()}}


def test_foreign_messages_by_the_rules_are_read() -> None:
    block = unpack(message_of(words(i8__x=[5, 6]), {"id:y": [1, "a"]})).block
    assert block.columns["x"].tolist() == [5, 6] and block.ids["y"].to_list() == [1, "a"]


@pytest.mark.parametrize("cut", [0, 1, 39, 48, 100, 300, -1, -9, -30])
def test_cut_messages(cut: int) -> None:
    ((_, value),) = pack("rows", [Sent(SOURCE, some_block())], None, 1)
    with pytest.raises(ShuffleError, match="make sure that only headrace writes"):
        unpack(value[:cut])
    with pytest.raises(ShuffleError):
        unpack(sealed(value[:cut]))


def test_every_flipped_byte_is_seen() -> None:
    ((_, value),) = pack("rows", [Sent(SOURCE, some_block())], None, 1)
    for i in range(len(value)):
        damaged = bytearray(value)
        damaged[i] ^= 0x20
        with pytest.raises(ShuffleError, match="damaged"):
            unpack(bytes(damaged))


def test_null_and_json_values() -> None:
    for value in (None, b"", b'{"transaction_id": 1}', b"x" * 5000):
        with pytest.raises(ShuffleError):
            unpack(value)


def test_a_newer_format_is_named() -> None:
    with pytest.raises(ShuffleError, match="format 2: this worker reads up to 1; upgrade every worker"):
        unpack(message_of(version=2))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (message_of(kind="rows\n"), "is none of rows, labels, watermark, idle"),
        (message_of(words(f4__x=[1, 2])), "column f4:x is of no known type"),
        (message_of(words(other=[1, 2])), "column other is of no known type"),
        (message_of(None, {"text": ["a", "b"]}), "text text is of no known type"),
        (message_of(None, {"id:x": ["a", None]}), "text id:x: 2 of int or str expected"),
        (message_of(None, {"id:x": ["a"]}), "text id:x: 2 of int or str expected"),
        (message_of(None, {"id:x": ["a", 1.5]}), "text id:x: 2 of int or str expected"),
        (message_of(None, {"id:x": ["a", [1]]}), "text id:x: 2 of int or str expected"),
        (message_of(None, {"extra": ["a", None]}), "text extra: 2 of NoneType or bytes expected"),
        (message_of({"offset": [2, 2], "timestamp": [1, 2]}), "offsets do not rise"),
        (message_of({"offset": [-1, 2], "timestamp": [1, 2]}), "offsets do not rise"),
        (message_of({"offset": [], "timestamp": []}, rows=0), "no rows"),
        (message_of(rows=3), "are another length"),
        (message_of(rows=-2), "are another length"),
        (message_of({"timestamp": [1, 2]}), "offset, timestamp and others"),
        (message_of(None, {"id:x": [1, 2], "extra": [None, None]})[:-40] + b"x" * 40, "damaged"),
    ],
)
def test_foreign_columns(value: bytes, says: str) -> None:
    with pytest.raises(ShuffleError) as caught:
        unpack(value)
    assert says in str(caught.value)


def test_damage_under_a_right_checksum_never_escapes() -> None:
    seed = random.Random(20)
    values = [
        pack("rows", [Sent(SOURCE, some_block())], None, 1)[0][1],
        pack("idle", [Sent(SOURCE, some_block())], None, 1)[0][1],
    ]
    read = refused = 0
    for _ in range(20_000):
        stream = bytearray(seed.choice(values)[:-8])
        for _ in range(seed.randint(1, 4)):
            at = seed.randrange(len(stream))
            if seed.random() < 0.7:
                stream[at] = seed.randrange(256)
            else:
                stream[at : at + 8] = seed.choice([0, 1, 2**31, 2**63 - 1, -1]).to_bytes(8, "little", signed=True)
        try:
            unpack(sealed(bytes(stream)))
            read += 1
        except ShuffleError:
            refused += 1
    assert read > 100 and refused > 1000


# --- each row once ---


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 30), max_size=8)), max_size=15), st.integers(0, 15))
def test_positions_equal_a_dict_and_survive_a_checkpoint(sends: list[tuple[int, set[int]]], cut: int) -> None:
    positions, highest, dropped = SourcePositions(), dict[int, int](), 0
    for i, (partition, chosen) in enumerate(sends):
        if i == cut:
            positions = SourcePositions.from_arrays(positions.to_arrays())
        offsets = sorted(chosen)
        start = positions.fresh(Source("t", "id", partition), np.array(offsets, np.int64))
        fresh = [o for o in offsets if o > highest.get(partition, -1)]
        dropped += len(offsets) - len(fresh)
        assert offsets[start:] == fresh
        highest[partition] = max([highest.get(partition, -1), *offsets])
    assert positions.dropped == dropped


def test_a_recreated_topic_is_refused_also_after_a_restart() -> None:
    positions = SourcePositions()
    assert positions.fresh(Source("t", "old", 0), np.array([1, 2])) == 0
    assert positions.fresh(Source("u", "new", 0), np.array([1, 2])) == 0
    for again in (positions, SourcePositions.from_arrays(positions.to_arrays())):
        with pytest.raises(FatalError, match="topic t was deleted and made again") as caught:
            again.fresh(Source("t", "new", 1), np.array([0]))
        assert caught.value.reason == "topic-recreated" and "Use a new --group" in str(caught.value)


def test_equal_positions_have_equal_form_whatever_the_order() -> None:
    a, b = SourcePositions(), SourcePositions()
    sources = [Source("t", "i", 0), Source("t", "i", 1), Source("s", "j", 0)]
    for source in sources:
        a.fresh(source, np.array([4]))
    for source in reversed(sources):
        b.fresh(source, np.array([4]))
    assert same_arrays(a.to_arrays(), b.to_arrays())
    assert same_arrays(SourcePositions.from_arrays(a.to_arrays()).to_arrays(), a.to_arrays())
    none = SourcePositions().to_arrays()
    assert same_arrays(SourcePositions.from_arrays(none).to_arrays(), none)
