"""Where a worker's states come from and go to, on both logs and with both ways of delivery."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
from test_worker import distinct, expected, log, new_id
from workers import CountingPipeline, CountingTask, Running, names, read_all, send, until, values_of

from streams.checkpoint_store import CheckpointStore, Series
from streams.checkpoints import Checkpoints, CheckpointSettings
from streams.errors import FatalError
from streams.log import TP, Log, RecordBatch, connect
from streams.recovery import Assigned, Progress
from streams.snapshot import JOBS_MAX, pages_are_joined
from streams.store import open_store

__all__ = ["log", "new_id"]

SERIES = [Series("count", "", p) for p in range(4)]


def kept(folder: Path, group: str) -> CheckpointStore:
    return CheckpointStore(open_store(str(folder)), group)


def test_after_a_clean_end_the_state_is_loaded_and_nothing_replayed(
    log: Log, new_id: Callable[[], str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.worker._LEAVE_S", 60.0)  # on a busy machine ten seconds can be too few
    source, output, group = names()
    values = [b"v%d" % i for i in range(400)]
    for begin in (0, 200):
        store = kept(tmp_path, group)
        worker = Running(log, CountingPipeline(source, output), group, transactional_id=new_id(), checkpoints=store)
        assert worker.ready.wait(30)
        send(log, source, values[begin : begin + 200], first=begin)
        got = values_of(read_all(log, output, distinct(begin + 200)))
        assert worker.stop() == 0
        assert worker.pipeline.replayed == 0
    assert Counter(got) == Counter(expected(values))
    assert [len(store.offsets(series)) for series in SERIES] == [2, 2, 2, 2]


def test_checkpoints_are_taken_while_records_flow_and_old_ones_go(tmp_path: Path) -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    source, output, group = names()
    store = kept(tmp_path, group)
    settings = CheckpointSettings(interval_s=0.1, kept=2)
    worker = Running(log, CountingPipeline(source, output), group, checkpoints=store, checkpoint_settings=settings)
    assert worker.ready.wait(30)
    seen: set[int] = set()

    def four_seen() -> bool:
        send(log, source, [b"x"], partitions=1)
        seen.update(store.offsets(SERIES[0]))
        return len(seen) >= 4

    until(four_seen, 30)
    assert worker.stop() == 0
    assert len(store.offsets(SERIES[0])) <= 2 + 2, "two, the one that was newer than the commits, and the last one"
    assert max(seen) > 0 and store.offsets(SERIES[3]) == []


def test_a_state_ahead_of_the_commits_is_not_used(tmp_path: Path) -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    source, output, group = names()
    values = [b"v%d" % i for i in range(200)]
    first = Running(log, CountingPipeline(source, output), group, checkpoints=kept(tmp_path, group))
    assert first.ready.wait(30)
    send(log, source, values)
    read_all(log, output, distinct(200))
    assert first.stop() == 0
    for path in tmp_path.rglob("*.ckpt"):
        # as if the commit behind it had never come
        path.rename(path.with_name(f"{int(path.stem) + 10:019}.ckpt"))
    second = Running(log, CountingPipeline(source, output), group, checkpoints=kept(tmp_path, group))
    assert second.ready.wait(30)
    assert second.pipeline.replayed == 200
    assert second.stop() == 0


def test_a_store_that_fails_ends_the_worker_by_name(tmp_path: Path) -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    source, output, group = names()
    first = Running(log, CountingPipeline(source, output), group)
    assert first.ready.wait(30)
    send(log, source, [b"v"] * 4)
    read_all(log, output, distinct(4))
    assert first.stop() == 0
    (tmp_path / "file").touch()
    store = kept(tmp_path / "file", group)
    second = Running(log, CountingPipeline(source, output), group, checkpoints=store)
    second.thread.join(30)
    assert second.code == 1
    assert "checkpoint-store" in second.error and "--checkpoints none" in second.error


class SlowPipeline(CountingPipeline):
    """Partitions get their state when they are told to."""

    def __init__(self, source: str, output: str) -> None:
        super().__init__(source, output)
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.waits = False

    def task(self, tp: TP) -> CountingTask:
        self.waits = not self.goes_on.is_set()
        assert self.goes_on.wait(30)
        return super().task(tp)


def test_a_state_that_takes_long_holds_no_other_partition_up(log: Log) -> None:
    source, output, group = names()
    values = [b"v%d" % i for i in range(400)]
    slow = SlowPipeline(source, output)
    stays = Running(log, slow, group)
    assert stays.ready.wait(30)
    leaves = Running(log, CountingPipeline(source, output), group)
    assert leaves.ready.wait(30)
    until(lambda: len(stays.reader.assignment.positions()) == len(leaves.reader.assignment.positions()) == 2, 30)
    own = {tp.partition for tp in stays.reader.assignment.positions()}
    slow.goes_on.clear()
    assert leaves.stop() == 0
    until(lambda: slow.waits, 30)
    send(log, source, values)
    got = values_of(read_all(log, output, distinct(200)))
    assert {int(value.split(b":")[0]) for value in got} == own
    slow.goes_on.set()
    got = values_of(read_all(log, output, distinct(400)))
    assert stays.stop() == 0
    assert Counter(got) == Counter(expected(values)), "what came before the state was there is read again"


class BrokenPipeline(CountingPipeline):
    """Has no state for anybody."""

    def task(self, tp: TP) -> CountingTask:
        raise OSError("no such state")


def test_a_recovery_that_fails_ends_the_worker_by_name() -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    source, output, group = names()
    worker = Running(log, BrokenPipeline(source, output), group)
    worker.thread.join(30)
    assert worker.code == 1
    assert "recovery-failed" in worker.error and "no such state" in worker.error


def test_a_long_replay_says_what_is_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    left_at = {100.0: 1_000, 103.0: 900, 106.0: 400, 107.0: 300, 112.0: 0, 113.0: 0}
    progress = Progress()
    with caplog.at_level(logging.INFO):
        for now, left in left_at.items():
            monkeypatch.setattr("streams.recovery.time.monotonic", lambda now=now: now)
            progress.note(left)
    assert [record.getMessage() for record in caplog.records] == [
        "recovering: 400 of 1000 records left to replay, about 4 s left",
        "recovered: 1000 records replayed in 12.0 s",
    ]


class SlowToWrite:
    """A task whose state takes long to make, until it is told otherwise."""

    next_offset = 7
    seconds = 60.0

    def state(self) -> dict[str, npt.NDArray[np.int64]]:
        threading.Event().wait(self.seconds)
        return {"count": np.array([7])}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.int64]]) -> None:
        pass


def test_a_worker_that_leaves_while_it_writes_writes_again(tmp_path: Path) -> None:
    pipeline, task, tp = CountingPipeline("in", "out"), SlowToWrite(), TP("in", 0)
    store = kept(tmp_path, "g")
    checkpoints = Checkpoints(store, "g", pipeline.state_of, CheckpointSettings(interval_s=0.0))

    def begun() -> bool:
        checkpoints.step({tp: task}, lambda tp: 7)
        return checkpoints.writing

    until(begun, 60)  # once pages are joined
    task.seconds = 0.0
    checkpoints.finish({tp: task}, 10.0)
    assert store.offsets(SERIES[0]) == [7]


def test_partitions_have_their_checkpoints_by_one_fork(tmp_path: Path) -> None:
    """Each pauses all stages: those that are due soon come along, and those that the child did not come to follow."""
    store, pipeline = kept(tmp_path, "g"), CountingPipeline("in", "out")
    tasks = {TP("in", partition): SlowToWrite() for partition in range(JOBS_MAX + 2)}
    for task in tasks.values():
        task.seconds = 0.0
    checkpoints = Checkpoints(store, "g", pipeline.state_of, CheckpointSettings(interval_s=0.0))

    def written(partitions: int) -> bool:
        checkpoints.step(tasks, lambda tp: 7)
        return checkpoints.written == partitions

    until(lambda: written(JOBS_MAX), 60)
    assert checkpoints.pauses.count == 1
    until(lambda: written(JOBS_MAX + 2), 60)
    assert checkpoints.pauses.count == 2
    assert all(store.offsets(Series("count", "", tp.partition)) == [7] for tp in tasks)


def test_one_that_fails_is_no_other_s_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, pipeline = kept(tmp_path, "g"), CountingPipeline("in", "out")
    tasks: dict[TP, Any] = {TP("in", 0): SlowToWrite(), TP("in", 1): object(), TP("in", 2): SlowToWrite()}
    tasks[TP("in", 1)] = Mock(next_offset=7, state=Mock(side_effect=ValueError("a bad state")))
    tasks[TP("in", 0)].seconds = tasks[TP("in", 2)].seconds = 0.0
    checkpoints = Checkpoints(store, "g", pipeline.state_of)
    checkpoints.finish(tasks, 30.0)
    assert [store.offsets(SERIES[partition]) for partition in range(3)] == [[7], [], [7]]
    assert "no checkpoint of in/1: ValueError: a bad state" in caplog.text


def test_what_was_written_in_time_is_kept_by_a_worker_that_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, pipeline = kept(tmp_path, "g"), CountingPipeline("in", "out")
    tasks = {TP("in", partition): SlowToWrite() for partition in range(3)}
    tasks[TP("in", 0)].seconds = 0.0
    checkpoints = Checkpoints(store, "g", pipeline.state_of)
    with caplog.at_level(logging.INFO):
        checkpoints.finish(tasks, 3.0)
    assert [store.offsets(SERIES[partition]) for partition in range(3)] == [[7], [], []]
    assert [f"no time for a checkpoint of in/{partition}" in caplog.text for partition in range(3)] == [
        False,
        True,
        True,
    ]
    assert not checkpoints.writing


def test_a_group_that_began_in_a_log_without_its_beginning_misses_nothing(tmp_path: Path) -> None:
    pipeline, tp = CountingPipeline("in", "out"), TP("in", 0)

    def checkpoints() -> Checkpoints:
        return Checkpoints(kept(tmp_path, "g"), "g", pipeline.state_of)

    assert checkpoints().load(Assigned(tp, 1, None, 50), pipeline.task(tp)) == 50
    # killed before its first checkpoint
    assert checkpoints().load(Assigned(tp, 1, 60, 50), pipeline.task(tp)) == 50
    with pytest.raises(FatalError, match="history-missing: in/0: 5 records from offset 50 on"):
        checkpoints().load(Assigned(tp, 1, 60, 55), pipeline.task(tp))


def test_a_task_within_a_block_has_its_turn_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, task, tp = CountingPipeline("in", "out"), SlowToWrite(), TP("in", 0)
    task.seconds = 0.0
    store = kept(tmp_path, "g")
    checkpoints = Checkpoints(store, "g", pipeline.state_of, CheckpointSettings(interval_s=0.0))
    checkpoints.step({tp: task}, lambda tp: 7, {tp})
    until(pages_are_joined, 60)
    checkpoints.step({tp: task}, lambda tp: 7, {tp})
    with monkeypatch.context() as patch:
        patch.setattr("streams.checkpoints.pages_are_joined", lambda: False)
        checkpoints.step({tp: task}, lambda tp: 7)
    assert checkpoints.pauses.count == 0
    checkpoints.step({tp: task}, lambda tp: 7, {TP("in", 1)})
    assert checkpoints.pauses.count == 1 and checkpoints.pauses.max_ms > 0

    def written() -> bool:
        checkpoints.step({tp: task}, lambda tp: 7)
        return store.offsets(SERIES[0]) == [7]

    until(written, 60)


def test_a_replay_may_leave_the_event_loop_free(log: Log, new_id: Callable[[], str | None], tmp_path: Path) -> None:
    source, output, group = names()
    values = [b"v%d" % i for i in range(600)]
    first = Running(log, CountingPipeline(source, output), group, transactional_id=new_id())
    assert first.ready.wait(30)
    send(log, source, values[:400])
    read_all(log, output, distinct(400))
    assert first.stop() == 0

    pipeline, free, batches = CountingPipeline(source, output), list[bool](), list[bool]()
    started = threading.Event()

    def before(tp: TP, batch: RecordBatch) -> None:
        assert started.wait(30)
        batches.append(batch.replay)
        if batch.replay:
            heard = threading.Event()
            second.on_loop(heard.set)
            free.append(heard.wait(30))

    pipeline.before = before
    second = Running(
        log,
        pipeline,
        group,
        transactional_id=new_id(),
        checkpoints=kept(tmp_path, group),
        checkpoint_settings=CheckpointSettings(interval_s=0.01),
        replays_apart=True,
    )
    started.set()
    assert second.ready.wait(60)
    assert pipeline.replayed == 400 and all(batches) and all(free) and len(free) == len(batches) >= 4
    send(log, source, values[400:], first=400)
    got = values_of(read_all(log, output, distinct(600)))
    assert second.stop() == 0
    assert Counter(got) == Counter(expected(values))
