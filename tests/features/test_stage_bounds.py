"""Histories, tiles and whole stages below a bound of memory: idle keys make room, then a refusal says why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from features.block import Block, Ids
from features.declare import WindowFeature, by
from features.engine import HistoryWindows, StageWindows, StateError, entity_state
from features.plan import BoundError
from features.tiled import TiledWindows
from tests.features.streams_of_rows import same_arrays

HOUR_MS = 3_600_000
BEGIN_MS = 500_000 * HOUR_MS

_CARDS = by("card_id")
HISTORY = _CARDS.max("amount", "1h").distinct("terminal_id", "1h").since_last("1h").features
TILES = _CARDS.count("1h", tile="10m").mean("amount", "1h", tile="10m").features
STAGE: tuple[WindowFeature, ...] = (*HISTORY, *TILES, *_CARDS.count("30m").mean("amount", "1h", name="exact").features)

State = HistoryWindows | TiledWindows | StageWindows
KINDS: dict[str, tuple[Callable[..., State], tuple[WindowFeature, ...], int]] = {
    "history": (HistoryWindows, HISTORY, 150_000),
    "tiled": (TiledWindows, TILES, 150_000),
    "stage": (StageWindows, STAGE, 450_000),
}
kinds = pytest.mark.parametrize("kind", list(KINDS))


def made(kind: str, bytes_max: int | None = None) -> State:
    make, features, _ = KINDS[kind]
    return make(features, allowed_lateness_ms=0, bytes_max=bytes_max)


def rows(cards: np.ndarray, times: np.ndarray) -> Block:
    n = len(times)
    ids = {"card_id": Ids(ints=cards), "terminal_id": Ids(ints=cards % 7), "transaction_id": Ids(ints=np.arange(n))}
    times = BEGIN_MS + times
    return Block("t", 0, n, np.arange(n), times, ids, {"event_time": times, "amount": np.ones(n)})


@kinds
@pytest.mark.parametrize("size", [1, 70, 5_000])
def test_a_refusal_names_key_bound_and_remedy(kind: str, size: int) -> None:
    bytes_max = KINDS[kind][2]
    state, refused = made(kind, bytes_max), None
    cards = -np.arange(1, 5_001)  # each comes once, and none goes idle
    block = rows(cards, np.zeros(5_000, np.int64))
    for begin in range(0, 5_000, size):
        try:
            state.process(block.take(np.arange(begin, min(begin + size, 5_000))))
        except BoundError as error:
            refused = error
            break
        assert state.nbytes <= bytes_max
    assert refused is not None, "the bound is one"
    assert state.nbytes <= bytes_max
    card = cards[begin + refused.row]
    for part in (f"row {refused.row} of the block, of card_id {card},", "bytes_max", "none of them idle", "partitions"):
        assert part in str(refused)
    assert ("All windows of the stage share 450000 bytes" in str(refused)) == (kind == "stage")


@kinds
@pytest.mark.parametrize("size", [50, 2_000])
def test_idle_keys_make_room_for_new_ones(kind: str, size: int) -> None:
    """Ten times more keys than fit come and go, and nothing is refused or different."""
    n, bytes_max = 20_000, KINDS[kind][2]
    block = rows(np.arange(n) // 2, np.arange(n, dtype=np.int64) * (40 * HOUR_MS // n))
    state, free = made(kind, bytes_max), made(kind)
    for begin in range(0, n, size):
        part = block.take(np.arange(begin, begin + size))
        assert state.process(part)[0].tobytes() == free.process(part)[0].tobytes()
        assert state.nbytes <= bytes_max
    assert same_arrays(state.to_arrays(), free.to_arrays())
    with pytest.raises(BoundError):
        made(kind, bytes_max).process(rows(np.arange(n) // 2, np.zeros(n, np.int64)))


def test_the_scratch_of_distinct_values_counts_too() -> None:
    n = 3_000
    state = HistoryWindows(_CARDS.distinct("terminal_id", "1h").features, bytes_max=120_000)
    with pytest.raises(BoundError, match=r"card_id 5, needs .*card_distinct_terminal_id_1h"):
        state.process(rows(np.full(n, 5), np.arange(n)))


def test_a_saved_stage_beyond_its_bound_is_refused() -> None:
    state = made("stage")
    state.process(rows(np.arange(2_000), np.zeros(2_000, np.int64)))
    with pytest.raises(StateError, match=r"the saved state by card_id has \d+ bytes, more than bytes_max = 50000"):
        entity_state(STAGE, labelled=False, allowed_lateness_ms=0, bytes_max=50_000, arrays=state.to_arrays())
