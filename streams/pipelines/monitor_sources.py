"""How far the sources of a stage are together, by the watermarks and idle marks in its log (rule 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, of_texts, texts_of
from features.plan import StateError
from streams.shuffle import Shuffled

__all__ = ["Sources"]


@dataclass(slots=True)
class _Source:
    watermark_ms: int | None = None
    idle: bool = False
    #: the source offset up to which its sender had come
    next_offset: int = 0


class Sources:
    """The time that all sources (topic, partition) have passed that are not idle. A source that never sent anything is
    waited for; where all are idle, everything is there up to the newest time of any. One that wakes with old rows sets
    the time back: who has acted on a later one keeps to that.

    The time is never beyond the newest that a source of ``leading`` has told, and there is none before: the clock of
    whoever writes labels may be anything, and no later row could undo a time in the far future.
    """

    def __init__(self, sources: Iterable[tuple[str, int]], leading: str) -> None:
        self._sources = {source: _Source() for source in sources}
        self._leading = leading

    def push(self, message: Shuffled) -> int | None:
        """The log's next message; returns the time after it, None before there is one."""
        source = self._sources.setdefault((message.source.topic, message.source.partition), _Source())
        overtaken = message.next_offset < source.next_offset
        source.next_offset = max(source.next_offset, message.next_offset)
        mark = message.watermark_ms
        if mark is not None and (source.watermark_ms is None or mark > source.watermark_ms):
            source.watermark_ms = mark
        if message.kind != "idle":
            source.idle = False
        elif not overtaken:  # else its sender lost the partition and does not know yet
            source.idle = True
        return self._time_ms()

    def _time_ms(self) -> int | None:
        awake = [source.watermark_ms for source in self._sources.values() if not source.idle]
        marks = [mark for mark in awake if mark is not None]
        led = [source.watermark_ms for (topic, _), source in self._sources.items() if topic == self._leading]
        newest = max((mark for mark in led if mark is not None), default=None)
        if len(marks) < len(awake) or newest is None:
            return None
        return min([*marks, newest])

    def to_arrays(self) -> Arrays:
        """``topics`` (s,), ``sources`` (s, 4) int64 by topic and partition: partition, next offset, idle, whether there
        is a watermark; ``watermarks_ms`` (s,), 0 where there is none."""
        sources = sorted(self._sources.items())
        told = [(p, s.next_offset, s.idle, s.watermark_ms is not None) for (_, p), s in sources]
        return {
            "topics": of_texts(topic for (topic, _), _ in sources),
            "sources": np.array(told, np.int64).reshape(-1, 4),
            "watermarks_ms": np.array([s.watermark_ms or 0 for _, s in sources], np.int64),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from where the one was that gave these arrays. StateError: it knows less sources."""
        topics, told, marks = texts_of(arrays["topics"]), arrays["sources"].tolist(), arrays["watermarks_ms"].tolist()
        sources = {
            (topic, partition): _Source(mark if marked else None, bool(idle), next_offset)
            for topic, (partition, next_offset, idle, marked), mark in zip(topics, told, marks, strict=True)
        }
        if unknown := self._sources.keys() - sources.keys():
            names = ", ".join(f"{topic}/{partition}" for topic, partition in sorted(unknown))
            raise StateError(f"the saved state knows nothing of {names}: partitions were added; replay the log")
        self._sources = sources
