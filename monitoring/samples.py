"""A few rows of each period, chosen by their own content, to show what an alert is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays
from features.block import FloatArray, Ids, IntArray
from features.kernel import kernel

__all__ = ["ROWS", "Samples", "row_hash"]

#: rows kept per period
ROWS = 32
_TEXT_BYTES = 64


def row_hash(event_time_ms: IntArray, score: FloatArray) -> npt.NDArray[np.uint64]:
    """(n,) a mix of the row's event time and score."""
    out = np.empty(len(score), np.uint64)
    _mix(event_time_ms.view(np.uint64), score.view(np.uint64), out)
    return out


@kernel
def _mix(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]) -> None:
    """``out`` (n,): splitmix64 of each ``a`` xor the bits of ``b`` turned by half."""
    for i in range(a.shape[0]):
        h = a[i] * np.uint64(0x9E3779B97F4A7C15) ^ (b[i] << np.uint64(32) | b[i] >> np.uint64(32))
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[i] = h ^ (h >> np.uint64(31))


class Samples:
    """The rows of one period with the smallest hashes, the earlier one of equals: ``hashes`` (k,), ``ids`` (k,) bytes
    (at most 64 of each id), ``rows`` (k, d + 1) features and score. The order of blocks' cuts does not show."""

    def __init__(self, columns: int) -> None:
        self.hashes = np.zeros(0, np.uint64)
        self.ids = np.zeros(0, f"S{_TEXT_BYTES}")
        self.rows = np.zeros((0, columns))

    def add(self, at: IntArray, hashes: npt.NDArray[np.uint64], ids: Ids, x: FloatArray, score: FloatArray) -> None:
        """The rows ``at`` (k,), rising, of columns (n,) in log order; only those that stay are looked at further."""
        if len(self.hashes) == ROWS:
            at = at[hashes[at] < self.hashes[-1]]
        elif len(at) > ROWS:
            at = np.sort(at[np.argsort(hashes[at], kind="stable")[:ROWS]])
        if len(at) == 0:
            return
        texts = np.array([text[:_TEXT_BYTES] for text in ids.take(at).texts()], f"S{_TEXT_BYTES}")
        all_hashes = np.concatenate([self.hashes, hashes[at]])
        keep = np.argsort(all_hashes, kind="stable")[:ROWS]
        self.hashes = all_hashes[keep]
        self.ids = np.concatenate([self.ids, texts])[keep]
        self.rows = np.concatenate([self.rows, np.column_stack([x[at], score[at]])])[keep]

    def state(self) -> Arrays:
        """``hashes``, ``ids``, ``rows``."""
        return {"hashes": self.hashes, "ids": self.ids, "rows": self.rows}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`."""
        self.hashes, self.rows = arrays["hashes"].copy(), arrays["rows"].copy()
        self.ids = arrays["ids"].astype(f"S{_TEXT_BYTES}")
