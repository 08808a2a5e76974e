"""Columns -> one JSON record per row, fast: scores, and any other record of fixed shape.

All floats of a block are formatted by one orjson call, as shortest text that reads back as the same float; a numba
kernel then stitches each row's numbers between the constant parts of the record. Text that is not a number comes as
ready JSON fragments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from features.block import Block, BoolArray, FloatArray, Ids, IntArray
from models.conformal import UNSAID

__all__ = ["RecordTemplate", "ScoreEncoder", "decimal_keys", "source_headers"]

#: ``id``: an `Ids`; ``integer``: (n,) int64; ``number``: (n,) float64, NaN and infinity are null; ``flag``: (n,) bool,
#: true or false; ``json``: ready JSON text, one per row or one for all; a tuple of names: (n, d) float64 -> an object
SlotKind = Literal["id", "integer", "number", "flag", "json"]

_INTEGER, _NUMBER, _FLAG, _TEXT = 0, 1, 2, 3
_KIND_CODE = {"id": _INTEGER, "integer": _INTEGER, "number": _NUMBER, "flag": _FLAG, "json": _TEXT}
_DIGITS_MAX = 20  # of a 64-bit integer with its sign
_U0, _U1, _U10 = np.uint64(0), np.uint64(1), np.uint64(10)
_COMMA, _MINUS, _SLASH, _ZERO = ord(","), ord("-"), ord("/"), ord("0")
_CHUNK = 32
_ROOM = bytes(_CHUNK)
_TRUE, _FALSE = np.frombuffer(b"true" + _ROOM, np.uint8), np.frombuffer(b"false" + _ROOM, np.uint8)
#: floats appended to those of a block, so that the text of the last one ends with a comma and has room behind
_PADDING_FLOATS = _CHUNK
#: shapes kept by a template: a new one for each model
_SHAPES_MAX = 64

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


class _Shape(NamedTuple):
    """A record with its constant parts filled in: constants between slots, and where the kernel finds each slot."""

    constants: Bytes
    constant_ends: IntArray
    kinds: IntArray
    indexes: IntArray
    #: names of the fields whose columns are read as integers, as numbers (with how many each has), as texts
    integers: list[str]
    numbers: list[tuple[str, int]]
    texts: list[str]
    #: those of ``numbers`` that are matrices, also where one column wide
    matrices: frozenset[str]


def _text_places(name: str, rows: int, texts: Sequence[bytes], total: int) -> tuple[bytes, IntArray, IntArray]:
    """The joined texts, and where each begins and ends in an array in which ``total`` bytes are before them."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if len(lengths) != rows:
        raise ValueError(f"{name}: {len(lengths)} texts for {rows} rows")
    ends = np.cumsum(lengths) + total
    return b"".join(texts), ends - lengths, ends


class RecordTemplate:
    """The shape of one kind of record: its fields in order, built once, then rendered block by block.

    >>> template = RecordTemplate([("id", "id"), ("score", "number"), ("features", ("a", "b"))])
    >>> columns = {"id": Ids.of([7]), "score": np.array([0.25]), "features": np.array([[1.0, np.nan]])}
    >>> template.render(1, columns)
    [b'{"id":7,"score":0.25,"features":{"a":1.0,"b":null}}']
    """

    def __init__(self, fields: Sequence[tuple[str, SlotKind | tuple[str, ...]]]) -> None:
        self.fields = tuple(fields)
        self._varying = [name for name, kind in self.fields if kind in ("json", "id")]
        self._shapes: dict[tuple[Any, ...], _Shape] = {}

    def render(self, rows: int, columns: Mapping[str, Column]) -> list[bytes]:
        """One JSON object per row, equal to orjson's text of the same dict; ValueError on a column of wrong length."""
        if rows == 0:
            return []
        # one text for all rows is part of the shape: what a block costs besides its rows is what a small one costs
        key = tuple([_variant(columns[name]) for name in self._varying])
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= _SHAPES_MAX:
                self._shapes.clear()
            shape = self._shapes[key] = self._shape(dict(zip(self._varying, key, strict=True)))
        return _run(shape, rows, columns)

    def _shape(self, variants: Mapping[str, bytes | int]) -> _Shape:
        constants: list[bytes] = []
        kinds: list[int] = []
        indexes: list[int] = []
        integers: list[str] = []
        numbers: list[tuple[str, int]] = []
        texts: list[str] = []
        pending = b"{"

        def slot(kind: int, index: int = 0) -> None:
            nonlocal pending
            constants.append(pending)
            kinds.append(kind)
            indexes.append(index)
            pending = b""

        for i, (name, kind) in enumerate(self.fields):
            pending += (b"," if i else b"") + orjson.dumps(name) + b":"
            variant = variants.get(name)
            if isinstance(kind, tuple):
                pending += b"{"
                for j, inner in enumerate(kind):
                    pending += (b"," if j else b"") + orjson.dumps(inner) + b":"
                    slot(_NUMBER)
                numbers.append((name, len(kind)))
                pending += b"}"
            elif isinstance(variant, bytes):
                pending += variant
            elif kind == "number":
                slot(_NUMBER)
                numbers.append((name, 1))
            elif variant == _TEXT:
                slot(_TEXT, len(texts))
                texts.append(name)
            else:
                slot(_KIND_CODE[kind], len(integers))
                integers.append(name)
        constants.append(pending + b"}")
        return _Shape(
            np.frombuffer(b"".join(constants) + _ROOM, np.uint8),
            np.cumsum(np.array([len(c) for c in constants], np.int64)),
            np.array(kinds, np.int64),
            np.array(indexes, np.int64),
            integers,
            numbers,
            texts,
            frozenset(name for name, kind in self.fields if isinstance(kind, tuple)),
        )


