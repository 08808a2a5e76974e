"""128-bit fixed point against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.fixed import fixed_add, fixed_of, fixed_subtract, float_of
from features.kernel import kernel
from tests.oracles.windows import quantised

SIGNED = st.integers(-(2**127), 2**127 - 1)


@kernel
def to_float(hi: int, lo: int) -> float:
    return float_of(hi, lo)


@kernel
def sum_in_place(words: np.ndarray, values: np.ndarray) -> None:
    """words[0] += every value, words[1] = words[0] - the last value."""
    for x in values:
        hi, lo = fixed_of(x)
        words[0, 0], words[0, 1] = fixed_add(words[0, 0], words[0, 1], hi, lo)
        words[1, 0], words[1, 1] = fixed_subtract(words[0, 0], words[0, 1], hi, lo)


def words_of(n: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64((n >> 64) & (2**64 - 1)), np.uint64(n & (2**64 - 1))


def number_of(words: np.ndarray) -> Fraction:
    n = (int(words[0]) << 64) | int(words[1])
    return Fraction(n - 2**128 if n >> 127 else n, 2**64)


#: halfway between two floats, or one unit beside it
TIES = st.builds(
    lambda m, shift, beside: (((2**52 + m) * 2 + 1) << shift) + beside,
    st.integers(0, 2**52 - 1),
    st.integers(0, 72),
    st.sampled_from([-1, 0, 1]),
)


@settings(max_examples=500, derandomize=True, deadline=None)
@given(st.one_of(SIGNED, st.integers(-(2**70), 2**70), TIES, TIES.map(lambda n: -n)))
def test_conversion_to_float_rounds_once(n: int) -> None:
    assert to_float(*words_of(n)) == float(Fraction(n, 2**64))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(-(2.0**56), 2.0**56), st.floats(-1e-15, 1e-15), st.sampled_from([0.0, -0.0, 5e-324, 0.1])),
        min_size=1,
        max_size=30,
    )
)
def test_sums_are_exact(values: list[float]) -> None:
    words = np.zeros((2, 2), np.uint64)
    sum_in_place(words, np.array(values))
    assert number_of(words[0]) == sum(quantised(x) for x in values)
    assert number_of(words[1]) == sum(quantised(x) for x in values[:-1])


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.one_of(st.floats(2.0**-12, 2.0**61), st.integers(0, 10**14).map(lambda cents: cents / 1024)))
def test_usual_values_are_held_exactly(x: float) -> None:
    words = np.zeros((2, 2), np.uint64)
    sum_in_place(words, np.array([x, -x, x]))
    assert number_of(words[0]) == Fraction(x)
    assert to_float(words[0, 0], words[0, 1]) == x
