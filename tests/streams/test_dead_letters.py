"""Dead letters on the in-process log: read back, listed, shown, and retried once, whatever breaks off in between."""

from __future__ import annotations

import io
import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest
from dead_letter_logs import Crash, Crashing, Overtaken, Raw, Stubborn, batch_of, put, records_of, retries_of, set_aside
from fraud_logs import NOW, transaction

from streams.cli.main import main
from streams.codec import Dead
from streams.dead_letter_retry import MARKS, Mended, Retrier, read_marks
from streams.dead_letters import Filters, error_kind, read_letters
from streams.errors import HeadraceError
from streams.log import TP, Log, connect
from streams.partitioner import partition_of_key
from streams.stage import dead_letters
from streams.topics import BY_TERMINAL, DEAD_LETTERS, TRANSACTIONS, topic_infos

PARTITIONS = 4
#: by partition: unreadable records, among readable ones
BAD: dict[int, list[Raw]] = {
    0: [
        (b"1", b"not json", []),
        (b"2", transaction(1, card=2, amount=-5.0).value, [("trace", b"a"), ("trace", b"b")]),
        (b"3", b"\xff\x00\x01", [("error", b"the sender's own"), ("source", b"\xfe")]),
    ],
    3: [(None, None, []), (b"4", b'{"transaction_id": 7}', [])],
}
GOOD: Raw = (b"1", transaction(99, card=1).value, [])


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    made = connect(f"memory://{uuid.uuid4().hex}")
    made.admin().create_topics(topic_infos((TRANSACTIONS, DEAD_LETTERS), PARTITIONS))
    for partition, records in BAD.items():
        put(made, TP(TRANSACTIONS, partition), [GOOD, *records])
    assert set_aside(made, TRANSACTIONS) == 5
    return made


def sources() -> dict[str, Raw]:
    return {f"transactions/{p}/{i}": raw for p, records in BAD.items() for i, raw in enumerate(records, 1)}


def command(log: Log, *words: object) -> int:
    return main(["dead-letters", *map(str, words), "--bootstrap", log.url])


def figures(log: Log, capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert command(log, *words, "--json") == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return made


# --- reading ---


def test_letters_are_the_original_records(log: Log) -> None:
    letters = {letter.name: letter for letter in read_letters(log)}
    assert {name: (one.key, one.value, one.headers) for name, one in letters.items()} == sources()
    assert {one.stage for one in letters.values()} == {"card"}
    assert letters["transactions/0/1"].error.startswith("value not json: not JSON")
    assert letters["transactions/3/2"].source == TP(TRANSACTIONS, 3)


def test_what_is_delivered_twice_is_one_letter_and_what_is_none_is_left(log: Log) -> None:
    set_aside(log, TRANSACTIONS)
    put(
        log, TP(DEAD_LETTERS, 0), [(b"k", b"v", []), (b"k", b"v", [("error", b"e"), ("stage", b"s"), ("source", b"?")])]
    )
    assert len(records_of(log, DEAD_LETTERS)) == 12
    assert len(list(read_letters(log))) == 5


def test_the_same_source_with_another_content_is_another_letter(log: Log) -> None:
    # the topic was made again
    admin = log.admin()
    admin.delete_topics([TRANSACTIONS])
    admin.create_topics(topic_infos((TRANSACTIONS,), PARTITIONS))
    put(log, TP(TRANSACTIONS, 0), [GOOD, (b"9", b"other", [])])
    set_aside(log, TRANSACTIONS)
    assert [letter.value for letter in read_letters(log) if letter.name == "transactions/0/1"] == [
        b"not json",
        b"other",
    ]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (Filters(), 5),
        (Filters(topic="transactions", stage="card"), 5),
        (Filters(topic="transaction-labels"), 0),
        (Filters(stage="labels"), 0),
        (Filters(error="NOT json"), 2),
    ],
)
def test_filters(log: Log, filters: Filters, found: int) -> None:
    assert sum(filters.match(letter) for letter in read_letters(log)) == found


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        (
            [
                "value not json: not JSON (unexpected character: line 1 column 1 (char 0)); send an object",
                "value {(: x; y: not JSON (unexpected end of data: line 3 column 7 (char 9)); send an object",
            ],
            "value: not JSON",
        ),
        (["amount -5.0: below the minimum 0; send x", "amount -7.5: below the minimum 0; send x"], None),
        (["card_id: missing or null; send an integer"], "card_id: missing or null"),
        (["value of 12000000 bytes: above the maximum 10485760; send smaller records"], "value: above the maximum N"),
        (["something else"], "something else"),
        (["", ")"], None),
    ],
)
def test_kinds_leave_out_what_differs(errors: list[str], kind: str | None) -> None:
    kinds = {error_kind(error) for error in errors}
    if errors[0] == "":
        assert kinds == {"", ")"}
    else:
        assert kinds == {kind or "amount: below the minimum N"}


