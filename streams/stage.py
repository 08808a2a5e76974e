"""What every stage's task does beside its own work: skip what the state has seen, dead-letter, measure."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from streams.codec import Dead
from streams.log import OutBatch, RecordBatch
from streams.topics import DEAD_LETTERS

__all__ = ["Meters", "dead_letters", "fresh_part"]


@dataclass(slots=True)
class Meters:
    """Counts and CPU seconds of one worker, over all its tasks. Replayed records count only as ``replayed``."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the CPU seconds that this thread spends inside to part ``name``: waiting for others does not count."""
        started = time.thread_time()
        try:
            yield
        finally:
            self.seconds[name] += time.thread_time() - started


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
