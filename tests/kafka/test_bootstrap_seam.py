"""A group that begins at a seam on a real Kafka: half of the stream in files, half in topics, exact features."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from cluster import DAY, START, Sent, Tail, Worker, fresh_topics, headrace, send, stream

from streams.broker import Broker
from streams.topics import LABELS, TRANSACTIONS

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

PARTITIONS = 2
N = 6_000
STREAM = stream(N)


def files(folder: Path, records: Sequence[Sent]) -> list[str]:
    """The records as the files of the command."""
    words: list[str] = []
    for option, topic in (("--from", TRANSACTIONS), ("--labels", LABELS)):
        path = folder / f"{topic}.jsonl"
        path.write_bytes(b"".join(value + b"\n" for t, _, value in records if t == topic))
        words += [option, str(path)]
    return words


def test_half_from_files_and_half_from_topics(kafka: Broker, tmp_path: Path) -> None:
    log = fresh_topics(kafka.bootstrap, PARTITIONS)
    half = len(STREAM.records) // 2
    before, behind = STREAM.records[:half], STREAM.records[half:]
    # the end of the history is in the topics too: the seam is behind it
    send(log, before[-500:])
    kept = str(tmp_path / "kept")
    words = ["bootstrap", "--bootstrap", kafka.bootstrap, "--checkpoints", kept, "--order", "event_time", "--json"]
    words += files(tmp_path, before)
    done = headrace(*words, "--group", "seam")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["rows"] + figures["labels"] == half and figures["oldest_behind_seam_ms"] is None
    seams = {t: sum(p["seam"] for p in figures["partitions"] if p["topic"] == t) for t in (TRANSACTIONS, LABELS)}
    assert sum(seams.values()) == 500 and START < figures["newest_event_ms"] < START + 60 * DAY

    send(log, behind)
    count = sum(topic == TRANSACTIONS for topic, _, _ in behind)
    options = ("--order", "event_time", "--checkpoints", kept)
    with Worker(kafka.bootstrap, tmp_path, "seam", *options) as worker, Tail(log) as tail:
        worker.wait_ready()
        assert worker.log.count("loaded in") == 3 * PARTITIONS, worker.log
        tail.read(count)
        assert worker.stop()["replayed"] == 0
    expected = STREAM.features()
    got = tail.features()
    assert len(got) == count and got == {i: expected[i] for i in got}
    check = ("verify", "--bootstrap", kafka.bootstrap, "--group", "seam", "--order", "event_time", "--json")
    verified = headrace(*check, "--checkpoints", kept)
    assert verified.returncode == 0, verified.stdout
    found = json.loads(verified.stdout.splitlines()[-1])
    assert found["mismatching_rows"] == 0 and found["stages"]["terminal"]["rows"] == count
    assert headrace(*check, "--checkpoints", "none").returncode == 1, "without its history"

    again = headrace(*words, "--group", "seam")
    assert again.returncode == 1 and "group seam has committed offsets already" in again.stderr
    with Worker(kafka.bootstrap, tmp_path, "busy", "--checkpoints", "none") as worker:
        worker.wait_ready()
        busy = headrace(*words, "--group", "busy")
        assert busy.returncode == 1 and "group busy has" in busy.stderr, busy.stderr
        worker.kill()
