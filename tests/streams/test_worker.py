"""The block transport and the worker on both logs: rebalance, recovery, flow, back-pressure, commits, watchdog."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from workers import FAST, CountingPipeline, Running, committed, end_offsets, names, read_all, send, until, values_of

from streams.errors import FatalError
from streams.log import TP, Log, OutBatch, RecordBatch, connect
from streams.memory_producer import MemoryProducer
from streams.pipeline import runs_of


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest) -> Log:
    if request.param == "memory":
        return connect(f"memory://{uuid.uuid4().hex}")
    return connect(f"headrace://{request.getfixturevalue('kafka').bootstrap}", {"consumer.session.timeout.ms": 6000})


@pytest.fixture(params=["at_least_once", "exactly_once"])
def new_id(request: pytest.FixtureRequest) -> Callable[[], str | None]:
    """Transactional ids for workers, None for at least once."""
    return lambda: None if request.param == "at_least_once" else f"x-{uuid.uuid4().hex}"


def expected(values: list[bytes], partitions: int = 4) -> set[bytes]:
    """What a pipeline that loses and doubles nothing in its state must have sent."""
    out = set()
    for p in range(partitions):
        mine = [v for i, v in enumerate(values) if i % partitions == p]
        out.update(b"%d:%d:%s" % (p, n, v) for n, v in enumerate(mine, 1))
    return out


def distinct(n: int) -> object:
    return lambda batches: len(set(values_of(batches))) >= n


def test_every_record_goes_through_once_and_is_committed(log: Log, new_id: Callable[[], str | None]) -> None:
    source, output, group = names()
    values = [b"v%d" % i for i in range(1000)]
    worker = Running(log, CountingPipeline(source, output), group, transactional_id=new_id())
    assert worker.ready.wait(30)
    send(log, source, values)
    got = values_of(read_all(log, output, distinct(1000)))
    assert worker.stop() == 0
    assert Counter(got) == Counter(expected(values))
    assert committed(log, group, source) == dict.fromkeys(range(4), 250)


def test_state_comes_back_by_replay_and_nothing_is_sent_again(log: Log, new_id: Callable[[], str | None]) -> None:
    source, output, group = names()
    values = [b"v%d" % i for i in range(400)]
    first = Running(log, CountingPipeline(source, output), group, transactional_id=new_id())
    assert first.ready.wait(30)
    send(log, source, values[:200])
    read_all(log, output, distinct(200))
    assert first.stop() == 0
    second = Running(log, CountingPipeline(source, output), group, transactional_id=new_id())
    assert second.ready.wait(30)
    assert second.pipeline.replayed == 200
    send(log, source, values[200:], first=200)
    got = values_of(read_all(log, output, distinct(400)))
    assert second.stop() == 0
    assert Counter(got) == Counter(expected(values))


def test_two_and_three_workers_share_and_one_leaves(log: Log, new_id: Callable[[], str | None]) -> None:
    source, output, group = names()
    values = [b"v%d" % i for i in range(6000)]
    running = [Running(log, CountingPipeline(source, output), group, transactional_id=new_id())]
    assert running[0].ready.wait(30)

    feeding = threading.Thread(
        target=lambda: [send(log, source, values[i : i + 100], first=i) for i in range(0, 6000, 100)]
    )
    feeding.start()
    for _ in range(2):
        running.append(Running(log, CountingPipeline(source, output), group, transactional_id=new_id()))
        assert running[-1].ready.wait(30)
    assert running[1].stop() == 0
    feeding.join()
    got = values_of(read_all(log, output, distinct(6000)))
    assert [w.stop() for w in (running[0], running[2])] == [0, 0]
    assert set(got) == expected(values)
    assert len(got) == 6000, "a clean rebalance sends nothing twice"


def test_a_record_behind_a_slow_one_is_never_committed_first(log: Log, new_id: Callable[[], str | None]) -> None:
    source, output, group = names()
    pipeline = CountingPipeline(source, output)
    inside, go_on = threading.Event(), threading.Event()

    def hold(tp: TP, batch: RecordBatch) -> None:
        if b"slow" in batch.values:
            inside.set()
            go_on.wait(20)

    pipeline.before = hold
    worker = Running(log, pipeline, group, replace(FAST, batch_records=1), new_id())
    assert worker.ready.wait(30)
    send(log, source, [b"a", b"slow", b"b", b"c"], partitions=1)
    assert inside.wait(20)
    time.sleep(0.15)  # three commit intervals, in which nothing behind it may be committed
    assert (committed(log, group, source)[0] or 0) <= 1
    go_on.set()
    read_all(log, output, distinct(4))
    assert worker.stop() == 0
    assert committed(log, group, source)[0] == 4


def test_a_batch_that_may_not_begin_yet_does_not_keep_the_loop_busy(log: Log) -> None:
    """The thread that brings the decision needs the interpreter lock."""
    source, output, group = names()
    worker = Running(log, CountingPipeline(source, output), group, on_uvloop=True)
    assert worker.ready.wait(30)
    asked_at: list[float] = []

    def admits(batches: Sequence[RecordBatch]) -> bool:
        asked_at.append(time.monotonic())
        return asked_at[-1] - asked_at[0] > 0.2

    worker.reader.assignment.admits = admits
    send(log, source, [b"a"])
    got = read_all(log, output, distinct(1))
    assert worker.stop() == 0
    assert len(values_of(got)) == 1
    assert 2 <= len(asked_at) <= 1000 * (asked_at[-1] - asked_at[0]) + 50, "about once a millisecond at most"


def test_flow_stops_and_resumes_without_loss(log: Log, new_id: Callable[[], str | None]) -> None:
    source, output, group = names()
    worker = Running(log, CountingPipeline(source, output), group, transactional_id=new_id())
    assert worker.ready.wait(30)
    send(log, source, [b"v%d" % i for i in range(40)])
    read_all(log, output, distinct(40))
    reader = worker.reader
    reader.stop_flow()
    until(lambda: reader.flow_is_stopped, "the flow to stop")
    send(log, source, [b"v%d" % i for i in range(40, 80)], first=40)
    before = reader.assignment.positions()
    time.sleep(0.15)  # nothing may come in this time
    assert reader.assignment.positions() == before
    reader.resume_flow()
    got = values_of(read_all(log, output, distinct(80)))
    assert worker.stop() == 0
    assert Counter(got) == Counter(expected([b"v%d" % i for i in range(80)]))


def test_the_first_record_of_a_quiet_topic_takes_milliseconds(log: Log) -> None:
    source, output, group = names()
    worker = Running(log, CountingPipeline(source, output), group)
    assert worker.ready.wait(30)
    delays = []
    for i in range(5):
        arrived = threading.Event()
        worker.pipeline.before = lambda tp, batch, arrived=arrived: arrived.set()  # type: ignore[misc]
        started = time.monotonic()
        send(log, source, [b"v%d" % i], first=i)
        assert arrived.wait(10)
        delays.append(time.monotonic() - started)
    assert worker.stop() == 0
    assert min(delays) < 0.1, delays


def test_a_stage_that_hangs_ends_the_worker_with_a_reason(log: Log) -> None:
    source, output, group = names()
    pipeline = CountingPipeline(source, output)
    release = threading.Event()
    pipeline.before = lambda tp, batch: release.wait(30) and None
    worker = Running(log, pipeline, group, replace(FAST, stall_s=0.5))
    assert worker.ready.wait(30)
    send(log, source, [b"x"])
    until(lambda: bool(worker.exits), "the watchdog")
    release.set()
    worker.thread.join(20)
    assert worker.exits == [70]
    assert "stage-stalled" in worker.error and source in worker.error


def test_a_stage_that_raises_ends_the_worker_and_commits_nothing_of_it(log: Log) -> None:
    source, output, group = names()
    pipeline = CountingPipeline(source, output)

    def fail(tp: TP, batch: RecordBatch) -> None:
        if b"poison" in batch.values:
            raise ValueError("cannot do this one")

    pipeline.before = fail
    worker = Running(log, pipeline, group, replace(FAST, batch_records=1))
    assert worker.ready.wait(30)
    send(log, source, [b"a", b"b", b"poison", b"c"], partitions=1)
    worker.thread.join(30)
    assert worker.code == 1
    assert "stage-failed" in worker.error and "offsets 2..2" in worker.error
    assert (committed(log, group, source)[0] or 0) <= 2
    # nothing behind the poison was processed: downstream would take the poison's rows for repeated ones
    ends = sum(end_offsets(log, output).values())
    assert set(values_of(read_all(log, output, lambda batches: sum(map(len, batches)) >= ends))) == {b"0:1:a", b"0:2:b"}


def test_a_slow_partition_does_not_starve_the_others(log: Log, new_id: Callable[[], str | None]) -> None:
    source, output, group = names()
    pipeline = CountingPipeline(source, output)
    worker = Running(log, pipeline, group, replace(FAST, batch_records=8, in_flight=2), new_id())
    assert worker.ready.wait(30)
    send(log, source, [b"v%d" % i for i in range(4000)])
    got = values_of(read_all(log, output, distinct(4000)))
    assert worker.stop() == 0
    assert Counter(got) == Counter(expected([b"v%d" % i for i in range(4000)]))


def test_a_stage_that_falls_behind_gets_larger_batches(log: Log) -> None:
    source, output, group = names()
    pipeline = CountingPipeline(source, output)
    inside, go_on = threading.Event(), threading.Event()
    sizes: list[int] = []

    def hold(tp: TP, batch: RecordBatch) -> None:
        sizes.append(len(batch))
        assert [batch.headers(i) for i in range(len(batch))] == [[("n", b"%d" % o)] for o in batch.offsets]
        if not inside.is_set():
            inside.set()
            go_on.wait(20)

    pipeline.before = hold
    worker = Running(log, pipeline, group)
    assert worker.ready.wait(30)
    producer = log.producer()
    for i in range(40):
        producer.send(OutBatch(source, [b"v%d" % i], None, 0, [[("n", b"%d" % i)]]))
        producer.flush(10)
        if i == 0:
            assert inside.wait(20)
    until(lambda: worker.reader.assignment.in_flight_records() == 40, "all records to be read")
    go_on.set()
    got = values_of(read_all(log, output, distinct(40)))
    assert worker.stop() == 0
    assert set(got) == {b"0:%d:v%d" % (i + 1, i) for i in range(40)} and len(got) == 40
    assert len(sizes) <= 3 and max(sizes) >= 38, sizes


def test_a_producer_that_fails_while_nothing_is_sent_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: MemoryProducer, timeout_s: float) -> None:
        raise FatalError("producer-failed", "out of sequence")

    source, output, group = names()
    worker = Running(connect(f"memory://{uuid.uuid4().hex}"), CountingPipeline(source, output), group)
    assert worker.ready.wait(30)
    monkeypatch.setattr(MemoryProducer, "poll", fail)
    worker.thread.join(60)
    assert worker.code == 1


def test_a_client_that_hangs_does_not_keep_a_worker_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(MemoryProducer, "close", lambda self: answered.wait(90))
    monkeypatch.setattr("streams.worker._LEAVE_S", 1.0)
    source, output, group = names()
    worker = Running(connect(f"memory://{uuid.uuid4().hex}"), CountingPipeline(source, output), group)
    assert worker.ready.wait(30)
    assert worker.stop() == 0 and not answered.is_set()
    answered.set()


def test_runs_hold_one_batch_a_partition_and_are_bounded() -> None:
    def of(topic: str, partition: int, n: int) -> RecordBatch:
        return RecordBatch(TP(topic, partition), list(range(n)), [0] * n, [None] * n, [b""] * n, lambda i: [], n)

    batches = [of("a", 0, 1), of("b", 0, 9), of("a", 1, 2), of("a", 1, 3), of("a", 2, 8), of("a", 3, 50), of("b", 1, 1)]
    runs = runs_of(batches, 10, ("a", "b"))
    assert [[(b.tp, len(b)) for b in run] for run in runs] == [
        [(("b", 0), 9), (("b", 1), 1)],  # made from a: nearer to the end
        [(("a", 0), 1), (("a", 1), 2)],
        [(("a", 1), 3)],
        [(("a", 2), 8)],
        [(("a", 3), 50)],
    ]
