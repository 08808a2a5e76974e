"""A small stateful pipeline and helpers to run workers in threads, for tests of transport and worker."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import uvloop

from streams.checkpoint_store import CheckpointStore
from streams.checkpoints import CheckpointSettings, StateOf
from streams.listeners import FromStart
from streams.log import TP, Log, LogProducer, OutBatch, RecordBatch, TopicInfo
from streams.reader import BlockReader, ReaderSettings
from streams.worker import Worker

FAST = ReaderSettings(commit_interval_s=0.05, batch_records=64, revoke_s=5.0, drain_s=5.0)


class CountingTask:
    """Numbers the records of its partition: the output shows whether state and offset stayed together."""

    def __init__(self, pipeline: CountingPipeline, tp: TP) -> None:
        self.pipeline = pipeline
        self.tp = tp
        self.count = self.next_offset = 0

    def state(self) -> dict[str, npt.NDArray[np.int64]]:
        return {"count": np.array([self.count, self.next_offset])}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.int64]]) -> None:
        self.count, self.next_offset = arrays["count"].tolist()

    def process(self, batch: RecordBatch) -> list[OutBatch]:
        self.pipeline.before(self.tp, batch)
        values = []
        for value in batch.values:
            self.count += 1
            values.append(b"%d:%d:%s" % (self.tp.partition, self.count, value or b""))
        self.next_offset = batch.next_offset
        self.pipeline.replayed += len(batch) if batch.replay else 0
        if batch.replay:
            return []
        headers = [[("source", b"%s/%d/%d" % (self.tp.topic.encode(), self.tp.partition, o))] for o in batch.offsets]
        return [OutBatch(self.pipeline.output, values, batch.keys, None, headers)]

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        return []


class CountingPipeline:
    """Topic in -> topic out."""

    def __init__(self, source: str, output: str, partitions: int = 4) -> None:
        self.source, self.output = source, output
        self.partitions = partitions
        self.replayed = 0
        self.before: Callable[[TP, RecordBatch], None] = lambda tp, batch: None

    @property
    def topics(self) -> Sequence[TopicInfo]:
        return [TopicInfo(self.source, self.partitions, ""), TopicInfo(self.output, self.partitions, "")]

    @property
    def inputs(self) -> Sequence[str]:
        return [self.source]

    def warm(self) -> None:
        pass

    def bind(self, topics: Mapping[str, TopicInfo]) -> None:
        pass

    def is_stateful(self, topic: str) -> bool:
        return True

    def state_of(self, topic: str) -> StateOf:
        return StateOf("count", "", "", "", "")

    def task(self, tp: TP) -> CountingTask:
        return CountingTask(self, tp)

    def use_ends(self, confirmed: object) -> None:
        pass

    def wake(self, parts: object, tasks: object) -> list[OutBatch]:
        return []

    def process(self, parts: Sequence[tuple[CountingTask, RecordBatch]]) -> list[OutBatch]:
        return [out for task, batch in parts for out in task.process(batch)]


class Running:
    """A worker in a thread of its own."""

    def __init__(
        self,
        log: Log,
        pipeline: CountingPipeline,
        group: str,
        settings: ReaderSettings = FAST,
        transactional_id: str | None = None,
        checkpoints: CheckpointStore | None = None,
        checkpoint_settings: CheckpointSettings | None = None,
        replays_apart: bool = False,
        on_uvloop: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self._on_uvloop = on_uvloop
        self._replays_apart = replays_apart
        self._checkpoints, self._checkpoint_settings = checkpoints, checkpoint_settings
        self._transactional_id = transactional_id
        self.ready = threading.Event()
        self.exits: list[int] = []
        self.code: int | None = None
        self._worker: Worker | None = None
        self._log, self._group, self._settings = log, group, settings
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        async def main() -> int:
            self._worker = Worker(
                self._log,
                self.pipeline,
                self._group,
                settings=self._settings,
                checkpoints=self._checkpoints,
                checkpoint_settings=self._checkpoint_settings,
                transactional_id=self._transactional_id,
                on_ready=self.ready.set,
                hard_exit=self._hard_exit,
            )
            self._worker.replays_apart = self._replays_apart
            return await self._worker.run()

        self.code = uvloop.run(main()) if self._on_uvloop else asyncio.run(main())

    def on_loop(self, callback: Callable[[], object]) -> None:
        """Has the event loop call it, when it comes to that."""
        assert self._worker is not None and self._worker._loop is not None
        self._worker._loop.call_soon_threadsafe(callback)

    def _hard_exit(self, code: int) -> None:
        self.exits.append(code)

    @property
    def reader(self) -> BlockReader:
        assert self._worker is not None and self._worker.reader is not None
        return self._worker.reader

    @property
    def error(self) -> str:
        assert self._worker is not None
        return str(self._worker.error)

    def stop(self) -> int:
        assert self._worker is not None
        self._worker.stop()
        self.thread.join(20)
        assert not self.thread.is_alive(), "the worker did not leave"
        assert self.code is not None
        return self.code


def names() -> tuple[str, str, str]:
    """Fresh names: input topic, output topic, group."""
    suffix = uuid.uuid4().hex[:8]
    return f"in-{suffix}", f"out-{suffix}", f"g-{suffix}"


#: by log: a new idempotent producer waits half a second for its id, which would be what the tests measure
_producers: dict[str, LogProducer] = {}


def send(log: Log, topic: str, values: Sequence[bytes], partitions: int = 4, first: int = 0) -> None:
    """Values spread over the partitions, in order."""
    producer = _producers.get(log.url) or _producers.setdefault(log.url, log.producer())
    for p in range(partitions):
        mine = [v for i, v in enumerate(values, first) if i % partitions == p]
        if mine:
            producer.send(OutBatch(topic, mine, None, p))
    assert producer.flush(20) == 0


def read_all(
    log: Log, topic: str, enough: Callable[[list[RecordBatch]], bool], timeout_s: float = 60
) -> list[RecordBatch]:
    """Batches of the topic from its start until there are enough."""
    consumer = log.consumer(f"read-{uuid.uuid4().hex}")
    consumer.subscribe([topic], FromStart(consumer))
    got: list[RecordBatch] = []
    deadline = time.monotonic() + timeout_s
    try:
        while not enough(got):
            assert time.monotonic() < deadline, f"only {sum(map(len, got))} records came"
            got += consumer.poll(0.1, 10_000)
    finally:
        consumer.close()
    return got


def committed(log: Log, group: str, topic: str, partitions: int = 4) -> dict[int, int | None]:
    """What the group has committed, by partition."""
    consumer = log.consumer(group)
    try:
        return {tp.partition: at for tp, at in consumer.committed([TP(topic, p) for p in range(partitions)]).items()}
    finally:
        consumer.close()


def end_offsets(log: Log, topic: str, partitions: int = 4) -> dict[int, int]:
    """Where each partition ends."""
    consumer = log.consumer(f"ends-{uuid.uuid4().hex}")
    try:
        return {p: consumer.offset_range(TP(topic, p))[1] for p in range(partitions)}
    finally:
        consumer.close()


def values_of(batches: list[RecordBatch]) -> list[bytes]:
    return [v for b in batches for v in b.values if v is not None]


def until(condition: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for: {what}"
        time.sleep(0.01)
