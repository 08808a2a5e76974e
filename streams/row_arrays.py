"""Rows that wait for others as plain arrays, and back: what a checkpoint holds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, of_texts, texts_of
from streams.rows import Layout, Rows

__all__ = ["rows_from_arrays", "rows_to_arrays"]

_WRITE_TEXTS = msgspec.msgpack.Encoder().encode
_READ_TEXTS = msgspec.msgpack.Decoder(list[list[list[Any]]]).decode


def rows_to_arrays(parts: Sequence[Rows]) -> Arrays:
    """The arrays of these parts, each with at least one row.

    ``layouts`` (l, 2) int64: how many words and texts each layout has, ``layout_names`` (sum,) their names;
    ``parts`` (p, 2) int64: number of the layout, rows; ``words`` int64: the words of all parts, one after the other,
    each (words, rows); ``texts`` uint8: the texts of all parts in msgpack, a list of lists of lists.
    """
    numbers: dict[Layout, int] = {}
    heads = [(numbers.setdefault(part.layout, len(numbers)), len(part)) for part in parts]
    ends = list(accumulate((part.words.size for part in parts), initial=0))
    words = np.empty(ends[-1], np.int64)
    for part, begin, end in zip(parts, ends, ends[1:], strict=False):
        words[begin:end].reshape(part.words.shape)[:] = part.words
    return {
        "layouts": np.array([(len(of.words), len(of.texts)) for of in numbers], np.int64).reshape(-1, 2),
        "layout_names": of_texts(name for of in numbers for name in (*of.words, *of.texts)),
        "parts": np.array(heads, np.int64).reshape(-1, 2),
        "words": words,
        "texts": np.frombuffer(_WRITE_TEXTS([part.texts for part in parts]), np.uint8),
    }


def rows_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> list[Rows]:
    """The parts that `rows_to_arrays` was given, each in memory of its own, so that it goes when the part does."""
    names = iter(texts_of(arrays["layout_names"]))
    layouts = [
        Layout(tuple(next(names) for _ in range(words)), tuple(next(names) for _ in range(texts)))
        for words, texts in arrays["layouts"].tolist()
    ]
    parts, begin = [], 0
    texts_of_parts = _READ_TEXTS(arrays["texts"].tobytes())
    for (number, n), texts in zip(arrays["parts"].tolist(), texts_of_parts, strict=True):
        shape = (len(layouts[number].words), n)
        end = begin + shape[0] * n
        parts.append(Rows(layouts[number], arrays["words"][begin:end].reshape(shape).copy(), texts))
        begin = end
    return parts
