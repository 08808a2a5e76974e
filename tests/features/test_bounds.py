"""Memory: states stay below their bound or say why not, shrink when keys go idle, and cost what is documented."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from features.block import Block, Ids
from features.engine import EntityWindows, LabelledWindows, StateError
from features.fraud import DEFAULT
from features.memory import GrowingArray
from features.plan import BoundError, bytes_per_event, bytes_per_key
from tests.features.streams_of_rows import CARDS, LATENESS_MS, TERMINALS, Op, blocks_of, long_run, same_arrays

DAY_MS = 86_400_000


def cards(bytes_max: int | None = None) -> EntityWindows:
    return EntityWindows(CARDS, allowed_lateness_ms=LATENESS_MS, bytes_max=bytes_max)


def terminals(bytes_max: int | None = None) -> LabelledWindows:
    return LabelledWindows(TERMINALS, allowed_lateness_ms=LATENESS_MS, bytes_max=bytes_max)


def crowd(seed: int, n: int, labels: bool) -> list[Op]:
    """A run whose keys grow more and whose time hardly moves: nothing goes idle."""
    ops = long_run(seed, n, 1_500, labels)
    return [Op(op.transaction, 1_000_000 + op.time % 4_000, op.key, op.amount, op.positive) for op in ops]


def pieces(ops: list[Op], size: int) -> Iterator[list[Op]]:
    for begin in range(0, len(ops), size):
        yield ops[begin : begin + size]


def op_of(ops: list[Op], error: BoundError) -> int:
    """Position of the op at which the error says the state stands: so many rows and labels are before it."""
    rows = labels = 0
    for position, op in enumerate(ops):
        if (rows, labels) == (error.row, error.label) and str("label" if op.positive is not None else "row") in str(
            error
        ).split(" of the block")[0]:
            return position
        rows, labels = rows + (op.positive is None), labels + (op.positive is not None)
    raise AssertionError(f"{error.row} rows and {error.label} labels are not in the block")


def check_refusal_leaves_a_prefix(labels: bool, bytes_max: int, size: int) -> BoundError:
    """Up to the refusal the bounded state equals one without bound; given more room it goes on as if nothing was."""
    entity = "terminal_id" if labels else "card_id"
    state, free = (terminals(bytes_max), terminals()) if labels else (cards(bytes_max), cards())
    refusal: BoundError | None = None
    for ops in pieces(crowd(bytes_max, 3_000, labels), size):
        given = blocks_of(ops, entity)
        try:
            matrix, late = state.process(*given) if labels else state.process(given[0])
        except BoundError as error:
            assert refusal is None, "without bound nothing is refused"
            refusal = error
            assert state.nbytes <= bytes_max
            cut = op_of(ops, error)
            before, after = blocks_of(ops[:cut], entity), blocks_of(ops[cut:], entity)
            _ = free.process(*before) if labels else free.process(before[0])
            assert same_arrays(state.to_arrays(), free.to_arrays())
            assert len(state) == len(free)
            state.bytes_max = None
            matrix, late = state.process(*after) if labels else state.process(after[0])
            expected, expected_late = free.process(*after) if labels else free.process(after[0])
        else:
            expected, expected_late = free.process(*given) if labels else free.process(given[0])
        assert matrix.tobytes() == expected.tobytes() and late.tobytes() == expected_late.tobytes()
        assert same_arrays(state.to_arrays(), free.to_arrays())
    assert refusal is not None, f"{bytes_max} bytes were enough"
    return refusal


@pytest.mark.parametrize("size", [1, 90, 3_000])
@pytest.mark.parametrize("bytes_max", [25_000, 60_000, 90_000, 140_000])
def test_a_refusal_leaves_the_rows_before_it(bytes_max: int, size: int) -> None:
    check_refusal_leaves_a_prefix(False, bytes_max, size)


@pytest.mark.parametrize("size", [1, 90, 3_000])
@pytest.mark.parametrize("bytes_max", [36_000, 44_000, 70_000, 100_000, 150_000, 210_000])
def test_a_refusal_with_labels_leaves_the_ops_before_it(bytes_max: int, size: int) -> None:
    check_refusal_leaves_a_prefix(True, bytes_max, size)


def rows(ids: Ids, times: np.ndarray) -> Block:
    n = len(times)
    return Block(
        "t", 0, n, np.arange(n), times, {"card_id": ids, "terminal_id": ids, "transaction_id": Ids(ints=np.arange(n))},
        {"event_time": times, "amount": np.ones(n)},
    )  # fmt: skip


def test_a_refusal_names_key_bound_and_remedy() -> None:
    ids = Ids(ints=-np.arange(1, 5_001))
    with pytest.raises(BoundError) as caught:
        cards(100_000).process(rows(ids, np.full(5_000, DAY_MS)))
    text, row = str(caught.value), caught.value.row
    for part in (f"card_id {-1 - row},", f"row {row} ", "bytes_max = 100000", f"; {row} keys are held", "partitions"):
        assert part in text
    with pytest.raises(BoundError, match=r"card_id text of hash [0-9a-f]{32}, needs"):
        cards(100_000).process(rows(Ids.of([f"card {i}" for i in range(5_000)]), np.full(5_000, DAY_MS)))


def test_a_bound_that_is_no_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bytes_max is 20000; the state by terminal_id has reserved 3\d{4} bytes"):
        terminals(20_000)


def test_a_saved_state_beyond_the_bound_is_refused() -> None:
    state = cards()
    state.process(rows(Ids(ints=np.arange(5_000)), np.full(5_000, DAY_MS)))
    with pytest.raises(StateError, match=r"5000 keys.*bytes_max = 100000"):
        EntityWindows.from_arrays(state.to_arrays(), CARDS, allowed_lateness_ms=LATENESS_MS, bytes_max=100_000)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("labels", [False, True])
def test_a_restored_state_needs_no_more_than_it_had(labels: bool, seed: int) -> None:
    """Else a worker near its bound could not be started again."""
    state, entity = (terminals(), "terminal_id") if labels else (cards(), "card_id")
    kind, declared = type(state), TERMINALS if labels else CARDS
    for ops in pieces(crowd(seed, 4_000, labels), 97):
        given = blocks_of(ops, entity)
        _ = state.process(*given) if labels else state.process(given[0])
        again = kind.from_arrays(
            state.to_arrays(), declared, allowed_lateness_ms=LATENESS_MS, bytes_max=max(state.nbytes, 40_000)
        )
        assert again.nbytes <= state.nbytes
    assert len(state) > 500


@pytest.mark.parametrize("size", [50, 1_000])
@pytest.mark.parametrize("labelled", [False, True])
def test_idle_keys_make_room_for_new_ones(labelled: bool, size: int) -> None:
    """Ten times more keys than fit come and go: blocks, slots and places are used again, and nothing is refused."""
    n = 40_000
    ids, times = Ids(ints=np.arange(n) // 5), np.arange(n, dtype=np.int64) * 20  # 4,000 rows in the longest window
    state = terminals(700_000) if labelled else cards(500_000)
    free = terminals() if labelled else cards()
    block = rows(ids, times)
    for begin in range(0, n, size):
        part = block.take(np.arange(begin, begin + size))
        assert state.process(part)[0].tobytes() == free.process(part)[0].tobytes()
        assert len(state) < 5_000
    assert same_arrays(state.to_arrays(), free.to_arrays())
    with pytest.raises(BoundError):  # the bound is one: were keys not dropped, they would not fit
        (terminals if labelled else cards)(300_000).process(rows(ids, np.zeros(n, np.int64)))


def test_keys_idle_for_the_longest_window_are_dropped() -> None:
    state = cards()
    state.process(rows(Ids(ints=np.arange(3_000)), np.zeros(3_000, np.int64)))
    assert len(state) == 3_000
    for _ in range(8):  # without new keys the sweep takes a place for every second row
        state.process(rows(Ids(ints=np.zeros(3_000, np.int64)), np.full(3_000, 65_000, np.int64)))
    assert len(state) == 1


@pytest.mark.parametrize("entity", ["card_id", "terminal_id"])
@pytest.mark.parametrize(("keys", "events"), [(3_000, 9), (300, 90), (30_000, 4)])
def test_documented_bytes_are_those_measured(entity: str, keys: int, events: int) -> None:
    features = DEFAULT.for_entity(entity)
    state = (LabelledWindows if entity == "terminal_id" else EntityWindows)(features)
    block = rows(Ids(ints=np.tile(np.arange(keys), events)), np.arange(keys * events, dtype=np.int64))
    state.process(block)
    formula = keys * bytes_per_key(features) + keys * events * bytes_per_event(features)
    assert len(state) == keys
    assert formula <= state.nbytes <= 3.2 * formula


def test_documented_bytes_of_the_default_set() -> None:
    found = {
        e: (bytes_per_key(f), bytes_per_event(f)) for e in ("card_id", "terminal_id") if (f := DEFAULT.for_entity(e))
    }
    assert found == {"card_id": (118, 24), "terminal_id": (246, 54)}


@pytest.mark.parametrize("held", [False, True])
def test_growing_arrays_keep_what_they_hold(held: bool) -> None:
    growing = GrowingArray((10, 3), np.int64)
    growing.array[:] = np.arange(30).reshape(10, 3)
    rows_now = 10
    for to in (20, 20_000, 100_000, 99_000, 1_000_000):
        outside = growing.array[:2] if held else None
        growing.grow(to)
        rows_now = max(rows_now, to)
        assert growing.array.shape == (rows_now, 3)
        np.testing.assert_array_equal(growing.array[:10].ravel(), np.arange(30))
        assert not growing.array[10:].any()
        if outside is not None:
            np.testing.assert_array_equal(outside.ravel(), np.arange(6))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can enlarge a mapping; elsewhere growing is a copy")
def test_large_states_grow_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.memory._MAPPED_BYTES_MIN", 1 << 20)
    state = cards()
    block = rows(Ids(ints=np.arange(60_000)), np.zeros(60_000, np.int64))
    state.process(block.take(np.arange(30_000)))
    allocated: list[tuple[int, ...]] = []
    allocate = GrowingArray._allocate
    monkeypatch.setattr(GrowingArray, "_allocate", lambda self, shape: allocated.append(shape) or allocate(self, shape))
    before = state.nbytes
    state.process(block.take(np.arange(30_000, 60_000)))
    assert state.nbytes > before + 2_000_000
    assert [shape for shape in allocated if len(shape) == 2 or shape[0] > 200_000] == []
