"""Poison: a record that a step without state cannot do, which is a defect of ours, is found and dead-lettered.

What decodes and what scores never raises for any record as far as we know. Where it does, the block is halved until the
records are found (rule 1 of the design): the others go their way, and a replay finds the same. Steps that change state
are not tried again: there a defect ends the worker by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from features.block import Block
from features.plan import BoundError
from streams.codec import Dead, decode_together
from streams.errors import HeadraceError
from streams.log import RecordBatch

__all__ = ["Guard"]

logger = logging.getLogger("headrace.poison")

#: so many without a good one between: it is not the records
_IN_A_ROW_MAX = 5
#: what says that the worker has to end, whatever the record
_FATAL = (HeadraceError, BoundError, MemoryError)

Decode = Callable[[RecordBatch], tuple[Block, list[Dead]]]
T = TypeVar("T")


class Guard:
    """One worker's: it remembers how many poisoned records came one after the other, of each step."""

    def __init__(self) -> None:
        self._in_a_row: dict[str, int] = {}

    def run(self, step: str, work: Callable[[int, int], T], n: int) -> tuple[list[T], dict[int, str]]:
        """``work(start, stop)`` of n records: its results in order for as many as possible at a time, and why not for
        the others. Raises what ``work`` raises where the fifth record in a row is poisoned in this ``step``."""
        results: list[T] = []
        poisoned: dict[int, str] = {}
        left = [(0, n)]
        while left:
            start, stop = left.pop()
            try:
                results.append(work(start, stop))
                self._in_a_row[step] = 0
            except _FATAL:
                raise
            except Exception as exc:
                if stop - start > 1:
                    middle = (start + stop) // 2
                    left += [(middle, stop), (start, middle)]
                    continue
                self._in_a_row[step] = in_a_row = self._in_a_row.get(step, 0) + 1
                if in_a_row >= _IN_A_ROW_MAX:
                    raise
                logger.exception("a record that cannot be done is dead-lettered; report this, it is a defect")
                poisoned[start] = f"defect: {type(exc).__name__}: {exc}. Report it with the record"
        return results, poisoned

    def decode(self, decode: Decode, batches: Sequence[RecordBatch]) -> list[tuple[Block, list[Dead]]]:
        """As `decode_together`; what cannot be decoded is dead."""
        try:
            decoded = decode_together(decode, batches)
        except _FATAL:
            raise
        except Exception as exc:
            logger.warning(
                "records of %s could not be decoded: %r; looking for them", batches[0].tp.topic, exc, exc_info=True
            )
            return [self._decode_one(decode, batch) for batch in batches]
        self._in_a_row[batches[0].tp.topic] = 0
        return decoded

    def _decode_one(self, decode: Decode, batch: RecordBatch) -> tuple[Block, list[Dead]]:
        def part(start: int, stop: int) -> tuple[Block, list[Dead]]:
            block, dead = decode(_part(batch, start, stop))
            return block, [replace(one, index=start + one.index) for one in dead]

        parts, poisoned = self.run(batch.tp.topic, part, len(batch))
        # an empty part has the columns where no record is left
        block = Block.concat([block for block, _ in parts] or [part(0, 0)[0]])
        dead = [one for _, found in parts for one in found] + [Dead(i, why) for i, why in poisoned.items()]
        return replace(block, next_offset=batch.next_offset), sorted(dead, key=lambda one: one.index)


def _part(batch: RecordBatch, start: int, stop: int) -> RecordBatch:
    rows = slice(start, stop)
    return replace(
        batch,
        offsets=batch.offsets[rows],
        timestamps=batch.timestamps[rows],
        keys=batch.keys[rows],
        values=batch.values[rows],
        headers=lambda i: batch.headers(start + i),
        next_offset=batch.next_offset if stop == len(batch) else batch.offsets[stop],
    )
