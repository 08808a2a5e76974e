"""Workers as processes on a real Kafka, a stream of transactions and labels for them, and what came out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from features.fraud import DEFAULT
from streams.codec import decode_labels, decode_transactions
from streams.listeners import FromStart
from streams.log import TP, Headers, Log, OutBatch, RecordBatch, TopicInfo, connect
from streams.offline import feature_matrix
from streams.pipelines.fraud_stages import StageSettings
from streams.topics import BY_TERMINAL, DEAD_LETTERS, FRAUD_SCORES, LABELS, LATE_EVENTS, TRANSACTIONS, topic_infos

ROOT = Path(__file__).resolve().parent.parent.parent
TOPICS = (TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES, DEAD_LETTERS, LATE_EVENTS)
DAY = 86_400_000
START = 1_600_000_000_000
MAIN = [sys.executable, "-c", "from streams.cli.main import entry; entry()"]
#: quick commits, and a group that finds a killed member in two seconds
QUICK = """
commit_interval_ms = 100
[kafka]
consumer.session.timeout.ms = 2000
consumer.heartbeat.interval.ms = 400
"""


def headrace(*words: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    return subprocess.run([*MAIN, *words], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


class Worker:
    """``headrace run --pipeline fraud`` as a process; killed at the latest at the end of the ``with``."""

    def __init__(self, bootstrap: str, folder: Path, group: str, *options: str, config: str = QUICK) -> None:
        name = f"worker-{uuid.uuid4().hex[:6]}"
        settings = folder / f"{name}.toml"
        settings.write_text(config)
        words = ["run", "--pipeline", "fraud", "--json", "--bootstrap", bootstrap, "--group", group]
        self._errors = folder / f"{name}.log"
        self._lines: list[str] = []
        self._ready = threading.Event()
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*MAIN, *words, "--config", str(settings), *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.decode().strip())
            if self._lines[-1] == "ready":
                self._ready.set()
        self._ready.set()

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        return self._errors.read_text()

    def wait_ready(self) -> Worker:
        assert self._ready.wait(90), f"not ready: {self.log}"
        assert "ready" in self._lines, f"ended with {self.process.wait(10)}: {self.log}"
        return self

    def wait_for_line(self, text: str, timeout_s: float = 60) -> None:
        self.until(lambda: text in self.log, f"{text!r} in {self._errors}", timeout_s)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Waits for a condition while the worker lives."""

        def met() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before: {what}\n{self.log}"
            return condition()

        until(met, what, timeout_s)

    def stop(self, within_s: float = 10) -> dict[str, Any]:
        """SIGTERM; the figures of its last line, once it has left in time and with exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        code = self.wait(within_s)
        assert code == 0, f"exit code {code}: {self.log}"
        figures: dict[str, Any] = json.loads(self._lines[-1])
        return figures

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self, timeout_s: float = 60) -> int:
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout_s} s: {self.log}") from None
        self._reader.join(10)
        return code

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is not None:
            self._tell()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _tell(self) -> None:
        """What a failed test has to say of it; one that can still leave writes its figures."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
            self._reader.join(10)
        print(f"{self._errors} ends with:\n{self.log[-8000:]}\nits last lines: {self._lines[-2:]}")


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.02)


def fresh_topics(bootstrap: str, partitions: int = 4) -> Log:
    """The pipeline's topics, empty; groups of earlier tests have their own names."""
    log = connect(f"headrace://{bootstrap}")
    admin = log.admin()
    there = set(admin.topics(TOPICS))
    if there:
        admin.delete_topics(sorted(there))
    until(lambda: not admin.topics(TOPICS), "the topics to go")
    admin.create_topics(topic_infos(TOPICS, partitions))
    admin.close()
    return log


# --- input ---

Sent = tuple[str, bytes, bytes]


@dataclass(frozen=True)
class Stream:
    """Transactions and labels in the order of their times: (topic, key, value)."""

    records: list[Sent]

    @property
    def transactions(self) -> list[Sent]:
        return [r for r in self.records if r[0] == TRANSACTIONS]

    def features(self) -> dict[int, list[float]]:
        """By transaction, what offline computation by event time says."""
        blocks = []
        for topic, decode in ((TRANSACTIONS, decode_transactions), (LABELS, decode_labels)):
            values: list[bytes | None] = [value for t, _, value in self.records if t == topic]
            n = len(values)
            block, dead = decode(
                RecordBatch(TP(topic, 0), list(range(n)), [-1] * n, [None] * n, values, lambda i: [], n)
            )
            assert not dead
            blocks.append(block)
        result = feature_matrix(blocks[0], blocks[1], StageSettings(DEFAULT), "event_time")
        ids = blocks[0].ids["transaction_id"].to_list()
        return {int(ids[row]): vector for row, vector in zip(result.row.tolist(), result.matrix.tolist(), strict=True)}


def stream(n: int, days: int = 60, seed: int = 1) -> Stream:
    """``n`` transactions of 300 cards at 80 terminals, one in ten a fraud, labelled a week later."""
    rng = np.random.default_rng(seed)
    times = START + np.sort(rng.choice(days * 86_400, n, replace=False)) * 1000
    cards, terminals = rng.integers(0, 300, n), rng.integers(0, 80, n)
    amounts, frauds = np.round(rng.gamma(2, 30, n), 2), rng.random(n) < 0.1
    timed: list[tuple[int, int, Sent]] = []
    for i in range(n):
        event = {
            "transaction_id": i,
            "event_time": int(times[i]),
            "card_id": int(cards[i]),
            "terminal_id": int(terminals[i]),
            "amount": float(amounts[i]),
        }
        timed.append((int(times[i]), 1, (TRANSACTIONS, b"%d" % cards[i], orjson.dumps(event))))
        known = {"transaction_id": i, "label_time": int(times[i]) + 7 * DAY, "is_fraud": int(frauds[i])}
        timed.append((known["label_time"], 0, (LABELS, b"%d" % i, orjson.dumps(known))))
    timed.sort(key=lambda item: item[:2])
    return Stream([sent for _, _, sent in timed])


