"""One worker: a Faust app whose agents feed a pipeline's tasks with batches, and send what comes out."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import faust

from features.plan import BoundError
from streams.errors import EXIT_FAILED, EXIT_OK, EXIT_WATCHDOG, ConfigError, FatalError, HeadraceError
from streams.log import TP, DeliveryFailed, Log, LogConsumer, LogProducer, OutBatch, RecordBatch, TopicInfo
from streams.reader import BlockReader, ReaderSettings
from streams.transport import BlockApp, BlockConsumer, BlockSchema

__all__ = ["Pipeline", "Task", "Worker", "ensure_topics"]

logger = logging.getLogger("headrace.worker")


class Task(Protocol):
    """One stage on one partition: the state that `Pipeline.process` moves on."""

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """Decisions by the clock, written to the log for others (rule 5); never touches what `process` computes."""


class Pipeline(Protocol):
    """The stages of one worker, by input topic."""

    @property
    def topics(self) -> Sequence[TopicInfo]:
        """Every topic that is read or written."""

    @property
    def inputs(self) -> Sequence[str]:
        """The topics that are read, each by one stage."""

    def warm(self) -> None:
        """Compiles and loads what the first batch would otherwise wait for."""

    def bind(self, topics: Mapping[str, TopicInfo]) -> None:
        """What the broker says of the topics, before the first task."""

    def start_offset(self, tp: TP, live_from: int, earliest: int) -> int:
        """Where to read from for the state to be whole at ``live_from``."""

    def task(self, tp: TP) -> Task:
        """A task with the state that belongs to `start_offset`."""

    def wake(self, parts: Sequence[tuple[Any, RecordBatch]], tasks: Callable[[], Sequence[Any]]) -> list[OutBatch]:
        """What goes out before `process` of these parts; ``tasks()`` are all of this worker's. Decisions of the moment,
        written to the log for others (rule 5)."""

    def process(self, parts: Sequence[tuple[Any, RecordBatch]]) -> list[OutBatch]:
        """Moves tasks of one topic, each of another partition, over their batches; returns the outputs, none of a
        batch that is ``replay``. Equal to one after the other; together what they share is done once."""


def runs_of(batches: Sequence[RecordBatch], records_max: int) -> list[list[RecordBatch]]:
    """The batches in runs: of one topic, of different partitions, of at most so many records unless one alone has more.

    What a stage does for a run together costs less than for each of its batches; what it does without giving way
    stays bounded.
    """
    runs: list[list[RecordBatch]] = []
    open_runs: dict[str, list[RecordBatch]] = {}
    for batch in batches:
        run = open_runs.get(batch.tp.topic)
        if run is None or any(other.tp == batch.tp for other in run) or sum(map(len, run)) + len(batch) > records_max:
            run = open_runs[batch.tp.topic] = []
            runs.append(run)
        run.append(batch)
    return runs


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

    ``hard_exit`` ends the process when a stage hangs, since nothing gentler works then.
    """

    def __init__(
        self,
        log: Log,
        pipeline: Pipeline,
        group: str,
        *,
        settings: ReaderSettings | None = None,
        on_ready: Callable[[], None] = lambda: None,
        hard_exit: Callable[[int], Any] = os._exit,
    ) -> None:
        self._log = log
        self._pipeline = pipeline
        self._group = group
        self._settings = settings or ReaderSettings()
        self._on_ready = on_ready
        self._hard_exit = hard_exit
        self._tasks: dict[TP, tuple[int, Task]] = {}
        #: partitions whose task is at work: in a batch or in a tick, never in both
        self._inside: set[TP] = set()
        self._error: HeadraceError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prepared = asyncio.Event()
        self._ended = asyncio.Event()
        self._producer: LogProducer | None = None
        self._member: LogConsumer | None = None
        self._reader: BlockReader | None = None
        self._consumer: BlockConsumer | None = None
        self._topics: dict[str, TopicInfo] = {}
        self._produce_s = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """CPU seconds so far of what is not in a stage: ``consume`` (the consumer thread), ``produce``."""
        return {"consume": self._reader.cpu_s if self._reader is not None else 0.0, "produce": self._produce_s}

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
            return self._exit_code()
        assert self._producer is not None
        self._pipeline.bind(self._topics)
        app = self._build_app()
        await app.start()
        ticking = asyncio.create_task(self._tick())
        await self._ended.wait()
        if self._reader is not None:
            self._reader.leave(drain=self._error is None)
            await asyncio.to_thread(self._reader.join, self._settings.drain_s + 5)
        ticking.cancel()
        await app.stop()
        self._producer.close()
        return self._exit_code()

    def _prepare(self) -> None:
        """What may take long before the worker joins its group: kernels, and a broker that is not up yet.

        A daemon thread, so that a worker that is told to stop meanwhile stops.
        """
        assert self._loop is not None
        try:
            # made first: they refuse wrong settings before anything connects
            self._producer = self._log.producer()
            self._member = self._log.consumer(self._group)
            self._pipeline.warm()
            self._topics = ensure_topics(self._log, self._pipeline.topics)
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
        )
        app.on_subscribed = self._on_subscribed
        for topic in self._pipeline.inputs:
            app.agent(app.topic(topic, schema=BlockSchema(), acks=False), name=f"headrace.{topic}")(self._agent)
        return app

    async def _agent(self, stream: faust.StreamT[list[RecordBatch]]) -> None:
        async for batches in stream:
            await self._handle(batches)

    async def _on_subscribed(self, consumer: BlockConsumer, topics: list[str]) -> Mapping[str, int]:
        self._consumer = consumer
        assert self._member is not None
        self._reader = BlockReader(self._member, topics, self, self._settings)
        self._reader.start()
        return {name: self._topics[name].partitions for name in topics}

    async def _handle(self, run: list[RecordBatch]) -> None:
        """A run of batches of one topic through their tasks. Never raises: what cannot be handled ends the worker
        with a reason.

        From then on nothing is processed: to send what lies behind a batch that failed would make its rows look as if
        they had been sent before (rule 3).
        """
        batches = await self._begin(run)
        if not batches or self._error is not None:
            return
        assert self._reader is not None
        partitions = {batch.tp for batch in batches}
        self._inside |= partitions
        try:
            parts = [(self._task(batch.tp, batch.epoch), batch) for batch in batches]
            outputs = self._pipeline.wake(parts, self._all_tasks) + self._pipeline.process(parts)
            await self._send(outputs, self._reader)
            self._reader.done(batches)
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

    async def _begin(self, run: list[RecordBatch]) -> list[RecordBatch]:
        """Waits for a commit, and for a tick that waits for the producer: its marks go out before our rows."""
        assert self._reader is not None
        while True:
            while any(batch.tp in self._inside for batch in run):
                await asyncio.sleep(0.001)
            batches = self._reader.begin(run)
            if batches is not None:
                return batches
            await asyncio.sleep(0.0005)

    def _task(self, tp: TP, epoch: int) -> Task:
        """The task of this assignment of the partition, made where there is none yet."""
        known, task = self._tasks.get(tp, (0, None))
        if task is None or known != epoch:
            task = self._pipeline.task(tp)
            self._tasks[tp] = (epoch, task)
        return task

    def _all_tasks(self) -> list[Task]:
        assert self._reader is not None
        return [self._task(tp, epoch) for tp, epoch in self._reader.epochs().items()]

    async def _tick(self) -> None:
        """Ten times a second: the tasks' decisions by the clock, between batches."""
        while self._error is None:
            await asyncio.sleep(0.1)
            reader = self._reader
            if reader is None or self._producer is None:
                continue
            self._producer.poll(0)  # what it has to say is heard in time also when nothing is sent
            for tp, (epoch, at_end) in reader.at_end().items():
                if tp not in self._inside and reader.owns(tp, epoch):
                    await self._tick_task(tp, self._task(tp, epoch), at_end, reader)

    async def _tick_task(self, tp: TP, task: Task, at_end: bool, reader: BlockReader) -> None:
        self._inside.add(tp)
        try:
            await self._send(task.tick(time.monotonic(), at_end), reader)
        except asyncio.CancelledError:
            raise
        except FatalError as exc:
            self.failed(exc)
        except Exception as exc:
            logger.exception("a tick failed")
            self.failed(FatalError("tick-failed", f"{tp.topic}/{tp.partition}: {exc!r}. Report this with the log."))
        finally:
            self._inside.discard(tp)

    async def _send(self, outputs: list[OutBatch], reader: BlockReader) -> None:
        assert self._producer is not None
        started = time.thread_time()
        for out in outputs:
            try:
                sent = self._producer.send(out)
                if sent < len(out):
                    self._produce_s += time.thread_time() - started
                    await self._send_rest(out, sent, reader)
                    started = time.thread_time()
            except DeliveryFailed as exc:
                raise FatalError("delivery-failed", f"{exc}. A restarted worker sends it again.") from exc
        self._produce_s += time.thread_time() - started

    async def _send_rest(self, out: OutBatch, sent: int, reader: BlockReader) -> None:
        """Back-pressure: the producer's queue is full; the stage waits, and with it the consumer."""
        assert self._producer is not None
        since = warned = time.monotonic()
        while sent < len(out):
            reader.waiting()
            self._producer.poll(0)
            await asyncio.sleep(0.005)
            sent = self._producer.send(out, sent)
            now = time.monotonic()
            if now - warned > 10:
                warned = now
                logger.warning("the producer's queue has been full for %.0f s: is the broker up?", now - since)

    # -- ReaderHost, on the consumer thread --

    def start_offset(self, tp: TP, live_from: int, earliest: int) -> int:
        return self._pipeline.start_offset(tp, live_from, earliest)

    def deliver(self, batches: list[RecordBatch]) -> None:
        assert self._loop is not None and self._consumer is not None
        self._loop.call_soon_threadsafe(self._consumer.deliver, runs_of(batches, self._settings.batch_records))

    def dropped(self, partitions: list[TP]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drop_tasks, partitions)

    def _drop_tasks(self, partitions: list[TP]) -> None:
        for tp in partitions:
            epoch, _ = self._tasks.get(tp, (0, None))
            reader = self._reader
            # the partition may have come back meanwhile, with a newer epoch and a new task
            if reader is None or not reader.owns(tp, epoch):
                self._tasks.pop(tp, None)

    def flush(self, timeout_s: float) -> int:
        assert self._producer is not None
        return self._producer.flush(timeout_s)

    def ready(self) -> None:
        self._on_ready()

    def failed(self, error: HeadraceError) -> None:
        assert self._loop is not None
        if self._error is None:
            self._error = error
        if isinstance(error, FatalError) and error.reason == "stage-stalled":
            logger.critical("%s", error)
            self._hard_exit(EXIT_WATCHDOG)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended.set)
