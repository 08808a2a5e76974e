"""Lists for training: those that were served live, and blind to what comes later."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson
from fraud_logs import Record
from recommend_logs import ShopFed, shop_pipeline, walk

from features.block import Block
from features.schema import INTERACTIONS
from features.shopping import FEATURES
from models.rank import Ranked
from streams.codec import Decoder
from streams.log import TP, RecordBatch
from streams.pipelines.recommend_lists import ListRules
from streams.pipelines.recommend_stages import ShopSettings
from streams.shop_offline import served_lists

SETTINGS = ShopSettings(publish_ms=60_000)


def block_of(records: Sequence[Record]) -> Block:
    values = [record.value for record in records]
    n = len(values)
    batch = RecordBatch(TP(INTERACTIONS.topic, 0), list(range(n)), [-1] * n, [None] * n, values, lambda i: [], n)
    return Decoder(INTERACTIONS).decode(batch)[0]


def lists_of(records: Sequence[Record]) -> Ranked:
    [lists] = served_lists(block_of(records), SETTINGS, 8, [(0, 2**60)], 10_000)
    return lists


def test_they_are_the_lists_that_were_served_live() -> None:
    records = walk(1_500)
    fed = ShopFed(shop_pipeline(ListRules(length=8, candidates=8, exclude_bought=False), settings=SETTINGS))
    live = [listed for first in range(0, len(records), 512) for listed in fed.feed(records[first : first + 512])]
    made = lists_of(records)
    last = {orjson.loads(r.value or b"")["user_id"]: i for i, r in enumerate(records)}
    asked = [i for i in range(len(records)) if i not in last.values()]
    assert len(made) == len(asked)
    compared = 0
    for k, i in enumerate(asked):
        if live[i]["rung"] != "candidates":
            continue
        x = made.x[made.begin[k] : made.begin[k + 1]]
        served = np.array([live[i]["features"][name] for name in FEATURES], np.float64).T
        np.testing.assert_array_equal(x, served[: len(x)])
        following = next(r for r in records[i + 1 :] if r.key == records[i].key)
        items = [item["item_id"] for item in live[i]["items"]][: len(x)]
        clicked = [item == orjson.loads(following.value or b"")["item_id"] for item in items]
        assert made.clicked[made.begin[k] : made.begin[k + 1]].tolist() == clicked
        compared += 1
    assert compared > 900


def test_no_list_knows_what_comes_later() -> None:
    records = walk(1_100)
    rng = np.random.default_rng(3)
    half = 600

    def other(record: Record) -> Record:
        event = orjson.loads(record.value or b"")
        return Record(orjson.dumps({**event, "item_id": int(rng.integers(12)), "action": "cart"}), record.key)

    made, changed = lists_of(records), lists_of([*records[:half], *map(other, records[half:])])
    lists = sum(1 for i in range(half) if any(r.key == records[i].key for r in records[i + 1 :]))
    end = int(made.begin[lists])
    np.testing.assert_array_equal(made.begin[: lists + 1], changed.begin[: lists + 1])
    np.testing.assert_array_equal(made.x[:end], changed.x[:end])
    assert end > 500 and not np.array_equal(made.x[end:], changed.x[end:])


def test_lists_of_ranges_of_time_no_more_than_asked_for() -> None:
    events = block_of(walk(300))
    middle = int(events.event_time_ms[150])
    whole, first, second, none = served_lists(
        events, SETTINGS, 5, [(0, 2**60), (0, middle), (middle, 2**60), (0, 1)], 300
    )
    assert len(first) + len(second) == len(whole) > 280 and len(none) == 0
    np.testing.assert_array_equal(np.concatenate([first.x, second.x]), whole.x)
    [some] = served_lists(events, SETTINGS, 5, [(0, 2**60)], 50)
    assert len(some) == 50 and np.diff(some.begin).max() <= 5
