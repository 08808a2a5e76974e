"""How tasks of the fraud pipeline send rows to a stage behind them, and tell it how far they are (rule 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, check_like, of_optional, optional_of
from features.block import Block, IntArray
from streams.log import TP, OutBatch
from streams.shuffle import MessageKind, Sent, pack_for
from streams.topics import BY_TERMINAL

if TYPE_CHECKING:
    from streams.pipelines.fraud import FraudPipeline

__all__ = ["Sender", "Teller"]

#: a source that is idle says so again after so long: another's waking may have ended what it said, which is not heard
#: where none of the topic is read; and a sender that lost its partition without knowing may have said the opposite
_IDLE_AGAIN_S = 10.0


class Teller:
    """Tells all partitions of ``topic`` how far the source ``tp`` is, or that it is idle: decisions by the clock, and
    so no part of a state. A restarted task makes them anew."""

    def __init__(self, pipeline: FraudPipeline, tp: TP, topic: str, interval_s: float = 0.0) -> None:
        self._pipeline = pipeline
        self._tp = tp
        self._topic = topic
        self._interval_s = interval_s
        self._told_ms: int | None = None
        self._told_s = float("-inf")
        self._told_idle = False
        #: what is in the log may say that this source is idle, from before this task or from this task itself
        self.may_sleep = True
        self._idle_told_s = 0.0
        self._quiet_since: float | None = None
        self._wakes_heard = 0

    def sent(self) -> None:
        """Rows go to the topic."""
        self._told_idle = False
        self._quiet_since = None

    def tick(self, now_s: float, at_end: bool, watermark_ms: int | None, next_offset: int) -> list[OutBatch]:
        """What is to be told now. A source that has sent nothing yet is waited for far longer: its first records may be
        on their way."""
        if self._wakes_heard != self._pipeline.wakes_heard:
            self._wakes_heard = self._pipeline.wakes_heard
            if self._told_idle:
                self._told_idle, self._quiet_since = False, None
        if self._told_idle and now_s - self._idle_told_s < _IDLE_AGAIN_S:
            return []
        kind: MessageKind | None = None
        patience_s = self._pipeline.first_wait_s if watermark_ms is None else self._pipeline.idle_after_s
        if watermark_ms != self._told_ms:
            if now_s - self._told_s < self._interval_s:
                return []
            kind = "watermark"
            self._told_ms, self._told_s = watermark_ms, now_s
        elif not at_end:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now_s
        elif now_s - self._quiet_since >= patience_s and self._confirmed(self._quiet_since + patience_s):
            kind = "idle"
            self._told_idle = self.may_sleep = True
            self._idle_told_s = now_s
        return [] if kind is None else self._mark(kind, watermark_ms, next_offset)

    def _confirmed(self, since_s: float) -> bool:
        if self._told_idle:  # it is told again: what was confirmed then is old
            since_s = max(since_s, self._idle_told_s + _IDLE_AGAIN_S)
        return self._pipeline.end_confirmed(self._tp, since_s)

    def wake(self, watermark_ms: int | None, next_offset: int) -> list[OutBatch]:
        """Tells that this source is not idle, if the log may say that it is."""
        if not self.may_sleep:
            return []
        self.may_sleep = self._told_idle = False
        self._quiet_since = None
        return self._mark("watermark", watermark_ms, next_offset)

    def _mark(self, kind: MessageKind, watermark_ms: int | None, next_offset: int) -> list[OutBatch]:
        none = np.empty(0, np.int64)
        block = Block(self._tp.topic, self._tp.partition, next_offset, none, none)
        sent = Sent(self._pipeline.source(self._tp), block, watermark_ms)
        return pack_for(self._topic, kind, [sent], None, self._pipeline.infos[self._topic].partitions)


class Sender:
    """A task that shuffles rows to the terminal stage, with the watermarks and idle marks of rule 5."""

    def __init__(self, pipeline: FraudPipeline, tp: TP) -> None:
        self.pipeline = pipeline
        self.source = pipeline.source(tp)
        self.tp = tp
        self.next_offset = 0
        #: newest time of the rows or labels so far; None before the first
        self.newest_ms: int | None = None
        self.teller = Teller(pipeline, tp, BY_TERMINAL)

    def sent(self, block: Block, times: IntArray) -> Sent:
        """The block as what this source sends; ``times`` are its rows' or labels' times."""
        self.remember(times)
        self.teller.sent()
        return Sent(self.source, block, self.watermark_ms)

    def remember(self, times: IntArray) -> None:
        """Moves on to the newest of these times."""
        if len(times):
            newest = int(times.max())
            self.newest_ms = newest if self.newest_ms is None else max(self.newest_ms, newest)

    @property
    def watermark_ms(self) -> int | None:
        """How far this source has come: what has the newest time may still come, only what is before is complete, and
        where events may be out of order, only what is so much older."""
        return None if self.newest_ms is None else self.newest_ms - 1 - self.pipeline.watermark_delay_ms

    def state(self) -> Arrays:
        """All that `process` depends on, as plain arrays, between two batches; equal for equal logs: ``next_offset``
        (1,), ``newest_ms`` (0 or 1,)."""
        return {"next_offset": np.array([self.next_offset], np.int64), "newest_ms": of_optional(self.newest_ms)}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`, on a task that has seen nothing yet. StateError: of another kind of task or state."""
        check_like(arrays, self.state(), "{}/{}".format(*self.tp))
        self.next_offset = int(arrays["next_offset"][0])
        self.newest_ms = optional_of(arrays["newest_ms"])

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """See `Teller.tick`; in order of arrival the terminal stage waits for nobody."""
        if self.pipeline.order == "arrival":
            return []
        return self.teller.tick(now_s, at_end, self.watermark_ms, self.next_offset)

    def wake(self) -> list[OutBatch]:
        """See `Teller.wake`."""
        if self.pipeline.order == "arrival":
            return []
        return self.teller.wake(self.watermark_ms, self.next_offset)

    @property
    def may_sleep(self) -> bool:
        """Whether the log may say that this source is idle."""
        return self.pipeline.order != "arrival" and self.teller.may_sleep
