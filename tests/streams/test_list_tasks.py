"""The monitor's stage of lists, fed with what the recommend pipeline put out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
from fraud_logs import Record, batch, cut, processed
from monitor_logs import monitor_pipeline
from recommend_logs import MINUTE, NOW, ShopFed, interaction, shop_pipeline, walk

from features.shopping import FEATURES
from monitoring.list_counts import LIST_SOURCES, RUNGS
from monitoring.list_join import LIST_MAX, Outcomes
from streams.list_records import SCORE, read_lists
from streams.log import TP
from streams.pipelines.recommend_lists import ListRules
from streams.topics import DEAD_LETTERS, FINDINGS, RECOMMENDATIONS
from tests.features.streams_of_rows import same_arrays

DAY = 1_440 * MINUTE


def lists_of(n: int = 300, rules: ListRules | None = None) -> list[Record]:
    """What is served to users who walk from item to item, then nothing for two days, then once more."""
    fed = ShopFed(shop_pipeline(rules))
    for events in (walk(n, end=NOW - 2 * DAY), [interaction("last", NOW, "u1", 1)]):
        for begin in range(0, len(events), 20):
            fed.feed(events[begin : begin + 20])
    return fed.logs.of(RECOMMENDATIONS)


def task_of() -> Any:
    return monitor_pipeline(partitions=1).task(TP(RECOMMENDATIONS, 0))


def test_what_was_served_is_joined_with_what_users_did_next() -> None:
    records, task = lists_of(), task_of()
    lists = [orjson.loads(record.value or b"") for record in records]
    followed = hits = 0
    last: dict[str, list[Any]] = {}
    for one in lists[:-1]:
        if one["user_id"] in last:
            followed += 1
            hits += one["item_id"] in last[one["user_id"]]
        last[one["user_id"]] = [item["item_id"] for item in one["items"]]
    assert processed(task, batch(RECOMMENDATIONS, records)) == []
    figures = task.lists.figures()[""]["recent"]
    assert (figures["lists"], figures["followed"], figures["hits"]) == (300, followed, hits) and hits > 100
    assert sum(figures["hits_by_place"]) == hits
    rungs = [one["rung"] for one in lists[:-1]]
    assert {rung: of["lists"] for rung, of in figures["rungs"].items()} == {r: rungs.count(r) for r in set(rungs)}
    assert set(figures["rungs"]) <= set(RUNGS[:-1]) and set(figures["sources"]) <= set(LIST_SOURCES[:-1])
    assert figures["coverage"] == 1.0
    learned = task.figures()[""]["weights"]
    assert 100 < learned["lists"] <= hits and any(learned["learned"].values()) and not any(learned["served"].values())


def test_cuts_restarts_and_what_is_sent_twice_never_show() -> None:
    records = lists_of()
    task = task_of()
    processed(task, batch(RECOMMENDATIONS, records))
    again = task_of()
    for first, part in cut([*records[:120], *records[90:]], [50, 100, 101, 250]):
        processed(again, batch(RECOMMENDATIONS, part, first))
        state = again.state()
        again = task_of()
        again.restore(state)
    expected, found = task.state(), again.state()
    for name in ("next_offset", "positions/dropped"):
        assert expected.pop(name) != found.pop(name)
    assert same_arrays(expected, found)


def test_a_pair_of_each_list_is_looked_at_with_what_it_was_ranked_by() -> None:
    records = lists_of(40, ListRules(explore=1.0))
    read, dead = read_lists(batch(RECOMMENDATIONS, records))
    runs = list(read.runs(np.arange(len(read))))
    assert not dead and len(runs) == 1 and runs[0].pairs is not None
    pairs = runs[0].pairs
    assert pairs.names == (*FEATURES, SCORE)
    for row, event, x in zip(pairs.row.tolist(), pairs.event.to_list(), pairs.x, strict=True):
        listed = orjson.loads(records[row].value or b"")
        assert listed["event_id"] == event
        vectors = np.array([*listed["features"].values(), [i["score"] for i in listed["items"]]], np.float64)
        assert any(np.array_equal(x, vector, equal_nan=True) for vector in vectors.T)


def test_what_is_no_list_goes_to_the_dead_letters() -> None:
    good = lists_of(3)
    bad = [Record(b"{"), Record(None), Record(good[0].value)]
    task = task_of()
    [letters] = processed(task, batch(RECOMMENDATIONS, [good[0], *bad, good[1]]))
    assert letters.topic == DEAD_LETTERS and list(letters.values) == [record.value for record in bad]
    assert task.pipeline.figures()["lists"] == 2 and task.pipeline.figures()["dead_letters"] == 3


def test_numbers_beyond_what_can_be_kept_are_dead_letters_and_no_features_are_none() -> None:
    good = lists_of(3, ListRules(explore=1.0))
    listed = orjson.loads(good[0].value or b"")

    def text(**more: Any) -> bytes:
        return json.dumps(listed | more).encode()

    source = good[0].headers
    bad = [Record(text(event_time=time), None, source) for time in (10**30, 2**63, -(2**63), 7)]
    bad += [Record(good[0].value, None, (("source", b"interactions/0/%d" % 2**70),))]
    bad += [Record(good[0].value, None, (("source", b"interactions/%d/1" % 2**63),))]
    bad += [Record(good[0].value, None, (("source", b"interactions/0/-1"),))]
    empty = Record(text(features={}, event_id=2**70), None, (("source", b"interactions/0/0"),))
    task = task_of()
    [letters] = processed(task, batch(RECOMMENDATIONS, [*bad, empty, *good[1:]]))
    assert list(letters.values) == [record.value for record in bad]
    assert task.pipeline.figures()["lists"] == len(good) == 4
    full = Record(text(features={"a": [2.0] * len(listed["items"])}), None, source)
    read, dead = read_lists(batch(RECOMMENDATIONS, [full, empty, full]))
    [run] = read.runs(np.arange(3))
    assert not dead and run.pairs is not None and run.pairs.row.tolist() == [0, 2] and listed["items"]


def test_weights_of_the_model_unused_for_longest_go() -> None:
    def learn(task: Any, models: list[int]) -> None:
        m, zeros = len(models), np.zeros(len(models), np.int64)
        shape = (m, LIST_MAX)
        outcomes = Outcomes(
            zeros, zeros, zeros, np.array(models), zeros, zeros, zeros > 0, zeros + 2, np.zeros(shape, np.int8),
            np.ones(shape),
        )  # fmt: skip
        task._learn([], outcomes, [f"m@{i}" for i in range(20)])

    used = [0, 1, 2, 3, 4, 5, 6, 7, 0, 8, 0, 9]
    whole, cut_up = task_of(), task_of()
    learn(whole, used)
    for model in used:
        learn(cut_up, [model])
    assert list(whole.weights) == list(cut_up.weights) == [f"m@{i}" for i in (3, 4, 5, 6, 7, 8, 0, 9)]
    assert whole.weights["m@0"].lists == 3


def test_a_replay_sends_nothing_and_leaves_the_same_state() -> None:
    records = lists_of(60)
    live, replayed = task_of(), task_of()
    processed(live, batch(RECOMMENDATIONS, records))
    assert processed(replayed, batch(RECOMMENDATIONS, records, replay=True)) == []
    assert same_arrays(live.state(), replayed.state())


def test_lists_that_get_worse_are_an_alert_on_the_topic() -> None:
    """Lists of five items, one a minute for five users, of which the second is taken until day 30, then one
    that is not in them."""
    pipeline = monitor_pipeline(partitions=1)
    task, records = pipeline.task(TP(RECOMMENDATIONS, 0)), []
    for i in range(36 * 300):
        day, user = i // 300, i % 5
        before = i - 5
        items = [(i * 7 + k) % 50 for k in range(5)]
        took = (before * 7 + (1 if day < 30 else 20)) % 50
        value = {
            "event_id": i, "event_time": NOW - 40 * DAY + day * DAY + (i % 300) * MINUTE, "user_id": f"u{user}",
            "items": [{"item_id": item, "score": 0.5, "source": "covisit"} for item in items],
            "model": "m@1", "rung": "ranked", "item_id": took, "action": "click", "features": None,
        }  # fmt: skip
        headers = (("source", f"interactions/0/{i}".encode()),)
        records.append(Record(orjson.dumps(value), f"u{user}".encode(), headers))
    [out] = processed(task, batch(RECOMMENDATIONS, records))
    alerts = [orjson.loads(value) for value in out.values]
    assert out.topic == FINDINGS and len(alerts) == 1 and pipeline.figures()["findings"] == 1
    alert = alerts[0]
    assert alert["kind"] == "list_performance" and out.keys == [b"findings"]
    assert alert["evidence"]["model"] == "m@1" and alert["evidence"]["partition"] == f"{RECOMMENDATIONS}/0"
    seen = alert["evidence"]["lists"]
    assert seen["hits"] < seen["followed"] / 2 and alert["severity"] == "critical"
    first_day = (NOW - 40 * DAY) // DAY
    assert alert["evidence"]["since"] // DAY - first_day in (29, 30, 31)


def test_the_fingerprints_of_the_two_stages_are_their_own() -> None:
    pipeline = monitor_pipeline()
    assert pipeline.fingerprint() != pipeline.fingerprint(RECOMMENDATIONS)
    assert [pipeline.state_of(topic).stage for topic in pipeline.inputs] == ["join", "lists", "incidents"]
