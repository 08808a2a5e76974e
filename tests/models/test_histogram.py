"""Reference histograms: plain JSON in which every value is counted once."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.histogram import BINS_MAX, histogram, reference

VALUES = st.lists(
    st.one_of(
        st.floats(allow_nan=True, allow_infinity=True),
        st.integers(-2, 2).map(float),
        st.sampled_from([0.1, 0.1 + 2**-56, 5e-324, -0.0]),
    ),
    max_size=80,
)


@given(values=VALUES, bins=st.integers(2, BINS_MAX))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_value_is_in_the_bin_that_its_edges_say(values: list[float], bins: int) -> None:
    x = np.array(values, np.float64)
    found = histogram(x, bins)
    json.dumps(found, allow_nan=False)
    edges, counts = found["edges"], found["counts"]
    assert found["missing"] == np.isnan(x).sum()
    finite = x[np.isfinite(x)]
    if len(finite) == 0:
        assert edges == [] and counts == []
        return
    assert edges[0] == finite.min() and edges[-1] == finite.max()
    assert 1 <= len(counts) == len(edges) - 1 <= bins
    assert sum(counts) == len(x) - found["missing"]
    if edges[0] == edges[-1]:
        assert len(edges) == 2
        return
    assert all(a < b for a, b in pairwise(edges))
    expected = [0] * len(counts)
    for value in x[~np.isnan(x)].tolist():
        expected[max((i for i in range(len(counts)) if value >= edges[i]), default=0)] += 1
    assert counts == expected


def test_few_values_have_a_bin_each() -> None:
    assert histogram(np.array([0.0, 1.0, 1.0, np.nan])) == {"edges": [0.0, 0.5, 1.0], "counts": [1, 2], "missing": 1}
    assert histogram(np.array([3.0, 3.0])) == {"edges": [3.0, 3.0], "counts": [2], "missing": 0}
    assert histogram(np.array([1.0, 2.0, 3.0]))["counts"] == [1, 1, 1]


def test_many_values_are_shared_out_evenly() -> None:
    found = histogram(np.random.default_rng(0).lognormal(size=10_000))
    assert len(found["counts"]) == BINS_MAX
    assert min(found["counts"]) > 450 and max(found["counts"]) < 550
    heavy = np.append(np.zeros(9000), np.random.default_rng(0).random(1000))
    counts = histogram(heavy)["counts"]
    assert counts[0] >= 9000 and len(counts) > 1


def test_reference_names_its_features() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    found = reference(x, ["a", "b"], x[:, 0])
    assert found["rows"] == 50 and list(found["features"]) == ["a", "b"]
    assert found["features"]["a"] == found["score"] == histogram(x[:, 0])
    assert sum(found["features"]["b"]["counts"]) == pytest.approx(50)


def test_the_rest_of_a_column_that_is_mostly_one_value_has_bins() -> None:
    rng = np.random.default_rng(1)
    x = np.where(rng.random(20_000) < 0.97, 0.0, rng.random(20_000))
    found = histogram(x)
    counts = found["counts"]
    assert counts[0] == np.count_nonzero(x == 0.0) and 10 < len(counts) <= BINS_MAX
    assert max(counts[1:]) < 3 * min(counts[1:])
