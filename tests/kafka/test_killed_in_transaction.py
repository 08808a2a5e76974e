"""Exactly once, the broker dies of kill -9 in the midst of a transaction: as its end is asked for, and once it is
written but before the worker hears of it.

It is written when all partitions have its end. A broker alone that is killed before, with the end decided, forgets
about them as it starts again: Kafka 4.4 takes partitions without a leader for deleted, and the transaction hangs for
ever. Nothing that a worker does could mend that; `test_hanging_transaction` is about what it says.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from cluster import QUICK, Feed, Tail, Worker, fresh_topics, sources, stream, until
from proxy import Proxy

from streams.broker import Broker, free_port

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

N = 6_000
STREAM = stream(N)
PARTITIONS = 2
#: who waits for a client that lost its transaction waits as long as a transaction may take
EXACTLY_ONCE = f"""delivery = "exactly_once"
{QUICK}
producer.transaction.timeout.ms = 6000
producer.message.timeout.ms = 6000
"""
#: Kafka's number of the request that ends a transaction
END_TXN = 26
#: the broker answers when the end is decided, and writes it to the partitions then
_WRITTEN_S = 1.0


class Killer:
    """Kills the broker at the next end of a transaction, in the proxy's thread: nothing overtakes it."""

    def __init__(self, broker: Broker, proxy: Proxy, before: bool) -> None:
        self.done = threading.Event()
        self._broker, self._proxy, self._before = broker, proxy, before
        proxy.seen = self._seen

    def _seen(self, api: int, is_request: bool) -> None:
        if api == END_TXN and is_request is self._before and not self.done.is_set():
            if not is_request:
                time.sleep(_WRITTEN_S)
            self._broker.kill()
            self._proxy.cut()
            self.done.set()


def test_the_broker_is_killed_at_the_end_of_a_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    broker = Broker.start(free_port(), tmp_path / "data")
    proxy = Proxy(broker.port)
    try:
        log = fresh_topics(broker.bootstrap, PARTITIONS)
        options = (f"127.0.0.1:{proxy.port}", tmp_path, "dead-in-transaction", "--order", "event_time")
        with Worker(*options, config=EXACTLY_ONCE) as worker, Tail(log) as tail:
            worker.wait_ready()
            feed = Feed(log, STREAM.records, per_s=60)
            for times, before in ((1, True), (2, False)):
                tail.read(len(tail.by_source) + 1)
                killer = Killer(broker, proxy, before)
                until(killer.done.is_set, "the end of a transaction")
                worker.until(lambda times=times: worker.log.count("is away") >= times, "the absence in the log")
                broker.restart()
            assert feed.sent < len(STREAM.records), "both kills were under load"
            feed.hurry(4_000)
            feed.join()
            tail.read(N)
            worker.stop(within_s=20)
        assert "Traceback" not in worker.log
        assert set(tail.by_source) == sources(log) and tail.repeated == 0
        assert tail.features() == STREAM.features()
    finally:
        proxy.close()
        broker.stop()
