"""Rows on their way between stages: every numeric column is a row of one matrix of 8-byte words.

So a message is read by one look at its bytes, rows of many messages are joined, sorted or masked by one numpy call
for all columns, and a message of one row costs hardly more than its bytes. Texts (ids that are not integers, fields
carried along) are lists beside the matrix. `Block` is what stages work on; `Rows.of` and `Rows.block` convert.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from features.block import Block, BoolArray, Ids, IntArray

__all__ = ["FIRST_WORDS", "NO_ROWS", "Layout", "Rows"]

#: the first words of every row: its offset in its source, and when it was sent
FIRST_WORDS = ("offset", "timestamp")

#: by the dtype itself: to ask a dtype's name takes 2 us
_PREFIX_OF_DTYPE = {np.dtype(np.float64): "f8:", np.dtype(np.int64): "i8:", np.dtype(np.bool_): "b1:"}


class Layout(NamedTuple):
    """What the words and texts of a row are: `FIRST_WORDS`, then ``id:NAME`` (int64), ``f8:``, ``i8:`` and
    ``b1:NAME`` (float64, int64, bool as 0 or 1); texts ``id:NAME`` (integers and strings) and ``extra``."""

    words: tuple[str, ...]
    texts: tuple[str, ...]


def _layout(block: Block) -> Layout:
    words, texts = list(FIRST_WORDS), list[str]()
    for name, ids in block.ids.items():
        (texts if ids.ints is None else words).append(f"id:{name}")
    for name, column in block.columns.items():
        prefix = _PREFIX_OF_DTYPE.get(column.dtype)
        if prefix is None:
            raise ValueError(f"column {name}: dtype {column.dtype} cannot be sent; use float64, int64 or bool")
        words.append(prefix + name)
    if block.extra is not None:
        texts.append("extra")
    return Layout(tuple(words), tuple(texts))


class _Column(NamedTuple):
    place: int
    prefix: str
    name: str


@lru_cache(maxsize=256)
def _columns(layout: Layout) -> tuple[_Column, ...]:
    first = len(FIRST_WORDS)
    return tuple(_Column(i, word[:2], word[3:]) for i, word in enumerate(layout.words[first:], first))


@dataclass(slots=True)
class Rows:
    """n rows: ``words`` (k, n) int64, where a float64 is its bits, and a list of n for each text."""

    layout: Layout
    words: IntArray
    texts: list[list[Any]]

    def __len__(self) -> int:
        return int(self.words.shape[1])

    @property
    def offsets(self) -> IntArray:
        """(n,) int64: offsets in the source."""
        offsets: IntArray = self.words[0]
        return offsets

    def integers(self, name: str) -> IntArray:
        """(n,) int64: the column of this name, which is kept as int64."""
        column: IntArray = self.words[self.layout.words.index(f"i8:{name}")]
        return column

    @staticmethod
    def of(*blocks: Block) -> Rows:
        """The rows of the blocks, in order. ValueError: a column that is not float64, int64 or bool."""
        first, *others = blocks
        layout = _layout(first)
        if any(_layout(other) != layout for other in others):
            return Rows.concat([Rows.of(block) for block in blocks])
        words = np.empty((len(layout.words), sum(map(len, blocks))), np.int64)
        np.concatenate([block.offsets for block in blocks], out=words[0])
        np.concatenate([block.timestamps for block in blocks], out=words[1])
        for place, prefix, name in _columns(layout):
            if prefix == "f8":
                np.concatenate([block.columns[name] for block in blocks], out=words[place].view(np.float64))
            elif prefix == "id":
                np.concatenate([block.ids[name].ints for block in blocks], out=words[place])
            else:
                np.concatenate([block.columns[name] for block in blocks], out=words[place])
        texts: list[list[Any]] = []
        for name in layout.texts:
            of_blocks = [block.extra if name == "extra" else block.ids[name[3:]].mixed for block in blocks]
            texts.append([text for column in of_blocks for text in column or ()])
        return Rows(layout, words, texts)

    def block(self, topic: str, partition: int, next_offset: int, only: Container[str] | None = None) -> Block:
        """The rows as a block of columns that share the rows' memory: all, or those of these names."""
        words = self.words
        out = Block(topic, partition, next_offset, words[0], words[1])
        ids, columns = out.ids, out.columns
        for place, prefix, name in _columns(self.layout):
            if only is not None and name not in only:
                continue
            word = words[place]
            if prefix == "f8":
                columns[name] = word.view(np.float64)
            elif prefix == "i8":
                columns[name] = word
            elif prefix == "id":
                ids[name] = Ids(ints=word)
            else:
                columns[name] = word != 0
        for name, text in zip(self.layout.texts, self.texts, strict=True):
            if name == "extra":
                out.extra = text if only is None else None
            elif only is None or name[3:] in only:
                ids[name[3:]] = Ids(mixed=text)
        return out

    def take(self, index: IntArray | BoolArray) -> Rows:
        """The rows at ``index`` (positions or a mask)."""
        positions = np.flatnonzero(index) if index.dtype == np.bool_ else index
        texts = self.texts
        if texts:
            where = positions.tolist()
            texts = [[text[i] for i in where] for text in texts]
        # a third of the time that `words[:, positions]` takes
        return Rows(self.layout, np.take(self.words, positions, axis=1), texts)

    def part(self, start: int, stop: int) -> Rows:
        """The rows from ``start`` up to ``stop``, sharing memory."""
        return Rows(self.layout, self.words[:, start:stop], [text[start:stop] for text in self.texts])

    @staticmethod
    def concat(parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, in order, in memory of their own; they have the same columns, save that a bool column
        may be in some of them only and is False in the others."""
        layout = parts[0].layout
        if any(part.layout != layout for part in parts):
            return Rows.of(Block.concat(_with_all_flags([part.block("", 0, 0) for part in parts])))
        words = np.concatenate([part.words for part in parts], axis=1)
        texts = [[value for part in parts for value in part.texts[i]] for i in range(len(layout.texts))]
        return Rows(layout, words, texts)


def _with_all_flags(blocks: list[Block]) -> list[Block]:
    flags = {name: None for block in blocks for name, column in block.columns.items() if column.dtype == np.bool_}
    for block in blocks:
        for name in flags:
            block.columns.setdefault(name, np.zeros(len(block), np.bool_))
    return blocks


#: what a message without rows holds
NO_ROWS = Rows(Layout(FIRST_WORDS, ()), np.empty((len(FIRST_WORDS), 0), np.int64), [])
