"""A worker that comes back begins where its newest checkpoint ends, and what it computes is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import QUICK, Feed, Tail, Worker, fresh_topics, send, sources, stream
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from streams.broker import Broker
from streams.topics import BY_TERMINAL, TRANSACTIONS

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

N = 12_000
PARTITIONS = 2
STREAM = stream(N)
BY_EVENT_TIME = ("--order", "event_time", "--partitions", str(PARTITIONS))
#: five checkpoints a second
OFTEN = "checkpoint_interval_ms = 200\n" + QUICK
SELDOM = "checkpoint_interval_ms = 3600000\n" + QUICK


class Kept:
    """Workers of one group with checkpoints in a folder."""

    def __init__(self, bootstrap: str, folder: Path, group: str) -> None:
        self.folder = folder / "kept"
        self._start = lambda *options, config, of: Worker(
            bootstrap, folder, of or group, *BY_EVENT_TIME, "--checkpoints", str(self.folder), *options, config=config
        )

    def worker(self, *options: str, config: str = OFTEN, group: str = "") -> Worker:
        return self._start(*options, config=config, of=group)

    def files(self) -> list[Path]:
        """All checkpoints, older ones of a partition before newer ones."""
        return sorted(self.folder.rglob("*.ckpt"))

    def newest(self) -> list[Path]:
        """The newest checkpoint of each stage and partition."""
        return sorted({path.parent: path for path in self.files()}.values())


def test_a_worker_that_is_killed_again_and_again_goes_on_from_its_checkpoints(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    kept = Kept(kafka.bootstrap, tmp_path, "kept")
    third = len(STREAM.records) // 3
    with Tail(log) as tail:
        for begin in range(0, len(STREAM.records), third):
            with kept.worker() as worker:
                worker.wait_ready()
                there = set(kept.newest())
                feed = Feed(log, STREAM.records[begin : begin + third], per_s=1_000)
                worker.until(lambda seen=there: len(set(kept.newest()) - seen) >= 3 * PARTITIONS, "new checkpoints")
                worker.kill()
            feed.join()
        with kept.worker() as worker:
            worker.wait_ready()
            tail.read(N)
            figures = worker.stop()
            assert worker.log.count("loaded in") == 3 * PARTITIONS, worker.log
    assert set(tail.by_source) == sources(log)
    assert tail.contradicting == 0
    assert tail.features() == STREAM.features()
    assert figures["replayed"] < N, "what was before the checkpoint is not replayed"
    assert figures["checkpoints"]["written"] > 0 and figures["checkpoints"]["pause_ms"] > 0
    assert len(kept.files()) <= 3 * PARTITIONS * 4, "old ones are deleted"


def test_after_a_clean_end_nothing_is_replayed(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    kept = Kept(kafka.bootstrap, tmp_path, "clean")
    half = len(STREAM.records) // 2
    with Tail(log) as tail:
        for part in (STREAM.records[:half], STREAM.records[half:]):
            with kept.worker(config=SELDOM) as worker:
                worker.wait_ready()
                send(log, part)
                tail.read(len(tail.by_source) + 1)
                assert worker.stop()["replayed"] == 0, worker.log
        with kept.worker(config=SELDOM) as worker:
            tail.read(N)
            worker.stop()
    assert tail.features() == STREAM.features()


def test_a_broken_checkpoint_is_left_out_and_the_one_before_it_used(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    kept = Kept(kafka.bootstrap, tmp_path, "broken")
    with Tail(log) as tail:
        with kept.worker() as worker:
            worker.wait_ready()
            feed = Feed(log, STREAM.records, per_s=4_000)
            feed.join()
            tail.read(N // 2)
            worker.stop()
        for path in kept.newest():
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        with kept.worker() as worker:
            worker.wait_ready()
            tail.read(N)
            worker.stop()
    assert worker.log.count("corrupt") == 3 * PARTITIONS, worker.log
    assert tail.features() == STREAM.features()


def test_a_state_of_another_feature_set_is_refused_and_kept(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    kept = Kept(kafka.bootstrap, tmp_path, "sets")
    with kept.worker() as worker, Tail(log) as tail:
        worker.wait_ready()
        send(log, STREAM.records[:2_000])
        tail.read(1)
        worker.stop()
    before = kept.files()
    assert before
    with kept.worker("--set", "rich") as worker:
        assert worker.wait() == 1
        for word in ("state-of-other-settings", "default", "rich", "new group"):
            assert word in worker.log
    assert kept.files() == before
    with kept.worker("--set", "rich", group="sets-rich") as worker:
        worker.wait_ready()
        worker.stop()


def test_records_that_a_state_needs_and_retention_has_deleted_are_said(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    kept = Kept(kafka.bootstrap, tmp_path, "gap")
    with kept.worker() as worker, Tail(log) as tail:
        worker.wait_ready()
        send(log, STREAM.records)
        tail.read(N // 2)
        worker.stop()
    for path in kept.files():
        path.unlink()
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    gone = [TopicPartition(TRANSACTIONS, p, 100) for p in range(PARTITIONS)]
    for future in admin.delete_records(gone).values():
        future.result()
    with kept.worker() as worker:
        assert worker.wait() == 1
        assert "history-missing" in worker.log and f"{TRANSACTIONS}/" in worker.log and "100 records" in worker.log
        assert BY_TERMINAL not in worker.log.split("history-missing")[1]
    with kept.worker(config='missing_history = "degrade"\n' + OFTEN) as worker:
        worker.wait_ready()
        worker.stop()
        assert worker.log.count("100 records") == PARTITIONS
