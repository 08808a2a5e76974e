"""Columns -> one JSON record per row, fast: scores, and any other record of fixed shape.

All floats of a block are formatted by one orjson call, as shortest text that reads back as the same float; a numba
kernel then stitches each row's numbers between the constant parts of the record. Text that is not a number comes as
ready JSON fragments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from features.block import Block, BoolArray, FloatArray, Ids, IntArray

__all__ = ["RecordTemplate", "ScoreEncoder", "decimal_keys", "source_headers"]

#: ``id``: an `Ids`; ``integer``: (n,) int64; ``number``: (n,) float64, NaN and infinity are null; ``flag``: (n,) bool,
#: true or false; ``json``: ready JSON text, one per row or one for all; a tuple of names: (n, d) float64 -> an object
SlotKind = Literal["id", "integer", "number", "flag", "json"]

_INTEGER, _NUMBER, _FLAG, _TEXT = 0, 1, 2, 3
_KIND_CODE = {"id": _INTEGER, "integer": _INTEGER, "number": _NUMBER, "flag": _FLAG, "json": _TEXT}
_DIGITS_MAX = 20  # of a 64-bit integer with its sign
_U0, _U1, _U10 = np.uint64(0), np.uint64(1), np.uint64(10)
_COMMA, _MINUS, _ZERO = ord(","), ord("-"), ord("0")
_CHUNK = 32
_ROOM = bytes(_CHUNK)
_TRUE, _FALSE = np.frombuffer(b"true" + _ROOM, np.uint8), np.frombuffer(b"false" + _ROOM, np.uint8)
#: floats appended to those of a block, so that the text of the last one ends with a comma and has room behind
_PADDING_FLOATS = _CHUNK

Bytes = npt.NDArray[np.uint8]
Column = Ids | npt.NDArray[Any] | Sequence[bytes] | bytes


def _build_copy_chunk(typing_context: Any, out: Any, at: Any, source: Any, begin: Any) -> Any:
    """``out[at:at+_CHUNK] = source[begin:begin+_CHUNK]`` as two machine moves, seven times as fast as a loop.

    No bounds are checked: the caller sees to the room.
    """
    raw_memcpy: Any = cgutils.raw_memcpy
    signature = types.void(out, types.int64, source, types.int64)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = context.make_array(signature.args[0])(context, builder, args[0])
        of = context.make_array(signature.args[2])(context, builder, args[2])
        length = context.get_constant(types.int64, _CHUNK)
        raw_memcpy(builder, builder.gep(to.data, [args[1]]), builder.gep(of.data, [args[3]]), length, 1)
        return context.get_dummy_value()

    return signature, build


_copy_chunk: Any = intrinsic(_build_copy_chunk)


@njit(cache=True)
def _copy(out: Bytes, at: int, source: Bytes, begin: int, end: int) -> int:
    """Copies ``source[begin:end]``; returns where it ends. In whole chunks: both arrays need `_CHUNK` bytes of room
    behind, and what is written beyond the end is overwritten next."""
    stop = at + end - begin
    while at < stop:
        _copy_chunk(out, at, source, begin)
        at += _CHUNK
        begin += _CHUNK
    return stop


@njit(cache=True)
def _commas(text: Bytes, positions: IntArray) -> None:
    """Positions of the commas; without a branch, so ``positions`` needs one place more than there are commas."""
    count = 0
    for i in range(text.shape[0]):
        positions[count] = i
        count += text[i] == _COMMA


@njit(cache=True)
def _put_integer(out: Bytes, at: int, value: int) -> int:
    rest = np.uint64(value)
    if value < 0:
        out[at] = _MINUS
        at += 1
        rest = ~rest + _U1
    length = 1
    scan = rest // _U10
    while scan != _U0:
        length += 1
        scan //= _U10
    for i in range(at + length - 1, at - 1, -1):
        out[i] = _ZERO + np.uint8(rest % _U10)
        rest //= _U10
    return at + length


@njit(cache=True, nogil=True)
def _stitch(
    constants: Bytes,
    constant_ends: IntArray,
    kinds: IntArray,
    indexes: IntArray,
    integers: IntArray,
    numbers: Bytes,
    number_ends: IntArray,
    texts: Bytes,
    text_begins: IntArray,
    text_ends: IntArray,
    out: Bytes,
    ends: IntArray,
) -> None:
    """Row after row: constant, slot, constant, slot, ..., constant. Numbers are read in that order too."""
    at = 0
    number = 0
    number_at = 1
    for row in range(ends.shape[0]):
        begin = 0
        for slot in range(kinds.shape[0]):
            at = _copy(out, at, constants, begin, constant_ends[slot])
            begin = constant_ends[slot]
            kind = kinds[slot]
            if kind == _NUMBER:
                end = number_ends[number]
                at = _copy(out, at, numbers, number_at, end)
                number_at = end + 1
                number += 1
            elif kind == _INTEGER:
                at = _put_integer(out, at, integers[indexes[slot], row])
            elif kind == _FLAG:
                flag = integers[indexes[slot], row]
                at = _copy(out, at, _TRUE, 0, 4) if flag else _copy(out, at, _FALSE, 0, 5)
            else:
                i = indexes[slot]
                at = _copy(out, at, texts, text_begins[i, row], text_ends[i, row])
        at = _copy(out, at, constants, begin, constant_ends[-1])
        ends[row] = at


@dataclass(slots=True)
class _Inputs:
    """The columns of one call, sorted by how the kernel reads them."""

    rows: int
    integers: list[npt.NDArray[Any]]
    numbers: list[npt.NDArray[Any]]
    texts: list[bytes]
    text_begins: list[IntArray]
    text_ends: list[IntArray]
    text_total: int = 0

    def add_texts(self, name: str, fragments: Sequence[bytes] | bytes) -> int:
        if isinstance(fragments, bytes):
            ends = np.full(self.rows, self.text_total + len(fragments), np.int64)
            begins = np.full(self.rows, self.text_total, np.int64)
            self.texts.append(fragments)
            self.text_total += len(fragments)
        else:
            joined = b"".join(fragments)
            lengths = np.fromiter(map(len, fragments), np.int64, len(fragments))
            if len(lengths) != self.rows:
                raise ValueError(f"{name}: {len(lengths)} texts for {self.rows} rows")
            ends = np.cumsum(lengths) + self.text_total
            begins = ends - lengths
            self.texts.append(joined)
            self.text_total += len(joined)
        self.text_begins.append(begins)
        self.text_ends.append(ends)
        return len(self.text_ends) - 1


class RecordTemplate:
    """The shape of one kind of record: its fields in order, built once, then rendered block by block.

    >>> template = RecordTemplate([("id", "id"), ("score", "number"), ("features", ("a", "b"))])
    >>> columns = {"id": Ids.of([7]), "score": np.array([0.25]), "features": np.array([[1.0, np.nan]])}
    >>> template.render(1, columns)
    [b'{"id":7,"score":0.25,"features":{"a":1.0,"b":null}}']
    """

    def __init__(self, fields: Sequence[tuple[str, SlotKind | tuple[str, ...]]]) -> None:
        self.fields = tuple(fields)
        constants: list[bytes] = []
        kinds: list[int] = []
        pending = b"{"
        for i, (name, kind) in enumerate(self.fields):
            pending += (b"," if i else b"") + orjson.dumps(name) + b":"
            if isinstance(kind, str):
                constants.append(pending)
                kinds.append(_KIND_CODE[kind])
                pending = b""
                continue
            pending += b"{"
            for j, inner in enumerate(kind):
                constants.append(pending + (b"," if j else b"") + orjson.dumps(inner) + b":")
                kinds.append(_NUMBER)
                pending = b""
            pending += b"}"
        constants.append(pending + b"}")
        self._constants = np.frombuffer(b"".join(constants) + _ROOM, np.uint8)
        self._constant_ends = np.cumsum(np.array([len(c) for c in constants], np.int64))
        self._kinds = np.array(kinds, np.int64)

    def render(self, rows: int, columns: Mapping[str, Column]) -> list[bytes]:
        """One JSON object per row, equal to orjson's text of the same dict; ValueError on a column of wrong length."""
        if rows == 0:
            return []
        inputs = _Inputs(rows, [], [], [], [], [])
        kinds, indexes = self._kinds.copy(), np.zeros(len(self._kinds), np.int64)
        slot = 0
        for name, kind in self.fields:
            self._add(inputs, name, kind, columns[name], kinds, indexes, slot)
            slot += 1 if isinstance(kind, str) else len(kind)
        return self._run(inputs, kinds, indexes)

    def _add(
        self,
        inputs: _Inputs,
        name: str,
        kind: SlotKind | tuple[str, ...],
        column: Any,
        kinds: IntArray,
        indexes: IntArray,
        slot: int,
    ) -> None:
        """Hands one field's column to the inputs and notes in which form the kernel finds it."""
        if kind == "json":
            indexes[slot] = inputs.add_texts(name, column)
            return
        if kind == "id":
            if column.ints is None:
                kinds[slot] = _TEXT
                indexes[slot] = inputs.add_texts(name, list(map(_JSON, column.to_list())))
                return
            column = column.ints
        wanted = (inputs.rows,) if isinstance(kind, str) else (inputs.rows, len(kind))
        if column.shape != wanted:
            raise ValueError(f"{name}: column of shape {column.shape}, expected {wanted}")
        if isinstance(kind, str) and kind != "number":
            inputs.integers.append(column)
            indexes[slot] = len(inputs.integers) - 1
        else:
            inputs.numbers.append(column.reshape(inputs.rows, -1))

    def _run(self, inputs: _Inputs, kinds: IntArray, indexes: IntArray) -> list[bytes]:
        rows = inputs.rows
        integers = np.empty((len(inputs.integers), rows), np.int64)
        for i, column in enumerate(inputs.integers):
            integers[i] = column
        numbers, number_ends = _numbers_text(inputs)
        begins = np.array(inputs.text_begins, np.int64).reshape(-1, rows)
        text_ends = np.array(inputs.text_ends, np.int64).reshape(-1, rows)
        texts_bytes = int((text_ends - begins).sum())
        others_bytes = rows * (len(self._constants) + _DIGITS_MAX * len(inputs.integers))
        bytes_max = others_bytes + len(numbers) + texts_bytes + _CHUNK
        out = np.empty(bytes_max, np.uint8)
        ends = np.empty(rows, np.int64)
        _stitch(
            self._constants,
            self._constant_ends,
            kinds,
            indexes,
            integers,
            numbers,
            number_ends,
            np.frombuffer(b"".join([*inputs.texts, _ROOM]), np.uint8),
            begins,
            text_ends,
            out,
            ends,
        )
        return _sliced(out, ends)


