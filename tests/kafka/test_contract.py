"""What comes in broken, what goes out, as other Kafka clients see it."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from cluster import START, Out, Tail, Worker, fresh_topics, headrace

from features.fraud import DEFAULT
from streams.broker import Broker
from streams.kafka import KafkaLog
from streams.log import OutBatch
from streams.partitioner import partition_of_key
from streams.topics import DEAD_LETTERS

pytestmark = pytest.mark.kafka

PARTITIONS = 3
FIELDS = [
    *("transaction_id", "event_time", "card_id", "terminal_id", "amount", "score", "raw", "model", "late", "reasons"),
    *("features", "extra"),
]
#: value and a word of the reason
BROKEN: dict[bytes, tuple[bytes | None, str]] = {
    b"large": (b"x" * 10_000_000, "bytes"),
    b"null": (None, "null"),
    b"text": (b"not JSON", "JSON"),
    b"not-utf-8": (b"\xff\xfe\x00", "JSON"),
    b"amount": (
        b'{"transaction_id": 1, "event_time": 1522540800000, "card_id": 1, "terminal_id": 1, "amount": -1}',
        "amount",
    ),
}
HEADERS = [("trace", b"\x00\xff"), ("trace", b"again")]


@dataclass
class Outcome:
    """What a worker made of all that was sent."""

    bootstrap: str
    scores: list[Out]
    dead: list[Out]
    figures: dict[str, Any]
    log: str
    sent: int


def event(number: int, card: int) -> bytes:
    fields = {"transaction_id": number, "event_time": START + number, "card_id": card, "terminal_id": number % 7}
    return orjson.dumps({**fields, "amount": 12.5, "shop": f"s{number}"})


def send_all(bootstrap: str) -> int:
    """Good events of 100 cards by murmur2, broken ones among them, then each card once more by a producer with
    librdkafka's own partitioner; how many good ones."""
    ours = KafkaLog(bootstrap, {}).producer()
    theirs = KafkaLog(bootstrap, {"producer.partitioner": "consistent_random"}).producer()
    keys = [str(card).encode() for card in range(100)]
    broken = [value for value, _ in BROKEN.values()]
    for batch in (
        OutBatch("transactions", [event(card, card) for card in range(100)], keys),
        OutBatch("transactions", broken, list(BROKEN), 1, [HEADERS] * len(broken)),
        OutBatch("transactions", [event(100 + card, card) for card in range(100)], keys),
        OutBatch("transaction-labels", [b"[]"], [b"label"], 0),
    ):
        assert ours.send(batch) == len(batch)
    assert ours.flush(30) == 0
    other = OutBatch("transactions", [event(200 + card, card) for card in range(100)], keys)
    assert theirs.send(other) == len(other)
    assert theirs.flush(30) == 0
    ours.close()
    theirs.close()
    return 300


