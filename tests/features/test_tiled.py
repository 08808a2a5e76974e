"""Windows of whole tiles against the naive oracle and the exact windows, however the rows are cut into blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.block import Block, Ids
from features.declare import FeatureError, FeatureSet, Group, WindowFeature, by
from features.engine import StageWindows, StateError, entity_state, warm
from features.fraud import DEFAULT, TILED
from features.tiled import TiledWindows
from tests.features.history_runs import PAYMENTS, Row, block_of
from tests.features.streams_of_rows import same_arrays
from tests.oracles.tiled import NaiveTiles

MINUTE_MS = 60_000
TILE_MS = 10 * MINUTE_MS
LATENESS_MS = 35 * MINUTE_MS
BEGIN_MS = 1_522_540_800_000


def tiled(group: Group) -> tuple[WindowFeature, ...]:
    """Three sizes of tile, a finer one with a longer window than the next, with and without a delay."""
    group = (
        group.count("20m", tile="10m")
        .sum("amount", "1h", tile="10m")
        .mean("tip", "4h", tile="10m", name="mean_tip_4h_by_10m")
    )
    group = group.mean("amount", "1h", delay="30m", tile="10m", name="mean_amount_after_30m")
    group = group.count("1h", tile="30m", name="count_1h_by_30m").sum("tip", "3h", tile="30m")
    group = group.count("8h", tile="2h").mean("amount", "8h", tile="2h").mean("tip", "4h", delay="2h", tile="2h")
    return group.features


CARDS = tiled(by("card_id", schema=PAYMENTS))
PAIRS = tiled(by("card_id", "shop_id", schema=PAYMENTS))


@st.composite
def tile_runs(draw: st.DrawFn, max_rows: int = 40) -> list[Row]:
    """Rows on, just below and between edges of tiles, with gaps, bursts, out of order and late; sums are dyadic."""
    now, rows = BEGIN_MS, []
    for _ in range(draw(st.integers(1, max_rows))):
        now += draw(st.sampled_from([0, 0, 0, 1, 2, 5, 10, 10, 30, 60, 125, 600])) * MINUTE_MS
        time = now - draw(
            st.sampled_from([0, 0, 0, 0, 1, 5 * MINUTE_MS, LATENESS_MS, LATENESS_MS + 1, 4 * 60 * MINUTE_MS])
        )
        amount, tip = draw(st.integers(-4_000, 4_000)) / 4, draw(st.sampled_from([float("nan"), 0.0, 0.25, 7.5]))
        rows.append(
            Row(time, draw(st.sampled_from([1, 2, "a"])), draw(st.sampled_from([1, "b"])), amount, tip, 0.0, 0.0)
        )
    return rows


def long_tile_run(seed: int, n: int, cards: int, *, begin_ms: int = BEGIN_MS, quarters: bool = True) -> list[Row]:
    """A seeded run long enough for rings to grow, join their tiles, expire and be reused; a hot card among them."""
    rng = np.random.default_rng(seed)
    times = begin_ms + np.cumsum(rng.choice([0, 1_000, 40_000, 900_000], n, p=[0.3, 0.3, 0.38, 0.02]))
    times -= np.where(rng.random(n) < 0.3, rng.integers(0, LATENESS_MS * 5 // 4, n), 0)
    chosen = np.where(rng.random(n) < 0.3, 0, rng.integers(0, cards, n))
    amounts = rng.gamma(2.0, 30.0, n)
    amounts = np.round(amounts * 4) / 4 if quarters else amounts
    tips = np.where(rng.random(n) < 0.3, np.nan, 0.25)
    columns = zip(times.tolist(), chosen.tolist(), amounts.tolist(), tips.tolist(), strict=True)
    return [Row(time, card, 1, amount, tip, 0.0, 0.0) for time, card, amount, tip in columns]


def engine(features: Sequence[WindowFeature] = CARDS) -> TiledWindows:
    return TiledWindows(features, allowed_lateness_ms=LATENESS_MS)


def check_against_oracle(features: Sequence[WindowFeature], rows: list[Row]) -> None:
    matrix, late = engine(features).process(block_of(rows))
    naive = NaiveTiles(features, LATENESS_MS)
    for i, r in enumerate(rows):
        key = tuple(str(r.card if name == "card_id" else r.shop) for name in features[0].keys)
        expected, expected_late = naive.row(key, r.time, {"amount": r.amount, "tip": r.tip})
        assert matrix[i].tolist() == expected, i
        assert late[i] == expected_late


@settings(max_examples=200, derandomize=True, deadline=None)
@given(tile_runs())
def test_equals_oracle(rows: list[Row]) -> None:
    check_against_oracle(CARDS, rows)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(tile_runs())
def test_entities_of_two_fields_equal_oracle(rows: list[Row]) -> None:
    check_against_oracle(PAIRS, rows)


@pytest.mark.parametrize(("seed", "cards"), [(1, 3), (2, 60)])
def test_long_runs_equal_oracle(seed: int, cards: int) -> None:
    check_against_oracle(CARDS, long_tile_run(seed, 1_500, cards))


@settings(max_examples=20, derandomize=True, deadline=None)
@given(tile_runs(max_rows=20))
def test_split_at_every_point(rows: list[Row]) -> None:
    block = block_of(rows)
    whole = engine()
    expected, expected_late = whole.process(block)
    for cut in range(len(rows) + 1):
        state = engine()
        first, first_late = state.process(block.part(0, cut))
        loaded = TiledWindows.from_arrays(state.to_arrays(), CARDS, allowed_lateness_ms=LATENESS_MS)
        assert same_arrays(loaded.to_arrays(), state.to_arrays())
        for continued in (state, loaded):
            second, second_late = continued.process(block.part(cut, len(rows)))
            assert np.vstack([first, second]).tobytes() == expected.tobytes()
            np.testing.assert_array_equal(np.concatenate([first_late, second_late]), expected_late)
            assert same_arrays(continued.to_arrays(), whole.to_arrays())


@pytest.mark.parametrize(("size", "begin_ms"), [(1, BEGIN_MS), (7, BEGIN_MS), (64, -50_000_000), (1000, BEGIN_MS)])
def test_long_run_in_pieces_with_reloads(size: int, begin_ms: int) -> None:
    """With amounts whose sums are rounded, so that the order of additions shows; one run goes through time 0."""
    block = block_of(long_tile_run(4, 3_000, 120, begin_ms=begin_ms, quarters=False))
    whole, pieces = engine(), engine()
    expected, _ = whole.process(block)
    parts = []
    for number, begin in enumerate(range(0, len(block), size)):
        parts.append(pieces.process(block.part(begin, min(begin + size, len(block))))[0])
        if number % max(1, 300 // size) == 0:
            pieces = TiledWindows.from_arrays(pieces.to_arrays(), CARDS, allowed_lateness_ms=LATENESS_MS)
    assert np.vstack(parts).tobytes() == expected.tobytes()
    assert same_arrays(pieces.to_arrays(), whole.to_arrays())


def test_the_error_bound_holds_and_is_reached() -> None:
    """Every count lies between those of the exact windows that its docstring names; both ends occur."""
    block = block_of(long_tile_run(5, 4_000, 12))
    for window_ms, delay_ms, tile_ms in [(2 * TILE_MS, 0, TILE_MS), (6 * TILE_MS, 6 * TILE_MS, 3 * TILE_MS)]:
        plain = by("card_id", schema=PAYMENTS).count("1h").features[0]
        feature = replace(plain, window_ms=window_ms, delay_ms=delay_ms, tile_ms=tile_ms)
        lower = replace(plain, name="lower", window_ms=window_ms - tile_ms, delay_ms=delay_ms)
        # without a delay, what is newer than the row is seen as far as it has come: a window from the future
        upper = replace(plain, name="upper", window_ms=window_ms + tile_ms, delay_ms=delay_ms - tile_ms)
        exact = StageWindows([lower] if delay_ms == 0 else [lower, upper], allowed_lateness_ms=LATENESS_MS)
        matrix, late = exact.process(block)
        counts = engine([feature]).process(block)[0][:, 0]
        assert late.any()
        slack = counts[~late] - matrix[~late, 0]
        assert slack.min() == 0 and slack.max() > 0
        above = _newer(block, window_ms, tile_ms) if delay_ms == 0 else matrix[:, 1]
        slack = above[~late] - counts[~late]
        assert slack.min() == 0 and slack.max() > 0


def _newer(block: Block, window_ms: int, tile_ms: int) -> np.ndarray:
    """Events so far of the row's card in (t - window, t + tile), by the row itself and those not late before it."""
    times, cards = block.event_time_ms, block.ids["card_id"].keys()[:, 1]
    late = times < np.concatenate([[0], np.maximum.accumulate(times)[:-1]]) - LATENESS_MS
    out = np.ones(len(times))
    for i, t in enumerate(times):
        near = (times[:i] > t - window_ms) & (times[:i] < t + tile_ms)
        out[i] += np.sum(near & (cards[:i] == cards[i]) & ~late[:i])
    return out


