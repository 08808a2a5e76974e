"""What the read side holds: all items' published knowledge, the sessions they were visited in, and scratch space."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.block import FloatArray, IntArray
from features.kernel import helper, kernel, signed
from features.shopping_kernels import Codes, Singles
from features.state import Table, table_find, table_remove

__all__ = ["Known", "Numbers", "Popular", "Scratch", "Served", "Sessions", "add_visits"]

Numbers = npt.NDArray[np.int32]

# columns of Known.heads
HELD, SEEN, FIRST, NEWEST, TOUCHED, CATEGORY, PUBLISHED, RECENT = 0, 1, 2, 3, 4, 5, 6, 7
VIEW_WORDS = 8
# columns of Sessions.heads
CODE, TIME, COUNT = 0, 1, 2


class Known(NamedTuple):
    """By item number: neighbours (strongest first), strengths and totals by class, counts, rings of sessions."""

    table: Table
    others: Numbers
    strengths: Singles
    totals: Singles
    counts: Singles
    price: FloatArray
    recent: IntArray
    heads: IntArray


class Sessions(NamedTuple):
    """By sequence number modulo the capacity, a power of two: heads (code, time, items) and the items in order."""

    table: Table
    heads: IntArray
    items: Numbers
    next: IntArray


class Popular(NamedTuple):
    """Items that are looked at most: of all (numbers, best first), and of each category, which are sorted by code."""

    trending: IntArray
    categories: IntArray
    begin: IntArray
    numbers: IntArray


class Scratch(NamedTuple):
    """``mark`` by item and ``touched`` by session: stamps of the row they were last used for, and what for."""

    stamp: IntArray
    mark: IntArray
    touched: IntArray
    similarity: FloatArray
    matched: IntArray
    order: IntArray
    numbers: IntArray
    said: FloatArray
    context: IntArray
    best: FloatArray
    prior: FloatArray


class Served(NamedTuple):
    """What `serve` writes: number, source and prior of each candidate, best first, and their features."""

    numbers: IntArray
    source: npt.NDArray[np.int8]
    prior: FloatArray
    x: FloatArray


@helper
def _forget_oldest(sessions: Sessions) -> None:
    """Makes room in the table for one more session where all places are taken."""
    sequence = sessions.next[0]
    capacity = sessions.heads.shape[0]
    if sequence >= capacity:
        code = np.uint64(sessions.heads[sequence & (capacity - 1), CODE])
        place = table_find(sessions.table, np.uint64(0), code)
        if place >= 0:
            table_remove(sessions.table, place)


@kernel
def add_visits(known: Known, sessions: Sessions, numbers: IntArray, codes: Codes, times: IntArray) -> None:
    """Adds visits, in the order of their times: (n,) item number, session and time each."""
    capacity, longest = sessions.items.shape
    ring = known.recent.shape[1]
    for row in range(numbers.shape[0]):
        number, code = numbers[row], codes[row]
        place = table_find(sessions.table, np.uint64(0), code)
        if place >= 0:
            sequence = signed(sessions.table[place, 2]) - 1
        else:
            _forget_oldest(sessions)
            place = -1 - table_find(sessions.table, np.uint64(0), code)
            sequence = sessions.next[0]
            sessions.next[0] = sequence + 1
            sessions.table[place, 0], sessions.table[place, 1] = np.uint64(0), code
            sessions.table[place, 2] = np.uint64(sequence + 1)
            head = sessions.heads[sequence & (capacity - 1)]
            head[CODE], head[COUNT] = np.int64(code), 0
        at = sequence & (capacity - 1)
        head = sessions.heads[at]
        head[TIME] = times[row] if head[COUNT] == 0 else max(head[TIME], times[row])
        there = False
        for i in range(head[COUNT]):
            there = there or sessions.items[at, i] == number
        if there or head[COUNT] == longest:
            continue
        sessions.items[at, head[COUNT]] = number
        head[COUNT] += 1
        known.recent[number, known.heads[number, RECENT] % ring] = sequence
        known.heads[number, RECENT] += 1
