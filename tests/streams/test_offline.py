"""Offline features: the live tasks' to the last bit, the real data's answer, and honest reading of files."""

from __future__ import annotations

import logging
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_fraud import SETTINGS, Event, LiveFraud, lines

from features.block import Block
from features.fraud import DEFAULT
from features.schema import INTERACTIONS, TRANSACTION_LABELS, TRANSACTIONS, EventSchema, Field
from streams import offline
from streams.codec import Dead, Decoder
from streams.encode import ScoreEncoder
from streams.errors import ConfigError
from streams.files import read_values
from streams.log import TP, RecordBatch
from streams.offline import (
    OfflineFeatures,
    block_of,
    feature_matrix,
    fraud_rows,
    read_events,
    read_interactions,
    read_labels,
    read_rows,
)
from streams.quality import QualityCounters
from streams.simulator import DAY_MS, World

START = 1_700_000_000_000 - 1_700_000_000_000 % DAY_MS


# --- worlds: transactions in the order in which they are sent, and labels by time ---

GAPS_MS = st.sampled_from([0, 0, 1, 1000, 3_600_000, 3_600_001, DAY_MS, 7 * DAY_MS])


@st.composite
def worlds(draw: st.DrawFn, *, by_time: bool) -> tuple[list[Event], list[Event]]:
    n = draw(st.integers(1, 40))
    text_ids = draw(st.booleans())
    time, events = START, []
    for i in range(n):
        time += draw(GAPS_MS)
        events.append(
            {
                "transaction_id": f"t-{i}" if text_ids else i,
                "event_time": time,
                "card_id": draw(st.integers(0, 3)),
                "terminal_id": draw(st.sampled_from([0, 1, "a"] if text_ids else [0, 1])),
                "amount": draw(st.integers(0, 10_000)) / 100,
            }
        )
    times = [e["event_time"] for e in events]
    # many labels are due at the very time of a row
    labels = [
        {
            "transaction_id": e["transaction_id"],
            # now and then before the transaction itself
            "label_time": draw(st.sampled_from(times[max(0, i - 1) :])) + draw(st.sampled_from([0, 0, 0, -1, 1])),
            "is_fraud": draw(st.sampled_from([0, 1, 1])),
        }
        for i, e in enumerate(events)
        if draw(st.booleans())
    ]
    # repeated ones, and ids used again for a transaction of its own after more than a day
    for i in draw(st.lists(st.integers(0, n - 1), max_size=4)):
        events.append(
            {**events[i], "event_time": events[i]["event_time"] + draw(st.sampled_from([0, DAY_MS, DAY_MS + 1]))}
        )
    if by_time:
        block = block_of(TRANSACTIONS, {name: [e[name] for e in events] for name in TRANSACTIONS.names})
        events = [events[i] for i in offline.time_order(block, "event_time")]
    else:
        events = draw(st.permutations(events))
    labels.sort(key=lambda e: e["label_time"])
    return events, labels


