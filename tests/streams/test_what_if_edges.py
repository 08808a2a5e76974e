"""`headrace replay` and its parts at their edges: clocks that are ahead, options that say nothing, lost log starts."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest
from fraud_logs import DAY, NOW, label

from features.block import Ids
from features.schema import TIME_MS_MAX
from monitoring.labels import JoinSettings
from streams.cli.main import main
from streams.cli.replay import _when
from streams.cli.times import time_ms
from streams.errors import ConfigError
from streams.log import TP, Log, OutBatch, connect
from streams.replay import ReplayError
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS, topic_infos
from streams.what_if import Scored, Span, _History
from streams.what_if_cost import CostMatrix
from streams.what_if_served import known_labels, read_served


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


def new_log() -> tuple[str, Log]:
    url = f"memory://{uuid.uuid4().hex}"
    log = connect(url)
    log.admin().create_topics(topic_infos((TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES), 1))
    return url, log


def serve(log: Log, times: list[int], score: float | None = 0.5) -> None:
    producer = log.producer()
    for at, time_of in enumerate(times):
        record = {"transaction_id": at, "card_id": 1, "terminal_id": 1, "event_time": time_of, "amount": 2.0}
        record |= {"score": score, "model": "m@1", "features": None}
        source = [[("source", b"transactions/0/%d" % at)]]
        producer.send(OutBatch(FRAUD_SCORES, [orjson.dumps(record)], None, 0, source))


def test_what_is_left_of_a_log_is_judged_by_its_first_row() -> None:
    tp = TP(BY_TERMINAL, 0)
    history = _History(BY_TERMINAL, 100, {tp})
    history.check(tp, np.array([90, 200]))
    assert not history.lost, "a row behind the begin in the same batch says nothing"
    history.lost.add(tp)
    with pytest.raises(ReplayError, match="its first records are gone"):
        history.check(tp, np.array([101, 90]))


def test_a_label_of_a_clock_that_is_ahead_makes_no_row_old() -> None:
    _, log = new_log()
    now = int(time.time() * 1000)
    times = np.array([now - 20 * DAY, now - 2 * DAY])
    ids = {name: Ids(ints=np.arange(2)) for name in ("transaction_id", "card_id", "terminal_id")}
    scored = Scored(np.arange(2), times, np.ones(2), np.ones(2), ids, (), np.empty((2, 0)), ())
    ahead = label(9, now + 3_650 * DAY)
    log.producer().send(OutBatch(LABELS, [ahead.value], [ahead.key]))
    known = known_labels(log, scored, JoinSettings(negatives="horizon"), 7 * DAY)
    assert known.matured.tolist() == [False, False], "horizon 28 days"
    assert known.labels.tolist() == [-1, -1]


def test_of_the_newest_rows_none_is_too_old_however_they_come() -> None:
    _, log = new_log()
    days = [0, 3, 9, 1, 12, 11, 30, 21, 28, 20, 29]
    serve(log, [NOW + day * DAY for day in days])
    found = read_served(log, Span(0, 1 << 62), recent_ms=9 * DAY)
    assert ((found.times - NOW) // DAY).tolist() == [30, 21, 28, 29]
    assert len(read_served(log, Span(0, 1 << 62))) == len(days)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threshold", "nan"], "--threshold nan: no score"),
        (["--threshold", "1.5"], "--threshold 1.5: no score"),
        (["--threshold", "0.5", "--served-threshold", "nan"], "--served-threshold nan: no score"),
        (["--threshold", "0.5", "--from", "9999999999999999", "--to", "99999999999999999"], "not after --from"),
        (["--threshold", "0.5", "--from", "٢٠٢٦٠٥٠١٠٠"], "not a time"),
        (["--threshold", "0.5"], "has both scores"),
    ],
)
def test_options_that_say_nothing_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    url, log = new_log()
    serve(log, [NOW], None)
    assert main(["replay", "--bootstrap", url, *words]) == 2
    assert said in capsys.readouterr().err


def test_times_beyond_all_years_are_the_last_one_and_the_first() -> None:
    for text in ("9" * 5_000, "9" * 17, "253402300800000", "9999-12-31T23:59:59.999-12:00"):
        assert time_ms("--from", text, 0) == TIME_MS_MAX
    assert time_ms("--from", "0" * 5_000 + "7", 0) == 7
    assert time_ms("--from", "1700000000000", 0) == NOW
    assert _when(TIME_MS_MAX).startswith("9999-12-31")
    assert _when(time_ms("--from", "0001-01-01T00:00+14:00", 0)).endswith("-01-01T00:00")
    with pytest.raises(ConfigError, match="not a time"):
        time_ms("--from", "²" * 9, 0)


def test_a_cost_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"fp": 10**400}))
    with pytest.raises(ConfigError, match=r"fp 10{39} is not a cost"):
        CostMatrix.parse(str(tmp_path / "c.json"))
