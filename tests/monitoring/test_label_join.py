"""The label join against a dictionary, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.block import Ids
from features.plan import StateError
from features.state import NO_TIME
from monitoring.labels import Joined, JoinSettings, LabelJoin
from monitoring.maturity import AGES_MS, Maturity
from tests.features.streams_of_rows import same_arrays
from tests.oracles.label_join import NaiveJoin, Out

HORIZON = 1_440
Message = tuple[str, Any]
SETTINGS = [
    JoinSettings(HORIZON, rows_max, negatives, conflicts)
    for rows_max in (1_000_000, 16, 3)
    for negatives in ("labels", "horizon")
    for conflicts in ("first", "last")
]


class Driven:
    """The join, whose places are numbers that are given out and taken back; what it gives, in the oracle's form."""

    def __init__(self, settings: JoinSettings) -> None:
        self.join = LabelJoin(settings)
        self.whose: dict[int, int] = {}
        self._next = 0

    def take(self, message: Message) -> list[Out]:
        kind, what = message
        if kind == "time":
            joined = self.join.advance(what)
            return [] if joined is None else self._out(joined)
        keys = Ids.of([row[0] for row in what]).keys()
        columns = [np.array(column, np.int64) for column in zip(*(row[1:] for row in what), strict=True)]
        if kind == "labels":
            return self._out(self.join.labels(keys, *columns))
        places = np.arange(self._next, self._next + len(what))
        self._next += len(what)
        self.whose.update(zip(places.tolist(), (row[0] for row in what), strict=True))
        return self._out(self.join.vectors(keys, columns[0], places))

    def _out(self, joined: Joined) -> list[Out]:
        for place in joined.freed.tolist():
            del self.whose[place]
        rows = zip(*(column.tolist() for column in joined[:4]), strict=True)
        return [
            (self.whose.pop(place), label, time, None if sent == NO_TIME else sent) for place, label, time, sent in rows
        ]

    def restored(self) -> Driven:
        """Another one that goes on from the arrays, with places of its own."""
        after = Driven(self.join.settings)
        whose = [self.whose[place] for place in self.join.places.tolist()]
        after._next = 1_000 + len(whose)
        after.whose = dict(zip(range(1_000, after._next), whose, strict=True))
        arrays = {name: array.copy() for name, array in self.join.to_arrays().items()}
        after.join = LabelJoin.from_arrays(self.join.settings, arrays, np.arange(1_000, after._next))
        return after


@st.composite
def messages(draw: st.DrawFn) -> list[Message]:
    """Vectors, labels and times: ids again and again, labels before and after, early, late, alone, at the horizon."""
    out: list[Message] = []
    now = 10_000
    sent = 0
    most = draw(st.sampled_from([5, 11, 80]))
    for _ in range(draw(st.integers(1, 14))):
        now += draw(st.sampled_from([0, 1, 2, 100, HORIZON, HORIZON + 1]))
        kind = draw(st.sampled_from(["vectors", "vectors", "labels", "labels", "time"]))
        if kind == "time":
            out.append((kind, now - draw(st.sampled_from([0, 1, 200]))))
            continue
        rows: list[tuple[int, ...]] = []
        for _ in range(draw(st.integers(1, 6))):
            who = draw(st.integers(0, most))
            time = now - draw(st.sampled_from([0, 0, 1, 50, HORIZON - 1, HORIZON, HORIZON + 1]))
            sent += 1
            rows.append((who, time) if kind == "vectors" else (who, time, draw(st.integers(0, 1)), sent))
        out.append((kind, rows))
    return out


def run(driven: Driven, stream: Sequence[Message]) -> list[list[Out]]:
    return [driven.take(message) for message in stream]


@settings(max_examples=250, deadline=None, derandomize=True)
@given(messages(), st.sampled_from(SETTINGS))
def test_the_join_does_what_the_dictionary_does(stream: list[Message], rules: JoinSettings) -> None:
    naive, driven = NaiveJoin(rules), Driven(rules)
    for kind, what in stream:
        assert driven.take((kind, what)) == getattr(naive, "advance" if kind == "time" else kind)(what)
        counts = driven.join.counts
        assert {name: counts[name] for name in naive.counts} == naive.counts
        assert counts["waiting"] == len(driven.whose)
        done = ("joined_by_label", "joined_by_horizon", "unlabelled", "released", "vectors_repeated", "waiting")
        assert counts["vectors"] == sum(counts[name] for name in done)
        assert counts["waiting"] + counts["remembered"] <= rules.rows_max
        assert counts["labels_waiting"] <= rules.rows_max
        edges = np.searchsorted(AGES_MS, naive.ages)
        assert driven.join.maturity.table[0].tolist() == np.bincount(edges, minlength=len(AGES_MS) + 1).tolist()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(messages(), st.sampled_from(SETTINGS))
