"""Bins, periods and distances the slow way: a loop over rows, obvious sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def bin_of(value: float, edges: Sequence[float], discrete: bool) -> int:
    """0..15 the edges at or below it, 16 unseen, 17 missing."""
    if math.isnan(value):
        return 17
    if discrete and value not in edges:
        return 16
    return sum(edge <= value for edge in edges)


def fine_bin(p: float) -> int:
    """Of 240 bins of log odds from -12 to 12."""
    p = min(max(p, 1e-15), 1 - 1e-15)
    return min(max(math.floor((math.log(p / (1 - p)) + 12) * 10), 0), 239)


def closings(rows: Iterable[tuple[int, int]], length: int, allowance: int) -> list[tuple[int, list[int]]]:
    """(period, its rows) in the order in which they close, of rows (event time, clock), one by one."""
    now: int | None = None
    pending: dict[int, list[int]] = {}
    closed: list[tuple[int, list[int]]] = []
    for i, (event_time, clock) in enumerate(rows):
        now = clock if now is None else max(now, clock)
        limit = (now - allowance) // length
        closed += [(p, pending.pop(p)) for p in sorted(pending) if p < limit]
        if event_time // length >= limit:
            pending.setdefault(event_time // length, []).append(i)
    return closed


def psi(now: Sequence[float], then: Sequence[float]) -> float:
    """Of shares."""
    return sum((p - q) * math.log(p / q) for p, q in zip(now, then, strict=True))