def _numbers_text(inputs: _Inputs) -> tuple[Bytes, IntArray]:
    """All floats as one JSON array, row by row in slot order, and where the text of each ends."""
    width = sum(column.shape[1] for column in inputs.numbers)
    flat = np.zeros(inputs.rows * width + _PADDING_FLOATS)
    matrix = flat[: inputs.rows * width].reshape(inputs.rows, width)
    at = 0
    for column in inputs.numbers:
        matrix[:, at : at + column.shape[1]] = column
        at += column.shape[1]
    text = np.frombuffer(orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY), np.uint8)
    ends = np.empty(len(flat), np.int64)
    _commas(text, ends)
    return text, ends


_JSON = msgspec.json.Encoder().encode


def _sliced(data: Bytes, ends: IntArray) -> list[bytes]:
    """The texts that end at ``ends``, one after the other from 0."""
    stops: list[int] = ends.tolist()
    whole = data[: stops[-1]].tobytes()
    starts = [0, *stops[:-1]]
    return [whole[a:b] for a, b in zip(starts, stops, strict=True)]


class ScoreEncoder:
    """Scored rows -> values of ``fraud-scores``, fields in the contract's order.

    ``feature_names`` None switches feature logging off: the field is then null.
    """

    def __init__(self, feature_names: Sequence[str] | None) -> None:
        self.feature_names = None if feature_names is None else tuple(feature_names)
        self._template = RecordTemplate(
            [
                ("transaction_id", "id"),
                ("event_time", "integer"),
                ("card_id", "id"),
                ("terminal_id", "id"),
                ("amount", "number"),
                ("score", "number"),
                ("raw", "number"),
                ("model", "json"),
                ("late", "flag"),
                ("reasons", "json"),
                ("features", "json" if self.feature_names is None else self.feature_names),
                ("extra", "json"),
            ]
        )

    def encode(
        self,
        block: Block,
        *,
        features: FloatArray | None,
        late: BoolArray,
        model: str | None = None,
        score: FloatArray | None = None,
        raw: FloatArray | None = None,
        reasons: Sequence[bytes] | None = None,
    ) -> list[bytes]:
        """One value per row of ``block``.

        ``features`` (n, d) float64 in the order of ``feature_names``, ignored when logging is off; ``late`` (n,);
        ``score`` and ``raw`` (n,) float64, None without a model (null); ``reasons`` a JSON array's text per row.
        """
        n = len(block)
        unknown = np.full(n, np.nan)
        extra: Sequence[bytes] | bytes = b"{}"
        if block.extra is not None:
            extra = [b"{}" if text is None else text for text in block.extra]
        columns: dict[str, Any] = {
            **block.ids,
            "event_time": block.event_time_ms,
            "amount": block.columns["amount"],
            "score": unknown if score is None else score,
            "raw": unknown if raw is None else raw,
            "model": b"null" if model is None else orjson.dumps(model),
            "late": late,
            "reasons": b"[]" if reasons is None else reasons,
            "features": b"null" if self.feature_names is None else features,
            "extra": extra,
        }
        return self._template.render(n, columns)


