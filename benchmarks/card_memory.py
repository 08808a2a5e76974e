"""Memory of the card stage with very many cards: the default set, in tiles or exact, filled as traffic would.

Cards are drawn independently of each other, ``events_a_day`` per card on average, over ``days`` days, so that the
longest window is full at the end; the state is bounded by ``bytes_max``, as a worker's is by ``state_mb_max``. Bias: no
card is idle or new, and none has many more events than the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from features.block import Block, Ids
from features.engine import entity_state, warm
from features.fraud import DEFAULT, TILED

__all__ = ["run"]

_DAY_MS = 86_400_000
_START_MS = 1_600_000_000_000
_BLOCK_ROWS = 20_000


def run(
    cards: int,
    *,
    tiled: bool,
    days: int = 32,
    events_a_day: float = 1.3,
    bytes_max: int = 8 * 10**9,
    notify: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Fills the state; BoundError where it takes more than ``bytes_max``.

    ``state_mb`` is what it has reserved, ``resident_mb`` what of the process is in memory more than before,
    ``bytes_per_card`` the latter by card; ``us_per_event`` CPU of the last tenth of the events, ``ms_longest_block``
    the longest that a block of 20,000 rows took.
    """
    features = TILED if tiled else DEFAULT
    warm(features)
    state = entity_state(features.for_stage("card_id"), labelled=False, bytes_max=bytes_max)
    events, before = int(cards * events_a_day * days), _resident_bytes()
    rng = np.random.default_rng(7)
    spent: list[float] = []
    longest, said = 0.0, time.monotonic()
    for begin in range(0, events, _BLOCK_ROWS):
        numbers = np.arange(begin, min(begin + _BLOCK_ROWS, events))
        times = _START_MS + numbers * (days * _DAY_MS) // events
        ids = {"card_id": Ids(ints=rng.integers(0, cards, len(numbers)))}
        block = Block(
            "bench", 0, 0, numbers, times, ids, {"event_time": times, "amount": rng.gamma(2.0, 30.0, len(times))}
        )
        started, cpu = time.perf_counter(), time.thread_time()
        state.process(block)
        spent.append((time.thread_time() - cpu) / len(numbers) * 1e6)
        longest = max(longest, time.perf_counter() - started)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            notify(f"{begin / events:.0%} of {events:,} events, {state.nbytes / 1e6:,.0f} MB")
    resident = _resident_bytes() - before
    return {
        "cards": cards,
        "mode": "tiled" if tiled else "exact",
        "days": days,
        "events": events,
        "events_a_day": events_a_day,
        "state_mb": round(state.nbytes / 1e6),
        "resident_mb": round(resident / 1e6),
        "bytes_max_mb": round(bytes_max / 1e6),
        "bytes_per_card": round(resident / cards),
        "us_per_event": round(float(np.median(spent[-max(1, len(spent) // 10) :])), 3),
        "ms_longest_block": round(longest * 1e3, 1),
    }


def _resident_bytes() -> int:
    """Bytes of this process that are in memory (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmRSS; the memory of a process is measured on Linux only")
