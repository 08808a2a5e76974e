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

__all__ = ["LINE_WORDS", "UNBOUNDED", "GrowingArray", "head_words", "larger", "room_below", "zeros"]

#: bytes that may be taken where no bound is set
UNBOUNDED = 2**62
#: up to here an array doubles, from there on it grows by a quarter
_DOUBLED_BYTES_MAX = 1 << 20
#: a copy of less takes some ten milliseconds, and what numpy allocates lies on huge pages more often
_MAPPED_BYTES_MIN = 1 << 21
#: of a cache line
LINE_WORDS = 8
_LINE_BYTES, _PAGE_BYTES = 8 * LINE_WORDS, 1 << 21


def _whole_pages(nbytes: int) -> int:
    """Bytes of the huge pages that hold so many: the system puts no other length on them from its beginning."""
    return -(-nbytes // _PAGE_BYTES) * _PAGE_BYTES


def _mapping(nbytes: int) -> mmap.mmap | None:
    """A mapping for an array of so many bytes; None where numpy is to allocate it."""
    if sys.platform != "linux" or nbytes < _MAPPED_BYTES_MIN:
        return None
    mapping = mmap.mmap(-1, _whole_pages(nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without huge pages is only slower
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


def zeros(shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """A zeroed array that begins with a cache line, so that a row of 32 bytes never lies in two of them."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.frombuffer(_mapping(nbytes) or np.zeros(nbytes + _LINE_BYTES, np.uint8), np.uint8)
    begin = -room.ctypes.data % _LINE_BYTES
    return room[begin : begin + nbytes].view(dtype).reshape(shape)


def head_words(words: int) -> int:
    """Words that a row of so many gets where each is a key's: whole cache lines, unless many would be wasted."""
    lines = -(-words // LINE_WORDS) * LINE_WORDS
    return lines if lines - words < LINE_WORDS // 2 else words


def room_below(nbytes: int, *bounds: int | None) -> int:
    """Bytes that may still be taken where so many are, below all of these bounds (None: no bound)."""
    return min([UNBOUNDED, *(bound for bound in bounds if bound is not None)]) - nbytes


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
        self._mapping = _mapping(math.prod(shape) * self._dtype.itemsize)
        return zeros(shape, self._dtype.type) if self._mapping is None else self._mapped(shape)

    def _mapped(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        assert self._mapping is not None
        return np.frombuffer(self._mapping, self._dtype, math.prod(shape)).reshape(shape)

    def _remap(self, shape: tuple[int, ...]) -> bool:
        """Enlarges the mapping; False where there is none, or an array outside looks into it."""
        if self._mapping is None:
            return False
        have = self.array.shape
        del self.array
        try:
            self._mapping.resize(_whole_pages(math.prod(shape) * self._dtype.itemsize))
        except BufferError:
            shape = have
        self.array = self._mapped(shape)
        return shape != have
