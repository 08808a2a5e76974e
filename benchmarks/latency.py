"""Milliseconds from a transaction handed to a producer to its score in a consumer's hands, at several rates.

Worker, broker and this process are three processes on one machine. The broker is warm: it has run for half a minute
at 1,000 events/s before, since what Java compiles meanwhile would be measured as latency. The producer sends each
transaction at its own moment (open loop: a late send counts as latency, since the clock starts at the planned moment),
the consumer stamps each score when its poll returns. Transactions arrive at `rate` for `seconds`, after a warm-up that
is not counted.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import BenchError, Child, cpu_seconds, headrace, machine, versions
from benchmarks.workload import Workload, simulated, train
from streams.broker import Broker
from streams.latency import LatencyDigest
from streams.log import TP, Log, LogConsumer, OutBatch, connect
from streams.topics import FRAUD_SCORES, TRANSACTIONS, all_topics

__all__ = ["RATES", "Receiver", "paced", "run"]

RATES = (100, 1_000, 10_000)
_WARM_S = 3.0
_BROKER_WARM_RATE, _BROKER_WARM_S = 1_000, 30.0
_LATE_S = 30.0
_ID = re.compile(rb'"transaction_id":(\d+)')


class _FromEnd:
    def __init__(self, consumer: LogConsumer) -> None:
        self._consumer = consumer

    def on_assign(self, partitions: list[TP]) -> dict[TP, int | None]:
        return {tp: self._consumer.offset_range(tp)[1] for tp in partitions}

    def on_revoke(self, partitions: list[TP]) -> None:
        """Nothing to give up."""

    def on_lost(self, partitions: list[TP]) -> None:
        """Nothing to give up."""


class Receiver(threading.Thread):
    """Stamps each score's arrival."""

    def __init__(self, log: Log, arrivals: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        super().__init__(daemon=True)
        self._consumer = log.consumer(f"latency-{uuid.uuid4().hex}")
        self._arrivals = arrivals
        self.assigned, self.ended = threading.Event(), threading.Event()
        self.count = 0

    def run(self) -> None:
        self._consumer.subscribe([FRAUD_SCORES], _FromEnd(self._consumer))
        while not self.ended.is_set():
            batches = self._consumer.poll(0.05, 10_000)
            now = time.perf_counter()
            if self._consumer.assignment():
                self.assigned.set()
            for batch in batches:
                for value in batch.values:
                    match = _ID.search(value or b"")
                    if match is not None:
                        self._arrivals[int(match[1])] = now
                        self.count += 1
        self._consumer.close()


def paced(log: Log, workload: Workload, first: int, n: int, rate: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sends transactions first..first+n at ``rate``; returns when each was to be sent."""
    producer = log.producer(config={"producer.linger.ms": 0})
    started = time.perf_counter() + 0.05
    planned = started + np.arange(n) / rate
    at = 0
    while at < n:
        now = time.perf_counter()
        due = min(n, int((now - started) * rate) + 1) if now >= started else 0
        if due > at:
            rows = slice(first + at, first + due)
            producer.send(OutBatch(TRANSACTIONS, workload.transactions.values[rows], workload.transactions.keys[rows]))
            at = due
        else:
            time.sleep(max(0.0, min(planned[at] - now, 0.001)))
    producer.flush(30.0)
    producer.close()
    return planned


def _at_rate(log: Log, worker: Child, workload: Workload, first: int, rate: int, seconds: float) -> dict[str, Any]:
    warm, n = int(rate * _WARM_S), int(rate * (_WARM_S + seconds))
    arrivals = np.full(first + n, np.nan)
    receiver = Receiver(log, arrivals)
    receiver.start()
    if not receiver.assigned.wait(30.0):
        raise BenchError("the consumer of the scores got no partitions within 30 s")
    cpu_s, started = cpu_seconds(worker.pid), time.monotonic()
    planned = paced(log, workload, first, n, rate)
    cores = (cpu_seconds(worker.pid) - cpu_s) / (time.monotonic() - started)
    deadline = time.monotonic() + _LATE_S
    while receiver.count < n and time.monotonic() < deadline:
        time.sleep(0.01)
    receiver.ended.set()
    receiver.join(10.0)
    took_ms = (arrivals[first:] - planned)[warm:] * 1000
    missing = int(np.count_nonzero(np.isnan(took_ms)))
    if missing:
        raise BenchError(f"{missing} of {n} scores did not come within {_LATE_S:.0f} s at {rate} events/s")
    digest = LatencyDigest()
    digest.add(took_ms)
    return {"rate": rate, **digest.to_dict(), "worker_cores": round(cores, 3)}


def run(
    rates: Sequence[int] = RATES,
    *,
    seconds: float = 10.0,
    partitions: int = 4,
    delivery: str = "at_least_once",
    notify: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The figures of ``headrace bench latency``: ``results: [{rate, count, latency_ms_p50, .._p99, .._p999, ..}]``;
    ``worker_cores``: the CPU that the worker takes at this rate."""
    about = {"machine": machine(), "versions": versions()}
    runs = [(_BROKER_WARM_RATE, _BROKER_WARM_S), *((rate, seconds) for rate in rates)]
    workload = simulated(sum(int(rate * (_WARM_S + s)) for rate, s in runs))
    results = []
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name, Broker.start(long_run=True) as broker:
        train(Path(name))
        log = connect(f"headrace://{broker.bootstrap}")
        log.admin().create_topics(all_topics(partitions))
        command = headrace("run", "--pipeline", "fraud", "--bootstrap", broker.bootstrap, "--models", f"{name}/models")
        command += ["--delivery", delivery, "--checkpoints", f"{name}/checkpoints"]
        with Child(command, None) as worker:
            worker.wait_ready()
            first = 0
            for rate, s in runs:
                notify(f"{rate:,} events/s for {s:.0f} s{'' if first else ', to warm the broker up'}")
                results.append(_at_rate(log, worker, workload, first, rate, s))
                first += int(rate * (_WARM_S + s))
    return {"results": results[1:], "partitions": partitions, "delivery": delivery, **about}
