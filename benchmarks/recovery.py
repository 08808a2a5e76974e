"""Seconds from the start of a worker that was killed to its next score, with a checkpoint and a log to replay.

One worker takes a history in which every card occurs and leaves with a checkpoint, which is set aside. A second one
goes on with more events, taking checkpoints all the time: their pauses are those at full size and under full load. When
all it made is committed it is killed, and a third one starts with the checkpoint that was set aside, so that it has all
of the second's events to replay. One transaction is in the log by then: its score is the first new one.

Before all that, `benchmarks.checkpoint_pauses` measures in this process what a checkpoint of so many cards adds to a
block. Worker, broker and this process share the machine; nothing is pinned, as in operation. What a group waits for a
member that was killed is a setting, 6 s here (``consumer.session.timeout.ms``): with that long since the kill, it is
part of the time from the start to the assignment.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks import checkpoint_pauses
from benchmarks.machine import BenchError, Child, cpu_seconds, headrace, machine, versions
from benchmarks.workload import START_MS, train
from features.block import IntArray
from streams.broker import Broker
from streams.checkpoint_store import CheckpointStore, Series
from streams.config import load_settings
from streams.fraud_worker import make_pipeline
from streams.log import TP, Log, LogConsumer, LogProducer, OutBatch, connect
from streams.simulator_stream import transaction_json
from streams.store import open_store
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS, all_topics
from streams.verify import verify_fraud

__all__ = ["History", "run"]

GROUP = "headrace-bench"
_DAY_MS = 86_400_000
_EVENTS_PER_CARD_AND_DAY = 2
#: events of a terminal for one of a card
_CARDS_PER_TERMINAL = 10
_CHUNK = 50_000
_PHASE_S = 1800.0
_POLL_S = 0.02
_PAUSES_INTERVAL_MS = 500
_NEVER_MS = 10 * _DAY_MS
_CONFIG = """checkpoint_interval_ms = {}
[kafka]
consumer.session.timeout.ms = 6000
"""
#: with no more events the whole log is replayed and compared with what the workers wrote
_VERIFIED_MAX = 500_000


@dataclass(frozen=True, slots=True)
class History:
    """``events`` transactions of ``cards`` cards in order of time, and a label of each, with its terminal, ``delay``
    transactions later: each card first occurs once, then at random, twice a day in the mean."""

    cards: int
    events: int
    delay: int
    seed: int = 1

    def chunks(self, first: int, last: int) -> Iterator[tuple[OutBatch, OutBatch]]:
        """Transactions first..last and the labels that come meanwhile, some thousands at a time."""
        for begin in range(first, last, _CHUNK):
            end = min(begin + _CHUNK, last)
            ids, times, cards, terminals, cents = self._columns(begin, end)
            rows = zip(ids.tolist(), times.tolist(), cards.tolist(), terminals.tolist(), cents.tolist(), strict=True)
            sent = OutBatch(
                TRANSACTIONS, [transaction_json(*row) for row in rows], [b"%d" % card for card in cards.tolist()]
            )
            known, _, _, theirs, _ = self._columns(max(0, begin - self.delay), max(0, end - self.delay))
            labels = [
                b'{"transaction_id":%d,"label_time":%d,"is_fraud":%d,"terminal_id":%d}'
                % (i, self._time(i + self.delay), i % 97 == 0, terminal)
                for i, terminal in zip(known.tolist(), theirs.tolist(), strict=True)
            ]
            yield sent, OutBatch(LABELS, labels, [b"%d" % i for i in known.tolist()])

    def _time(self, number: int) -> int:
        return START_MS + number * _DAY_MS // (_EVENTS_PER_CARD_AND_DAY * self.cards)

    def _columns(self, begin: int, end: int) -> tuple[IntArray, ...]:
        """Ids, times, cards, terminals and cents of these transactions, whichever others are asked for."""
        ids = np.arange(begin, end)
        times = START_MS + ids * _DAY_MS // (_EVENTS_PER_CARD_AND_DAY * self.cards)
        drawn = _mixed(ids, self.seed)
        # a multiplier without a common factor with the number of cards visits each card once
        step = next(k for k in range(self.cards // 3 * 2 + 1, 2 * self.cards + 2) if np.gcd(k, self.cards) == 1)
        cards = np.where(ids < self.cards, ids * step % self.cards, drawn[0] % self.cards)
        terminals = drawn[1] % max(1, self.cards // _CARDS_PER_TERMINAL)
        return ids, times, cards, terminals, 100 + drawn[2] % 20_000


def _mixed(numbers: IntArray, seed: int) -> list[IntArray]:
    """Three columns of non-negative numbers that look drawn, each a function of its number (splitmix64)."""
    out = []
    for stream in range(3):
        x = (numbers.astype(np.uint64) * np.uint64(3) + np.uint64(stream)) + np.uint64(seed << 40)
        x = x * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out.append(((x ^ (x >> np.uint64(31))) >> np.uint64(2)).astype(np.int64))
    return out


class _Bench:
    """The broker's log, the folder, and what both say of a group."""

    def __init__(self, broker: Broker, folder: Path, partitions: int, notify: Callable[[str], None]) -> None:
        self.folder, self.notify, self._bootstrap = folder, notify, broker.bootstrap
        self.log: Log = connect(f"headrace://{broker.bootstrap}")
        self.log.admin().create_topics(all_topics(partitions))
        self.topics = self.log.admin().topics()
        self.producer: LogProducer = self.log.producer()
        self._offsets: LogConsumer = self.log.consumer(GROUP)

    def close(self) -> None:
        self.producer.close()
        self._offsets.close()

    def worker(self, checkpoints: str, interval_ms: int) -> Child:
        command = headrace("run", "--pipeline", "fraud", "--json", "--bootstrap", self._bootstrap, "--group", GROUP)
        command += ["--models", str(self.folder / "models"), "--checkpoints", str(self.folder / checkpoints)]
        config = self.folder / f"{checkpoints}-{interval_ms}.toml"
        config.write_text(_CONFIG.format(interval_ms), "utf-8")
        return Child([*command, "--config", str(config)], None)

    def send(self, history: History, first: int, last: int) -> None:
        for transactions, labels in history.chunks(first, last):
            for batch in (transactions, labels):
                done = self.producer.send(batch)
                while done < len(batch):
                    self.producer.poll(0.05)
                    done = self.producer.send(batch, done)
        if left := self.producer.flush(120.0):
            raise BenchError(f"{left} records were not delivered within 120 s")

    def places(self, topic: str) -> list[TP]:
        return [TP(topic, p) for p in range(self.topics[topic].partitions)]

    def ends(self, topic: str) -> dict[TP, int]:
        return {tp: self._offsets.offset_range(tp)[1] for tp in self.places(topic)}

    def wait(self, worker: Child, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PHASE_S
        while not done():
            worker.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{what} did not come within {_PHASE_S:.0f} s; see the worker's log above")
            time.sleep(_POLL_S)

    def committed(self) -> bool:
        """Whether the group is at the end of all it reads, in the order in which one stage feeds the next."""
        for topic in (TRANSACTIONS, LABELS, BY_TERMINAL):
            at = self._offsets.committed(self.places(topic))
            if any((at[tp] or 0) < end for tp, end in self.ends(topic).items()):
                return False
        return True

    def saved(self, checkpoints: str) -> bool:
        """Whether there are checkpoints at the ends of all partitions that a state is of."""
        store = CheckpointStore(open_store(str(self.folder / checkpoints)), GROUP)
        for stage, topic in (("card", TRANSACTIONS), ("terminal", BY_TERMINAL)):
            for tp, end in self.ends(topic).items():
                if end and store.offsets(Series(stage, self.topics[topic].topic_id, tp.partition))[-1:] != [end]:
                    return False
        return True

    def figures(self, worker: Child) -> dict[str, Any]:
        figures: dict[str, Any] = orjson.loads(worker.next_line(lambda: worker.signal(signal.SIGUSR1)))
        return figures


def run(
    *,
    cards: int = 20_000,
    events: int = 100_000,
    since: int = 300_000,
    partitions: int = 4,
    labels: bool = True,
    trees: int = 300,
    notify: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The figures of ``headrace bench recovery``.

    ``events`` are in the checkpoint, ``since`` behind it, without ``labels`` transactions alone. Times are seconds.
    """
    if events < cards:
        raise BenchError(f"{events} events before the checkpoint for {cards} cards: at least one each is needed")
    about = {"machine": machine(), "versions": versions()}
    pauses = checkpoint_pauses.run(cards, notify=notify)
    history = History(cards, events + since + 1, delay=events // 2 if labels else events + since + 1)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name, Broker.start(long_run=True) as broker:
        train(Path(name), rows=20_000, trees=trees)
        bench = _Bench(broker, Path(name), partitions, notify)
        try:
            _history(bench, history, events)
            checkpoints = _since(bench, history, events, events + since)
            recovered = _recovery(bench, history, events + since)
            verified = _verified(bench) if events + since <= _VERIFIED_MAX else None
        finally:
            bench.close()
    return {
        "cards": cards,
        "events": events,
        "since": since,
        "labels": labels,
        "partitions": partitions,
        **recovered,
        "checkpoints": checkpoints,
        "pauses": pauses,
        "verified": verified,
        **about,
    }


def _history(bench: _Bench, history: History, last: int) -> None:
    """Ends with checkpoints in ``kept`` that are at the ends of all logs."""
    bench.notify(f"{last:,} events of {history.cards:,} cards before the checkpoint")
    with bench.worker("kept", _PAUSES_INTERVAL_MS) as worker:
        worker.wait_ready()
        bench.send(history, 0, last)
        bench.wait(worker, lambda: bench.committed() and bench.saved("kept"), "the checkpoints")


def _since(bench: _Bench, history: History, first: int, last: int) -> dict[str, Any]:
    """The pauses of the worker for its checkpoints while it takes the events behind ``kept``; it is killed."""
    bench.notify(f"{last - first:,} events since")
    shutil.copytree(bench.folder / "kept", bench.folder / "later")
    with bench.worker("later", _PAUSES_INTERVAL_MS) as worker:
        worker.wait_ready()
        bench.send(history, first, last)
        bench.wait(worker, lambda: bench.committed() and bench.saved("later"), "the scores")
        figures: dict[str, Any] = bench.figures(worker)["checkpoints"]
        worker.signal(signal.SIGKILL)
    return figures


def _recovery(bench: _Bench, history: History, probe: int) -> dict[str, Any]:
    """A worker that begins with the checkpoints in ``kept``, up to its score of transaction ``probe``."""
    nbytes = sum(path.stat().st_size for path in (bench.folder / "kept").rglob("*.ckpt"))
    bench.notify(f"a worker starts with checkpoints of {nbytes / 1e6:,.0f} MB")
    scores = bench.ends(FRAUD_SCORES)
    bench.send(history, probe, probe + 1)
    started = time.monotonic()
    with bench.worker("kept", _NEVER_MS) as worker:
        worker.wait_ready()
        ready_s = time.monotonic() - started
        cpu_s = cpu_seconds(worker.pid)
        bench.wait(worker, lambda: bench.ends(FRAUD_SCORES) != scores, "the score")
        first_score_s = time.monotonic() - started
        took = bench.figures(worker)["recovery"]
    replayed = sum(took["replayed"].values())
    return {
        "load_s": took["load_s"],
        "checkpoint_bytes": nbytes,
        "load_s_per_gb": round(took["load_s"] / nbytes * 1e9, 2),
        "replay_s": took["replay_s"],
        "replayed": took["replayed"],
        "replay_s_per_million_records": round(took["replay_s"] / max(1, replayed) * 1e6, 3),
        "replay_s_per_million_events": round(took["replay_s"] / max(1, took["replayed"][TRANSACTIONS]) * 1e6, 3),
        "start_to_assignment_s": round(ready_s - took["ready_s"], 2),
        "assignment_to_ready_s": took["ready_s"],
        "start_to_ready_s": round(ready_s, 2),
        "start_to_first_score_s": round(first_score_s, 2),
        "cpu_s_until_ready": round(cpu_s, 2),
    }


def _verified(bench: _Bench) -> dict[str, int]:
    """Rows that the whole log gives anew, and how many of them differ from what the workers wrote."""
    settings = load_settings(overrides={"models": str(bench.folder / "models"), "group": GROUP})
    results = verify_fraud(bench.log, GROUP, lambda: make_pipeline(settings))
    return {
        "rows": sum(result.rows for result in results),
        "mismatching_rows": sum(result.mismatching_rows for result in results),
    }
