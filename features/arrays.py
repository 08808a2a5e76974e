"""States as named numpy arrays: the names of a part within the whole, and how what is not an array becomes one.

Numbers, truth values and bytes of fixed width only, so that any file format can hold them and none needs pickle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from features.block import IntArray
from features.plan import StateError

__all__ = ["Arrays", "check_like", "of_optional", "of_texts", "optional_of", "prefixed", "texts_of", "under"]

Arrays = dict[str, npt.NDArray[Any]]


def prefixed(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """The arrays of a part, named within the whole."""
    return {prefix + name: array for name, array in arrays.items()}


def under(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """The reverse of `prefixed`: the arrays of one part of the whole."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def of_optional(value: int | None) -> IntArray:
    """(1,) int64, or (0,) for None."""
    return np.array([] if value is None else [value], np.int64)


def optional_of(array: npt.NDArray[Any]) -> int | None:
    """The reverse of `of_optional`."""
    return int(array[0]) if len(array) else None


def of_texts(texts: Iterable[str]) -> npt.NDArray[np.bytes_]:
    """(n,) bytes of fixed width, UTF-8. ValueError: a text that ends in a zero byte, which numpy takes off."""
    encoded = [text.encode() for text in texts]
    for text in encoded:
        if text.endswith(b"\0"):
            raise ValueError(f"{text!r} ends in a zero byte and cannot be kept; give another name")
    return np.array(encoded, np.bytes_)


def texts_of(array: npt.NDArray[Any]) -> list[str]:
    """The reverse of `of_texts`."""
    return [text.decode() for text in array.tolist()]


def check_like(arrays: Mapping[str, npt.NDArray[Any]], expected: Mapping[str, npt.NDArray[Any]], whose: str) -> None:
    """StateError where names, types or columns are not those of ``expected``, arrays of the same kind of state.
    Numbers of rows, and widths of texts, may be any. ``whose`` state it is, for the error's text."""
    wrong = ""
    if arrays.keys() != expected.keys():
        missing, unknown = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
        wrong = f"missing {', '.join(missing) or 'nothing'}, unknown {', '.join(unknown) or 'nothing'}"
    else:
        for name, like in expected.items():
            array = arrays[name]
            texts = array.dtype.kind == like.dtype.kind == "S"
            columns = (array.ndim, array.shape[1:]) == (like.ndim, like.shape[1:])
            if not columns or not (texts or array.dtype == like.dtype):
                wrong = f"{name} is {array.dtype} {array.shape}, not of the kind of {like.dtype} {like.shape}"
    if wrong:
        raise StateError(f"the saved state of {whose}: {wrong}; rebuild it by replaying the log")
