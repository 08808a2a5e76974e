"""One state for a stage: whatever keeps a feature, its column is the same and where it was declared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from features.block import Block, Ids
from features.declare import FeatureError, FeatureSet, WindowFeature, by
from features.engine import (
    EntityWindows,
    HistoryWindows,
    LabelledWindows,
    StageWindows,
    StateError,
    entity_state,
    warm,
)
from features.fraud import DEFAULT
from tests.features.history_runs import PAYMENTS, Row, block_of, history_runs, long_history
from tests.features.streams_of_rows import LATENESS_MS, same_arrays

_CARDS = by("card_id", schema=PAYMENTS)
_PAIRS = by("card_id", "shop_id", schema=PAYMENTS)
#: prefix sums, labels, histories by one field and by two, mixed
STAGE: tuple[WindowFeature, ...] = FeatureSet(
    "stage",
    [
        _CARDS.max("amount", "20s").count("5s").mean("tip", "20s"),
        _PAIRS.count("20s"),
        _CARDS.risk("10s", delay="3s").distinct("shop_id", "20s"),
        _PAIRS.since_last("60s"),
        _CARDS.mean("amount", "20s"),
    ],
).for_stage("card_id")


def stage(*, labelled: bool) -> StageWindows:
    features = STAGE if labelled else [f for f in STAGE if f.aggregate != "risk"]
    return StageWindows(features, allowed_lateness_ms=LATENESS_MS, labelled=labelled)


def labels_of(block: Block) -> Block:
    """Every third row is known as a fraud two seconds after it."""
    which = np.arange(0, len(block), 3)
    times = block.event_time_ms[which] + 2_000
    ids = {"transaction_id": block.ids["transaction_id"].take(which)}
    return Block("l", 0, len(which), which, times, ids, {"label_time": times, "is_fraud": np.ones(len(which))})


def label_counts(state: StageWindows) -> tuple[int, ...]:
    return state.labels_repeated, state.labels_contradicting, state.labels_unknown, state.waiting_forced


@settings(max_examples=40, derandomize=True, deadline=None)
@given(history_runs())
def test_columns_are_those_of_the_states_alone(rows: list[Row]) -> None:
    block = block_of(rows)
    labels = labels_of(block)
    matrix, late = stage(labelled=True).process(block, labels)
    for j, feature in enumerate(STAGE):
        same = [f for f in STAGE if (f.entity, f.by_prefix_sums) == (feature.entity, feature.by_prefix_sums)]
        if feature.by_prefix_sums:
            alone, alone_late = LabelledWindows(same, allowed_lateness_ms=LATENESS_MS).process(block, labels)
        else:
            alone, alone_late = HistoryWindows(same, allowed_lateness_ms=LATENESS_MS).process(block)
        assert matrix[:, j].tobytes() == alone[:, same.index(feature)].tobytes(), feature.name
        np.testing.assert_array_equal(late, alone_late)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("size", [1, 50])
def test_pieces_with_reloads_equal_the_whole(labelled: bool, size: int) -> None:
    block = block_of(long_history(7, 400, 30))
    whole, pieces = stage(labelled=labelled), stage(labelled=labelled)
    expected, expected_late = whole.process(block)
    parts = []
    for begin in range(0, len(block), size):
        parts.append(pieces.process(block.part(begin, min(begin + size, len(block)))))
        features = STAGE if labelled else [f for f in STAGE if f.aggregate != "risk"]
        settings = {"allowed_lateness_ms": LATENESS_MS, "labelled": labelled}
        pieces = StageWindows.from_arrays(pieces.to_arrays(), features, **settings)
    assert np.vstack([matrix for matrix, _ in parts]).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(np.concatenate([late for _, late in parts]), expected_late)
    assert same_arrays(pieces.to_arrays(), whole.to_arrays())
    assert pieces.stream_time_ms == block.event_time_ms.max()


def test_the_same_sum_by_either_way_of_keeping_it() -> None:
    """Exact sums, rounded once: that one field may be missing does not change the other's bits."""
    block = block_of(long_history(8, 1_000, 20))
    amounts = block.columns["amount"]
    block.columns["tip"] = amounts
    features = FeatureSet("s", [_CARDS.sum("amount", "20s").sum("tip", "20s").mean("amount", "5s").mean("tip", "5s")])
    assert [f.by_prefix_sums for f in features.for_stage("card_id")] == [True, False, True, False]
    matrix, _ = entity_state(features.for_stage("card_id"), labelled=False).process(block)
    assert matrix[:, 0].tobytes() == matrix[:, 1].tobytes()
    assert matrix[:, 2].tobytes() == matrix[:, 3].tobytes()


