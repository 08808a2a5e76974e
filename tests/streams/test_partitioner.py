"""`streams.partitioner`: the Java client's placement of keys, and telling when somebody places them otherwise."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.block import Ids
from streams.partitioner import KeyPlacement, crc32_partitions_of, murmur2, partition_of_key, partitions_of


def murmur2_oracle(data: bytes) -> int:
    """murmur2 with Python's integers, after the Java client's Utils.murmur2; unsigned."""
    m, low = 0x5BD1E995, 0xFFFFFFFF
    h = (0x9747B28C ^ len(data)) & low
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & low
        k ^= k >> 24
        h = (h * m & low) ^ (k * m & low)
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & low
    h ^= h >> 13
    h = h * m & low
    return h ^ (h >> 15)


# the first six from Kafka's UtilsTest, the others computed with kafka-clients 4.4.0: key, murmur2, % 4, % 7, crc32
JAVA = [
    ("foobar", -790332482),
    ("a-little-bit-long-string", -985981536),
    ("a-little-bit-longer-string", -1486304829),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ("abc", 479470107),
    ("21", -973932308),
    ("", 275646681),
    ("0", 971027396),
    ("-1", 1531782027),
    ("1234567890123", -2097343994),
    ("9223372036854775807", -1221667907),
    ("-9223372036854775808", 1493327462),
    ("18446744073709551615", 1949584741),
    ("é", 186971271),
    ("日本", -700811021),
]
JAVA_PARTITIONS = [
    ("21", 0, 3, 4252452532),
    ("1234", 0, 0, 2615402659),
    ("99999", 0, 4, 2634760556),
    ("9223372036854775807", 1, 4, 1122634462),
    ("-9223372036854775808", 2, 4, 2871333643),
    ("card-00017", 3, 1, 3011357979),
    ("abcde", 1, 4, 2240272485),
]


@pytest.mark.parametrize(("key", "expected"), JAVA)
def test_murmur2_is_the_java_clients(key: str, expected: int) -> None:
    assert murmur2(key.encode()) == expected
    assert murmur2_oracle(key.encode()) == expected % 2**32


@pytest.mark.parametrize(("key", "of4", "of7", "crc"), JAVA_PARTITIONS)
def test_partitions_are_the_java_clients(key: str, of4: int, of7: int, crc: int) -> None:
    assert (partition_of_key(key.encode(), 4), partition_of_key(key.encode(), 7)) == (of4, of7)
    forms = [Ids.of([key])] + ([Ids.of([int(key)])] if key.lstrip("-").isdigit() else [])
    for ids in forms:
        assert partitions_of(ids, 7).tolist() == [of7]
        assert crc32_partitions_of(ids, 7).tolist() == [crc % 7]


def test_many_integers_as_the_java_client_places_them() -> None:
    partitions = partitions_of(Ids(ints=np.arange(-50_000, 1_000_000, 7)), 12)
    digest = 0
    for p in partitions.tolist():
        digest = (digest * 31 + p) % 2**64
    assert digest == -8505084777717946584 % 2**64  # the same loop over kafka-clients 4.4.0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20), max_size=20), st.integers(1, 50))
@example([0, -1, 9, 10, 2**63 - 1, -(2**63)], 7)
@example([], 3)
def test_columns_equal_the_oracle(values: list[int | str], n: int) -> None:
    texts = [str(v).encode() for v in values]
    expected = [(murmur2_oracle(t) & 0x7FFFFFFF) % n for t in texts]
    assert partitions_of(Ids.of(values), n).tolist() == expected
    assert partitions_of(Ids(mixed=values), n).tolist() == expected
    assert [partition_of_key(t, n) for t in texts] == expected
    assert crc32_partitions_of(Ids.of(values), n).tolist() == [zlib.crc32(t) % n for t in texts]


def test_no_partitions_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 partition"):
        partitions_of(Ids.of([1]), 0)


# --- placement ---


def feed(placement: KeyPlacement, ids: Ids, partitions: np.ndarray, n: int, rows: int = 50) -> list[str]:
    """Shows the placement every partition's ids in blocks of ``rows``, as consumed; returns the warnings."""
    warnings = []
    for p in range(n):
        mine = ids.take(partitions == p)
        for begin in range(0, len(mine), rows):
            block = mine.take(np.arange(begin, min(begin + rows, len(mine))))
            warnings.append(placement.observe(p, block, n))
    return [w for w in warnings if w is not None]


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("n", [2, 4, 16])
@pytest.mark.parametrize("of", [partitions_of, crc32_partitions_of])
def test_one_partitioner_is_quiet(of: object, n: int, text: bool) -> None:
    ids = Ids.of([f"card-{i}" for i in range(3000)]) if text else Ids(ints=np.arange(3000))
    placement = KeyPlacement("transactions")
    assert feed(placement, ids, of(ids, n), n) == []  # type: ignore[operator]
    assert feed(placement, ids, of(ids, n), n) == []  # type: ignore[operator]
    assert placement.keys_moved == 0 and placement.neither == 0
    assert min(placement.murmur2_only, placement.crc32_only) == 0
    assert placement.murmur2_only + placement.crc32_only > 1000


