"""What the control loop reads: labelled rows in rounds of a fixed size, alerts that are due, what people ask for."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from streams.control_alerts import known_ms, read_alert
from streams.control_state import Command, State, read_command
from streams.listeners import FromStart
from streams.log import TP, Log
from streams.topics import ALERTS, CONTROL, LABELLED

__all__ = ["Feed", "Piece"]

_RECORDS_MAX = 4096
#: where so many rounds of rows wait for those of a partition that has none, rounds go on without
_ROUNDS_WAITING = 8


class Piece(NamedTuple):
    """Consecutive records of a partition of ``labelled``: ``end`` is the first offset after them."""

    partition: int
    offsets: Sequence[int]
    timestamps: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    end: int


class _Record(NamedTuple):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Feed:
    """Reads the three topics from where ``state`` has used them up to. One thread.

    What the loop itself has written to two of them is passed over, and does not show in what is used. ``labels_ms``:
    how long after its period a finding by labels is known.
    """

    def __init__(self, log: Log, partitions: Mapping[str, int], state: State, labels_ms: int) -> None:
        self._labels_ms = labels_ms
        self._labelled = [TP(LABELLED, p) for p in range(partitions[LABELLED])]
        self._alerts = [TP(ALERTS, p) for p in range(partitions[ALERTS])]
        self._commands = TP(CONTROL, 0)
        used = {LABELLED: state.labelled, ALERTS: state.alerts, CONTROL: [state.commands]}
        tps = [*self._labelled, *self._alerts, self._commands]
        #: next offset to be read: the group may take a partition away and give it back
        self._next = {tp: dict(enumerate(used[tp.topic])).get(tp.partition, 0) for tp in tps}
        self._waiting: dict[TP, deque[_Record]] = {tp: deque() for tp in tps}
        self._used = dict(self._next)
        self._consumer = log.consumer(f"headrace-control-{uuid.uuid4().hex}")
        self._consumer.subscribe([LABELLED, ALERTS, CONTROL], FromStart(self._consumer, self._next))

    def poll(self, timeout_s: float) -> None:
        """Takes what is there, waiting for the first record so long."""
        for batch in self._consumer.poll(timeout_s, _RECORDS_MAX):
            waiting = self._waiting.get(batch.tp)
            if waiting is None:
                continue  # a partition that was added: read after a restart
            known = self._next[batch.tp]
            records = zip(batch.offsets, batch.timestamps, batch.keys, batch.values, strict=True)
            waiting.extend(_Record(*record) for record in records if record[0] >= known)
            self._next[batch.tp] = max(known, batch.next_offset)

    def at_end(self) -> bool:
        """Whether all that is in the topics was read."""
        assigned = self._consumer.assignment()
        return assigned >= self._waiting.keys() and all(self._consumer.at_end(tp) for tp in self._waiting)

    def round(self, rows: int) -> list[Piece] | None:
        """The next round: so many records of each partition; None where they are not there yet. Where the log of a
        partition has stood still while the others went on for long, what it has."""
        short = [tp for tp in self._labelled if len(self._waiting[tp]) < rows]
        waiting_rows = sum(len(self._waiting[tp]) for tp in self._labelled)
        if short and waiting_rows < _ROUNDS_WAITING * rows * len(self._labelled):
            return None
        if not all(self._consumer.at_end(tp) for tp in short):
            return None
        pieces = []
        for tp in self._labelled:
            waiting = self._waiting[tp]
            records = [waiting.popleft() for _ in range(min(rows, len(waiting)))]
            if records:
                end = self._used[tp] = records[-1].offset + 1
                offsets, timestamps = [r.offset for r in records], [r.timestamp for r in records]
                keys, values = [r.key for r in records], [r.value for r in records]
                pieces.append(Piece(tp.partition, offsets, timestamps, keys, values, end))
        return pieces

    def alerts(self, clock_ms: int | None) -> list[dict[str, Any]]:
        """The alerts that were known at this time, in the order in which they were; None: all that are there."""
        due: list[dict[str, Any]] = []
        for tp in self._alerts:
            waiting = self._waiting[tp]
            while waiting:
                alert = read_alert(waiting[0].value)
                if alert is not None and clock_ms is not None and self._known(alert) > clock_ms:
                    break
                record = waiting.popleft()
                if alert is not None:
                    self._used[tp] = record.offset + 1
                    due.append(alert)
        return sorted(due, key=lambda alert: (self._known(alert), alert["alert_id"]))

    def _known(self, alert: Mapping[str, Any]) -> int:
        return known_ms(alert, self._labels_ms)

    def commands(self) -> list[Command]:
        """What people have asked for since the last call, in the order of the log."""
        waiting, found = self._waiting[self._commands], []
        while waiting:
            record = waiting.popleft()
            command = read_command(record.value)
            if command is not None:
                self._used[self._commands] = record.offset + 1
                found.append(command)
        return found

    @property
    def alerts_waiting(self) -> bool:
        """Whether there are alerts that were not due yet."""
        return any(read_alert(record.value) is not None for tp in self._alerts for record in self._waiting[tp])

    def used(self) -> tuple[list[int], list[int], int]:
        """Next offsets of what was given out: of alerts and labelled by partition, and of commands."""
        return (
            [self._used[tp] for tp in self._alerts],
            [self._used[tp] for tp in self._labelled],
            self._used[self._commands],
        )

    def close(self) -> None:
        """Leaves the group."""
        self._consumer.close()
