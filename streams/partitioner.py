"""Which partition a key belongs to, and whether everybody who writes agrees on it.

Kafka's Java client hashes keys with murmur2, and so do our producers. librdkafka's own default
(``consistent_random``) is crc32: a producer with that default beside a Java one puts one key into two partitions,
where it gets two half states and wrong features. `KeyPlacement` sees that from the records alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from features.block import Ids, IntArray, KeyArray
from features.state import Table, table_find, table_full, table_rebuild

__all__ = ["KeyPlacement", "crc32_partitions_of", "murmur2", "partition_of_key", "partitions_of"]

Bytes = npt.NDArray[np.uint8]

_SEED = np.uint64(0x9747B28C)
_M = np.uint64(0x5BD1E995)
_LOW32 = np.uint64(0xFFFF_FFFF)
_POSITIVE = np.uint64(0x7FFF_FFFF)
_DIGITS_MAX = 20  # of a 64-bit integer with its sign
_0, _1, _8, _10, _13, _15, _16, _24 = (np.uint64(i) for i in (0, 1, 8, 10, 13, 15, 16, 24))


@njit(cache=True)
def _murmur2(data: Bytes, begin: int, end: int) -> np.uint64:
    """murmur2 of ``data[begin:end]``, 32 bits; all in uint64, which numba keeps uint64."""
    h = _SEED ^ np.uint64(end - begin)
    i = begin
    while i + 4 <= end:
        k = (
            np.uint64(data[i])
            | (np.uint64(data[i + 1]) << _8)
            | (np.uint64(data[i + 2]) << _16)
            | (np.uint64(data[i + 3]) << _24)
        )
        k = (k * _M) & _LOW32
        k ^= k >> _24
        k = (k * _M) & _LOW32
        h = ((h * _M) & _LOW32) ^ k
        i += 4
    if end - i == 3:
        h ^= np.uint64(data[i + 2]) << _16
    if end - i >= 2:
        h ^= np.uint64(data[i + 1]) << _8
    if end - i >= 1:
        h = ((h ^ np.uint64(data[i])) * _M) & _LOW32
    h ^= h >> _13
    h = (h * _M) & _LOW32
    return h ^ (h >> _15)


def _crc32_table() -> npt.NDArray[np.uint64]:
    table = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        table = np.where(table & _1, (table >> _1) ^ np.uint64(0xEDB88320), table >> _1)
    return table


_CRC32 = _crc32_table()


@njit(cache=True)
def _crc32(data: Bytes, begin: int, end: int) -> np.uint64:
    """crc32 (as in zlib) of ``data[begin:end]``."""
    crc = _LOW32
    for i in range(begin, end):
        crc = _CRC32[np.int64((crc ^ np.uint64(data[i])) & np.uint64(0xFF))] ^ (crc >> _8)
    return crc ^ _LOW32


@njit(cache=True)
def _hash(data: Bytes, begin: int, end: int, murmur: bool) -> np.int64:
    if murmur:
        return np.int64(_murmur2(data, begin, end) & _POSITIVE)
    return np.int64(_crc32(data, begin, end))


@njit(cache=True)
def _digits(value: int, text: Bytes) -> int:
    """Writes the integer as decimal ASCII at the end of ``text``; returns where it begins."""
    rest = np.uint64(value)
    if value < 0:
        rest = ~rest + _1
    begin: int = text.shape[0]
    while True:
        begin -= 1
        text[begin] = np.uint8(48) + np.uint8(rest % _10)
        rest //= _10
        if rest == _0:
            break
    if value < 0:
        begin -= 1
        text[begin] = 45
    return begin


@njit(cache=True)
def _int_partitions(values: IntArray, n: int, murmur: bool, out: IntArray) -> None:
    text = np.empty(_DIGITS_MAX, np.uint8)
    for row in range(values.shape[0]):
        begin = _digits(values[row], text)
        out[row] = _hash(text, begin, _DIGITS_MAX, murmur) % n


@njit(cache=True)
def _text_partitions(data: Bytes, ends: IntArray, n: int, murmur: bool, out: IntArray) -> None:
    begin = 0
    for row in range(ends.shape[0]):
        out[row] = _hash(data, begin, ends[row], murmur) % n
        begin = ends[row]


def _partitions(ids: Ids, n: int, murmur: bool) -> IntArray:
    if n < 1:
        raise ValueError(f"n {n}: a topic has at least 1 partition")
    out = np.empty(len(ids), np.int64)
    if ids.ints is not None:
        _int_partitions(ids.ints, n, murmur, out)
    else:
        texts = ids.texts()
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
        _text_partitions(np.frombuffer(b"".join(texts), np.uint8), ends, n, murmur, out)
    return out


def murmur2(key: bytes) -> int:
    """The Java client's ``Utils.murmur2``: a signed 32-bit integer.

    >>> murmur2(b"foobar")
    -790332482
    """
    h = int(_murmur2(np.frombuffer(key, np.uint8), 0, len(key)))
    return h - 2**32 if h >= 2**31 else h


def partition_of_key(key: bytes, n: int) -> int:
    """Where the Java client's default partitioner puts a record with this key, of ``n`` partitions."""
    return (murmur2(key) & 0x7FFF_FFFF) % n


def partitions_of(ids: Ids, n: int) -> IntArray:
    """(rows,) int64: `partition_of_key` of each id's text, decimal ASCII or UTF-8."""
    return _partitions(ids, n, True)


def crc32_partitions_of(ids: Ids, n: int) -> IntArray:
    """(rows,) int64: where librdkafka's own default partitioner puts each id's text."""
    return _partitions(ids, n, False)


