"""The simulated world as a live stream: records as bytes, paced by the caller, with seeded imperfections.

Pure like the world itself: which records come, in which order and when depends on the arguments alone, never
on the clock or on the size of the chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from features.block import FloatArray, IntArray
from streams.errors import ConfigError
from streams.log import OutBatch
from streams.simulator import DAY_MS, LABEL_DELAY_MAX_FACTOR, DayRows, FraudKind, World

__all__ = ["MALFORMED", "Chunk", "Imperfections", "StreamRecord", "Tag", "label_json", "stream", "transaction_json"]

TRANSACTIONS = "transactions"
LABELS = "transaction-labels"

_FAULTS = 16  # purpose of the random stream; those of `World` are below
#: a transaction sent twice comes again within this event time: inside the 24 h in which duplicates are known
_REPEAT_MS_MAX = 10 * 60_000


class Tag(IntEnum):
    """What a record is: the truth that the worker's counts are held against. Order breaks ties of send time."""

    LABEL = 0
    TRANSACTION = 1
    #: held back, so it comes after younger transactions
    LATE = 2
    #: the same bytes as a transaction sent before
    DUPLICATE = 3
    NOT_JSON = 4
    MISSING_FIELD = 5
    NEGATIVE_AMOUNT = 6


#: the tags of records that belong in `dead-letters`
MALFORMED = frozenset({Tag.NOT_JSON, Tag.MISSING_FIELD, Tag.NEGATIVE_AMOUNT})


@dataclass(frozen=True, slots=True)
class Imperfections:
    """Shares of transactions, each in [0, 1] and at most 1 together.

    ``malformed`` and ``duplicates`` add a record beside the good one, so no transaction is missing from the
    stream; ``late`` holds a transaction back by up to ``late_ms_max`` of event time.
    """

    malformed: float = 0.0
    duplicates: float = 0.0
    late: float = 0.0
    late_ms_max: int = 30 * 60_000

    def __post_init__(self) -> None:
        shares = (self.malformed, self.duplicates, self.late)
        if not all(0.0 <= share <= 1.0 for share in shares) or sum(shares) > 1.0:
            raise ConfigError(f"imperfections {shares}: shares are in [0, 1] and at most 1 in all; lower them")
        if not 0 < self.late_ms_max <= DAY_MS:
            raise ConfigError(f"late_ms_max={self.late_ms_max}: must be in 1..{DAY_MS} (a day); choose one inside")