def test_prefix_sums_alone_are_their_state_alone() -> None:
    cards = entity_state(DEFAULT.for_stage("card_id"), labelled=False, allowed_lateness_ms=5)
    terminals = entity_state(DEFAULT.for_stage("terminal_id"), labelled=True)
    assert type(cards) is EntityWindows and cards.allowed_lateness_ms == 5
    assert type(terminals) is LabelledWindows
    loaded = entity_state(DEFAULT.for_stage("card_id"), labelled=False, allowed_lateness_ms=5, arrays=cards.to_arrays())
    assert type(loaded) is EntityWindows


def test_what_a_stage_reads_and_counts() -> None:
    state = stage(labelled=True)
    assert state.entity == "card_id"
    assert state.fields == ("amount", "tip", "shop_id")
    assert state.nbytes > 0 and state.stream_time_ms is None
    block = block_of([Row(1_000_000, 1, 1, 1.0, 1.0, 0.0, 0.0)])
    ids = {"transaction_id": Ids(ints=np.array([0, 0, 99]))}
    times = np.full(3, 2_000_000)
    said = Block("l", 0, 3, np.arange(3), times, ids, {"label_time": times, "is_fraud": np.array([1, 1, 1])})
    state.process(block)
    state.process(block.part(0, 0), said)
    assert label_counts(state) == (1, 0, 1, 0)
    loaded = entity_state(STAGE, labelled=True, allowed_lateness_ms=LATENESS_MS, arrays=state.to_arrays())
    assert isinstance(loaded, StageWindows) and loaded.labels_unknown == 1
    alone = StageWindows(_CARDS.max("amount", "1d").features, labelled=True)
    alone.process(block, said)
    assert label_counts(alone) == (0, 0, 0, 0)


def test_a_value_that_cannot_be_changes_nothing() -> None:
    state = stage(labelled=False)
    block = block_of([Row(1_000, 1, 1, 1.0, float("inf"), 0.0, 0.0)])
    before = state.to_arrays()
    with pytest.raises(StateError, match="tip: inf in row 0"):
        state.process(block)
    assert same_arrays(before, state.to_arrays())


def test_errors_name_the_stage_and_the_remedy() -> None:
    with pytest.raises(FeatureError, match=r"one stage are needed, got \['card_id', 'shop_id'\]; .*for_stage"):
        StageWindows([*_CARDS.count("1d"), *by("shop_id", schema=PAYMENTS).count("1d")])
    with pytest.raises(FeatureError, match="got none"):
        StageWindows([])
    block = block_of([Row(1_000, 1, 1, 1.0, 1.0, 0.0, 0.0)])
    with pytest.raises(StateError, match="by card_id were made without labels; make them with labelled=True"):
        stage(labelled=False).process(block, labels_of(block))
    with pytest.raises(StateError, match=r"has history.card_id.* where history.card_id\+shop_id.*replaying"):
        entity_state(
            _PAIRS.count("1d").features,
            labelled=False,
            arrays=StageWindows(_CARDS.max("amount", "1d").features).to_arrays(),
        )


def test_warming_takes_any_set() -> None:
    warm(FeatureSet("mixed", [_CARDS.risk("1d", delay="7d").max("tip", "1d"), _PAIRS.distinct("shop_id", "1h")]))
