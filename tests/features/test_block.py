"""Ids and Blocks: identity of keys, selection, joining."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.block import Block, Ids, key_of_text

TEXTS = st.one_of(
    st.text(min_size=1, max_size=40), st.integers(-(2**70), 2**70).map(str), st.sampled_from(["-", "-0", "007", "²"])
)


@given(st.lists(st.one_of(TEXTS, st.integers(-(2**70), 2**70)), max_size=30))
def test_keys_of_a_column_are_those_of_its_texts(values: list[int | str]) -> None:
    keys = Ids.of(values).keys()
    assert keys.shape == (len(values), 2) and keys.dtype == np.uint64
    assert [tuple(map(int, k)) for k in keys] == [key_of_text(str(v)) for v in values]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (5, "5", True),
        (-5, "-5", True),
        (5, "05", False),
        ("a", "A", False),
        (0, "-0", False),
        (2**63, str(2**63), True),
    ],
)
def test_what_is_the_same_kafka_key_is_the_same_entity(one: int | str, other: int | str, same: bool) -> None:
    assert np.array_equal(Ids.of([one]).keys(), Ids.of([other]).keys()) is same


def test_a_hash_is_never_an_integers_key() -> None:
    keys = Ids.of([f"card-{i}" for i in range(1000)]).keys()
    assert bool(np.all(keys[:, 0] >> np.uint64(63)))


@pytest.mark.parametrize("values", [[1, 2, 3, 4], ["a", 2, "c", "4"]])
def test_take_by_mask_and_by_position(values: list[int | str]) -> None:
    ids = Ids.of(values)
    mask = np.array([True, False, True, False])
    assert ids.take(mask).to_list() == [values[0], values[2]]
    assert ids.take(np.array([3, 0])).to_list() == [values[3], values[0]]
    assert ids.texts() == [str(v).encode() for v in values]


def block(offsets: list[int], extra: list[bytes | None] | None = None) -> Block:
    at = np.array(offsets, np.int64)
    return Block("t", 1, offsets[-1] + 1, at, at + 100, {"id": Ids(ints=at)}, {"event_time": at * 10}, extra)


def test_concat_keeps_rows_in_order_and_fills_missing_extras() -> None:
    joined = Block.concat([block([1, 2]), block([5], [b"{}"])])
    assert joined.offsets.tolist() == [1, 2, 5] and joined.next_offset == 6
    assert joined.event_time_ms.tolist() == [10, 20, 50]
    assert joined.ids["id"].to_list() == [1, 2, 5]
    assert joined.extra == [None, None, b"{}"]
    part = joined.take(np.array([False, True, True]))
    assert part.offsets.tolist() == [2, 5] and part.extra == [None, b"{}"] and part.next_offset == 6
