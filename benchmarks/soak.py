"""Minutes on end at half of what the machine can do, while a second worker comes and goes: does anything creep?

One worker stays from beginning to end; another joins, and leaves or is killed in turn, so that partitions move all the
time. Every score that comes is compared with the features that the same stages give here, without broker, on one
partition (by a hash of their bits). Memory is the staying worker's; it is flat if the slope from
when its windows were full, 60 days of event time after the start, is within its error.

Latency is from the planned moment of sending (open loop) to the score in a consumer's hands. The stages run in the
order by event time, so that live equals offline: a row waits until all sources have passed it. Worker, broker and this
process, which makes the events and checks the scores, share the machine.
"""

from __future__ import annotations

import queue
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.machine import BenchError, Child, headrace, machine, versions
from benchmarks.soak_rows import Expected, Tally
from benchmarks.workload import train
from features.block import FloatArray
from streams.broker import Broker
from streams.listeners import FromStart
from streams.log import Log, OutBatch, connect
from streams.simulator import World
from streams.simulator_stream import stream
from streams.topics import FRAUD_SCORES, LABELS, TRANSACTIONS, all_topics

__all__ = ["run", "slope"]

GROUP = "headrace-soak"
#: a Monday so long ago that a world which runs much faster than was guessed does not come to the present
_START_MS = 1_104_710_400_000
#: events of a card and day in the simulated world; days of a run at the guessed rate, and until no window grows
_PER_CARD_AND_DAY, _DAYS, _FULL_DAYS = 2, 300, 60
_CARDS_MIN, _CARDS_MAX = 200, 100_000
_GUESSED_RATE = 10_000
#: how long it is measured, of which the first quarter does not count, and the events that are on their way meanwhile
_MEASURED_S, _ON_THEIR_WAY = 20.0, 20_000
_FIRST_LABELS = 1_000
#: how long what was sent last may take, and a worker to join
_DRAIN_S, _JOIN_S = 120.0, 180.0
_SLICES = 10
_CHUNK_S = 0.02
#: the producer, and a worker that is killed, may be held up for longer than the second after which a source is idle
_CONFIG = """checkpoint_interval_ms = 10000
idle_after_ms = 10000
[kafka]
consumer.session.timeout.ms = 6000
"""
#: what is kept of each partition, so that a long run does not fill the disk; far more than is between two checkpoints
_KEPT = {"retention.bytes": str(512 * 1024 * 1024), "segment.bytes": str(64 * 1024 * 1024)}


class _Score(msgspec.Struct, gc=False):
    transaction_id: int
    features: dict[str, float | None]


