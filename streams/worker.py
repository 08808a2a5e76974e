"""One worker: a Faust app whose agents feed a pipeline's tasks with batches, and send what comes out."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import faust

from features.plan import BoundError
from streams.checkpoint_store import CheckpointStore
from streams.checkpoints import Checkpoints, CheckpointSettings
from streams.errors import EXIT_FAILED, EXIT_OK, EXIT_WATCHDOG, ConfigError, FatalError, HeadraceError
from streams.gate import Gate, OpenGate
from streams.log import (
    TP,
    Log,
    LogConsumer,
    LogProducer,
    RecordBatch,
    TopicInfo,
    TransactionalProducer,
)
from streams.outbox import Outbox
from streams.pipeline import Pipeline, Task, runs_of
from streams.reader import BlockReader, ReaderSettings
from streams.recovery import Assigned
from streams.transport import BlockApp, BlockConsumer, NoTables

__all__ = ["Pipeline", "Task", "Worker", "ensure_topics"]

logger = logging.getLogger("headrace.worker")

#: a worker that is told to leave has done so after this time; ending the interpreter takes a second more
_LEAVE_S = 8.5
#: which each of its clients has in any case
_LEAVE_MIN_S = 0.5
#: how often a batch that may not begin asks again: below a millisecond uvloop does not sleep at all, and the thread
#: that brings the decision hardly gets a turn
_LOOK_AGAIN_S = 0.001


def ensure_topics(log: Log, topics: Sequence[TopicInfo]) -> dict[str, TopicInfo]:
    """Creates the missing topics, waiting for the broker; returns all of them as they are."""
    admin = log.admin()
    try:
        created = admin.create_topics(topics)
        if created:
            logger.info("created topics %s", ", ".join(created))
        return admin.topics([t.name for t in topics])
    finally:
        admin.close()


class Worker:
    """Runs ``pipeline`` as a member of ``group`` until `stop` or a fatal error.

    With a ``transactional_id``, which no other worker may have, outputs and offsets go in transactions: exactly once;
    without, at least once. ``hard_exit`` ends the process when a stage hangs, since nothing gentler works then.
    """

    def __init__(
        self,
        log: Log,
        pipeline: Pipeline,
        group: str,
        *,
        settings: ReaderSettings | None = None,
        checkpoints: CheckpointStore | None = None,
        checkpoint_settings: CheckpointSettings | None = None,
        transactional_id: str | None = None,
        on_ready: Callable[[], None] = lambda: None,
        hard_exit: Callable[[int], Any] = os._exit,
    ) -> None:
        self._log = log
        self._pipeline = pipeline
        self._group = group
        self._settings = settings or ReaderSettings()
        self._checkpoints: Checkpoints | None = None
        if checkpoints is not None:
            of = pipeline.state_of
            self._checkpoints = Checkpoints(checkpoints, group, of, checkpoint_settings or CheckpointSettings())
        self._transactional_id = transactional_id
        self._on_ready = on_ready
        self._hard_exit = hard_exit
        self._tasks: dict[TP, tuple[int, Task]] = {}
        #: tasks that wait for the first batch of their assignment
        self._recovered: dict[tuple[TP, int], Task] = {}
        #: a worker that leaves keeps its tasks for their last checkpoints
        self._leaving = False
        #: partitions whose task is at work: in a batch or in a tick, never in both
        self._inside: set[TP] = set()
        #: whether tasks of different topics may replay at the same time: they share nothing that is not made for it
        self.replays_apart = False
        #: partitions whose task is replaying on a thread: in the middle of a batch until that is done
        self._replaying: set[TP] = set()
        self._error: HeadraceError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prepared = asyncio.Event()
        self._ended = asyncio.Event()
        self._producer: LogProducer | None = None
        #: the producer, in exactly once
        self._transactions: TransactionalProducer | None = None
        self._member: LogConsumer | None = None
        self._reader: BlockReader | None = None
        self._consumer: BlockConsumer | None = None
        self._topics: dict[str, TopicInfo] = {}
        self._outbox: Outbox | None = None
        #: to be set before `run`
        self.gate: Gate = OpenGate()

    @property
    def seconds(self) -> dict[str, float]:
        """CPU seconds so far of what is not in a stage: ``consume`` (the consumer thread), ``produce``."""
        if self._reader is None:
            return {"consume": 0.0, "produce": 0.0}
        sent = 0.0 if self._outbox is None else self._outbox.cpu_s
        return {"consume": self._reader.cpu_s, "produce": sent + self._reader.committer.cpu_s}

    @property
    def checkpoints(self) -> dict[str, float]:
        """How many this worker has written, seconds that the last one took, and the pauses for them: the longest and
        percentiles; empty where none are kept."""
        kept = self._checkpoints
        if kept is None:
            return {}
        pauses = {"pause_ms": 100.0, "pause_ms_p50": 50.0, "pause_ms_p99": 99.0} if kept.pauses.count else {}
        return {
            "written": kept.written,
            "took_s": round(kept.took_s, 3),
            **{name: round(kept.pauses.percentile(percent), 2) for name, percent in pauses.items()},
        }

    @property
    def recovery(self) -> dict[str, Any]:
        """What this worker's first recovery took, see `Progress.figures`; empty before it was ready."""
        return {} if self._reader is None else self._reader.progress.figures()

    @property
    def lag(self) -> dict[str, dict[str, float]]:
        """By stage, ``records`` that wait for it and how many ``seconds`` ago the oldest in hand was sent."""
        lags = {} if self._reader is None else self._reader.lag.lags
        return {self._pipeline.state_of(topic).stage: lag._asdict() for topic, lag in lags.items()}

    def oldest_sent_ms(self, topic: str) -> int | None:
        """When the oldest record of the topic was sent that waits for its stage; None where none does."""
        return None if self._reader is None else self._reader.assignment.oldest_sent_ms(topic)

    @property
    def reader(self) -> BlockReader | None:
        """The consumer thread, once subscribed."""
        return self._reader

    @property
    def error(self) -> HeadraceError | None:
        """Why the worker ended, if it had to."""
        return self._error

    async def run(self) -> int:
        """Runs until stopped; returns the exit code. ConfigError: settings that the log's clients refuse."""
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._prepare, name="headrace-start", daemon=True).start()
        waits = [asyncio.create_task(event.wait()) for event in (self._prepared, self._ended)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._ended.is_set():
            self.gate.close()
            return self._exit_code()
        assert self._producer is not None
        self._outbox = Outbox(self._producer)
        self._pipeline.bind(self._topics)
        app = self._build_app()
        await app.start()
        ticking = asyncio.create_task(self._tick())
        await self._ended.wait()
        ends_at = time.monotonic() + _LEAVE_S
        self._leaving = self._error is None
        if self._reader is not None:
            self._reader.leave(drain=self._error is None)
            await self._in_time(self._reader, ends_at)
        ticking.cancel()
        if self._checkpoints is not None and self._error is None:
            whole = {tp: task for tp, task in self._stateful_tasks().items() if tp not in self._replaying}
            self._checkpoints.finish(whole, ends_at - time.monotonic())
        await app.stop()
        await asyncio.to_thread(self.gate.close)
        closing = threading.Thread(target=self._producer.close, name="headrace-close", daemon=True)
        closing.start()
        await self._in_time(closing, ends_at)
        return self._exit_code()

    @staticmethod
    async def _in_time(thread: threading.Thread, ends_at: float) -> None:
        """Waits for its end, not longer than a leaving worker may take: a client whose broker is there and does not
        answer can wait for ever, and what it waits for is not committed anyway."""
        await asyncio.to_thread(thread.join, max(_LEAVE_MIN_S, ends_at - time.monotonic()))
        if thread.is_alive():
            logger.warning("%s is left behind: no answer from the broker in time", thread.name)

    def _prepare(self) -> None:
        """What may take long before the worker joins its group: kernels, and a broker that is not up yet.

        A daemon thread, so that a worker that is told to stop meanwhile stops.
        """
        assert self._loop is not None
        try:
            # made first: they refuse wrong settings before anything connects
            if self._transactional_id is not None:
                self._producer = self._transactions = self._log.transactional_producer(self._transactional_id)
            else:
                self._producer = self._log.producer()
            self._member = self._log.consumer(self._group)
            if self._checkpoints is not None:
                logger.info("checkpoints in %s", self._checkpoints.store.url)
            self._pipeline.warm()
            self._topics = ensure_topics(self._log, self._pipeline.topics)
            self.gate.start(self._log, self._group, self.failed, self._owns)
            if self._transactions is not None:
                self._transactions.init()
        except HeadraceError as exc:
            self.failed(exc)
        except Exception as exc:
            logger.exception("the worker could not start")
            self.failed(FatalError("start-failed", f"{type(exc).__name__}: {exc}. See the log above."))
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._prepared.set)

    def _exit_code(self) -> int:
        if self._error is None:
            return EXIT_OK
        if isinstance(self._error, ConfigError):
            raise self._error
        logger.error("%s", self._error)
        return EXIT_FAILED

    def stop(self) -> None:
        """Finish what was taken, commit, leave the group. From any thread or a signal handler."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended.set)

    def _build_app(self) -> BlockApp:
        app = BlockApp(
            self._group,
            broker=self._log.url,
            store="memory://",
            autodiscover=False,
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            stream_recovery_delay=0.0,
            stream_wait_empty=False,
            TableManager=NoTables,
        )
        app.on_subscribed = self._on_subscribed
        for topic in self._pipeline.inputs:
            app.feed(topic, f"headrace.{topic}", self._agent)
        return app

    async def _agent(self, stream: faust.StreamT[list[RecordBatch]]) -> None:
        async for batches in stream:
            await self._handle(batches)

    async def _on_subscribed(self, consumer: BlockConsumer, topics: list[str]) -> Mapping[str, int]:
        self._consumer = consumer
        assert self._member is not None
        partitions = {name: self._topics[name].partitions for name in topics}
        self._reader = BlockReader(self._member, partitions, self, self._settings, self._transactions)
        self._pipeline.use_ends(self._reader.assignment.end_confirmed)
        self._reader.assignment.admits = self.gate.admits
        self._reader.start()
        return partitions

    async def _handle(self, run: list[RecordBatch]) -> None:
        """A run of batches of one topic through their tasks. Never raises: what cannot be handled ends the worker
        with a reason.

        From then on nothing is processed: to send what lies behind a batch that failed would make its rows look as if
        they had been sent before (rule 3).
        """
        batches = await self._begin(run)
        if not batches or self._error is not None:
            return
        assert self._reader is not None and self._outbox is not None
        partitions = {batch.tp for batch in batches}
        self._inside |= partitions
        try:
            parts = [(self._task(batch.tp, batch.epoch), batch) for batch in batches]
            if self.replays_apart and all(batch.replay for batch in batches):
                await self._replay(parts)
            elif self._transactions is not None:
                self._keep_outputs(parts, self._reader)
            else:
                outputs = self._pipeline.wake(parts, self._all_tasks) + self._pipeline.process(parts)
                await self._outbox.send(outputs, self._reader.assignment.waiting)
            self._reader.assignment.done(batches)
        except asyncio.CancelledError:
            raise
        except FatalError as exc:
            self.failed(exc)
        except BoundError as exc:
            # to go on would give this key and others wrong features; the log still has everything
            self.failed(FatalError("state-full", f"{exc}. The bound is the setting state_mb_max."))
        except Exception as exc:
            logger.exception("stage failed")
            where = "; ".join(f"{b.tp.topic}/{b.tp.partition} offsets {b.offsets[0]}..{b.offsets[-1]}" for b in batches)
            self.failed(
                FatalError(
                    "stage-failed",
                    f"{where}: {type(exc).__name__}: {exc}. "
                    "Nothing after the last commit counts; report this with the log.",
                )
            )
        finally:
            self._inside -= partitions

    async def _replay(self, parts: Sequence[tuple[Task, RecordBatch]]) -> None:
        """A run that leaves nothing but state, on a thread: while kernels are at work, other stages go on."""
        partitions = {batch.tp for _, batch in parts}
        self._replaying |= partitions
        try:
            await asyncio.to_thread(self._pipeline.process, parts)
        finally:
            self._replaying -= partitions

    async def _begin(self, run: list[RecordBatch]) -> list[RecordBatch]:
        """Waits for a commit, and for a tick that waits for the producer: its marks go out before our rows."""
        assert self._reader is not None
        while True:
            while any(batch.tp in self._inside for batch in run):
                await asyncio.sleep(_LOOK_AGAIN_S)
            batches = self._reader.assignment.begin(run)
            if batches is not None:
                return batches
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _task(self, tp: TP, epoch: int) -> Task:
        """The task of this assignment of the partition, which `recover` made."""
        known, task = self._tasks.get(tp, (0, None))
        if task is None or known != epoch:
            task = self._recovered.pop((tp, epoch))
            self._tasks[tp] = (epoch, task)
        return task

    def _all_tasks(self) -> list[Task]:
        assert self._reader is not None
        return [self._task(tp, epoch) for tp, epoch in self._reader.assignment.epochs().items()]

    def _keep_outputs(self, parts: Sequence[tuple[Task, RecordBatch]], reader: BlockReader) -> None:
        """Exactly once: what a run of one batch makes, each output with the partition whose it is.

        Tasks are woken one by one, since a mark of a partition that is lost later must be left out as its rows are: it
        says that they were sent.
        """
        [(_, batch)] = parts
        for tp, epoch in reader.assignment.epochs().items():
            reader.committer.keep(tp, epoch, self._pipeline.wake(parts, partial(self._only, tp, epoch)))
        reader.committer.keep(batch.tp, batch.epoch, self._pipeline.process(parts))

    def _only(self, tp: TP, epoch: int) -> list[Task]:
        return [self._task(tp, epoch)]

    async def _tick(self) -> None:
        """Ten times a second: the tasks' decisions by the clock, between batches."""
        while self._error is None:
            await asyncio.sleep(0.1)
            reader = self._reader
            if reader is None or self._producer is None:
                continue
            if self._transactions is None:  # else the thread of the transactions hears it
                try:
                    self._producer.poll(0)  # what it has to say is heard in time also when nothing is sent
                except FatalError as exc:
                    self.failed(exc)
                    return
            for tp, (epoch, at_end) in reader.assignment.at_end().items():
                if tp not in self._inside and reader.assignment.owns(tp, epoch):
                    await self._tick_task(tp, epoch, at_end, reader)
            if self._checkpoints is not None:
                try:
                    self._checkpoints.step(self._stateful_tasks(), reader.assignment.committed_of, self._replaying)
                except Exception as exc:
                    logger.exception("checkpoints failed")
                    self.failed(FatalError("checkpoints-failed", f"{exc!r}. Report this with the log."))

    def _stateful_tasks(self) -> dict[TP, Task]:
        return {tp: task for tp, (_, task) in self._tasks.items() if self._pipeline.is_stateful(tp.topic)}

    async def _tick_task(self, tp: TP, epoch: int, at_end: bool, reader: BlockReader) -> None:
        assert self._outbox is not None
        self._inside.add(tp)
        try:
            marks = self._task(tp, epoch).tick(time.monotonic(), at_end)
            if self._transactions is not None:
                reader.committer.keep(tp, epoch, marks)
            else:
                await self._outbox.send(marks, reader.assignment.waiting)
        except asyncio.CancelledError:
            raise
        except FatalError as exc:
            self.failed(exc)
        except Exception as exc:
            logger.exception("a tick failed")
            self.failed(FatalError("tick-failed", f"{tp.topic}/{tp.partition}: {exc!r}. Report this with the log."))
        finally:
            self._inside.discard(tp)

    # -- ReaderHost, on the consumer thread --

    def recover(self, assigned: Assigned) -> int:
        tp, committed = assigned.tp, assigned.committed
        if not self._owns(tp, assigned.epoch):  # lost while those before it were loaded
            return assigned.earliest
        task = self._pipeline.task(tp)
        start = assigned.earliest
        if not self._pipeline.is_stateful(tp.topic):
            start = start if committed is None else max(committed, start)
        elif self._checkpoints is not None:
            start = self._checkpoints.load(assigned, task)
        elif committed is not None and start > 0:
            what = "%s/%d: its first %d records were deleted; where the state needs them, features are too small"
            logger.warning(what, *tp, start)
        self.gate.assigned(assigned)
        self._recovered[tp, assigned.epoch] = task
        if not self._owns(tp, assigned.epoch):  # lost before it was kept; lost from now on, it is dropped
            self._recovered.pop((tp, assigned.epoch), None)
        return start

    def _owns(self, tp: TP, epoch: int) -> bool:
        return self._reader is not None and self._reader.assignment.owns(tp, epoch)

    def deliver(self, batches: list[RecordBatch]) -> None:
        assert self._loop is not None and self._consumer is not None
        if self._transactions is not None:
            # so that each output is of one partition, whose outputs alone are dropped when it is lost; a transaction
            # takes longer than what a run of several partitions would save
            runs = [[batch] for batch in batches]
        else:
            runs = runs_of(batches, self._settings.batch_records, self._pipeline.inputs)
        self._loop.call_soon_threadsafe(self._consumer.deliver, runs)

    def dropped(self, partitions: list[TP]) -> None:
        assert self._loop is not None
        if self._reader is not None:
            for tp in partitions:
                self.gate.given_up(tp, self._reader.assignment.settled.get(tp))
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drop_tasks, partitions)

    def _drop_tasks(self, partitions: list[TP]) -> None:
        if self._leaving:
            return
        for tp in partitions:
            epoch, _ = self._tasks.get(tp, (0, None))
            reader = self._reader
            # the partition may have come back meanwhile, with a newer epoch and a new task
            if reader is None or not reader.assignment.owns(tp, epoch):
                self._tasks.pop(tp, None)
            self.gate.forget(tp)
        for tp, epoch in list(self._recovered):
            if self._reader is None or not self._reader.assignment.owns(tp, epoch):
                self._recovered.pop((tp, epoch), None)

    def flush(self, timeout_s: float) -> int:
        assert self._producer is not None
        return self._producer.flush(timeout_s)

    def ready(self) -> None:
        self._on_ready()

    def failed(self, error: HeadraceError) -> None:
        assert self._loop is not None
        if self._error is None:
            self._error = error
        if isinstance(error, FatalError) and error.reason in ("stage-stalled", "transaction-stalled"):
            logger.critical("%s", error)
            self._hard_exit(EXIT_WATCHDOG)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended.set)
