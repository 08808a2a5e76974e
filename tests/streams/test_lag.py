"""How far behind a worker is: what counts, what is said, and when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import orjson
import pytest
from fed_fraud import Fed, events

from streams.assignment import Assignment
from streams.ends import LogEnds
from streams.lag import Lag, LagWatch
from streams.log import TP, LogUnavailable, RecordBatch
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS

NOW_MS = 1_600_000_000_000
A, B = TP("orders", 0), TP("orders", 1)


class Ends:
    """The part of a consumer that is asked; the answer comes one look later."""

    def __init__(self) -> None:
        self.at: dict[TP, int] = {}
        self.of: dict[TP, int] = {}
        self.asked = 0
        self.away = False

    def ends(self, partitions: Sequence[TP]) -> Callable[[], dict[TP, int] | None]:
        self.asked += 1
        if self.away:
            raise LogUnavailable("away")
        return lambda: {tp: self.of[tp] for tp in partitions}

    def position(self, tp: TP) -> int | None:
        return self.at.get(tp)


class Watched:
    """A watch with clocks of its own, over partitions of one topic."""

    def __init__(self, said_s: float = 10.0) -> None:
        self.s = 0.0
        self.assignment = Assignment(1000, 1_000_000)
        self.ends = Ends()
        self.log_ends = LogEnds(self.assignment, clock_s=lambda: self.s)
        self.watch = LagWatch(self.assignment, said_s, clock_s=lambda: self.s, now_s=lambda: NOW_MS / 1000 + self.s)

    def assign(self, tp: TP, live_from: int = 0, start: int | None = None) -> None:
        self.assignment.add(tp, live_from)
        self.assignment.loaded(tp, live_from if start is None else start)

    def read(self, tp: TP, offsets: range, sent_s: float) -> RecordBatch:
        n = len(offsets)
        stamps = [NOW_MS + int(1000 * sent_s)] * n
        batch = RecordBatch(tp, [*offsets], stamps, [None] * n, [b"x"] * n, lambda i: [], offsets.stop)
        [taken] = self.assignment.accept([batch])
        return taken

    def do(self, batch: RecordBatch) -> None:
        self.assignment.begin([batch])
        self.assignment.done([batch])

    def look(self, at_s: float, **ends: int) -> Lag | None:
        self.s = at_s
        self.ends.of = {TP("orders", int(name[1:])): end for name, end in ends.items()}
        for _ in range(2):
            answer = self.log_ends.look(self.ends)  # type: ignore[arg-type]
            if answer is not None:
                self.watch.note(answer)
        return self.watch.lags.get("orders")


def test_records_of_all_partitions_and_the_oldest_in_hand() -> None:
    watched = Watched()
    watched.assign(A)
    watched.assign(B)
    assert watched.look(1, p0=0, p1=0) == Lag(0, 0.0)
    first = watched.read(A, range(100), sent_s=0.5)
    watched.read(B, range(10), sent_s=-2.0)
    assert watched.look(2, p0=500, p1=10) == Lag(510, 4.0)
    watched.do(first)
    assert watched.look(4, p0=500, p1=10) == Lag(410, 6.0)


def test_it_asks_once_a_second_and_later_where_the_log_is_away() -> None:
    watched = Watched()
    watched.assign(A)
    for at in (1.0, 1.2, 1.4, 1.9):
        watched.look(at, p0=0)
    assert watched.ends.asked == 1
    watched.look(2.1, p0=7)
    assert watched.ends.asked == 2 and watched.watch.lags["orders"].records == 7
    watched.ends.away = True
    for at in (3.2, 4.5, 5.1):
        watched.look(at, p0=9)
    assert watched.ends.asked == 3 and watched.watch.lags["orders"].records == 7
    watched.ends.away = False
    assert watched.look(5.3, p0=9) == Lag(9, 0.0)


def test_an_end_that_somebody_wants_to_be_certain_of_is_asked_for_at_once() -> None:
    watched = Watched()
    watched.assign(A)
    assert watched.look(1, p0=3) == Lag(3, 0.0)
    watched.assignment.read_to_end(A, True, 3)
    assert not watched.assignment.end_confirmed(A, 0.0)
    for at_s, position, confirmed in ((1.1, None, False), (1.2, 2, False), (1.3, 3, True)):
        watched.ends.at = {} if position is None else {A: position}
        watched.look(at_s, p0=3)
        assert watched.assignment.ends_wanted() == ([] if confirmed else [A])
    assert watched.ends.asked == 4
    watched.look(1.4, p0=3)
    assert watched.ends.asked == 4, "nobody wants to know any more"
    assert watched.assignment.end_confirmed(A, 1.29) and not watched.assignment.end_confirmed(A, 1.31)


def test_the_word_of_a_broker_that_stood_still_does_not_count_nor_what_it_says_right_after() -> None:
    watched = Watched()
    watched.assign(A)
    watched.look(1, p0=3)
    watched.assignment.read_to_end(A, True, 3)
    watched.ends.at = {A: 3}
    assert not watched.assignment.end_confirmed(A, 0.0)
    confirmed = []
    for asked_s, answered_s in ((2.0, 6.0), (6.1, 6.2), (7.9, 8.0), (8.2, 8.3)):
        watched.s = asked_s
        assert watched.log_ends.look(watched.ends) is None  # type: ignore[arg-type]
        watched.s = answered_s
        assert watched.log_ends.look(watched.ends) == {A: 3}  # type: ignore[arg-type]
        confirmed.append(watched.assignment.end_confirmed(A, 2.0))
    assert confirmed == [False, False, False, True]


def test_what_is_replayed_is_no_lag() -> None:
    watched = Watched()
    watched.assign(A, live_from=100, start=0)
    watched.read(A, range(100), sent_s=-500)
    assert watched.look(1, p0=130) == Lag(30, 0.0)


def test_without_a_record_in_hand_the_age_is_the_last_known() -> None:
    watched = Watched()
    watched.assign(A)
    batch = watched.read(A, range(10), sent_s=-3)
    assert watched.look(1, p0=50) == Lag(50, 4.0)
    watched.do(batch)
    assert watched.look(3, p0=50) == Lag(40, 4.0)
    assert watched.look(5, p0=10) == Lag(0, 0.0)
    watched.assignment.forget([A])
    assert watched.look(7) is None


def test_a_clock_that_is_behind_the_producers_gives_no_negative_age() -> None:
    watched = Watched()
    watched.assign(A)
    watched.read(A, range(10), sent_s=90)
    assert watched.look(1, p0=10) == Lag(10, 0.0)


def test_it_says_once_that_it_is_behind_and_once_that_it_is_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watched = Watched(said_s=10)
    watched.assign(A)
    batch = watched.read(A, range(10), sent_s=0)
    for at in range(1, 14, 2):
        watched.look(at, p0=400)
    watched.do(batch)
    for at, sent_s in ((15, 12.5), (17, 15), (19, 19)):
        watched.do(watched.read(A, range(at, at + 1), sent_s=sent_s))
        watched.read(A, range(at + 1, at + 2), sent_s=sent_s)
        watched.look(at, p0=60)
        watched.do(watched.assignment.partitions[A].in_flight[0])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "orders: behind, 400 records wait and the oldest was sent 11 s ago"),
        ("INFO", "orders: caught up after 8 s; at most 400 records waited, the oldest for 13 s"),
    ]


def test_partitions_that_go_while_behind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watched = Watched(said_s=10)
    watched.assign(A)
    watched.read(A, range(10), sent_s=-20)
    watched.look(1, p0=10)
    watched.assignment.forget([A])
    watched.look(3)
    assert [record.getMessage()[:17] for record in caplog.records] == ["orders: behind, 1", "orders: caught up"]


def test_rows_that_wait_under_load_are_not_said_to_wait_while_others_come(caplog: pytest.LogCaptureFixture) -> None:
    """By event time the newest row and label always wait: that is worth a line only when none is released any more."""
    values, sent_ms = events()
    fed = Fed("event_time")
    terminal = fed.tasks[BY_TERMINAL]
    for i in range(8):
        at = orjson.loads(values[i])["event_time"]
        label = orjson.dumps({"transaction_id": i, "label_time": at, "is_fraud": 0})
        fed.take(LABELS, [label], sent_ms[:1])
        fed.take(TRANSACTIONS, values[i : i + 1], sent_ms[:1])
        terminal.tick(10.0 * i, False)
    assert len(fed.of(FRAUD_SCORES)) == 7 and not caplog.records
    for now_s in (80.0, 96.0):
        terminal.tick(now_s, False)
    assert "2 rows have waited 16 s" in caplog.text
