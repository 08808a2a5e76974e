"""Values of one field, as JSON has them -> a column of a Block; what is wrong with them and what was mended.

Whole-column tests first, which find nothing in good data; only what they find suspect is looked at one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.block import Block, Ids, IntArray
from features.schema import Field
from streams.quality import QualityCounters
from streams.scan import Scanned
from streams.verdict import INT64_MAX, INT64_MIN, why_bad

__all__ = ["Findings", "fill_column", "fill_plain", "known_ids", "present_column"]

#: An id as text no longer than this many characters is within any bound of four times as many UTF-8 bytes.
_UTF8_BYTES_PER_CHAR = 4
#: of an integer of 64 bits with its sign
_INTEGER_CHARS_MAX = 20


def present_column(name: str) -> str:
    """Name of the bool column that says in which rows the optional field ``name`` was given."""
    return f"{name}_present"


def known_ids(categories: Sequence[int | str]) -> frozenset[int | str]:
    """The categories in every form that is the same id: an integer and its decimal text."""
    known: set[int | str] = set()
    for text in map(str, categories):
        known.add(text)
        if len(text) <= _INTEGER_CHARS_MAX and text.removeprefix("-").isdecimal() and str(int(text)) == text:
            known.add(int(text))
    return frozenset(known)


class Findings:
    """What one pass over a batch finds: ``bad`` (row -> the reason of its first bad field) and the counts."""

    __slots__ = ("bad", "quality")

    def __init__(self) -> None:
        self.bad: dict[int, str] = {}
        self.quality = QualityCounters()

    def reject(self, spec: Field, values: list[Any], suspects: Sequence[int], times: IntArray) -> list[int]:
        """Looks at the suspects one by one; returns those that are bad."""
        refused = []
        for i in suspects:
            verdict = why_bad(spec, values[i], int(times[i]))
            if verdict is not None:
                self.bad.setdefault(i, verdict.reason)
                self.quality.add(spec.name, verdict.finding)
                refused.append(i)
        return refused


def fill_column(
    block: Block, spec: Field, values: list[Any], known: frozenset[int | str] | None, found: Findings
) -> None:
    """Puts the field's values into the block; what is wrong with them into ``found``.

    A bad row holds any value. ``values`` are as JSON has them, None where absent, and may be overwritten; ``known``
    are the field's `known_ids`, None where it has no categories.
    """
    refused = _COLUMNS[spec.kind](block, spec, values, found)
    if known is not None:
        found.quality.add(spec.name, "unseen_category", _unseen(block, spec, known, refused))


def fill_plain(block: Block, fields: Sequence[Field], scanned: Scanned, found: Findings) -> bool:
    """Puts scanned values into the block, as `fill_column` does with values that are all good; False where one is out
    of its field's range, which `fill_column` then has to judge."""
    for spec, integers, numbers, present in zip(
        fields, scanned.integers, scanned.numbers, scanned.present, strict=True
    ):
        column: npt.NDArray[Any] = numbers if spec.kind == "number" else integers
        if not spec.required:
            absent = len(present) - int(np.count_nonzero(present))
            if spec.kind == "number" and absent:
                column[~present] = np.nan
            if spec.kind == "id":
                block.columns[present_column(spec.name)] = present
            elif absent and spec.kind != "number":
                return False
            found.quality.add(spec.name, "missing", absent)
        if spec.kind == "id":
            block.ids[spec.name] = Ids(ints=integers)
            continue
        low, high = spec.minimum, spec.maximum
        # a NaN, which stands for an absent number, fails neither test
        if (low is not None and (column < low).any()) or (high is not None and (column > high).any()):
            return False
        if spec.future_ms_max is not None and (
            ((column > block.timestamps + spec.future_ms_max) & (block.timestamps >= 0)).any()
        ):
            return False
        block.columns[spec.name] = column
    return True


# --- by kind: each fills the block and returns the rows that this field refused ---