def test_without_delay_and_in_order_a_count_is_never_too_large() -> None:
    rows = sorted(long_tile_run(6, 2_000, 10), key=lambda r: r.time)
    group = by("card_id", schema=PAYMENTS)
    counts = engine(group.count("1h", tile="20m").features).process(block_of(rows))[0]
    exact = entity_state(group.count("1h").features, labelled=False).process(block_of(rows))[0]
    assert (counts <= exact).all() and (counts < exact).any()


def test_events_at_the_edges_of_tiles_are_counted_exactly() -> None:
    """At the beginning of a tile, the tiles of a window begin where the window does: just after its far end."""
    rng = np.random.default_rng(7)
    rows = [
        Row(BEGIN_MS + int(i) * 2 * 60 * MINUTE_MS, int(rng.integers(0, 4)), 1, float(rng.integers(0, 99)), 0.25, 0, 0)
        for i in np.sort(rng.integers(0, 400, 1_500))
    ]
    exact = StageWindows([replace(f, tile_ms=0) for f in CARDS], allowed_lateness_ms=LATENESS_MS)
    assert engine().process(block_of(rows))[0].tobytes() == exact.process(block_of(rows))[0].tobytes()


def test_idle_keys_are_dropped_and_tiles_joined() -> None:
    state = engine()
    rows = [Row(BEGIN_MS + MINUTE_MS * i, 10 + i // 50, 1, 1.0, 1.0, 0.0, 0.0) for i in range(20_000)]
    for begin in range(0, len(rows), 100):
        state.process(block_of(rows[begin : begin + 100]))
    assert len(state) < 60 and len(state.to_arrays()["keys"]) < 20  # 8 h and lateness, 50 minutes each
    assert state.nbytes < 100_000
    lone = engine()
    lone.process(block_of([Row(r.time, 1, 1, 1.0, 1.0, 0.0, 0.0) for r in rows]))
    # 4 h 35 m by 10 minutes, then by 2 h, and what the edges cut
    assert int(lone.to_arrays()["tile_counts"][0]) <= 28 + 3 + 2


def test_no_rows_and_refused_values_change_nothing() -> None:
    state = engine()
    before = state.to_arrays()
    matrix, late = state.process(block_of([]))
    assert matrix.shape == (0, len(CARDS)) and late.shape == (0,) and state.stream_time_ms is None
    with pytest.raises(StateError, match=r"amount: inf in row 1"):
        state.process(block_of([Row(1, 1, 1, 1.0, 1.0, 0.0, 0.0), Row(2, 1, 1, float("inf"), 1.0, 0.0, 0.0)]))
    assert same_arrays(before, state.to_arrays())
    assert same_arrays(before, TiledWindows.from_arrays(before, CARDS, allowed_lateness_ms=LATENESS_MS).to_arrays())


def test_a_stage_of_all_three_kinds() -> None:
    group = by("card_id", schema=PAYMENTS)
    pairs = by("card_id", "shop_id", schema=PAYMENTS)
    parts = [
        group.max("amount", "1h").count("1h", tile="10m"),
        group.count("1h", name="exact"),
        group.sum("tip", "20m"),
    ]
    features = FeatureSet("s", [*parts, pairs.mean("tip", "1h", tile="20m")]).for_stage("card_id")
    block = block_of(long_tile_run(8, 400, 10))
    whole = entity_state(features, labelled=False, allowed_lateness_ms=LATENESS_MS)
    expected, _ = whole.process(block)
    for j in (1, 4):
        assert expected[:, j].tobytes() == engine([features[j]]).process(block)[0].tobytes()
    state = entity_state(features, labelled=False, allowed_lateness_ms=LATENESS_MS)
    first = state.process(block.part(0, 150))[0]
    arrays = state.to_arrays()
    assert {name.rpartition(".")[0] for name in arrays} == {
        "sums", "history.card_id", "tiled.card_id", "tiled.card_id+shop_id"
    }  # fmt: skip
    loaded = entity_state(features, labelled=False, allowed_lateness_ms=LATENESS_MS, arrays=arrays)
    assert np.vstack([first, loaded.process(block.part(150, 400))[0]]).tobytes() == expected.tobytes()
    assert same_arrays(loaded.to_arrays(), whole.to_arrays())


def test_the_tiled_set_is_the_default_one_with_tiles() -> None:
    assert TILED.names == DEFAULT.names and TILED.schema_hash != DEFAULT.schema_hash
    assert TILED.for_stage("terminal_id") == DEFAULT.for_stage("terminal_id")
    cards = TILED.for_stage("card_id")
    assert tuple(replace(f, tile_ms=0) for f in cards) == DEFAULT.for_stage("card_id")
    assert "tile_ms" not in DEFAULT.for_stage("card_id")[0].definition()
    described = [(row["window"], row["memory"]) for row in TILED.describe() if row["entity"] == "card_id"][::2]
    assert described == [(window, "16 B/tile + 86 B/key") for window in ("1d by 1h", "7d by 6h", "30d by 1d")]
    warm(TILED)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (lambda g: g.max("amount", "30d", tile="1d"), "card_max_amount_30d: tile='1d' is for count, sum and mean"),
        (lambda g: g.count(last=5, tile="1d"), "card_count_last5: tile='1d' is for .*over last 5 within 90d; drop"),
        (lambda g: g.count(session="30m", tile="10m"), "count_session_30m: tile='10m' is for count, sum and mean"),
        (lambda g: g.count("1h", tile="5m"), "card_count_1h: a tile of '5m' is below 10m; give a longer"),
        (lambda g: g.count("1h", tile="0s"), "card_count_1h: a tile of '0s' is below 10m"),
        (lambda g: g.count("1d", tile="1d"), "card_count_1d: a tile of '1d' is as long as the window; give"),
        (lambda g: g.count("1d", tile="7h"), "card_count_1d: a window of 1d is not a whole number of tiles of '7h'"),
        (lambda g: g.count("1d", delay="1h", tile="6h"), "card_count_1d: a delay of 1h is not a whole number of tiles"),
        (lambda g: g.count("10d", tile="10m"), "card_count_10d: the window has 1440 tiles of '10m', more than 1000"),
        (lambda g: g.count("1d", tile="day"), "card_count_1d: 'day' is not a duration"),
        (lambda g: FeatureSet("s", [g.count("12h", tile="4h").count("1d", tile="6h")]),
         "1d: tiles of 6h are not made of whole tiles of 4h .of card_count_12h., which card_id has too; choose"),
    ],
)  # fmt: skip
def test_what_tiles_cannot_be(more: object, said: str) -> None:
    assert callable(more)
    with pytest.raises(FeatureError, match=said):
        more(by("card_id"))


