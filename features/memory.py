"""Zeroed arrays that grow where they are, so that a state of gigabytes is not copied to take one more row.

On Linux a large array lies in a mapping of its own, which the system enlarges by moving page tables: growth costs no
time in proportion to the content, old and new never exist beside each other, and pages that were never written take no
memory. Elsewhere, and while arrays are small, growing is a copy.
"""

from __future__ import annotations

import math
import mmap
import sys
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["UNBOUNDED", "GrowingArray", "larger"]

#: bytes that may be taken where no bound is set
UNBOUNDED = 2**62
#: up to here an array doubles, from there on it grows by a quarter
_DOUBLED_BYTES_MAX = 1 << 20
#: a copy of less takes some ten milliseconds, and what numpy allocates lies on huge pages more often
_MAPPED_BYTES_MIN = 1 << 25


def larger(rows: int, row_bytes: int) -> int:
    """Rows to grow to: twice as many while copies are cheap, then a quarter more, as memory may be short."""
    return 2 * rows if rows * row_bytes < _DOUBLED_BYTES_MAX else rows + rows // 4


class GrowingArray:
    """An array that grows along its first axis, new rows being zero.

    ``array`` is to be asked for again after `grow`, and not held across it: growing copies where somebody holds it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._dtype = np.dtype(dtype)
        self._mapping: mmap.mmap | None = None
        self.array: npt.NDArray[Any] = self._allocate(shape)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.array.shape[1:]) * self._dtype.itemsize

    def grow(self, rows: int) -> None:
        """``array`` has this many rows; a smaller number than it has changes nothing."""
        shape = (rows, *self.array.shape[1:])
        if rows <= len(self.array) or self._remap(shape):
            return
        old, mapping = self.array, self._mapping
        self.array = self._allocate(shape)
        self.array[: len(old)] = old
        del mapping  # closes with the last array that looks into it

    def _allocate(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        nbytes = math.prod(shape) * self._dtype.itemsize
        self._mapping = None
        if sys.platform != "linux" or nbytes < _MAPPED_BYTES_MIN:
            return np.zeros(shape, self._dtype)
        self._mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a system without huge pages is only slower
            self._mapping.madvise(mmap.MADV_HUGEPAGE)
        return self._mapped(shape)

    def _mapped(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        assert self._mapping is not None
        return np.frombuffer(self._mapping, self._dtype).reshape(shape)

    def _remap(self, shape: tuple[int, ...]) -> bool:
        """Enlarges the mapping; False where there is none, or an array outside looks into it."""
        if self._mapping is None:
            return False
        have = self.array.shape
        del self.array
        try:
            self._mapping.resize(math.prod(shape) * self._dtype.itemsize)
        except BufferError:
            shape = have
        self.array = self._mapped(shape)
        return shape != have
