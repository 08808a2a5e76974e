"""Exactly once on the in-process log: a crash at every step of the commit, aborts, lost partitions, fencing, bounds."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from workers import FAST, CountingPipeline, Running, committed, names, read_all, send, until, values_of

from streams.assignment import Assignment
from streams.commit import Committer
from streams.log import (
    TP,
    CommitFailed,
    Log,
    LogConsumer,
    LogUnavailable,
    MustAbort,
    OutBatch,
    RecordBatch,
    TopicInfo,
    connect,
)
from streams.memory import MemoryLog

#: one after the other, what happens to a producer; each is called with the name of the step
Fault = Callable[[str], None]
STEPS = ("begin", "send", "commit", "committed")
OUTCOMES = (MustAbort, CommitFailed, LogUnavailable)


class FaultyProducer:
    """A transactional producer on which `fault` is called before each step, and once more after a commit."""

    def __init__(self, producer: Any, fault: Fault) -> None:
        self._producer, self._fault = producer, fault

    def begin(self) -> None:
        self._fault("begin")
        self._producer.begin()

    def send(self, batch: OutBatch, start: int = 0) -> int:
        self._fault("send")
        sent: int = self._producer.send(batch, start)
        return sent

    def commit(self, offsets: Mapping[TP, int], membership: Any, timeout_s: float, *, note: str = "") -> None:
        self._fault("commit")
        self._producer.commit(offsets, membership, timeout_s, note=note)
        self._fault("committed")

    def abort(self, timeout_s: float) -> None:
        self._fault("abort")
        self._producer.abort(timeout_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


class FaultyLog:
    """A log with such producers."""

    def __init__(self, log: Log, fault: Fault) -> None:
        self._log, self._fault = log, fault

    def transactional_producer(self, transactional_id: str, **_: Any) -> Any:
        return FaultyProducer(self._log.transactional_producer(transactional_id), self._fault)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class Crash(Exception):
    """The worker goes no further: nothing that it has not committed remains."""


def crash_at(step: str, time: int) -> Fault:
    """A crash the ``time``-th time that the step is reached, and whatever is tried after it."""
    seen: Counter[str] = Counter()

    def fault(reached: str) -> None:
        seen[reached] += 1
        if seen[step] >= time:
            raise Crash(f"at {reached}")

    return fault


@pytest.fixture
def log() -> Log:
    return connect(f"memory://{uuid.uuid4().hex}")


VALUES = [b"v%d" % i for i in range(400)]
EXPECTED = Counter(b"%d:%d:%s" % (p, n, v) for p in range(4) for n, v in enumerate(VALUES[p::4], 1))
ALL_COMMITTED = dict.fromkeys(range(4), 100)


def outputs(log: Log, topic: str, n: int) -> Counter[bytes]:
    """What readers of committed records see, once so many are there."""
    return Counter(values_of(read_all(log, topic, lambda batches: sum(map(len, batches)) >= n, timeout_s=20)))


def start(log: Any, source: str, output: str, group: str, settings: Any = FAST) -> Running:
    worker = Running(log, CountingPipeline(source, output), group, settings, f"x-{group}")
    until(lambda: worker.ready.is_set() or worker.code is not None, "the worker to be ready")
    return worker


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("time", [1, 2])
def test_a_crash_at_any_step_leaves_each_output_once(log: Log, step: str, time: int) -> None:
    source, output, group = names()
    first = start(FaultyLog(log, crash_at(step, time)), source, output, group)
    send(log, source, VALUES[:200])
    until(
        lambda: first.code is not None or committed(log, group, source) == dict.fromkeys(range(4), 50),
        "the first half, if it goes through",
    )
    send(log, source, VALUES[200:], first=200)
    first.thread.join(20)
    assert first.code == 1 and "transaction-failed: Crash" in first.error
    second = start(log, source, output, group)
    assert outputs(log, output, len(VALUES)) == EXPECTED
    assert second.stop() == 0
    assert committed(log, group, source) == ALL_COMMITTED
    assert outputs(log, output, len(VALUES)) == EXPECTED


@pytest.mark.parametrize("seed", range(8))
def test_aborts_are_sent_again_and_state_goes_on(log: Log, seed: int) -> None:
    source, output, group = names()
    rng = random.Random(seed)
    aborts = 0

    def fault(step: str) -> None:
        nonlocal aborts
        if step in ("begin", "committed") or (aborts and rng.random() > 0.2):
            return
        error = MustAbort if step == "send" else LogUnavailable if step == "abort" else rng.choice(OUTCOMES)
        aborts += error is not LogUnavailable
        raise error(f"at {step}")

    worker = start(FaultyLog(log, fault), source, output, group, replace(FAST, commit_interval_s=0.01))
    for i in range(0, len(VALUES), 10):
        send(log, source, VALUES[i : i + 10], first=i)
    assert outputs(log, output, len(VALUES)) == EXPECTED
    until(lambda: committed(log, group, source) == ALL_COMMITTED, "the offsets")
    assert aborts > 0
    assert worker.stop() == 0
    assert worker.pipeline.replayed == 0, "an abort does not touch state"
    assert outputs(log, output, len(VALUES)) == EXPECTED


def test_transactions_that_never_succeed_end_the_worker(log: Log) -> None:
    source, output, group = names()

    def fault(step: str) -> None:
        if step == "commit":
            raise MustAbort("the record is too large")

    worker = start(FaultyLog(log, fault), source, output, group, replace(FAST, commit_interval_s=0.01))
    send(log, source, VALUES)
    worker.thread.join(20)
    assert worker.code == 1
    assert "transactions-abort" in worker.error and "too large" in worker.error


def test_a_transaction_without_outcome_ends_the_worker(log: Log) -> None:
    source, output, group = names()
    release = threading.Event()

    def fault(step: str) -> None:
        if step == "commit":
            release.wait(30)

    worker = start(FaultyLog(log, fault), source, output, group, replace(FAST, stall_s=0.5))
    send(log, source, VALUES)
    until(lambda: bool(worker.exits), "the watchdog")
    release.set()
    worker.thread.join(20)
    assert worker.exits == [70] and "transaction-stalled" in worker.error


def test_a_second_worker_with_the_id_ends_the_first(log: Log) -> None:
    source, output, group = names()
    first = start(log, source, output, group)
    send(log, source, VALUES[:200])
    outputs(log, output, 200)
    second = start(log, source, output, group)
    send(log, source, VALUES[200:], first=200)
    first.thread.join(20)
    assert first.code == 1 and f"transaction-fenced: transactional id x-{group}" in first.error
    assert outputs(log, output, len(VALUES)) == EXPECTED
    assert second.stop() == 0
    assert committed(log, group, source) == ALL_COMMITTED


def test_kept_outputs_are_bounded_and_then_committed_early(log: Log) -> None:
    source, output, group = names()
    most = [0]

    class Watching(CountingPipeline):
        def process(self, parts: Sequence[Any]) -> list[OutBatch]:
            most[0] = max(most[0], worker.reader.committer._outbox._nbytes)
            return super().process(parts)

    settings = replace(FAST, commit_interval_s=60.0, kept_bytes=20_000, batch_records=16, gather_s=0.0)
    worker = Running(log, Watching(source, output), group, settings, f"x-{group}")
    assert worker.ready.wait(10)
    values = [b"v%d" % i for i in range(4000)]
    send(log, source, values)
    seen = outputs(log, output, 3500)
    assert set(seen.values()) == {1}
    assert 10_000 < most[0] < 20_000, "a stage begins only below the bound"
    taken = sum(worker.reader.assignment.positions().values()) + worker.reader.assignment.in_flight_records()
    assert worker.stop() == 0, "what was taken is done and committed, though the stages wait for the commits"
    assert len(outputs(log, output, taken)) >= taken


class _Listener:
    """Tells a committer of its membership, as the reader does."""

    def __init__(self, consumer: LogConsumer, committer: Committer, assignment: Assignment) -> None:
        self._consumer, self._committer, self._assignment = consumer, committer, assignment

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        self._committer.joined(self._consumer.membership())
        for tp in partitions:
            self._assignment.add(tp, 0)
            self._assignment.loaded(tp, 0)
        return dict.fromkeys(partitions, 0)

    def on_revoke(self, partitions: list[TP]) -> None:
        self._assignment.forget(partitions)

    def on_lost(self, partitions: list[TP]) -> None:
        self._assignment.forget(partitions)


class Member:
    """A committer of its own, driven by hand: each record of a partition gives one output."""

    def __init__(self, log: Log, group: str, source: str, output: str, fault: Fault = lambda step: None) -> None:
        self.consumer = log.consumer(group)
        self.assignment = Assignment(100, 10_000)
        self.output = output
        producer = FaultyProducer(log.transactional_producer(f"x-{uuid.uuid4().hex}"), fault)
        producer.init()
        self.committer = Committer(self.assignment, self.consumer, lambda timeout_s: 0, 1.0, producer)  # type: ignore[arg-type]
        self.consumer.subscribe([source], _Listener(self.consumer, self.committer, self.assignment))

    def work(self) -> None:
        """Polls once and does what came."""
        for batch in self.assignment.accept(self.consumer.poll(0.01, 100)):
            assert self.assignment.begin([batch]) == [batch]
            values = [b"%d:%s" % (batch.tp.partition, value or b"") for value in batch.values]
            self.committer.keep(batch.tp, batch.epoch, [OutBatch(self.output, values, None, batch.tp.partition)])
            self.assignment.done([batch])


@pytest.fixture
def topics(log: Log) -> tuple[str, str, str]:
    source, output, group = names()
    log.admin().create_topics([TopicInfo(source, 2, ""), TopicInfo(output, 2, "")])
    return source, output, group


def test_after_an_abort_outputs_of_lost_partitions_are_left_out(log: Log, topics: tuple[str, str, str]) -> None:
    source, output, group = topics
    broken = [True]

    def fault(step: str) -> None:
        if step == "commit" and broken[0]:
            raise MustAbort("this once")

    member = Member(log, group, source, output, fault)
    send(log, source, [b"a0", b"b0", b"a1", b"b1"], partitions=2)
    until(lambda: not member.work() and member.assignment.positions() == {TP(source, 0): 2, TP(source, 1): 2}, "input")
    assert not member.committer.commit(5.0), "it was aborted"
    member.assignment.forget([TP(source, 1)])
    send(log, source, [b"a2", b"b2"], partitions=2)
    until(lambda: not member.work() and member.assignment.positions() == {TP(source, 0): 3}, "more input")
    broken[0] = False
    assert member.committer.commit(5.0)
    assert values_of(read_all(log, output, lambda batches: sum(map(len, batches)) >= 3)) == [b"0:a0", b"0:a1", b"0:a2"]
    assert committed(log, group, source, 2) == {0: 3, 1: None}
    member.committer.close()
    member.consumer.close()


def test_a_member_that_was_thrown_out_commits_nothing(topics: tuple[str, str, str], log: Log) -> None:
    """It learns of that only with its next poll; until then it takes the partitions for its own."""
    source, output, group = topics
    assert isinstance(log, MemoryLog)
    now = [0.0]
    log.clock = lambda: now[0]
    zombie = Member(log, group, source, output)
    send(log, source, [b"a0", b"b0"], partitions=2)
    until(lambda: not zombie.work() and zombie.assignment.positions() == {TP(source, 0): 1, TP(source, 1): 1}, "input")
    now[0] += 100.0
    heir = Member(log, group, source, output)
    until(lambda: not heir.work() and heir.assignment.positions() == {TP(source, 0): 1, TP(source, 1): 1}, "the heir")
    assert heir.committer.commit(5.0)
    assert not zombie.committer.commit(5.0)
    assert not zombie.committer.commit(5.0), "also when it tries again"
    assert Counter(values_of(read_all(log, output, lambda batches: sum(map(len, batches)) >= 2))) == {
        b"0:a0": 1,
        b"1:b0": 1,
    }
    until(lambda: not zombie.work() and not zombie.assignment.owns(TP(source, 0), 1), "the zombie to hear of it")
    assert zombie.committer.commit(5.0), "nothing is left of what it made"
    for member in (zombie, heir):
        member.committer.close()
        member.consumer.close()


def test_the_stages_work_on_while_a_transaction_is_on_its_way(log: Log, topics: tuple[str, str, str]) -> None:
    source, output, group = topics
    inside, go_on = threading.Event(), threading.Event()

    def fault(step: str) -> None:
        if step == "commit":
            inside.set()
            assert go_on.wait(20)

    member = Member(log, group, source, output, fault)
    send(log, source, [b"a0"], partitions=1)
    until(lambda: not member.work() and member.assignment.positions().get(TP(source, 0)) == 1, "input")
    assert member.committer.commit(5.0, wait=False)
    assert inside.wait(10)
    send(log, source, [b"a1"], partitions=1)
    until(lambda: not member.work() and member.assignment.positions()[TP(source, 0)] == 2, "more input")
    assert not member.committer.commit(5.0, wait=False), "one at a time"
    go_on.set()
    assert member.committer.commit(5.0)
    assert values_of(read_all(log, output, lambda batches: sum(map(len, batches)) >= 2)) == [b"0:a0", b"0:a1"]
    assert committed(log, group, source, 2) == {0: 2, 1: None}
    member.committer.close()
    member.consumer.close()


def test_a_commit_hopes_for_a_quiet_moment_but_not_for_long() -> None:
    """At least once: outputs are unacknowledged, or a stage is at work, whenever it is looked."""
    tp, now_s, undelivered, flushes, sent = TP("orders", 0), 0.0, 3, list[float](), list[dict[TP, int]]()

    class Consumer:
        def commit(self, offsets: dict[TP, int], told: Callable[[None], None], *, note: str) -> None:
            sent.append(offsets)
            told(None)

    def flush(timeout_s: float) -> int:
        flushes.append(timeout_s)
        return 0 if timeout_s else undelivered

    assignment = Assignment(10, 1000)
    committer = Committer(assignment, Consumer(), flush, 1.0, clock=lambda: now_s)  # type: ignore[arg-type]
    assignment.add(tp, 0)
    assignment.loaded(tp, 0)

    def accepted(first: int) -> RecordBatch:
        batch = RecordBatch(tp, [first], [0], [None], [b"x"], lambda i: [], first + 1)
        assignment.accept([batch])
        return batch

    batch = accepted(0)
    assignment.begin([batch])
    assignment.done([batch])
    now_s = 1.1
    assert not committer.commit(1.0, wait=False) and flushes == [0.0], "outputs are on their way"
    now_s = 1.21
    assert committer.commit(1.0, wait=False) and sent == [{tp: 1}] and flushes[-1] > 0, "it hopes no more, and waits"
    undelivered, batch = 0, accepted(1)
    assignment.begin([batch])
    assignment.done([batch])
    now_s = 2.21
    assignment.begin([batch := accepted(2)])
    assert not committer.commit(1.0, wait=False), "a stage is at work"
    assignment.done([batch])
    assert committer.commit(1.0, wait=False) and sent[-1] == {tp: 3}
    committer.close()
