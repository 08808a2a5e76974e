"""One conformance suite for both logs: what the transport relies on."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping

import pytest

from streams.errors import FatalError
from streams.log import (
    TP,
    CommitFailed,
    Log,
    LogConsumer,
    LogUnavailable,
    Membership,
    OutBatch,
    RecordBatch,
    TopicInfo,
    TransactionalProducer,
    connect,
)


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest) -> Log:
    if request.param == "memory":
        return connect(f"memory://{uuid.uuid4().hex}")
    return connect(f"headrace://{request.getfixturevalue('kafka').bootstrap}", {"session.timeout.ms": 6000})


@pytest.fixture
def topic(log: Log) -> Iterator[str]:
    name = f"t-{uuid.uuid4().hex[:8]}"
    admin = log.admin()
    assert admin.create_topics([TopicInfo(name, 2, "", {"max.message.bytes": "16777216"})]) == [name]
    yield name
    admin.close()


class Listener:
    """Starts every partition where it is told, else at the committed offset, else at 0."""

    def __init__(self, consumer: LogConsumer, start: int | None = None) -> None:
        self.consumer = consumer
        self.start = start
        self.events: list[tuple[str, list[TP]]] = []
        self.before_revoke: Callable[[list[TP]], None] = lambda _: None
        self.membership: Membership = None

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        self.membership = self.consumer.membership()
        self.events.append(("assign", partitions))
        committed = self.consumer.committed(partitions)
        return {tp: self.start if self.start is not None else committed[tp] or 0 for tp in partitions}

    def on_revoke(self, partitions: list[TP]) -> None:
        self.before_revoke(partitions)
        self.events.append(("revoke", partitions))

    def on_lost(self, partitions: list[TP]) -> None:
        self.events.append(("lost", partitions))


def read(consumer: LogConsumer, n: int, turns: int = 300) -> list[RecordBatch]:
    got: list[RecordBatch] = []
    for _ in range(turns):
        if sum(map(len, got)) >= n:
            break
        got += consumer.poll(0.1, 100)
    return got


def poll_until_assigned(consumer: LogConsumer, partitions: int, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while len(consumer.assignment()) < partitions:
        assert time.monotonic() < deadline, f"only {consumer.assignment()} came"
        assert consumer.poll(0.05, 1) == []


@pytest.fixture
def group() -> str:
    return f"g-{uuid.uuid4().hex[:8]}"


#: closed after each test: a Kafka consumer that is only forgotten hangs the garbage collector, on whatever thread
_members: list[LogConsumer] = []


@pytest.fixture(autouse=True)
def _close_members() -> Iterator[None]:
    yield
    while _members:
        _members.pop().close()


def member(log: Log, group: str, topic: str, start: int | None = None) -> tuple[LogConsumer, Listener]:
    consumer = log.consumer(group)
    _members.append(consumer)
    listener = Listener(consumer, start)
    consumer.subscribe([topic], listener)
    return consumer, listener


def send(log: Log, batch: OutBatch) -> None:
    producer = log.producer()
    assert producer.send(batch) == len(batch)
    assert producer.flush(10) == 0
    producer.close()


def test_keys_values_headers_timestamps_and_nulls_come_back(log: Log, topic: str, group: str) -> None:
    values = [b"a", None, b"", bytes(range(256))]
    keys = [b"k", None, b"", b"\x00\xff"]
    headers = [[("source", b"transactions/3/1234"), ("source", b"again")], [], [("h", b"")], []]
    send(log, OutBatch(topic, values, keys, 1, headers))
    consumer, _ = member(log, group, topic)
    [batch] = read(consumer, 4)
    assert batch.tp == TP(topic, 1)
    assert batch.values == values and batch.keys == keys
    assert [batch.headers(i) for i in range(4)] == headers
    assert batch.offsets == [0, 1, 2, 3] and batch.next_offset == 4
    assert all(t > 1_600_000_000_000 for t in batch.timestamps)


def test_the_default_partitioner_is_the_java_clients(log: Log, group: str) -> None:
    name = f"p-{uuid.uuid4().hex[:8]}"
    log.admin().create_topics([TopicInfo(name, 7, "")])
    # murmur2 of the Java client: toPositive(hash) % 7, with the hashes of Kafka's own UtilsTest
    expected = {b"21": -973932308, b"foobar": -790332482, b"abc": 479470107, b"a-little-bit-long-string": -985981536}
    send(log, OutBatch(name, [b"v"] * len(expected), list(expected)))
    consumer, _ = member(log, group, name)
    got = {key: b.tp.partition for b in read(consumer, len(expected)) for key in b.keys}
    assert got == {key: (h & 0x7FFFFFFF) % 7 for key, h in expected.items()}


def test_commit_is_where_the_next_member_starts(log: Log, topic: str, group: str) -> None:
    send(log, OutBatch(topic, [b"%d" % i for i in range(10)], None, 0))
    consumer, _ = member(log, group, topic)
    read(consumer, 10)
    consumer.commit({TP(topic, 0): 7}, note="of seven")
    consumer.close()
    again, _ = member(log, group, topic)
    assert [v for b in read(again, 3) for v in b.values] == [b"7", b"8", b"9"]
    assert again.committed([TP(topic, 0), TP(topic, 1)]) == {TP(topic, 0): 7, TP(topic, 1): None}
    assert again.notes([TP(topic, 0), TP(topic, 1)]) == {TP(topic, 0): "of seven"}
    again.commit({TP(topic, 0): 8})
    assert again.notes([TP(topic, 0)]) == {}


def test_a_commit_that_nobody_waits_for_tells_its_outcome_inside_a_poll(log: Log, topic: str, group: str) -> None:
    send(log, OutBatch(topic, [b"x"] * 5, None, 0))
    consumer, _ = member(log, group, topic)
    read(consumer, 5)
    outcomes: list[Exception | None] = []
    consumer.commit({TP(topic, 0): 3}, outcomes.append)
    deadline = time.monotonic() + 20
    while not outcomes and time.monotonic() < deadline:
        consumer.poll(0.1, 10)
    assert outcomes == [None]
    assert consumer.committed([TP(topic, 0)]) == {TP(topic, 0): 3}


def test_position_range_and_seek(log: Log, topic: str, group: str) -> None:
    tp = TP(topic, 0)
    send(log, OutBatch(topic, [b"x"] * 5, None, 0))
    consumer, _ = member(log, group, topic)
    read(consumer, 5)
    assert consumer.position(tp) == 5
    assert consumer.offset_range(tp) == (0, 5)
    with pytest.raises(FatalError, match=f"no-such-partition: {topic}/9: the topic has 2 partitions, 0 to 1"):
        consumer.offset_range(TP(topic, 9))
    consumer.seek(tp, 3)
    assert consumer.position(tp) == 3
    assert [o for b in read(consumer, 2) for o in b.offsets] == [3, 4]


def test_the_ends_are_told_without_a_wait(log: Log, topic: str, group: str) -> None:
    consumer, _ = member(log, group, topic)
    poll_until_assigned(consumer, 2)
    for partition, n in enumerate((5, 2)):
        send(log, OutBatch(topic, [b"x"] * n, None, partition))
        answer = consumer.ends([TP(topic, 0), TP(topic, 1)])
        deadline = time.monotonic() + 20
        while (ends := answer()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ends == {TP(topic, 0): 5, TP(topic, 1): n if partition else 0}
        assert answer() == ends


def test_a_new_partition_is_positioned_while_it_is_paused(log: Log, topic: str, group: str) -> None:
    tp = TP(topic, 0)
    for partition in (0, 1):
        send(log, OutBatch(topic, [b"x"] * 5, None, partition))
    consumer, _ = member(log, group, topic, start=5)
    poll_until_assigned(consumer, 2)
    consumer.pause([tp])
    deadline = time.monotonic() + 20
    while True:
        try:
            consumer.seek(tp, 2)
            break
        except LogUnavailable:
            assert time.monotonic() < deadline
            consumer.poll(0.01, 10)
    assert consumer.position(tp) == 2
    assert consumer.poll(0.3, 10) == []
    consumer.resume([tp])
    assert [o for b in read(consumer, 3) for o in b.offsets] == [2, 3, 4]


def test_a_partition_without_any_record_is_read_to_its_end(log: Log, topic: str, group: str) -> None:
    send(log, OutBatch(topic, [b"x"] * 5, None, 0))
    consumer, _ = member(log, group, topic)
    read(consumer, 5)
    empty = TP(topic, 1)
    deadline = time.monotonic() + 20
    while not consumer.at_end(empty) and time.monotonic() < deadline:
        consumer.poll(0.1, 10)
    assert consumer.at_end(empty) and consumer.position(empty) == 0


def test_paused_partitions_give_nothing_and_lose_nothing(log: Log, topic: str, group: str) -> None:
    consumer, _ = member(log, group, topic)
    send(log, OutBatch(topic, [b"first"], None, 0))
    read(consumer, 1)
    consumer.pause([TP(topic, 0)])
    send(log, OutBatch(topic, [b"held"], None, 0))
    send(log, OutBatch(topic, [b"flows"], None, 1))
    assert [v for b in read(consumer, 1) for v in b.values] == [b"flows"]
    assert read(consumer, 1, turns=3) == []
    consumer.resume([TP(topic, 0)])
    assert [v for b in read(consumer, 1) for v in b.values] == [b"held"]


def test_a_second_member_takes_half_and_gives_it_back(log: Log, topic: str, group: str) -> None:
    first, first_events = member(log, group, topic)
    poll_until_assigned(first, 2)
    assert first.assignment() == {TP(topic, 0), TP(topic, 1)}
    second, second_events = member(log, group, topic)
    for _ in range(200):
        first.poll(0.05, 10)
        second.poll(0.05, 10)
        if second.assignment():
            break
    assert len(first.assignment()) == len(second.assignment()) == 1
    assert first.assignment() | second.assignment() == {TP(topic, 0), TP(topic, 1)}
    moved = second.assignment()
    assert [e for e in first_events.events if e[0] == "revoke"] == [("revoke", sorted(moved))]
    second.close()
    for _ in range(200):
        first.poll(0.05, 10)
        if len(first.assignment()) == 2:
            break
    assert first.assignment() == {TP(topic, 0), TP(topic, 1)}
    assert ("revoke", sorted(moved)) in second_events.events


def test_a_commit_inside_revocation_counts(log: Log, topic: str, group: str) -> None:
    send(log, OutBatch(topic, [b"x"] * 4, None, 0))
    send(log, OutBatch(topic, [b"x"] * 4, None, 1))
    first, events = member(log, group, topic)
    read(first, 8)
    events.before_revoke = lambda tps: first.commit(dict.fromkeys(tps, 4))
    second, _ = member(log, group, topic)
    for _ in range(200):
        first.poll(0.05, 10)
        got = second.poll(0.05, 10)
        assert got == []
        if second.assignment():
            break
    assert second.assignment()
    assert read(second, 1, turns=3) == []


def test_a_member_that_does_not_poll_any_more_is_replaced(log: Log, topic: str, group: str) -> None:
    if not log.url.startswith("memory"):
        pytest.skip("librdkafka sends heartbeats by itself; tests/kafka kills a process")
    now = [0.0]
    log.clock = lambda: now[0]  # type: ignore[attr-defined]
    first, events = member(log, group, topic)
    poll_until_assigned(first, 2)
    second, _ = member(log, group, topic)
    now[0] += 100.0
    second.poll(0.1, 10)
    second.poll(0.1, 10)
    assert second.assignment() == {TP(topic, 0), TP(topic, 1)}
    with pytest.raises(CommitFailed):
        first.commit({TP(topic, 0): 1})
    first.poll(0.1, 10)
    assert events.events[1][0] == "lost"


def test_a_quiet_topic_wakes_the_poll_at_once(log: Log, topic: str, group: str) -> None:
    consumer, _ = member(log, group, topic)
    poll_until_assigned(consumer, 2)
    threading.Timer(0.2, send, (log, OutBatch(topic, [b"x"], None, 0))).start()
    batches = consumer.poll(20.0, 1000)
    assert [v for b in batches for v in b.values] == [b"x"]


def test_an_offset_that_is_gone_is_an_error_not_a_jump(log: Log, topic: str, group: str) -> None:
    consumer, _ = member(log, group, topic, start=99)
    with pytest.raises(FatalError, match="offset-out-of-range"):
        read(consumer, 1, turns=100)


def test_topics_have_partitions_and_an_id_that_changes_when_made_again(log: Log, topic: str) -> None:
    admin = log.admin()
    before = admin.topics([topic])[topic]
    assert before.partitions == 2
    assert admin.create_topics([TopicInfo(topic, 9, "")]) == []
    admin.delete_topics([topic])
    while topic in admin.topics():
        pass
    admin.create_topics([TopicInfo(topic, 3, "")])
    after = admin.topics([topic])[topic]
    assert after.partitions == 3 and after.topic_id != before.topic_id
    admin.close()


def test_ten_megabytes_pass(log: Log, topic: str, group: str) -> None:
    value = b"x" * 10_000_000
    send(log, OutBatch(topic, [value], None, 0))
    consumer, _ = member(log, group, topic)
    [batch] = read(consumer, 1)
    assert batch.values == [value]


# --- transactions ---


@pytest.fixture
def producers(log: Log) -> Iterator[Callable[[str], TransactionalProducer]]:
    """Makes transactional producers, closed after the test."""
    made: list[TransactionalProducer] = []

    def make(transactional_id: str) -> TransactionalProducer:
        producer = log.transactional_producer(transactional_id)
        made.append(producer)
        producer.init()
        return producer

    yield make
    for producer in made:
        producer.close()


Producers = Callable[[str], TransactionalProducer]


def put(producer: TransactionalProducer, topic: str, *values: bytes) -> None:
    """Begins a transaction with these records on partition 0, and waits until they are in the log."""
    producer.begin()
    assert producer.send(OutBatch(topic, values, None, 0)) == len(values)
    assert producer.flush(10) == 0


def commit(producer: TransactionalProducer, offsets: Mapping[TP, int], membership: Membership, note: str = "") -> None:
    while True:
        try:
            return producer.commit(offsets, membership, 5.0, note=note)
        except LogUnavailable:
            continue


def test_a_transaction_is_seen_when_it_is_committed_and_takes_offsets(
    log: Log, topic: str, group: str, producers: Producers
) -> None:
    tp, producer = TP(topic, 0), producers(f"x-{group}")
    consumer, _ = member(log, group, topic)
    poll_until_assigned(consumer, 2)
    put(producer, topic, b"a", b"b")
    assert read(consumer, 1, turns=5) == [], "not yet committed"
    assert not consumer.at_end(tp)
    assert consumer.offset_range(tp) == (0, 0), "what is open is not to be waited for"
    commit(producer, {}, None)
    assert [(o, v) for b in read(consumer, 2) for o, v in zip(b.offsets, b.values, strict=True)] == [
        (0, b"a"),
        (1, b"b"),
    ]
    put(producer, topic, b"never")
    producer.abort(10)
    put(producer, topic, b"c")
    commit(producer, {}, None)
    [batch] = read(consumer, 1)
    # 2 and 4 are markers, 3 was aborted
    assert (batch.values, batch.offsets, batch.next_offset) == ([b"c"], [5], 6)
    deadline = time.monotonic() + 20
    while not consumer.at_end(tp) and time.monotonic() < deadline:
        assert consumer.poll(0.1, 10) == []
    assert consumer.at_end(tp) and consumer.position(tp) == 7
    assert consumer.offset_range(tp) == (0, 7)


def test_offsets_count_with_their_transaction(log: Log, topic: str, group: str, producers: Producers) -> None:
    tp, producer = TP(topic, 1), producers(f"x-{group}")
    send(log, OutBatch(topic, [b"x"] * 5, None, 1))
    consumer, listener = member(log, group, topic)
    read(consumer, 5)
    put(producer, topic, b"out")
    commit(producer, {tp: 3}, listener.membership)
    assert consumer.committed([tp]) == {tp: 3}
    put(producer, topic, b"never")
    producer.abort(10)
    assert consumer.committed([tp]) == {tp: 3}
    producer.begin()
    commit(producer, {tp: 5}, listener.membership, "of five")
    assert consumer.committed([tp]) == {tp: 5} and consumer.notes([tp]) == {tp: "of five"}


def test_who_is_no_longer_in_the_group_as_it_was_commits_nothing(
    log: Log, topic: str, group: str, producers: Producers
) -> None:
    tp, producer = TP(topic, 0), producers(f"x-{group}")
    send(log, OutBatch(topic, [b"x"] * 5, None, 0))
    first, listener = member(log, group, topic)
    read(first, 5)
    before = listener.membership
    second, _ = member(log, group, topic)
    for _ in range(200):
        first.poll(0.05, 10)
        second.poll(0.05, 10)
        if second.assignment():
            break
    put(producer, topic, b"late")
    with pytest.raises(CommitFailed):
        commit(producer, {tp: 5}, before)
    producer.abort(10)
    assert first.committed([tp]) == {tp: None}
    for _ in range(5):  # both learn of the generation in which the group has come to rest
        first.poll(0.1, 10)
        second.poll(0.1, 10)
    put(producer, topic, b"again")
    commit(producer, {tp: 5}, listener.membership)
    assert first.committed([tp]) == {tp: 5}
    first.close()
    put(producer, topic, b"left")
    with pytest.raises(CommitFailed):
        commit(producer, {tp: 6}, listener.membership)
    producer.abort(10)
    assert second.committed([tp]) == {tp: 5}


def test_a_second_producer_with_the_id_fences_the_first(log: Log, topic: str, group: str, producers: Producers) -> None:
    first = producers(f"x-{group}")
    put(first, topic, b"of the first")
    second = producers(f"x-{group}")
    put(second, topic, b"of the second")
    with pytest.raises(FatalError, match="transaction-fenced: transactional id x-"):
        commit(first, {}, None)
    commit(second, {}, None)
    consumer, _ = member(log, group, topic)
    assert [v for b in read(consumer, 1) for v in b.values] == [b"of the second"]
    assert read(consumer, 1, turns=3) == []


def test_a_fenced_producer_hears_of_it_while_it_sends_and_closes_without_a_warning(
    log: Log, topic: str, group: str, producers: Producers
) -> None:
    first = producers(f"x-{group}")
    put(first, topic, b"of the first")
    producers(f"x-{group}")

    def send_on() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            first.send(OutBatch(topic, [b"never"] * 100))
            first.poll(0.1)

    with pytest.raises(FatalError, match="transaction-fenced: transactional id x-"):
        send_on()


def test_a_transaction_that_stays_open_is_ended(log: Log, topic: str, group: str, producers: Producers) -> None:
    if not log.url.startswith("memory"):
        pytest.skip("a broker looks for these every 10 s; tests/kafka/test_exactly_once.py kills a worker")
    now = [0.0]
    log.clock = lambda: now[0]  # type: ignore[attr-defined]
    consumer, _ = member(log, group, topic)
    poll_until_assigned(consumer, 2)
    producer = producers("x")
    put(producer, topic, b"never")
    now[0] += 20.0
    send(log, OutBatch(topic, [b"after"], None, 0))
    assert [v for b in read(consumer, 1) for v in b.values] == [b"after"]
    with pytest.raises(FatalError, match="open for more than 15 s"):
        commit(producer, {}, None)
