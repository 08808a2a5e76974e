"""The consumer thread: polls the log, hands batches to the stages, commits, and answers rebalances.

One thread owns the consumer (librdkafka runs its callbacks inside poll). The stages run elsewhere, on the
event loop; the two meet in `begin` and `done`, under one condition variable.

Offsets are committed by `_commit`, and only there; its docstring is the protocol.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streams.errors import FatalError, HeadraceError
from streams.log import TP, CommitFailed, DeliveryFailed, LogConsumer, LogUnavailable, RecordBatch

__all__ = ["BlockReader", "ReaderHost", "ReaderSettings", "split_batch"]

logger = logging.getLogger("headrace.reader")

_ENDS_INTERVAL_S = 0.1
#: a commit whose outcome nobody tells for so long is sent again
_COMMIT_LOST_S = 30.0


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """Bounds of the consumer thread."""

    commit_interval_s: float = 1.0
    #: records and bytes of one batch: what a stage does without giving way to the others
    batch_records: int = 4096
    batch_bytes: int = 2 * 1024 * 1024
    #: a batch follows another after so long at the least: under a trickle of records a batch costs more than its
    #: records, so gathering for a moment lowers latency; the first record of a quiet log never waits
    gather_s: float = 0.003
    #: batches of one partition between the consumer and its stage
    in_flight: int = 4
    #: no batch done for so long, with one in flight, ends the worker (Kafka's max.poll.interval.ms)
    stall_s: float = 300.0
    #: how long a revocation waits for the batches in flight
    revoke_s: float = 5.0
    #: how long a leaving worker may take to finish what it has taken
    drain_s: float = 8.0


class ReaderHost(Protocol):
    """What the reader asks of the worker. Called on the consumer thread."""

    def start_offset(self, tp: TP, live_from: int, earliest: int) -> int:
        """Where to read from so that the state of ``tp`` is whole at ``live_from``."""

    def deliver(self, batches: list[RecordBatch]) -> None:
        """Hands batches to the stages, in order."""

    def dropped(self, partitions: list[TP]) -> None:
        """These partitions are no longer ours: their tasks can go."""

    def flush(self, timeout_s: float) -> int:
        """Waits until all outputs are delivered; returns how many are not."""

    def ready(self) -> None:
        """Assigned, and every partition's state is whole: called once."""

    def failed(self, error: HeadraceError) -> None:
        """The reader cannot go on."""


@dataclass(slots=True)
class _Partition:
    epoch: int
    #: batches below this were sent before the restart: state only, no outputs
    live_from: int
    #: first offset that is not done
    next_done: int
    committed: int
    recovering: bool
    paused: bool = False
    at_end: bool = False
    #: how many of the batches in flight a stage has begun: the first, or none
    begun: int = 0
    in_flight: deque[RecordBatch] = field(default_factory=deque)


def split_batch(batch: RecordBatch, live_from: int, max_records: int, max_bytes: int) -> Iterator[RecordBatch]:
    """The batch in pieces: cut at ``live_from`` (a piece is replay as a whole or not at all) and at the bounds."""
    n = len(batch)
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


