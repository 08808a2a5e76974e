"""Recommendations on the open click log: recall and rank of the next click, by both protocols, and their speed.

For each day p: *frozen*, state and ranker as they were at its start; *streaming*, lists served right after each click
with what was known then (up to one block of 512 events before it), the ranker fixed at the day's start. The ranker of
day p is trained on the lists served on the two days before, of a share of their sessions, by the same protocol; of
a list the first 50 candidates teach. Figures are of a share of the day's sessions, as the plain mean over days. Beside
it, on the same clicks: the most popular items of all time and of the day, co-visitation (how often an item came right
after the last one), and the candidates in the order they are taken in, without a model.

Bias: session ids are given, so sessions need no guessing; one process, so that item knowledge lags a block and not a
network. Speed is that of one thread, candidates, features and ranking: in CPU time, one list at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import BenchError, machine, versions
from benchmarks.sessions import BLOCK_ROWS, TOP, Lists, Replay, load, sessions_file
from features.block import BoolArray, FloatArray, IntArray
from features.shopping import FEATURES, ItemView
from models.auto import choose
from models.rank import RANK_ROUNDS, Ranked, Ranker, Ranking, train_rank

__all__ = ["run"]

#: candidates that are ranked, of each list
CANDIDATES = 100
#: share of a day's sessions whose lists train the next day's ranker
TRAIN_SHARE = 0.1
#: days before a day whose lists train its ranker
TRAIN_DAYS = 2
_PROTOCOLS = ("frozen", "streaming")
_SPEED_LISTS = 2_000
_WARM_LISTS = 200


def run(
    days: tuple[int, int] = (1, 8),
    sample: float = 0.03,
    *,
    train_share: float = TRAIN_SHARE,
    rounds: int = RANK_ROUNDS,
    data: Path | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Figures of the days ``days``, first and last, on a share ``sample`` of their sessions.

    ``results``: one entry per protocol and method with ``recall_20`` and ``mrr_20`` (per cent, mean over days) and
    ``by_day``; of the candidates ``recall_candidates``. ``speed`` as `_speed`.
    """
    path = data or sessions_file()
    if not path.exists():
        raise BenchError(
            f"bench recommend: no click log at {path}; set HEADRACE_DATA to the folder of sessions.parquet"
        )
    clicks = load(path)
    first, last = days
    if not 1 <= first <= last <= int(clicks.day.max()):
        raise BenchError(f"--days: {first}:{last} is not within 1:{int(clicks.day.max())}; give the first and last day")
    tested, trained = clicks.sampled(sample), clicks.sampled(train_share)
    replay = Replay(clicks, CANDIDATES)
    rankers: dict[str, Ranker] = {}
    learnt: dict[str, deque[Ranked]] = {name: deque(maxlen=TRAIN_DAYS) for name in _PROTOCOLS}
    by_day: dict[tuple[str, str], dict[int, Ranking]] = {}
    recall: dict[str, list[float]] = {name: [] for name in _PROTOCOLS}
    for day, lists in replay.days(first - 1, last, tested | trained):
        for name in _PROTOCOLS:
            if day >= first:
                test = lists[name].of(tested)
                recall[name].append(100.0 * float(test.clicked.sum()) / len(test))
                for method, figures in _measured(test, lists[name], tested, rankers[name]).items():
                    by_day.setdefault((name, method), {})[day] = figures
                notify(f"day {day} {name}: " + _line(by_day[name, "ranker"][day]))
            if day < last:
                learnt[name].append(lists[name].of(trained).with_a_click())
                rankers[name] = train_rank(Ranked.concat(learnt[name]), FEATURES, rounds=rounds)
    return {
        "results": [_result(name, method, figures) for (name, method), figures in by_day.items()],
        "recall_candidates": {name: round(float(np.mean(values)), 2) for name, values in recall.items()},
        "days": [first, last],
        "sample": sample,
        "train_share": train_share,
        "train_days": TRAIN_DAYS,
        "lag_events_max": BLOCK_ROWS,
        "speed": _speed(replay, rankers["streaming"]),
        "state": {
            "users": len(replay.users),
            "items": len(replay.items),
            "bytes_users": replay.users.nbytes,
            "bytes_items": replay.items.nbytes,
            "bytes_view": replay.view.nbytes,
        },
        "machine": machine(),
        "versions": versions(),
    }


def _measured(test: Ranked, lists: Lists, tested: BoolArray, ranker: Ranker) -> dict[str, Ranking]:
    """Figures of each method on the same lists."""
    raw = choose(ranker.model_text).predictor.predict_raw(test.x)
    places = lists.popularity(tested)
    scores: dict[str, FloatArray] = {
        "candidates": test.x[:, FEATURES.index("prior")],
        "covisitation": test.x[:, FEATURES.index("last_after1")],
        "ranker": raw,
    }
    return {
        "popularity": _of_places(places[:, 0]),
        "popularity_1d": _of_places(places[:, 1]),
        **{method: Ranking.of(values, test.begin, test.clicked) for method, values in scores.items()},
    }


def _of_places(places: IntArray) -> Ranking:
    there = places[places < TOP]
    return Ranking(len(places), len(there), float(np.sum(1.0 / (there + 1))))


def _result(protocol: str, method: str, by_day: dict[int, Ranking]) -> dict[str, Any]:
    """The plain mean over days, and each of them."""
    return {
        "protocol": protocol,
        "method": method,
        "recall_20": round(float(np.mean([figures.recall_20 for figures in by_day.values()])), 2),
        "mrr_20": round(float(np.mean([figures.mrr_20 for figures in by_day.values()])), 2),
        "lists": sum(figures.lists for figures in by_day.values()),
        "by_day": {
            str(day): [round(figures.recall_20, 2), round(figures.mrr_20, 2)] for day, figures in by_day.items()
        },
    }


def _line(figures: Ranking) -> str:
    return f"Recall@20 {figures.recall_20:.2f}, MRR@20 {figures.mrr_20:.2f} of {figures.lists} lists"


def _speed(replay: Replay, ranker: Ranker) -> dict[str, Any]:
    """Lists of 20 from all items, one context at a time, on this thread: CPU seconds of candidates to sorted lists."""
    predictor = choose(ranker.model_text).predictor
    begin = len(replay.clicks) - _SPEED_LISTS
    contexts = replay.users.process(replay.clicks.part(begin, begin + _SPEED_LISTS))
    us = np.empty(_SPEED_LISTS)
    for row in range(-_WARM_LISTS, _SPEED_LISTS):
        start = time.thread_time_ns()
        found = replay.view.recommendable(contexts, np.array([max(row, 0)]), CANDIDATES)
        _best(replay.view, found.numbers, predictor.predict_raw(found.x))
        us[max(row, 0)] = (time.thread_time_ns() - start) / 1e3
    return {
        "lists": _SPEED_LISTS,
        "items": len(replay.view),
        "candidates": CANDIDATES,
        "us_p50": round(float(np.median(us)), 1),
        "us_p99": round(float(np.quantile(us, 0.99)), 1),
        "lists_per_s": round(1e6 / float(us.mean())),
        "predictor": predictor.name,
    }


def _best(view: ItemView, numbers: IntArray, raw: FloatArray) -> list[int | str]:
    return view.ids(numbers[np.argsort(-raw, kind="stable")[:TOP]]).to_list()
