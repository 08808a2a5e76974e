"""The live stream: the history's own continuation, as bytes, with the imperfections asked for and no others."""

import hashlib
import itertools
from collections import Counter
from typing import Any

import numpy as np
import orjson
import pytest

from streams.errors import ConfigError
from streams.simulator import DAY_MS, World, midnight
from streams.simulator_stream import MALFORMED, Chunk, Imperfections, StreamRecord, Tag, stream

START_MS = midnight(1_750_000_000_000)
FIRST_DAY = 25
FAULTS = Imperfections(malformed=0.02, duplicates=0.03, late=0.05)


def world() -> World:
    return World(11, start_ms=START_MS, cards=800, terminals=1600)


def days_of(count: int, **options: Any) -> list[Chunk]:
    """The stream's first ``count`` days, at one day per second unless told otherwise."""
    if "rate" not in options:
        options.setdefault("speed_up", 86_400.0)
    end = world().time_of(FIRST_DAY + count)
    return list(itertools.takewhile(lambda c: c.send_time < end, stream(world(), FIRST_DAY, **options)))


def records_of(chunks: list[Chunk]) -> list[StreamRecord]:
    return [r for c in chunks for r in c.records]


@pytest.fixture(scope="module")
def faulty() -> list[StreamRecord]:
    return records_of(days_of(6, imperfections=FAULTS))


def test_goes_on_exactly_where_the_history_ends() -> None:
    records = records_of(days_of(4))
    transactions, labels = world().history(FIRST_DAY + 4)
    seam, end = START_MS + FIRST_DAY * DAY_MS, START_MS + (FIRST_DAY + 4) * DAY_MS
    sent = [orjson.loads(r.value) for r in records if r.tag == Tag.TRANSACTION]
    expected = transactions["event_time"] >= seam
    for name in transactions:
        got = np.array([row[name] for row in sent])
        assert np.array_equal(got, transactions[name][expected][: len(got)])
    assert expected.sum() - len(sent) < 50  # the chunk that runs over the end is left out
    got_labels = {(r["transaction_id"], r["label_time"], r["is_fraud"]) for r in _values(records, Tag.LABEL)}
    due = (labels["label_time"] >= seam) & (labels["label_time"] < end)
    all_due = set(zip(*(labels[n][due].tolist() for n in labels), strict=True))
    assert got_labels <= all_due and len(all_due) - len(got_labels) < 50
    assert len(got_labels) == sum(r.tag == Tag.LABEL for r in records)


def _values(records: list[StreamRecord], *tags: Tag) -> list[dict[str, Any]]:
    return [orjson.loads(r.value) for r in records if r.tag in tags]


def test_records_are_the_contracts(faulty: list[StreamRecord]) -> None:
    for record in faulty:
        if record.tag in MALFORMED:
            continue
        value = orjson.loads(record.value)
        if record.tag == Tag.LABEL:
            assert record.topic == "transaction-labels" and record.key == str(value["transaction_id"]).encode()
            assert list(value) == ["transaction_id", "label_time", "is_fraud"] and value["is_fraud"] in (0, 1)
        else:
            assert record.topic == "transactions" and record.key == str(value["card_id"]).encode()
            assert list(value) == ["transaction_id", "event_time", "card_id", "terminal_id", "amount"]
            assert type(value["amount"]) is float and value["amount"] > 0


def test_in_time_order_with_a_label_before_the_transaction_of_its_instant() -> None:
    records = records_of(days_of(3))
    times = [
        (value.get("label_time") or value["event_time"], record.tag)
        for record, value in ((r, orjson.loads(r.value)) for r in records)
    ]
    assert times == sorted(times)


@pytest.mark.parametrize("pace", [{"rate": 700.0}, {"speed_up": 50_000.0}])
def test_chunk_size_shows_nowhere_but_in_the_chunks(pace: dict[str, float]) -> None:
    small = records_of(days_of(3, chunk_s=0.011, imperfections=FAULTS, **pace))
    large = records_of(days_of(3, chunk_s=1.0, imperfections=FAULTS, **pace))
    shared = min(len(small), len(large))
    assert shared > 3000 and small[:shared] == large[:shared]


def test_the_same_seed_gives_the_same_bytes(faulty: list[StreamRecord]) -> None:
    digest = hashlib.sha256()
    for record in faulty[:20_000]:
        digest.update(record.key + record.value + record.tag.name.encode())
    # Moves only when the world or the stream is changed on purpose: say so in CHANGELOG.md.
    assert digest.hexdigest() == "868cb35ef5abaedf4621e1c2708519f985a20b7b9b61cd00f5eb56085144955c"


