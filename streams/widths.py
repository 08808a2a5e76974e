"""How many partitions the topics of a group have: noted with each of its committed offsets, for its next worker.

Where a topic gets more partitions, keys move to others than those that know their history, and what is sent from then
on goes elsewhere than what was sent before: features would be wrong in silence. Checkpoints tell of it too, but a group
may have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from streams.errors import FatalError
from streams.log import TP

__all__ = ["check_widths", "note_of"]


class _Note(msgspec.Struct, frozen=True):
    """``partitions`` of each topic that the group reads."""

    partitions: dict[str, int]


def note_of(topics: Mapping[str, int]) -> str:
    """What is noted with the offsets of a group that reads these topics, with so many partitions each.

    >>> note_of({"transactions": 4})
    '{"partitions":{"transactions":4}}'
    """
    return msgspec.json.encode(_Note(dict(topics)), order="sorted").decode()


def check_widths(topics: Mapping[str, int], assigned: Sequence[TP], notes: Mapping[TP, str]) -> None:
    """FatalError ``partitions-raised`` where a topic has not as many partitions as it had: ``topics`` as the worker
    found them when it began, ``assigned`` what the group gives it now, ``notes`` of earlier commits of these. A note
    of another making says nothing."""
    for tp in assigned:
        if tp.partition >= topics[tp.topic]:
            raise _raised(tp.topic, topics[tp.topic], "when this worker began", "more")
    for note in sorted(set(notes.values())):
        try:
            had = msgspec.json.decode(note, type=_Note).partitions
        except msgspec.DecodeError:
            continue
        for topic, count in had.items():
            if topics.get(topic, count) != count:
                raise _raised(topic, count, "when this group last committed its offsets", str(topics[topic]))


def _raised(topic: str, count: int, when: str, now: str) -> FatalError:
    return FatalError(
        "partitions-raised",
        f"{topic} had {count} partitions {when} and has {now} now: keys have moved to other partitions than their "
        "history, so features would be wrong. Partitions cannot be taken away again: make topics with the count you "
        "want, send the records again, and read them with a new --group.",
    )