def _id_column(block: Block, spec: Field, values: list[Any], found: Findings) -> set[int]:
    kinds = set(map(type, values))
    sent = values
    if spec.trim and str in kinds:
        values = [v.strip() if type(v) is str else v for v in values]
    present: npt.NDArray[np.bool_] | None = None
    if not spec.required:
        present = np.ones(len(values), dtype=np.bool_)
        if type(None) in kinds:
            present = np.array([v is not None for v in values], dtype=np.bool_)
            found.quality.add(spec.name, "missing", len(values) - int(np.count_nonzero(present)))
            kinds.discard(type(None))
            absent: int | str = 0 if kinds <= {int} else ""
            values = [absent if v is None else v for v in values]
        block.columns[present_column(spec.name)] = present
    if kinds <= {int}:
        try:
            block.ids[spec.name] = Ids(ints=np.fromiter(values, dtype=np.int64, count=len(values)))
            return set()
        except OverflowError:
            pass
    chars_max = (spec.text_bytes_max or INT64_MAX) // _UTF8_BYTES_PER_CHAR
    suspects = [
        i
        for i, v in enumerate(values)
        if not (0 < len(v) <= chars_max if type(v) is str else type(v) is int and INT64_MIN <= v <= INT64_MAX)
        and (present is None or present[i])
    ]
    refused = set(found.reject(spec, sent, suspects, block.timestamps))
    if spec.trim and values != sent:
        trimmed = [i for i, v in enumerate(sent) if type(v) is str and v != values[i] and i not in refused]
        found.quality.add(spec.name, "trimmed", len(trimmed))
    for i in refused:
        values[i] = 0
    block.ids[spec.name] = Ids.of(values)
    return refused


def _unseen(block: Block, spec: Field, known: frozenset[int | str], refused: set[int]) -> int:
    """How many ids are none of the known ones, absent and refused ones left out."""
    ids = block.ids[spec.name].to_list()
    unseen = set(ids) - known
    if not unseen:
        return 0
    rows = {i for i, v in enumerate(ids) if v in unseen} - refused
    if not spec.required:
        rows -= set(np.flatnonzero(~block.columns[present_column(spec.name)].astype(np.bool_)).tolist())
    return len(rows)


def _integer_column(block: Block, spec: Field, values: list[Any], found: Findings) -> set[int]:
    column, refused = _numbers(block, spec, values, np.dtype(np.int64), {int}, found)
    if spec.future_ms_max is not None:
        # a record without a timestamp has -1: nothing to compare with
        late = (column > block.timestamps + spec.future_ms_max) & (block.timestamps >= 0)
        if late.any():
            suspects = [i for i in np.flatnonzero(late).tolist() if i not in refused]
            refused.update(found.reject(spec, values, suspects, block.timestamps))
    return refused


def _choice_column(block: Block, spec: Field, values: list[Any], found: Findings) -> set[int]:
    """The place of each text among the field's categories, as int64."""
    place = {text: i for i, text in enumerate(spec.categories or ())}
    column = np.array([place.get(v, -1) if type(v) is str else -1 for v in values], np.int64)
    block.columns[spec.name] = column
    return set(found.reject(spec, values, np.flatnonzero(column < 0).tolist(), block.timestamps))


def _number_column(block: Block, spec: Field, values: list[Any], found: Findings) -> set[int]:
    if not spec.required:
        values = [math.nan if v is None else v for v in values]
    column, refused = _numbers(block, spec, values, np.dtype(np.float64), {int, float}, found)
    if not spec.required:
        found.quality.add(spec.name, "missing", int(np.count_nonzero(np.isnan(column))))
    return refused


def _numbers(
    block: Block, spec: Field, values: list[Any], dtype: np.dtype[Any], kinds: set[type], found: Findings
) -> tuple[npt.NDArray[Any], set[int]]:
    """The field as a column of ``dtype`` in the block, any value where a row is refused; types and range checked."""
    times = block.timestamps
    refused: set[int] = set()
    if not set(map(type, values)) <= kinds:
        refused.update(found.reject(spec, values, [i for i, v in enumerate(values) if type(v) not in kinds], times))
        for i in refused:
            values[i] = 0
    try:
        column = np.fromiter(values, dtype=dtype, count=len(values))
    except OverflowError:
        for i in found.reject(spec, values, [i for i, v in enumerate(values) if abs(v) > INT64_MAX], times):
            values[i] = 0
            refused.add(i)
        column = np.fromiter(values, dtype=dtype, count=len(values))
    low = -math.inf if spec.minimum is None else spec.minimum
    high = math.inf if spec.maximum is None else spec.maximum
    # a NaN, which stands for an absent number, makes the first test look and the second find nothing
    if len(values) and not (low <= column.min() and column.max() <= high):
        outside = [i for i in np.flatnonzero((column < low) | (column > high)).tolist() if i not in refused]
        if spec.clip:
            found.quality.add(spec.name, "clipped", len(outside))
            column = np.clip(column, low, high)
        else:
            refused.update(found.reject(spec, values, outside, times))
    block.columns[spec.name] = column
    return column, refused


_COLUMNS: dict[str, Callable[[Block, Field, list[Any], Findings], set[int]]] = {
    "id": _id_column,
    "time_ms": _integer_column,
    "number": _number_column,
    "flag": _integer_column,
    "choice": _choice_column,
}