class _Thread(threading.Thread):
    """Keeps what it died of."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error
            raise


@dataclass(slots=True)
class _Soak:
    """One run, in threads: sends, reads the scores, computes what they must be, lets a second worker come and go."""

    log: Log
    worker: Child
    second: Callable[[], Child]
    rate: float | None
    tally: Tally = field(default_factory=Tally)
    sent: int = 0
    labels: int = 0
    capacity: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)
    read: threading.Event = field(default_factory=threading.Event)
    #: what was sent, for `Expected`; None at the end
    chunks: queue.Queue[list[OutBatch] | None] = field(default_factory=lambda: queue.Queue(1000))
    joins: int = 0
    kills: int = 0
    threads: list[_Thread] = field(default_factory=list)

    def start(self, cards: int, rebalance_s: float) -> None:
        """Begins all but the coming and going, measures what the machine can do where no rate is given."""
        self.threads = [_Thread("soak-read", self._read), _Thread("soak-expect", self._expect)]
        per_chunk = max(1.0, (self.rate or _GUESSED_RATE) * _CHUNK_S)
        world = World(1, start_ms=_START_MS, cards=cards, terminals=2 * cards)
        chunks = (chunk.batches() for chunk in stream(world, 0, rate=per_chunk, chunk_s=1.0))
        if self.rate is None:
            self.capacity = self._measure(chunks)
            self.rate = self.capacity / 2
        self.tally.next_slice()
        self.threads.append(_Thread("soak-send", lambda: self._pace(chunks)))
        self.threads.append(_Thread("soak-second", lambda: self._come_and_go(rebalance_s)))

    def _measure(self, chunks: Iterator[list[OutBatch]]) -> float:
        """Scores per second with all parts of this run at work, as far as one worker and the machine can."""
        producer = self.log.producer()
        began = since_s = time.perf_counter()
        since = 0
        for batches in chunks:
            if self.labels >= _FIRST_LABELS:  # in all partitions: until then all rows wait for them
                self._wait(lambda: self.sent - self.tally.count < _ON_THEIR_WAY, "the scores of the measurement")
            now = time.perf_counter()
            if not self.tally.count:
                began = now
            self._send(producer, batches, now)
            if not since and now - began >= _MEASURED_S / 4:
                since_s, since = now, self.tally.count
            if now - began >= _MEASURED_S:
                break
        producer.flush(60.0)
        producer.close()
        return (self.tally.count - since) / (time.perf_counter() - since_s)

    def check(self) -> None:
        """BenchError: one of the threads or the worker has ended."""
        self.worker.check()
        for thread in self.threads:
            if thread.error is not None:
                raise BenchError(f"{thread.name}: {thread.error!r}; see above") from thread.error

    def finish(self) -> None:
        """Nothing more is sent; waits for what must still come."""
        self.ended.set()
        for name in ("soak-second", "soak-send", "soak-expect"):
            [thread] = [thread for thread in self.threads if thread.name == name]
            while thread.is_alive():
                self.check()
                thread.join(0.2)
        self.check()
        deadline = time.monotonic() + _DRAIN_S
        while self.tally.result()["missing"] and time.monotonic() < deadline:
            self.check()
            time.sleep(0.2)
        self.read.set()

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _JOIN_S
        while not done():
            self.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{what} did not come within {_JOIN_S:.0f} s; see the worker's log above")
            time.sleep(0.02)

    def _send(self, producer: Any, batches: list[OutBatch], planned_s: float) -> None:
        for out in batches:
            if out.topic == TRANSACTIONS:
                ids = [int(value.split(b":", 1)[1].split(b",", 1)[0]) for value in out.values if value is not None]
                self.tally.plan(ids, planned_s)
                self.sent += len(ids)
            elif out.topic == LABELS:
                self.labels += len(out)
            done = producer.send(out)
            while done < len(out):
                producer.poll(0.01)
                done = producer.send(out, done)
        self.chunks.put(batches)

    def _pace(self, chunks: Iterator[list[OutBatch]]) -> None:
        assert self.rate is not None
        producer = self.log.producer(config={"producer.linger.ms": 0})
        began, first = time.perf_counter(), self.sent
        for batches in chunks:
            planned_s = began + (self.sent - first) / self.rate
            time.sleep(max(0.0, planned_s - time.perf_counter()))
            if self.ended.is_set():
                break
            self._send(producer, batches, planned_s)
        if producer.flush(60.0):
            raise BenchError("not all events were delivered within 60 s")
        producer.close()
        self.chunks.put(None)

    def _expect(self) -> None:
        expected = Expected(self.tally.expect)
        while (batches := self.chunks.get()) is not None:
            expected.take(batches)
        expected.finish()

    def _read(self) -> None:
        consumer = self.log.consumer(f"soak-{uuid.uuid4().hex}")
        decode = msgspec.json.Decoder(_Score).decode
        consumer.subscribe([FRAUD_SCORES], FromStart(consumer))
        while not self.read.is_set():
            batches = consumer.poll(0.05, 10_000)
            now = time.perf_counter()
            scores = [decode(value) for batch in batches for value in batch.values if value is not None]
            if scores:
                ids = np.array([score.transaction_id for score in scores], np.int64)
                self.tally.come(ids, np.array([[*score.features.values()] for score in scores], np.float64), now)
        consumer.close()

    def _come_and_go(self, every_s: float) -> None:
        """One that leaves and one that is killed at the least."""
        while not self.ended.wait(every_s / 2) or self.joins < 2:
            with self.second() as worker:
                worker.wait_ready()
                self.joins += 1
                self.ended.wait(every_s / 2)
                if self.joins % 2 == 0:
                    worker.signal(signal.SIGKILL)
                    self.kills += 1


def _resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text("utf-8")
    [line] = [line for line in text.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def slope(minutes: FloatArray, megabytes: FloatArray) -> tuple[float, float]:
    """MB per minute by least squares, and its standard error; of (n,) samples, n >= 3."""
    x, y = minutes - minutes.mean(), megabytes - megabytes.mean()
    spread = float(x @ x)
    by = float(x @ y) / spread
    rest = y - by * x
    return by, float(np.sqrt(rest @ rest / (len(x) - 2) / spread))


def run(
    minutes: float = 30.0,
    *,
    rate: float | None = None,
    rebalance_s: float = 60.0,
    partitions: int = 4,
    delivery: str = "at_least_once",
    notify: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The figures of ``headrace bench soak``; ``rate`` None: half of what was measured. ``ok``: no row is missing,
    unexpected or differs."""
    about = {"machine": machine(), "versions": versions()}
    wanted = (rate or _GUESSED_RATE) * minutes * 60 / _DAYS / _PER_CARD_AND_DAY
    cards = int(min(_CARDS_MAX, max(_CARDS_MIN, wanted)))
    with tempfile.TemporaryDirectory(prefix="headrace-soak-") as name, Broker.start(long_run=True) as broker:
        train(Path(name))
        config = Path(name) / "headrace.toml"
        config.write_text(_CONFIG)
        log = connect(f"headrace://{broker.bootstrap}")
        log.admin().create_topics([replace(t, config={**t.config, **_KEPT}) for t in all_topics(partitions)])
        command = headrace("run", "--pipeline", "fraud", "--bootstrap", broker.bootstrap, "--models", f"{name}/models")
        command += ["--order", "event_time", "--group", GROUP, "--delivery", delivery, "--config", str(config)]
        command += ["--checkpoints", f"{name}/checkpoints"]
        with Child(command, None) as worker:
            worker.wait_ready()
            soak = _Soak(log, worker, lambda: Child(command, None), rate)
            soak.start(cards, rebalance_s)
            notify(f"{soak.rate:,.0f} events/s for {minutes:g} minutes, {cards:,} cards")
            samples, slices = _watch(soak, minutes * 60, notify)
            soak.finish()
            rows = soak.tally.result()
            worker.stop()
    at, resident, sent = np.array(samples).T
    settled = sent >= _FULL_DAYS * _PER_CARD_AND_DAY * cards
    full = int(np.count_nonzero(settled)) >= len(at) / 4
    if not full:
        settled = at >= at[-1] / 2
    by, error = slope(at[settled], resident[settled])
    return {
        **rows,
        "ok": rows["rows"] > 0 and not (rows["missing"] or rows["unexpected"] or rows["differing"]),
        "minutes": round(float(at[-1]), 2),
        "rate": round(soak.rate or 0.0),
        "capacity": round(soak.capacity) or None,
        "joins": soak.joins,
        "kills": soak.kills,
        "memory_mb": round(float(resident[-1]), 1),
        "memory_slope_mb_per_min": round(by, 3),
        "memory_slope_error": round(error, 3),
        "memory_windows_full": full,
        "latency": slices,
        "cards": cards,
        "partitions": partitions,
        "delivery": delivery,
        **about,
    }


