"""The benchmark of recommendations: it asks what the protocol says, and no list knows what came after its click."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.machine import BenchError
from benchmarks.recommend import run
from benchmarks.sessions import BLOCK_ROWS, Clicks, Lists, Replay, told
from features.block import IntArray
from features.shopping import Contexts, ItemView

DAY_MS = 86_400_000


def log(days: int = 3, sessions_a_day: int = 300, seed: int = 4) -> Clicks:
    """Sessions that walk along a ring of 60 items, in pieces; clicks of many sessions between each other."""
    rng = np.random.default_rng(seed)
    rows = []
    for session in range(days * sessions_a_day):
        day = session // sessions_a_day
        time = day * DAY_MS + int(rng.integers(0, DAY_MS // 2))
        item = int(rng.integers(0, 60))
        for _ in range(int(rng.integers(1, 8))):
            rows.append((time, session, item, day))
            time += int(rng.integers(1_000, 60_000))
            item = (item + int(rng.choice([0, 1, 1, 1, 2, 7]))) % 60
    time, user, item, day = np.array(sorted(rows), np.int64).T.copy()
    return Clicks(user, item, time, day)


class Leaky(Replay):
    """What no replay may do: a block's lists know the whole block."""

    def _serve(self, lists: Lists, view: ItemView, contexts: Contexts, rows: IntArray, first: int) -> None:
        self.items.process(told(contexts.moves()))
        view.apply(self.items.changed())
        super()._serve(lists, view, contexts, rows, first)


def served(clicks: Clicks, kind: type[Replay] = Replay) -> dict[str, Lists]:
    return dict(kind(clicks, 20).days(1, 1, np.ones(len(clicks), np.bool_)))[1]


def changed_lists(kind: type[Replay]) -> int:
    """Lists up to a click that are others when all after it is exchanged, its next click and all times included."""
    clicks = log()
    before = served(clicks, kind)
    rng = np.random.default_rng(5)
    first_of_day = int(np.searchsorted(clicks.day, 1))
    changed = 0
    for cut in first_of_day + np.array([0, 7, BLOCK_ROWS // 2, BLOCK_ROWS, BLOCK_ROWS + 1]):
        item, time = clicks.item.copy(), clicks.time.copy()
        after = slice(int(cut) + 1, None)
        item[after] = rng.permutation(item[after])
        time[after] = np.sort(rng.integers(time[cut], time[-1] + DAY_MS, len(time) - cut - 1))
        shuffled = served(Clicks(clicks.user, item, time, clicks.day), kind)
        for protocol, lists in before.items():
            one, other = lists_until(lists, int(cut)), lists_until(shuffled[protocol], int(cut))
            assert one.keys() == other.keys() and len(one) > 0
            changed += sum(not np.array_equal(one[row], other[row], equal_nan=True) for row in one)
    return changed


def test_no_list_knows_the_next_click_or_its_time() -> None:
    assert changed_lists(Replay) == 0


def test_a_list_that_knew_it_would_be_found_out() -> None:
    assert changed_lists(Leaky) > 100


def lists_until(lists: Lists, cut: int) -> dict[int, np.ndarray]:
    ends = np.cumsum(np.concatenate(lists.sizes))
    parts = np.split(np.concatenate(lists.x), ends[:-1])
    return {int(row): x for row, x in zip(np.concatenate(lists.rows), parts, strict=True) if row <= cut}


def test_what_is_asked_is_the_protocol_s() -> None:
    """Next clicks by a plain loop: a day's clicks on items of no earlier day are taken out first."""
    clicks = log(seed=6)
    clicks.item[np.flatnonzero(clicks.day == 1)[::5]] = 99
    expected = np.full(len(clicks), -1)
    last: dict[tuple[int, int], int] = {}
    earlier: dict[int, int] = {}
    for row in range(len(clicks)):
        user, item, day = int(clicks.user[row]), int(clicks.item[row]), int(clicks.day[row])
        if earlier.setdefault(item, day) == day and day > 0:
            continue
        if (user, day) in last:
            expected[last[user, day]] = row
        last[user, day] = row
    assert (clicks.item == 99).any()
    np.testing.assert_array_equal(clicks.next_clicks(), expected)


def test_it_measures_both_protocols_and_the_speed(tmp_path: Path) -> None:
    clicks, path = log(days=4, sessions_a_day=600), tmp_path / "sessions.parquet"
    names = ("user_id", "item_id", "event_time", "day")
    columns = (clicks.user, clicks.item, clicks.time, clicks.day)
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path)
    figures = run((1, 2), 0.5, train_share=0.9, rounds=5, data=path)
    of = {(r["protocol"], r["method"]): r for r in figures["results"]}
    for protocol in ("frozen", "streaming"):
        ranker = of[protocol, "ranker"]
        assert ranker["lists"] > 500 and set(ranker["by_day"]) == {"1", "2"}
        assert (
            100
            >= figures["recall_candidates"][protocol]
            >= ranker["recall_20"]
            > of[protocol, "popularity"]["recall_20"]
        )
        assert ranker["mrr_20"] > 5 + of[protocol, "popularity"]["mrr_20"]
    assert figures["speed"]["lists_per_s"] > 0 and figures["state"]["items"] == 60
    with pytest.raises(BenchError, match="0:2 is not within 1:3"):
        run((0, 2), data=path)
    with pytest.raises(BenchError, match="no click log"):
        run(data=tmp_path / "none.parquet")