@pytest.mark.parametrize("text", [False, True])
def test_librdkafka_default_beside_java_is_seen_without_a_shared_key(text: bool) -> None:
    ids = Ids.of([f"card-{i}" for i in range(400)]) if text else Ids(ints=np.arange(400))
    placed = np.where(np.arange(400) < 390, partitions_of(ids, 4), crc32_partitions_of(ids, 4))
    placement = KeyPlacement("transactions")
    (warning,) = feed(placement, ids, placed, 4)
    assert "partitioner=murmur2_random" in warning and warning.startswith("transactions: ")
    assert placement.keys_moved == 0
    telling = np.flatnonzero(partitions_of(ids, 4) != crc32_partitions_of(ids, 4))
    assert placement.crc32_only == np.count_nonzero(telling >= 390) > 0
    assert placement.murmur2_only == np.count_nonzero(telling < 390)


def test_one_key_in_two_partitions_is_counted_once_and_named() -> None:
    placement = KeyPlacement("transactions")
    assert placement.observe(0, Ids.of([5, 6, 5]), 4) is None
    warning = placement.observe(3, Ids.of(["7", "5", 5]), 4)  # the text "5" is the same key as the integer
    assert warning is not None and "key '5' came in partition 3" in warning
    assert placement.observe(3, Ids.of([5, 6]), 4) is None  # warned already
    assert placement.keys_moved == 2  # 5 and 6
    assert placement.observe(1, Ids.of([5]), 4) is None and placement.keys_moved == 2


@pytest.mark.parametrize("n", [2, 3, 4, 16])
def test_keys_of_another_form_prove_nothing(n: int) -> None:
    rng = np.random.default_rng(n)
    ids = Ids(ints=np.arange(5000))
    placement = KeyPlacement("transactions")
    assert feed(placement, ids, rng.integers(0, n, 5000), n) == []
    assert min(placement.murmur2_only, placement.crc32_only, placement.neither) > 0


def test_a_topic_of_one_partition_and_an_empty_block_are_skipped() -> None:
    placement = KeyPlacement("transactions")
    assert placement.observe(0, Ids.of([1, 2]), 1) is None
    assert placement.observe(0, Ids.of([]), 4) is None
    assert placement.murmur2_only == placement.neither == 0


def test_memory_is_bounded_and_evidence_goes_on_beyond() -> None:
    placement = KeyPlacement("transactions", keys_max=2000)
    ids = Ids(ints=np.arange(20_000))
    assert feed(placement, ids, partitions_of(ids, 4), 4, rows=5000) == []
    assert placement._count == 2000 and placement._table.nbytes <= 4096 * 32
    assert placement.murmur2_only > 10_000
    late = Ids(ints=np.arange(50_000, 50_100))
    assert len(feed(placement, late, crc32_partitions_of(late, 4), 4)) == 1
    assert placement._count == 2000


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 30), max_size=10)), max_size=12))
def test_moved_keys_equal_a_dict(blocks: list[tuple[int, list[int]]]) -> None:
    placement = KeyPlacement("t")
    first: dict[int, int] = {}
    moved = set()
    for partition, keys in blocks:
        placement.observe(partition, Ids(ints=np.array(keys, dtype=np.int64)), 4)
        moved |= {k for k in keys if first.setdefault(k, partition) != partition}
    assert placement.keys_moved == len(moved)
