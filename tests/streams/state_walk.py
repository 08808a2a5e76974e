"""Compares two objects attribute by attribute, all the way down: what a restored task forgot shows here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from features import fifo, labelled, state
from features.fifo import Fifo
from features.labelled_windows import LabelledWindows
from features.state import KeySlots

#: What the walk does not compare, and why. Where the rows of windows lie is compared by the stages' arrays instead.
UNCOMPARED: dict[str, str] = {
    "Sender.pipeline": "what all tasks of a worker share",
    "Teller": "decided by the clock",
    "LabelOutlet": "decided by the clock",
    "VectorOutlet._pipeline": "what all tasks of a worker share",
    "TerminalTask.pipeline": "what all tasks of a worker share",
    "TerminalTask._waits_since": "decided by the clock",
    "TerminalTask._come_to_ms": "decided by the clock",
    "EventTimeOrder._arrivals": "the next number to be given; the order of those given is compared",
    "_Wait.arrival": "numbered anew, in the same order",
    "KeySlots.table": "where keys lie",
    "KeySlots._free": "where keys lie",
    "KeySlots._hand": "what is swept next never shows",
    "KeySlots._swept": "what is swept next never shows",
    "RingPool._pool": "where rows lie",
    "RingPool._heads": "where rows lie",
    "RingPool.free": "where rows lie",
    "Spill": "which rows are spilled never shows",
    "EntityWindows._unswept": "when is swept next never shows",
    "EntityWindows._hand": "what is swept next never shows",
    "EntityWindows._transactions": "where transactions lie",
    "RingWindows._unswept": "when is swept next never shows",
    "RingWindows._seen": "scratch of one row",
    "RingWindows._uses": "scratch of one row",
    "RingWindows._use": "scratch of one row",
    "Fifo.rows": "where rows lie",
    "Fifo.table": "where rows lie",
    "Plan": "settings, and scratch of one row",
    "HistoryPlan": "settings, and scratch of one row",
    "TilePlan": "settings, and scratch of one row",
}
#: of arrays of numbers, those that are no matter of where rows lie
_TELLING = {
    (KeySlots, "_meta"): [state.STREAM],
    (Fifo, "meta"): [fifo.FORCED, fifo.STREAM],
    (LabelledWindows, "_counters"): [labelled.REPEATED, labelled.CONTRADICTED, labelled.UNKNOWN],
}


def _names(value: Any) -> Iterator[str]:
    """Attributes of an object, whether it has slots, fields or a dictionary."""
    if hasattr(value, "_fields"):
        yield from value._fields
        return
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots
    yield from getattr(value, "__dict__", ())


def _uncompared(value: Any, name: str | None = None) -> bool:
    return any(
        (cls.__name__ if name is None else f"{cls.__name__}.{name}") in UNCOMPARED for cls in type(value).__mro__
    )


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Places where the two differ."""
    if type(a) is not type(b):
        return [f"{at}: {a!r} and {b!r}"]
    if _uncompared(a):
        return []
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return [] if same else [f"{at}: {a!r} and {b!r}"]
    if isinstance(a, Mapping):
        found = [] if a.keys() == b.keys() else [f"{at}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return found + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{at}[{key}]")]
    if isinstance(a, list | tuple) and not hasattr(a, "_fields"):
        if len(a) != len(b):
            return [f"{at}: {len(a)} and {len(b)}"]
        if a and hasattr(a[0], "arrival"):  # a heap: how it lies in its list does not matter
            a, b = (sorted(heap, key=lambda wait: wait.arrival) for heap in (a, b))
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{at}[{i}]")]
    names = [] if isinstance(a, int | float | str | bytes | type | frozenset) else list(dict.fromkeys(_names(a)))
    if not names:
        return [] if a == b else [f"{at}: {a!r} and {b!r}"]
    found = []
    for name in names:
        if _uncompared(a, name):
            continue
        x, y = getattr(a, name), getattr(b, name)
        for cls in type(a).__mro__:
            if places := _TELLING.get((cls, name)):
                x, y = x[places], y[places]
        found += differences(x, y, f"{at}.{name}")
    return found
