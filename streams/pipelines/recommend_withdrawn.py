"""Items that the shop has withdrawn: no worker recommends them again, whatever the item stage still publishes of them.

``items`` says so in the item's partition, in three ways. `headrace items` writes what a person decided under
`DECISION` and the item's key; the last decision counts. And a null under the item's own key withdraws it, too: as
compaction forgets nulls in time, and the item stage publishes the item anew with the next click on it, the workers that
read a null note its offset under `NOTE` and the item's key. A decision to restore an item takes back all nulls before
it, whenever they are noted; the item returns when it is published next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from streams.log import OutBatch, RecordBatch
from streams.partitioner import partition_of_key
from streams.topics import ITEMS

__all__ = ["DECISION", "NOTE", "Withdrawn", "decisions", "notes"]

#: no id begins with them, as they are no bytes of UTF-8
DECISION, NOTE = b"\xff", b"\xfe"
_WITHDRAWN, _RESTORED = b"withdrawn", b"restored"


def decisions(items: Iterable[bytes], partitions: int, withdrawn: bool) -> list[OutBatch]:
    """What withdraws the items with these keys, of a topic of so many partitions, or takes that back."""
    value = _WITHDRAWN if withdrawn else _RESTORED
    return [OutBatch(ITEMS, [value], [DECISION + item], partition_of_key(item, partitions)) for item in items]


def notes(nulls: Mapping[bytes, int], partitions: int) -> list[OutBatch]:
    """What keeps nulls, by item with their offsets, when compaction forgets them."""
    return [
        OutBatch(ITEMS, [b"%d" % offset], [NOTE + item], partition_of_key(item, partitions))
        for item, offset in nulls.items()
    ]


class Withdrawn:
    """The items that are withdrawn, from the records of ``items`` in the order of each partition: some 200 bytes for
    each that ever was, for as long as the log says so."""

    def __init__(self) -> None:
        self._decided: set[bytes] = set()
        #: offsets of the last decision to restore, of the last null, and of the last that is noted
        self._restored: dict[bytes, int] = {}
        self._null: dict[bytes, int] = {}
        self._noted: dict[bytes, int] = {}
        #: with a null that may not be noted
        self._new: set[bytes] = set()

    def __contains__(self, item: bytes) -> bool:
        """Whether the item with this key is withdrawn."""
        return item in self._decided or self._null.get(item, -1) > self._restored.get(item, -1)

    def take(self, batches: Sequence[RecordBatch]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """By key the newest record of each item that is not withdrawn, and the keys of those that now are."""
        newest: dict[bytes, bytes] = {}
        gone: list[bytes] = []
        for batch in batches:
            for offset, key, value in zip(batch.offsets, batch.keys, batch.values, strict=True):
                if not key:
                    continue
                item = key[1:] if key[:1] in (DECISION, NOTE) else key
                was = item in self
                if item is key and value is not None:
                    if not was:
                        newest[item] = value
                    continue
                self._hear(key, item, offset, value)
                if not was and item in self:
                    newest.pop(item, None)
                    gone.append(item)
        return newest, gone

    def _hear(self, key: bytes, item: bytes, offset: int, value: bytes | None) -> None:
        if key.startswith(DECISION):
            if value == _WITHDRAWN:
                self._decided.add(item)
            else:
                self._decided.discard(item)
                self._restored[item] = offset
        elif key.startswith(NOTE):
            if value is not None and value.isdigit() and len(value) < 20:
                self._noted[item] = max(self._noted.get(item, -1), int(value))
                self._null[item] = max(self._null.get(item, -1), int(value))
        else:
            self._null[item] = max(self._null.get(item, -1), offset)
            self._new.add(item)

    def unnoted(self) -> dict[bytes, int]:
        """By key the offset of the null that withdraws an item, where no note of it was read; each is told once."""
        new = sorted(self._new)
        self._new.clear()
        return {
            item: self._null[item]
            for item in new
            if self._null[item] > max(self._restored.get(item, -1), self._noted.get(item, -1))
        }
