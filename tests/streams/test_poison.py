"""A record that a defect of ours makes impossible is found and dead-lettered; the others go their way."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from fed_fraud import Fed, N, events

from features.block import Block
from features.plan import BoundError
from streams.dead_letter_retry import refusal
from streams.dead_letters import Letter
from streams.encode import ScoreEncoder
from streams.errors import FatalError
from streams.log import TP, RecordBatch
from streams.poison import Guard
from streams.topics import DEAD_LETTERS, FRAUD_SCORES, TRANSACTIONS

POISON = (17, 18, 41)


class PoisonedEncoder(ScoreEncoder):
    def encode(self, block: Block, **columns: Any) -> list[bytes]:
        if {int(i) for i in block.ids["transaction_id"].to_list()} & set(POISON):
            raise ValueError("cannot do this one")
        return super().encode(block, **columns)


def run(cut: int, where: str, values: list[bytes], sent_ms: list[int]) -> Fed:
    fed = Fed("arrival")
    decode = fed.pipeline.transactions.decode
    marks = {values[i] for i in POISON}

    def poisoned(batch: RecordBatch) -> Any:
        if marks & set(batch.values):
            raise ValueError("cannot do this one")
        return decode(batch)

    if where == "decode":
        fed.pipeline.transactions.decode = poisoned  # type: ignore[method-assign]
    elif where == "score":
        fed.pipeline.encoder = PoisonedEncoder(fed.pipeline.settings.features.names)
    for start in range(0, N, cut):
        fed.take(TRANSACTIONS, values[start : start + cut], sent_ms[start : start + cut])
    return fed


def dead(fed: Fed) -> list[tuple[Any, ...]]:
    letters = [(out, i) for out in fed.sent.get(DEAD_LETTERS, []) for i in range(len(out))]
    return [(out.values[i], out.keys and out.keys[i], dict(out.headers_of(i))) for out, i in letters]


@pytest.mark.parametrize("where", ["decode", "score"])
def test_only_the_poisoned_records_are_dead(where: str) -> None:
    values, sent_ms = events()
    whole = run(N, "nowhere", values, sent_ms)
    if where == "decode":
        # the windows never see them
        others = [value if i not in POISON else b"{}" for i, value in enumerate(values)]
        whole = run(N, "nowhere", others, sent_ms)
    expected = [score for score in whole.of(FRAUD_SCORES) if score["transaction_id"] not in POISON]
    letters = []
    for cut in (1, 2, 7, N):
        fed = run(cut, where, values, sent_ms)
        assert fed.of(FRAUD_SCORES) == expected, cut
        figures = fed.pipeline.figures()
        assert (figures["received"], figures["scored"], figures["dead_letters"]) == (N, N - 3, 3)
        letters.append(dead(fed))
        assert all(found == letters[0] for found in letters)
    for i, (value, _, headers) in zip(POISON, letters[0], strict=True):
        assert orjson.loads(value) == orjson.loads(values[i])
        assert headers["source"] == b"transactions/0/%d" % i
        assert headers["stage"] == (b"card" if where == "decode" else b"score")
        assert headers["error"].startswith(b"defect: ValueError: cannot do this one")
        letter = Letter(TP(TRANSACTIONS, 0), i, headers["stage"].decode(), "", 0, None, value, [])
        assert (refusal(letter) is None) is (where == "decode"), "what is in the windows is not sent again"


def test_a_replay_finds_the_same() -> None:
    """What the state is after a restart does not depend on how the log was cut then."""
    values, sent_ms = events()
    few, whole = (run(cut, "decode", values, sent_ms).tasks[TRANSACTIONS].state() for cut in (3, N))
    assert few.keys() == whole.keys() and len(few) > 5
    assert all((few[name] == whole[name]).all() for name in few)


def test_where_nothing_can_be_done_the_worker_ends() -> None:
    guard = Guard()

    def broken(start: int, stop: int) -> int:
        raise ValueError("a broken model")

    with pytest.raises(ValueError, match="broken model"):
        guard.run("score", broken, 100)
    of_one = Guard()
    for _ in range(4):
        assert of_one.run("score", broken, 1)[0] == []
    assert of_one.run("score", lambda start, stop: stop, 1) == ([1], {})
    for _ in range(4):
        of_one.run("score", broken, 1)
    with pytest.raises(ValueError, match="broken model"):
        of_one.run("score", broken, 1)


@pytest.mark.parametrize("error", [FatalError("named", "why"), BoundError("full", 0), MemoryError()])
def test_what_ends_a_worker_is_not_poison(error: Exception) -> None:
    asked = []

    def work(start: int, stop: int) -> int:
        asked.append((start, stop))
        raise error

    with pytest.raises(type(error)):
        Guard().run("score", work, 8)
    assert asked == [(0, 8)]
