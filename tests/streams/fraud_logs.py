"""The fraud pipeline's logs in lists: tasks fed by hand, batch by batch, without broker, clock or threads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson

from features.fraud import DEFAULT
from models.slot import ModelSlot
from streams.log import TP, OutBatch, RecordBatch, TopicInfo
from streams.partitioner import partition_of_key
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_stages import StageSettings
from streams.shuffle import unpack
from streams.topics import BY_TERMINAL, TRANSACTIONS

DAY = 86_400_000
HOUR = 3_600_000
NOW = 1_700_000_000_000
SETTINGS = StageSettings(DEFAULT)


@dataclass(frozen=True)
class Record:
    """A record of a log, its offset being its place."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def transaction(
    i: int | str, time: int = NOW, card: Any = 1, terminal: Any = 1, amount: float = 5.0, **more: Any
) -> Record:
    event = {"transaction_id": i, "event_time": time, "card_id": card, "terminal_id": terminal, "amount": amount}
    event |= more
    return Record(orjson.dumps(event), str(card).encode())


def label(i: int | str, time: int, fraud: int = 1, **more: Any) -> Record:
    return Record(orjson.dumps({"transaction_id": i, "label_time": time, "is_fraud": fraud, **more}), str(i).encode())


def make_pipeline(
    order: str = "arrival",
    partitions: int = 1,
    settings: StageSettings = SETTINGS,
    slot: ModelSlot | None = None,
    ids: str = "id",
) -> FraudPipeline:
    """A pipeline whose topics have this many partitions and topic ids that begin with ``ids``."""
    pipeline = FraudPipeline(settings, slot or ModelSlot(), order, partitions)
    pipeline.bind({info.name: TopicInfo(info.name, partitions, f"{ids}-{info.name}") for info in pipeline.topics})
    return pipeline


def batch(
    topic: str, records: Sequence[Record], first: int = 0, partition: int = 0, *, replay: bool = False
) -> RecordBatch:
    """Records at offsets ``first``..., sent at NOW."""
    n = len(records)
    return RecordBatch(
        TP(topic, partition),
        list(range(first, first + n)),
        [NOW] * n,
        [r.key for r in records],
        [r.value for r in records],
        lambda i: list(records[i].headers),
        first + n,
        replay=replay,
    )


def processed(task: Any, records: RecordBatch) -> list[OutBatch]:
    """What a task of the fraud pipeline makes of a batch."""
    return list(task.pipeline.process([(task, records)]))


def cut(records: Sequence[Record], at: Iterable[int]) -> list[tuple[int, Sequence[Record]]]:
    """(first, piece) of the records cut at these places."""
    places = sorted({0, len(records), *at})
    return [(a, records[a:b]) for a, b in pairwise(places)]


@dataclass
class Logs:
    """Outputs by topic and partition, as records."""

    records: dict[tuple[str, int], list[Record]] = field(default_factory=lambda: defaultdict(list))

    def take(self, outputs: Iterable[OutBatch], partitions: int) -> None:
        for out in outputs:
            for i, value in enumerate(out.values):
                key = None if out.keys is None else out.keys[i]
                place = out.partition
                if place is None:
                    place = 0 if key is None else partition_of_key(key, partitions)
                self.records[out.topic, place].append(Record(value, key, tuple(out.headers_of(i))))

    def of(self, topic: str) -> list[Record]:
        """All records of the topic, partition after partition."""
        return [r for (name, _), records in sorted(self.records.items()) if name == topic for r in records]


def rows_of(records: Iterable[Record]) -> list[tuple[Any, ...]]:
    """Shuffled rows as plain tuples with the bits of their numbers: however they were put into messages."""
    out: list[tuple[Any, ...]] = []
    for record in records:
        message = unpack(record.value)
        block = message.block
        columns = {name: [v.tobytes() for v in column] for name, column in block.columns.items()}
        ids = {name: column.to_list() for name, column in block.ids.items()}
        for i in range(len(block)):
            row = {**{n: c[i] for n, c in columns.items()}, **{n: c[i] for n, c in ids.items()}}
            extra = None if block.extra is None else block.extra[i]
            stamps = (int(block.offsets[i]), int(block.timestamps[i]))
            out.append((message.kind, message.source, *stamps, tuple(sorted(row.items())), extra))
    return out


class Fed:
    """The three tasks of one partition each; ``feed`` sends records and lets the terminal stage read at once."""

    def __init__(self, pipeline: FraudPipeline) -> None:
        self.pipeline = pipeline
        self.logs = Logs()
        self.inputs: dict[str, int] = defaultdict(int)
        self._tasks: dict[str, Any] = {}
        self._read = 0

    def task(self, topic: str) -> Any:
        if topic not in self._tasks:
            self._tasks[topic] = self.pipeline.task(TP(topic, 0))
        return self._tasks[topic]

    def feed(self, records: Sequence[Record], topic: str = TRANSACTIONS) -> None:
        first = self.inputs[topic]
        self.inputs[topic] += len(records)
        self.logs.take(processed(self.task(topic), batch(topic, records, first)), 1)
        self.read()

    def tick(self, topic: str, now_s: float, at_end: bool = True) -> None:
        self.logs.take(self.task(topic).tick(now_s, at_end), 1)
        self.read()

    def read(self) -> None:
        """The terminal stage reads on."""
        shuffled = self.logs.records[BY_TERMINAL, 0]
        first, self._read = self._read, len(shuffled)
        if first < self._read:
            self.logs.take(processed(self.task(BY_TERMINAL), batch(BY_TERMINAL, shuffled[first:], first)), 1)

    def scores(self) -> list[dict[str, Any]]:
        return [orjson.loads(r.value or b"") for r in self.logs.of("fraud-scores")]