def test_letters_that_come_while_one_reads_are_not_read(log: Log) -> None:
    put(log, TP(TRANSACTIONS, 1), [(b"8", b"later", [])])
    letters = read_letters(log)
    found = [next(letters)]
    set_aside(log, TRANSACTIONS)
    assert b"later" not in [letter.value for letter in [*found, *letters]]
    assert b"later" in [letter.value for letter in read_letters(log)]


# --- list and show ---


def test_list_shows_one_line_each_newest_first(
    log: Log, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = time.time_ns() + 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    put(log, TP(TRANSACTIONS, 1), [(b"8", b"x" * 1000, [])])
    set_aside(log, TRANSACTIONS)
    capsys.readouterr()
    assert command(log, "list") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 6 and err == ""
    # one without key is set aside anew in whatever partition, so that its second copy may be found first
    [newest] = [line for line in out.splitlines()[:2] if "transactions/3/1" not in line]
    assert newest.startswith("transactions/1/0") and ("x" * 48 + "...") in newest
    assert command(log, "list", "--oldest", "--limit", "2") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and "transactions/1/0" not in out
    assert "the oldest 2 of 6; --limit shows more" in err
    assert command(log, "list", "--error", "no such error") == 0
    assert capsys.readouterr().out == "no dead letters match\n"


def test_list_as_json(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    made = figures(log, capsys, "list", "--error", "minimum")
    [letter] = made["letters"]
    assert made["matching"] == 1
    assert letter.pop("timestamp") > NOW
    assert letter.pop("error").startswith("amount -5.0: below the minimum 0")
    value = sources()["transactions/0/2"][1] or b""
    assert letter == {
        "source": "transactions/0/2",
        "stage": "card",
        "state": "open",
        "retry_of": None,
        "value_bytes": len(value),
        "value_head": value[:48].decode() + "...",
    }


def test_the_summary_counts_kinds(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(log, "retry", "transactions/0/1") == 0
    made = figures(log, capsys, "list", "--summary")
    assert (made["matching"], made["open"]) == (5, 4)
    [first, *_] = made["kinds"]
    assert (first["error"], first["count"], first["open"], first["topic"]) == ("value: not JSON", 2, 1, TRANSACTIONS)
    assert figures(log, capsys, "list", "--summary", "--open")["matching"] == 4
    capsys.readouterr()
    assert command(log, "list", "--summary") == 0
    assert "5 dead letters, 4 of them not retried" in capsys.readouterr().out


def test_show_is_the_letter_whole(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(log, "show", "transactions/0/3") == 0
    out = capsys.readouterr().out
    assert "error:" in out and "value:    3 bytes" in out
    assert "00000000  ff 00 01 " in out and "..." in out
    assert "header error: the sender's own" in out
    made = figures(log, capsys, "show", "transactions/0/2")
    assert (made["key"], made["value"], made["headers"]) == (
        "2",
        orjson.loads(BAD[0][1][1] or b""),
        {"trace": "b"},
    )
    assert figures(log, capsys, "show", "transactions/0/3")["value_base64"] == "/wAB"
    assert command(log, "show", "transactions/3/1") == 0
    assert "value:    (null)" in capsys.readouterr().out


def test_a_letter_cannot_drive_the_terminal(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    put(log, TP(TRANSACTIONS, 2), [(b"\x1b[1m", "\x1b[2J\x07é".encode(), [("\x1b]0;h", b"\x1b")])])
    set_aside(log, TRANSACTIONS)
    capsys.readouterr()
    for words in (
        ["list"],
        ["list", "--summary"],
        ["show", "transactions/2/0"],
        ["show", "transactions/2/0", "--json"],
    ):
        assert command(log, *words) == 0
        out = capsys.readouterr().out
        assert out.replace("\n", "").isprintable() and "transactions" in out


# --- retry ---


def test_a_retry_is_the_original_record_once_more_and_once_only(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    before = records_of(log, TRANSACTIONS)
    assert figures(log, capsys, "retry", "transactions/0/2") == {
        "sent": 1,
        "already": 0,
        "already_other": 0,
        "failed_again": 0,
        "internal": 0,
    }
    key, value, headers = BAD[0][1]
    retried = (0, (key, value, [*headers, ("retry_of", b"transactions/0/2")]))
    after = records_of(log, TRANSACTIONS)
    assert retried in after and len(after) == len(before) + 1
    assert figures(log, capsys, "retry", "transactions/0/2")["already"] == 1
    assert command(log, "retry", "transactions/0/2") == 0
    assert capsys.readouterr().out == "transactions/0/2: retried before; not sent again\n"
    assert records_of(log, TRANSACTIONS) == after


def test_all_are_retried_once_and_those_that_fail_again_are_left(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures(log, capsys, "retry", "--all", "--error", "not json")["sent"] == 2
    assert figures(log, capsys, "retry", "--all") == {
        "sent": 3,
        "already": 2,
        "already_other": 0,
        "failed_again": 0,
        "internal": 0,
    }
    assert retries_of(log, TRANSACTIONS) == {name: [raw] for name, raw in sources().items()}
    # each in the partition that it came from, wherever its key would go now
    for partition, (_, _, headers) in records_of(log, TRANSACTIONS):
        source = dict(headers).get("retry_of", b"")
        assert not source or source.startswith(b"transactions/%d/" % partition)
    assert {partition_of_key(key, PARTITIONS) for key, _, _ in BAD[0] if key} != {0}
    # the worker reads them, and what was not mended is a dead letter again
    assert set_aside(log, TRANSACTIONS) == 10
    again = [letter for letter in read_letters(log) if letter.retry_of]
    assert {letter.retry_of for letter in again} == set(sources())
    made = figures(log, capsys, "retry", "--all")
    assert (made["sent"], made["already"], made["failed_again"]) == (0, 5, 5)
    made = figures(log, capsys, "retry", "--all", "--again")
    assert (made["sent"], made["already"], made["failed_again"]) == (5, 5, 0)
    # of the last retry only
    assert set(retries_of(log, TRANSACTIONS)) == set(sources()) | {letter.name for letter in again}
    assert all(len(raws) == 1 for raws in retries_of(log, TRANSACTIONS).values())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_crash_at_any_step_sends_none_twice_and_none_never(log: Log, at: int, after: bool) -> None:
    letters = list(read_letters(log))[:2]
    others = list(read_letters(log))[2:]
    crashing = Crashing(log, at, after=after)
    crashed = False
    try:
        with Retrier(crashing) as retrier:
            retrier.retry(letters)
            retrier.retry(others)
    except Crash:
        crashed = True
    assert crashed
    done = set(retries_of(log, TRANSACTIONS))
    assert done in (set(), {letter.name for letter in letters}, set(sources()))
    assert {key.split()[0] for key in read_marks(log)} == done
    with Retrier(log) as retrier:
        outcomes = retrier.retry([*letters, *others])
    assert outcomes.count("already") == len(done)
    assert retries_of(log, TRANSACTIONS) == {name: [raw] for name, raw in sources().items()}


def test_the_steps_that_a_crash_is_tried_at_are_all(log: Log) -> None:
    letters = list(read_letters(log))
    counting = Crashing(log, 0, after=False)
    with Retrier(counting) as retrier:
        retrier.retry(letters[:2])
    # init, begin, two records, the marks, commit; the test above goes into the second transaction
    assert counting.steps == 6


def test_of_two_at_once_the_first_ends_and_none_is_sent_twice(log: Log) -> None:
    letters = list(read_letters(log))
    with Retrier(log) as first:
        first.retry(letters[:1])
        with Retrier(log) as second:
            assert second.retry(letters[:3]) == ["already", "sent", "sent"]
            with pytest.raises(HeadraceError, match="another retry has begun"):
                first.retry(letters)
            second.retry(letters)
    assert retries_of(log, TRANSACTIONS) == {name: [raw] for name, raw in sources().items()}


def test_what_another_has_sent_until_one_begins_is_known(log: Log) -> None:
    letters = list(read_letters(log))

    def other() -> None:
        with Retrier(log) as quicker:
            assert quicker.retry(letters[:2]) == ["sent", "sent"]

    with Retrier(Overtaken(log, other)) as retrier:
        assert retrier.retry(letters[:3]) == ["already", "already", "sent"]
    assert all(len(raws) == 1 for raws in retries_of(log, TRANSACTIONS).values())


def test_a_commit_that_takes_longer_is_waited_for(log: Log) -> None:
    stubborn = Stubborn(log, 3, after=False)
    with Retrier(stubborn) as retrier:
        assert retrier.retry(list(read_letters(log))[:1]) == ["sent"]
    assert stubborn.steps == 3
    assert len(retries_of(log, TRANSACTIONS)) == 1


def test_rows_between_stages_cannot_be_retried(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    batch = batch_of(TP(BY_TERMINAL, 2), [(b"k", b"torn", [])])
    log.producer().send(dead_letters(batch, [Dead(0, "not a message")], "terminal"))
    assert command(log, "retry", f"{BY_TERMINAL}/2/0") == 2
    assert "rows between two stages" in capsys.readouterr().err
    made = figures(log, capsys, "retry", "--all", "--stage", "terminal")
    assert (made["sent"], made["internal"]) == (0, 1)
    assert command(log, "show", f"{BY_TERMINAL}/2/0") == 0
    assert "not possible" in capsys.readouterr().out


# --- mended ---


def test_a_mended_value_goes_to_its_key_s_partition(
    log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mended.json"
    mended = transaction(1, card=2).value or b""
    file.write_bytes(mended + b"\n")
    assert command(log, "retry", "transactions/0/2", "--value", file) == 0
    # the same key: the partition it came from, wherever the sender's partitioner puts it
    assert (0, (b"2", mended, [*BAD[0][1][2], ("retry_of", b"transactions/0/2")])) in records_of(log, TRANSACTIONS)
    capsys.readouterr()
    assert command(log, "retry", "transactions/0/2", "--value", file) == 0
    assert "retried before; not sent again" in capsys.readouterr().out

    other = transaction(5, card="another").value or b""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(other)))
    assert command(log, "retry", "transactions/0/1", "--value", "-") == 0
    place = partition_of_key(b"another", PARTITIONS)
    assert (place, (b"another", other, [("retry_of", b"transactions/0/1")])) in records_of(log, TRANSACTIONS)


def test_a_letter_that_was_retried_is_not_sent_with_other_bytes(
    log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(log, "retry", "transactions/0/2") == 0
    file = tmp_path / "mended.json"
    file.write_bytes(transaction(1, card=2).value or b"")
    capsys.readouterr()
    assert command(log, "retry", "transactions/0/2", "--value", file) == 1
    assert "with other bytes than these; not sent again" in capsys.readouterr().out
    assert len(retries_of(log, TRANSACTIONS)["transactions/0/2"]) == 1


def test_a_value_that_is_not_mended_is_not_sent(log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mended.json"
    file.write_bytes(transaction(1, card=2, amount=-1.0).value or b"")
    assert command(log, "retry", "transactions/0/2", "--value", file) == 1
    assert "would be a dead letter again: amount -1.0: below the minimum 0" in capsys.readouterr().err
    assert not retries_of(log, TRANSACTIONS)


def test_several_are_mended_by_lines_of_an_envelope(
    log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    envelopes = tmp_path / "letters.jsonl"
    words = ["consume", "--topic", DEAD_LETTERS, "--envelope", "--idle", "0.1", "--to", str(envelopes)]
    assert main([*words, "--bootstrap", log.url]) == 0
    lines = [json.loads(line) for line in envelopes.read_text().splitlines()]
    edited = [line for line in lines if line["headers"]["source"] == "transactions/0/2"]
    edited[0]["value"]["amount"] = 5
    text = (transaction(3, card=1).value or b"").decode()
    edited.append({"source": "transactions/0/1", "value": text})
    envelopes.write_text("".join(json.dumps(line) + "\n" for line in edited))
    assert figures(log, capsys, "retry", "--edit", envelopes)["sent"] == 2
    found = retries_of(log, TRANSACTIONS)
    assert found["transactions/0/1"] == [(b"1", text.encode(), [])]
    assert json.loads(found["transactions/0/2"][0][1] or b"")["amount"] == 5


def test_a_topic_without_schema_takes_any_bytes(log: Log) -> None:
    log.admin().create_topics(topic_infos(("interactions",), 1))
    batch = batch_of(TP("interactions", 0), [(b"k", b"torn", [])])
    log.producer().send(dead_letters(batch, [Dead(0, "torn")], "user"))
    [letter] = [one for one in read_letters(log) if one.source.topic == "interactions"]
    with Retrier(log) as retrier:
        assert retrier.retry([letter], {letter.name: Mended(b"whole")}) == ["sent"]
    assert retries_of(log, "interactions") == {"interactions/0/0": [(b"k", b"whole", [])]}


# --- wrong use ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["retry"], "nothing to retry: give one of SOURCE..., --all, --edit"),
        (["retry", "transactions/0/1", "--all"], "SOURCE and --all: give one of"),
        (["retry", "--all", "--value", "x"], "--value: is for one SOURCE"),
        (["retry", "transactions/0/1", "--stage", "card"], "narrow or widen --all"),
        (["retry", "transactions/0/1", "--value", "/no/such"], "--value /no/such: No such file"),
        (["retry", "--edit", "/no/such"], "--edit /no/such: No such file"),
        (["retry", "--edit", "EMPTY"], "no lines in it"),
        (["retry", "--edit", "WRONG"], "line 2: not a mended letter"),
        (["retry", "transactions/0/77"], "SOURCE transactions/0/77: no dead letter has it"),
        (["show", "nonsense"], "SOURCE nonsense: no dead letter has it"),
        (["list", "--limit", "0"], "--limit 0: below 1"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(
    log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (tmp_path / "EMPTY").touch()
    (tmp_path / "WRONG").write_text('{"source": "transactions/0/1", "value": 1}\n{"value": 1}\n')
    files = {name: str(tmp_path / name) for name in ("EMPTY", "WRONG")}
    assert command(log, *[files.get(word, word) for word in words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("headrace dead-letters: ") and said in line
    assert not retries_of(log, TRANSACTIONS)


def test_no_dead_letters_topic(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(connect(f"memory://{uuid.uuid4().hex}"), "list") == 2
    assert "topic dead-letters: not there; create the topics" in capsys.readouterr().err


def test_the_marks_are_compacted(log: Log) -> None:
    with Retrier(log) as retrier:
        retrier.retry(list(read_letters(log)))
    assert log.admin().topics([MARKS])[MARKS].partitions == 1
    assert len(records_of(log, MARKS)) == len(read_marks(log)) == 5
