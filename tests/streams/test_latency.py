"""The digest against the raw values."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.latency import LatencyDigest

PERCENTS = (0.0, 1.0, 25.0, 50.0, 90.0, 99.0, 99.9, 100.0)


def digest_of(*parts: np.ndarray) -> LatencyDigest:
    digest = LatencyDigest()
    for part in parts:
        digest.add(part)
    return digest


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-3, 3.6e6), min_size=1, max_size=300))
def test_within_one_percent_of_the_value_at_the_rank(values: list[float]) -> None:
    raw = np.array(values)
    digest = digest_of(raw)
    for percent in PERCENTS:
        exact = np.percentile(raw, percent, method="inverted_cdf")
        assert digest.percentile(percent) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("shape", ["lognormal", "gamma", "two humps"])
def test_within_two_percent_of_numpy_on_many(shape: str) -> None:
    rng = np.random.default_rng(5)
    if shape == "two humps":
        raw = np.concatenate([rng.normal(3, 0.2, 150_000), rng.normal(250, 10, 50_000)])
    else:
        raw = rng.lognormal(1.0, 1.0, 200_000) if shape == "lognormal" else rng.gamma(2.0, 3.0, 200_000)
    digest = digest_of(*np.array_split(raw, 37))
    for percent in (50.0, 99.0, 99.9):
        assert digest.percentile(percent) == pytest.approx(np.percentile(raw, percent), rel=0.02)
    assert digest.mean_ms == pytest.approx(raw.mean())
    assert (digest.min_ms, digest.max_ms, digest.count) == (raw.min(), raw.max(), len(raw))


def test_merge_is_as_if_counted_together() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.lognormal(size=1000), rng.lognormal(3, size=50)
    merged = digest_of(a)
    merged.merge(digest_of(b))
    together = digest_of(a, b)
    assert merged.to_dict() == together.to_dict()
    merged.clear()
    assert merged.to_dict() == LatencyDigest().to_dict()


def test_beyond_the_range_counts_as_its_ends() -> None:
    digest = digest_of(np.array([-5, 0, 10**9], dtype=np.int64))
    assert (digest.min_ms, digest.max_ms, digest.count) == (-5.0, 1e9, 3)
    assert digest.percentile(50) == pytest.approx(1e-3, rel=0.01)
    assert digest.percentile(100) == pytest.approx(3.6e6, rel=0.02)


def test_empty_is_nan_and_null() -> None:
    digest = digest_of(np.empty(0))
    assert math.isnan(digest.percentile(50)) and math.isnan(digest.mean_ms)
    assert math.isnan(digest.min_ms) and math.isnan(digest.max_ms)
    assert digest.to_dict() == {
        "count": 0,
        "latency_ms_mean": None,
        "latency_ms_p50": None,
        "latency_ms_p99": None,
        "latency_ms_p999": None,
        "latency_ms_max": None,
    }


def test_what_is_no_latency_is_refused() -> None:
    digest = digest_of(np.array([1.0]))
    with pytest.raises(ValueError, match="NaN"):
        digest.add(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"percent=101"):
        digest.percentile(101)
    assert digest.count == 1