def test_the_join_goes_on_where_its_arrays_end(stream: list[Message], rules: JoinSettings) -> None:
    whole, again = Driven(rules), Driven(rules)
    for message in stream:
        assert again.take(message) == whole.take(message)
        again = again.restored()
        assert same_arrays(again.join.to_arrays(), whole.join.to_arrays())
        assert again.join.counts == whole.join.counts
        assert str(again.join.curve()) == str(whole.join.curve())  # as text, since NaN is not equal to itself


@pytest.mark.parametrize("label_first", [True, False])
@pytest.mark.parametrize(("late", "counts"), [(0, True), (1, False)])
def test_a_label_at_the_horizon_counts_and_one_behind_it_does_not(label_first: bool, late: int, counts: bool) -> None:
    driven = Driven(JoinSettings(HORIZON))
    stream: list[Message] = [("vectors", [(1, 5_000)]), ("labels", [(1, 5_000 + HORIZON + late, 1, 9)])]
    out = run(driven, stream[::-1] if label_first else stream)
    assert out == [[], [(1, 1, 5_000 + HORIZON, 9)] if counts else []]
    assert driven.join.counts["labels_after_horizon"] == late


def test_arrays_of_another_kind_are_refused() -> None:
    arrays = Driven(SETTINGS[0]).join.to_arrays()
    del arrays["keys"]
    with pytest.raises(StateError, match="missing keys"):
        LabelJoin.from_arrays(SETTINGS[0], arrays, np.empty(0, np.int64))


@pytest.mark.parametrize(
    ("name", "value"), [("horizon_ms", 0), ("rows_max", 0), ("negatives", "none"), ("conflicts", "")]
)
def test_wrong_settings_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}; give"):
        JoinSettings(**{name: value})


def test_many_ids_come_and_go() -> None:
    """Slots and the table are used again: ten times the bound passes through."""
    driven = Driven(JoinSettings(HORIZON, 1_000))
    rng = np.random.default_rng(3)
    for i in range(200):
        ids = rng.permutation(np.arange(100 * i, 100 * i + 100))
        driven.take(("vectors", [(who, 60 * i) for who in ids.tolist()]))
        driven.take(("labels", [(who, 60 * i + 30, 1, 0) for who in ids[:40].tolist()]))
        driven.take(("time", 60 * i))
    counts = driven.join.counts
    assert counts["released"] > 0 and counts["forgotten"] > 0 and counts["joined_by_label"] == 8_000
    assert driven.join.nbytes < 1_000_000


# --- maturity ---

DAY = 86_400_000


def test_the_curve_of_closed_cohorts_is_what_was_counted() -> None:
    maturity = Maturity(30 * DAY)
    maturity.arrived(np.array([0, DAY, 2 * DAY, 2 * DAY, 20 * DAY]))
    maturity.survived(5)
    curve = {int(point["age_ms"]): point for point in maturity.curve(np.empty(0, np.int64))}
    assert curve[DAY]["labelled"] == pytest.approx(0.2)
    assert curve[2 * DAY]["labelled"] == pytest.approx(0.4)
    assert curve[2 * DAY]["share"] == pytest.approx(0.8)
    assert curve[30 * DAY]["labelled"] == pytest.approx(0.5)
    assert max(curve) == 30 * DAY


def test_the_young_do_not_pull_the_curve_down() -> None:
    """Half of all are a day old and have no label yet: of those that are older, nine of ten have one after two days."""
    maturity = Maturity(7 * DAY)
    maturity.arrived(np.full(900, 2 * DAY))
    maturity.survived(100)
    curve = maturity.curve(np.full(1_000, DAY // 2))
    by_age = {int(point["age_ms"]): point["labelled"] for point in curve}
    assert by_age[DAY] == 0 and by_age[2 * DAY] == pytest.approx(0.9)
    maturity.left(np.full(1_000, 3 * DAY - 1))
    assert maturity.curve(np.empty(0, np.int64))[9]["labels"] == 0


def test_before_any_label_nothing_is_known() -> None:
    curve = Maturity(DAY).curve(np.empty(0, np.int64))
    assert len(curve) == 7 and all(np.isnan(point["share"]) for point in curve)
