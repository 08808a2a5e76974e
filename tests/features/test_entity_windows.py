"""Card-like windows against the naive oracle: equal to the bit, however the rows are cut into blocks."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings

from features.block import Block, Ids
from features.declare import FeatureError, FeatureSet, by
from features.engine import EntityWindows, StateError
from tests.features.streams_of_rows import CARDS, LATENESS_MS, TERMINALS, Op, blocks_of, long_run, runs, same_arrays
from tests.oracles.windows import NaiveWindows, quantised


def engine() -> EntityWindows:
    return EntityWindows(CARDS, allowed_lateness_ms=LATENESS_MS)


def oracle(ops: list[Op]) -> tuple[np.ndarray, np.ndarray]:
    naive = NaiveWindows(CARDS, LATENESS_MS)
    rows = [naive.row(str(op.key), op.time, {"amount": op.amount}) for op in ops]
    return np.array([features for features, _ in rows]), np.array([late for _, late in rows])


def check_against_oracle(ops: list[Op]) -> None:
    matrix, late = engine().process(blocks_of(ops, "card_id")[0])
    expected, expected_late = oracle(ops)
    np.testing.assert_array_equal(late, expected_late)
    np.testing.assert_array_equal(matrix, expected)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(runs(labels=False))
def test_equals_oracle(ops: list[Op]) -> None:
    check_against_oracle(ops)


@pytest.mark.parametrize(("seed", "keys"), [(1, 3), (2, 40), (3, 400)])
def test_long_runs_equal_oracle(seed: int, keys: int) -> None:
    check_against_oracle(long_run(seed, 3_000, keys, labels=False))


@settings(max_examples=25, derandomize=True, deadline=None)
@given(runs(labels=False, max_ops=25))
def test_split_at_every_point(ops: list[Op]) -> None:
    block = blocks_of(ops, "card_id")[0]
    whole = engine()
    expected, expected_late = whole.process(block)
    for cut in range(len(ops) + 1):
        state = engine()
        first, first_late = state.process(block.take(np.arange(cut)))
        loaded = EntityWindows.from_arrays(state.to_arrays(), CARDS, allowed_lateness_ms=LATENESS_MS)
        assert same_arrays(loaded.to_arrays(), state.to_arrays())
        for continued in (state, loaded):
            second, second_late = continued.process(block.take(np.arange(cut, len(ops))))
            assert np.vstack([first, second]).tobytes() == expected.tobytes()
            np.testing.assert_array_equal(np.concatenate([first_late, second_late]), expected_late)
            assert same_arrays(continued.to_arrays(), whole.to_arrays())


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_long_run_in_pieces_with_reloads(size: int) -> None:
    block = blocks_of(long_run(4, 3_000, 120, labels=False), "card_id")[0]
    whole, pieces = engine(), engine()
    expected, _ = whole.process(block)
    parts = []
    for number, begin in enumerate(range(0, len(block), size)):
        parts.append(pieces.process(block.take(np.arange(begin, min(begin + size, len(block)))))[0])
        if number % max(1, 300 // size) == 0:
            assert len(pieces) >= len(pieces.to_arrays()["keys"])
            pieces = EntityWindows.from_arrays(pieces.to_arrays(), CARDS, allowed_lateness_ms=LATENESS_MS)
    assert np.vstack(parts).tobytes() == expected.tobytes()
    assert same_arrays(pieces.to_arrays(), whole.to_arrays())


def test_text_and_integer_ids_are_the_same_key() -> None:
    ops = [Op(0, 1_000, 5, 1.0), Op(1, 1_000, "5", 2.0), Op(2, 1_000, "05", 4.0)]
    matrix, _ = engine().process(blocks_of(ops, "card_id")[0])
    np.testing.assert_array_equal(matrix[:, 0], [1, 2, 1])


def test_sums_lose_nothing_over_ten_million_additions_and_removals() -> None:
    """Every row adds a value and removes one; sums and means are those of exact rational numbers, rounded once."""
    features = FeatureSet("sum", [by("card_id").sum("amount", "90s").mean("amount", "90s").sum("amount", "2s")])
    n, size = 5_000_000, 50_000
    rng = np.random.default_rng(3)
    # from a thousandth to a thousand billion: in floating point the small ones would be lost beside the large ones
    kinds = np.array([1e12, 0.1, 1e-3, 3e11, 1 / 3, 7.77e8, *rng.lognormal(3, 4, 500)])
    choice = rng.integers(0, len(kinds), n)
    times = np.arange(n, dtype=np.int64) * 1_000
    before = [0, *accumulate(map([int(quantised(x) * 2**64) for x in kinds].__getitem__, choice.tolist()))]
    state = EntityWindows(features.for_entity("card_id"), allowed_lateness_ms=0)
    checked = 0
    for start in range(0, n, size):
        block = Block(
            "t", 0, start + size, np.arange(start, start + size), times[start : start + size],
            {"card_id": Ids(ints=np.zeros(size, np.int64))},
            {"event_time": times[start : start + size], "amount": kinds[choice[start : start + size]]},
        )  # fmt: skip
        matrix, _ = state.process(block)
        for i in (*range(0, size, 1_009), *range(size - 50, size)):
            row = start + i
            exact = [Fraction(before[row + 1] - before[max(0, row + 1 - w)], 2**64) for w in (90, 2)]
            assert matrix[i].tolist() == [float(exact[0]), float(exact[0]) / min(row + 1, 90), float(exact[1])], row
            checked += 1
    assert checked == n // size * 100


def test_idle_keys_are_dropped() -> None:
    state = engine()
    n = 5_000
    times = np.arange(n, dtype=np.int64) * 1_000  # each key once, the longest window is a minute
    for begin in range(0, n, 100):
        part = slice(begin, begin + 100)
        state.process(
            Block(
                "t",
                0,
                0,
                np.arange(100),
                times[part],
                {"card_id": Ids(ints=np.arange(n)[part])},
                {"event_time": times[part], "amount": np.ones(100)},
            )
        )
    assert len(state) < 400
    assert len(state.to_arrays()["keys"]) == 64  # rows in the last 60 s + 4 s
    assert state.nbytes < 200_000


def test_no_rows() -> None:
    state = engine()
    matrix, late = state.process(blocks_of([], "card_id")[0])
    assert matrix.shape == (0, len(CARDS)) and late.shape == (0,)
    assert state.stream_time_ms is None
    assert same_arrays(
        EntityWindows.from_arrays(state.to_arrays(), CARDS, allowed_lateness_ms=LATENESS_MS).to_arrays(),
        state.to_arrays(),
    )


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1e300])
def test_values_that_cannot_be_summed_are_refused(amount: float) -> None:
    with pytest.raises(StateError, match=r"amount.*row 1"):
        engine().process(blocks_of([Op(0, 1, 1, 1.0), Op(1, 2, 1, amount)], "card_id")[0])


def test_states_of_other_features_are_refused() -> None:
    arrays = engine().to_arrays()
    with pytest.raises(StateError, match="replaying the log"):
        EntityWindows.from_arrays(arrays, CARDS[:2], allowed_lateness_ms=LATENESS_MS)
    with pytest.raises(StateError, match="allowed lateness"):
        EntityWindows.from_arrays(arrays, CARDS)


def test_wrong_features_are_refused() -> None:
    with pytest.raises(FeatureError, match="LabelledWindows"):
        EntityWindows(TERMINALS)
    with pytest.raises(FeatureError, match="one entity"):
        EntityWindows([])
    with pytest.raises(ValueError, match="allowed_lateness_ms is -1"):
        EntityWindows(CARDS, allowed_lateness_ms=-1)