def test_what_a_state_cannot_be_made_of() -> None:
    cards = by("card_id")
    with pytest.raises(StateError, match=r"by card_id is of other features.*card_count_2d.*replaying"):
        TiledWindows.from_arrays(
            TiledWindows(cards.count("1d", tile="1h").features).to_arrays(), cards.count("2d", tile="1h").features
        )
    with pytest.raises(FeatureError, match="one entity are needed, got none"):
        TiledWindows([])
    with pytest.raises(FeatureError, match="card_count_1d: its window is not made of tiles"):
        TiledWindows(cards.count("1d").features)
    with pytest.raises(ValueError, match="allowed_lateness_ms is -1"):
        TiledWindows(CARDS, allowed_lateness_ms=-1)


def test_memory_per_card_is_a_fraction_of_the_exact_windows() -> None:
    """The default card windows over 40 days of 1.3 events a day: 28 tiles a card, and less than half the bytes."""
    rng = np.random.default_rng(9)
    cards, per_block = 2_000, 2_600  # a block is a day
    states = [entity_state(s.for_stage("card_id"), labelled=False) for s in (TILED, DEFAULT)]
    for day in range(40):
        times = np.sort(BEGIN_MS + 86_400_000 * day + rng.integers(0, 86_400_000, per_block))
        ids = {"card_id": Ids(ints=rng.integers(0, cards, per_block))}
        columns = {"event_time": times, "amount": rng.gamma(2.0, 30.0, per_block)}
        for state in states:
            state.process(Block("t", 0, per_block, np.arange(per_block), times, ids, columns))
    tiles, exact = (state.to_arrays() for state in states)
    rows = [sum(a.nbytes for name, a in saved.items() if name.endswith("_rows")) for saved in (tiles, exact)]
    assert rows[0] < 28 * 16 * cards and rows[1] > 2 * rows[0]
    assert states[1].nbytes > 1.5 * states[0].nbytes