@pytest.fixture(scope="module")
def outcome(kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    with (
        Worker(kafka.bootstrap, tmp_path_factory.mktemp("contract"), "contract") as worker,
        Tail(log) as scores,
        Tail(log, DEAD_LETTERS) as dead,
    ):
        worker.wait_ready()
        sent = send_all(kafka.bootstrap)
        scores.read(sent)
        dead.read(len(BROKEN) + 1)
        figures = worker.stop()
        return Outcome(kafka.bootstrap, scores.records, dead.records, figures, worker.log, sent)


def test_broken_records_are_dead_letters_as_they_came(outcome: Outcome) -> None:
    dead = {record.key: record for record in outcome.dead if record.key != b"label"}
    assert dead.keys() == BROKEN.keys()
    assert len(outcome.dead) == len(BROKEN) + 1
    for key, (value, word) in BROKEN.items():
        record = dead[key]
        assert record.value == value
        assert record.all_headers[: len(HEADERS)] == HEADERS
        added = dict(record.all_headers[len(HEADERS) :])
        assert added.keys() == {"error", "stage", "source"}
        assert word in added["error"].decode() and added["stage"] == b"card"
        topic, partition, offset = added["source"].decode().split("/")
        assert (topic, partition) == ("transactions", "1") and offset.isdigit()


def test_a_broken_label_is_a_dead_letter_of_its_stage(outcome: Outcome) -> None:
    [record] = [record for record in outcome.dead if record.key == b"label"]
    assert record.value == b"[]"
    assert record.headers["stage"] == b"labels"
    assert record.headers["source"] == b"transaction-labels/0/0"


def test_the_worker_lived_on_and_its_figures_add_up(outcome: Outcome) -> None:
    figures = outcome.figures
    assert figures["scored"] == outcome.sent
    assert figures["dead_letters"] == len(BROKEN)
    assert figures["received"] == figures["scored"] + figures["dead_letters"] + figures["duplicates"]


def test_one_card_in_two_partitions_is_counted_and_warned_of_once(outcome: Outcome) -> None:
    [warning] = [line for line in outcome.log.splitlines() if "partitioner=" in line]
    assert "WARNING" in warning and "murmur2_random" in warning and "transactions" in warning
    cards: dict[int, set[bytes]] = {}
    for record in outcome.scores:
        card = orjson.loads(record.value or b"")["card_id"]
        cards.setdefault(card, set()).add(record.headers["source"].split(b"/")[1])
    split = sum(len(partitions) > 1 for partitions in cards.values())
    assert outcome.figures["keys_in_two_partitions"] == split > 30


def test_score_records_are_as_the_contract_says(outcome: Outcome) -> None:
    assert len({record.headers["source"] for record in outcome.scores}) == len(outcome.scores) == outcome.sent
    for record in outcome.scores:
        assert record.value is not None and record.key is not None
        score = orjson.loads(record.value)
        assert list(score) == FIELDS
        assert list(score["features"]) == list(DEFAULT.names)
        assert record.key == str(score["transaction_id"]).encode()
        assert record.partition == partition_of_key(record.key, PARTITIONS)
        assert [name for name, _ in record.all_headers] == ["source"]
        assert score["extra"] == {"shop": f"s{score['transaction_id']}"}
        assert score["score"] is score["raw"] is score["model"] is None
        assert score["late"] is False and score["reasons"] == []


def test_the_envelope_of_consume(outcome: Outcome, tmp_path: Path) -> None:
    to = tmp_path / "scores.jsonl"
    where = ("--bootstrap", outcome.bootstrap)
    done = headrace(
        "consume",
        "--topic",
        "fraud-scores",
        "--to",
        str(to),
        "--count",
        str(outcome.sent),
        "--envelope",
        "--json",
        *where,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["records"] == outcome.sent
    lines = [orjson.loads(line) for line in to.read_bytes().splitlines()]
    read = {(line["partition"], line["offset"]): line for line in lines}
    assert len(read) == outcome.sent
    for record in outcome.scores:
        line = read[record.partition, record.offset]
        assert record.value is not None and record.key is not None
        assert line["value"] == orjson.loads(record.value)
        assert line["key"] == record.key.decode() and line["topic"] == "fraud-scores"
        assert line["headers"] == {"source": record.headers["source"].decode()}
        assert line["timestamp"] > START


def test_kcat_reads_the_scores(outcome: Outcome) -> None:
    kcat = shutil.which("kcat")
    if kcat is None:
        pytest.skip("kcat is not installed (Debian: apt-get install kcat)")
    command = [kcat, "-C", "-q", "-e", "-b", outcome.bootstrap, "-t", "fraud-scores", "-o", "beginning"]
    done = subprocess.run([*command, "-f", "%p %o %k %h %s\\n"], capture_output=True, timeout=60, check=True)
    seen = {tuple(line.split(b" ", 4)) for line in done.stdout.splitlines()}
    assert seen == {
        (b"%d" % r.partition, b"%d" % r.offset, r.key, b"source=" + r.headers["source"], r.value)
        for r in outcome.scores
    }
