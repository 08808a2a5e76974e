"""A topic that every worker reads for itself, all partitions, outside its group: a view that is a little behind.

What comes is fetched on a thread of its own and taken, a little at a time, between two blocks.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping

from streams.errors import FatalError, HeadraceError
from streams.log import TP, Log, LogConsumer, LogUnavailable, RecordBatch

__all__ = ["TopicFeed"]

logger = logging.getLogger("headrace.feed")

_RECORDS_MAX = 4096
#: so many that nobody has taken yet are enough: the rest stays in the log
_WAITING_MAX = 20_000
#: until the log is asked again that could not be
_AGAIN_S = 0.5


class TopicFeed:
    """The committed records of a topic from the earliest on, each partition's in order, newest last.

    `start` and `close` once each; a feed that is not closed keeps its consumer. FatalError ``feed-failed`` from `take`
    where reading has ended: a view that silently stands still would be served as if it were new.
    """

    def __init__(self, log: Log, topic: str) -> None:
        self.topic = topic
        self._log = log
        self._lock = threading.Lock()
        #: by poll
        self._waiting: deque[list[RecordBatch]] = deque()
        self._stop = threading.Event()
        self._caught_up = threading.Event()
        self._error: HeadraceError | None = None
        #: first offset that was not read yet; a partition that is assigned again goes on there
        self._next: dict[TP, int] = {}
        self._consumer: LogConsumer | None = None
        self._thread = threading.Thread(target=self._run, name=f"headrace-feed-{topic}", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def close(self) -> None:
        """Ends reading and waits for that."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def caught_up(self) -> bool:
        """Whether all that was there at the start has been read and taken, or reading has ended."""
        return self._caught_up.is_set() and not self._waiting

    def take(self) -> list[RecordBatch]:
        """What has come, as far as it is one poll's, in order; empty where nothing waits."""
        if self._error is not None:
            raise self._error
        with self._lock:
            return self._waiting.popleft() if self._waiting else []

    # -- on its thread --

    def _run(self) -> None:
        try:
            consumer = self._consumer = self._log.consumer(f"headrace-feed-{uuid.uuid4().hex}")
            consumer.subscribe([self.topic], self)
            self._read(consumer)
        except HeadraceError as exc:
            self._error = self._failed(str(exc))
        except Exception as exc:
            logger.exception("reading %s failed", self.topic)
            self._error = self._failed(f"{type(exc).__name__}: {exc}")
        finally:
            if self._consumer is not None:
                self._consumer.close()
            self._caught_up.set()

    def _failed(self, why: str) -> FatalError:
        return FatalError("feed-failed", f"reading {self.topic}: {why}. A restarted worker reads it from the start.")

    def _read(self, consumer: LogConsumer) -> None:
        ends: dict[TP, int] = {}
        while not self._stop.is_set():
            while self._waiting_records() >= _WAITING_MAX and not self._stop.is_set():
                time.sleep(0.01)
            try:
                self._poll(consumer, ends)
            except LogUnavailable as exc:
                self._wait(exc)

    def _poll(self, consumer: LogConsumer, ends: dict[TP, int]) -> None:
        """Reads once; ``ends`` are where the partitions ended at the start, as soon as that is known."""
        batches = consumer.poll(0.1, _RECORDS_MAX)
        for batch in batches:
            self._next[batch.tp] = batch.next_offset
        if batches:
            with self._lock:
                self._waiting.append(batches)
        if not self._caught_up.is_set() and consumer.assignment():
            if not ends:
                ends.update({tp: consumer.offset_range(tp)[1] for tp in consumer.assignment()})
            if all((consumer.position(tp) or 0) >= end for tp, end in ends.items()):
                self._caught_up.set()

    def _wait(self, exc: LogUnavailable) -> None:
        logger.warning("reading %s: %s; tried again", self.topic, exc)
        self._stop.wait(_AGAIN_S)

    def _waiting_records(self) -> int:
        with self._lock:
            return sum(len(batch) for batches in self._waiting for batch in batches)

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        assert self._consumer is not None
        for tp in partitions:
            # an error here would leave the partition unread: the log is asked until it answers
            while tp not in self._next and not self._stop.is_set():
                try:
                    self._next[tp] = self._consumer.offset_range(tp)[0]
                except LogUnavailable as exc:
                    self._wait(exc)
        return {tp: self._next.get(tp) for tp in partitions}

    def on_revoke(self, partitions: list[TP]) -> None:
        """Nothing to give up."""

    def on_lost(self, partitions: list[TP]) -> None:
        """Nothing to give up; they are assigned again."""
