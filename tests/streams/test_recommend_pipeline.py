"""The recommend pipeline's tasks as functions of their logs: a list after each event, whatever is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from fraud_logs import Logs, Record, batch, cut, processed, rows_of
from monitor_logs import monitor_pipeline
from recommend_logs import MINUTE, NOW, Ranker, ShopFed, interaction, shop_pipeline, walk

from features.block import Block, Ids
from features.plan import BoundError
from features.shopping import FEATURES, SOURCES
from models.slot import ModelSlot
from streams.log import TP
from streams.partitioner import partition_of_key
from streams.pipelines.recommend_lists import ListRules
from streams.pipelines.recommend_serving import Serving
from streams.pipelines.recommend_stages import ItemStage, ShopSettings, said_times
from streams.pipelines.recommend_withdrawn import Withdrawn, decisions, notes
from streams.shuffle import unpack
from streams.topics import BY_ITEM, DEAD_LETTERS, INTERACTIONS, ITEMS, RECOMMENDATIONS, SOURCE_WEIGHTS

DAY = 1_440 * MINUTE


def items_of(listed: dict[str, Any]) -> list[Any]:
    return [item["item_id"] for item in listed["items"]]


def slot_with(column: str) -> ModelSlot:
    return ModelSlot(Ranker(FEATURES.index(column)))  # type: ignore[arg-type]


def with_items(rules: ListRules | None = None, slot: ModelSlot | None = None, end: int = NOW) -> ShopFed:
    """A shop whose items are known: 12 of them, seen by users who go from one to the next."""
    fed = ShopFed(shop_pipeline(rules, slot=slot))
    fed.feed(walk(200, end=end))
    fed.feed([interaction("tick", end + MINUTE, "ticker", 0)])
    return fed


# --- records ---


def test_a_list_after_each_event_with_the_fields_of_the_contract() -> None:
    fed = with_items()
    [listed] = fed.feed([interaction("e1", NOW + MINUTE, "u1", 5)])
    assert list(listed) == [
        "event_id",
        "event_time",
        "user_id",
        "items",
        "model",
        "rung",
        "item_id",
        "action",
        "weights",
        "features",
    ]
    assert (listed["event_id"], listed["event_time"], listed["user_id"]) == ("e1", NOW + MINUTE, "u1")
    assert listed["model"] is None and listed["rung"] == "candidates" and listed["weights"] is None
    assert [set(item) for item in listed["items"]] == [{"item_id", "score", "source"}] * len(listed["items"])
    assert set(items_of(listed)) <= set(range(12)) and items_of(listed)[0] in (6, 7)
    record = fed.logs.of(RECOMMENDATIONS)[-1]
    assert record.key == b"u1" and record.headers == (("source", b"interactions/0/201"),)
    assert len(fed.logs.of(RECOMMENDATIONS)) == 202


def test_features_are_logged_as_served() -> None:
    [listed] = with_items(slot=slot_with("last_after1")).feed([interaction("e1", NOW + MINUTE, "u1", 5)])
    assert list(listed["features"]) == list(FEATURES) and listed["model"] == "ranker@1"
    scores = [item["score"] for item in listed["items"]]
    assert listed["features"]["last_after1"][: len(scores)] == scores == sorted(scores, reverse=True)


def test_a_source_that_has_turned_bad_gives_way_and_the_record_says_by_which_weights() -> None:
    """What the source of the first item names is clicked no more: the monitor learns it from the lists, and what it
    writes changes their order, of this model only, until it is taken back."""
    fed = with_items(slot=slot_with("covisit"))
    task = monitor_pipeline(partitions=1).task(TP(RECOMMENDATIONS, 0))
    [before] = fed.feed([interaction("e1", NOW + MINUTE, "u1", 5)])
    rng, records = np.random.default_rng(1), []
    sources = np.array([item["source"] for item in before["items"]])
    good = np.array(items_of(before))[sources != sources[0]]
    assert len(good) > 1
    for i in range(3_000):
        one = {**before, "event_id": i, "event_time": NOW + i, "user_id": "u1", "item_id": int(rng.choice(good))}
        headers = (("source", b"interactions/0/%d" % i),)
        records.append(Record(orjson.dumps(one), b"u1", headers))
    [out] = processed(task, batch(RECOMMENDATIONS, records))
    assert out.topic == SOURCE_WEIGHTS and out.partition == 0 and set(out.keys or []) == {b'"ranker@1"'}
    said = [Record(value, key) for key, value in zip(out.keys or [], out.values, strict=True)]
    other = Record(orjson.dumps({**orjson.loads(said[-1].value or b""), "model": "other@1"}), b'"other@1"')
    fed.pipeline.serving.apply([batch(SOURCE_WEIGHTS, [other, Record(b"{"), Record(None, b"x")])])
    assert fed.feed([interaction("e2", NOW + MINUTE, "u1", 5)])[0]["weights"] is None
    fed.pipeline.serving.apply([batch(SOURCE_WEIGHTS, said)])
    [after] = fed.feed([interaction("e3", NOW + MINUTE, "u1", 5)])
    assert after["weights"] == orjson.loads(said[-1].value or b"")["weights"] and set(after["weights"]) == set(SOURCES)
    assert items_of(after)[0] in good and after["items"][0]["score"] < max(i["score"] for i in after["items"])
    places = [item["score"] + after["weights"][item["source"]] for item in after["items"]]
    assert places == sorted(places, reverse=True)
    assert [item["score"] for item in after["items"]] == after["features"]["covisit"][: len(places)]
    zeros = Record(orjson.dumps({"model": "ranker@1", "weights": dict.fromkeys(SOURCES, 0.0)}))
    fed.pipeline.serving.apply([batch(SOURCE_WEIGHTS, [zeros])])
    assert fed.feed([interaction("e4", NOW + MINUTE, "u1", 5)])[0]["weights"] is None
    assert fed.pipeline.meters.counts["weights_unreadable"] == 2


def test_what_cannot_be_read_goes_to_the_dead_letters_with_its_bytes() -> None:
    fed = ShopFed(shop_pipeline())
    bad = [Record(b"{", b"k"), Record(None), interaction(1, action="look"), interaction(2, NOW + DAY)]
    fed.feed([interaction(0), *bad])
    letters = fed.logs.of(DEAD_LETTERS)
    assert [(r.value, r.key) for r in letters] == [(r.value, r.key) for r in bad]
    assert [dict(r.headers)["source"] for r in letters] == [b"interactions/0/%d" % i for i in range(1, 5)]
    assert dict(letters[2].headers)["error"].startswith(b"action 'look': none of those that are known")
    assert dict(letters[0].headers)["stage"] == b"user"


def test_an_event_that_is_repeated_counts_once() -> None:
    fed = ShopFed(shop_pipeline())
    fed.feed([interaction(7), interaction(7), Record(b"x"), interaction(8)])
    fed.feed([interaction("7", NOW + 5)])
    figures = fed.pipeline.figures()
    assert (figures["received"], figures["recommended"], figures["dead_letters"], figures["duplicates"]) == (5, 2, 1, 2)


# --- state ---


def runs(records: Sequence[Record], cuts: Sequence[int], restart: bool = False) -> tuple[list[Any], list[Any], Any]:
    """What the two stages write, and their states, for a log cut at these places."""
    pipeline, logs = shop_pipeline(), Logs()
    published = Logs()
    users, items = pipeline.task(TP(INTERACTIONS, 0)), pipeline.task(TP(BY_ITEM, 0))
    for first, piece in cut(records, cuts):
        before = len(logs.of(BY_ITEM))
        logs.take(processed(users, batch(INTERACTIONS, piece, first)), 1)
        published.take(processed(items, batch(BY_ITEM, logs.of(BY_ITEM)[before:], before)), 1)
        if restart:
            pairs = [(pipeline.task(task.tp), task) for task in (users, items)]
            for fresh, old in pairs:
                fresh.restore(old.state())
            (users, _), (items, _) = pairs
    states = {f"{t.tp.topic}/{name}": a for t in (users, items) for name, a in t.state().items()}
    return rows_of(logs.of(BY_ITEM)), published.of(ITEMS), states


@pytest.mark.parametrize("restart", [False, True])
def test_neither_cuts_nor_restarts_show(restart: bool) -> None:
    records = [*walk(150), Record(b"{"), walk(3)[0], interaction("late", NOW - 2 * DAY, "u1", "text")]
    rows, published, states = runs(records, [])
    assert len(published) > 12
    for cuts in ([1], [40, 41, 90], range(10, 150, 10)):
        again_rows, again_published, again_states = runs(records, list(cuts), restart)
        assert again_rows == rows and again_published == published
        for name in states:
            if name != f"{BY_ITEM}/next_offset":  # counts messages, which are made by block
                np.testing.assert_array_equal(states[name], again_states[name], name)


def test_rows_that_are_sent_again_change_nothing() -> None:
    pipeline, logs = shop_pipeline(), Logs()
    logs.take(processed(pipeline.task(TP(INTERACTIONS, 0)), batch(INTERACTIONS, walk(60))), 1)
    logs.take(processed(pipeline.task(TP(INTERACTIONS, 0)), batch(INTERACTIONS, walk(60)[20:40], 20)), 1)
    once, twice = pipeline.task(TP(BY_ITEM, 0)), pipeline.task(TP(BY_ITEM, 0))
    processed(once, batch(BY_ITEM, logs.of(BY_ITEM)[:1]))
    processed(twice, batch(BY_ITEM, logs.of(BY_ITEM)))
    for name, array in once.stage.to_arrays().items():
        np.testing.assert_array_equal(array, twice.stage.to_arrays()[name], name)
    assert pipeline.figures()["resent_rows"] > 20


def test_replay_sends_nothing_and_goes_on_as_if_it_had() -> None:
    whole, replayed = ShopFed(shop_pipeline()), ShopFed(shop_pipeline())
    whole.feed(walk(50)[:30])
    assert processed(replayed.users, batch(INTERACTIONS, walk(50)[:30], replay=True)) == []
    assert processed(replayed.items, batch(BY_ITEM, whole.logs.of(BY_ITEM), replay=True)) == []
    sent = len(whole.logs.of(BY_ITEM))
    whole.feed(walk(50)[30:])
    replayed.feed(walk(50)[30:])
    assert rows_of(replayed.logs.of(BY_ITEM)) == rows_of(whole.logs.of(BY_ITEM)[sent:])
    assert replayed.pipeline.figures()["replayed"] == 30


def test_the_fingerprint_tells_settings_of_the_stage_apart() -> None:
    prints = {
        (topic, changed): shop_pipeline(partitions=partitions).fingerprint(topic)
        for topic in (INTERACTIONS, BY_ITEM)
        for changed, partitions in (("", 1), ("partitions", 2))
    }
    assert len(set(prints.values())) == 4


# --- the ladder ---


def test_a_worker_that_knows_no_item_serves_what_the_user_saw() -> None:
    fed = ShopFed(shop_pipeline())
    lists = fed.feed([interaction(0, NOW, "u", "a"), interaction(1, NOW + 1, "u", "b")], view=False)
    assert [items_of(listed) for listed in lists] == [["a"], ["b", "a"]]
    assert {listed["rung"] for listed in lists} == {"repeats"} and lists[0]["features"] is None


def test_an_unknown_user_at_an_unknown_item_gets_what_trends() -> None:
    [listed] = with_items().feed([interaction(1000, NOW + MINUTE, "nobody", "new thing")])
    assert listed["rung"] == "trending" and len(listed["items"]) >= 12
    assert {item["source"] for item in listed["items"]} <= {"trending", "popular"}


def test_an_item_that_nobody_was_seen_with_gets_its_category() -> None:
    fed = with_items()
    fed.feed([interaction(900, NOW + MINUTE, "one", "lonely", category=1)])
    fed.feed([interaction(900 + i, NOW + 2 * MINUTE, f"ticker{i}", item) for i, item in enumerate([0, "lonely"], 1)])
    [listed] = fed.feed([interaction(1000, NOW + 2 * MINUTE, "nobody", "lonely")])
    assert listed["rung"] == "category"
    of_category = [item["item_id"] for item in listed["items"] if item["source"] == "category"]
    assert of_category and all(item % 3 == 1 for item in of_category)


def test_when_nothing_trends_any_more_the_popular_is_served() -> None:
    [listed] = with_items(end=NOW - 40 * DAY).feed([interaction(1000, NOW, "nobody", "new thing")])
    assert listed["rung"] == "popular" and len(listed["items"]) >= 12


def test_an_unknown_user_at_a_known_item_gets_its_neighbours() -> None:
    [listed] = with_items().feed([interaction(1000, NOW + MINUTE, "nobody", 3)])
    assert listed["rung"] == "candidates" and items_of(listed)[0] in (1, 2, 4, 5)


def test_a_model_ranks() -> None:
    [listed] = with_items(slot=slot_with("last_before1")).feed([interaction(1000, NOW + MINUTE, "nobody", 3)])
    assert listed["rung"] == "ranked" and set(items_of(listed)[:2]) == {1, 2}, "who is before, as the model has it"


def test_a_list_that_is_short_is_filled_with_the_popular() -> None:
    fed = with_items(ListRules(length=12, candidates=2))
    [listed] = fed.feed([interaction(1000, NOW + MINUTE, "nobody", 3)])
    assert sorted(items_of(listed)) == list(range(12))
    assert [item["source"] for item in listed["items"][2:]] == ["popular"] * 10
    assert listed["items"][-1]["score"] is None and listed["features"]["prior"][-1] is None


def test_damaged_records_of_items_count_and_harm_no_other() -> None:
    fed = with_items()
    good = fed.logs.of(ITEMS)[-1]
    before = fed.pipeline.serving.known
    fed.pipeline.serving.apply([batch(ITEMS, [Record(b"?", b"x"), good, Record(None, b"y")])])
    assert fed.pipeline.meters.counts["items_unreadable"] == 1 and fed.pipeline.serving.known == before


# --- rules ---


@pytest.mark.parametrize("by", ["null", "decision"])
def test_a_withdrawn_item_is_never_recommended_again(by: str) -> None:
    fed = with_items(ListRules(explore=1.0))
    asked = [interaction(f"e{i}", NOW + (2 + i) * MINUTE, f"u{i % 7}", 5, category=2) for i in range(14)]
    assert any(6 in items_of(listed) for listed in fed.feed(asked[:7]))
    told = [Record(None, b"6")] if by == "null" else [as_record(out) for out in decisions([b"6"], 1, True)]
    fed.pipeline.serving.apply([batch(ITEMS, told)])
    [listed] = fed.feed([interaction("own", NOW + 8 * MINUTE, "u9", 6)])
    lists = [listed, *fed.feed(asked[7:])]
    assert len([r for r in fed.logs.of(ITEMS) if r.key == b"6"]) > 1, "the item stage knows nothing of it"
    # whoever comes later knows it, also where compaction has left nothing but what was noted
    unnoted = fed.pipeline.serving.unnoted()
    assert unnoted == ({b"6": 0} if by == "null" else {}) and fed.pipeline.serving.unnoted() == {}
    other = shop_pipeline(ListRules(explore=1.0))
    kept = [as_record(out) for out in notes(unnoted, 1)] or told
    other.serving.apply([batch(ITEMS, [*kept, *fed.logs.of(ITEMS)])])
    assert other.serving.unnoted() == {} and other.serving.known == 11
    fed.pipeline.serving = other.serving
    lists += fed.feed([interaction(f"f{i}", NOW + (20 + i) * MINUTE, "u1", 5) for i in range(7)])
    assert all(listed["items"] and 6 not in items_of(listed) for listed in lists)
    other.serving.apply([batch(ITEMS, [as_record(out) for out in decisions([b"6"], 1, False)], 9_999)])
    fed.feed([interaction("g", NOW + 30 * MINUTE, "u1", 6), interaction("h", NOW + 32 * MINUTE, "u1", 5)])
    [listed] = fed.feed([interaction("i", NOW + 33 * MINUTE, "u2", 5)])
    assert 6 in items_of(listed)


def test_a_note_that_comes_late_does_not_undo_what_was_decided_meanwhile() -> None:
    """Whatever compaction has left, of each key the last record, and whoever notes the first null once more."""
    [restored], [withdrawn] = decisions([b"6"], 1, False), decisions([b"6"], 1, True)
    records = [Record(None, b"6"), as_record(restored), as_record(notes({b"6": 0}, 1)[0])]
    for kept in ([0, 1, 2], [0, 1], [1, 2], [2, 1], [1]):
        found = Withdrawn()
        for i in kept:
            found.take([batch(ITEMS, [records[i]], i)])
        assert b"6" not in found and found.unnoted() == {}, kept
        again = found.take([batch(ITEMS, [Record(None, b"6"), Record(b"item", b"6"), Record(b"?", b"\xfe6")], 7)])
        assert again == ({}, [b"6"]) and b"6" in found and found.unnoted() == {b"6": 7}
        assert found.take([batch(ITEMS, [as_record(restored), as_record(withdrawn), Record(b"i", b"6")], 10)])[0] == {}


def test_a_withdrawn_item_is_not_repeated_where_no_item_is_known() -> None:
    fed = ShopFed(shop_pipeline())
    fed.pipeline.serving.apply([batch(ITEMS, [Record(None, b"x")])])
    lists = fed.feed([interaction(1, item="x"), interaction(2, item=7), interaction(3, item="7")])
    assert [items_of(listed) for listed in lists] == [[], [7], ["7"]]


def as_record(out: Any) -> Record:
    return Record(out.values[0], out.keys[0])


def test_what_was_bought_is_left_out_unless_nothing_else_is_there() -> None:
    bought = [interaction(1000 + i, NOW + MINUTE + i, "buyer", i, "purchase") for i in range(3, 8)]
    event = interaction(2000, NOW + MINUTE + 9, "buyer", 3)
    fed = with_items()
    fed.feed(bought)
    [listed] = fed.feed([event])
    assert listed["items"] and not set(items_of(listed)) & set(range(3, 8))
    fed = with_items(ListRules(exclude_bought=False))
    fed.feed(bought)
    [listed] = fed.feed([event])
    assert set(items_of(listed)) & set(range(3, 8))
    fed = with_items()
    fed.feed([interaction(1000 + i, NOW + MINUTE + i, "buyer", i, "purchase") for i in range(12)])
    assert fed.feed([event])[0]["items"], "all are bought: still no empty list"


def test_no_category_takes_the_list() -> None:
    fed = with_items(ListRules(length=6, category_max=2))
    [listed] = fed.feed([interaction(1000, NOW + MINUTE, "nobody", 3)])
    categories = [item % 3 for item in items_of(listed)]
    assert len(categories) == 6 and max(map(categories.count, range(3))) <= 2
    scores = [item["score"] for item in listed["items"]]
    assert scores == sorted(scores, reverse=True)


# --- exploration ---


def test_exploration_is_logged_with_what_it_was_drawn_from() -> None:
    rules = ListRules(length=4, explore=0.5, candidates=8)
    fed = with_items(rules)
    lists = [fed.feed([interaction(1000 + i, NOW + MINUTE, f"n{i}", 3)])[0] for i in range(60)]
    explored = [[item for item in listed["items"] if item["source"] == "exploration"] for listed in lists]
    assert 15 <= sum(map(len, explored)) <= 45 and max(map(len, explored)) == 1
    for listed, drawn in zip(lists, explored, strict=True):
        assert len(set(items_of(listed))) == 4
        for item in listed["items"]:
            # of 12 items, 4 would be in the list; one of its places is drawn anew, from the other 8
            assert item["propensity"] == pytest.approx(0.5 / 4 / 8 if item in drawn else 1 - 0.5 / 4)
            assert (item["score"] is None) == (item in drawn)
    again = with_items(rules)
    assert [again.feed([interaction(1000 + i, NOW + MINUTE, f"n{i}", 3)])[0] for i in range(3)] == lists[:3]


def test_the_trained_and_the_logged_vector_are_the_same() -> None:
    """Two workers with the same view log the same features for the same event, to the bit."""
    first, second = with_items(), with_items(slot=slot_with("knn"))
    event = [interaction(1000, NOW + MINUTE, "u2", 4)]
    [one], [other] = first.feed(event), second.feed(event)
    mine = {item["item_id"]: [one["features"][name][i] for name in FEATURES] for i, item in enumerate(one["items"])}
    for i, item in enumerate(other["items"]):
        if item["item_id"] in mine:
            assert mine[item["item_id"]] == [other["features"][name][i] for name in FEATURES]
    assert orjson.dumps(one["features"]) != orjson.dumps(other["features"]), "in another order"


# --- one worker or many ---


def lists_of(partitions: int, workers: int) -> list[dict[str, Any]]:
    """Lists for probing events, once the items that ``workers`` have made of a log in ``partitions`` are read."""
    pipelines = [shop_pipeline(partitions=partitions) for _ in range(workers)]
    logs = Logs()
    ticks = [interaction(f"t{i}", NOW + MINUTE, "ticker", i) for i in range(12)]
    records = [*walk(300), *ticks]
    of_partition: dict[int, list[Record]] = {}
    for record in records:
        assert record.key is not None
        of_partition.setdefault(partition_of_key(record.key, partitions), []).append(record)
    for p, mine in sorted(of_partition.items()):
        logs.take(
            processed(pipelines[p % workers].task(TP(INTERACTIONS, p)), batch(INTERACTIONS, mine, 0, p)), partitions
        )
    ticker = partition_of_key(b"ticker", partitions)
    for p in range(partitions):
        rows = logs.records[BY_ITEM, p]
        rows.sort(key=lambda record: unpack(record.value).source.partition == ticker)  # the others' events are older
        logs.take(processed(pipelines[p % workers].task(TP(BY_ITEM, p)), batch(BY_ITEM, rows, 0, p)), partitions)
    reader = shop_pipeline()
    reader.serving.apply([batch(ITEMS, logs.of(ITEMS))])
    probes = [interaction(f"p{i}", NOW + MINUTE, f"p{i % 5}", i) for i in range(12)]
    sent = processed(reader.task(TP(INTERACTIONS, 0)), batch(INTERACTIONS, probes))
    return [orjson.loads(v or b"") for out in sent if out.topic == RECOMMENDATIONS for v in out.values]


def test_many_workers_know_of_items_what_one_knows() -> None:
    one = lists_of(1, 1)
    for partitions, workers in ((4, 1), (4, 3)):
        for mine, theirs in zip(one, lists_of(partitions, workers), strict=True):
            assert set(items_of(mine)) == set(items_of(theirs)) and len(mine["items"]) >= 12
            scores = {item["item_id"]: item["score"] for item in theirs["items"]}
            for item in mine["items"]:
                assert scores[item["item_id"]] == pytest.approx(item["score"], rel=0.01)


@pytest.mark.parametrize(("n", "whose"), [(5_000, "users"), (2_000, "items")])
def test_memory_beyond_the_bound_ends_the_worker_by_name(n: int, whose: str) -> None:
    few = ShopSettings(publish_ms=MINUTE, state_bytes_max=1_000_000)
    fed = ShopFed(shop_pipeline(settings=few))
    fed.feed(walk(200))
    many = [interaction(f"e{i}", NOW, i if whose == "users" else 1, i if whose == "items" else 1) for i in range(n)]
    with pytest.raises(BoundError, match=rf"{whose[:-1]}_id: \d+ {whose} of .* bytes, more than the 1000000"):
        list(map(fed.feed, (many[part : part + 500] for part in range(0, n, 500))))


def test_items_are_published_though_time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.pipelines.recommend_stages._ROWS_MIN", 64)
    monkeypatch.setattr("streams.pipelines.recommend_stages._ROWS_MAX", 512)
    records = [interaction(i, NOW, i % 5, (i * i) % 11) for i in range(400)]
    results = []
    for pieces in ([records[:150], records[150:]], [[record] for record in records]):
        fed = ShopFed(shop_pipeline())
        lists = [listed for piece in pieces for listed in fed.feed(piece)]
        results.append([(r.key, r.value) for r in fed.logs.of(ITEMS)])
    assert results[0] == results[1] and 40 < len(results[0]) < 100, len(results[0])
    assert lists[-1]["rung"] == "candidates"
    ids = [str(item) for item in items_of(fed.feed([interaction("new", NOW, 77, "3")])[0])]
    assert len(set(ids)) == len(ids)


def test_an_event_of_a_clock_that_is_ahead_does_not_stop_the_publication() -> None:
    sent, zeros = NOW + np.arange(6) * MINUTE, np.zeros(6, np.int64)
    times = sent + 50 * MINUTE * (np.arange(6) == 1)
    columns = {"event_time": times, **dict.fromkeys(("action", "lag", "other", "session"), zeros)}
    block = Block(BY_ITEM, 0, 6, np.arange(6), sent, {"item_id": Ids(ints=np.arange(6))}, columns)
    published = [records.ids.to_list() for records in ItemStage(ShopSettings(publish_ms=MINUTE)).process(block)]
    assert published == [[i] for i in range(5)]
    assert said_times(replace(block, timestamps=zeros)).tolist() == times.tolist(), "not known when it was sent"


def test_a_worker_waits_for_the_items_once_and_not_for_each_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Serving, "catch_up", lambda self, caught_up, timeout_s: waits.append(timeout_s))
    pipeline = shop_pipeline(partitions=3)
    for p in range(3):
        pipeline.task(TP(INTERACTIONS, p))
    assert waits == [0.0]
