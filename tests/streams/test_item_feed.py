"""A topic that a worker reads for itself: all of it, in order, and no silence when reading has ended."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from workers import until

from streams.errors import FatalError
from streams.item_feed import TopicFeed
from streams.log import TP, Log, LogUnavailable, OutBatch, RecordBatch, TopicInfo, connect
from streams.memory import MemoryConsumer, MemoryLog


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest) -> Log:
    if request.param == "memory":
        return connect(f"memory://{uuid.uuid4().hex}")
    return connect(f"headrace://{request.getfixturevalue('kafka').bootstrap}")


@pytest.fixture
def topic(log: Log) -> Iterator[str]:
    name = f"items-{uuid.uuid4().hex[:8]}"
    admin = log.admin()
    admin.create_topics([TopicInfo(name, 3, "", {"cleanup.policy": "compact"})])
    yield name
    admin.close()


def send(log: Log, topic: str, first: int, n: int) -> None:
    producer = log.producer()
    values: list[bytes | None] = [b"%d" % i for i in range(first, first + n)]
    assert producer.send(OutBatch(topic, values, values)) == n
    assert producer.flush(20) == 0
    producer.close()


def values_of(batches: list[RecordBatch]) -> list[int]:
    return [int(value) for batch in batches for value in batch.values if value is not None]


def taken_until_caught_up(feed: TopicFeed) -> list[RecordBatch]:
    got: list[RecordBatch] = []

    def caught_up() -> bool:
        got.extend(feed.take())
        return feed.caught_up

    until(caught_up, "all that was there")
    return got


def test_all_partitions_from_the_start_and_what_comes_later(log: Log, topic: str) -> None:
    send(log, topic, 0, 50)
    feed, other = TopicFeed(log, topic), TopicFeed(log, topic)
    feed.start()
    other.start()
    for one in (feed, other):
        there = taken_until_caught_up(one)
        assert sorted(values_of(there)) == list(range(50)) and one.take() == []
    send(log, topic, 50, 10)
    got: list[RecordBatch] = []

    def all_there() -> bool:
        got.extend(feed.take())
        return len(values_of(got)) == 10

    until(all_there, "what was sent later")
    by_partition = {tp: [v for b in got if b.tp == tp for v in values_of([b])] for tp in {b.tp for b in got}}
    assert all(of == sorted(of) for of in by_partition.values())
    feed.close()
    other.close()


def test_an_empty_topic_is_caught_up_at_once(log: Log, topic: str) -> None:
    feed = TopicFeed(log, topic)
    feed.start()
    assert taken_until_caught_up(feed) == []
    feed.close()


def test_a_partition_that_comes_back_goes_on_where_it_was() -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    log.admin().create_topics([TopicInfo("t", 1, "")])
    feed = TopicFeed(log, "t")
    feed._consumer = log.consumer("g")
    assert feed.on_assign([TP("t", 0)]) == {TP("t", 0): 0}
    feed._next[TP("t", 0)] = 7
    assert feed.on_assign([TP("t", 0)]) == {TP("t", 0): 7}


def test_reading_that_has_ended_is_an_error_and_not_an_old_view(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[RecordBatch]:
        raise error

    for error in (FatalError("offset-out-of-range", "gone"), OSError("no more files")):
        log = connect(f"memory://{uuid.uuid4().hex}")
        log.admin().create_topics([TopicInfo("t", 1, "")])
        monkeypatch.setattr(MemoryConsumer, "poll", fail)
        feed = TopicFeed(log, "t")
        feed.start()
        until(lambda feed=feed: feed.caught_up, "reading to end: nobody waits for what will not come")  # type: ignore[misc]
        with pytest.raises(FatalError, match=f"feed-failed: reading t: .*{error.args[0]}"):
            feed.take()
        feed.close()


@pytest.mark.parametrize("method", ["offset_range", "poll"])
def test_a_broker_that_is_away_for_a_while_is_asked_again(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    log.admin().create_topics([TopicInfo("t", 2, "")])
    send(log, "t", 0, 9)
    whole, away = getattr(MemoryConsumer, method), iter(range(2))

    def unavailable(*args: object) -> object:
        if next(away, None) is not None:
            raise LogUnavailable("away")
        return whole(*args)

    monkeypatch.setattr(MemoryConsumer, method, unavailable)
    feed = TopicFeed(log, "t")
    feed.start()
    assert sorted(values_of(taken_until_caught_up(feed))) == list(range(9))
    feed.close()


def test_a_feed_without_a_consumer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> MemoryConsumer:
        raise FatalError("config", "no such setting")

    monkeypatch.setattr(MemoryLog, "consumer", refuse)
    feed = TopicFeed(connect(f"memory://{uuid.uuid4().hex}"), "t")
    feed.start()
    until(lambda: feed.caught_up, "reading to end")
    with pytest.raises(FatalError, match=r"feed-failed: reading t: .*no such setting"):
        feed.take()
    feed.close()


def test_a_feed_that_was_never_started_can_be_closed() -> None:
    TopicFeed(connect(f"memory://{uuid.uuid4().hex}"), "t").close()
