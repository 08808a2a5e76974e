"""Plain JSON records -> columns in native code: no Python object for each value, and the interpreter lock is free.

A record is plain where it is one object with the schema's fields, each at most once and the required ones all there,
in any order and with any white space; ids, times and flags are integers of at most 18 digits, numbers have at most 15.
Nearly all records of nearly all producers are plain; what is not is for `streams.codec` to judge, whose verdict on a
plain record would be the same: every integer is exact, and a decimal of 15 digits is the quotient of two numbers that
are exact as float64, so that the one rounding is that of the division.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray, IntArray
from features.kernel import helper, kernel
from features.schema import EventSchema

__all__ = ["PlainScanner", "Scanned"]

Octets = npt.NDArray[np.uint8]

_INTEGER_DIGITS_MAX, _NUMBER_DIGITS_MAX = 18, 15
_SPACE, _TAB, _NEWLINE, _RETURN = 32, 9, 10, 13
_QUOTE, _COMMA, _MINUS, _POINT, _COLON = 34, 44, 45, 46, 58
_ZERO, _NINE, _OPEN, _CLOSE = 48, 57, 123, 125


class Scanned:
    """n plain records: by field, in the schema's order, ``integers`` or ``numbers`` (k, n), of which the one that
    the field's kind needs is filled, and whether it was ``present`` (k, n); 0 and 0.0 where it was not."""

    __slots__ = ("integers", "numbers", "present")

    def __init__(self, fields: int, n: int) -> None:
        self.integers: IntArray = np.zeros((fields, n), np.int64)
        self.numbers: FloatArray = np.zeros((fields, n), np.float64)
        self.present: BoolArray = np.zeros((fields, n), np.bool_)


class PlainScanner:
    """Scans records of one schema.

    >>> from features.schema import TRANSACTION_LABELS
    >>> scanner = PlainScanner(TRANSACTION_LABELS)
    >>> found = scanner.scan([b'{"transaction_id": 7, "label_time": 1522540800000, "is_fraud": 1}'], 1000)
    >>> found.integers[:, 0].tolist(), found.present[:, 0].tolist()
    ([7, 1522540800000, 1, 0], [True, True, True, False])
    >>> scanner.scan([b'{"transaction_id": "7", "label_time": 1522540800000, "is_fraud": 1}'], 1000) is None
    True
    """

    def __init__(self, schema: EventSchema) -> None:
        self.schema = schema
        self._fields = len(schema.fields)
        names = [field.name.encode() for field in schema.fields]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._name_ends = np.cumsum([len(name) for name in names])
        self._is_number = np.array([field.kind == "number" for field in schema.fields])
        self._required = np.array([field.required for field in schema.fields])

    @staticmethod
    def fits(schema: EventSchema) -> bool:
        """Whether records of the schema can be plain: its values are integers and numbers of any kind that there is."""
        return all(field.kind != "choice" and not field.categories for field in schema.fields)

    def scan(self, values: Sequence[bytes | None], value_bytes_max: int) -> Scanned | None:
        """The records, or None where one is not plain, has no value or is longer than ``value_bytes_max``."""
        try:
            joined = b"".join(values)  # type: ignore[arg-type]
        except TypeError:
            return None
        lengths = np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
        if len(lengths) and lengths.max() > value_bytes_max:
            return None
        found = Scanned(self._fields, len(values))
        plain = _scan(
            np.frombuffer(joined, np.uint8),
            np.cumsum(lengths),
            self._names,
            self._name_ends,
            self._is_number,
            self._required,
            found.integers,
            found.numbers,
            found.present,
        )
        return found if plain else None


@helper
def _after_space(data: Octets, at: int, end: int) -> int:
    """The first place from ``at`` on that is not white space, ``end`` where there is none."""
    while at < end and (data[at] == _SPACE or data[at] == _NEWLINE or data[at] == _TAB or data[at] == _RETURN):
        at += 1
    return at


