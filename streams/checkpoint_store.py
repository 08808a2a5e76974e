"""The checkpoints of a consumer group in a store: one immutable file per stage, topic, partition and offset.

    checkpoints = CheckpointStore(open_store("file:///var/lib/headrace"), "headrace-fraud")
    checkpoints.save(meta, arrays)
    checkpoint = checkpoints.newest(expected, at_most=committed)

`save` in two halves, for who writes in another process (`streams.snapshot`): ``draft = checkpoints.draft(meta)``, then
`write_draft` with `write_checkpoint` or `fork_write` there, then ``checkpoints.publish(draft)`` here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote

from streams.checkpoint import (
    Arrays,
    Checkpoint,
    CheckpointError,
    CheckpointMeta,
    Expected,
    SettingsChanged,
    Written,
    read_checkpoint,
    write_checkpoint,
)
from streams.store import Draft, NotStored, Store, write_draft

__all__ = ["CheckpointStore", "Series", "checkpoint_name"]

logger = logging.getLogger("headrace.checkpoint")

_ENDING = ".ckpt"
_SEAM = f"seam{_ENDING}"
#: digits of the largest offset, 2**63 - 1: names sort as offsets do
_OFFSET_DIGITS = 19
#: file systems take 255 bytes
_PART_LENGTH_MAX = 200
#: no writer takes so long
_LEFTOVER_AGE_S = 3600.0


class Series(NamedTuple):
    """The checkpoints of one log: a topic that is made again, or the same one elsewhere, has a series of its own."""

    stage: str
    topic_id: str
    partition: int


def checkpoint_name(group: str, series: Series, offset: int) -> str:
    """``GROUP/STAGE/TOPIC_ID/PARTITION/OFFSET.ckpt``, each written so that any text is a file name of its own."""
    return f"{_folder(group, series)}/{offset:0{_OFFSET_DIGITS}}{_ENDING}"


def _folder(group: str, series: Series) -> str:
    return f"{_part(group)}/{_part(series.stage)}/{_part(series.topic_id)}/{series.partition}"


def _part(text: str) -> str:
    """Percent-encoded, a leading dot too; of what is too long the beginning, ``%%`` (in no other), its sha256."""
    part = quote(text, safe="")
    if part.startswith("."):
        part = "%2E" + part[1:]
    if len(part) <= _PART_LENGTH_MAX:
        return part or "%"  # the empty text; a % alone is in no other
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{part[: _PART_LENGTH_MAX - 2 - len(digest)]}%%{digest}"


def _warn(error: CheckpointError) -> None:
    logger.warning("%s", error)


class CheckpointStore:
    """The checkpoints of one consumer group; StoreError where the store itself fails."""

    def __init__(self, store: Store, group: str) -> None:
        self._store, self._group = store, group

    @property
    def url(self) -> str:
        """Of the store, without credentials."""
        return self._store.url

    def save(self, meta: CheckpointMeta, arrays: Arrays) -> Written:
        """Writes a checkpoint, whole or not at all."""
        draft = self.draft(meta)
        written = write_draft(draft, lambda file: write_checkpoint(file, meta, arrays))
        self.publish(draft)
        return written

    def draft(self, meta: CheckpointMeta) -> Draft:
        """The file to write a checkpoint to, in this process or another."""
        assert meta.group == self._group
        series = Series(meta.stage, meta.topic_id, meta.partition)
        return self._store.draft(checkpoint_name(meta.group, series, meta.offset))

    def publish(self, draft: Draft) -> None:
        """Ends what was written to a draft: uploads it where the store is not a directory."""
        self._store.publish(draft)

    def save_seam(self, meta: CheckpointMeta, arrays: Arrays) -> None:
        """Writes the state that a series begins with, where no log has its history: it is never pruned."""
        draft = self._store.draft(self._seam_name(Series(meta.stage, meta.topic_id, meta.partition)))
        write_draft(draft, lambda file: write_checkpoint(file, meta, arrays))
        self.publish(draft)

    def seam(self, expected: Expected) -> Checkpoint | None:
        """The state that the series begins with; None where it begins with its log. CheckpointError: not usable."""
        name = self._seam_name(Series(expected.stage, expected.topic_id, expected.partition))
        try:
            with self._store.open(name) as file:
                return read_checkpoint(file, self._shown(name), expected)
        except NotStored:
            return None

    def delete_seam(self, series: Series) -> None:
        """The series begins with its log again."""
        self._store.delete(self._seam_name(series))

    def _seam_name(self, series: Series) -> str:
        return f"{_folder(self._group, series)}/{_SEAM}"

    def _shown(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}"

    def offsets(self, series: Series) -> list[int]:
        """Offsets of the checkpoints that are there, sound or not, rising."""
        folder = _folder(self._group, series)
        names = [file.name.removeprefix(folder + "/") for file in self._store.list(folder)]
        return sorted(int(n.removesuffix(_ENDING)) for n in names if n.removesuffix(_ENDING).isdecimal())

    def newest(
        self, expected: Expected, at_most: int, skipped: Callable[[CheckpointError], None] = _warn
    ) -> Checkpoint | None:
        """The newest usable checkpoint at or below the offset ``at_most``; None without one.

        Each that cannot be used is given to ``skipped``, which logs it, and the one before it is tried. SettingsChanged
        is raised: an older one would be of other settings too, and what to do is not for a store to decide.
        """
        assert expected.group == self._group
        series = Series(expected.stage, expected.topic_id, expected.partition)
        for offset in reversed(self.offsets(series)):
            if offset > at_most:
                continue
            name = checkpoint_name(self._group, series, offset)
            try:
                return self._read(name, offset, expected)
            except SettingsChanged:
                raise
            except CheckpointError as exc:
                skipped(exc)
            except NotStored:  # pruned by another worker since it was listed
                continue
        return None

    def _read(self, name: str, offset: int, expected: Expected) -> Checkpoint:
        shown = self._shown(name)
        with self._store.open(name) as file:
            checkpoint = read_checkpoint(file, shown, expected)
        if checkpoint.meta.offset != offset:
            raise CheckpointError(shown, "foreign", f"its offset is {checkpoint.meta.offset}, not that of its name")
        return checkpoint

    def prune(self, series: Series, keep: int = 3, at_most: int | None = None) -> list[int]:
        """Deletes checkpoints before the newest ``keep``; returns their offsets.

        With ``at_most``, the committed offset, only those at or below it count as kept, since only they can be used;
        newer ones stay. Files that are gone meanwhile are fine. Drafts of killed writers go too, after an hour.
        """
        offsets = self.offsets(series)
        usable = [offset for offset in offsets if at_most is None or offset <= at_most]
        dropped = usable[: max(0, len(usable) - keep)]
        for offset in dropped:
            self._store.delete(checkpoint_name(self._group, series, offset))
        self._store.sweep(_folder(self._group, series), _LEFTOVER_AGE_S)
        return dropped
