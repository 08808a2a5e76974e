"""The partitions that are a worker's now, and the batches of each between the consumer thread and the stages.

The two sides meet here, under one condition variable: the consumer thread hands batches out, the stages run on the
event loop and say `Assignment.begin` and `Assignment.done`; a commit closes the gate between.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from streams.log import TP, RecordBatch

__all__ = ["Assignment", "Partition", "split_batch"]

#: a broker that took longer to answer has other things to catch up with too, new records among them
_PROMPT_S = 2.0
#: and for so long after its word that there are none counts for nothing
_DOUBT_S = 2.0


@dataclass(slots=True)
class Partition:
    """One assignment of a partition. Offsets are the next to be read, done, committed."""

    epoch: int
    #: batches below this were sent before the restart: state only, no outputs
    live_from: int
    #: first offset that is not done
    next_done: int
    committed: int
    #: the state is not whole at ``live_from`` yet
    recovering: bool = True
    #: the state is being brought from where it is kept; records that come meanwhile are read again
    loading: bool = True
    #: where to read from, once that is known, and whether the consumer is there
    start: int | None = None
    sought: bool = False
    paused: bool = False
    at_end: bool = False
    #: whether somebody wants to know that for certain, and when the broker has last said so
    end_wanted: bool = False
    end_confirmed_at: float = -math.inf
    end_doubted_at: float = -math.inf
    #: how many of the batches in flight a stage has begun: the first, or none
    begun: int = 0
    in_flight: deque[RecordBatch] = field(default_factory=deque)


def split_batch(batch: RecordBatch, live_from: int, max_records: int, max_bytes: int) -> Iterator[RecordBatch]:
    """The batch in pieces: cut at ``live_from`` (a piece is replay as a whole or not at all) and at the bounds."""
    n = len(batch)
    if 0 < n <= max_records and (batch.offsets[0] < live_from) == (batch.offsets[-1] < live_from):
        size = sum(map(len, filter(None, batch.values)))
        if size <= max_bytes:  # nearly always: nothing is to be looked at record by record
            batch.replay, batch.nbytes = batch.offsets[0] < live_from, size
            yield batch
            return
    start = 0
    while start < n:
        replay = batch.offsets[start] < live_from
        size = 0
        end = start
        while end < n and end - start < max_records and (batch.offsets[end] < live_from) == replay:
            value = batch.values[end]
            more = len(value) if value is not None else 0
            if size + more > max_bytes and end > start:
                break
            size += more
            end += 1
        piece = _piece(batch, start, end, replay)
        piece.nbytes = size
        yield piece
        start = end


def _piece(batch: RecordBatch, start: int, end: int, replay: bool) -> RecordBatch:
    if start == 0 and end == len(batch):
        batch.replay = replay
        return batch
    return RecordBatch(
        tp=batch.tp,
        offsets=batch.offsets[start:end],
        timestamps=batch.timestamps[start:end],
        keys=batch.keys[start:end],
        values=batch.values[start:end],
        headers=lambda i: batch.headers(start + i),
        next_offset=batch.next_offset if end == len(batch) else batch.offsets[end],
        replay=replay,
    )


class Assignment:
    """Thread-safe. ``batch_records`` and ``batch_bytes`` bound a batch."""

    def __init__(self, batch_records: int, batch_bytes: int) -> None:
        self.cond = threading.Condition()
        self.partitions: dict[TP, Partition] = {}
        #: when something was last done, or there was nothing to do
        self.progress_at = time.monotonic()
        #: asked, with the lock held, whether the stages must hold still for another reason than a commit
        self.held: Callable[[], bool] = lambda: False
        #: asked, with the lock held, whether these batches may begin
        self.admits: Callable[[Sequence[RecordBatch]], bool] = lambda batches: True
        #: partitions that were given up with nothing sent that is not committed, and up to which offset that is
        self.settled: dict[TP, int] = {}
        self._batch_records, self._batch_bytes = batch_records, batch_bytes
        self._epoch = 0
        self._busy = 0
        self._gate_closed = False

    # -- called by the stages --

    def begin(self, batches: Sequence[RecordBatch]) -> list[RecordBatch] | None:
        """Before batches are processed: those to process (a stale one must be thrown away); None while a commit waits
        for what was begun before."""
        with self.cond:
            if self._gate_closed:
                return None
            if self.held():
                self.progress_at = time.monotonic()
                return None
            fresh = [batch for batch in batches if self.owns(batch.tp, batch.epoch)]
            if not self.admits(fresh):
                return None  # no progress: what is never decided is a stall
            for batch in fresh:
                self.partitions[batch.tp].begun = 1
            self._busy += len(fresh)
            return fresh

    def done(self, batches: Sequence[RecordBatch]) -> None:
        """The batches' effects are in the state and their outputs are in the producer, or kept for a transaction."""
        with self.cond:
            self._busy -= len(batches)
            self.progress_at = time.monotonic()
            for batch in batches:
                if self.owns(batch.tp, batch.epoch):
                    partition = self.partitions[batch.tp]
                    head = partition.in_flight.popleft()
                    assert head is batch, "batches of a partition are done in the order in which they were handed out"
                    partition.begun = 0
                    partition.next_done = batch.next_offset
            self.cond.notify_all()

    def waiting(self) -> None:
        """The stage is alive and waits for something outside (a full producer queue): the watchdog holds still."""
        with self.cond:
            self.progress_at = time.monotonic()

    # -- asked by anybody --

    def positions(self) -> dict[TP, int]:
        """Partitions that are ours now and the first offset of each that is not done."""
        with self.cond:
            return {tp: p.next_done for tp, p in self.partitions.items()}

    def epochs(self) -> dict[TP, int]:
        """Partitions that are ours now and whose tasks are there, each with the number of its assignment."""
        with self.cond:
            return {tp: p.epoch for tp, p in self.partitions.items() if not p.loading}

    def at_end(self) -> dict[TP, tuple[int, bool]]:
        """For each partition whose state is whole: its epoch, and whether its log was read to the end and all done."""
        with self.cond:
            return {
                tp: (p.epoch, p.at_end and not p.in_flight)
                for tp, p in self.partitions.items()
                if p.next_done >= p.live_from and not p.recovering
            }

    def end_confirmed(self, tp: TP, since_s: float) -> bool:
        """Whether the broker, asked at ``since_s`` (`time.monotonic`) or later, has said that the partition's log is
        read to its end; it is asked where it has not.

        What a client knows by itself is what it was told last, also while it cannot reach the broker.
        """
        with self.cond:
            partition = self.partitions.get(tp)
            if partition is None or not partition.at_end or partition.in_flight:
                return False
            fresh = partition.end_confirmed_at >= max(since_s, partition.end_doubted_at + _DOUBT_S)
            partition.end_wanted = not fresh
            return fresh

    def owns(self, tp: TP, epoch: int) -> bool:
        """Whether this assignment of the partition is the present one."""
        with self.cond:
            partition = self.partitions.get(tp)
            return partition is not None and partition.epoch == epoch

    def in_flight_records(self) -> int:
        """Records that were read and are not done."""
        with self.cond:
            return sum(len(batch) for p in self.partitions.values() for batch in p.in_flight)

    def waiting_records(self, ends: Mapping[TP, int]) -> dict[str, int]:
        """By topic, how many records are not done of those before ``ends``; what is only replayed is not counted."""
        waiting: dict[str, int] = {}
        with self.cond:
            for tp, partition in self.partitions.items():
                behind = ends.get(tp, 0) - max(partition.next_done, partition.live_from)
                waiting[tp.topic] = waiting.get(tp.topic, 0) + max(0, behind)
        return waiting

    def oldest_sent_ms(self, topic: str) -> int | None:
        """When the oldest record of the topic was sent that is in flight and not only replayed; None without one."""
        with self.cond:
            heads = [p.in_flight[0] for tp, p in self.partitions.items() if tp.topic == topic and p.in_flight]
            return min((batch.timestamps[0] for batch in heads if not batch.replay), default=None)

    # -- called by the consumer thread --

    def add(self, tp: TP, live_from: int) -> int:
        """The partition is ours from now on, and its state is being loaded; returns the assignment's number."""
        with self.cond:
            self._epoch += 1
            self.partitions[tp] = Partition(self._epoch, live_from, live_from, live_from)
            return self._epoch

    def loaded(self, tp: TP, start: int) -> None:
        """The partition's state is there and it is read from ``start``."""
        with self.cond:
            partition = self.partitions[tp]
            partition.loading = False
            partition.next_done = start
            partition.recovering = start < partition.live_from

    def forget(self, partitions: Sequence[TP]) -> None:
        """These are no longer ours."""
        with self.cond:
            for tp in partitions:
                partition = self.partitions.pop(tp, None)
                self.settled.pop(tp, None)
                if partition is not None and not partition.in_flight and partition.next_done <= partition.committed:
                    self.settled[tp] = partition.committed
            self.progress_at = time.monotonic()
            self.cond.notify_all()

    def accept(self, batches: Sequence[RecordBatch]) -> list[RecordBatch]:
        """Takes what a poll has brought; returns the batches to hand to the stages, in order."""
        out: list[RecordBatch] = []
        with self.cond:
            for batch in batches:
                partition = self.partitions.get(batch.tp)
                if partition is None or partition.loading:
                    continue  # revoked inside this very poll, or to be read again
                if not any(p.in_flight for p in self.partitions.values()):
                    self.progress_at = time.monotonic()
                for piece in split_batch(batch, partition.live_from, self._batch_records, self._batch_bytes):
                    piece.epoch = partition.epoch
                    partition.at_end = False
                    partition.end_confirmed_at = -math.inf
                    partition.end_wanted = False  # who still wants to know asks again once it is quiet
                    if not self._joined(partition, piece):
                        partition.in_flight.append(piece)
                        out.append(piece)
        return out

    def _joined(self, partition: Partition, piece: RecordBatch) -> bool:
        """Appends the piece to the partition's last batch while no stage has begun that one.

        A batch costs its stage far more than a record does, so a stage that falls behind finds larger batches
        and catches up; block boundaries never show in results.
        """
        if len(partition.in_flight) <= partition.begun:
            return False
        last = partition.in_flight[-1]
        if (
            last.replay != piece.replay
            or len(last) + len(piece) > self._batch_records
            or last.nbytes + piece.nbytes > self._batch_bytes
        ):
            return False
        last.extend(piece)
        return True

    def read_to_end(self, tp: TP, at_end: bool, position: int | None) -> None:
        """What the log says of the partition: whether it was read to its end, and up to where.

        What lies behind the last record there, markers of transactions, is done with it.
        """
        with self.cond:
            partition = self.partitions[tp]
            partition.at_end = at_end
            if at_end and position is not None and not partition.in_flight and not partition.recovering:
                partition.next_done = max(partition.next_done, position)

    def ends_wanted(self) -> list[TP]:
        """The partitions of which the broker is to be asked where they end."""
        with self.cond:
            return [tp for tp, p in self.partitions.items() if p.end_wanted]

    def confirm_end(self, tp: TP, asked_at: float, took_s: float) -> None:
        """The broker, asked at that time, says after ``took_s`` that there is nothing more."""
        with self.cond:
            partition = self.partitions[tp]
            if took_s > _PROMPT_S:
                partition.end_doubted_at = asked_at + took_s
                return
            partition.end_wanted = False
            partition.end_confirmed_at = asked_at

    def drain(self, partitions: Sequence[TP], timeout_s: float) -> bool:
        """Waits until nothing of these is in flight; whether it came to that."""
        with self.cond:
            return self.cond.wait_for(
                lambda: all(tp not in self.partitions or not self.partitions[tp].in_flight for tp in partitions),
                timeout=timeout_s,
            )

    def is_still(self) -> bool:
        """Whether no stage is inside a batch."""
        return self._busy == 0

    @contextmanager
    def gate_closed(self, timeout_s: float) -> Iterator[bool]:
        """Inside, no stage begins a batch. Yields whether none is within one, after so long at the most."""
        try:
            with self.cond:
                self._gate_closed = True
                still = self.cond.wait_for(lambda: self._busy == 0, timeout=timeout_s)
            yield still
        finally:
            self._gate_closed = False

    def to_commit(self, only: Sequence[TP] | None = None) -> dict[TP, int]:
        """What is done and not committed, of all partitions or some: the first offset of each that is not done."""
        with self.cond:
            return {
                tp: p.next_done
                for tp, p in self.partitions.items()
                if p.next_done > p.committed and (only is None or tp in only)
            }

    def committed_of(self, tp: TP) -> int:
        """The committed offset, as far as is known here; 0 where the partition is not ours."""
        with self.cond:
            partition = self.partitions.get(tp)
            return 0 if partition is None else partition.committed

    def committed(self, offsets: dict[TP, int]) -> None:
        """These offsets are committed."""
        with self.cond:
            for tp, offset in offsets.items():
                if tp in self.partitions:
                    self.partitions[tp].committed = max(self.partitions[tp].committed, offset)
