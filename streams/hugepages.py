"""Joins huge pages again that a fork broke into small ones.

While a forked child lives, a write of the parent to a huge page breaks it into 512 small ones, all of which the next
fork then has to visit: measured 20 ms per gigabyte instead of 1. The system joins them by itself, but takes minutes.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["join_pages"]

_HUGE_BYTES = 2 << 20
#: MADV_COLLAPSE, of Linux 6.1
_COLLAPSE = 25
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p ")

Advise = Callable[[ctypes.c_void_p, ctypes.c_size_t, int], int]


@functools.cache
def _advise() -> Advise | None:
    return None if sys.platform != "linux" else ctypes.CDLL(None).madvise


def join_pages() -> int:
    """Joins what it can of the memory for which huge pages are wanted; returns its bytes.

    Takes some 0.3 s per gigabyte, holds neither the interpreter's lock nor, for longer than a page, the memory's: meant
    for a thread of its own. Does nothing where the system cannot.
    """
    advise = _advise()
    if advise is None:
        return 0
    ranges = list(_broken(Path("/proc/self/smaps").read_text()))
    return sum(size for begin, size in ranges if advise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _COLLAPSE) == 0)


def _broken(smaps: str) -> Iterator[tuple[int, int]]:
    """(address, size) of the mappings that want huge pages and have some small ones; whole huge pages of them."""
    begin = end = resident = huge = 0
    for line in smaps.splitlines():
        if match := _MAPPING.match(line):
            begin, end = (int(text, 16) for text in match.groups())
            begin, end = -(-begin // _HUGE_BYTES) * _HUGE_BYTES, end // _HUGE_BYTES * _HUGE_BYTES
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) << 10
        elif line.startswith("AnonHugePages:"):
            huge = int(line.split()[1]) << 10
        elif line.startswith("VmFlags:"):
            if " hg" in line and end - begin > 0 and resident - huge >= _HUGE_BYTES:
                yield begin, end - begin
            begin = end = 0
