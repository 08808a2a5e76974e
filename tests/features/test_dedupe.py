"""Repeated ids against the naive oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.block import Ids
from features.engine import Dedupe
from tests.features.streams_of_rows import same_arrays
from tests.oracles.windows import NaiveDedupe

WINDOW_MS, LATENESS_MS = 24, 4
ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(-30, 30)), max_size=80)


def dedupe(entries_max: int) -> Dedupe:
    return Dedupe(window_ms=WINDOW_MS, allowed_lateness_ms=LATENESS_MS, entries_max=entries_max)


def columns(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    times = np.arange(len(rows), dtype=np.int64) * 3 + np.array([jitter for _, jitter in rows], np.int64)
    return Ids.of([key for key, _ in rows]).keys(), times


def check(rows: list[tuple[int, int]], entries_max: int) -> None:
    keys, times = columns(rows)
    naive = NaiveDedupe(WINDOW_MS, LATENESS_MS, entries_max)
    expected = [naive.row(key, int(time)) for (key, _), time in zip(rows, times, strict=True)]
    whole, pieces = dedupe(entries_max), dedupe(entries_max)
    np.testing.assert_array_equal(whole.process(keys, times), np.array(expected, np.bool_))
    assert whole.forced == naive.forced
    got: list[bool] = []
    for begin in range(0, len(rows), 7):
        got.extend(pieces.process(keys[begin : begin + 7], times[begin : begin + 7]))
        pieces = Dedupe.from_arrays(
            pieces.to_arrays(), window_ms=WINDOW_MS, allowed_lateness_ms=LATENESS_MS, entries_max=entries_max
        )
    assert got == expected
    assert same_arrays(pieces.to_arrays(), whole.to_arrays())


@settings(max_examples=200, derandomize=True, deadline=None)
@given(ROWS, st.sampled_from([1, 3, 8, 1000]))
def test_equals_oracle(rows: list[tuple[int, int]], entries_max: int) -> None:
    check(rows, entries_max)


@pytest.mark.parametrize("entries_max", [150, 10**6])
def test_long_run_equals_oracle(entries_max: int) -> None:
    rng = np.random.default_rng(3)
    check(
        [(int(k), int(j)) for k, j in zip(rng.integers(0, 900, 4_000), rng.integers(-300, 300, 4_000), strict=True)],
        entries_max,
    )


def test_window_is_inclusive_and_on_both_sides() -> None:
    keys = Ids.of([1, 1, 1, 1]).keys()
    times = np.array([100, 100 + WINDOW_MS, 100 - WINDOW_MS, 101 + WINDOW_MS])
    np.testing.assert_array_equal(dedupe(10).process(keys, times), [False, True, True, False])


def test_memory_is_bounded() -> None:
    state = Dedupe(entries_max=1_000)
    for begin in range(0, 50_000, 1_000):
        ids = Ids(ints=np.arange(begin, begin + 1_000))
        assert not state.process(ids.keys(), np.full(1_000, 10**12)).any()
    assert len(state) == 1_000
    assert state.forced == 49_000
    assert state.nbytes < 300_000


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="entries_max is 0"):
        Dedupe(entries_max=0)
