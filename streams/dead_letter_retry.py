"""Retrying dead letters, each once: the record and the mark that it was retried are in the log together or not at all.

The marks are records of the compacted topic `dead-letters.retried`: key = the letter's id, value = when and which
bytes. A record is sent to its topic in one transaction with its mark, under one transactional id for all who retry:
whoever begins ends what another has left open, and the other can commit nothing more. So the marks that are read after
that are all there will ever be but our own, and killing a retry at any point, or two at once, sends no letter twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Literal, Self

import orjson
import xxhash

from streams.dead_letters import RETRY_OF, Letter, log_ends, read_now
from streams.errors import ConfigError, FatalError, HeadraceError
from streams.log import TP, DeliveryFailed, Headers, Log, LogUnavailable, MustAbort, OutBatch, TopicInfo
from streams.partitioner import partition_of_key
from streams.stage import SCORE
from streams.topics import BY_ITEM, BY_TERMINAL, BY_TRANSACTION

__all__ = ["MARKS", "Mark", "Mended", "Outcome", "Retrier", "read_marks", "refusal"]

MARKS = "dead-letters.retried"
TRANSACTIONAL_ID = "headrace-dead-letters"

_COMMIT_S, _PATIENCE_S = 5.0, 30.0

#: ``sent`` now; ``already`` sent before; ``already-other``: sent before with other bytes than these
Outcome = Literal["sent", "already", "already-other"]


@dataclass(frozen=True, slots=True)
class Mended:
    """What to send instead of a letter's own value."""

    value: bytes
    #: None: the letter's own
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A letter was retried: ``at_ms`` when, ``digest`` of the key and the bytes that were sent."""

    at_ms: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Retry:
    letter: Letter
    value: bytes | None
    key: bytes | None
    to: TP

    @property
    def digest(self) -> str:
        return xxhash.xxh3_128_hexdigest(repr((self.key, self.value)).encode())

    @property
    def headers(self) -> Headers:
        own = [(name, value) for name, value in self.letter.headers if name != RETRY_OF]
        return [*own, (RETRY_OF, self.letter.name.encode())]


def refusal(letter: Letter) -> str | None:
    """Why such a letter cannot be retried at all; None where it can."""
    if letter.source.topic in (BY_TERMINAL, BY_TRANSACTION, BY_ITEM):
        return (
            f"{letter.name} is rows between two stages: what came after it has passed, so it would not be taken any "
            "more; rebuild the stage in a new --group from the transactions"
        )
    if letter.stage == SCORE:
        return (
            f"{letter.name} is in the windows, only its score is missing: sent again it would be dropped as a repeated "
            "transaction; once the defect is mended, score it with `headrace score` from a file"
        )
    return None


def read_marks(log: Log) -> dict[str, Mark]:
    """The marks by letter id."""
    admin = log.admin()
    there = MARKS in admin.topics([MARKS])
    admin.close()
    marks: dict[str, Mark] = {}
    for batch in read_now(log, MARKS) if there else ():
        for key, value in zip(batch.keys, batch.values, strict=True):
            if key is not None and value is not None:
                marks[key.decode()] = Mark(**orjson.loads(value))
    return marks


class Retrier:
    """``with Retrier(log) as retrier: retrier.retry(letters)``.

    HeadraceError: the log does not take the records, or another retry has begun meanwhile; whatever happens, doing it
    again sends only what was not sent.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._partitions: dict[str, int] = {}

    def __enter__(self) -> Self:
        admin = self._log.admin()
        admin.create_topics([TopicInfo(MARKS, 1, "", {"cleanup.policy": "compact"})])
        admin.close()
        self._producer = self._log.transactional_producer(TRANSACTIONAL_ID)
        try:
            self._producer.init()
            self._marks = read_marks(self._log)  # only now: nobody else can add any from here on
        except BaseException:
            self._producer.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._producer.close()

    def retry(self, letters: Sequence[Letter], mended: Mapping[str, Mended] | None = None) -> list[Outcome]:
        """Sends each letter to where it came from, unless that was done before; by `Letter.name`, ``mended`` bytes.

        The record goes to the partition it came from, with its own key and headers and ``retry_of``; with another key,
        to that key's partition.

        1. Letters with a mark are left.
        2. A transaction begins.
        3. The records and their marks are sent.
        4. The transaction is committed, all of it or nothing.
        5. The marks are remembered.
        """
        retries = {letter.letter_id: self._retry_of(letter, (mended or {}).get(letter.name)) for letter in letters}
        fresh = {letter_id: retry for letter_id, retry in retries.items() if letter_id not in self._marks}  # 1
        outcomes: dict[str, Outcome] = {
            letter_id: "sent" if letter_id in fresh else self._earlier(letter_id, retry)
            for letter_id, retry in retries.items()
        }
        if fresh:
            now_ms = time.time_ns() // 1_000_000
            marks = {letter_id: Mark(now_ms, retry.digest) for letter_id, retry in fresh.items()}
            self._in_one(fresh, marks)  # 2, 3, 4
            self._marks.update(marks)  # 5
        return [outcomes[letter.letter_id] for letter in letters]

    def _earlier(self, letter_id: str, retry: _Retry) -> Outcome:
        return "already" if self._marks[letter_id].digest == retry.digest else "already-other"

    def _retry_of(self, letter: Letter, mended: Mended | None) -> _Retry:
        topic = letter.source.topic
        reason = refusal(letter)
        if reason is not None:
            raise ConfigError(reason)
        if topic not in self._partitions:
            self._partitions[topic] = len(log_ends(self._log, topic))
        n = self._partitions[topic]
        if mended is not None and mended.key is not None and mended.key != letter.key:
            return _Retry(letter, mended.value, mended.key, TP(topic, partition_of_key(mended.key, n)))
        if letter.source.partition >= n:
            raise HeadraceError(f"{letter.name}: {topic} has {n} partitions now: was the topic made again?")
        return _Retry(letter, letter.value if mended is None else mended.value, letter.key, letter.source)

    def _in_one(self, fresh: Mapping[str, _Retry], marks: Mapping[str, Mark]) -> None:
        """Records and marks in one transaction; HeadraceError when it could not be committed: to close the producer, or
        to begin with another, ends it then."""
        values = [orjson.dumps(asdict(mark)) for mark in marks.values()]
        try:
            self._producer.begin()
            for retry in fresh.values():
                self._send(OutBatch(retry.to.topic, [retry.value], [retry.key], retry.to.partition, [retry.headers]))
            self._send(OutBatch(MARKS, values, [letter_id.encode() for letter_id in marks], 0))
            self._commit()
        except (MustAbort, DeliveryFailed) as error:
            raise HeadraceError(f"{error}. Nothing of this transaction counts: {_AGAIN}") from error
        except FatalError as error:
            if error.reason != "transaction-fenced":
                raise
            raise HeadraceError(f"another retry has begun, which ends this one: {_AGAIN}") from error

    def _send(self, batch: OutBatch) -> None:
        done, deadline = 0, time.monotonic() + _PATIENCE_S
        while (done := self._producer.send(batch, done)) < len(batch):
            if time.monotonic() > deadline:
                raise MustAbort(f"{batch.topic}: the broker took nothing for {_PATIENCE_S:.0f} s")
            self._producer.poll(0.05)

    def _commit(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._producer.commit({}, None, _COMMIT_S)
            except LogUnavailable as error:
                if time.monotonic() > deadline:
                    text = f"not committed in {_PATIENCE_S:.0f} s ({error}): is the broker up? If so, {_AGAIN}"
                    raise HeadraceError(text) from error


_AGAIN = "run it again, which sends only what was not sent"
