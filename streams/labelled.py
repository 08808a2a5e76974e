"""Vectors that wait for their labels, and the records of the topic ``labelled`` that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from features.arrays import Arrays
from features.block import Block, FloatArray, Ids, IntArray
from features.memory import GrowingArray, larger
from features.state import NO_TIME
from monitoring.labels import Joined
from streams.encode import RecordTemplate, decimal_keys, source_headers
from streams.log import OutBatch
from streams.pipelines.fraud_monitor import FEATURE, MODEL
from streams.row_arrays import rows_from_arrays, rows_to_arrays
from streams.rows import Layout, Rows
from streams.topics import LABELLED, TRANSACTIONS

__all__ = ["LabelledEncoder", "LabelledRows", "Shelf", "feature_names"]

#: a place is the number of a tier and, in this many bits, the row's number in it
_TIER_BITS = 40
_ROWS_MIN = 64
#: shapes of records kept: one for each set of features
_TEMPLATES_MAX = 16


def feature_names(layout: Layout) -> tuple[str, ...]:
    """The features among the columns of vectors, in their order."""
    prefix = f"f8:{FEATURE}"
    return tuple(word.removeprefix(prefix) for word in layout.words if word.startswith(prefix))


class _Tier:
    """Rows of one layout, each at a number that is used again when the row is gone."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.words = GrowingArray((_ROWS_MIN, len(layout.words)), np.int64)
        self.texts: list[list[Any]] = [[] for _ in layout.texts]
        self._free: list[int] = []
        self._used = 0

    def put(self, rows: Rows) -> IntArray:
        n, again = len(rows), min(len(rows), len(self._free))
        begin = self._used
        self._used += n - again
        numbers = self._free[len(self._free) - again :] + list(range(begin, self._used))
        del self._free[len(self._free) - again :]
        if self._used > len(self.words.array):
            self.words.grow(max(self._used, larger(len(self.words.array), self.words.row_bytes)))
        at = np.array(numbers, np.int64)
        self.words.array[at] = rows.words.T
        for mine, theirs in zip(self.texts, rows.texts, strict=True):
            mine.extend([None] * (self._used - len(mine)))
            for number, text in zip(numbers, theirs, strict=True):
                mine[number] = text
        return at

    def get(self, at: IntArray) -> Rows:
        words = np.ascontiguousarray(self.words.array[at].T)
        return Rows(self.layout, words, [[text[i] for i in at.tolist()] for text in self.texts])

    def free(self, at: IntArray) -> None:
        self._free += at.tolist()


class Shelf:
    """Rows of any layouts, by place."""

    def __init__(self) -> None:
        self._tiers: list[_Tier] = []
        self._numbers: dict[Layout, int] = {}

    def put(self, rows: Rows) -> IntArray:
        """(n,) the places of the rows."""
        number = self._numbers.setdefault(rows.layout, len(self._tiers))
        if number == len(self._tiers):
            self._tiers.append(_Tier(rows.layout))
        return self._tiers[number].put(rows) + (number << _TIER_BITS)

    def take(self, places: IntArray) -> list[tuple[IntArray, Rows]]:
        """The rows at these places (n,), which are free from now on, by layout: (positions among the n, rows)."""
        out = [(positions, self._tiers[number].get(at)) for number, positions, at in self._by_tier(places)]
        self.free(places)
        return out

    def free(self, places: IntArray) -> None:
        """The rows at these places are needed no more."""
        for number, _, at in self._by_tier(places):
            self._tiers[number].free(at)

    def to_arrays(self, places: IntArray) -> Arrays:
        """The rows at these places, in order; see `streams.row_arrays`."""
        parts = []
        for number, run in groupby(places.tolist(), lambda place: place >> _TIER_BITS):
            at = np.array([place & (1 << _TIER_BITS) - 1 for place in run], np.int64)
            parts.append(self._tiers[number].get(at))
        return rows_to_arrays(parts)

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> IntArray:
        """Puts the rows of `to_arrays`; returns their places, in order."""
        places = [self.put(rows) for rows in rows_from_arrays(arrays)]
        return np.concatenate(places) if places else np.empty(0, np.int64)

    def _by_tier(self, places: IntArray) -> list[tuple[int, IntArray, IntArray]]:
        """(tier, positions among the places, numbers within the tier)."""
        if len(places) == 0:
            return []
        tiers, at = places >> _TIER_BITS, places & ((1 << _TIER_BITS) - 1)
        if len(self._tiers) == 1:
            return [(0, np.arange(len(places)), at)]
        return [(int(t), mine, at[mine]) for t in np.unique(tiers) for mine in [np.flatnonzero(tiers == t)]]