def _watch(
    soak: _Soak, seconds: float, notify: Callable[[str], None]
) -> tuple[list[tuple[float, float, int]], list[dict[str, Any]]]:
    """Samples (minute, MB, events sent) once a second and the latencies of each tenth, until the time is over and a
    second worker has left and one was killed."""
    samples: list[tuple[float, float, int]] = []
    slices: list[dict[str, Any]] = []
    began = time.monotonic()
    ticks = min(1.0, seconds / 40)

    def end_slice() -> None:
        digest = soak.tally.next_slice()
        figures = {"minute": round((time.monotonic() - began) / 60, 2), **digest.to_dict()}
        slices.append(figures)
        notify(
            f"minute {figures['minute']}: {digest.count:,} scores, p50 {digest.percentile(50):.0f} ms, "
            f"p99 {digest.percentile(99):.0f} ms, {samples[-1][1]:.0f} MB"
        )

    while time.monotonic() - began < seconds or soak.joins < 2 or soak.kills < 1:
        soak.check()
        samples.append(((time.monotonic() - began) / 60, _resident_mb(soak.worker.pid), soak.sent))
        if (time.monotonic() - began) * _SLICES >= seconds * (len(slices) + 1) and len(slices) < _SLICES - 1:
            end_slice()
        time.sleep(ticks)
    end_slice()
    return samples, slices
