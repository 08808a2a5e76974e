"""What a package tells of its rows, in the bins of the monitor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from features.block import FloatArray
from models.histogram import reference
from monitoring.bins import BINS, MISSING, count_matrix
from monitoring.settings import MonitorError
from monitoring.trained import Trained

VALUES = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, 2.0, np.nan]))


@settings(max_examples=60, deadline=None)
@example(np.where(np.arange(160).reshape(80, 2) % 3, 1.0, np.nextafter(1.0, 2.0)))
@given(arrays(np.float64, (80, 2), elements=VALUES))
def test_the_rows_that_it_was_made_of_are_counted_as_it_says(x: FloatArray) -> None:
    made = reference(x, ("a",), x[:, 1])
    made["features"]["a"] = reference(x[:, :1], ("a",), x[:, 0])["score"]
    trained = Trained.of(made, ("a",))
    if trained is None:
        assert np.isnan(x).all()
        return
    counts = np.zeros((2, BINS), np.int64)
    count_matrix(x, np.zeros(len(x), np.int64), 0, trained.edges, np.zeros(2, np.bool_), counts)
    np.testing.assert_array_equal(counts, trained.counts)
    again = Trained.from_arrays(trained.to_arrays())
    assert np.array_equal(again.edges, trained.edges, equal_nan=True) and again.rows.tolist() == [80, 80]


def test_a_constant_column_that_moves_is_seen_and_one_without_histogram_left_out() -> None:
    trained = Trained.of(reference(np.ones((50, 1)), ("a",), np.full(50, np.nan)), ("b", "a"))
    assert trained is not None and trained.known.tolist() == [1] and trained.counts[2, MISSING] == 50
    counts = np.zeros((3, BINS), np.int64)
    x = np.array([[0.0, value, 0.0] for value in (0.5, 1.0, 2.0, np.inf, -np.inf)])
    count_matrix(x, np.zeros(5, np.int64), 0, trained.edges, np.zeros(3, np.bool_), counts)
    assert counts[1, :3].tolist() == [2, 1, 2]
    assert Trained.of({}, ("a",)) is None


def histogram_of(edges: list[object], *counts: object, missing: object = 0) -> dict[str, object]:
    return {"edges": edges, "counts": list(counts), "missing": missing}


@pytest.mark.parametrize(
    "histogram",
    [
        *({}, 7, histogram_of([0.0, 1.0], 1, 2)),
        *(histogram_of([0.0, 1.0, 2.0], 1, count) for count in (2**70, 2**62, -1, 0.5, "3", None)),
        *(histogram_of([0.0, 1.0], 1, missing=missing) for missing in (-1, 2**70, float("nan"))),
        *(histogram_of([0.0, edge, 2.0], 1, 2) for edge in (3.0, 0.0, float("nan"), float("inf"), "1", 2**70)),
        *(histogram_of([1.0, 0.0], 1), histogram_of([float("nan")] * 2, 1)),
    ],
)
def test_what_is_no_histogram_is_refused(histogram: object) -> None:
    with pytest.raises(MonitorError, match="package the model again"):
        Trained.of({"features": {"a": histogram}}, ("a",))