def from_files(events: list[Event], labels: list[Event]) -> tuple[Block, Block]:
    """Written as JSONL and read again."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "events.jsonl", Path(folder) / "labels.jsonl"
        for path, rows in zip(paths, (events, labels), strict=True):
            path.write_bytes(b"\n".join([*lines(rows), b""]))
        return read_events(paths[0]), read_labels(paths[1])


def as_scores(events: Block, made: OfflineFeatures) -> list[bytes]:
    return ScoreEncoder(DEFAULT.names).encode(events.take(made.row), features=made.matrix, late=made.late)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(world=worlds(by_time=False), chunk=st.integers(1, 9), data=st.data())
def test_offline_by_arrival_is_what_the_live_tasks_send(
    world: tuple[list[Event], list[Event]], chunk: int, data: st.DataObject
) -> None:
    sent, labels = world
    live = LiveFraud("arrival")
    newest, waiting, run = 0, labels, []
    for event in sent:
        newest = max(newest, int(str(event["event_time"])))
        due = [label for label in waiting if int(str(label["label_time"])) <= newest]
        if due or data.draw(st.booleans()):
            live.send("transactions", lines(run))
            live.send("transaction-labels", lines(due))
            run = []
        waiting = waiting[len(due) :]
        run.append(event)
    live.send("transactions", lines(run))
    events, said = from_files(sent, labels)
    with mock.patch.object(offline, "_CHUNK_ROWS", chunk):
        made = feature_matrix(events, said, SETTINGS, "arrival")
    assert as_scores(events, made) == live.scores
    assert made.duplicates == live.pipeline.figures()["duplicates"] == len(sent) - len(live.scores)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(world=worlds(by_time=True), chunk=st.integers(1, 9), data=st.data())
def test_offline_by_event_time_is_what_the_live_tasks_send(
    world: tuple[list[Event], list[Event]], chunk: int, data: st.DataObject
) -> None:
    sent, labels = world
    live = LiveFraud("event_time")
    at = {"transactions": 0, "transaction-labels": 0}
    rows = {"transactions": sent, "transaction-labels": labels}
    for topic in data.draw(st.lists(st.sampled_from(["transactions", "transaction-labels"]), max_size=12)):
        end = at[topic] + data.draw(st.integers(0, 9))
        live.send(topic, lines(rows[topic][at[topic] : end]))
        at[topic] = min(end, len(rows[topic]))
    for topic, start in at.items():
        live.send(topic, lines(rows[topic][start:]))
    if not labels:  # a source that never sent anything is waited for
        late = {"transaction_id": "of another time", "label_time": START - DAY_MS, "is_fraud": 0}
        live.send("transaction-labels", lines([late]))
    live.finish()
    shuffled = data.draw(st.permutations(range(len(sent)))), data.draw(st.permutations(range(len(labels))))
    events, said = from_files([sent[i] for i in shuffled[0]], [labels[i] for i in shuffled[1]])
    with mock.patch.object(offline, "_CHUNK_ROWS", chunk):
        made = feature_matrix(events, said, SETTINGS)
    assert as_scores(events, made) == live.scores


def test_a_simulated_month_is_what_the_live_tasks_send() -> None:
    world = World(3, start_ms=START, cards=60, terminals=100, label_delay_ms=2 * DAY_MS)
    transactions, labels = world.history(30)
    events, said = block_of(TRANSACTIONS, transactions), block_of(TRANSACTION_LABELS, labels)
    live = LiveFraud("event_time")
    for topic, columns in (("transactions", transactions), ("transaction-labels", labels)):
        names = list(columns)
        rows = zip(*(columns[name].tolist() for name in names), strict=True)
        values = lines([dict(zip(names, row, strict=True)) for row in rows])
        for start in range(0, len(values), 500):
            live.send(topic, values[start : start + 500])
    live.finish()
    made = feature_matrix(events, said, SETTINGS)
    assert as_scores(events, made) == live.scores
    np.testing.assert_array_equal(feature_matrix(events, said, SETTINGS, "arrival").matrix, made.matrix)
    risk = made.matrix[:, DEFAULT.names.index("terminal_risk_30d")]
    assert risk.max() > 0


def test_rows_of_the_input_are_named_and_progress_told() -> None:
    events = {"transaction_id": [3, 1, 3], "event_time": [START + 5, START, START + 5], "amount": [2.0, 1.0, 2.0]}
    events |= {"card_id": [1, 1, 1], "terminal_id": [1, 1, 1]}
    steps: list[int] = []
    block = block_of(TRANSACTIONS, events)
    made = feature_matrix(block, None, SETTINGS, progress=steps.append)
    assert made.row.tolist() == [1, 0] and made.duplicates == 1 and steps == [3]
    assert made.in_input_order().row.tolist() == [0, 1]
    count = DEFAULT.names.index("card_count_1d")
    assert made.in_input_order().matrix[:, count].tolist() == [2, 1]
    assert len(feature_matrix(block.take(np.empty(0, np.int64)), None, SETTINGS).matrix) == 0


def test_frauds_are_those_that_a_positive_label_names() -> None:
    ids = [7, 8, "x", "8"]
    events = block_of(
        TRANSACTIONS,
        {"transaction_id": ids, "event_time": [START] * 4, "card_id": ids, "terminal_id": ids, "amount": [1.0] * 4},
    )
    labels = block_of(
        TRANSACTION_LABELS,
        {
            "transaction_id": ["x", 8, 7, 99, 7],
            "label_time": [START + 1, START + 2, START, START, START + 9],
            "is_fraud": [1, 1, 0, 1, 1],
        },
    )
    assert fraud_rows(events, labels).tolist() == [True, True, True, True]
    assert fraud_rows(events, labels, START + 2).tolist() == [False, True, True, True]
    assert fraud_rows(events, labels, START + 1).tolist() == [False, False, True, False]


# --- files ---


def decoded(path: Path, schema: EventSchema) -> tuple[Block, list[Dead], QualityCounters]:
    """What the live codec makes of the records that `headrace produce` sends, and what it counts."""
    values = [value for part in read_values(path) for value in part]
    n = len(values)
    batch = RecordBatch(TP(schema.topic, 0), list(range(n)), [-1] * n, [None] * n, list(values), lambda i: [], n)
    decoder = Decoder(schema)
    return *decoder.decode(batch), decoder.quality


def assert_same(block: Block, other: Block, *, extra: bool = True) -> None:
    assert block.offsets.tolist() == other.offsets.tolist()
    assert {k: v.to_list() for k, v in block.ids.items()} == {k: v.to_list() for k, v in other.ids.items()}
    assert set(block.columns) == set(other.columns)
    for name, column in block.columns.items():
        np.testing.assert_array_equal(column, other.columns[name], err_msg=name)
        assert column.dtype == other.columns[name].dtype
    if extra:
        assert [orjson.loads(e or b"{}") for e in block.extra or [None] * len(block)] == [
            orjson.loads(e or b"{}") for e in other.extra or [None] * len(other)
        ]


ODD_IDS = st.sampled_from(
    [
        pa.array([5, None, -3], pa.int64()),
        pa.array([5, 2**64 - 1, 2**63], pa.uint64()),
        pa.array(["5", "", "é" * 128 + "x"]),
        pa.array(["a", None, "é" * 128], pa.large_string()),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array(["a", None, "b"], pa.string_view()),
        pa.array([1.0, 2.0, None]),
        pa.array([True, False, None]),
        pa.array([1, 2, 3], pa.int8()),
        pa.nulls(3),
    ]
)
ODD_TIMES = st.sampled_from(
    [
        pa.array([START, START + 1, None]),
        pa.array([START, 0, 2**62]),
        pa.array([START, START, START], pa.timestamp("ms")),
        pa.array([START, 2**64 - 1, START], pa.uint64()),
        pa.array([float(START)] * 3),
        pa.array([START, START + 7, START + 5]),
    ]
)
ODD_NUMBERS = st.sampled_from(
    [
        pa.array([1.5, float("nan"), None]),
        pa.array([float("inf"), -0.01, 1e13]),
        pa.array([1, 0, 2], pa.int32()),
        pa.array([0.1, 2.5, 3.0], pa.float32()),
        pa.array([0.1, 2.5, 3.0], pa.float64()),
        pa.array(["1", "2", None]),
        pa.array([True, False, True]),
        pa.array([Decimal("1.50"), Decimal("-2.25"), None]),
    ]
)
ODD_FLAGS = st.sampled_from(
    [
        pa.array([0, 1, 2], pa.int8()),
        pa.array([True, False, True]),
        pa.array([0, None, 1]),
        pa.array([1.0, 0.0, None]),
        pa.array([1, 0, 1]),
    ]
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(columns=st.fixed_dictionaries(
    {"transaction_id": ODD_IDS, "event_time": ODD_TIMES, "card_id": ODD_IDS, "terminal_id": ODD_IDS,
     "amount": ODD_NUMBERS},
    optional={"note": ODD_IDS},
))  # fmt: skip
def test_parquet_transactions_are_those_of_the_live_codec(columns: dict[str, pa.Array]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        pq.write_table(pa.table(columns), path)
        expected, reasons, counted = decoded(path, TRANSACTIONS)
        rejected: list[Dead] = []
        found = QualityCounters()
        assert_same(read_events(path, rejected, keep_extra=True, quality=found), expected)
        assert rejected == reasons and found.to_dict() == counted.to_dict()
        assert_same(read_events(path, []), expected, extra=False)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(columns=st.fixed_dictionaries(
    {"transaction_id": ODD_IDS, "label_time": ODD_TIMES, "is_fraud": ODD_FLAGS}, optional={"terminal_id": ODD_IDS}
))  # fmt: skip
def test_parquet_labels_are_those_of_the_live_codec(columns: dict[str, pa.Array]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.parquet"
        pq.write_table(pa.table(columns), path)
        expected, reasons, counted = decoded(path, TRANSACTION_LABELS)
        rejected: list[Dead] = []
        found = QualityCounters()
        block = read_labels(path, rejected, quality=found)
        assert rejected == reasons and found.to_dict() == counted.to_dict()
        # what an absent id is filled with depends on the column's kind and says nothing
        absent = ~block.columns["terminal_id_present"]
        for side in (block, expected):
            side.ids["terminal_id"] = side.ids["terminal_id"].take(~absent)
        assert_same(block, expected)


VISITS = EventSchema(
    topic="visits",
    key="visitor_id",
    time="time",
    fields=(
        Field("visitor_id", "id"),
        Field("time", "time_ms"),
        Field("country_id", "id", trim=True, categories=("NL", 5)),
        Field("shop_id", "id", required=False, categories=("a", "5")),
        Field("spent", "number", required=False, minimum=1.0, maximum=10.0, clip=True),
        Field("age", "number", required=False, maximum=150.0),
    ),
)
SPENT = st.sampled_from([pa.array([0.5, None, 11.0]), pa.array([2, 3, None]), pa.nulls(3), pa.array(["2", None, "3"])])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    columns=st.fixed_dictionaries(
        {"visitor_id": ODD_IDS, "country_id": st.one_of(ODD_IDS, st.just(pa.array([" NL", "5", "BE "])))},
        optional={"shop_id": ODD_IDS, "spent": SPENT, "age": st.one_of(SPENT, ODD_NUMBERS)},
    )
)
def test_parquet_of_fields_that_are_mended_is_that_of_the_live_codec(columns: dict[str, pa.Array]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "visits.parquet"
        pq.write_table(pa.table({**columns, "time": [START] * 3}), path)
        expected, reasons, counted = decoded(path, VISITS)
        rejected: list[Dead] = []
        found = QualityCounters()
        block = read_rows(path, VISITS, rejected, quality=found)
        assert rejected == reasons and found.to_dict() == counted.to_dict()
        absent = ~block.columns["shop_id_present"]
        for side in (block, expected):
            side.ids["shop_id"] = side.ids["shop_id"].take(~absent)
        assert_same(block, expected)


def test_quality_of_a_parquet_file_by_hand(tmp_path: Path) -> None:
    columns = {
        "visitor_id": pa.array([1, 2, 3, None]), "time": [START] * 4, "country_id": [" NL", "5", "BE", "NL"],
        "shop_id": pa.array(["a", None, "b", "a"]), "spent": pa.array([0.5, None, 2.0, 3.0]),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "visits.parquet")
    found = QualityCounters()
    block = read_rows(tmp_path / "visits.parquet", VISITS, [], quality=found)
    assert found.to_dict() == {
        "age": {"missing": 4},
        "country_id": {"trimmed": 1, "unseen_category": 1},
        "shop_id": {"missing": 1, "unseen_category": 1},
        "spent": {"clipped": 1, "missing": 1},
        "visitor_id": {"missing": 1},
    }
    assert block.ids["country_id"].to_list() == ["NL", "5", "BE"]
    np.testing.assert_array_equal(block.columns["spent"], [1.0, np.nan, 2.0])
    np.testing.assert_array_equal(block.columns["age"], [np.nan] * 3)


def test_actions_that_are_numbers_are_no_codes(tmp_path: Path) -> None:
    columns = {"event_id": [1, 2], "event_time": [START] * 2, "user_id": [1, 1], "item_id": [5, 6], "action": [0, 99]}
    pq.write_table(pa.table(columns), tmp_path / "i.parquet")
    expected, reasons, _ = decoded(tmp_path / "i.parquet", INTERACTIONS)
    rejected: list[Dead] = []
    assert len(read_interactions(tmp_path / "i.parquet", rejected)) == len(expected) == 0
    assert rejected == reasons and "action 0: a number, not a string" in rejected[0].reason


def test_jsonl_keeps_row_numbers_and_times_and_says_what_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"transaction_id": 1, "event_time": START + 10 * 365 * DAY_MS, "card_id": 2, "terminal_id": "x", "amount": 3}
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join([b"not json", orjson.dumps(good), b"", orjson.dumps({**good, "amount": -1})]) + b"\n")
    with caplog.at_level(logging.WARNING):
        block = read_events(path)
    assert block.offsets.tolist() == [1]
    assert block.timestamps.tolist() == [good["event_time"]]
    assert "2 of 3 rows are invalid" in caplog.text and "row 0: value not json" in caplog.text
    rejected: list[Dead] = []
    read_events(path, rejected)
    assert [d.index for d in rejected] == [0, 2] and "amount -1: below the minimum 0" in rejected[1].reason
    found = QualityCounters()
    read_events(path, rejected, quality=found)
    assert found.to_dict() == {"": {"unreadable": 1}, "amount": {"out_of_range": 1}}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_file_without_rows(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"labels.{ending}"
    if ending == "jsonl":
        path.write_bytes(b"")
    else:
        names = ("transaction_id", "label_time", "is_fraud")
        pq.write_table(pa.table({name: pa.array([], pa.int64()) for name in names}), path)
    block = read_labels(path)
    assert len(block) == 0 and set(block.ids) == {"transaction_id", "terminal_id"}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.parquet: not there"):
        read_events(tmp_path / "nothing.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and so on")
    with pytest.raises(ConfigError, match="not readable as Parquet"):
        read_events(tmp_path / "broken.parquet")
    pq.write_table(pa.table({"transaction_id": [1], "when": [2]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match=r"no column label_time, is_fraud \(it has transaction_id, when\)"):
        read_labels(tmp_path / "other.parquet")


def test_values_that_json_has_no_form_for_are_rejected(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"transaction_id": [1], "event_time": [START], "card_id": [1], "terminal_id": [1]}
    pq.write_table(pa.table({**columns, "amount": pa.array([15], pa.duration("s"))}), tmp_path / "events.parquet")
    rejected: list[Dead] = []
    assert len(read_events(tmp_path / "events.parquet", rejected)) == 0
    assert "amount '0:00:15': a string, not a number" in rejected[0].reason


def test_decimals_are_the_numbers_that_produce_sends(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"transaction_id": [1], "event_time": [START], "card_id": [1], "terminal_id": [1]}
    pq.write_table(pa.table({**columns, "amount": [Decimal("1.50")]}), tmp_path / "events.parquet")
    rejected: list[Dead] = []
    assert read_events(tmp_path / "events.parquet", rejected).columns["amount"].tolist() == [1.5] and not rejected


def test_every_row_of_the_real_data_equals_the_expected_answer(data_dir: Path) -> None:
    events = read_events(data_dir / "fraud_transactions.parquet")
    labels = read_labels(data_dir / "fraud_labels.parquet")
    expected = pq.read_table(data_dir / "fraud_expected.parquet")
    made = feature_matrix(events, labels, SETTINGS).in_input_order()
    assert made.duplicates == 0 and not made.late.any() and len(made.row) == expected.num_rows == 1_303_778
    np.testing.assert_array_equal(events.ids["transaction_id"].ints, expected["transaction_id"].to_numpy())
    for j, name in enumerate(DEFAULT.names):
        answer = expected[name].to_numpy()
        if "mean" in name:
            np.testing.assert_allclose(made.matrix[:, j], answer, rtol=0, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(made.matrix[:, j], answer, err_msg=name)