def _variant(column: Any) -> bytes | int:
    """What of a column changes the shape: a text for all rows, or whether its rows are texts or integers."""
    if isinstance(column, bytes):
        return column
    return _INTEGER if isinstance(column, Ids) and column.ints is not None else _TEXT


def _checked(name: str, column: npt.NDArray[Any], wanted: tuple[int, ...]) -> npt.NDArray[Any]:
    if column.shape != wanted:
        raise ValueError(f"{name}: column of shape {column.shape}, expected {wanted}")
    return column


def _run(shape: _Shape, rows: int, columns: Mapping[str, Any]) -> list[bytes]:
    integers = np.empty((len(shape.integers), rows), np.int64)
    for i, name in enumerate(shape.integers):
        column = columns[name]
        values: Any = column.ints if isinstance(column, Ids) else column
        integers[i] = _checked(name, values, (rows,))
    numbers, number_ends = _numbers_text(shape, rows, columns)
    begins, ends = np.empty((2, len(shape.texts), rows), np.int64)
    parts: list[bytes] = []
    texts_bytes = 0
    for i, name in enumerate(shape.texts):
        column = columns[name]
        texts = list(map(_JSON, column.to_list())) if isinstance(column, Ids) else column
        part, begins[i], ends[i] = _text_places(name, rows, texts, texts_bytes)
        parts.append(part)
        texts_bytes += len(part)
    others_bytes = rows * (len(shape.constants) + _DIGITS_MAX * len(shape.integers))
    out = np.empty(others_bytes + len(numbers) + texts_bytes + _CHUNK, np.uint8)
    stops = np.empty(rows, np.int64)
    _stitch(
        shape.constants,
        shape.constant_ends,
        shape.kinds,
        shape.indexes,
        integers,
        numbers,
        number_ends,
        np.frombuffer(b"".join([*parts, _ROOM]), np.uint8),
        begins,
        ends,
        out,
        stops,
    )
    return _sliced(out, stops)


def _numbers_text(shape: _Shape, rows: int, columns: Mapping[str, Any]) -> tuple[Bytes, IntArray]:
    """All floats as one JSON array, row by row in slot order, and where the text of each ends."""
    width = sum(n for _, n in shape.numbers)
    flat = np.zeros(rows * width + _PADDING_FLOATS)
    matrix = flat[: rows * width].reshape(rows, width)
    at = 0
    for name, n in shape.numbers:
        column = columns[name]
        if name in shape.matrices:
            matrix[:, at : at + n] = _checked(name, column, (rows, n))
        else:
            matrix[:, at] = _checked(name, column, (rows,))
        at += n
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


#: of the codes of `Conformal.sets`, and last of `UNSAID`
_SET_TEXTS = (b"[]", b'["legitimate"]', b'["fraud"]', b'["legitimate","fraud"]', b"null")


