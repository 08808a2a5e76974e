"""Users, items and the view of recommendations against the naive oracle, however the rows are cut into blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.block import Block, Ids, IntArray
from features.plan import StateError
from features.shopping import FAN, FEATURES, SOURCES, Contexts, ItemRecords, ItemState, ItemView, UserState, codes_of
from tests.features.streams_of_rows import same_arrays
from tests.oracles.shopping import HOUR_MS, NaiveItems, NaiveUsers, NaiveView

BEGIN_MS = 1_396_321_200_000
MINUTE_MS = 60_000
USERS = {"last": 4, "gap_ms": 30 * MINUTE_MS, "horizon_ms": 5 * HOUR_MS, "allowed_lateness_ms": HOUR_MS}
ITEMS = {"neighbours": 3, "visits": 3, "half_life_ms": HOUR_MS, "horizon_ms": 12 * HOUR_MS}


class Click(NamedTuple):
    user: int | str
    item: int | str
    time: int
    action: int
    session: str | None
    category: int | None
    price: float


@st.composite
def clicks(draw: st.DrawFn, max_rows: int = 40) -> list[Click]:
    """Few users and items, with ties, bursts, gaps beyond session and horizon, late rows and rows out of order."""
    now, out = BEGIN_MS, []
    for _ in range(draw(st.integers(1, max_rows))):
        now += draw(st.sampled_from([0, 0, 1, 5, 29, 30, 31, 90, 310])) * MINUTE_MS
        behind = draw(st.sampled_from([0, 0, 0, 0, 1, HOUR_MS, HOUR_MS + 1, 6 * HOUR_MS]))
        user, item = draw(st.sampled_from([1, 2, "ann"])), draw(st.sampled_from([1, 2, 3, 4, "red", "blue", 2**70]))
        session = draw(st.sampled_from([None, None, "s1", "s2"]))
        out.append(Click(user, item, now - behind, draw(st.integers(0, 3)), session, None, math.nan))
    return out


def block_of(rows: Sequence[Click]) -> Block:
    n = len(rows)
    times = np.array([row.time for row in rows], np.int64)
    ids = {
        "user_id": Ids.of([row.user for row in rows]),
        "item_id": Ids.of([row.item for row in rows]),
        "session_id": Ids.of([row.session or "" for row in rows]),
    }
    columns = {
        "event_time": times,
        "action": np.array([row.action for row in rows], np.int64),
        "session_id_present": np.array([row.session is not None for row in rows]),
    }
    return Block("interactions", 0, n, np.arange(n), times, ids, columns)


def codes(values: Sequence[int | str]) -> list[int]:
    return codes_of(Ids.of(list(values))).tolist()


def same_sessions(mine: list[int], expected: list[Any]) -> bool:
    return len(set(zip(mine, expected, strict=True))) == len(set(mine)) == len(set(expected))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(clicks(), st.data())
def test_users_are_what_the_oracle_says_wherever_the_block_is_cut(rows: list[Click], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    naive, state = NaiveUsers(*USERS.values()), UserState(**USERS)
    parts = [state.process(block_of(rows[:cut]))]
    again = UserState.from_arrays(state.to_arrays(), **USERS)
    parts.append(again.process(block_of(rows[cut:])))
    told: list[Any] = [[] for _ in rows]
    for part, begin in zip(parts, (0, cut), strict=True):
        moves = part.moves()
        lags, others = moves.columns["lag"].tolist(), moves.columns["other"].view(np.uint64).tolist()
        assert all(moves.place < FAN) and all(np.diff(moves.rows * FAN + moves.place) > 0)
        for row, item, lag, other in zip(moves.rows.tolist(), moves.item_id.to_list(), lags, others, strict=True):
            told[begin + row].append((str(item), lag, other if lag else None))
    contexts = [(part, i) for part in parts for i in range(len(part))]
    for row, (part, i), said in zip(rows, contexts, told, strict=True):
        events, length, expected = naive.row(*row[:5])
        kept = int(part.kept[i])
        assert part.items[i, :kept].tolist() == codes([item for item, _, _ in events])
        assert part.times[i, :kept].tolist() == [time for _, time, _ in events]
        assert part.actions[i, :kept].tolist() == [action for _, _, action in events]
        assert part.length[i] == length
        assert said == [(str(name), lag, None if lag == 0 else codes([other])[0]) for name, lag, other in expected]
    whole = UserState(**USERS)
    whole.process(block_of(rows))
    same_arrays(whole.to_arrays(), again.to_arrays())
    assert whole.stream_time_ms == max(row.time for row in rows)


def test_a_session_ends_by_its_id_or_by_silence() -> None:
    def session(*rows: tuple[int, str | None]) -> IntArray:
        clicks = [Click(1, 5, BEGIN_MS + minute * MINUTE_MS, 0, name, None, math.nan) for minute, name in rows]
        return UserState(**USERS).process(block_of(clicks)).session

    by_gap = session((0, None), (30, None), (61, None))
    assert by_gap[0] == by_gap[1] != by_gap[2]
    alone = session((0, None), (31, None), (62, "a"), (62, "b"), (90, None), (121, None))
    assert len(set(alone[:5])) == 1 and alone[5] != alone[0]
    by_id = session((0, "a"), (90, "a"), (91, "b"))
    assert by_id[0] == by_id[1] != by_id[2]


class Told(NamedTuple):
    item: int | str
    time: int
    action: int
    lag: int
    other: int | str
    session: int
    category: int | None
    price: float


@st.composite
def told(draw: st.DrawFn, max_rows: int = 40) -> list[Told]:
    """Times in whole half-lives, 16 of them at most, so that strengths are exact in single precision; all tie."""
    now, out = BEGIN_MS // HOUR_MS * HOUR_MS, []
    end = now + 16 * HOUR_MS
    for _ in range(draw(st.integers(1, max_rows))):
        now = min(end, now + draw(st.sampled_from([0, 0, 0, 0, 1, 2, 13])) * HOUR_MS)
        time = now - draw(st.sampled_from([0, 0, 0, 1])) * HOUR_MS
        item, other = draw(st.sampled_from([1, 2, "red"])), draw(st.sampled_from([1, 2, "red", "blue", 5, 6]))
        lag, session = draw(st.sampled_from([0, 0, 1, 2, 3, -1, -2, -3])), draw(st.integers(1, 5))
        category, price = draw(st.sampled_from([None, 0, 7])), draw(st.sampled_from([math.nan, 2.5, 10.0]))
        out.append(Told(item, time, draw(st.integers(0, 3)), lag, other, session, category, price))
    return out


def told_block(rows: Sequence[Told]) -> Block:
    n = len(rows)
    times = np.array([row.time for row in rows], np.int64)
    columns: dict[str, Any] = {name: np.array([getattr(row, name) for row in rows], np.int64) for name in _WORDS}
    columns |= {"event_time": times, "other": codes_of(Ids.of([row.other for row in rows])).view(np.int64)}
    columns |= {
        "category_present": np.array([row.category is not None for row in rows]),
        "price": np.array([row.price for row in rows]),
    }
    ids = {"item_id": Ids.of([row.item for row in rows]), "category": Ids.of([row.category or 0 for row in rows])}
    return Block("interactions.by-item", 0, n, np.arange(n), times, ids, columns)


_WORDS = ("action", "lag", "session")


def check_record(records: ItemRecords, i: int, naive: NaiveItems, name: Any) -> None:
    expected = naive.record(name)
    near = slice(records.others_begin[i], records.others_begin[i + 1])
    seen = slice(records.visits_begin[i], records.visits_begin[i + 1])
    found = dict(zip(records.others[near].tolist(), records.strengths[near].tolist(), strict=True))
    assert found == {codes([other])[0]: strengths for other, strengths in expected.near}
    assert np.all(np.diff(records.strengths[near].sum(axis=1)) <= 0)
    assert records.totals[i].tolist() == expected.totals
    assert records.counts[i].tolist() == pytest.approx(expected.counts, rel=1e-5)
    assert records.visits[seen].tolist() == [list(visit) for visit in expected.visits]
    seen_ever, first, newest, touched, category = records.heads[i].tolist()
    assert (seen_ever, touched) == (expected.seen, expected.touched)
    assert (first, newest) == (expected.first, expected.newest)
    assert (category == 0) == (expected.category is None)
    assert records.price[i] == pytest.approx(expected.price, nan_ok=True)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(told(), st.data())
def test_items_are_what_the_oracle_says_wherever_the_block_is_cut(rows: list[Told], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    naive, state = NaiveItems(*ITEMS.values()), ItemState(**ITEMS)
    for row in rows:
        naive.row(*row)
    state.process(told_block(rows[:cut]))
    state.changed()
    again = ItemState.from_arrays(state.to_arrays(), **ITEMS)
    again.process(told_block(rows[cut:]))
    whole = ItemState(**ITEMS)
    whole.process(told_block(rows))
    whole.changed()
    changed = again.changed()
    same_arrays(whole.to_arrays(), again.to_arrays())

    records = again.records()
    names = records.ids.to_list()
    assert sorted(map(str, names)) == sorted(map(str, naive.live()))
    for i, name in enumerate(names):
        check_record(records, i, naive, name)
    assert set(map(str, changed.ids.to_list())) == {str(row.item) for row in rows[cut:]} & set(map(str, names))
    copy = ItemRecords.unpack(records.ids, records.pack())
    for column in ItemRecords.__dataclass_fields__:
        if column != "ids":
            assert getattr(copy, column).tobytes() == getattr(records, column).tobytes(), column


def test_strengths_outlive_the_landmark() -> None:
    """Far apart in time, so that the landmark moves: the younger pair weighs all there is."""
    state = ItemState(neighbours=3, visits=3, half_life_ms=HOUR_MS, horizon_ms=10_000 * HOUR_MS)
    begin = BEGIN_MS
    rows = [Told(1, begin, 0, 1, 2, 1, None, math.nan), Told(1, begin + 40 * HOUR_MS, 0, 1, 3, 1, None, math.nan)]
    rows += [Told(1, begin + 5_000 * HOUR_MS, 0, 2, 4, 1, None, math.nan)]
    state.process(told_block(rows[:2]))
    assert state.records().strengths[:, 0].tolist() == [1.0, 2.0**-40]
    state.process(told_block(rows[2:]))
    assert state.records().totals[0].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_record_that_is_none_is_refused() -> None:
    with pytest.raises(StateError, match="item 7: not of this format"):
        ItemRecords.unpack(Ids.of([7]), [b"short"])
    with pytest.raises(StateError, match="item x: not of this format"):
        ItemRecords.unpack(Ids.of(["x"]), [bytes(200)])


def test_state_of_other_settings_is_refused() -> None:
    with pytest.raises(StateError, match="users has settings"):
        UserState.from_arrays(UserState(gap_ms=5_000).to_arrays())
    with pytest.raises(StateError, match="items has settings"):
        ItemState.from_arrays(ItemState(half_life_ms=5_000).to_arrays())


class Shop:
    """All stages one after the other, and what the oracle holds of the same events."""

    def __init__(self, rows: list[Click], blocks: int = 1) -> None:
        self.users, self.items = UserState(**USERS), ItemState(neighbours=8, visits=8)
        self.naive = NaiveItems(8, 8, self.items.half_life_ms, self.items.horizon_ms)
        self.by_block: list[ItemRecords] = []
        self.contexts: list[Contexts] = []
        for part in np.array_split(np.arange(len(rows)), blocks):
            self.contexts.append(self.users.process(block_of([rows[i] for i in part])))
            moves = self.contexts[-1].moves()
            n = len(moves.rows)
            self.items.process(Block("i", 0, n, moves.rows, moves.rows, {"item_id": moves.item_id}, {**moves.columns}))
            self.by_block.append(self.items.changed())
            columns = zip(*(moves.columns[name].tolist() for name in _COLUMNS), strict=True)
            for item, (time, action, lag, other, session) in zip(
                codes_of(moves.item_id).tolist(), columns, strict=True
            ):
                self.naive.row(item, time, action, lag, other % 2**64, session)


_COLUMNS = ("event_time", "action", "lag", "other", "session")
_SAID = {
    **{f"last_after{c + 1}": f"class{c}" for c in range(3)},
    **{f"last_before{c + 1}": f"class{c + 3}" for c in range(3)},
    "last_mass": "mass",
    "second_after1": "second1",
    "second_after2": "second2",
    "second_before": "back",
    "third_after3": "third",
    "covisit": "covisit",
    "covisit_items": "near",
    "knn": "knn",
    "knn_next": "knn_next",
    "knn_sessions": "knn_sessions",
    "path": "path",
}


def column(name: str) -> int:
    return FEATURES.index(name)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(clicks(max_rows=25))
def test_candidates_and_features_are_what_the_oracle_says(rows: list[Click]) -> None:
    shop = Shop(rows)
    contexts = shop.contexts[0]
    view = ItemView(neighbours=8, visits=8, sessions=64)
    view.apply(shop.items.records())
    naive = NaiveView({name: shop.naive.record(name) for name in shop.naive.live()})
    found = view.recommendable(contexts, np.arange(len(rows)), 50)
    names = codes_of(view.ids(found.numbers)).tolist()
    for i in range(len(rows)):
        kept, now = int(contexts.kept[i]), int(contexts.event_time_ms[i])
        events = list(
            zip(
                contexts.items[i, :kept].tolist(),
                contexts.times[i].tolist(),
                contexts.actions[i].tolist(),
                strict=False,
            )
        )
        session = int(contexts.session[i])
        said = naive.said(events, int(contexts.length[i]), session, now)
        begin, end = found.begin[i], found.begin[i + 1]
        assert set(names[begin:end]) == set(said)
        assert np.all(np.diff(found.prior[begin:end]) <= 0)
        for name, x in zip(names[begin:end], found.x[begin:end], strict=True):
            for feature, key in _SAID.items():
                assert x[column(feature)] == pytest.approx(said[name].get(key, 0.0), rel=1e-4, abs=1e-12), feature
            check_item_features(x, naive, name, events, now)


def check_item_features(x: Any, naive: NaiveView, name: int, events: list[Any], now: int) -> None:
    record = naive.records[name]
    for count, feature in enumerate(("looks_1h", "looks_1d", "looks_7d")):
        assert x[column(feature)] == pytest.approx(record.looks(count, now), rel=1e-4, abs=1e-30)
    assert x[column("age_h")] == pytest.approx((now - record.first) / HOUR_MS)
    mine = [i for i, event in enumerate(events) if event[0] == name]
    assert x[column("times_seen")] == len(mine)
    assert x[column("position")] == pytest.approx(mine[0] + 1 if mine else math.nan, nan_ok=True)
    acted = max(events[i][2] for i in mine) if mine else math.nan
    assert x[column("acted")] == pytest.approx(acted, nan_ok=True)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(clicks(), st.integers(1, 5))
def test_a_view_of_changes_serves_as_one_of_all_records(rows: list[Click], blocks: int) -> None:
    """While no ring is full: records that repeat what is known, or are older than it, change nothing."""
    shop = Shop(rows, blocks)
    whole, steps = ItemView(neighbours=8, visits=40, sessions=64), ItemView(neighbours=8, visits=40, sessions=64)
    whole.apply(shop.items.records())
    for records in shop.by_block:
        steps.apply(records)
    for records in shop.by_block:
        steps.apply(ItemRecords.unpack(records.ids, records.pack()))
    assert len(steps) == len(whole)
    everyone = np.arange(len(shop.contexts[-1]))
    one, other = (view.recommendable(shop.contexts[-1], everyone, 50) for view in (whole, steps))
    for i in everyone:
        of_one = dict(zip(map(str, ids_of(whole, one, i)), one.x[one.begin[i] : one.begin[i + 1]], strict=True))
        of_other = dict(
            zip(map(str, ids_of(steps, other, i)), other.x[other.begin[i] : other.begin[i + 1]], strict=True)
        )
        assert of_one.keys() == of_other.keys()
        for name in of_one:
            keep = [column(feature) for feature in FEATURES if not feature.startswith(("knn", "prior"))]
            np.testing.assert_array_equal(of_one[name][keep], of_other[name][keep])


def ids_of(view: ItemView, found: Any, i: int) -> list[int | str]:
    return view.ids(found.numbers[found.begin[i] : found.begin[i + 1]]).to_list()


def test_every_source_is_named_and_nothing_unpublished_is_recommended() -> None:
    rows = [Click(user, item, BEGIN_MS, 1, None, None, math.nan) for user in (1, 2) for item in (10, 20, 30)]
    shop = Shop(rows)
    view = ItemView(sessions=64)
    records = shop.items.records()
    view.apply(records)
    view.refresh(BEGIN_MS)
    stranger = UserState().process(block_of([Click("new", 99, BEGIN_MS, 0, None, None, math.nan)]))
    found = view.recommendable(stranger, np.array([0]), 10)
    assert {SOURCES[s] for s in found.source} == {"trending"}
    assert sorted(view.ids(found.numbers).to_list()) == [10, 20, 30]
    assert view.ids(view.popular(2)).to_list() == [10, 20]
    assert view.categories(view.published()).tolist() == [0, 0, 0]
    known = view.recommendable(shop.contexts[0], np.array([5]), 2)
    assert len(known.numbers) == 2 and {SOURCES[s] for s in known.source} <= set(SOURCES)


def test_the_popular_of_the_category_are_candidates() -> None:
    items = ItemState()
    looks = [(10, 7), (11, 7), (11, 7), (12, 8), (12, 8), (12, 8), (13, None)]
    items.process(
        told_block([Told(item, BEGIN_MS, 0, 0, 1, n, kind, float(item)) for n, (item, kind) in enumerate(looks)])
    )
    view = ItemView(sessions=64)
    view.apply(items.records())
    context = UserState().process(block_of([Click("new", 10, BEGIN_MS, 0, None, None, math.nan)]))
    view.refresh(BEGIN_MS)
    assert view.ids(view.trending).to_list() == [12, 11, 10, 13]
    found = view.recommendable(context, np.array([0]), 50)
    source = dict(zip(view.ids(found.numbers).to_list(), [SOURCES[s] for s in found.source], strict=True))
    assert source == {10: "own", 11: "category", 12: "trending", 13: "trending"}
    assert found.x[:, column("same_category")].tolist()[:2] == [1.0, 1.0]
    ratio = dict(zip(source, found.x[:, column("price_ratio")].tolist(), strict=True))
    assert ratio == {10: 1.0, 11: 1.1, 12: 1.2, 13: 1.3}


def looked_at(state: ItemState, *rows: tuple[int | str, int, int]) -> ItemRecords:
    """What is published once these (item, time, session) were seen, one after the other."""
    state.process(told_block([Told(item, time, 0, 0, 1, session, None, 1.0) for item, time, session in rows]))
    return state.changed()


def test_visits_of_an_item_that_was_forgotten_and_came_back_are_taken() -> None:
    items, view = ItemState(), ItemView(sessions=64)
    view.apply(looked_at(items, *((1, BEGIN_MS + n, n) for n in range(5))))
    again = BEGIN_MS + 2 * items.horizon_ms
    view.apply(looked_at(items, (2, again, 100), (1, again + 1, 100)))
    context = UserState().process(block_of([Click("new", 2, again + 2, 0, None, None, math.nan)]))
    found = view.recommendable(context, np.array([0]), 10)
    knn = dict(zip(view.ids(found.numbers).to_list(), found.x[:, column("knn_sessions")].tolist(), strict=True))
    assert knn[1] == 1.0


def test_the_popular_are_those_of_now_and_what_nobody_touches_goes() -> None:
    items, view = ItemState(), ItemView(sessions=64)
    day = 24 * HOUR_MS
    later = BEGIN_MS + 40 * day
    view.apply(looked_at(items, *((1, BEGIN_MS, n) for n in range(9)), (2, later, 1), (2, later, 2), (3, later, 3)))
    assert len(view) == 3 and len(view.popular(5)) == 0
    view.refresh(later)
    assert view.ids(view.popular(5)).to_list() == [2, 3, 1] and view.ids(view.copy().popular(1)).to_list() == [2]
    view.refresh(later + 20 * day)
    assert view.ids(view.popular(5)).to_list() == [2, 3] and len(view) == len(view.copy()) == 2


def test_memory_of_dead_items_is_given_to_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.shopping_view._CROWDED_MIN", 64)
    items, view = ItemState(neighbours=4, visits=1, horizon_ms=HOUR_MS), ItemView(sessions=4, horizon_ms=HOUR_MS)
    for n in range(60):
        now = BEGIN_MS + n * 30 * MINUTE_MS
        rows = [Told(f"{n}-{i}", now, 1, 1, f"{n}-{i + 1}", i, None, 1.0) for i in range(20)]
        items.process(told_block([*rows, *(row._replace(lag=0) for row in rows)]))
        view.apply(items.changed())
        view.refresh(now)
        expected_ids = {f"{m}-{i}" for m in (n - 1, n) for i in range(20) if m >= 0}
        assert set(view.ids(view.published()).to_list()) == expected_ids
    assert view._slots.capacity <= 256 and len(view._names.by_code) <= 128
    context = UserState().process(block_of([Click("new", "59-3", now, 0, None, None, math.nan)]))
    expected = ItemView(sessions=4, horizon_ms=HOUR_MS)
    expected.apply(items.records())
    expected.refresh(now)
    for column_of in ("last_after1", "looks_1d"):
        found = [one.recommendable(context, np.array([0]), 50) for one in (view, view.copy(), expected)]
        values = [
            dict(zip(one.ids(f.numbers).to_list(), f.x[:, column(column_of)].tolist(), strict=True))
            for one, f in zip((view, view, expected), found, strict=True)
        ]
        assert values[0] == values[1] == values[2]


def test_names_of_forgotten_items_are_forgotten() -> None:
    items = ItemState(neighbours=1, visits=1, horizon_ms=1000)
    for n in range(10):
        records = looked_at(items, *((f"{n}-{i}", BEGIN_MS + 2000 * n + i // 2, 1) for i in range(400)))
        assert sorted(records.ids.to_list()) == sorted(f"{n}-{i}" for i in range(400))
    assert len(items._names.by_code) < 2000


def test_the_last_sessions_are_kept() -> None:
    """More sessions than there is room for: the oldest go, and nothing of them is found."""
    view = ItemView(sessions=4)
    clicks = [
        Click(user, item, BEGIN_MS + user, 1, None, None, math.nan) for user in range(1, 8) for item in (1, user + 10)
    ]
    shop = Shop(clicks)
    view.apply(shop.items.records())
    context = UserState().process(block_of([Click("new", 1, BEGIN_MS + 9, 0, None, None, math.nan)]))
    found = view.recommendable(context, np.array([0]), 50)
    knn = found.x[:, column("knn_sessions")]
    assert sorted(view.ids(found.numbers[knn > 0]).to_list()) == [14, 15, 16, 17]


def test_memory_is_what_the_docstrings_say() -> None:
    n = 20_000
    shop = Shop([Click(i, i, BEGIN_MS + i, 1, None, None, math.nan) for i in range(n)])
    view = ItemView(neighbours=8, visits=8, sessions=64)
    view.apply(shop.items.records())
    slack = 2.1  # tables and small arrays double
    assert shop.users.nbytes < slack * n * (USERS["last"] * 17 + 102)
    assert shop.items.nbytes < slack * n * (36 * 8 + 16 * 8 + 171)
    assert view.nbytes < slack * n * (28 * 8 + 8 * 8 + 186) + 160 * 64
    assert len(shop.users) == len(shop.items) == len(view) == n
