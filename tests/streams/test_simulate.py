"""`headrace simulate` and the pacing that it shares with the demo."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from itertools import islice

import pytest

from streams.broker import Broker
from streams.cli import simulate
from streams.cli.main import main
from streams.demo_traffic import send, send_paced
from streams.log import TP, OutBatch, connect
from streams.memory import MemoryLog
from streams.simulator_stream import Chunk, StreamRecord, Tag
from streams.topics import LABELS, TRANSACTIONS, topic_infos

NOW_MS = 1_763_868_000_000


@pytest.fixture
def keep_signals() -> Iterator[None]:
    """The command sets handlers, which pytest's own must survive."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class FakeProducer:
    """A producer with room for ``room`` records at each poll."""

    def __init__(self, room: int) -> None:
        self.room, self.free = room, room
        self.sent: list[bytes | None] = []

    def send(self, batch: OutBatch, start: int = 0) -> int:
        taken = list(batch.values[start : start + self.free])
        self.free -= len(taken)
        self.sent += taken
        return start + len(taken)

    def poll(self, timeout_s: float) -> None:
        self.free = self.room

    def flush(self, timeout_s: float) -> int:
        return 0

    def close(self) -> None:
        """Nothing to do."""


def chunk(due_s: float, *values: bytes, send_time: int = 0) -> Chunk:
    return Chunk(due_s, send_time, [StreamRecord(TRANSACTIONS, b"", value, Tag.TRANSACTION) for value in values])


def test_a_full_queue_is_waited_for() -> None:
    producer = FakeProducer(room=2)
    values: Sequence[bytes] = [b"%d" % i for i in range(7)]
    send(producer, [OutBatch(TRANSACTIONS, values)], threading.Event())
    assert producer.sent == values


def test_a_queue_that_stays_full_is_given_up_once_stopped() -> None:
    stop = threading.Event()
    stop.set()
    send(FakeProducer(room=0), [OutBatch(TRANSACTIONS, [b"1"])], stop)


def test_chunks_are_sent_when_they_are_due() -> None:
    producer, stop = FakeProducer(room=100), threading.Event()
    told: list[tuple[float, Chunk]] = []
    started = time.monotonic()
    chunks = [chunk(0.0, b"a"), chunk(0.05, b"b"), chunk(0.1, b"c")]
    send_paced(producer, chunks, stop, sending=lambda c: told.append((time.monotonic() - started, c)))
    assert producer.sent == [b"a", b"b", b"c"]
    assert [c for _, c in told] == chunks
    assert all(at >= c.due_s for at, c in told)


def test_the_end_comes_in_time() -> None:
    producer = FakeProducer(room=100)
    started = time.monotonic()
    send_paced(producer, [chunk(0.0, b"a"), chunk(3600.0, b"b")], threading.Event(), seconds=0.1)
    assert producer.sent == [b"a"]
    assert 0.1 <= time.monotonic() - started < 60


def test_stop_ends_a_wait() -> None:
    producer, stop = FakeProducer(room=100), threading.Event()
    send_paced(producer, [chunk(0.0, b"a"), chunk(3600.0, b"b")], stop, sending=lambda _: stop.set())
    assert producer.sent == [b"a"]


def test_the_future_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    producer = FakeProducer(room=100)
    ahead = int(time.time() * 1000) + 3_600_000
    send_paced(producer, [chunk(0.0, b"a"), chunk(0.0, b"b", send_time=ahead)], threading.Event(), seconds=0.1)
    assert producer.sent == [b"a"]
    assert "at the pace of life" in caplog.text


class TestWhereTheClockSays:
    def first(self, now_ms: int, rate: float = 50.0) -> tuple[Chunk, int]:
        """The first chunk with a transaction, and its smallest transaction id."""
        for one in islice(simulate.chunks(rate, 1, now_ms), 1_000):
            ids = [json.loads(r.value)["transaction_id"] for r in one.records if r.tag == Tag.TRANSACTION]
            if ids:
                return one, min(ids)
        raise AssertionError("no transaction")

    def test_a_later_run_is_later(self) -> None:
        early, early_id = self.first(NOW_MS)
        late, late_id = self.first(NOW_MS + 60_000)
        gone_ms = late.send_time - early.send_time
        assert gone_ms == pytest.approx(60_000 * simulate.SPEED_UP, rel=0.05)
        assert late_id - early_id > 60 * 50

    def test_events_are_in_the_past_throughout_the_period(self) -> None:
        begin = NOW_MS - NOW_MS % simulate.PERIOD_MS
        for now in (begin, begin + simulate.PERIOD_MS - 1):
            one, _ = self.first(now)
            assert one.send_time < now
            assert one.due_s < 60


def test_into_a_log_whose_topics_come_later(
    keep_signals: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = uuid.uuid4().hex
    log = MemoryLog.named(name)
    infos = topic_infos((TRANSACTIONS, LABELS), 2)
    # the first wait for the topics is where they come
    monkeypatch.setattr("streams.cli.simulate.time.sleep", lambda _s: log.admin().create_topics(infos))
    assert main(["simulate", "--bootstrap", f"memory://{name}", "--rate", "400", "--seconds", "0.5", "--json"]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out.splitlines()[-1])
    sent = sum(len(p.rows) for p in log.partitions(TRANSACTIONS))
    assert figures["transactions"] == sent > 0
    assert "waiting for topics transaction-labels, transactions: create them with `headrace topics create`" in err
    assert "sending to transactions" in err


@pytest.mark.parametrize("words", [["--rate", "0"], ["--rate", "nan"], ["--seconds", "0"]])
def test_wrong_use_names_the_option(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *words]) == 2
    assert capsys.readouterr().err.startswith(f"headrace simulate: {words[0]} ")


@pytest.mark.kafka
def test_sigterm_ends_it_in_order(kafka: Broker) -> None:
    log = connect(f"headrace://{kafka.bootstrap}")
    admin = log.admin()
    admin.create_topics(topic_infos((TRANSACTIONS, LABELS)))
    # other tests of this session may have made it, with as many as they liked
    partitions = [TP(TRANSACTIONS, p) for p in range(admin.topics([TRANSACTIONS])[TRANSACTIONS].partitions)]
    command = "from streams.cli.main import entry; entry()"
    words = ["simulate", "--bootstrap", kafka.bootstrap, "--rate", "500", "--json"]
    consumer = log.consumer("none")
    before = [consumer.offset_range(tp)[1] for tp in partitions]
    with subprocess.Popen(
        [sys.executable, "-c", command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "sending to" not in process.stderr.readline():
            assert process.poll() is None
        # the handlers are in place when the first record is there
        while [consumer.offset_range(tp)[1] for tp in partitions] == before:
            assert process.poll() is None
        consumer.close()
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert figures["transactions"] > 0
    assert figures["undelivered"] == 0