def decimal_keys(values: IntArray) -> list[bytes]:
    """Each integer as decimal ASCII: the key of a record whose key is an integer id."""
    return _prefixed(b"", values)


def source_headers(topic: str, partition: int, offsets: IntArray) -> list[bytes]:
    """Values of the ``source`` header, such as ``transactions/3/1234``.

    >>> source_headers("transactions", 3, np.array([1234, 1235]))
    [b'transactions/3/1234', b'transactions/3/1235']
    """
    return _prefixed(f"{topic}/{partition}/".encode(), offsets)


@njit(cache=True)
def _put_prefixed(prefix: Bytes, length: int, values: IntArray, out: Bytes, ends: IntArray) -> None:
    at = 0
    for row in range(values.shape[0]):
        at = _put_integer(out, _copy(out, at, prefix, 0, length), values[row])
        ends[row] = at


def _prefixed(prefix: bytes, values: IntArray) -> list[bytes]:
    if len(values) == 0:
        return []
    out = np.empty(len(values) * (len(prefix) + _DIGITS_MAX) + _CHUNK, np.uint8)
    ends = np.empty(len(values), np.int64)
    _put_prefixed(np.frombuffer(prefix + _ROOM, np.uint8), len(prefix), values, out, ends)
    return _sliced(out, ends)
