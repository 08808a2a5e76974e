"""Dead letters made as a worker makes them, and logs that break a retry off, for tests on either log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streams.codec import decode_transactions
from streams.dead_letters import RETRY_OF, read_now
from streams.log import TP, Headers, Log, LogUnavailable, Membership, OutBatch, RecordBatch, TransactionalProducer
from streams.stage import dead_letters

#: key, value, headers of a record
Raw = tuple[bytes | None, bytes | None, Headers]


def put(log: Log, tp: TP, records: Sequence[Raw]) -> None:
    """Sends records to a partition."""
    producer = log.producer()
    keys, values, headers = ([record[i] for record in records] for i in range(3))
    assert producer.send(OutBatch(tp.topic, values, keys, tp.partition, headers)) == len(records)
    assert producer.flush(30) == 0
    producer.close()


def records_of(log: Log, topic: str) -> list[tuple[int, Raw]]:
    """Partition and content of every committed record."""
    found = []
    for batch in read_now(log, topic):
        found += [(batch.tp.partition, (batch.keys[i], batch.values[i], batch.headers(i))) for i in range(len(batch))]
    return found


def set_aside(log: Log, topic: str, stage: str = "card") -> int:
    """Does what the card stage does with the unreadable records of a topic; returns how many there were."""
    count = 0
    producer = log.producer()
    for batch in read_now(log, topic):
        _, dead = decode_transactions(batch)
        if dead:
            count += producer.send(dead_letters(batch, dead, stage))
    assert producer.flush(30) == 0
    producer.close()
    return count


def retries_of(log: Log, topic: str) -> dict[str, list[Raw]]:
    """Records that were retried, by the letter's source, without the header that says so."""
    found: dict[str, list[Raw]] = {}
    for _, (key, value, headers) in records_of(log, topic):
        name = dict(headers).get(RETRY_OF)
        if name is not None:
            rest = [header for header in headers if header[0] != RETRY_OF]
            assert len(rest) == len(headers) - 1
            found.setdefault(name.decode(), []).append((key, value, rest))
    return found


class Crash(BaseException):
    """The process is gone: nothing after it happens, nothing is closed."""


class Crashing:
    """A log whose transactional producer dies at its ``at``-th step, before (or after) having done it."""

    def __init__(self, log: Log, at: int, *, after: bool) -> None:
        self.log, self.at, self.after = log, at, after
        self.steps = 0
        self.url = log.url

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    def transactional_producer(
        self, transactional_id: str, *, config: Mapping[str, Any] | None = None
    ) -> TransactionalProducer:
        return _CrashingProducer(self, self.log.transactional_producer(transactional_id, config=config))


class _CrashingProducer:
    def __init__(self, owner: Crashing, producer: TransactionalProducer) -> None:
        self._owner, self._producer = owner, producer
        self._dead = False

    def _step(self, call: Any) -> Any:
        self._owner.steps += 1
        now = self._owner.steps == self._owner.at
        if now and not self._owner.after:
            self._dead = True
            raise Crash
        result = call()
        if now:
            self._dead = True
            raise Crash
        return result

    def init(self) -> None:
        self._step(self._producer.init)

    def begin(self) -> None:
        self._step(self._producer.begin)

    def send(self, batch: OutBatch, start: int = 0) -> int:
        sent: int = self._step(lambda: self._producer.send(batch, start))
        return sent

    def commit(self, offsets: Mapping[TP, int], membership: Membership, timeout_s: float, *, note: str = "") -> None:
        self._step(lambda: self._producer.commit(offsets, membership, timeout_s, note=note))

    def abort(self, timeout_s: float) -> None:
        self._step(lambda: self._producer.abort(timeout_s))

    def poll(self, timeout_s: float) -> None:
        self._producer.poll(timeout_s)

    def flush(self, timeout_s: float) -> int:
        return self._producer.flush(timeout_s)

    def close(self) -> None:
        if not self._dead:
            self._producer.close()


class Stubborn(Crashing):
    """A log whose transactions are not committed at the first try, though the first try did it."""

    def transactional_producer(
        self, transactional_id: str, *, config: Mapping[str, Any] | None = None
    ) -> TransactionalProducer:
        return _Stubborn(self, self.log.transactional_producer(transactional_id, config=config))


class _Stubborn(_CrashingProducer):
    def commit(self, offsets: Mapping[TP, int], membership: Membership, timeout_s: float, *, note: str = "") -> None:
        if self._owner.steps < self._owner.at:
            self._owner.steps += 1
            raise LogUnavailable("later")
        self._producer.commit(offsets, membership, timeout_s, note=note)

    def _step(self, call: Any) -> Any:
        return call()


class Overtaken(Crashing):
    """A log on which somebody else does something just before the transactional producer begins."""

    def __init__(self, log: Log, other: Callable[[], None]) -> None:
        super().__init__(log, 0, after=False)
        self.other = other

    def transactional_producer(
        self, transactional_id: str, *, config: Mapping[str, Any] | None = None
    ) -> TransactionalProducer:
        return _Overtaken(self, self.log.transactional_producer(transactional_id, config=config))


class _Overtaken(_CrashingProducer):
    def init(self) -> None:
        assert isinstance(self._owner, Overtaken)
        self._owner.other()
        super().init()


def batch_of(tp: TP, records: Sequence[Raw]) -> RecordBatch:
    keys, values, headers = ([record[i] for record in records] for i in range(3))
    n = len(records)
    return RecordBatch(tp, list(range(n)), [1_700_000_000_000] * n, keys, values, lambda i: headers[i], n)
