"""Rules of a list against their obvious reading, and what is explored."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.pipelines.recommend_lists import ListRules, choose, drawn, explores


def naive(order: list[int], rules: ListRules, blocked: list[bool], categories: list[int]) -> list[int]:
    allowed = [i for i in order if not blocked[i]] or order
    within, surplus, seen = [], [], Counter[int]()
    for i in allowed:
        seen[categories[i]] += 1
        full = rules.category_max and categories[i] and seen[categories[i]] > rules.category_max
        (surplus if full else within).append(i)
    listed = (within + surplus)[: rules.length]
    return [i for i in order if i in listed]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_the_rules_equal_their_obvious_reading(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 12))
    order = data.draw(st.permutations(range(n)))
    blocked = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    categories = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    rules = ListRules(length=data.draw(st.integers(1, 8)), category_max=data.draw(st.integers(0, 3)))
    got = choose(np.array(order, np.int64), rules, np.array(blocked, np.bool_), np.array(categories, np.int64))
    assert got.tolist() == naive(order, rules, blocked, categories)


def test_exploration_takes_its_share_and_every_place_and_item_alike() -> None:
    rules = ListRules(explore=0.3)
    words = [explores(rules, offset % 3, offset) for offset in range(20_000)]
    chosen = [drawn(word, 4, 5) for word in words if word is not None]
    assert abs(len(chosen) / 20_000 - 0.3) < 0.02
    counts = Counter(chosen)
    assert len(counts) == 20 and max(counts.values()) < 1.3 * min(counts.values())
    assert words == [explores(rules, offset % 3, offset) for offset in range(20_000)]
    other = ListRules(explore=0.3, explore_seed=2)
    assert words != [explores(other, offset % 3, offset) for offset in range(20_000)]


def test_all_lists_or_none_explore() -> None:
    assert all(explores(ListRules(explore=0.0), 0, offset) is None for offset in range(100))
    assert all(explores(ListRules(explore=1.0), 0, offset) is not None for offset in range(100))
