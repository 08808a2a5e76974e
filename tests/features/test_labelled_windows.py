"""Terminal-like windows with labels against the naive oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from features.engine import LabelledWindows, StateError, interleave
from tests.features.streams_of_rows import LATENESS_MS, TERMINALS, Op, blocks_of, long_run, runs, same_arrays
from tests.oracles.windows import NaiveWindows


def engine(waiting_max: int = 5) -> LabelledWindows:
    return LabelledWindows(TERMINALS, allowed_lateness_ms=LATENESS_MS, waiting_max=waiting_max)


def reload(state: LabelledWindows) -> LabelledWindows:
    return LabelledWindows.from_arrays(
        state.to_arrays(), TERMINALS, allowed_lateness_ms=LATENESS_MS, waiting_max=state.waiting_max
    )


def counters(state: LabelledWindows) -> tuple[int, int, int, int]:
    return state.labels_repeated, state.labels_contradicting, state.labels_unknown, state.waiting_forced


def check_against_oracle(ops: list[Op], waiting_max: int = 5) -> None:
    state = engine(waiting_max)
    matrix, late = state.process(*blocks_of(ops, "terminal_id"))
    naive = NaiveWindows(TERMINALS, LATENESS_MS, waiting_max)
    expected = []
    for op in ops:
        if op.positive is None:
            expected.append(naive.row(str(op.key), op.time, {"amount": op.amount}, str(op.transaction)))
        else:
            naive.label(str(op.transaction), op.time, op.positive)
    np.testing.assert_array_equal(late, [is_late for _, is_late in expected])
    np.testing.assert_array_equal(matrix, np.array([row for row, _ in expected]).reshape(matrix.shape))
    assert counters(state) == (naive.repeated, naive.contradicting, naive.unknown, naive.forced)


@settings(max_examples=250, derandomize=True, deadline=None)
@given(runs(labels=True))
def test_equals_oracle(ops: list[Op]) -> None:
    check_against_oracle(ops)


@pytest.mark.parametrize(("seed", "keys"), [(1, 1), (2, 5), (3, 60), (4, 500)])
@pytest.mark.parametrize("waiting_max", [3, 1000])
def test_long_runs_equal_oracle(seed: int, keys: int, waiting_max: int) -> None:
    check_against_oracle(long_run(seed, 4_000, keys, labels=True), waiting_max)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(runs(labels=True, max_ops=30))
def test_split_at_every_point(ops: list[Op]) -> None:
    whole = engine()
    expected, _ = whole.process(*blocks_of(ops, "terminal_id"))
    for cut in range(len(ops) + 1):
        state = engine()
        first, _ = state.process(*blocks_of(ops[:cut], "terminal_id"))
        loaded = reload(state)
        assert same_arrays(loaded.to_arrays(), state.to_arrays())
        for continued in (state, loaded):
            second, _ = continued.process(*blocks_of(ops[cut:], "terminal_id"))
            assert np.vstack([first, second]).tobytes() == expected.tobytes()
            assert same_arrays(continued.to_arrays(), whole.to_arrays())
            assert counters(continued) == counters(whole)


@pytest.mark.parametrize("size", [1, 13, 500])
def test_long_run_in_pieces_with_reloads(size: int) -> None:
    ops = long_run(9, 4_000, 30, labels=True)
    whole, pieces = engine(), engine()
    expected, _ = whole.process(*blocks_of(ops, "terminal_id"))
    parts = []
    for number, begin in enumerate(range(0, len(ops), size)):
        parts.append(pieces.process(*blocks_of(ops[begin : begin + size], "terminal_id"))[0])
        if number % max(1, 250 // size) == 0:
            pieces = reload(pieces)
    assert np.vstack(parts).tobytes() == expected.tobytes()
    assert same_arrays(pieces.to_arrays(), whole.to_arrays())
    assert counters(pieces) == counters(whole)


def risk_after(labels: list[Op], now: int = 10_000) -> float:
    """Risk over 10 s, delay 5 s, at ``now`` after a transaction 1 at 2,000 ms and the labels."""
    ops = [Op(1, 2_000, 7), *labels, Op(2, now, 7)]
    matrix, _ = engine().process(*blocks_of(ops, "terminal_id"))
    return float(matrix[-1, 3])


def test_a_label_counts_from_its_instant_on() -> None:
    assert risk_after([Op(1, 10_001, positive=True)]) == 0.0
    assert risk_after([Op(1, 10_000, positive=True)]) == 1.0
    assert risk_after([Op(1, 3_000, positive=True)]) == 1.0
    assert risk_after([Op(1, 3_000, positive=False)]) == 0.0
    assert risk_after([Op(1, 10_001, positive=True), Op(1, 3_000, positive=True)]) == 0.0  # the first positive one wins
    assert risk_after([Op(1, 3_000, positive=False), Op(1, 4_000, positive=True)]) == 1.0


def test_labels_without_a_terminal_before_their_transaction() -> None:
    ops = [Op(1, 9_000, positive=True), Op(1, 2_000, 7), Op(2, 8_999, 7), Op(3, 9_000, 7)]
    matrix, _ = engine().process(*blocks_of(ops, "terminal_id"))
    np.testing.assert_array_equal(matrix[:, 3], [0.0, 0.0, 1.0])


@pytest.mark.parametrize(("age_ms", "unknown"), [(38_999, 0), (39_000, 1)])
def test_a_transaction_is_forgotten_at_the_horizon(age_ms: int, unknown: int) -> None:
    state = engine()  # longest window 30 s + delay 5 s + lateness 4 s
    state.process(*blocks_of([Op(1, 2_000, 7), Op(2, 2_000 + age_ms, 8), Op(1, 2_000, positive=True)], "terminal_id"))
    assert state.labels_unknown == unknown
    assert len(state.to_arrays()["transaction_keys"]) == 2 - unknown


def test_order_of_rows_and_labels() -> None:
    times, label_times = np.array([10, 20, 20, 30]), np.array([5, 20, 30, 31])
    kinds = interleave(times, label_times)
    assert "".join("L" if label else "r" for label in kinds) == "LrLrrLrL"


def test_kinds_that_do_not_fit_are_refused() -> None:
    block, labels, kinds = blocks_of([Op(1, 2_000, 7), Op(1, 3_000, positive=True)], "terminal_id")
    with pytest.raises(StateError, match="interleave"):
        engine().process(block, labels, kinds[:1])
    with pytest.raises(ValueError, match="waiting_max is 0"):
        engine(0)