def send(log: Log, records: Sequence[Sent], config: Mapping[str, Any] | None = None) -> None:
    producer = log.producer(config=config)
    for topic in (TRANSACTIONS, LABELS):
        mine = [r for r in records if r[0] == topic]
        batch = OutBatch(topic, [value for _, _, value in mine], [key for _, key, _ in mine])
        done = producer.send(batch)
        while done < len(batch):
            producer.poll(0.05)
            done = producer.send(batch, done)
    assert producer.flush(60) == 0
    producer.close()


class Feed:
    """Sends a stream at a rate from a thread of its own; both topics advance together."""

    def __init__(self, log: Log, records: Sequence[Sent], per_s: float) -> None:
        self.sent = 0
        self.error: BaseException | None = None
        self._log, self._records, self._per_s = log, records, per_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            producer = self._log.producer()
            due = time.monotonic()
            while self.sent < len(self._records):
                step = max(1, int(self._per_s / 50))
                for topic, key, value in self._records[self.sent : self.sent + step]:
                    one = OutBatch(topic, [value], [key])
                    while not producer.send(one):
                        producer.poll(0.05)
                self.sent += step
                due += step / self._per_s
                time.sleep(max(0.0, due - time.monotonic()))
            assert producer.flush(60) == 0
            producer.close()
        except BaseException as error:
            self.error = error
            raise

    def hurry(self, per_s: float) -> None:
        """Goes on at another rate."""
        self._per_s = per_s

    def wait_for(self, share: float) -> None:
        until(lambda: self.error is not None or self.sent >= share * len(self._records), f"{share:.0%} of the feed")

    def join(self) -> None:
        self._thread.join(120)
        assert self.error is None and not self._thread.is_alive()


# --- output ---


@dataclass(frozen=True)
class Out:
    """One record that a worker sent; equal to another with the same content elsewhere."""

    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]
    all_headers: Headers
    partition: int = field(compare=False)
    offset: int = field(compare=False)


class Tail:
    """Reads a topic from its start, for as long as is needed."""

    def __init__(self, log: Log, topic: str = FRAUD_SCORES) -> None:
        self.records: list[Out] = []
        self.by_source: dict[bytes, Out] = {}
        #: records whose source came before, and how many of these were other bytes
        self.repeated = self.contradicting = 0
        self._seen: set[tuple[int, int]] = set()
        self._log, self._topic = log, topic
        self._consumer = log.consumer(f"tail-{uuid.uuid4().hex}")
        self._consumer.subscribe([topic], FromStart(self._consumer))

    def poll(self) -> None:
        for batch in self._consumer.poll(0.1, 10_000):
            for i in range(len(batch)):
                headers = batch.headers(i)
                place = (batch.tp.partition, batch.offsets[i])
                if place in self._seen:  # the reader lost its partitions, and begins anew with them
                    continue
                self._seen.add(place)
                out = Out(batch.keys[i], batch.values[i], dict(headers), headers, *place)
                self.records.append(out)
                first = self.by_source.setdefault(out.headers["source"], out)
                self.repeated += first is not out
                self.contradicting += first != out

    def read(self, distinct: int, timeout_s: float = 90) -> None:
        """Until there are so many sources, and nothing more comes at once."""
        deadline = time.monotonic() + timeout_s
        while len(self.by_source) < distinct:
            assert time.monotonic() < deadline, f"{len(self.by_source)} of {distinct} came; {self._whereabouts()}"
            self.poll()
        for _ in range(3):
            self.poll()

    def _whereabouts(self) -> str:
        """Whether more is there that this reader does not get."""
        mine = sorted(self._consumer.assignment())
        at = [f"{tp.topic}/{tp.partition} at {self._consumer.position(tp)}" for tp in mine]
        partitions = self._log.admin().topics([self._topic])[self._topic].partitions
        ends = [self._consumer.offset_range(TP(self._topic, p))[1] for p in range(partitions)]
        return f"the reader's partitions: {', '.join(at) or 'none'}; the topic ends at {ends}"

    def features(self) -> dict[int, list[float]]:
        values = [orjson.loads(out.value or b"") for out in self.by_source.values()]
        return {value["transaction_id"]: list(value["features"].values()) for value in values}

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()


def sources(log: Log, topic: str = TRANSACTIONS) -> set[bytes]:
    """Topic/partition/offset of every record of the topic."""
    consumer = log.consumer(f"ends-{uuid.uuid4().hex}")
    try:
        partitions: TopicInfo = log.admin().topics([topic])[topic]
        ends = [(p, consumer.offset_range(TP(topic, p))[1]) for p in range(partitions.partitions)]
        return {b"%s/%d/%d" % (topic.encode(), p, offset) for p, end in ends for offset in range(end)}
    finally:
        consumer.close()


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def paused(pid: int) -> Callable[[], None]:
    """Stops a process in its tracks; call what comes back to let it go on."""
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)
