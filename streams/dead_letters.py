"""Dead letters: read back from the log as `streams.stage.dead_letters` wrote them.

A letter is a record of `dead-letters` whose last three headers are ``error``, ``stage`` and ``source``; headers before
them are the original record's own, whatever their names. What is delivered twice is byte-identical: one letter.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from streams.errors import ConfigError
from streams.log import TP, Headers, Log, RecordBatch
from streams.replay import read_up_to
from streams.topics import DEAD_LETTERS

__all__ = ["RETRY_OF", "Filters", "Letter", "error_kind", "letter_of", "log_ends", "read_letters", "read_now"]

#: header of a record that was retried: the source of its letter
RETRY_OF = "retry_of"

_KIND_CHARS_MAX = 100


@dataclass(frozen=True, slots=True)
class Letter:
    """A record that a stage could not use, as it was, and why; ``timestamp_ms`` is when it was set aside."""

    source: TP
    source_offset: int
    stage: str
    error: str
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    #: the original record's
    headers: Headers

    @property
    def name(self) -> str:
        """Its source as in the header: ``transactions/3/1234``."""
        return f"{self.source.topic}/{self.source.partition}/{self.source_offset}"

    @property
    def letter_id(self) -> str:
        """Source and content: a topic that was made again has other records at the same offsets."""
        content = xxhash.xxh3_64_hexdigest(repr((self.key, self.value)).encode())
        return f"{self.name} {content}"

    @property
    def retry_of(self) -> str | None:
        """Source of the letter whose retry this record was, so that it failed again."""
        return next((v.decode("ascii", "replace") for name, v in self.headers if name == RETRY_OF), None)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which letters: of a source topic, a stage, with a text in the error (case does not count); None: any."""

    topic: str | None = None
    stage: str | None = None
    error: str | None = None

    def match(self, letter: Letter) -> bool:
        """Whether the letter is one of them."""
        return (
            self.topic in (None, letter.source.topic)
            and self.stage in (None, letter.stage)
            and (self.error is None or self.error.lower() in letter.error.lower())
        )


def letter_of(batch: RecordBatch, i: int) -> Letter | None:
    """Record i of a batch of `dead-letters`; None where it is no letter of ours."""
    headers = batch.headers(i)
    if [name for name, _ in headers[-3:]] != ["error", "stage", "source"]:
        return None
    error, stage, source = (value for _, value in headers[-3:])
    match = re.fullmatch(rb"(.+)/(\d+)/(\d+)", source)
    if match is None:
        return None
    topic, partition, offset = match.groups()
    return Letter(
        TP(topic.decode("ascii", "replace"), int(partition)),
        int(offset),
        stage.decode("utf-8", "replace"),
        error.decode("utf-8", "replace"),
        batch.timestamps[i],
        batch.keys[i],
        batch.values[i],
        headers[:-3],
    )


def read_letters(log: Log) -> Iterator[Letter]:
    """All letters there are now, each once, those of a partition of `dead-letters` in the order of coming.

    ConfigError: there is no such topic.
    """
    seen: set[int] = set()
    for batch in read_now(log, DEAD_LETTERS):
        for i in range(len(batch)):
            letter = letter_of(batch, i)
            if letter is not None and (mark := xxhash.xxh3_128_intdigest(letter.letter_id.encode())) not in seen:
                seen.add(mark)
                yield letter


def error_kind(error: str) -> str:
    """The error without what differs from letter to letter: ``field: reason``, numbers as N.

    A reason is "FIELD VALUE: why (detail); remedy", the value being anything at all.
    """
    head = error.rsplit("; ", 1)[0]
    if head.endswith(")"):
        depth = 0
        for i in range(len(head) - 1, -1, -1):
            depth += (head[i] == ")") - (head[i] == "(")
            if depth == 0:
                head = head[:i].rstrip()
                break
    before, colon, why = head.rpartition(": ")
    field = before.split(" ", 1)[0]
    kind = f"{field}: {why}" if colon else head
    return re.sub(r"\d+", "N", kind)[:_KIND_CHARS_MAX]


def read_now(log: Log, topic: str) -> Iterator[RecordBatch]:
    """The committed records that are in the topic now, from the earliest there is.

    ConfigError: there is no such topic. ReplayError: nothing comes for a minute though there must be more.
    """
    return read_up_to(log, log_ends(log, topic), from_start=False)


def log_ends(log: Log, topic: str) -> dict[TP, int]:
    """Where each partition of the topic ends now. ConfigError: there is no such topic."""
    admin = log.admin()
    info = admin.topics([topic]).get(topic)
    admin.close()
    if info is None:
        raise ConfigError(f"topic {topic}: not there; create the topics with `headrace topics create`")
    consumer = log.consumer(f"headrace-ends-{uuid.uuid4().hex}")
    try:
        return {tp: consumer.offset_range(tp)[1] for tp in (TP(topic, p) for p in range(info.partitions))}
    finally:
        consumer.close()
