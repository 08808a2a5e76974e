"""The key table against a dict, warm-up, and keys that are hot."""

from __future__ import annotations

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import features.fifo
import features.labelled
import features.rings
import features.spill
import features.state
import features.windows
from features.block import Block, Ids
from features.engine import Dedupe, EntityWindows, LabelledWindows, warm
from features.fraud import DEFAULT
from features.state import NO_TIME, KeySlots
from tests.features.streams_of_rows import blocks_of, long_run

MODULES = (features.state, features.rings, features.spill, features.windows, features.fifo, features.labelled)


@pytest.mark.parametrize("spread", [10, 300, 100_000])
def test_slots_equal_a_dict(spread: int) -> None:
    """Keys come and expire; a live key keeps its slot, no two live keys share one."""
    rng = np.random.default_rng(spread)
    slots, horizon = KeySlots(), NO_TIME
    live: dict[int, tuple[int, int]] = {}
    for step in range(60):
        ids = rng.integers(0, spread, 100) + step * spread // 20
        times = np.full(100, step, np.int64)
        keys = Ids(ints=ids).keys()
        keys[:, 0] = ids % 3  # halves of the key that differ too
        got, late = slots.assign(keys, times, 10)
        assert not late.any()
        for key, slot in zip(ids.tolist(), got.tolist(), strict=True):
            assert live.get(key, (slot, 0))[0] == slot
            live[key] = (slot, step)
        horizon = step - 15
        freed = np.concatenate([slots.sweep(10**6, horizon) for _ in range(4)])  # each drops some of them
        gone = {key for key, (_, newest) in live.items() if newest <= horizon}
        assert sorted(freed.tolist()) == sorted(live[key][0] for key in gone)
        live = {key: entry for key, entry in live.items() if key not in gone}
        assert len({slot for slot, _ in live.values()}) == len(live) == len(slots)
    keys, numbers, newest = slots.live(horizon)
    assert sorted(zip(numbers.tolist(), newest.tolist(), strict=True)) == sorted(live.values())


def kernels() -> dict[str, int]:
    """Compiled signatures per kernel."""
    return {
        f"{module.__name__}.{name}": len(value.signatures)
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher)
    }


def test_warm_compiles_everything() -> None:
    warm()
    before = kernels()
    assert len(before) > 30
    cards, terminals = EntityWindows(DEFAULT.for_entity("card_id")), LabelledWindows(DEFAULT.for_entity("terminal_id"))
    dedupe = Dedupe(entries_max=500)
    ops = long_run(5, 4_000, 700, labels=True)
    for begin in range(0, len(ops), 900):
        block, labels, kinds = blocks_of(ops[begin : begin + 900], "terminal_id")
        block.ids["card_id"] = block.ids["terminal_id"]
        for column in [*block.columns.values(), *labels.columns.values(), kinds]:
            column.flags.writeable = False  # as columns cut out of a message are
        cards.process(block)
        terminals.process(block, labels, kinds)
        terminals.process(block)
        dedupe.process(block.ids["transaction_id"].keys(), block.event_time_ms)
        cards = EntityWindows.from_arrays(cards.to_arrays(), DEFAULT.for_entity("card_id"))
        terminals = LabelledWindows.from_arrays(terminals.to_arrays(), DEFAULT.for_entity("terminal_id"))
        dedupe = Dedupe.from_arrays(dedupe.to_arrays(), entries_max=500)
    assert kernels() == before


def test_a_hot_terminal_costs_steps_not_its_history() -> None:
    """All labels of one terminal come long before they are due, rows jitter: work per row stays small."""
    n = 60_000
    rng = np.random.default_rng(1)
    times = 10**12 + np.arange(n, dtype=np.int64) * 60_000
    jittered = times - rng.integers(0, 300_000, n)
    ids = Ids(ints=np.arange(n))
    block = Block(
        "t", 0, n, np.arange(n), times, {"transaction_id": ids, "terminal_id": Ids(ints=np.zeros(n, np.int64))},
        {"event_time": jittered, "amount": np.ones(n)},
    )  # fmt: skip
    week_ms = 7 * 86_400_000
    labels = Block(
        "l",
        0,
        n,
        np.arange(n),
        times,
        {"transaction_id": ids},
        {"label_time": jittered + week_ms, "is_fraud": np.ones(n, np.int8)},
    )
    state = LabelledWindows(DEFAULT.for_entity("terminal_id"))
    matrix, late = state.process(block, labels, np.tile([False, True], n))
    assert not late.any()
    full = matrix[:, 4] > 0
    assert full.sum() > 40_000
    np.testing.assert_array_equal(matrix[full, 5], 1.0)
    assert state.nbytes < 30_000_000
