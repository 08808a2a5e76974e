"""Rows whose features nobody wants, as in a replay: the state is that of rows whose features were computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.declare import by
from features.engine import EntityWindows, LabelledWindows, StageWindows
from tests.features.streams_of_rows import CARDS, LATENESS_MS, TERMINALS, Op, blocks_of, long_run, runs, same_arrays

State = EntityWindows | StageWindows


def new(kind: str) -> State:
    if kind == "cards":
        return EntityWindows(CARDS, allowed_lateness_ms=LATENESS_MS)
    if kind == "terminals":
        return LabelledWindows(TERMINALS, allowed_lateness_ms=LATENESS_MS)
    features = [*TERMINALS, *by("terminal_id").max("amount", "10s").features]
    return StageWindows(features, allowed_lateness_ms=LATENESS_MS, labelled=True)


def step(state: State, kind: str, ops: list[Op], wanted: bool) -> tuple[np.ndarray, np.ndarray]:
    rows, labels, kinds = blocks_of(ops, "card_id" if kind == "cards" else "terminal_id")
    if isinstance(state, LabelledWindows | StageWindows):
        return state.process(rows, labels, kinds, wanted=wanted)
    return state.process(rows, wanted=wanted)


def check(kind: str, parts: list[list[Op]], unwanted: list[bool]) -> None:
    asked, state = new(kind), new(kind)
    for ops, skip in zip(parts, unwanted, strict=True):
        matrix, late = step(asked, kind, ops, True)
        mine, mine_late = step(state, kind, ops, not skip)
        assert np.array_equal(late, mine_late)
        assert mine.shape == (len(late), 0) if skip else mine.tobytes() == matrix.tobytes()
        assert same_arrays(state.to_arrays(), asked.to_arrays())


@pytest.mark.parametrize("kind", ["cards", "terminals"])
def test_at_every_cut(kind: str) -> None:
    @settings(max_examples=60, derandomize=True, deadline=None)
    @given(runs(labels=kind != "cards"), st.integers(0, 60))
    def run(ops: list[Op], cut: int) -> None:
        check(kind, [ops[:cut], ops[cut:], ops], [True, False, False])

    run()


@pytest.mark.parametrize("kind", ["cards", "terminals", "stage"])
def test_long_run(kind: str) -> None:
    ops = long_run(7, 4_000, 40, labels=kind != "cards")
    parts = [ops[i : i + 250] for i in range(0, len(ops), 250)]
    check(kind, parts, [i % 3 != 2 for i in range(len(parts))])