class StreamRecord(NamedTuple):
    """One record to produce; ``key`` is the contract's key of the topic, as text."""

    topic: str
    key: bytes
    value: bytes
    tag: Tag


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records to send once ``due_s`` seconds have gone since the start of the stream, in time order.

    ``send_time`` is the world's own time at the last of them, ms.
    """

    due_s: float
    send_time: int
    records: list[StreamRecord]

    def batches(self) -> list[OutBatch]:
        """The records as at most one batch a topic, labels first: one due with a transaction counts for it."""
        out = []
        for topic in (LABELS, TRANSACTIONS):
            mine = [r for r in self.records if r.topic == topic]
            if mine:
                out.append(OutBatch(topic, values=[r.value for r in mine], keys=[r.key for r in mine]))
        return out

    def count(self, *tags: Tag) -> int:
        """How many records bear one of ``tags``."""
        return sum(r.tag in tags for r in self.records)


def transaction_json(transaction_id: int, event_time: int, card_id: int, terminal_id: int, cents: int) -> bytes:
    """The value of a record of `transactions`."""
    return b'{"transaction_id":%d,"event_time":%d,"card_id":%d,"terminal_id":%d,"amount":%d.%02d}' % (
        transaction_id,
        event_time,
        card_id,
        terminal_id,
        cents // 100,
        cents % 100,
    )


def label_json(transaction_id: int, label_time: int, is_fraud: int) -> bytes:
    """The value of a record of `transaction-labels`."""
    return b'{"transaction_id":%d,"label_time":%d,"is_fraud":%d}' % (transaction_id, label_time, is_fraud)


def stream(
    world: World,
    first_day: int,
    *,
    rate: float | None = None,
    speed_up: float | None = None,
    chunk_s: float = 0.05,
    label_delay_ms: int | None = None,
    imperfections: Imperfections | None = None,
) -> Iterator[Chunk]:
    """The world from the midnight of ``first_day`` on, without end: what `World.history(first_day)` leaves off.

    Give one of ``rate`` (records of `transactions` per second of wall time, evenly spaced) and ``speed_up``
    (event time per wall time, so that the rate follows the world's day and night); `World.for_pace` sizes a world that
    has both. Labels come when they are due, also those of transactions before ``first_day``; ``label_delay_ms`` is
    the usual delay of labels of the streamed transactions (default: the world's own).

    >>> world = World(1, start_ms=0, cards=500, terminals=1000)
    >>> chunk = next(stream(world, 30, rate=1000))
    >>> chunk.due_s, chunk.count(Tag.TRANSACTION)
    (0.0, 50)
    """
    if (rate is None) == (speed_up is None):
        raise ConfigError(f"rate={rate}, speed_up={speed_up}: give exactly one; World.for_pace makes both hold")
    for name, value in (
        ("rate", rate),
        ("speed_up", speed_up),
        ("chunk_s", chunk_s),
        ("label_delay_ms", label_delay_ms),
    ):
        if value is not None and not value > 0:
            raise ConfigError(f"{name}={value}: must be above 0; give a positive number")
    if first_day < 0:
        raise ConfigError(f"first_day={first_day}: the world begins on day 0; give 0 or more")
    return _chunks(world, first_day, rate, speed_up, chunk_s, label_delay_ms, imperfections or Imperfections())


# A table is (8, n) int64, one row for each of these; a label has its label_time as event time.
_SEND_TIME, _TAG, _ID, _EVENT_TIME, _CARD, _TERMINAL, _CENTS, _IS_FRAUD = range(8)


def _chunks(
    world: World,
    first_day: int,
    rate: float | None,
    speed_up: float | None,
    chunk_s: float,
    label_delay_ms: int | None,
    faults: Imperfections,
) -> Iterator[Chunk]:
    start = world.time_of(first_day)
    waiting = _labels_before(world, first_day)
    open_table, open_number = waiting[:, :0], np.empty(0, np.int64)
    sent = 0
    day = first_day
    while True:
        rows = world.day(day)
        table = np.concatenate(
            [
                waiting,
                _with_faults(world, day, rows, faults),
                _labels(rows, world.label_times(day, rows, label_delay_ms)),
            ],
            axis=1,
        )
        day += 1
        ready = table[_SEND_TIME] < world.time_of(day)
        waiting, table = table[:, ~ready], table[:, ready]
        table = table[:, np.lexsort((table[_ID], table[_TAG], table[_SEND_TIME]))]
        if rate is not None:
            is_transaction = table[_TAG] != Tag.LABEL
            due: FloatArray = (sent + np.cumsum(is_transaction) - is_transaction) / rate
            sent += int(is_transaction.sum())
        else:
            assert speed_up is not None
            due = (table[_SEND_TIME] - start) / (1000.0 * speed_up)
        table = np.concatenate([open_table, table], axis=1)
        number = np.concatenate([open_number, (due / chunk_s).astype(np.int64)])
        begins = np.flatnonzero(np.diff(number, prepend=-1))
        for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
            yield _chunk(table[:, begin:end], int(number[begin]) * chunk_s)
        # The last chunk of a day goes on into the next.
        last = int(begins[-1]) if len(begins) else 0
        open_table, open_number = table[:, last:], number[last:]


def _chunk(table: IntArray, due_s: float) -> Chunk:
    return Chunk(due_s, int(table[_SEND_TIME, -1]), [_record(*row) for row in table.T.tolist()])


def _record(
    _send_time: int, tag: int, id_: int, event_time: int, card: int, terminal: int, cents: int, is_fraud: int
) -> StreamRecord:
    if tag == Tag.LABEL:
        return StreamRecord(LABELS, b"%d" % id_, label_json(id_, event_time, is_fraud), Tag.LABEL)
    value = transaction_json(id_, event_time, card, terminal, cents)
    if tag == Tag.NOT_JSON:
        value = value[: len(value) // 2]
    elif tag == Tag.MISSING_FIELD:
        value = value.replace(b'"terminal_id":%d,' % terminal, b"")
    elif tag == Tag.NEGATIVE_AMOUNT:
        value = value.replace(b'"amount":', b'"amount":-')
    return StreamRecord(TRANSACTIONS, b"%d" % card, value, _TAGS[tag])


_TAGS = list(Tag)


def _labels(rows: DayRows, label_time: IntArray) -> IntArray:
    zero = np.zeros(len(rows), np.int64)
    is_fraud = (rows.kind != FraudKind.NONE).astype(np.int64)
    return np.stack([label_time, zero + Tag.LABEL, rows.transaction_id, label_time, zero, zero, zero, is_fraud])


def _labels_before(world: World, first_day: int) -> IntArray:
    """Labels of the history that are due from ``first_day`` on."""
    days_back = -(-LABEL_DELAY_MAX_FACTOR * world.label_delay_ms // DAY_MS)
    parts = [np.empty((8, 0), np.int64)]
    for day in range(max(0, first_day - days_back), first_day):
        rows = world.day(day)
        table = _labels(rows, world.label_times(day, rows))
        parts.append(table[:, table[_SEND_TIME] >= world.time_of(first_day)])
    return np.concatenate(parts, axis=1)


def _with_faults(world: World, day: int, rows: DayRows, faults: Imperfections) -> IntArray:
    """The day's transactions as a table, some held back, and beside them repeated and mangled ones."""
    zero = np.zeros(len(rows), np.int64)
    table = np.stack(
        [
            rows.event_time,
            zero + Tag.TRANSACTION,
            rows.transaction_id,
            rows.event_time,
            rows.card_id,
            rows.terminal_id,
            rows.cents,
            zero,
        ]
    )
    rng = world.rng(_FAULTS, day)
    which, how = rng.random(len(rows)), rng.random(len(rows))
    edges = np.cumsum([faults.malformed, faults.duplicates, faults.late])
    mangled = table[:, which < edges[0]]
    mangled[_TAG] = Tag.NOT_JSON + (how[which < edges[0]] * len(MALFORMED)).astype(np.int64)
    again = (which >= edges[0]) & (which < edges[1])
    repeated = table[:, again]
    repeated[_TAG] = Tag.DUPLICATE
    repeated[_SEND_TIME] += 1 + (how[again] * _REPEAT_MS_MAX).astype(np.int64)
    late = (which >= edges[1]) & (which < edges[2])
    table[_TAG, late] = Tag.LATE
    table[_SEND_TIME, late] += 1 + (how[late] * faults.late_ms_max).astype(np.int64)
    return np.concatenate([table, mangled, repeated], axis=1)
