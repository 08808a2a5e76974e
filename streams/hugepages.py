"""Joins small pages to huge ones: those that a fork broke, and those of large memory that never had any.

While a forked child lives, a write of the parent to a huge page breaks it into 512 small ones, all of which the next
fork then has to visit: measured 20 to 40 ms per gigabyte instead of 1. The system joins them by itself, but takes
minutes. What the C library and the interpreter allocate lies on small pages in most systems: in a worker with a million
cards, 0.4 of 1.1 GB.
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
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p [0-9a-f]+ [0-9a-f:]+ (\d+)")
#: memory that belongs to no file is joined where it is large and so much of it is there, as the rest would be filled in
_DENSE = 0.9
_DENSE_BYTES_MIN = 4 << 20

Advise = Callable[[ctypes.c_void_p, ctypes.c_size_t, int], int]


@functools.cache
def _advise() -> Advise | None:
    return None if sys.platform != "linux" else ctypes.CDLL(None).madvise


def join_pages() -> int:
    """Joins what it can of the memory for which huge pages are wanted, and of what is dense; returns its bytes.

    Takes some 0.3 s per gigabyte, holds neither the interpreter's lock nor, for longer than a page, the memory's: meant
    for a thread of its own. Does nothing where the system cannot.
    """
    advise = _advise()
    if advise is None:
        return 0
    ranges = list(_broken(Path("/proc/self/smaps").read_text()))
    return sum(size for begin, size in ranges if advise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _COLLAPSE) == 0)


def _broken(smaps: str) -> Iterator[tuple[int, int]]:
    """(address, size) of the mappings that want huge pages, or are dense, and have some small ones; whole huge pages of
    them."""
    begin = end = resident = huge = size = 0
    for line in smaps.splitlines():
        if match := _MAPPING.match(line):
            begin, end = (int(text, 16) for text in match.groups()[:2])
            size = 0 if match[3] != "0" else end - begin
            begin, end = -(-begin // _HUGE_BYTES) * _HUGE_BYTES, end // _HUGE_BYTES * _HUGE_BYTES
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) << 10
        elif line.startswith("AnonHugePages:"):
            huge = int(line.split()[1]) << 10
        elif line.startswith("VmFlags:"):
            # nh: not for any reason
            wanted = " hg" in line or (size >= _DENSE_BYTES_MIN and resident >= _DENSE * size and " nh" not in line)
            if wanted and end - begin > 0 and resident - huge >= _HUGE_BYTES:
                yield begin, end - begin
            begin = end = 0
