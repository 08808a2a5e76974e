"""Windows over events against the naive oracle, however the rows are cut into blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings

from features.declare import FeatureError, WindowFeature, by
from features.history import HistoryWindows
from features.history_kernels import OPERATIONS
from features.plan import StateError
from tests.features.history_runs import CARDS, PAIRS, PAYMENTS, Row, block_of, history_runs, long_history
from tests.features.streams_of_rows import LATENESS_MS, same_arrays
from tests.oracles.history import NaiveHistory

#: aggregates made of transcendental functions, of which the oracle has other ones
ROUNDED = ("decayed_count", "decayed_sum", "distance", "speed")


def engine(features: Sequence[WindowFeature] = CARDS) -> HistoryWindows:
    return HistoryWindows(features, allowed_lateness_ms=LATENESS_MS)


def oracle(features: Sequence[WindowFeature], rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    naive = NaiveHistory(features, LATENESS_MS)
    out = []
    for r in rows:
        values = {"shop_id": str(r.shop), "amount": r.amount, "tip": r.tip, "lat": r.lat, "lon": r.lon}
        key = tuple(str(r.card if name == "card_id" else r.shop) for name in features[0].keys)
        out.append(naive.row(key, r.time, values))
    return np.array([features for features, _ in out]), np.array([late for _, late in out])


def check_against_oracle(features: Sequence[WindowFeature], rows: list[Row]) -> None:
    matrix, late = engine(features).process(block_of(rows))
    expected, expected_late = oracle(features, rows)
    np.testing.assert_array_equal(late, expected_late)
    for j, feature in enumerate(features):
        if feature.aggregate in ROUNDED:
            # where two positions are the same or opposite, either formula may be a few metres off
            slack = {"distance": 1e-3, "speed": 4.0}.get(feature.aggregate, 0.0)
            np.testing.assert_allclose(matrix[:, j], expected[:, j], rtol=1e-9, atol=slack, err_msg=feature.name)
        else:
            np.testing.assert_array_equal(matrix[:, j], expected[:, j], err_msg=feature.name)


def test_every_operation_is_tried() -> None:
    assert {f.aggregate for f in CARDS} == set(OPERATIONS)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(history_runs())
def test_equals_oracle(rows: list[Row]) -> None:
    check_against_oracle(CARDS, rows)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(history_runs())
def test_entities_of_two_fields_equal_oracle(rows: list[Row]) -> None:
    check_against_oracle(PAIRS, rows)


@pytest.mark.parametrize(("seed", "cards"), [(1, 3), (2, 40), (3, 300)])
def test_long_runs_equal_oracle(seed: int, cards: int) -> None:
    check_against_oracle(CARDS, long_history(seed, 1_500, cards))


@settings(max_examples=20, derandomize=True, deadline=None)
@given(history_runs(max_rows=20))
def test_split_at_every_point(rows: list[Row]) -> None:
    block = block_of(rows)
    whole = engine()
    expected, expected_late = whole.process(block)
    for cut in range(len(rows) + 1):
        state = engine()
        first, first_late = state.process(block.part(0, cut))
        loaded = HistoryWindows.from_arrays(state.to_arrays(), CARDS, allowed_lateness_ms=LATENESS_MS)
        assert same_arrays(loaded.to_arrays(), state.to_arrays())
        for continued in (state, loaded):
            second, second_late = continued.process(block.part(cut, len(rows)))
            assert np.vstack([first, second]).tobytes() == expected.tobytes()
            np.testing.assert_array_equal(np.concatenate([first_late, second_late]), expected_late)
            assert same_arrays(continued.to_arrays(), whole.to_arrays())


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_long_run_in_pieces_with_reloads(size: int) -> None:
    block = block_of(long_history(4, 3_000, 120))
    whole, pieces = engine(), engine()
    expected, _ = whole.process(block)
    parts = []
    for number, begin in enumerate(range(0, len(block), size)):
        parts.append(pieces.process(block.part(begin, min(begin + size, len(block))))[0])
        if number % max(1, 300 // size) == 0:
            pieces = HistoryWindows.from_arrays(pieces.to_arrays(), CARDS, allowed_lateness_ms=LATENESS_MS)
    assert np.vstack(parts).tobytes() == expected.tobytes()
    assert same_arrays(pieces.to_arrays(), whole.to_arrays())


def test_out_of_order_within_the_lateness_ends_as_in_order() -> None:
    rng = np.random.default_rng(5)
    rows = [Row(1_000_000 + 250 * i, i % 3, i % 7, i / 4, float(i % 5), 0.0, i / 10) for i in range(600)]
    arrival = np.argsort(np.array([r.time for r in rows]) + rng.integers(0, LATENESS_MS, len(rows)), kind="stable")
    ordered, shuffled = engine(), engine()
    ordered.process(block_of(rows))
    _, late = shuffled.process(block_of([rows[i] for i in arrival]))
    assert not late.any() and (np.diff(arrival) < 0).any()
    assert same_arrays(ordered.to_arrays(), shuffled.to_arrays())
    probe = block_of([Row(1_200_000, c, 1, 1.0, 2.0, 1.0, 1.0) for c in range(3)])
    assert ordered.process(probe)[0].tobytes() == shuffled.process(probe)[0].tobytes()


@pytest.mark.parametrize("amount", [9.99, 0.1, 0.7])
def test_equal_values_do_not_deviate(amount: float) -> None:
    """Three times 0.1 by three is not 0.1: any other amount would be 10**16 standard deviations away."""
    features = by("card_id", schema=PAYMENTS).std("amount", "60s").zscore("amount", "60s").features
    rows = [Row(1_000_000 + 1_000 * i, 1, 1, amount, 1.0, 0.0, 0.0) for i in range(40)]
    rows.append(Row(1_040_000, 1, 1, 3 * amount, 1.0, 0.0, 0.0))
    matrix, _ = engine(features).process(block_of(rows))
    assert not matrix[:-1, 0].any() and np.isnan(matrix[:, 1]).all()


def test_idle_keys_are_dropped() -> None:
    features = by("card_id", schema=PAYMENTS).max("amount", "60s").features
    state = engine(features)
    rows = [Row(1_000_000 + 1_000 * i, i, 1, 1.0, 1.0, 0.0, 0.0) for i in range(5_000)]
    for begin in range(0, 5_000, 100):
        state.process(block_of(rows[begin : begin + 100]))
    assert len(state) < 400
    assert len(state.to_arrays()["keys"]) == 64  # rows in the last 60 s + 4 s
    assert state.nbytes < 200_000


def test_missing_values_have_one_form() -> None:
    strange = np.array([0x7FF8_0000_0000_0001, 0xFFF8_0000_0000_0000], np.uint64).view(np.float64)
    states = []
    for tip in (*strange, float("nan")):
        state = engine()
        state.process(block_of([Row(1_000_000, 1, 1, 1.0, tip, 0.0, 0.0)]))
        states.append(state.to_arrays())
    assert all(same_arrays(states[0], other) for other in states)


def test_no_rows() -> None:
    state = engine()
    matrix, late = state.process(block_of([]))
    assert matrix.shape == (0, len(CARDS)) and late.shape == (0,)
    assert state.stream_time_ms is None
    loaded = HistoryWindows.from_arrays(state.to_arrays(), CARDS, allowed_lateness_ms=LATENESS_MS)
    assert same_arrays(loaded.to_arrays(), state.to_arrays())


@pytest.mark.parametrize("amount", [float("inf"), -(2.0**62)])
def test_values_that_cannot_be_summed_are_refused_and_change_nothing(amount: float) -> None:
    state = engine()
    before = state.to_arrays()
    with pytest.raises(StateError, match=r"amount.*row 1"):
        state.process(block_of([Row(1, 1, 1, 1.0, 1.0, 0.0, 0.0), Row(2, 1, 1, amount, 1.0, 0.0, 0.0)]))
    assert same_arrays(before, state.to_arrays())


def test_what_a_state_cannot_be_made_of() -> None:
    cards = by("card_id")
    with pytest.raises(StateError, match=r"by card_id is of other features.*card_min_amount_1d.*replaying"):
        HistoryWindows.from_arrays(
            HistoryWindows(cards.max("amount", "1d").features).to_arrays(), cards.min("amount", "1d").features
        )
    with pytest.raises(FeatureError, match="one entity are needed, got none"):
        HistoryWindows([])
    with pytest.raises(FeatureError, match=r"got \['card_id', 'terminal_id'\]"):
        HistoryWindows([*cards.count("1d"), *by("terminal_id").count("1d")])
    with pytest.raises(FeatureError, match="card_risk_1d: a risk needs labels"):
        HistoryWindows(cards.risk("1d", delay="7d").features)
    with pytest.raises(ValueError, match="allowed_lateness_ms is -1"):
        HistoryWindows(CARDS, allowed_lateness_ms=-1)