@helper
def _is_name(data: Octets, at: int, end: int, names: Octets, begin: int, stop: int) -> bool:
    """Whether the name ``names[begin:stop]`` and a quote stand at ``at``."""
    if at + stop - begin >= end or data[at + stop - begin] != _QUOTE:
        return False
    for i in range(begin, stop):  # noqa: SIM110 - a kernel has no generators
        if data[at + i - begin] != names[i]:
            return False
    return True


@helper
def _field_at(data: Octets, at: int, end: int, names: Octets, name_ends: IntArray, likely: int) -> int:
    """Number of the field whose name stands at ``at``, -1 where it is none; the ``likely`` one is tried first."""
    fields = len(name_ends)
    for turn in range(fields):
        field = likely + turn
        if field >= fields:
            field -= fields
        if _is_name(data, at, end, names, name_ends[field - 1] if field else 0, name_ends[field]):
            return field
    return -1


@helper
def _digit(data: Octets, at: int) -> int:
    return np.int64(data[at]) - _ZERO  # type: ignore[return-value]


@helper
def _value_at(
    data: Octets, at: int, end: int, is_number: bool, field: int, row: int, ints: IntArray, reals: FloatArray
) -> int:
    """Puts the value at ``at`` into its column; returns the place behind it, -1 where it is not plain."""
    negative = at < end and data[at] == _MINUS
    if negative:
        at += 1
    begin, mantissa, scale = at, 0, 1.0
    while at < end and _ZERO <= data[at] <= _NINE and at - begin <= _INTEGER_DIGITS_MAX:
        mantissa = 10 * mantissa + _digit(data, at)
        at += 1
    digits = at - begin
    if digits == 0 or digits > _INTEGER_DIGITS_MAX or (digits > 1 and data[begin] == _ZERO):
        return -1
    if is_number and at < end and data[at] == _POINT:
        at += 1
        point = at
        while at < end and _ZERO <= data[at] <= _NINE and digits <= _NUMBER_DIGITS_MAX:
            mantissa = 10 * mantissa + _digit(data, at)
            scale *= 10.0
            digits += 1
            at += 1
        if at == point:
            return -1
    # a minus before nothing but zeros would be lost in an integer
    if (is_number and digits > _NUMBER_DIGITS_MAX) or (negative and mantissa == 0):
        return -1
    signed = -mantissa if negative else mantissa
    if is_number:
        reals[field, row] = signed / scale
    else:
        ints[field, row] = signed
    return at


@kernel
def _scan(
    data: Octets,
    ends: IntArray,
    names: Octets,
    name_ends: IntArray,
    is_number: BoolArray,
    required: BoolArray,
    ints: IntArray,
    reals: FloatArray,
    present: BoolArray,
) -> bool:
    """Fills the columns from the records that end at ``ends``; False where one is not plain."""
    fields = len(name_ends)
    at = 0
    for row in range(len(ends)):
        end = ends[row]
        at = _after_space(data, at, end)
        if at == end or data[at] != _OPEN:
            return False
        likely, closed = 0, False
        while not closed:
            at = _after_space(data, at + 1, end)
            if at == end or data[at] != _QUOTE:
                return False
            field = _field_at(data, at + 1, end, names, name_ends, likely)
            if field < 0 or present[field, row]:
                return False
            at += 2 + name_ends[field] - (name_ends[field - 1] if field else 0)
            at = _after_space(data, at, end)
            if at == end or data[at] != _COLON:
                return False
            at = _value_at(data, _after_space(data, at + 1, end), end, is_number[field], field, row, ints, reals)
            if at < 0:
                return False
            present[field, row] = True
            at = _after_space(data, at, end)
            if at == end or (data[at] != _COMMA and data[at] != _CLOSE):
                return False
            closed = data[at] == _CLOSE
            likely = field + 1 if field + 1 < fields else 0
        if _after_space(data, at + 1, end) != end:
            return False
        at = end
        for field in range(fields):
            if required[field] and not present[field, row]:
                return False
    return True