class LabelledRows(NamedTuple):
    """n vectors with their labels, at rising ``positions`` (n,) among those that got theirs together: ``block`` of the
    columns that the fraud pipeline sent, ``matrix`` (n, d) of its features ``names``, ``labels`` (n,) 0 or 1, their
    times and when they were sent (`NO_TIME`: by the horizon)."""

    positions: IntArray
    block: Block
    names: tuple[str, ...]
    matrix: FloatArray
    labels: IntArray
    label_times: IntArray
    label_sent: IntArray

    @classmethod
    def of(cls, taken: Sequence[tuple[IntArray, Rows]], joined: Joined) -> list[LabelledRows]:
        """The rows of ``joined``, by set of features: how their other columns are kept does not show."""
        by_names: dict[tuple[str, ...], list[tuple[IntArray, Rows]]] = {}
        for positions, rows in sorted(taken, key=lambda part: int(part[0][0])):
            by_names.setdefault(feature_names(rows.layout), []).append((positions, rows))
        out = []
        for names, parts in by_names.items():
            positions = np.concatenate([positions for positions, _ in parts])
            block = Block.concat([rows.block("", 0, 0) for _, rows in parts])
            if len(parts) > 1:
                order = np.argsort(positions)
                positions, block = positions[order], block.take(order)
            labels = (joined.labels[positions], joined.label_times[positions], joined.label_sent[positions])
            out.append(cls(positions, block, names, matrix_of(block, names), *labels))
        return out


def matrix_of(block: Block, names: Sequence[str]) -> FloatArray:
    """(n, d) the features of these names."""
    out: FloatArray = np.empty((len(block), len(names)), np.float64)
    for j, name in enumerate(names):
        out[:, j] = block.columns[FEATURE + name]
    return out


class LabelledEncoder:
    """Labelled rows -> records of ``labelled``: key transaction_id, header ``source`` the original transaction."""

    def __init__(self) -> None:
        self._templates: dict[tuple[str, ...], RecordTemplate] = {}

    def encode(self, parts: Sequence[LabelledRows]) -> OutBatch:
        """The records of rows that got their labels together, each at its position."""
        n = sum(len(rows.positions) for rows in parts)
        values, keys, sources = [b""] * n, [b""] * n, [b""] * n
        for rows in parts:
            block = rows.block
            columns = [block.columns[name].astype(np.int64) for name in ("source_partition", "source_offset")]
            texts = (self._values(rows), _texts(block.ids["transaction_id"]), source_headers(TRANSACTIONS, *columns))
            for i, value, key, source in zip(rows.positions.tolist(), *texts, strict=True):
                values[i], keys[i], sources[i] = value, key, source
        return OutBatch(LABELLED, values, keys, None, [{"source": source} for source in sources])

    def _values(self, rows: LabelledRows) -> list[bytes]:
        block, n = rows.block, len(rows.labels)
        template = self._templates.get(rows.names)
        if template is None:
            if len(self._templates) >= _TEMPLATES_MAX:
                self._templates.clear()
            template = self._templates[rows.names] = _template(rows.names)
        by_horizon = rows.label_sent == NO_TIME
        return template.render(
            n,
            {
                **{name: block.ids[name] for name in ("transaction_id", "card_id", "terminal_id")},
                "event_time": block.event_time_ms,
                "score": block.columns["score"],
                "raw": block.columns["raw"],
                "model": _models(block.ids[MODEL].to_list()),
                "late": block.columns["late"],
                "label": rows.labels,
                "label_time": rows.label_times,
                "by": [b'"horizon"' if by else b'"label"' for by in by_horizon.tolist()],
                "delays": _delays(rows, by_horizon.tolist()),
                "features": rows.matrix,
            },
        )


def _template(names: tuple[str, ...]) -> RecordTemplate:
    return RecordTemplate(
        [
            ("transaction_id", "id"),
            ("event_time", "integer"),
            ("card_id", "id"),
            ("terminal_id", "id"),
            ("score", "number"),
            ("raw", "number"),
            ("model", "json"),
            ("late", "flag"),
            ("label", "integer"),
            ("label_time", "integer"),
            ("by", "json"),
            ("delays", "json"),
            ("features", names),
        ]
    )


def _models(labels: list[int | str]) -> list[bytes] | bytes:
    """As JSON: of each row, or one for all."""
    texts = {label: orjson.dumps(label or None) for label in set(labels)}
    return next(iter(texts.values())) if len(texts) == 1 else [texts[label] for label in labels]


def _delays(rows: LabelledRows, by_horizon: list[bool]) -> list[bytes]:
    """How long after the event its record was sent and its label was known, and how long after that it was sent."""
    columns = (
        (rows.block.timestamps - rows.block.event_time_ms).tolist(),
        (rows.label_times - rows.block.event_time_ms).tolist(),
        (rows.label_sent - rows.label_times).tolist(),
    )
    return [
        b'{"event_sent_ms":%d,"label_ms":%d,"label_sent_ms":%s}' % (a, b, b"null" if by else b"%d" % c)
        for a, b, c, by in zip(*columns, by_horizon, strict=True)
    ]


def _texts(ids: Ids) -> list[bytes]:
    return decimal_keys(ids.ints) if ids.ints is not None else ids.texts()