class BlockReader(threading.Thread):
    """Reads ``topics`` with ``consumer``, which it owns from its start on, and hands batches to ``host``."""

    def __init__(
        self,
        consumer: LogConsumer,
        topics: Sequence[str],
        host: ReaderHost,
        settings: ReaderSettings | None = None,
    ) -> None:
        super().__init__(name="headrace-consumer", daemon=True)
        self._consumer = consumer
        self._topics = list(topics)
        self._host = host
        self._settings = settings or ReaderSettings()
        self._cond = threading.Condition()
        self._partitions: dict[TP, _Partition] = {}
        self._epoch = 0
        self._busy = 0
        self._gate_closed = False
        self._flow_stopped = False
        self._stopping = threading.Event()
        self._abandon = False
        self._was_ready = False
        self._assigned_at: float | None = None
        self._progress_at = time.monotonic()
        self._commit_at = time.monotonic()
        #: when the commit on its way was sent; None = there is none
        self._commit_sent_at: float | None = None
        self._accepted_at = 0.0
        self._ends_at = time.monotonic()
        #: CPU seconds of this thread so far: polls, commits and what is between
        self.cpu_s = 0.0

    # -- called on the event loop --

    def begin(self, batches: Sequence[RecordBatch]) -> list[RecordBatch] | None:
        """Before batches are processed: those to process (a stale one must be thrown away); None while a commit waits
        for what was begun before."""
        with self._cond:
            if self._gate_closed:
                return None
            fresh = [batch for batch in batches if not self._is_stale(batch)]
            for batch in fresh:
                self._partitions[batch.tp].begun = 1
            self._busy += len(fresh)
            return fresh

    def done(self, batches: Sequence[RecordBatch]) -> None:
        """The batches' effects are in the state and their outputs are in the producer."""
        with self._cond:
            self._busy -= len(batches)
            self._progress_at = time.monotonic()
            for batch in batches:
                if not self._is_stale(batch):
                    partition = self._partitions[batch.tp]
                    head = partition.in_flight.popleft()
                    assert head is batch, "batches of a partition are done in the order in which they were handed out"
                    partition.begun = 0
                    partition.next_done = batch.next_offset
            self._cond.notify_all()

    def waiting(self) -> None:
        """The stage is alive and waits for something outside (a full producer queue): the watchdog holds still."""
        with self._cond:
            self._progress_at = time.monotonic()

    def stop_flow(self) -> None:
        """No more batches until `resume_flow`; the group membership stays."""
        self._flow_stopped = True

    def resume_flow(self) -> None:
        """Batches flow again from where they stopped."""
        self._flow_stopped = False

    @property
    def flow_is_stopped(self) -> bool:
        """Whether every partition is paused by `stop_flow`."""
        return self._flow_stopped and all(p.paused for p in self._partitions.values())

    def leave(self, *, drain: bool = True) -> None:
        """Asks the thread to finish what it has taken, commit, and leave the group; `join` it then.

        Without ``drain`` it leaves at once and commits nothing more: a stage has failed.
        """
        self._abandon = not drain
        self._stopping.set()
        with self._cond:
            self._cond.notify_all()

    def assignment(self) -> dict[TP, int]:
        """Partitions that are ours now and the first offset of each that is not done."""
        with self._cond:
            return {tp: p.next_done for tp, p in self._partitions.items()}

    def epochs(self) -> dict[TP, int]:
        """Partitions that are ours now, each with the number of its assignment."""
        with self._cond:
            return {tp: p.epoch for tp, p in self._partitions.items()}

    def at_end(self) -> dict[TP, tuple[int, bool]]:
        """For each partition whose state is whole: its epoch, and whether its log was read to the end and all done."""
        with self._cond:
            return {
                tp: (p.epoch, p.at_end and not p.in_flight)
                for tp, p in self._partitions.items()
                if p.next_done >= p.live_from and not p.recovering
            }

    def owns(self, tp: TP, epoch: int) -> bool:
        """Whether this assignment of the partition is the present one."""
        with self._cond:
            partition = self._partitions.get(tp)
            return partition is not None and partition.epoch == epoch

    def in_flight_records(self) -> int:
        """Records that were read and are not done."""
        with self._cond:
            return sum(len(batch) for p in self._partitions.values() for batch in p.in_flight)

    def _is_stale(self, batch: RecordBatch) -> bool:
        partition = self._partitions.get(batch.tp)
        return partition is None or partition.epoch != batch.epoch

    # -- the consumer thread --

    def run(self) -> None:
        error: HeadraceError | None = None
        try:
            self._consumer.subscribe(self._topics, self)
            while not self._stopping.is_set():
                self._turn(self._consumer)
            self._finish()
        except HeadraceError as exc:
            error = exc
        except Exception as exc:
            logger.exception("the consumer thread failed")
            error = FatalError("consumer-thread", f"{type(exc).__name__}: {exc}. See the log above.")
        # also after an error: the group then gives our partitions to others at once, not after a session time-out
        self._abandon = True
        self._consumer.close()
        if error is not None:
            self._host.failed(error)

    def _turn(self, consumer: LogConsumer) -> None:
        self._make_room(consumer)
        self._follow_flow(consumer)
        gathering_s = self._settings.gather_s - (time.monotonic() - self._accepted_at)
        if gathering_s > 0:
            time.sleep(gathering_s)
        batches = consumer.poll(0.1, self._settings.batch_records)
        if batches:
            self._accept(batches)
            self._accepted_at = time.monotonic()
        self._note_ends(consumer)
        self._note_recovered(consumer)
        if time.monotonic() - self._commit_at >= self._settings.commit_interval_s:
            self._commit(flush_s=1.0, wait=False)
        self._watch_for_stall()
        self.cpu_s = time.thread_time()

    def _accept(self, batches: list[RecordBatch]) -> None:
        settings = self._settings
        out: list[RecordBatch] = []
        with self._cond:
            for batch in batches:
                partition = self._partitions.get(batch.tp)
                if partition is None:
                    continue  # revoked inside this very poll
                if not any(p.in_flight for p in self._partitions.values()):
                    self._progress_at = time.monotonic()
                for piece in split_batch(batch, partition.live_from, settings.batch_records, settings.batch_bytes):
                    piece.epoch = partition.epoch
                    partition.at_end = False
                    if not self._joined(partition, piece):
                        partition.in_flight.append(piece)
                        out.append(piece)
        self._host.deliver(out)

    def _joined(self, partition: _Partition, piece: RecordBatch) -> bool:
        """Appends the piece to the partition's last batch while no stage has begun that one.

        A batch costs its stage far more than a record does, so a stage that falls behind finds larger batches
        and catches up; block boundaries never show in results.
        """
        if len(partition.in_flight) <= partition.begun:
            return False
        last, settings = partition.in_flight[-1], self._settings
        if (
            last.replay != piece.replay
            or len(last) + len(piece) > settings.batch_records
            or last.nbytes + piece.nbytes > settings.batch_bytes
        ):
            return False
        last.extend(piece)
        return True

    def _make_room(self, consumer: LogConsumer) -> None:
        """Back-pressure: waits while a partition has too much in flight.

        A partition that stays full while the others have nothing left to do is paused (which costs a new
        fetch later), so that one slow stage does not starve the rest.
        """
        limit = self._settings.in_flight
        if self._flow_stopped:
            return
        with self._cond:
            resumable = [tp for tp, p in self._partitions.items() if p.paused and len(p.in_flight) <= limit // 2]
            for tp in resumable:
                self._partitions[tp].paused = False
        if resumable:
            consumer.resume(resumable)

        def full() -> list[TP]:
            return [tp for tp, p in self._partitions.items() if len(p.in_flight) >= limit and not p.paused]

        with self._cond:
            waited_until = time.monotonic() + 1.0
            while full() and time.monotonic() < waited_until and not self._stopping.is_set():
                others_idle = all(not p.in_flight for p in self._partitions.values() if len(p.in_flight) < limit)
                if not self._cond.wait(0.05) and others_idle:
                    break
            stuck = full()
            for tp in stuck:
                self._partitions[tp].paused = True
        if stuck:
            consumer.pause(stuck)

    def _follow_flow(self, consumer: LogConsumer) -> None:
        """Flow stopped: polls on, for the membership, with every partition paused."""
        if self._flow_stopped:
            running = [tp for tp, p in self._partitions.items() if not p.paused]
            for tp in running:
                self._partitions[tp].paused = True
            if running:
                consumer.pause(running)

    def _note_ends(self, consumer: LogConsumer) -> None:
        """Ten times a second, however busy other partitions are: which logs are read to their end?"""
        if time.monotonic() - self._ends_at < _ENDS_INTERVAL_S:
            return
        self._ends_at = time.monotonic()
        for tp, partition in self._partitions.items():
            partition.at_end = consumer.at_end(tp)

    def _note_recovered(self, consumer: LogConsumer) -> None:
        for tp, partition in self._partitions.items():
            if partition.recovering and not partition.in_flight:
                position = consumer.position(tp)
                if position is not None and position >= partition.live_from:
                    partition.recovering = False
        if self._was_ready:
            return
        if self._assigned_at is None or any(p.recovering for p in self._partitions.values()):
            return
        # a new member is first given nothing, until others have revoked what it will get; a spare one gets nothing ever
        if self._partitions or time.monotonic() - self._assigned_at > self._settings.revoke_s:
            self._was_ready = True
            self._host.ready()

    def _commit(self, flush_s: float, only: Sequence[TP] | None = None, *, wait: bool = True) -> bool:
        """Commits what is done. Returns whether everything done is committed, or without ``wait`` on its way.

        1. Close the gate: no stage begins a batch; wait until none is inside one.
        2. Flush the producer: every output of every batch done so far is acknowledged by the brokers.
           If that takes too long (broker away, queue full), open the gate and try again next time.
        3. Read the offsets of what is done, while the gate is still closed.
        4. Open the gate: stages go on while the commit is on its way.
        5. Commit the offsets, without ``wait`` while polling goes on. If the group has moved on, keep nothing: the
           partitions' new owner replays.

        A crash between 2 and 5 sends outputs again after the restart (same bytes, same source), never fewer.
        """
        sent_at = self._commit_sent_at
        if sent_at is not None and not wait and time.monotonic() - sent_at < _COMMIT_LOST_S:
            return False
        if not self._to_commit(only):
            self._commit_at = time.monotonic()
            return True
        deadline = time.monotonic() + flush_s
        try:
            with self._cond:
                self._gate_closed = True
                if not self._cond.wait_for(lambda: self._busy == 0, timeout=flush_s):
                    return False
            if not self._flushed(max(0.05, deadline - time.monotonic())):
                return False
            offsets = self._to_commit(only)
        finally:
            self._gate_closed = False
            self._commit_at = time.monotonic()
        try:
            if not wait:
                self._commit_sent_at = time.monotonic()
                self._consumer.commit(offsets, lambda error: self._on_committed(offsets, error))
                return True
            self._consumer.commit(offsets)
        except (CommitFailed, LogUnavailable) as exc:
            self._on_committed(offsets, exc)
            return False
        self._on_committed(offsets, None)
        return True

    def _on_committed(self, offsets: Mapping[TP, int], error: Exception | None) -> None:
        self._commit_sent_at = None
        if error is not None:
            moved = isinstance(error, CommitFailed)
            # outputs are safe: where the partitions are still ours the offsets go with the next commit
            logger.warning("commit refused, %s: %s", "the partitions have moved on" if moved else "trying again", error)
            return
        with self._cond:
            for tp, offset in offsets.items():
                if tp in self._partitions:
                    self._partitions[tp].committed = max(self._partitions[tp].committed, offset)

    def _flushed(self, flush_s: float) -> bool:
        try:
            undelivered = self._host.flush(flush_s)
        except DeliveryFailed as exc:
            raise FatalError(
                "delivery-failed",
                f"{exc}. Nothing after the last commit counts; a restarted worker sends it again. "
                f"If it repeats, compare the record's size with the topic's max.message.bytes.",
            ) from exc
        if undelivered:
            logger.info("commit waits: %d outputs not yet acknowledged", undelivered)
        return not undelivered

    def _to_commit(self, only: Sequence[TP] | None) -> dict[TP, int]:
        return {
            tp: p.next_done
            for tp, p in self._partitions.items()
            if p.next_done > p.committed and (only is None or tp in only)
        }

    def _watch_for_stall(self) -> None:
        with self._cond:
            stuck = [p.in_flight[0] for p in self._partitions.values() if p.in_flight]
            idle_s = time.monotonic() - self._progress_at
        if stuck and idle_s > self._settings.stall_s:
            batch = stuck[0]
            raise FatalError(
                "stage-stalled",
                f"no batch was done for {idle_s:.0f} s; in flight: {batch.tp.topic}/{batch.tp.partition} "
                f"offsets {batch.offsets[0]}..{batch.offsets[-1]}. A stage hangs; the worker ends so that "
                f"another takes its partitions.",
            )

    def _drain(self, partitions: Sequence[TP], timeout_s: float) -> bool:
        with self._cond:
            return self._cond.wait_for(
                lambda: all(tp not in self._partitions or not self._partitions[tp].in_flight for tp in partitions),
                timeout=timeout_s,
            )

    def _finish(self) -> None:
        if self._abandon:
            return
        deadline = time.monotonic() + self._settings.drain_s
        if not self._drain(list(self._partitions), self._settings.drain_s):
            logger.warning("leaving with batches in flight; they will be done again by another worker")
        while not self._commit(flush_s=1.0) and time.monotonic() < deadline:
            time.sleep(0.05)

    # -- RebalanceListener, inside poll --

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        committed = self._consumer.committed(partitions)
        starts: dict[TP, int | None] = {}
        for tp in partitions:
            earliest, end = self._consumer.offset_range(tp)
            live_from = self._live_from(tp, committed[tp], earliest, end)
            start = self._host.start_offset(tp, live_from, earliest)
            starts[tp] = start
            with self._cond:
                self._epoch += 1
                self._partitions[tp] = _Partition(
                    self._epoch, live_from, start, live_from, recovering=start < live_from
                )
        if partitions:
            names = ", ".join(f"{tp.topic}/{tp.partition}" for tp in partitions)
            replay = sum(self._partitions[tp].live_from - (starts[tp] or 0) for tp in partitions)
            logger.info("assigned %s; %d records to replay", names, replay)
        self._assigned_at = time.monotonic()
        return starts

    @staticmethod
    def _live_from(tp: TP, committed: int | None, earliest: int, end: int) -> int:
        if committed is None:
            return earliest
        if committed > end:
            raise FatalError(
                "committed-beyond-end",
                f"{tp.topic}/{tp.partition}: the group has committed {committed}, the log ends at {end}. The topic "
                f"was deleted and made again: use a new --group, or reset this group's offsets.",
            )
        if committed < earliest:
            logger.error(
                "%s/%d: %d records were deleted by retention before they were read; going on at %d",
                tp.topic,
                tp.partition,
                earliest - committed,
                earliest,
            )
            return earliest
        return committed

    def on_revoke(self, partitions: list[TP]) -> None:
        if self._abandon:
            self._forget(partitions)
            return
        deadline = time.monotonic() + self._settings.revoke_s
        if not self._drain(partitions, self._settings.revoke_s):
            logger.warning("revoked with batches in flight: %s; the next owner does them again", partitions)
        self._commit(flush_s=max(0.1, deadline - time.monotonic()), only=partitions)
        self._forget(partitions)
        logger.info("revoked %s", ", ".join(f"{tp.topic}/{tp.partition}" for tp in partitions))

    def on_lost(self, partitions: list[TP]) -> None:
        self._forget(partitions)
        logger.warning(
            "lost %s: not in time for the group", ", ".join(f"{tp.topic}/{tp.partition}" for tp in partitions)
        )

    def _forget(self, partitions: list[TP]) -> None:
        with self._cond:
            for tp in partitions:
                self._partitions.pop(tp, None)
            self._progress_at = time.monotonic()
            self._cond.notify_all()
        self._host.dropped(partitions)
