"""``model-events`` as one worker writes and reads it back."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from streams.errors import FatalError, HeadraceError
from streams.log import TP, DeliveryFailed, Log, LogConsumer, LogProducer, OutBatch
from streams.model_events import Schedule, partition_key, read_event
from streams.topics import MODEL_EVENTS

__all__ = ["ModelLog"]

logger = logging.getLogger("headrace.models")

_POLL_S = 0.1
_RECORDS_MAX = 1000
_FLUSH_S = 2.0
#: what could not be written is noticed after so long
_DELIVERED_S = 1.0
#: a record that is not read back for so long is worth a line in the log
_WAIT_SAID_S = 10.0
#: batches wait for what is read here: a fetch that began before a record was there ends soon (default 500)
_QUICK = {"consumer.fetch.wait.max.ms": 50}


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody waits until it is so of a partition: asked after each record, as the next one may change it again."""

    tp: TP
    condition: Callable[[Schedule], bool]
    found: Schedule | None = None

    def look(self, schedule: Schedule) -> None:
        """What was read so far."""
        if self.found is None and self.condition(schedule):
            self.found = schedule.copy()


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
        self._waiters: list[_Waiter] = []
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

    def write(self, event: Mapping[str, Any], key: bytes, timeout_s: float = math.inf) -> bool:
        """Queues a record; it is there once it was read back. From any thread. False where the queue was full for so
        long, or this ends. FatalError ``model-events``: the broker does not take it."""
        if self._producer is None:
            return False
        value = orjson.dumps({"time": int(time.time() * 1000), **event})
        out = OutBatch(MODEL_EVENTS, [value], [key])
        until = time.monotonic() + timeout_s
        try:
            while not self._closing.is_set():
                if self._producer.send(out):
                    return True
                if time.monotonic() > until:
                    break
                self._producer.poll(_POLL_S)
        except DeliveryFailed as exc:
            raise _not_written(exc) from exc
        return False

    def schedule(self, tp: TP) -> Schedule:
        """What was read of the partition so far: a copy."""
        with self._cond:
            return self._schedules.get(tp, Schedule()).copy()

    def written(
        self, tp: TP, event: Mapping[str, Any], condition: Callable[[Schedule], bool], wanted: Callable[[], bool]
    ) -> Schedule | None:
        """Writes a record about the partition; returns what was read of it when it first was so, however it has changed
        since. None: it is no longer ``wanted``. FatalError ``stopping``: the worker ends."""
        waiter = _Waiter(tp, condition)
        with self._cond:
            waiter.look(self._schedules.get(tp, Schedule()))
            self._waiters.append(waiter)
        try:
            self.write(event, partition_key(self._group, tp))
            said = time.monotonic()
            # asked without our lock: it takes the assignment's, with which the stages ask the gate
            while wanted():
                with self._cond:
                    if waiter.found is None and not self._closing.is_set():
                        self._cond.wait(_POLL_S)
                    if waiter.found is not None:
                        return waiter.found
                    if self._closing.is_set():
                        raise FatalError("stopping", f"{tp.topic}/{tp.partition}: the worker ends. Nothing to do.")
                if time.monotonic() - said > _WAIT_SAID_S:
                    said = time.monotonic()
                    logger.warning(
                        "%s/%d waits for its %s record to be in %s: is the broker up?",
                        *tp,
                        event["event"],
                        MODEL_EVENTS,
                    )
            return None
        finally:
            with self._cond:
                self._waiters.remove(waiter)

    def end_of(self, tp: TP) -> int:
        """Where the partition's log ends now."""
        assert self._consumer is not None
        return self._consumer.offset_range(tp)[1]

    def close(self) -> None:
        """Sends what is queued, as far as that is possible, and ends."""
        try:
            if self._producer is not None:
                self._producer.flush(_FLUSH_S)
        except (DeliveryFailed, HeadraceError) as exc:
            logger.warning("%s: %s", MODEL_EVENTS, exc)
        finally:
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
            delivered_at = time.monotonic()
            while not self._closing.is_set():
                for batch in self._consumer.poll(_POLL_S, _RECORDS_MAX):
                    self._next[batch.tp] = batch.next_offset
                    for value in batch.values:
                        self._read(value)
                self._producer.poll(0)
                if time.monotonic() - delivered_at > _DELIVERED_S:
                    delivered_at = time.monotonic()
                    self._producer.flush(0)  # says what could not be delivered
        except DeliveryFailed as exc:
            self._failed(_not_written(exc))
        except HeadraceError as exc:
            self._failed(exc)
        except Exception as exc:
            logger.exception("reading %s failed", MODEL_EVENTS)
            self._failed(FatalError("model-events", f"{type(exc).__name__}: {exc}. See the log above."))
        finally:
            self._consumer.close()

    def _read(self, value: bytes | None) -> None:
        event = read_event(value)
        if event is None or event.get("group") != self._group:
            return
        topic, partition, holder = event.get("topic"), event.get("partition"), event.get("holder")
        if not isinstance(topic, str) or not isinstance(partition, int) or not isinstance(holder, str):
            return  # about a model, or about nothing
        tp = TP(topic, partition)
        try:
            with self._cond:
                schedule = self._schedules.setdefault(tp, Schedule())
                schedule.apply(event)
                for waiter in self._waiters:
                    if waiter.tp == tp:
                        waiter.look(schedule)
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


def _not_written(exc: DeliveryFailed) -> FatalError:
    return FatalError(
        "model-events",
        f"{MODEL_EVENTS} cannot be written: {exc}. Models change only where that is in the log: let the worker write "
        "to the topic; a restarted worker goes on.",
    )
