"""The monitor of lists: joined as a naive loop joins them, counted by hand, the same however blocks are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.block import Ids
from features.plan import StateError
from monitoring.list_counts import LAYOUT, LIST_SOURCES, RUNGS, ItemTally, exposure, figures_of
from monitoring.list_join import LIST_MAX, ListJoin, Shown
from monitoring.lists import ListMonitor, ListSettings, Pairs
from monitoring.settings import MonitorError
from tests.features.streams_of_rows import same_arrays

HOUR = 3_600_000
SETTINGS = ListSettings(
    within_ms=1_000, lateness_ms=500, period_ms=HOUR, windows=(1, 3), reference_periods=8, rows_min=20,
    false_alarms_per_30d=20.0,
)  # fmt: skip


def shown(rows: Sequence[tuple[int, int, int, list[int]]], rung: int = 0, source: int = 0) -> Shown:
    """Lists of (time, user, clicked item, items), whose every item is of one source."""
    n = len(rows)
    items, there = np.zeros((n, LIST_MAX), np.uint64), np.zeros(n, np.int64)
    for i, (_, _, _, of) in enumerate(rows):
        items[i, : len(of)], there[i] = of, len(of)
    column = [np.array([row[c] for row in rows], np.int64) for c in range(3)]
    return Shown(
        time_ms=column[0],
        user=Ids(ints=column[1]).keys(),
        clicked=column[2].view(np.uint64),
        known=column[2] >= 0,
        bought=column[2] % 2 == 1,
        items=items,
        sources=np.full((n, LIST_MAX), source, np.int8),
        scores=np.zeros((n, LIST_MAX)),
        length=there,
        rung=np.full(n, rung),
        model=np.zeros(n, np.int64),
    )


def naive_join(rows: Sequence[tuple[int, int, int, list[int]]], within: int, horizon: int) -> list[tuple[int, ...]]:
    """(row, time of the list, place) by one dictionary."""
    last: dict[int, tuple[int, list[int]]] = {}
    newest, out = -(10**18), []
    for i, (time, user, clicked, items) in enumerate(rows):
        if user in last and clicked >= 0:
            when, listed = last[user]
            if listed and 0 <= time - when <= within and when > newest - horizon:
                out.append((i, when, listed.index(clicked) if clicked in listed else -1))
        newest = max(newest, time)
        last[user] = (time, items)
    return out


ROWS = st.lists(
    st.tuples(
        st.integers(0, 4_000), st.integers(1, 3), st.integers(-1, 5),
        st.lists(st.integers(0, 5), max_size=4, unique=True),
    ),
    min_size=1, max_size=40,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, cut=st.integers(0, 40), sort=st.booleans())
def test_lists_are_joined_as_by_one_dictionary(
    rows: list[tuple[int, int, int, list[int]]], cut: int, sort: bool
) -> None:
    rows = sorted(rows) if sort else rows
    found, join, begin = [], ListJoin(within_ms=700, lateness_ms=300), 0
    for part in (rows[:cut], rows[cut:]):
        if part:
            out = join.process(shown(part))
            found += list(zip((out.row + begin).tolist(), out.time_ms.tolist(), out.place.tolist(), strict=True))
            join = ListJoin.from_arrays(join.to_arrays(), within_ms=700, lateness_ms=300)
        begin += len(part)
    assert found == naive_join(rows, 700, 1_000)


def test_what_is_counted_of_a_period() -> None:
    monitor = ListMonitor(SETTINGS)
    rows = [
        (0, 1, 9, [1, 2, 3]),  # followed by a hit at the third place, which is bought: 3 is odd
        (100, 2, 8, [1, 4]),  # followed by something else
        (200, 1, 3, [1, 2]),  # followed too late
        (300, 2, 6, [5]),  # never followed
        (1_500, 1, 2, [7]),
    ]
    monitor.observe(shown(rows, rung=1, source=3), "m@1", None)
    monitor.observe(shown([(3 * HOUR, 3, 1, [1])]), "m@1", None)
    [figures] = monitor.figures().values()
    recent = figures["recent"]
    assert figures["periods"] == 1 and figures["learning"]
    assert (recent["lists"], recent["followed"], recent["hits"], recent["bought"]) == (5, 2, 1, 1)
    assert recent["click_through"] == 0.2 and recent["hit_rate"] == 0.5
    assert recent["reciprocal_rank"] == pytest.approx(1 / 3 / 2, abs=1e-5) and recent["hits_by_place"] == [0, 0, 1]
    assert recent["rungs"] == {"candidates": {"lists": 5, "followed": 2, "hits": 1}}
    assert recent["sources"] == {LIST_SOURCES[3]: {"shown": 9, "hits": 1}}
    # shown: 1 2 3 4 5 7; known besides: 6 8 9
    assert (recent["items_shown"], recent["items_known"]) == (6, 9)
    assert recent["coverage"] == pytest.approx(6 / 9, abs=1e-5) and recent["popularity_bias"] is None


def test_popularity_is_that_of_the_period_before_and_the_spread_counts_items_never_shown() -> None:
    before, tally = ItemTally(), ItemTally()
    before.add(1, np.array([1, 1, 1, 2], np.uint64))
    tally.add(0, np.array([1, 1, 2, 3], np.uint64))
    tally.add(1, np.array([2, 3], np.uint64))
    counts = np.zeros(LAYOUT.size, np.int64)
    exposure(counts, tally, 5, before)
    figures = figures_of(counts)
    # shown: (3 + 3 + 1 + 0) / 4, done with: (1 + 0) / 2
    assert figures["popularity_bias"] == pytest.approx(7 / 4 / (1 / 2))
    spread = np.sort([0, 0, 1, 1, 2])
    expected = np.abs(spread[:, None] - spread).sum() / (2 * 5 * spread.sum())
    assert figures["gini"] == pytest.approx(expected)


def log_of(periods: int, worse_from: int, users: int = 40, seed: int = 1) -> list[tuple[int, int, int, list[int]]]:
    """Users who take one of the first two of a list as often as not, and from a period on never."""
    rng, rows = np.random.default_rng(seed), []
    for period in range(periods):
        times = np.sort(rng.integers(0, HOUR - 2_000, users))
        for user, time in enumerate(times.tolist()):
            at = period * HOUR + time
            items = rng.permutation(30)[:5].tolist()
            hit = period < worse_from and rng.random() < 0.5
            rows += [(at, user, 40, items), (at + 500, user, items[rng.integers(2)] if hit else 41, items[::-1])]
    return sorted(rows)


def pairs_of(part: Shown, names: tuple[str, ...] = ("a", "b")) -> Pairs:
    n = len(part)
    x = np.column_stack([part.time_ms % 977 / 977, part.clicked.astype(np.float64)])
    return Pairs(np.arange(n), Ids(ints=part.time_ms), x, names)


def alerts_of(rows: Sequence[Any], size: int, restart: bool = False, swap: int = 10**9) -> tuple[list[Any], Any]:
    monitor, alerts = ListMonitor(SETTINGS), []
    cuts = sorted({0, *range(0, len(rows), size), min(swap, len(rows)), len(rows)})
    for begin, end in pairwise(cuts):
        block = shown(rows[begin:end])
        alerts += monitor.observe(block, "m@1" if begin < swap else "m@2", pairs_of(block))
        if restart:
            state = monitor.state()
            monitor = ListMonitor(SETTINGS)
            monitor.restore(state)
            assert same_arrays(state, monitor.state())
    return alerts, monitor.state()


def test_lists_that_nobody_follows_any_more_are_an_alert() -> None:
    alerts, _ = alerts_of(log_of(20, 14), 500)
    told = [alert for _, alert in alerts if alert.kind == "list_performance"]
    assert len(told) == 1 and told[0].subject in ("click_through", "hit_rate", "reciprocal_rank")
    alert = told[0]
    assert alert.event_time == 15 * HOUR and alert.value == 0.0 < alert.threshold
    assert alert.evidence["since"] == 14 * HOUR and alert.evidence["lists"]["hits"] == 0
    assert {model for model, _ in alerts} == {"m@1"}


def test_where_nothing_changes_nothing_is_said() -> None:
    assert alerts_of(log_of(20, 99), 500)[0] == []


@pytest.mark.parametrize(("size", "restart"), [(1_000, True), (97, False), (97, True)])
def test_neither_cuts_nor_restarts_show(size: int, restart: bool) -> None:
    rows = log_of(16, 11, users=80)
    expected, state = alerts_of(rows, 10**6, swap=1_900)
    assert expected and state["pairs0/scored_track/counts"].shape[0] > 1, "the pairs are watched, not only kept"
    alerts, other = alerts_of(rows, size, restart, swap=1_900)
    assert [(m, a.to_json()) for m, a in alerts] == [(m, a.to_json()) for m, a in expected]
    assert same_arrays(state, other)


def test_a_state_of_another_time_to_click_is_refused() -> None:
    state = ListMonitor(SETTINGS).state()
    with pytest.raises(StateError, match="time within"):
        ListMonitor(replace(SETTINGS, within_ms=2_000)).restore(state)
    with pytest.raises(MonitorError, match="within_ms: 0 is not positive"):
        replace(SETTINGS, within_ms=0).check()


def test_models_are_watched_apart_and_bounded() -> None:
    monitor = ListMonitor(SETTINGS)
    for i in range(10):
        monitor.observe(shown([(i, 1, 2, [2])]), f"m@{i}", None)
    assert list(monitor.figures()) == [f"m@{i}" for i in range(2, 10)]
    assert RUNGS[-1] == LIST_SOURCES[-1] == "other"
