"""The default set on the real benchmark data: every row of the expected answer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from features.block import Block, Ids
from features.engine import EntityWindows, LabelledWindows, interleave, row_features
from features.fraud import DEFAULT

DATA = Path(os.environ.get("HEADRACE_DATA", Path(__file__).parents[3] / "shared" / "data"))
BLOCK_ROWS = 50_000

pytestmark = pytest.mark.skipif(
    not (DATA / "fraud_expected.parquet").exists(),
    reason=f"no real data in {DATA}: set HEADRACE_DATA to the folder with fraud_expected.parquet",
)


def columns(name: str) -> dict[str, np.ndarray]:
    table = pq.read_table(DATA / name)
    return {column: table[column].to_numpy() for column in table.column_names}


def block_of(source: dict[str, np.ndarray], order: np.ndarray, ids: tuple[str, ...]) -> Block:
    taken = {name: values[order] for name, values in source.items()}
    n = len(order)
    id_columns = {name: Ids(ints=taken.pop(name).astype(np.int64)) for name in ids}
    return Block("real", 0, n, np.arange(n), np.zeros(n, np.int64), id_columns, taken)


def test_every_row_equals_the_expected_answer() -> None:
    transactions, labels, expected = (
        columns(f"fraud_{name}.parquet") for name in ("transactions", "labels", "expected")
    )
    order = np.lexsort((transactions["transaction_id"], transactions["event_time"]))
    rows = block_of(transactions, order, ("transaction_id", "card_id", "terminal_id"))
    label_order = np.lexsort((labels["transaction_id"], labels["label_time"]))
    said = block_of(labels, label_order, ("transaction_id",))
    kinds = interleave(rows.event_time_ms, said.columns["label_time"])

    cards, terminals = EntityWindows(DEFAULT.for_entity("card_id")), LabelledWindows(DEFAULT.for_entity("terminal_id"))
    matrix = np.empty((len(rows), len(DEFAULT)))
    matrix[:, DEFAULT.positions(DEFAULT.row_features)] = row_features(DEFAULT.row_features, rows)
    matrix[:, DEFAULT.positions(DEFAULT.for_entity("terminal_id"))], late = terminals.process(rows, said, kinds)
    assert not late.any()
    for begin in range(0, len(rows), BLOCK_ROWS):
        part = np.arange(begin, min(begin + BLOCK_ROWS, len(rows)))
        matrix[np.ix_(part, DEFAULT.positions(DEFAULT.for_entity("card_id")))], late = cards.process(rows.take(part))
        assert not late.any()

    by_id = np.argsort(expected["transaction_id"])
    ids = transactions["transaction_id"][order]
    answer = by_id[np.searchsorted(expected["transaction_id"], ids, sorter=by_id)]
    np.testing.assert_array_equal(expected["transaction_id"][answer], ids)
    for j, name in enumerate(DEFAULT.names):
        if "mean" in name:
            np.testing.assert_allclose(matrix[:, j], expected[name][answer], rtol=0, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(matrix[:, j], expected[name][answer], err_msg=name)
    assert terminals.labels_repeated == terminals.labels_contradicting == terminals.waiting_forced == 0
