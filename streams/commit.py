"""The commit: `Committer.commit` is the whole protocol of both ways of delivery, and its docstring says it.

At least once, outputs go to the brokers as they are made, and offsets follow. Exactly once, outputs are kept until the
next commit, which sends them in a transaction together with the offsets: it is open for milliseconds, the stages work
on meanwhile, and to send again after an abort is to send. Each kept output knows the partition that it came from, so
that those of a partition that was lost can be left out.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streams.assignment import Assignment
from streams.errors import FatalError, HeadraceError
from streams.latency import LatencyDigest
from streams.log import (
    TP,
    CommitFailed,
    DeliveryFailed,
    LogConsumer,
    LogUnavailable,
    Membership,
    MustAbort,
    OutBatch,
    TransactionalProducer,
)

__all__ = ["Committer", "Outbox", "transact"]

logger = logging.getLogger("headrace.reader")

#: a commit whose outcome nobody tells for so long is sent again
_COMMIT_LOST_S = 30.0
#: how long one call may wait for the brokers before it is looked whether the worker leaves
_CALL_S = 1.0
#: for what part of the interval a commit may wait for a moment in which it holds nobody up
_HOPE = 0.2
#: what a record takes beside its value, for the bound
_RECORD_BYTES = 100
#: transactions that abort one after the other, and not since the group has moved on, end the worker
_ABORTS_MAX = 20


class _Kept(NamedTuple):
    """Outputs of one batch or tick of one assignment of a partition."""

    tp: TP
    epoch: int
    outputs: Sequence[OutBatch]
    nbytes: int


class Outbox:
    """Outputs that no transaction has committed, in the order in which they were made. Called with the lock held."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._waiting: list[_Kept] = []
        self._nbytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Whether more than the bound is kept, in a transaction on its way or waiting for one."""
        return self._nbytes >= self._bytes_max

    def keep(self, tp: TP, epoch: int, outputs: Sequence[OutBatch]) -> None:
        """Adds what was made from ``tp``."""
        nbytes = sum(sum(map(len, filter(None, out.values))) + _RECORD_BYTES * len(out) for out in outputs)
        self._waiting.append(_Kept(tp, epoch, outputs, nbytes))
        self._nbytes += nbytes

    def take(self, owns: Callable[[TP, int], bool]) -> list[_Kept]:
        """All that waits, for a transaction; what came from partitions that are no longer ours is dropped."""
        taken = [kept for kept in self._waiting if owns(kept.tp, kept.epoch)]
        self._nbytes -= sum(kept.nbytes for kept in self._waiting) - sum(kept.nbytes for kept in taken)
        self._waiting = []
        return taken

    def put_back(self, taken: list[_Kept]) -> None:
        """Their transaction was aborted: they wait again, before all that was made since."""
        self._waiting[:0] = taken

    def committed(self, taken: list[_Kept]) -> None:
        """Their transaction is committed."""
        self._nbytes -= sum(kept.nbytes for kept in taken)


@dataclass(frozen=True, slots=True)
class _Transaction:
    kept: list[_Kept]
    offsets: dict[TP, int]
    membership: Membership


def transact(
    producer: TransactionalProducer,
    outputs: Sequence[OutBatch],
    offsets: Mapping[TP, int],
    membership: Membership,
    give_up: threading.Event,
    note: str = "",
) -> None:
    """Outputs and offsets, with this note, in one transaction, however long the brokers are away.

    Raises `CommitFailed` or `MustAbort` once it is aborted, `LogUnavailable` when it was to ``give_up``, FatalError
    when this producer can do nothing more.
    """
    try:
        producer.begin()
        for out in outputs:
            sent = producer.send(out)
            while sent < len(out):
                if give_up.is_set():
                    raise LogUnavailable("the producer's queue is full")
                producer.poll(0.05)
                sent = producer.send(out, sent)
        _patiently(lambda: producer.commit(offsets, membership, _CALL_S, note=note), give_up)
    except (CommitFailed, MustAbort):
        _patiently(lambda: producer.abort(_CALL_S), give_up)
        raise


def _patiently(call: Callable[[], None], give_up: threading.Event) -> None:
    while True:
        try:
            return call()
        except LogUnavailable:
            if give_up.is_set():
                raise


class Committer:
    """Commits what is done of ``assignment``. On the consumer thread, except where it is said.

    The log keeps ``note`` with the offsets. With a ``producer``, exactly once: outputs are given to `keep`, and a
    thread of its own sends the transactions. A simulation gives ``clock`` and ``thread``, which it moves on itself.
    """

    def __init__(
        self,
        assignment: Assignment,
        consumer: LogConsumer,
        flush: Callable[[float], int],
        interval_s: float,
        producer: TransactionalProducer | None = None,
        stall_s: float = 300.0,
        kept_bytes: int = 32 * 1024 * 1024,
        *,
        note: str = "",
        clock: Callable[[], float] = time.monotonic,
        thread: Callable[..., threading.Thread] = threading.Thread,
    ) -> None:
        self._assignment = assignment
        self._consumer = consumer
        self._flush = flush
        self._interval_s = interval_s
        self._producer = producer
        self._stall_s = stall_s
        self._note = note
        self._outbox = Outbox(kept_bytes)
        self._membership: Membership = None
        self._clock = clock
        self._at = clock()
        #: when the commit on its way was sent; None = there is none
        self._sent_at: float | None = None
        self._error: HeadraceError | None = None
        self._aborts = 0
        self._give_up = threading.Event()
        self._transactions: queue.SimpleQueue[_Transaction | None] = queue.SimpleQueue()
        self._thread = thread(target=self._run, name="headrace-commit", daemon=True)
        #: CPU seconds of the thread that sends transactions
        self.cpu_s = 0.0
        #: when the commit on its way, or the last, was begun; how long those took that came through, flush included
        self._began_at = self._at
        self.latency = LatencyDigest()
        if producer is not None:
            assignment.held = lambda: self.full
            self._thread.start()

    @property
    def exactly_once(self) -> bool:
        """Whether outputs go through `keep`."""
        return self._producer is not None

    @property
    def full(self) -> bool:
        """Exactly once: whether so much is kept that the stages wait for the next commit."""
        return self._outbox.full

    def keep(self, tp: TP, epoch: int, outputs: Sequence[OutBatch]) -> None:
        """Exactly once: these outputs of a batch, before it is said to be done, or of a tick, go with the next
        transaction. On the event loop."""
        if outputs:
            with self._assignment.cond:
                self._outbox.keep(tp, epoch, outputs)

    def joined(self, membership: Membership) -> None:
        """Who we are in the group's present generation, for the offsets of transactions: as of a rebalance callback.

        At any other time librdkafka may have been thrown out of the group without having told us, and then names
        nobody, whose offsets a broker takes unchecked.
        """
        self._membership = membership

    def due_in_s(self) -> float:
        """Seconds until the next commit."""
        return 0.0 if self.full else self._at + self._interval_s - self._clock()

    def commit(self, flush_s: float, only: Sequence[TP] | None = None, *, wait: bool = True) -> bool:
        """Commits what is done. Returns whether everything done is committed, or without ``wait`` on its way.

        1. Have no other commit on its way, or try again next time. With ``wait``: exactly once, wait for its outcome;
           at least once, send one more behind it. At least once without ``wait``, hope for a moment in which no stage
           is at work and all outputs are acknowledged, for a fifth of the interval: 2 and 3 then hold nobody up.
        2. Close the gate: no stage begins a batch; wait until none is inside one.
        3. At least once: flush the producer: every output of every batch done so far is acknowledged by the brokers.
           If that takes too long (broker away, queue full), open the gate and try again next time.
           Exactly once: take the kept outputs, those of every batch done so far that no transaction has committed;
           what came from partitions that were lost since is dropped.
        4. Read the offsets of what is done, while the gate is still closed. Exactly once: of all partitions, as the
           outputs are.
        5. Open the gate: stages go on while the commit is on its way.
        6. Commit, without ``wait`` while polling goes on. At least once: the offsets. If the group has moved on, keep
           nothing: the partitions' new owner replays.
           Exactly once: begin a transaction, send the outputs, add the offsets with the membership of the generation
           in which they were ours, and commit it. If that fails, abort; the outputs wait again, before newer ones,
           for the next commit, which drops those of partitions that were lost. State is not touched.

        At least once, a crash between 3 and 6 sends outputs again after the restart (same bytes, same source), never
        fewer. Exactly once, a crash anywhere leaves outputs and offsets both committed or both not.
        """
        began_at = self._clock()
        deadline = began_at + flush_s
        if not self._none_on_its_way(flush_s if wait else 0.0):
            return False
        self._began_at = began_at
        if not self._outbox and not self._assignment.to_commit(only):
            self._at = self._clock()
            return True
        if not wait and self._clock() < self._at + (1 + _HOPE) * self._interval_s and not self._is_quiet():
            return False
        taken: list[_Kept] = []
        try:
            with self._assignment.gate_closed(flush_s) as all_done:
                if not all_done or not self._flushed(max(0.05, deadline - self._clock())):
                    return False
                if self.exactly_once:
                    with self._assignment.cond:
                        taken = self._outbox.take(self._assignment.owns)
                offsets = self._assignment.to_commit(None if self.exactly_once else only)
        finally:
            self._at = self._clock()
        if not self.exactly_once:
            return self._commit_offsets(offsets, wait)
        self._sent_at = self._clock()
        self._transactions.put(_Transaction(taken, offsets, self._membership))
        return not wait or (self._none_on_its_way(max(0.05, deadline - self._clock())) and not self._outbox)

    def _none_on_its_way(self, timeout_s: float) -> bool:
        """Whether no commit is on its way, or none is after so long. Raises what ended the transactions."""
        if not self.exactly_once:
            # one that is waited for follows the one on its way; the outcome of that one may never be told
            return self._sent_at is None or timeout_s > 0 or self._clock() - self._sent_at >= _COMMIT_LOST_S
        with self._assignment.cond:
            self._assignment.cond.wait_for(lambda: self._sent_at is None, timeout=timeout_s)
            if self._error is not None:
                raise self._error
            if self._sent_at is not None and self._clock() - self._sent_at > self._stall_s:
                raise FatalError(
                    "transaction-stalled",
                    f"a transaction has had no outcome for {self._stall_s:.0f} s: the brokers are away, or the "
                    "client waits for one that is gone (librdkafka's issues 5456 and 5511). A restarted worker "
                    "ends it and goes on at the last commit.",
                )
            return self._sent_at is None

    # -- at least once --

    def _is_quiet(self) -> bool:
        return self.exactly_once or (self._assignment.is_still() and not self._undelivered(0.0))

    def _flushed(self, flush_s: float) -> bool:
        if self.exactly_once:
            return True
        undelivered = self._undelivered(flush_s)
        if undelivered:
            logger.info("commit waits: %d outputs not yet acknowledged", undelivered)
        return not undelivered

    def _undelivered(self, flush_s: float) -> int:
        """How many outputs are not acknowledged, after so long at the most."""
        try:
            return self._flush(flush_s)
        except DeliveryFailed as exc:
            raise FatalError(
                "delivery-failed",
                f"{exc}. Nothing after the last commit counts; a restarted worker sends it again. "
                f"If it repeats, compare the record's size with the topic's max.message.bytes.",
            ) from exc

    def _commit_offsets(self, offsets: dict[TP, int], wait: bool) -> bool:
        try:
            if not wait:
                self._sent_at = self._clock()
                self._consumer.commit(offsets, lambda error: self._on_committed(offsets, error), note=self._note)
                return True
            self._consumer.commit(offsets, note=self._note)
        except (CommitFailed, LogUnavailable) as exc:
            self._on_committed(offsets, exc)
            return False
        self._on_committed(offsets, None)
        return True

    def _on_committed(self, offsets: dict[TP, int], error: Exception | None) -> None:
        self._sent_at = None
        if error is None:
            self._assignment.committed(offsets)
            self._took()
        else:
            moved = isinstance(error, CommitFailed)
            # outputs are safe: where the partitions are still ours the offsets go with the next commit
            logger.warning("commit refused, %s: %s", "the partitions have moved on" if moved else "trying again", error)

    def _took(self) -> None:
        self.latency.add(np.array([1000 * (self._clock() - self._began_at)]))

    # -- exactly once, on the thread of the transactions --

    def _run(self) -> None:
        assert self._producer is not None
        while (transaction := self._transactions.get()) is not None:
            error: Exception | None = None
            outputs = [out for kept in transaction.kept for out in kept.outputs]
            try:
                about = (transaction.offsets, transaction.membership, self._give_up, self._note)
                transact(self._producer, outputs, *about)
            except (CommitFailed, MustAbort, LogUnavailable, HeadraceError) as exc:
                error = exc
            except Exception as exc:
                logger.exception("a transaction failed")
                error = FatalError("transaction-failed", f"{type(exc).__name__}: {exc}. See the log above.")
            with self._assignment.cond:
                self._ended(transaction, error)
                self._sent_at = None
                self._assignment.cond.notify_all()
            self.cpu_s = time.thread_time()

    def _ended(self, transaction: _Transaction, error: Exception | None) -> None:
        if error is None:
            self._aborts = 0
            self._outbox.committed(transaction.kept)
            self._assignment.committed(transaction.offsets)
            self._took()
            return
        self._outbox.put_back(transaction.kept)
        if isinstance(error, CommitFailed):
            logger.info("transaction aborted, the group has moved on: %s", error)
        elif isinstance(error, MustAbort):
            self._aborts += 1
            logger.warning("transaction aborted, its outputs are sent again: %s", error)
            if self._aborts >= _ABORTS_MAX:
                self._error = FatalError(
                    "transactions-abort",
                    f"{self._aborts} transactions one after the other were aborted, the last since: {error}. Nothing "
                    "after the last commit counts; if a restarted worker does not get on either, look at the brokers, "
                    "and compare the size of records with the topics' max.message.bytes.",
                )
        elif isinstance(error, HeadraceError):
            self._error = error

    def close(self) -> None:
        """Sends nothing more. The producer may be closed then."""
        self._give_up.set()
        self._transactions.put(None)
        if self._thread.is_alive():
            self._thread.join(3 * _CALL_S)
