"""What the stages by user and by item have in common: codes of ids, their names, and rows of columns by key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, check_like, of_texts, texts_of
from features.block import Ids, IntArray, KeyArray
from features.memory import GrowingArray
from features.plan import StateError
from features.shopping_kernels import Codes
from features.state import NO_TIME, KeySlots

__all__ = ["DAY_MS", "Columns", "Names", "ShoppingState", "codes_of", "codes_of_keys", "growing", "keys_of", "ragged"]

DAY_MS = 86_400_000
#: of a row of columns by name: shape and type
Columns = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]
_SWEEP_ROWS = 256
_SWEEP_STEPS_PER_ROW = 2
_NAMES_MIN = 1024
_FOLD = np.uint64(0x9E3779B97F4A7C15)


def codes_of_keys(keys: KeyArray) -> Codes:
    """(n,) uint64: the fold of keys (n, 2), see `codes_of`."""
    return keys[:, 1] ^ (keys[:, 0] * _FOLD)


def codes_of(ids: Ids) -> Codes:
    """(n,) uint64: 64 bits that stand for an id: of an integer itself, of a text the fold of its 128-bit key."""
    return codes_of_keys(ids.keys())


def keys_of(codes: Codes) -> KeyArray:
    """(n, 2) uint64: codes as keys of `KeySlots`."""
    keys = np.zeros((len(codes), 2), np.uint64)
    keys[:, 1] = codes
    return keys


def ragged(lengths: IntArray) -> tuple[IntArray, IntArray]:
    """For lists of these lengths, one after the other: the list of each entry, and its place in the list."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def growing(columns: Columns) -> dict[str, GrowingArray]:
    """Arrays without rows yet."""
    return {name: GrowingArray((0, *shape), dtype) for name, (shape, dtype) in columns.items()}


class Names:
    """From codes back to ids: integers are their codes, the others are kept here."""

    def __init__(self, by_code: Mapping[int, str] | None = None) -> None:
        self.by_code = dict(by_code or {})
        self._enough = max(_NAMES_MIN, 2 * len(self.by_code))

    @classmethod
    def of(cls, texts: Iterable[str]) -> Names:
        """The reverse of `texts`."""
        names = cls()
        names.learn(Ids(mixed=list(texts)))
        return cls(names.by_code)

    @property
    def many(self) -> bool:
        """Whether there are so many more than at first that it is time to keep only those still needed."""
        return len(self.by_code) > self._enough

    def learn(self, ids: Ids) -> Codes:
        """`codes_of` the ids, which are known from now on."""
        keys = ids.keys()
        codes = codes_of_keys(keys)
        if ids.ints is None:
            for code, name, hi in zip(codes.tolist(), ids.to_list(), keys[:, 0].tolist(), strict=True):
                if hi:
                    self.by_code[code] = str(name)
        return codes

    def ids(self, codes: Codes) -> Ids:
        """The ids of codes that were learnt."""
        ints = codes.view(np.int64)
        if not self.by_code:
            return Ids(ints=ints)
        known = self.by_code
        return Ids.of([known.get(code, number) for code, number in zip(codes.tolist(), ints.tolist(), strict=True)])

    def kept(self, codes: Codes) -> Names:
        """These only, for who goes on; who has this object keeps all."""
        if not self.by_code:
            return Names()
        return Names({code: self.by_code[code] for code in np.unique(codes).tolist() if code in self.by_code})

    def texts(self) -> npt.NDArray[np.bytes_]:
        """All names, sorted; integers too large for 64 bits are texts here."""
        return of_texts(sorted(self.by_code.values()))


class ShoppingState(ABC):
    """Rows of columns, by name in ``_parts``, of the keys of one partition, and the names of the items in them.

    A subclass says whose they are, what its settings are called, and which of its arrays are the keys.
    """

    _whose: str
    _settings: str

    def __init__(self, columns: Columns, settings: tuple[int, ...]) -> None:
        #: what saved arrays must have been made with
        self._identity = np.array(settings, np.int64)
        self._slots = KeySlots()
        self._names = Names()
        self._parts = growing(columns)
        self._grow()

    def __len__(self) -> int:
        """Keys held."""
        return len(self._slots)

    @property
    def stream_time_ms(self) -> int | None:
        """Largest event time seen; None before the first row."""
        return None if self._slots.stream_time_ms == NO_TIME else self._slots.stream_time_ms

    @property
    def nbytes(self) -> int:
        """Bytes of memory reserved, texts of ids not counted."""
        return self._slots.nbytes + sum(part.array.nbytes for part in self._parts.values())

    @property
    @abstractmethod
    def _horizon(self) -> int:
        """What was seen last at this time, or before, is forgotten."""

    @abstractmethod
    def _free(self, slots: IntArray) -> None:
        """These slots hold nothing."""

    @abstractmethod
    def _named(self) -> Codes:
        """Codes of all items that are held, and maybe of some that are not any more."""

    @staticmethod
    @abstractmethod
    def _saved_keys(arrays: Mapping[str, npt.NDArray[Any]]) -> KeyArray:
        """(m, 2) the keys of what `to_arrays` gave."""

    @abstractmethod
    def to_arrays(self) -> Arrays:
        """The state as plain arrays, in the order of the keys: equal states give equal arrays."""

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], **settings: Any) -> Self:
        """The reverse of `to_arrays`; ``settings`` as for the constructor. StateError where they are of others."""
        state = cls(**settings)
        check_like(arrays, state.to_arrays(), cls._whose)
        if not np.array_equal(arrays["identity"], state._identity):
            raise StateError(
                f"the saved state of {cls._whose} has settings {arrays['identity'].tolist()} ({cls._settings}), this "
                f"one {state._identity.tolist()}; give the same, or replay the log"
            )
        slots = state._slots.load(cls._saved_keys(arrays), arrays["newest"], int(arrays["stream_time_ms"][0]))
        state._grow()
        for name, part in state._parts.items():
            part.array[slots] = arrays[name]
        state._names = Names.of(texts_of(arrays["texts"]))
        return state

    def _grow(self) -> None:
        """Makes rows for all slots there are."""
        begin = min(len(part.array) for part in self._parts.values())
        if begin < self._slots.capacity:
            for part in self._parts.values():
                part.grow(self._slots.capacity)
            self._free(np.arange(begin, self._slots.capacity))

    def _sweep(self, rows: int) -> None:
        """After so many rows: frees some idle keys, which never shows, and the names that nobody needs any more."""
        self._free(self._slots.sweep(_SWEEP_STEPS_PER_ROW * rows + _SWEEP_ROWS, self._horizon))
        if self._names.many:
            self._names = self._names.kept(self._named())
