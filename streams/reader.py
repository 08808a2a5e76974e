"""The consumer thread: polls the log, hands batches to the stages, commits, and answers rebalances.

One thread owns the consumer (librdkafka runs its callbacks inside poll). The stages run elsewhere, on the
event loop; the two meet in `streams.assignment`. Offsets are committed by `streams.commit`, and only there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from streams.assignment import Assignment
from streams.commit import Committer
from streams.ends import LogEnds
from streams.errors import FatalError, HeadraceError
from streams.lag import LagWatch
from streams.log import TP, LogConsumer, LogUnavailable, RecordBatch, TransactionalProducer
from streams.recovery import Assigned, Loader, Progress
from streams.widths import check_widths, note_of

__all__ = ["BlockReader", "ReaderHost", "ReaderSettings"]

logger = logging.getLogger("headrace.reader")

_ENDS_INTERVAL_S = 0.1
#: how long a poll may wait while a state is being loaded
_LOADING_POLL_S = 0.005
#: a poll waits no less than this, also when a commit is due that waits for the one before
_POLL_MIN_S, _POLL_MAX_S = 0.005, 0.1


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """Bounds of the consumer thread."""

    commit_interval_s: float = 1.0
    #: exactly once: bytes of outputs that are kept until their transaction is committed; at so many it comes early,
    #: and the stages wait for it
    kept_bytes: int = 32 * 1024 * 1024
    #: records and bytes of one batch: what a stage does without giving way to the others
    batch_records: int = 4096
    batch_bytes: int = 2 * 1024 * 1024
    #: a batch follows another after so long at the least: under a trickle of records a batch costs more than its
    #: records, so gathering for a moment lowers latency; the first record of a quiet log never waits
    gather_s: float = 0.006
    #: batches of one partition between the consumer and its stage
    in_flight: int = 4
    #: no batch done for so long, with one in flight, ends the worker (Kafka's max.poll.interval.ms)
    stall_s: float = 300.0
    #: how long a revocation waits for the batches in flight
    revoke_s: float = 5.0
    #: how long a leaving worker may take to finish what it has taken
    drain_s: float = 8.0
    #: a stage that is behind its log by so much says so, once
    lag_said_s: float = 10.0


class ReaderHost(Protocol):
    """What the reader asks of the worker. Called on the consumer thread."""

    def recover(self, assigned: Assigned) -> int:
        """Gets the state of a partition back as far as it is kept; returns the offset from which on its log is to be
        read so that the state is whole at the committed offset. Called on a thread of its own, may take long.
        """

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


class BlockReader(threading.Thread):
    """Reads ``topics`` with ``consumer``, which it owns from its start on, and hands batches to ``host``.

    ``topics`` are names with how many partitions each has. Where one gets more, keys move: what a stage knows of a key
    is in another partition than its next records, so none beyond is ever read: FatalError ``partitions-raised``. With a
    ``producer``, exactly once: outputs are given to `Committer.keep`.
    """

    def __init__(
        self,
        consumer: LogConsumer,
        topics: Mapping[str, int],
        host: ReaderHost,
        settings: ReaderSettings | None = None,
        producer: TransactionalProducer | None = None,
    ) -> None:
        super().__init__(name="headrace-consumer", daemon=True)
        self._consumer = consumer
        self._topics = dict(topics)
        self._host = host
        self._settings = settings = settings or ReaderSettings()
        self.assignment = Assignment(settings.batch_records, settings.batch_bytes)
        self.committer = Committer(
            self.assignment,
            consumer,
            host.flush,
            settings.commit_interval_s,
            producer,
            settings.stall_s,
            settings.kept_bytes,
            note=note_of(self._topics),
        )
        self._partitions = self.assignment.partitions
        self._cond = self.assignment.cond
        self._flow_stopped = False
        self._stopping = threading.Event()
        self._abandon = False
        self._was_ready = False
        self._assigned_at: float | None = None
        self._accepted_at = 0.0
        self._ends_at = time.monotonic()
        self._ends = LogEnds(self.assignment)
        self._loader = Loader(host.recover, self.assignment.owns)
        self.progress = Progress()
        self.lag = LagWatch(self.assignment, settings.lag_said_s)
        #: CPU seconds of this thread so far: polls, commits and what is between
        self.cpu_s = 0.0

    # -- called on the event loop --

    def stop_flow(self) -> None:
        """No more batches until `resume_flow`; the group membership stays."""
        self._flow_stopped = True

    def resume_flow(self) -> None:
        """Batches flow again from where they stopped."""
        self._flow_stopped = False

    @property
    def flow_is_stopped(self) -> bool:
        """Whether every partition is paused by `stop_flow`."""
        with self._cond:
            return self._flow_stopped and all(p.paused for p in self._partitions.values())

    def leave(self, *, drain: bool = True) -> None:
        """Asks the thread to finish what it has taken, commit, and leave the group; `join` it then.

        Without ``drain`` it leaves at once and commits nothing more: a stage has failed.
        """
        self._abandon = not drain
        self._stopping.set()
        with self._cond:
            self._cond.notify_all()

    # -- the consumer thread --

    def run(self) -> None:
        error: HeadraceError | None = None
        try:
            self._consumer.subscribe(list(self._topics), self)
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
        self.committer.close()
        if error is not None:
            self._host.failed(error)

    def _turn(self, consumer: LogConsumer) -> None:
        loading = self._finish_loading(consumer)
        self._make_room(consumer)
        self._follow_flow(consumer)
        gathering_s = self._settings.gather_s - (time.monotonic() - self._accepted_at)
        if gathering_s > 0:
            time.sleep(gathering_s)
        longest_s = _LOADING_POLL_S if loading else _POLL_MAX_S
        wait_s = min(longest_s, max(_POLL_MIN_S, self.committer.due_in_s()))
        batches = consumer.poll(wait_s, self._settings.batch_records)
        if batches:
            # of a backlog there is nothing to gather: a full poll is followed by the next one
            full = sum(map(len, batches)) >= self._settings.batch_records
            self._host.deliver(self.assignment.accept(batches))
            self._accepted_at = 0.0 if full else time.monotonic()
        self._note_ends(consumer)
        self._note_recovered(consumer)
        self._commit_when_due()
        self._watch_for_stall()
        self.cpu_s = time.thread_time()

    def _commit_when_due(self) -> None:
        if self.committer.due_in_s() <= 0:
            self.committer.commit(flush_s=1.0, wait=False)

    def _finish_loading(self, consumer: LogConsumer) -> bool:
        """Partitions whose state is there begin where it ends; returns whether there are still others."""
        for tp, epoch, start in self._loader.loaded():
            if self.assignment.owns(tp, epoch):
                self._partitions[tp].start = start
        loading = [(tp, partition) for tp, partition in self._partitions.items() if partition.loading]
        for tp, partition in loading:
            if not partition.paused:
                consumer.pause([tp])
                partition.paused = True
            if partition.start is not None and not partition.sought:
                with suppress(LogUnavailable):  # not read from yet: next time
                    consumer.seek(tp, partition.start)
                    partition.sought = True
        there = [(tp, partition.start) for tp, partition in loading if partition.start is not None]
        if all(self._partitions[tp].sought for tp, _ in there):
            for tp, start in there:
                self.assignment.loaded(tp, start)
                self.progress.loaded(tp, max(0, self._partitions[tp].live_from - start))
        return bool(loading)

    def _make_room(self, consumer: LogConsumer) -> None:
        """Back-pressure: waits while a partition has too much in flight.

        A partition that stays full while the others have nothing left to do is paused (which costs a new
        fetch later), so that one slow stage does not starve the rest.
        """
        limit = self._settings.in_flight
        if self._flow_stopped:
            return
        with self._cond:
            resumable = [
                tp
                for tp, p in self._partitions.items()
                if p.paused and not p.loading and len(p.in_flight) <= limit // 2
            ]
            for tp in resumable:
                self._partitions[tp].paused = False
        if resumable:
            consumer.resume(resumable)

        def full() -> list[TP]:
            return [tp for tp, p in self._partitions.items() if len(p.in_flight) >= limit and not p.paused]

        waited_until = time.monotonic() + 1.0
        while time.monotonic() < waited_until and not self._stopping.is_set():
            with self._cond:
                if not full():
                    break
                others_idle = all(not p.in_flight for p in self._partitions.values() if len(p.in_flight) < limit)
                quiet = not self._cond.wait(0.05)
            self._commit_when_due()
            if quiet and others_idle:
                break
        with self._cond:
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
        for tp in self._partitions:
            self.assignment.read_to_end(tp, consumer.at_end(tp), consumer.position(tp))
        ends = self._ends.look(consumer)
        if ends is not None:
            self.lag.note(ends)

    def _note_recovered(self, consumer: LogConsumer) -> None:
        recovering = [(tp, p) for tp, p in self._partitions.items() if p.recovering and not p.loading]
        for tp, partition in recovering:
            if not partition.in_flight:
                position = consumer.position(tp)
                if position is not None and position >= partition.live_from:
                    partition.recovering = False
        self.progress.note(sum(max(0, p.live_from - p.next_done) for _, p in recovering if p.recovering))
        if self._was_ready:
            return
        if self._assigned_at is None or any(p.recovering for p in self._partitions.values()):
            return
        # a new member is first given nothing, until others have revoked what it will get; a spare one gets nothing ever
        if self._partitions or time.monotonic() - self._assigned_at > self._settings.revoke_s:
            self._was_ready = True
            self.progress.ready()
            self._host.ready()

    def _watch_for_stall(self) -> None:
        with self._cond:
            stuck = [p.in_flight[0] for p in self._partitions.values() if p.in_flight]
            idle_s = time.monotonic() - self.assignment.progress_at
        if stuck and idle_s > self._settings.stall_s:
            batch = stuck[0]
            raise FatalError(
                "stage-stalled",
                f"no batch was done for {idle_s:.0f} s; in flight: {batch.tp.topic}/{batch.tp.partition} "
                f"offsets {batch.offsets[0]}..{batch.offsets[-1]}. A stage hangs, or waits for a "
                "decision that does not get into the log; the worker ends so that another takes its partitions.",
            )

    def _drain(self, partitions: Sequence[TP], timeout_s: float) -> bool:
        """Waits until nothing of these is in flight; commits meanwhile where the stages wait for that."""
        deadline = time.monotonic() + timeout_s
        while not self.assignment.drain(partitions, 0.05):
            if time.monotonic() > deadline:
                return False
            if self.committer.full:
                self.committer.commit(flush_s=1.0, wait=False)
        return True

    def _finish(self) -> None:
        if self._abandon:
            return
        deadline = time.monotonic() + self._settings.drain_s
        if not self._drain(list(self._partitions), self._settings.drain_s):
            logger.warning("leaving with batches in flight; they will be done again by another worker")
        while not self.committer.commit(flush_s=1.0):
            if time.monotonic() >= deadline:
                logger.warning("leaving before all that was done could be committed; another worker does it again")
                return
            time.sleep(0.05)

    # -- RebalanceListener, inside poll --

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        check_widths(self._topics, partitions, self._consumer.notes(partitions))
        self.committer.joined(self._consumer.membership())
        committed = self._consumer.committed(partitions)
        starts: dict[TP, int | None] = {}
        assigned: list[Assigned] = []
        for tp in partitions:
            earliest, end = self._consumer.offset_range(tp)
            starts[tp] = live_from = self._live_from(tp, committed[tp], earliest, end)
            assigned.append(Assigned(tp, self.assignment.add(tp, live_from), committed[tp], earliest))
        if partitions:
            self.progress.assigned()
            self._loader.load(assigned)
            logger.info("assigned %s", ", ".join(f"{tp.topic}/{tp.partition}" for tp in partitions))
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
        self.committer.joined(self._consumer.membership())
        deadline = time.monotonic() + self._settings.revoke_s
        if not self._drain(partitions, self._settings.revoke_s):
            logger.warning("revoked with batches in flight: %s; the next owner does them again", partitions)
        self.committer.commit(flush_s=max(0.1, deadline - time.monotonic()), only=partitions)
        self._forget(partitions)
        logger.info("revoked %s", ", ".join(f"{tp.topic}/{tp.partition}" for tp in partitions))

    def on_lost(self, partitions: list[TP]) -> None:
        self._forget(partitions)
        logger.warning(
            "lost %s: not in time for the group", ", ".join(f"{tp.topic}/{tp.partition}" for tp in partitions)
        )

    def _forget(self, partitions: list[TP]) -> None:
        self.assignment.forget(partitions)
        self._host.dropped(partitions)
