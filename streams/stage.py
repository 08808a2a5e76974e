"""What every stage's task does beside its own work: skip what the state has seen, dead-letter, measure."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import orjson

from features.block import BoolArray, IntArray
from streams.codec import Dead
from streams.log import OutBatch, RecordBatch
from streams.topics import DEAD_LETTERS, LATE_EVENTS

__all__ = ["SCORE", "Meters", "dead_letters", "fresh_part", "late_records"]


#: as the stage of a dead letter: it is in the windows, only its score is missing
SCORE = "score"
#: for batches of so many bytes the CPU clock, which is a system call, costs little beside what it measures
_CPU_CLOCK_BYTES = 8_192


class _Part:
    """Adds the seconds between entry and exit to a sum; quicker than a generator's context manager."""

    __slots__ = ("_clock", "_lock", "_name", "_seconds", "_started")

    def __init__(self, seconds: dict[str, float], name: str, clock: Callable[[], float], lock: Lock) -> None:
        self._seconds, self._name, self._clock, self._lock = seconds, name, clock, lock
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = self._clock()

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._seconds[self._name] += self._clock() - self._started


@dataclass(slots=True)
class Meters:
    """Counts and seconds of one worker, over all its tasks. Replayed records count only as ``replayed``.

    Tasks that replay may be on threads of their own: these call `part` and `replayed`, and leave ``counts`` alone.
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: Lock = field(default_factory=Lock)

    def replayed(self, n: int) -> None:
        """So many more records or rows were replayed."""
        with self._lock:
            self.counts["replayed"] += n

    def part(self, name: str, nbytes: int) -> _Part:
        """``with`` it, the seconds spent inside, on batches of so many bytes, are added to part ``name``.

        CPU seconds of this thread, so that waiting for others does not count; for few bytes seconds by the clock.
        """
        clock = time.thread_time if nbytes >= _CPU_CLOCK_BYTES else time.perf_counter
        return _Part(self.seconds, name, clock, self._lock)


def fresh_part(batch: RecordBatch, next_offset: int) -> RecordBatch:
    """The batch without the records below ``next_offset``: the state has them already."""
    if not batch.offsets or batch.offsets[0] >= next_offset:
        return batch
    start = bisect_left(batch.offsets, next_offset)
    return RecordBatch(
        tp=batch.tp,
        offsets=batch.offsets[start:],
        timestamps=batch.timestamps[start:],
        keys=batch.keys[start:],
        values=batch.values[start:],
        headers=lambda i: batch.headers(start + i),
        next_offset=batch.next_offset,
        epoch=batch.epoch,
        replay=batch.replay,
    )


def dead_letters(batch: RecordBatch, dead: Sequence[Dead], stage: str) -> OutBatch:
    """The original bytes, keys and headers of the dead records, with ``error``, ``stage`` and ``source`` headers."""
    tp = batch.tp
    return OutBatch(
        DEAD_LETTERS,
        [batch.values[d.index] for d in dead],
        [batch.keys[d.index] for d in dead],
        None,
        [
            [
                *batch.headers(d.index),
                ("error", d.reason.encode("utf-8", "backslashreplace")),
                ("stage", stage.encode()),
                ("source", f"{tp.topic}/{tp.partition}/{batch.offsets[d.index]}".encode()),
            ]
            for d in dead
        ],
    )


def late_records(
    stage: str,
    events: Sequence[Any],
    keys: Sequence[bytes | None],
    sources: list[bytes],
    lateness_ms: IntArray,
    shed: BoolArray | None = None,
) -> OutBatch:
    """Records of late-events: the event, how late it was, and what was done."""
    done = [f"{what}; not in the windows by {stage}" for what in ("scored and flagged late", "shed, not scored")]
    left_out = [False] * len(events) if shed is None else shed.tolist()
    values = [
        orjson.dumps({"event": event, "lateness_ms": behind, "done": done[out]})
        for event, behind, out in zip(events, lateness_ms.tolist(), left_out, strict=True)
    ]
    headers = [[("stage", stage.encode()), ("source", source)] for source in sources]
    return OutBatch(LATE_EVENTS, values, keys, None, headers)
