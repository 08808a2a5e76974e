"""What breaks around a worker: the network, the disk of its checkpoints, its topics. It outlives each or ends by name.

Features of every row are those of offline computation after it, or the worker has refused to go on.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cluster import QUICK, Feed, Stream, Tail, Worker, fresh_topics, send, sources, stream
from confluent_kafka.admin import AdminClient, NewPartitions
from proxy import Proxy

from streams.broker import Broker
from streams.topics import BY_TERMINAL, LABELS, TRANSACTIONS

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

N = 8_000
PARTITIONS = 2
STREAM = stream(N)
#: less than any checkpoint of this stream has
FULL_BYTES = 20_000
BY_EVENT_TIME = ("--order", "event_time", "--partitions", str(PARTITIONS))
OFTEN = "checkpoint_interval_ms = 200\n" + QUICK
#: what Kafka's clients do every five minutes by default
LOOKS_OFTEN = OFTEN + '"topic.metadata.refresh.interval.ms" = 500\n'


def checkpoints(folder: Path) -> set[Path]:
    return set(folder.rglob("*.ckpt"))


@pytest.fixture
def proxy(kafka: Broker) -> Iterator[Proxy]:
    proxy = Proxy(kafka.port)
    yield proxy
    proxy.close()


def real_stream(data_dir: Path, rows: int, one_card_of: int) -> Stream:
    """The first rows of the public benchmark, of some of its cards, with what is known of them by the end."""
    transactions = pq.read_table(data_dir / "fraud_transactions.parquet").slice(0, rows)
    last = pc.max(transactions["event_time"]).as_py()
    events = [event for event in transactions.to_pylist() if event["card_id"] % one_card_of == 0]
    ids = {event["transaction_id"] for event in events}
    known = pq.read_table(data_dir / "fraud_labels.parquet", filters=pc.field("label_time") <= last).to_pylist()
    timed = [(e["event_time"], 1, (TRANSACTIONS, b"%d" % e["card_id"], orjson.dumps(e))) for e in events]
    labels = [label for label in known if label["transaction_id"] in ids]
    timed += [(k["label_time"], 0, (LABELS, b"%d" % k["transaction_id"], orjson.dumps(k))) for k in labels]
    timed.sort(key=lambda item: item[:2])
    return Stream([sent for _, _, sent in timed])


def test_twenty_kills_during_the_real_data_leave_no_trace(kafka: Broker, data_dir: Path, tmp_path: Path) -> None:
    """Every other one dies before it is ready, or as soon as it is."""
    real, times = real_stream(data_dir, 200_000, 10), random.Random(4)
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    options = (kafka.bootstrap, tmp_path, "twenty", *BY_EVENT_TIME, "--checkpoints", str(tmp_path / "kept"))
    step = len(real.records) // 20
    with Tail(log) as tail:
        for kill in range(20):
            with Worker(*options, config=OFTEN) as worker:
                if kill % 2 == 0:
                    worker.wait_ready()
                feed = Feed(log, real.records[kill * step : (kill + 1) * step], per_s=step / 10)
                time.sleep(times.uniform(0.2, 1.5))
                assert feed.sent < step, "killed under load"
                worker.kill()
            feed.hurry(5_000)
            feed.join()
        with Worker(*options, config=OFTEN) as worker:
            send(log, real.records[20 * step :])
            tail.read(len(real.transactions))
            assert "loaded in" in worker.log
            worker.stop()
    assert set(tail.by_source) == sources(log)
    assert tail.contradicting == 0
    assert tail.features() == real.features()


def _while_sent(feed: Feed, records: int) -> None:
    """As long as it takes to send so many more, at most to the end of the feed."""
    feed.wait_for(min(1.0, (feed.sent + records) / len(STREAM.records)))


def test_a_network_that_is_cut_and_slow_again_and_again(kafka: Broker, proxy: Proxy, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    through = f"127.0.0.1:{proxy.port}"
    with Worker(through, tmp_path, "cut", *BY_EVENT_TIME) as worker, Tail(log) as tail:
        worker.wait_ready()
        feed = Feed(log, STREAM.records, per_s=1_000)
        for missed in (0, 1_000, 0, 4_000):
            _while_sent(feed, len(STREAM.records) // 20)
            proxy.refuses = missed > 0
            proxy.cut()
            _while_sent(feed, missed)
            proxy.refuses = False
            tail.read(len(tail.by_source) + 1)
        proxy.delay_s = 0.3
        _while_sent(feed, 3_000)
        proxy.delay_s = 0.0
        feed.join()
        tail.read(N)
        worker.stop(within_s=20)
    assert "is away" in worker.log and "is back after" in worker.log
    assert set(tail.by_source) == sources(log)
    assert tail.contradicting == 0
    assert tail.features() == STREAM.features()
    assert "Traceback" not in worker.log


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_a_full_disk_of_checkpoints_is_said_and_scoring_goes_on(kafka: Broker, tmp_path: Path) -> None:
    """A bound on the size of files stands for the full disk: what is written beyond it fails in the same way."""
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    kept = tmp_path / "kept"
    options = (kafka.bootstrap, tmp_path, "full", *BY_EVENT_TIME, "--checkpoints", str(kept))
    with Tail(log) as tail:
        with Worker(*options, config=OFTEN) as worker:
            worker.wait_ready()
            feed = Feed(log, STREAM.records, per_s=1_000)
            worker.until(lambda: len({path.parent for path in checkpoints(kept)}) == 3 * PARTITIONS, "checkpoints")
            free = resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))
            before = len(tail.by_source)
            worker.wait_for_line("no checkpoint of")
            there = checkpoints(kept)
            tail.read(before + N // 10)
            resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, free)
            worker.until(lambda: bool(checkpoints(kept) - there), "a checkpoint once there is room again")
            feed.join()
            worker.kill()
        assert not [path for path in kept.rglob("*") if path.is_file() and path.suffix != ".ckpt"]
        with Worker(*options, config=OFTEN) as worker:
            worker.wait_ready()
            tail.read(N)
            assert "loaded in" in worker.log
            worker.stop()
    assert tail.contradicting == 0
    assert tail.features() == STREAM.features()


@pytest.mark.parametrize("topic", [TRANSACTIONS, BY_TERMINAL])
def test_partitions_that_are_raised_are_refused(kafka: Broker, tmp_path: Path, topic: str) -> None:
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    options = ("--checkpoints", str(tmp_path / "kept"), *BY_EVENT_TIME)
    group = f"raised-{topic}"
    with Worker(kafka.bootstrap, tmp_path, group, *options, config=LOOKS_OFTEN) as worker, Tail(log) as tail:
        worker.wait_ready()
        send(log, STREAM.records[:2_000])
        tail.read(500)
        worker.until(lambda: len(checkpoints(tmp_path / "kept")) >= 3 * PARTITIONS, "checkpoints")
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        for future in admin.create_partitions([NewPartitions(topic, PARTITIONS + 1)]).values():
            future.result()
        assert worker.wait(60) == 1
    assert "partitions-raised" in worker.log and f"{topic} had {PARTITIONS} partitions" in worker.log
    # the commits know it too, where there is no checkpoint
    with Worker(kafka.bootstrap, tmp_path, group, "--checkpoints", "none", *BY_EVENT_TIME) as again:
        assert again.wait(60) == 1
    assert "partitions-raised" in again.log and f"{topic} had {PARTITIONS} partitions when this group" in again.log


@pytest.mark.parametrize("topic", [TRANSACTIONS, BY_TERMINAL])
def test_a_topic_that_is_deleted_is_said(kafka: Broker, tmp_path: Path, topic: str) -> None:
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    with (
        Worker(kafka.bootstrap, tmp_path, f"deleted-{topic}", *BY_EVENT_TIME, config=LOOKS_OFTEN) as worker,
        Tail(log) as tail,
    ):
        worker.wait_ready()
        send(log, STREAM.records[:2_000])
        tail.read(500)
        log.admin().delete_topics([topic])
        worker.wait_for_line(f"topic {topic} is not there")
        worker.stop(within_s=20)
