"""The producers of the in-process log, and its partitions: records, and what transactions leave there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.errors import ConfigError, FatalError
from streams.log import TP, Headers, Membership, OutBatch

if TYPE_CHECKING:
    from streams.memory import MemoryLog

__all__ = ["MemoryProducer", "MemoryTransactionalProducer", "Partition", "Row"]

#: timestamp in ms, key, value, headers
Row = tuple[int, bytes | None, bytes | None, Headers]


@dataclass(slots=True)
class Partition:
    """Records by offset; None where a transaction has left its marker, or a record that does not count."""

    rows: list[Row | None] = field(default_factory=list)
    #: first offset of each open transaction
    unstable: dict[int, int] = field(default_factory=dict)

    @property
    def stable_end(self) -> int:
        """Where readers of committed records must stop."""
        return min(self.unstable.values(), default=len(self.rows))


class MemoryProducer:
    """Appends at once; nothing is ever in flight."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def send(self, batch: OutBatch, start: int = 0) -> int:
        with self._log.changed:
            self._log.append(_from(batch, start), time.time_ns() // 1_000_000)
        return len(batch)

    def poll(self, timeout_s: float) -> None:
        """Nothing to do: sending is immediate."""

    def flush(self, timeout_s: float) -> int:
        return 0

    def close(self) -> None:
        """Nothing to do: sending is immediate."""


def _from(batch: OutBatch, start: int) -> OutBatch:
    if not start:
        return batch
    return OutBatch(
        batch.topic,
        batch.values[start:],
        None if batch.keys is None else batch.keys[start:],
        batch.partition,
        None if batch.headers is None else batch.headers[start:],
    )


class MemoryTransactionalProducer(MemoryProducer):
    """One transaction after the other; readers see its records once it is committed."""

    def __init__(self, log: MemoryLog, transactional_id: str, timeout_s: float) -> None:
        super().__init__(log)
        self._id = transactional_id
        self._timeout_s = timeout_s
        self._number = 0
        self._began: float | None = None
        self._places: list[tuple[Partition, int]] = []
        self._fenced = ""

    def init(self) -> None:
        with self._log.changed:
            before = self._log.transactional.get(self._id)
            if before is not None:
                before.fence("another producer has its id now")
            self._log.transactional[self._id] = self

    def begin(self) -> None:
        with self._log.changed:
            self._check(is_open=False)
            self._number = self._log.new_id()
            self._began = self._log.clock()

    def send(self, batch: OutBatch, start: int = 0) -> int:
        with self._log.changed:
            self._check(is_open=True)
            for partition, offset in self._log.append(_from(batch, start), time.time_ns() // 1_000_000):
                partition.unstable.setdefault(self._number, offset)
                self._places.append((partition, offset))
        return len(batch)

    def commit(self, offsets: Mapping[TP, int], membership: Membership, timeout_s: float, *, note: str = "") -> None:
        with self._log.changed:
            self._check(is_open=True)
            if offsets:
                self._log.commit_offsets(offsets, membership, note)
            self._end()

    def abort(self, timeout_s: float) -> None:
        with self._log.changed:
            self._check(is_open=True)
            self._drop()

    def close(self) -> None:
        with self._log.changed:
            if self._began is not None:
                self._drop()

    # -- called with the log's lock held --

    def fence(self, reason: str) -> None:
        """From now on this producer can do nothing; what it has left open does not count."""
        self._fenced = reason
        if self._began is not None:
            self._drop()

    def expire(self, now: float) -> None:
        """As a broker does with a transaction that is open for too long."""
        if self._began is not None and now - self._began > self._timeout_s:
            self.fence(f"a transaction was open for more than {self._timeout_s:g} s")

    def _drop(self) -> None:
        for partition, offset in self._places:
            partition.rows[offset] = None
        self._end()

    def _end(self) -> None:
        """Leaves a marker in every partition, which takes an offset."""
        for partition in {id(partition): partition for partition, _ in self._places}.values():
            del partition.unstable[self._number]
            partition.rows.append(None)
        self._places.clear()
        self._began = None
        self._log.changed.notify_all()

    def _check(self, *, is_open: bool) -> None:
        if self._log.transactional.get(self._id) is not self and not self._fenced:
            raise ConfigError(f"transactional id {self._id}: not initialised; call init first")
        if self._fenced:
            raise FatalError(
                "transaction-fenced",
                f"transactional id {self._id}: {self._fenced}. Nothing after the last commit counts; a restarted "
                "worker goes on there. Give every worker a transactional_id of its own.",
            )
        if is_open != (self._began is not None):
            raise ConfigError(f"transactional id {self._id}: begin, then send, then commit or abort")