def _set_texts(codes: npt.NDArray[np.int8]) -> Sequence[bytes] | bytes:
    """The labels that each score leaves possible; one text where all leave the same, which costs a row nothing."""
    first = codes[0] if len(codes) else UNSAID
    if (codes == first).all():
        return _SET_TEXTS[first]
    return [_SET_TEXTS[code] for code in codes.tolist()]


class ScoreEncoder:
    """Scored rows -> values of ``fraud-scores``, fields in the contract's order.

    ``feature_names`` None switches feature logging off: the field is then null.
    """

    def __init__(self, feature_names: Sequence[str] | None) -> None:
        self.feature_names = None if feature_names is None else tuple(feature_names)
        fields: list[tuple[str, SlotKind | tuple[str, ...]]] = [
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
        self._template = RecordTemplate(fields)
        self._with_sets = RecordTemplate([*fields, ("set", "json")])

    def encode(
        self,
        block: Block,
        *,
        features: FloatArray | None,
        late: BoolArray,
        model: str | Sequence[bytes] | None = None,
        score: FloatArray | None = None,
        raw: FloatArray | None = None,
        reasons: Sequence[bytes] | None = None,
        sets: npt.NDArray[np.int8] | None = None,
    ) -> list[bytes]:
        """One value per row of ``block``.

        ``features`` (n, d) float64 in the order of ``feature_names``, ignored when logging is off; ``late`` (n,);
        ``score`` and ``raw`` (n,) float64, None without a model (null); ``model`` is one for all rows, or a JSON text
        per row; ``reasons`` a JSON array's text per row; ``sets`` (n,) int8 as of `Serving.sets`, which gives
        the records a field ``set`` of the labels that the score leaves possible, null where it is `UNSAID`.
        """
        n = len(block)
        extra: Sequence[bytes] | bytes = b"{}"
        if block.extra is not None:
            extra = [b"{}" if text is None else text for text in block.extra]
        columns: dict[str, Any] = {
            **block.ids,
            "event_time": block.event_time_ms,
            "amount": block.columns["amount"],
            "score": np.full(n, np.nan) if score is None else score,
            "raw": np.full(n, np.nan) if raw is None else raw,
            "model": orjson.dumps(model) if model is None or isinstance(model, str) else model,
            "late": late,
            "reasons": b"[]" if reasons is None else reasons,
            "features": b"null" if self.feature_names is None else features,
            "extra": extra,
        }
        if sets is None:
            return self._template.render(n, columns)
        return self._with_sets.render(n, columns | {"set": _set_texts(sets)})


def decimal_keys(values: IntArray) -> list[bytes]:
    """Each integer as decimal ASCII: the key of a record whose key is an integer id."""
    return _texts(b"", None, values)


def source_headers(topic: str, partitions: IntArray, offsets: IntArray) -> list[bytes]:
    """Values of the ``source`` header, such as ``transactions/3/1234``, for columns (n,) of partitions and offsets.

    >>> source_headers("transactions", np.array([3, 0]), np.array([1234, 1235]))
    [b'transactions/3/1234', b'transactions/0/1235']
    """
    return _texts(f"{topic}/".encode(), partitions, offsets)


@njit(cache=True)
def _put_texts(prefix: Bytes, length: int, firsts: IntArray, values: IntArray, out: Bytes, ends: IntArray) -> None:
    at = 0
    for row in range(values.shape[0]):
        at = _copy(out, at, prefix, 0, length)
        if firsts.shape[0]:
            at = _put_integer(out, at, firsts[row])
            out[at] = _SLASH
            at += 1
        at = _put_integer(out, at, values[row])
        ends[row] = at


def _texts(prefix: bytes, firsts: IntArray | None, values: IntArray) -> list[bytes]:
    """``prefix``, the first integer and a slash if given, and the value, of each row."""
    n = len(values)
    if n == 0:
        return []
    out = np.empty(n * (len(prefix) + 2 * _DIGITS_MAX + 1) + _CHUNK, np.uint8)
    ends = np.empty(n, np.int64)
    firsts = values[:0] if firsts is None else firsts
    _put_texts(np.frombuffer(prefix + _ROOM, np.uint8), len(prefix), firsts, values, out, ends)
    return _sliced(out, ends)
