"""``model-events`` as one worker writes and reads it back."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from streams.errors import FatalError, HeadraceError
from streams.log import TP, DeliveryFailed, Log, LogConsumer, LogProducer, OutBatch
from streams.model_events import Schedule, read_event
from streams.topics import MODEL_EVENTS

__all__ = ["ModelLog"]

logger = logging.getLogger("headrace.models")

_POLL_S = 0.1
_RECORDS_MAX = 1000
_FLUSH_S = 2.0
#: batches wait for what is read here: a fetch that began before a record was there ends soon (default 500)
_QUICK = {"consumer.fetch.wait.max.ms": 50}


class ModelLog:
    """Reads the whole topic, then follows it, on a thread of its own; `schedule` has what it says of partitions of
    ``group``.

    ``changed`` is told, on that thread, of a partition about which a record was read; ``failed`` why the thread ended.
    """

    def __init__(
        self,
        log: Log,
        group: str,
        *,
        changed: Callable[[TP], None] = lambda tp: None,
        failed: Callable[[HeadraceError], None] = lambda error: None,
    ) -> None:
        self._log, self._group = log, group
        self._changed, self._failed = changed, failed
        self._cond = threading.Condition()
        self._schedules: dict[TP, Schedule] = {}
        #: of each partition of the topic, the next offset to be read: no record is read twice
        self._next: dict[TP, int] = {}
        self._closing = threading.Event()
        self._producer: LogProducer | None = None
        self._consumer: LogConsumer | None = None
        self._thread = threading.Thread(target=self._run, name="headrace-model-events", daemon=True)

    def start(self) -> None:
        """Begins to read; the topic is there."""
        self._producer = self._log.producer()
        self._consumer = self._log.consumer(f"{self._group}-models-{uuid.uuid4().hex}", config=_QUICK)
        self._thread.start()

    def write(self, event: Mapping[str, Any], key: bytes) -> None:
        """Queues a record; it is there once it was read back. From any thread."""
        if self._producer is None or self._closing.is_set():
            return
        value = orjson.dumps({"time": int(time.time() * 1000), **event})
        out = OutBatch(MODEL_EVENTS, [value], [key])
        while self._producer.send(out) == 0 and not self._closing.is_set():
            self._producer.poll(_POLL_S)

    def schedule(self, tp: TP) -> Schedule:
        """What was read of the partition so far: a copy."""
        with self._cond:
            found = self._schedules.get(tp, Schedule())
            return Schedule(found.holder, list(found.swaps), found.left, found.before)

    def wait(self, tp: TP, condition: Callable[[Schedule], bool]) -> Schedule:
        """What was read of the partition, once it is so. FatalError ``stopping``: the worker ends."""
        with self._cond:
            while not condition(self._schedules.get(tp, Schedule())):
                if self._closing.is_set():
                    raise FatalError("stopping", f"{tp.topic}/{tp.partition}: the worker ends. Nothing to do.")
                self._cond.wait(_POLL_S)
        return self.schedule(tp)

    def end_of(self, tp: TP) -> int:
        """Where the partition's log ends now."""
        assert self._consumer is not None
        return self._consumer.offset_range(tp)[1]

    def close(self) -> None:
        """Sends what is queued, as far as that is possible, and ends."""
        if self._producer is not None:
            try:
                self._producer.flush(_FLUSH_S)
            except DeliveryFailed as exc:
                logger.warning("%s: %s", MODEL_EVENTS, exc)
        self._closing.set()
        with self._cond:
            self._cond.notify_all()
        if self._thread.is_alive():
            self._thread.join(10 * _FLUSH_S)
        if self._producer is not None:
            self._producer.close()

    # -- the reading thread --

    def _run(self) -> None:
        assert self._consumer is not None and self._producer is not None
        try:
            self._consumer.subscribe([MODEL_EVENTS], self)
            while not self._closing.is_set():
                for batch in self._consumer.poll(_POLL_S, _RECORDS_MAX):
                    self._next[batch.tp] = batch.next_offset
                    for value in batch.values:
                        self._read(value)
                self._producer.poll(0)
        except HeadraceError as exc:
            self._failed(exc)
        except Exception as exc:
            logger.exception("reading %s failed", MODEL_EVENTS)
            self._failed(FatalError("model-events", f"{type(exc).__name__}: {exc}. See the log above."))
        finally:
            self._consumer.close()

    def _read(self, value: bytes | None) -> None:
        event = read_event(value)
        if event is None or event.get("group") != self._group or "holder" not in event:
            return
        try:
            tp = TP(event["topic"], int(event["partition"]))
            with self._cond:
                self._schedules.setdefault(tp, Schedule()).apply(event)
                self._cond.notify_all()
        except (KeyError, TypeError, ValueError) as exc:
            raise FatalError(
                "model-events",
                f"{MODEL_EVENTS}: a record about group {self._group} cannot be read ({exc!r}): {value!r}. A newer "
                "headrace has written it: use that one, or another --group.",
            ) from exc
        self._changed(tp)

    # -- RebalanceListener --

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        assert self._consumer is not None
        return {tp: self._next.get(tp, self._consumer.offset_range(tp)[0]) for tp in partitions}

    def on_revoke(self, partitions: list[TP]) -> None:
        """Nothing to give up."""

    def on_lost(self, partitions: list[TP]) -> None:
        """Nothing to give up."""
