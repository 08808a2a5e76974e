"""What is not an array, as arrays, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.arrays import check_like, of_optional, of_texts, optional_of, prefixed, texts_of, under
from features.plan import StateError

TEXTS = st.text().filter(lambda text: not text.endswith("\0")).filter(lambda text: text.isprintable())


@given(st.lists(TEXTS))
def test_texts_come_back(texts: list[str]) -> None:
    assert texts_of(of_texts(texts)) == texts
    assert of_texts(texts).dtype.kind == "S"


def test_a_text_that_numpy_would_cut_is_refused() -> None:
    assert texts_of(of_texts(["a\0b"])) == ["a\0b"]
    with pytest.raises(ValueError, match="zero byte"):
        of_texts(["b", "a\0"])


@pytest.mark.parametrize("value", [None, 0, -1, 2**63 - 1, -(2**63)])
def test_none_is_not_a_number(value: int | None) -> None:
    assert optional_of(of_optional(value)) == value
    assert of_optional(value).dtype == np.int64


def test_parts_of_the_whole() -> None:
    part = {"a": np.zeros(1), "b/c": np.ones(2)}
    whole = prefixed("x/", part) | prefixed("y/", part)
    assert list(whole) == ["x/a", "x/b/c", "y/a", "y/b/c"]
    assert under("y/", whole) == {"a": whole["y/a"], "b/c": whole["y/b/c"]}


def test_arrays_of_another_kind_are_refused() -> None:
    like = {"n": np.empty((0, 2), np.int64), "s": of_texts([])}
    check_like({"n": np.ones((5, 2), np.int64), "s": of_texts(["long"])}, like, "t/0")
    wrong = {
        "missing s, unknown z": {"n": like["n"], "z": like["s"]},
        r"n is uint64 \(0, 2\), not of the kind of int64 \(0, 2\)": {**like, "n": like["n"].astype(np.uint64)},
        r"n is int64 \(0, 3\)": {**like, "n": np.empty((0, 3), np.int64)},
        r"n is int64 \(0,\)": {**like, "n": np.empty(0, np.int64)},
        "s is int64": {**like, "s": np.empty(0, np.int64)},
    }
    for reason, arrays in wrong.items():
        with pytest.raises(StateError, match=f"the saved state of t/0: {reason}.*; rebuild it by replaying the log"):
            check_like(arrays, like, "t/0")
