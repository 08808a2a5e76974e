"""The rich fraud set through the states that the pipeline makes of it: it holds the default set, and leaks no label."""

from __future__ import annotations

import numpy as np

from features.block import Block, BoolArray, FloatArray, Ids
from features.declare import FeatureSet, by, duration_ms
from features.engine import entity_state, interleave, row_features
from features.fraud import DEFAULT, LABEL_DELAY, RICH
from features.schema import TRANSACTIONS, EventSchema, Field

DAY_MS = 86_400_000
BEGIN_MS = 1_522_540_800_000  # 2018-04-01T00:00:00Z
ROWS, DAYS = 1_200, 50


def transactions() -> Block:
    rng = np.random.default_rng(11)
    times = np.sort(BEGIN_MS + rng.integers(0, DAYS * DAY_MS, ROWS)) // 1_000 * 1_000
    ids = {
        "transaction_id": Ids(ints=np.arange(ROWS)),
        "card_id": Ids(ints=rng.integers(0, 12, ROWS)),
        "terminal_id": Ids(ints=rng.integers(0, 8, ROWS)),
    }
    return Block("t", 0, ROWS, np.arange(ROWS), times, ids, {"event_time": times, "amount": rng.gamma(2.0, 30.0, ROWS)})


def labels(block: Block, frauds: BoolArray) -> Block:
    """Known at once: the worst case, in which only the features' own delay keeps a label out."""
    times = block.event_time_ms
    ids = {"transaction_id": block.ids["transaction_id"]}
    return Block("l", 0, ROWS, block.offsets, times, ids, {"label_time": times, "is_fraud": frauds.astype(np.int8)})


def matrix_of(features: FeatureSet, block: Block, said: Block) -> FloatArray:
    out = np.empty((len(block), len(features)))
    out[:, features.positions(features.row_features)] = row_features(features.row_features, block)
    cards = entity_state(features.for_stage("card_id"), labelled=False)
    out[:, features.positions(features.for_stage("card_id"))] = cards.process(block)[0]
    terminals = entity_state(features.for_stage("terminal_id"), labelled=True)
    kinds = interleave(block.event_time_ms, said.columns["label_time"])
    out[:, features.positions(features.for_stage("terminal_id"))] = terminals.process(block, said, kinds)[0]
    return out


def test_the_default_columns_are_the_same_in_the_rich_set() -> None:
    block = transactions()
    said = labels(block, np.random.default_rng(12).random(ROWS) < 0.2)
    default, rich = matrix_of(DEFAULT, block, said), matrix_of(RICH, block, said)
    assert rich[:, : len(DEFAULT)].tobytes() == default.tobytes()


def test_no_label_younger_than_the_delay_moves_a_feature() -> None:
    block = transactions()
    times, delay_ms = block.event_time_ms, duration_ms(LABEL_DELAY)
    frauds = np.random.default_rng(13).random(ROWS) < 0.2
    before = matrix_of(RICH, block, labels(block, frauds))
    for row in (ROWS // 2, ROWS - 1):
        hidden = frauds.copy()
        hidden[times > times[row] - delay_ms] ^= True
        assert before[row].tobytes() == matrix_of(RICH, block, labels(block, hidden))[row].tobytes()
        known = frauds ^ (times <= times[row] - delay_ms)
        assert before[row].tobytes() != matrix_of(RICH, block, labels(block, known))[row].tobytes()


def test_bursts_of_failed_attempts_where_events_say_so() -> None:
    """The shipped events do not: such a number is declared in a schema, and missing values count as no failure."""
    declined = Field("declined", "number", required=False, minimum=0, maximum=1, unit="attempts")
    attempts = EventSchema("attempts", "card_id", "event_time", (*TRANSACTIONS.fields, declined))
    features = by("card_id", schema=attempts).sum("declined", "10m").mean("declined", last=3).features
    times = BEGIN_MS + np.array([0, 60, 120, 599, 600, 720, 721]) * 1_000
    said = np.array([1, np.nan, 1, 1, 0, 1, np.nan])
    ids = {"card_id": Ids(ints=np.full(7, 3))}
    block = Block("t", 0, 7, np.arange(7), times, ids, {"event_time": times, "declined": said})
    matrix = entity_state(features, labelled=False).process(block)[0]
    assert [f.name for f in features] == ["card_sum_declined_10m", "card_mean_declined_last3"]
    assert matrix[:, 0].tolist() == [1, 1, 2, 3, 2, 2, 2]
    np.testing.assert_array_equal(matrix[:, 1], [1, 1, 1, 1, 2 / 3, 2 / 3, 1 / 2])
