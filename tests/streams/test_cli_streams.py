"""topics, produce, consume and run on the in-process log: what they print, write and return."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fraud_logs import NOW, transaction
from workers import until

from streams.broker import free_port
from streams.cli.broker_wait import addresses, await_broker
from streams.cli.main import main
from streams.config import Settings
from streams.log import OutBatch, connect
from streams.memory import MemoryLog, MemoryProducer
from streams.topics import FRAUD_SCORES, TRANSACTIONS, all_topics


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    level = root.level
    yield f"memory://{uuid.uuid4().hex}"
    root.setLevel(level)


def events(folder: Path, n: int = 3) -> Path:
    path = folder / "events.jsonl"
    path.write_bytes(b"".join((transaction(i, NOW, card=f"c-{i}").value or b"") + b"\n" for i in range(n)))
    return path


def test_topics_creates_what_is_missing_and_lists_what_is_there(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topics", "create", "--partitions", "3", "--bootstrap", url, "--json"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])["topics"]
    assert made == dict.fromkeys(sorted(t.name for t in all_topics()), 3)
    assert main(["topics", "create", "--partitions", "5", "--bootstrap", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["topics"] == made
    assert main(["topics", "list", "--bootstrap", url]) == 0
    assert "transactions                 3 partitions" in capsys.readouterr().out
    assert main(["topics", "create", "--partitions", "0", "--bootstrap", url]) == 2


def test_produce_sends_keys_that_the_topic_wants(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["topics", "create", "--bootstrap", url])
    words = ["produce", "--topic", TRANSACTIONS, "--from", str(events(tmp_path)), "--bootstrap", url]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["sent"] == 3 and set(figures) == {"sent", "seconds", "events_per_s"}
    assert main([*words, "--key", "terminal_id", "--rate", "1000"]) == 0
    out = tmp_path / "out.jsonl"
    read = ["consume", "--topic", TRANSACTIONS, "--to", str(out), "--count", "6", "--bootstrap", url]
    assert main([*read, "--envelope"]) == 0
    keys = sorted(json.loads(line)["key"] for line in out.read_text().splitlines())
    assert keys == ["1", "1", "1", "c-0", "c-1", "c-2"]


def test_produce_refuses_a_key_that_the_records_do_not_have(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["topics", "create", "--bootstrap", url])
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b'{"shop": 1, "amount": 2}\n\nnot json\n[1]\n{"shop": null}\n{"amount": 3, "card": 4}\n')
    words = ["produce", "--topic", TRANSACTIONS, "--from", str(path), "--bootstrap", url, "--key"]
    capsys.readouterr()
    assert main([*words, "shop"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"headrace produce: --key shop: {path}, line 6 has no such field; it has amount, card. Nothing was sent"
    )
    log = MemoryLog.named(url.removeprefix("memory://"))
    assert not any(p.rows for p in log.partitions(TRANSACTIONS))
    # what is no object has no fields to be named: it is sent, and ends in the dead letters
    path.write_bytes(b'{"shop": 1, "amount": 2}\n\nnot json\n[1]\n{"shop": null}\n')
    assert main([*words, "shop"]) == 0
    assert sum(len(p.rows) for p in log.partitions(TRANSACTIONS)) == 4


def test_produce_says_what_was_sent_before_a_record_without_the_key(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["topics", "create", "--bootstrap", url])
    table = pa.table({"shop": [1] * 8192 + [2]})
    pq.write_table(table, tmp_path / "shops.parquet")
    words = ["produce", "--topic", TRANSACTIONS, "--bootstrap", url]
    capsys.readouterr()
    assert main([*words, "--from", str(tmp_path / "shops.parquet"), "--key", "card"]) == 2
    assert "row 1 has no such field; it has shop. Nothing was sent" in capsys.readouterr().err
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"card": 1}\n' * 200_000 + b"{}\n")
    assert main([*words, "--from", str(path), "--key", "card"]) == 2
    err = capsys.readouterr().err
    log = MemoryLog.named(url.removeprefix("memory://"))
    sent = sum(len(p.rows) for p in log.partitions(TRANSACTIONS))
    assert 0 < sent < 200_000
    assert f"line 200001 has no such field; it has none. The {sent:,} records before were sent" in err


def test_consume_says_that_a_topic_is_empty_and_how_long_it_waits(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["topics", "create", "--bootstrap", url])
    words = ["consume", "--topic", FRAUD_SCORES, "--to", str(tmp_path / "o.jsonl"), "--bootstrap", url]
    capsys.readouterr()
    assert main([*words, "--idle", "0.2"]) == 0
    out = capsys.readouterr()
    assert out.err == "fraud-scores is empty: waiting 0.2 s (--idle)\n"
    assert out.out == f"0 records of fraud-scores in {tmp_path / 'o.jsonl'}\n"
    connect(url).producer().send(OutBatch(FRAUD_SCORES, [b"1"], None, 0))
    assert main([*words, "--idle", "0.2"]) == 0
    assert capsys.readouterr().err == ""


def test_an_envelope_is_one_line_whatever_its_value(url: str, tmp_path: Path) -> None:
    main(["topics", "create", "--bootstrap", url])
    connect(url).producer().send(OutBatch(FRAUD_SCORES, [b'{\n "a":\r\n 1}'], None, 0))
    out = tmp_path / "o.jsonl"
    words = ["consume", "--topic", FRAUD_SCORES, "--bootstrap", url, "--idle", "0.1", "--envelope", "--to"]
    assert main([*words, str(out)]) == 0
    [line] = out.read_bytes().splitlines()
    assert orjson.loads(line)["value"] == {"a": 1}


@pytest.mark.parametrize(
    "words",
    [
        ["topics", "create"],
        ["produce", "--topic", TRANSACTIONS, "--from", "EVENTS"],
        ["consume", "--topic", TRANSACTIONS, "--to", "-"],
        ["verify"],
        ["dead-letters", "list"],
        ["dead-letters", "retry", "--all"],
    ],
)
def test_what_does_one_thing_does_not_wait_for_ever_for_a_broker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr("streams.cli.broker_wait._SAY_S", 0.1)
    monkeypatch.setattr("streams.cli.broker_wait._GIVE_UP_S", 0.6)
    where = f"127.0.0.1:{free_port()}"
    path = str(events(tmp_path))
    assert main([path if word == "EVENTS" else word for word in words] + ["--bootstrap", where]) == 1
    waiting, failed = capsys.readouterr().err.splitlines()
    assert waiting.startswith(f"waiting for a broker at {where} (Connection refused), for ")
    assert failed == (
        f"headrace {words[0]}: no broker at {where} for 1 s (Connection refused): start it (see `headrace broker`) "
        "or name another with --bootstrap"
    )


def test_a_broker_that_comes_late_is_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.cli.broker_wait._SAY_S", 0.0)
    port = free_port()
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        waiting = threading.Thread(target=await_broker, args=[Settings(bootstrap=f"127.0.0.1:1,127.0.0.1:{port}")])
        waiting.start()
        until(lambda: "waiting for a broker" in capsys.readouterr().err, "word of the wait")
        server.bind(("127.0.0.1", port))
        server.listen()
        waiting.join(10)
        assert not waiting.is_alive()


@pytest.mark.parametrize(
    ("bootstrap", "found"),
    [
        ("a:1,b:22", [("a", 1), ("b", 22)]),
        ("PLAINTEXT://a.b-c:9092", [("a.b-c", 9092)]),
        ("[::1]:9092", [("::1", 9092)]),
        ("a", []),
        ("a:1,b", []),
    ],
)
def test_addresses_of_a_bootstrap(bootstrap: str, found: list[tuple[str, int]]) -> None:
    assert addresses(bootstrap) == found


def test_parquet_goes_through_and_comes_out_as_lines(url: str, tmp_path: Path) -> None:
    main(["topics", "create", "--bootstrap", url])
    table = pa.table({"transaction_id": [1, 2], "label_time": [NOW, NOW], "is_fraud": [0, 1]})
    pq.write_table(table, tmp_path / "labels.parquet")
    words = ["--topic", "transaction-labels", "--bootstrap", url]
    assert main(["produce", *words, "--from", str(tmp_path / "labels.parquet")]) == 0
    out = tmp_path / "out.jsonl"
    assert main(["consume", *words, "--to", str(out), "--idle", "0.2"]) == 0
    got = sorted((json.loads(line) for line in out.read_text().splitlines()), key=lambda e: e["transaction_id"])
    assert got == table.to_pylist()


def test_consume_writes_what_is_not_json_too(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["topics", "create", "--bootstrap", url])
    values = [b'{"a":  1}', b"text", b"\xff\x00", None]
    headers = [[("source", b"transactions/1/2"), ("raw", b"\xff")], [], [], []]
    connect(url).producer().send(OutBatch(FRAUD_SCORES, values, [b"k", None, b"\xfe", b""], 2, headers))
    words = ["consume", "--topic", FRAUD_SCORES, "--bootstrap", url, "--idle", "0.1", "--to"]
    capsys.readouterr()
    out = tmp_path / "o.jsonl"
    assert main([*words, str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"records": 4}
    assert out.read_bytes() == b'{"a":  1}\ntext\n\xff\x00\nnull\n'
    assert main([*words, str(out), "--envelope"]) == 0
    first, text, binary, null = map(orjson.loads, out.read_bytes().splitlines())
    assert (first["topic"], first["partition"], first["offset"], first["key"]) == (FRAUD_SCORES, 2, 0, "k")
    assert first["headers"]["source"] == "transactions/1/2"
    assert first["timestamp"] > NOW
    assert first["value"] == {"a": 1}
    assert (text["value"], text["key"], text["headers"]) == ("text", None, {})
    assert (binary["value"], binary["value_base64"]) == (None, "/wA=")
    assert (null["value"], null["key"]) == (None, "")


def test_consume_stops_at_count_and_writes_to_stdout(url: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    main(["topics", "create", "--bootstrap", url])
    capfdbinary.readouterr()
    connect(url).producer().send(OutBatch(FRAUD_SCORES, [b"1", b"2", b"3"], None, 0))
    assert main(["consume", "--topic", FRAUD_SCORES, "--bootstrap", url, "--count", "2", "--to", "-"]) == 0
    assert capfdbinary.readouterr().out == b"1\n2\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["produce", "--topic", "transactions", "--from", "no.jsonl"], "no.jsonl: not there; check the path"),
        (["produce", "--topic", "nope", "--from", "EVENTS"], "--topic nope: not there; create the topics with"),
        (["produce", "--topic", "transactions", "--from", "EVENTS", "--rate", "0"], "--rate 0.0: not above 0"),
        (["consume", "--topic", "nope", "--to", "-"], "--topic nope: not there; create the topics with"),
        (["consume", "--topic", "transactions", "--to", "-", "--count", "-1"], "--count -1: below 0"),
        (["consume", "--topic", "transactions", "--to", "/no/such/folder/x", "--count", "0"], "--to /no/such/folder/x"),
        (["run", "--pipeline", "fraud", "--config", "no.toml"], "--config no.toml"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    main(["topics", "create", "--bootstrap", url])
    capsys.readouterr()
    path = str(events(tmp_path))
    assert main([path if word == "EVENTS" else word for word in words] + ["--bootstrap", url]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"headrace {words[0]}: ") and said in line


def test_produce_says_what_was_not_delivered(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["topics", "create", "--bootstrap", url])
    words = ["produce", "--topic", TRANSACTIONS, "--from", str(events(tmp_path)), "--bootstrap", url, "--json"]
    monkeypatch.setattr(MemoryProducer, "flush", lambda self, timeout_s: 1)
    capsys.readouterr()
    assert main(words) == 1
    out = capsys.readouterr()
    assert json.loads(out.out)["sent"] == 2
    assert "1 records were not acknowledged" in out.err


def test_run_scores_until_it_is_told_to_stop(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["topics", "create", "--partitions", "2", "--bootstrap", url])
    main(["produce", "--topic", TRANSACTIONS, "--from", str(events(tmp_path, 5)), "--bootstrap", url])
    capsys.readouterr()
    log = MemoryLog.named(url.removeprefix("memory://"))

    def stop_when_scored() -> None:
        try:
            until(lambda: sum(len(p.rows) for p in log.partitions(FRAUD_SCORES)) == 5, "five scores", 60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    watch = threading.Thread(target=stop_when_scored)
    watch.start()
    code = main(["run", "--pipeline", "fraud", "--json", "--bootstrap", url])
    watch.join()
    ready, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert (code, ready) == (0, "ready")
    assert (figures["received"], figures["scored"], figures["dead_letters"]) == (5, 5, 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to do with freed memory")
def test_what_a_block_needed_is_kept_for_the_next_one() -> None:
    code = """
    import resource
    from streams.cli.run import keep_freed_memory

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(50):
            several = [b"x" * 1_500_000 for _ in range(4)]
            del several
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    told, before = keep_freed_memory() if {told} else True, faults()
    assert told
    print(faults())
    """
    counts = []
    for told in (False, True):
        program = textwrap.dedent(code).format(told=told)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        counts.append(int(done.stdout))
    assert counts[1] < 0.1 * counts[0]
