"""Joining huge pages: which memory, and that it works where the system can."""

from __future__ import annotations

import mmap
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from streams import hugepages
from streams.hugepages import join_pages

_SMAPS = """\
7f0000100000-7f0000900000 rw-p 00000000 00:00 0
Rss:                8192 kB
AnonHugePages:      2048 kB
VmFlags: rd wr mr mw me ac sd hg
7f0001000000-7f0001800000 rw-p 00000000 00:00 0
Rss:                8192 kB
AnonHugePages:      8192 kB
VmFlags: rd wr mr mw me ac sd hg
7f0002000000-7f0002800000 rw-p 00000000 00:00 0
Rss:                7168 kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac sd
7f0003000000-7f0003800000 r--p 00000000 fe:00 123    /usr/lib/x.so
Rss:                8192 kB
AnonHugePages:         0 kB
VmFlags: rd mr mw me ac sd hg
7f0004100000-7f0004280000 rw-p 00000000 00:00 0
Rss:                1536 kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac sd hg
7f0005000000-7f0005400000 rw-p 00000000 00:00 0                          [heap]
Rss:                4000 kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac sd
7f0006000000-7f0006400000 rw-p 00000000 00:00 0
Rss:                4096 kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac sd nh
7f0007000000-7f0007400000 rw-p 00000000 fe:00 123    /usr/lib/x.so
Rss:                4096 kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac sd
7f0008000000-7f0008200000 rw-p 00000000 00:00 0
Rss:                2048 kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac sd
"""


def test_broken_memory_that_wants_huge_pages_and_dense_memory() -> None:
    assert list(hugepages._broken(_SMAPS)) == [(0x7F0000200000, 0x600000), (0x7F0005000000, 0x400000)]


def test_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepages, "_advise", lambda: None)
    assert join_pages() == 0
    monkeypatch.setattr(hugepages, "_advise", lambda: lambda *_: -1)
    assert join_pages() == 0


def huge_bytes(address: int) -> int:
    """Bytes on huge pages of the mapping that holds the address."""
    for mapping in Path("/proc/self/smaps").read_text().split("VmFlags:"):
        for begin, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ", mapping, re.MULTILINE):
            if int(begin, 16) <= address < int(end, 16):
                return int(re.search(r"AnonHugePages: +([0-9]+)", mapping)[1]) << 10
    raise AssertionError(f"{address:x} is not mapped")


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are broken by a fork on Linux only")
def test_what_a_fork_broke_is_joined() -> None:
    mapping = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(mapping, np.uint8)
    array[:] = 7
    address = array.ctypes.data
    if not (before := huge_bytes(address)):
        pytest.skip("this system gives no huge pages: /sys/kernel/mm/transparent_hugepage/enabled")
    pipe = os.pipe()
    with warnings.catch_warnings():  # of threads: the child does nothing
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.read(pipe[0], 1)
        os._exit(0)
    array[:: 1 << 20] = 8
    os.write(pipe[1], b"x")
    os.waitpid(pid, 0)
    for number in pipe:
        os.close(number)
    assert huge_bytes(address) < before
    if not join_pages():
        pytest.skip("this kernel joins pages only by itself: MADV_COLLAPSE came with Linux 6.1")
    assert huge_bytes(address) == before
    assert array[1 << 20] == 8 and array[1] == 7
