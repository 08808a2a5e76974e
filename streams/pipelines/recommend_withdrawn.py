"""Items that the shop has withdrawn: no worker recommends them again, whatever the item stage still publishes of them.

A null value under an item's own key in ``items`` withdraws it. Compaction forgets nulls in time, and the item stage
publishes the item anew with the next click on it, so the workers that read a null write a mark that stays: a record in
the same partition whose key is `MARK` and the item's key. A null under that key takes the withdrawal back; the item
returns when it is published next. `headrace items` writes both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streams.log import OutBatch, RecordBatch
from streams.partitioner import partition_of_key
from streams.topics import ITEMS

__all__ = ["MARK", "Withdrawn", "marks"]

#: no id begins with it, as it is no byte of UTF-8
MARK = b"\xff"
_WITHDRAWN = b"withdrawn"


def marks(items: Iterable[bytes], partitions: int, withdrawn: bool = True) -> list[OutBatch]:
    """What withdraws the items with these keys, of a topic of so many partitions, or takes that back."""
    value = _WITHDRAWN if withdrawn else None
    return [OutBatch(ITEMS, [value], [MARK + item], partition_of_key(item, partitions)) for item in items]


class Withdrawn:
    """The items that are withdrawn, from the records of ``items`` in the order of each partition: some 100 bytes each,
    for as long as the marks are in the log."""

    def __init__(self) -> None:
        self._keys: set[bytes] = set()
        self._unmarked: set[bytes] = set()

    def __contains__(self, item: bytes) -> bool:
        """Whether the item with this key is withdrawn."""
        return item in self._keys

    def take(self, batches: Sequence[RecordBatch]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """By key the newest record of each item that is not withdrawn, and the keys of those that now are."""
        newest: dict[bytes, bytes] = {}
        gone: list[bytes] = []
        for batch in batches:
            for key, value in zip(batch.keys, batch.values, strict=True):
                if not key:
                    continue
                marked = key.startswith(MARK)
                item = key[len(MARK) :] if marked else key
                if marked:
                    self._unmarked.discard(item)
                    if value is None:
                        self._keys.discard(item)
                        continue
                elif value is not None:
                    if item not in self._keys:
                        newest[item] = value
                    continue
                elif item not in self._keys:
                    self._unmarked.add(item)
                if item not in self._keys:
                    self._keys.add(item)
                    newest.pop(item, None)
                    gone.append(item)
        return newest, gone

    def unmarked(self) -> list[bytes]:
        """The keys of items withdrawn by a null, for which no mark was read; each is told once."""
        out = sorted(self._unmarked)
        self._unmarked.clear()
        return out
