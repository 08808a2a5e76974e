"""What the simulated workers compute: two stages that count, joined by a shuffle that is read row by row (rule 3).

    in (KEY,KEY2) -> count per KEY -> shuffle (PARTITION|OFFSET,KEY2,N;...) -> count per KEY2 -> out
    (PARTITION,OFFSET,KEY2,N,N2)

N and N2 show in each output whether every record before it had its effect once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from streams.log import TP, OutBatch, RecordBatch
from streams.shuffle import Source, SourcePositions

PARTITIONS = 2
TOPICS = ("in", "shuffle", "out")


class Row(NamedTuple):
    """A record's second key, with where it came from and its number among those with the first key."""

    partition: int
    offset: int
    key2: bytes
    n: int


def rows_of(message: bytes) -> list[Row]:
    """The rows of a shuffle message."""
    partition, _, rows = message.partition(b"|")
    fields = [row.split(b",") for row in rows.split(b";")]
    return [Row(int(partition), int(offset), key2, int(n)) for offset, key2, n in fields]


def target_of(key2: bytes) -> int:
    """The shuffle partition of a second key."""
    return key2[-1] % PARTITIONS


class _Task:
    def __init__(self, tp: TP) -> None:
        self.tp = tp
        self.next_offset = 0
        self.counts: Counter[bytes] = Counter()

    def state(self) -> dict[str, Any]:
        return {"next_offset": self.next_offset, "counts": dict(self.counts)}

    def restore(self, arrays: Mapping[str, Any]) -> None:
        self.next_offset = arrays["next_offset"]
        self.counts = Counter(arrays["counts"])

    def _todo(self, batch: RecordBatch) -> list[tuple[int, bytes]]:
        """Offsets and values that are not in the state yet (rule 2)."""
        todo = [
            (o, v) for o, v in zip(batch.offsets, batch.values, strict=True) if o >= self.next_offset and v is not None
        ]
        self.next_offset = max(self.next_offset, batch.next_offset)
        return todo


class FirstTask(_Task):
    """Counts per first key; sends each row to the partition of its second."""

    def process(self, batch: RecordBatch) -> list[OutBatch]:
        rows: dict[int, list[bytes]] = defaultdict(list)
        for offset, value in self._todo(batch):
            key, key2 = value.split(b",")
            self.counts[key] += 1
            rows[target_of(key2)].append(b"%d,%s,%d" % (offset, key2, self.counts[key]))
        if batch.replay:
            return []
        mine = b"%d|" % self.tp.partition
        return [OutBatch("shuffle", [mine + b";".join(texts)], None, target) for target, texts in rows.items()]


class SecondTask(_Task):
    """Counts per second key the rows that did not come before."""

    keeps_positions: ClassVar[bool] = True

    def __init__(self, tp: TP) -> None:
        super().__init__(tp)
        self.positions = SourcePositions()

    def state(self) -> dict[str, Any]:
        return super().state() | {"positions": self.positions.to_arrays() if self.keeps_positions else None}

    def restore(self, arrays: Mapping[str, Any]) -> None:
        super().restore(arrays)
        if arrays["positions"] is not None:
            self.positions = SourcePositions.from_arrays(arrays["positions"])

    def process(self, batch: RecordBatch) -> list[OutBatch]:
        values: list[bytes | None] = []
        for _, message in self._todo(batch):
            rows = rows_of(message)
            source = Source("in", "id", rows[0].partition)
            for row in rows[self.positions.fresh(source, np.array([row.offset for row in rows])) :]:
                self.counts[row.key2] += 1
                values.append(b"%d,%d,%s,%d,%d" % (*row, self.counts[row.key2]))
        if batch.replay or not values:
            return []
        return [OutBatch("out", values, None, self.tp.partition)]


Task = FirstTask | SecondTask