def test_imperfections_are_as_many_as_asked_and_what_they_say(faulty: list[StreamRecord]) -> None:
    tags = Counter(r.tag for r in faulty)
    good = tags[Tag.TRANSACTION] + tags[Tag.LATE]
    assert sum(tags[t] for t in MALFORMED) / good == pytest.approx(0.02, rel=0.2)
    assert all(tags[t] > 0.003 * good for t in MALFORMED)
    assert tags[Tag.DUPLICATE] / good == pytest.approx(0.03, rel=0.2)
    assert tags[Tag.LATE] / good == pytest.approx(0.05, rel=0.2)
    for record in faulty:
        if record.tag == Tag.NOT_JSON:
            with pytest.raises(orjson.JSONDecodeError):
                orjson.loads(record.value)
    assert all("terminal_id" not in v and len(v) == 4 for v in _values(faulty, Tag.MISSING_FIELD))
    assert all(v["amount"] < 0 for v in _values(faulty, Tag.NEGATIVE_AMOUNT))


def test_duplicates_repeat_bytes_sent_before_and_nothing_is_missing(faulty: list[StreamRecord]) -> None:
    seen: set[StreamRecord] = set()
    for record in faulty:
        if record.tag == Tag.DUPLICATE:
            assert record._replace(tag=Tag.TRANSACTION) in seen
        elif record.tag in (Tag.TRANSACTION, Tag.LATE):
            assert record not in seen
            seen.add(record)
    ids = sorted(v["transaction_id"] for v in _values(faulty, Tag.TRANSACTION, Tag.LATE))
    # Only those still held back at the end may be missing.
    missing = set(range(ids[0], ids[-1] + 1)) - set(ids)
    assert ids[0] == world().first_id(FIRST_DAY) and all(i > ids[-1] - 500 for i in missing)


def test_late_events_come_after_younger_ones_by_at_most_what_is_asked(faulty: list[StreamRecord]) -> None:
    newest, overtaken, late = 0, 0, 0
    for record in faulty:
        if record.tag not in (Tag.TRANSACTION, Tag.LATE):
            continue
        event_time = orjson.loads(record.value)["event_time"]
        if record.tag == Tag.LATE:
            late += 1
            overtaken += event_time < newest
            assert newest - event_time <= FAULTS.late_ms_max
        else:
            assert event_time >= newest
        newest = max(newest, event_time)
    assert overtaken > 0.8 * late


def test_clean_by_default() -> None:
    assert {r.tag for r in records_of(days_of(1))} == {Tag.LABEL, Tag.TRANSACTION}


def test_rate_is_kept_evenly() -> None:
    chunks = list(itertools.islice(stream(world(), FIRST_DAY, rate=400, chunk_s=0.05, imperfections=FAULTS), 200))
    counts = [c.count(*(set(Tag) - {Tag.LABEL})) for c in chunks]
    assert set(counts) <= {19, 20, 21} and sum(counts) == pytest.approx(200 * 20, abs=1)
    assert [round(c.due_s, 6) for c in chunks] == [round(0.05 * i, 6) for i in range(200)]


def test_speed_up_follows_the_worlds_own_time() -> None:
    seam = START_MS + FIRST_DAY * DAY_MS
    for chunk in days_of(2, speed_up=7200.0, chunk_s=0.25):
        assert 0 <= (chunk.send_time - seam) / 7_200_000 - chunk.due_s < 0.25


def test_compressed_labels_come_soon_for_what_is_streamed() -> None:
    records = records_of(days_of(3, label_delay_ms=2 * 3_600_000))
    first = world().first_id(FIRST_DAY)
    sent = {v["transaction_id"]: v["event_time"] for v in _values(records, Tag.TRANSACTION)}
    delays = [
        v["label_time"] - sent[v["transaction_id"]] for v in _values(records, Tag.LABEL) if v["transaction_id"] >= first
    ]
    assert len(delays) > 0.9 * len(sent) and max(delays) <= 6 * 3_600_000
    assert any(v["transaction_id"] < first for v in _values(records, Tag.LABEL))


def test_batches_hold_each_record_once_labels_first() -> None:
    chunk = days_of(1, chunk_s=0.5, imperfections=FAULTS)[0]
    batches = chunk.batches()
    assert [b.topic for b in batches] == ["transaction-labels", "transactions"]
    pairs = [(k, v) for b in batches for k, v in zip(b.keys or [], b.values, strict=True)]
    assert sorted(pairs) == sorted((r.key, r.value) for r in chunk.records)
    assert len(batches[0]) == chunk.count(Tag.LABEL)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "exactly one"),
        ({"rate": 1.0, "speed_up": 1.0}, "exactly one"),
        ({"rate": 0.0}, r"rate=0\.0"),
        ({"rate": 1.0, "chunk_s": -1.0}, r"chunk_s=-1\.0"),
        ({"speed_up": 1.0, "label_delay_ms": 0}, "label_delay_ms=0"),
    ],
)
def test_impossible_paces_are_refused_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        stream(world(), 0, **options)


def test_impossible_imperfections_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 1"):
        Imperfections(malformed=0.6, late=0.6)
    with pytest.raises(ConfigError, match="late_ms_max"):
        Imperfections(late_ms_max=0)
    with pytest.raises(ConfigError, match="first_day=-1"):
        stream(world(), -1, rate=1.0)
