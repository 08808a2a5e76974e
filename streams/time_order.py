"""The one order of rows by event time, for those that wait to be merged and for those of a file."""

from __future__ import annotations

import numpy as np

from features.block import Ids, IntArray, key_of_text

__all__ = ["order_by_time"]


def order_by_time(times: IntArray, ids: Ids) -> IntArray:
    """(n,) positions of the rows by (time, id), equal ones as they are.

    Ids that are integers come first, by value; then texts, by their UTF-8 bytes. "5" is the integer that it says.
    """
    n = len(times)
    rises = times[1:] > times[:-1]
    if ids.ints is not None:
        rises |= (times[1:] == times[:-1]) & (ids.ints[1:] >= ids.ints[:-1])
    if rises.all():
        return np.arange(n, dtype=np.int64)
    if ids.ints is not None:
        return np.lexsort((ids.ints, times)).astype(np.int64)
    texts = ids.mixed or []
    order = np.argsort(times, kind="stable")
    edges = np.flatnonzero(np.diff(times[order], prepend=times[order[0]] - 1, append=times[order[-1]] + 1))
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if end - begin > 1:
            order[begin:end] = sorted(order[begin:end].tolist(), key=lambda row: _rank(texts[row]))
    return order


def _rank(value: int | str) -> tuple[bool, int, bytes]:
    text = str(value)
    is_text, _ = key_of_text(text)
    return (True, 0, text.encode("utf-8", "surrogatepass")) if is_text else (False, int(text), b"")
