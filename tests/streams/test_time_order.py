"""Rows by (event_time, transaction_id), where an id may be a number or a text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.block import Ids
from streams.time_order import order_by_time


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([3, -1, 0, -(2**63)], [-(2**63), -1, 0, 3]),
        (["tx-10", "tx-9", "TX-1", "é"], ["TX-1", "tx-10", "tx-9", "é"]),
        (["b", 10, "9", "a", "-1", "09", 2**70], ["-1", "9", 10, "09", 2**70, "a", "b"]),
    ],
)
def test_rows_of_one_instant_go_by_their_ids(ids: list[int | str], expected: list[int | str]) -> None:
    column = Ids.of(ids)
    assert column.take(order_by_time(np.zeros(len(ids), np.int64), column)).to_list() == expected


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), max_size=12), st.booleans())
def test_is_the_order_of_sorted_pairs(rows: list[tuple[int, int]], as_text: bool) -> None:
    times = np.array([time for time, _ in rows], np.int64)
    ids = [f"{number + 3}x" if as_text else number for _, number in rows]
    order = order_by_time(times, Ids.of(ids))
    assert order.tolist() == sorted(range(len(rows)), key=lambda i: rows[i])
