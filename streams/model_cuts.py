"""Batches cut where the models that score them change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from models.lineup import Lineup
from models.slot import ModelSlot
from streams.log import RecordBatch
from streams.stage import fresh_part

__all__ = ["cut_batch", "runs_by_lineup"]

T = TypeVar("T")


def runs_by_lineup(
    slot: ModelSlot, parts: Sequence[tuple[T, RecordBatch]]
) -> Iterator[tuple[Lineup, list[tuple[T, RecordBatch]]]]:
    """The parts in runs that one lineup scores each; those of a partition follow each other in the order of its log.

    Replayed batches are not cut, as nothing of them is sent.
    """
    pieces = [
        [(slot.lineup, part[1])] if part[1].replay else cut_batch(part[1], slot.cuts(part[1].tp.partition, _end(part)))
        for part in parts
    ]
    for k in range(max(map(len, pieces), default=0)):
        groups: dict[int, tuple[Lineup, list[tuple[T, RecordBatch]]]] = {}
        for (task, _), mine in zip(parts, pieces, strict=True):
            if k < len(mine):
                lineup, piece = mine[k]
                groups.setdefault(id(lineup), (lineup, []))[1].append((task, piece))
        yield from groups.values()


def _end(part: tuple[T, RecordBatch]) -> int:
    return part[1].next_offset


def cut_batch(batch: RecordBatch, cuts: Sequence[tuple[int, Lineup]]) -> list[tuple[Lineup, RecordBatch]]:
    """The batch in pieces, one for each lineup that scores any of it; ``cuts`` as of `ModelSlot.cuts`."""
    pieces: list[tuple[Lineup, RecordBatch]] = []
    rest = batch
    for end, lineup in cuts:
        if end >= rest.next_offset:
            pieces.append((lineup, rest))
            break
        tail = fresh_part(rest, end)
        n = len(rest) - len(tail)
        if n:
            head = RecordBatch(
                tp=rest.tp,
                offsets=rest.offsets[:n],
                timestamps=rest.timestamps[:n],
                keys=rest.keys[:n],
                values=rest.values[:n],
                headers=rest.headers,
                next_offset=end,
                epoch=rest.epoch,
                replay=rest.replay,
                nbytes=rest.nbytes,
            )
            pieces.append((lineup, head))
        rest = tail
    return pieces