# --- one key in two partitions ---

#: 700,000 keys are what a table of 2^20 entries (32 MB) takes
KEYS_MAX = 700_000
#: keys that tell murmur2 from crc32, before their mixture is believed
_TELLING_KEYS_MIN = 30
_UNKNOWN_SHARE_MAX = 0.1
_TABLE_CAPACITY_MIN = 1024

# columns of an entry of features.state's table as used here
_PAYLOAD, _REPORTED = 2, 3


@njit(cache=True)
def _place(
    table: Table,
    count: int,
    count_max: int,
    keys: KeyArray,
    payload: np.uint64,
    begin: int,
    new: IntArray,
    moved: IntArray,
) -> tuple[int, int, int, int]:
    """Looks rows ``begin..`` up; adds unknown keys while there is room.

    Writes rows with unknown keys to ``new`` and with keys first seen elsewhere, once per key, to ``moved``.
    Returns (row to go on from once the table has grown, entries, how many new, how many moved).
    """
    n_new = n_moved = 0
    row = begin
    while row < keys.shape[0]:
        at = table_find(table, keys[row, 0], keys[row, 1])
        if at >= 0:
            if table[at, _PAYLOAD] != payload and table[at, _REPORTED] == _0:
                table[at, _REPORTED] = _1
                moved[n_moved] = row
                n_moved += 1
        else:
            if count < count_max:
                if table_full(table, count):
                    break
                table[-1 - at, 0] = keys[row, 0]
                table[-1 - at, 1] = keys[row, 1]
                table[-1 - at, _PAYLOAD] = payload
                table[-1 - at, _REPORTED] = _0
                count += 1
            new[n_new] = row
            n_new += 1
        row += 1
    return row, count, n_new, n_moved


class KeyPlacement:
    """Watches the keys of one topic, as this worker sees them, for two partitioners at work.

    Two kinds of evidence: ``keys_moved`` counts keys seen in two partitions (among the first ``keys_max``, which
    bounds memory); and of keys that differ in where murmur2 and crc32 put them, ``murmur2_only`` are where only
    murmur2 does, ``crc32_only`` where only crc32 does, ``neither`` elsewhere. Beyond ``keys_max`` the latter count
    rows instead of keys.
    """

    def __init__(self, topic: str, keys_max: int = KEYS_MAX) -> None:
        self.topic = topic
        self.keys_max = keys_max
        self.keys_moved = self.murmur2_only = self.crc32_only = self.neither = 0
        self.warned = False
        self._table: Table = np.zeros((_TABLE_CAPACITY_MIN, 4), np.uint64)
        self._count = 0

    def observe(self, partition: int, ids: Ids, n_partitions: int, keys: KeyArray | None = None) -> str | None:
        """Takes the key ids of a block of ``partition``; returns, once, what is wrong and what to do about it.

        ``keys`` are ``ids.keys()`` if the caller has them.
        """
        if n_partitions < 2 or len(ids) == 0:
            return None
        keys = ids.keys() if keys is None else keys
        new, moved = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
        row, n_new, n_moved = 0, 0, 0
        while True:
            row, self._count, found, crossed = _place(
                self._table,
                self._count,
                self.keys_max,
                keys,
                np.uint64(partition + 1),
                row,
                new[n_new:],
                moved[n_moved:],
            )
            n_new, n_moved = n_new + found, n_moved + crossed
            if row == len(keys):
                break
            grown = np.zeros((2 * len(self._table), 4), np.uint64)
            table_rebuild(self._table, grown)
            self._table = grown
        if n_new == 0 and n_moved == 0:
            return None
        self.keys_moved += n_moved
        if n_new:
            self._compare(partition, ids.take(new[:n_new]), n_partitions)
        return self._warning(partition, ids.take(moved[:1]).to_list() if n_moved else [])

    def _compare(self, partition: int, ids: Ids, n_partitions: int) -> None:
        """Counts which of the two partitioners put these keys here."""
        by_murmur2 = partitions_of(ids, n_partitions) == partition
        by_crc32 = crc32_partitions_of(ids, n_partitions) == partition
        self.murmur2_only += int(np.count_nonzero(by_murmur2 & ~by_crc32))
        self.crc32_only += int(np.count_nonzero(by_crc32 & ~by_murmur2))
        self.neither += int(np.count_nonzero(~(by_murmur2 | by_crc32)))

    @property
    def two_partitioners(self) -> bool:
        """True where murmur2 and crc32 together explain the keys, and neither does alone.

        A topic whose record keys are not the ids' text looks random to both: then most keys are where neither
        puts them, and nothing is concluded.
        """
        telling = self.murmur2_only + self.crc32_only
        return (
            min(self.murmur2_only, self.crc32_only) > 0
            and telling >= _TELLING_KEYS_MIN
            and self.neither <= _UNKNOWN_SHARE_MAX * telling
        )

    def _warning(self, partition: int, example: list[int | str]) -> str | None:
        if self.warned or not (self.two_partitioners or self.keys_moved):
            return None
        self.warned = True
        if self.two_partitioners:
            what = (
                f"{self.murmur2_only} keys are where the Java client's partitioner (murmur2) puts them and "
                f"{self.crc32_only} where only librdkafka's default (crc32) does: producers disagree"
            )
        else:
            what = (
                f"key {str(example[0])[:60]!r} came in partition {partition} and in another one before: producers "
                "disagree, or partitions were added to the topic while it held keys"
            )
        return (
            f"{self.topic}: {what}. A key split over partitions gets wrong features. Set "
            "partitioner=murmur2_random on every librdkafka producer (Python, Go, C#, Node), or the same everywhere."
        )
