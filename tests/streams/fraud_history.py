"""A seeded history of the fraud topics with all that makes state: bursts out of order, repeats, early labels .."""

from __future__ import annotations

from typing import Any

import numpy as np
from fraud_logs import DAY, HOUR, NOW, Logs, Record, batch, label, processed, transaction

from streams.log import TP
from streams.partitioner import partition_of_key
from streams.pipelines.fraud import FraudPipeline
from streams.shuffle import unpack
from streams.topics import BY_TERMINAL, LABELS, TRANSACTIONS

MINUTE = 60_000


def _id(kind: str, number: int) -> int | str:
    return number if kind == "integers" or (kind == "mixed" and number % 3) else f"id-{number}"


def history(seed: int, n: int, kind: str) -> list[tuple[str, Record]]:
    """(topic, record) in the order of sending; ids are ``integers``, ``texts`` or ``mixed``."""
    rng = np.random.default_rng(seed)
    out: list[tuple[str, Record]] = []
    sent: list[tuple[int, int, int]] = []
    time = NOW - n * DAY  # what is newer than the record's own time would be a dead letter
    hot = next(k for k in range(99) if partition_of_key(str(_id(kind, k)).encode(), 2) == 0)  # busy in a burst
    for i in range(n):
        burst = n // 3 <= i < 2 * n // 3
        time += int(rng.choice([500, 5_000] if burst else [0, HOUR, 6 * HOUR, DAY]))
        what = rng.random()
        if what < 0.04:
            out.append((str(rng.choice([TRANSACTIONS, LABELS])), Record(b"{", b"k", (("h", b"v"),))))
        elif what < 0.3 and sent:
            of, when, terminal = sent[-1 - int(rng.integers(min(len(sent), 40)))]
            early = int(rng.integers(1, 9)) if rng.random() < 0.2 else 0  # the transaction has not come yet
            more: dict[str, Any] = {"terminal_id": _id(kind, terminal)} if rng.random() < 0.5 else {}
            due = when + int(rng.choice([HOUR, 3 * DAY, 9 * DAY]))
            out.append((LABELS, label(_id(kind, of + early), due, int(rng.random() < 0.7), **more)))
        elif what < 0.36 and sent:
            of, when, terminal = sent[-1 - int(rng.integers(min(len(sent), 9)))]
            out.append((TRANSACTIONS, transaction(_id(kind, of), when, _id(kind, of % 4), _id(kind, terminal))))
        else:
            behind = int(rng.choice([0, 10 * MINUTE, 55 * MINUTE, 2 * HOUR, 3 * DAY], p=[0.6, 0.1, 0.2, 0.05, 0.05]))
            own = time - int(rng.integers(0, behind + 1))
            terminal = hot if burst and rng.random() < 0.8 else int(rng.integers(0, 6))
            more = {"channel": "web", "n": [1, None]} if rng.random() < 0.2 else {}
            amount = round(float(rng.gamma(2.0, 30.0)), 2)
            card = _id(kind, hot if burst and rng.random() < 0.8 else i % 4)
            out.append((TRANSACTIONS, transaction(_id(kind, i), own, card, _id(kind, terminal), amount, **more)))
            sent.append((i, own, terminal))
    return out


def partitioned(stream: list[tuple[str, Record]], partitions: int) -> dict[TP, list[Record]]:
    """The records of each partition of the source topics."""
    logs: dict[TP, list[Record]] = {TP(t, p): [] for t in (TRANSACTIONS, LABELS) for p in range(partitions)}
    for topic, record in stream:
        logs[TP(topic, partition_of_key(record.key or b"", partitions))].append(record)
    return logs


def shuffled_log(seed: int, pipeline: FraudPipeline, stream: list[tuple[str, Record]]) -> list[Record]:
    """Partition 0 of fraud.by-terminal: all senders' messages, their marks, and some messages a second time."""
    rng = np.random.default_rng(seed)
    queues = partitioned([], pipeline.partitions)
    tasks = {tp: pipeline.task(tp) for tp in queues}
    logs = Logs()
    first = dict.fromkeys(queues, 0)

    def send(tp: TP) -> None:
        if piece := queues[tp]:
            logs.take(processed(tasks[tp], batch(tp.topic, piece, first[tp], tp.partition)), pipeline.partitions)
            first[tp] += len(piece)
            queues[tp] = []

    for step, (topic, record) in enumerate(stream):
        queues[TP(topic, partition_of_key(record.key or b"", pipeline.partitions))].append(record)
        send(list(queues)[int(rng.integers(len(queues)))])
        told = list(queues)[int(rng.integers(len(queues)))]
        logs.take(tasks[told].tick(0.4 * step, at_end=not queues[told]), pipeline.partitions)
    for tp in queues:
        send(tp)
    out: list[Record] = []
    for record in logs.records[BY_TERMINAL, 0]:
        out.append(record)
        if rng.random() < 0.1:  # what a sender that was restarted sends again
            again = [r for r in out[-12:] if unpack(r.value).source == unpack(record.value).source]
            out += again[-2:]
    return out
