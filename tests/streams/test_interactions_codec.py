"""`interactions` from bytes to columns: one verdict per record, equal to the obvious validator's."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codec import JSON, NOW_MS, ODD_IDS, ODD_NUMBERS, ODD_TIMES, batch_of, check_against_oracle, json_bytes, rarely

from features.schema import ACTIONS, INTERACTIONS
from streams.codec import Decoder

GOOD = {"event_id": 1, "event_time": NOW_MS, "user_id": "u7", "item_id": 13, "action": "view"}
ODD_ACTIONS = st.one_of(st.sampled_from([*ACTIONS, "VIEW", "view ", "", 0, 1, True, None, 1.0, [], {}]), st.text())
VALUES = st.fixed_dictionaries(
    {
        "event_id": rarely(ODD_IDS, 1),
        "event_time": rarely(ODD_TIMES, NOW_MS),
        "user_id": rarely(ODD_IDS, 2),
        "item_id": rarely(ODD_IDS, "i3"),
        "action": rarely(ODD_ACTIONS, "cart"),
    },
    optional={"session_id": ODD_IDS, "category": ODD_IDS, "price": ODD_NUMBERS, "extra": JSON},
).map(json_bytes)


def decoded(**fields: Any) -> tuple[Any, list[Any]]:
    return Decoder(INTERACTIONS).decode(batch_of([orjson.dumps({**GOOD, **fields})], topic="interactions"))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(VALUES | st.binary(max_size=5), max_size=8))
def test_interactions_equal_the_oracle(values: list[bytes | None]) -> None:
    check_against_oracle(INTERACTIONS, values, [NOW_MS] * len(values))


@pytest.mark.parametrize(("place", "action"), list(enumerate(ACTIONS)))
def test_an_action_is_its_place_among_the_actions(place: int, action: str) -> None:
    block, dead = decoded(action=action)
    assert not dead and block.columns["action"].tolist() == [place]


@pytest.mark.parametrize(
    ("action", "finding", "says"),
    [
        ("look", "unseen_category", "action 'look': none of those that are known; send one of view, click, cart, purc"),
        (1, "wrong_type", "action 1: a number, not a string; send one of view"),
        (None, "missing", "action: missing or null; send one of view"),
    ],
)
def test_another_action_is_refused_with_the_remedy_and_counted(action: Any, finding: str, says: str) -> None:
    decoder = Decoder(INTERACTIONS)
    block, [dead] = decoder.decode(batch_of([orjson.dumps({**GOOD, "action": action})], topic="interactions"))
    assert len(block) == 0 and dead.reason.startswith(says)
    assert decoder.quality.to_dict()["action"] == {finding: 1}


def test_what_may_be_absent() -> None:
    block, dead = decoded()
    assert not dead and math.isnan(block.columns["price"][0])
    assert not block.columns["session_id_present"][0] and not block.columns["category_present"][0]
    block, _ = decoded(session_id="s", category=4, price=2.5)
    assert block.columns["price"].tolist() == [2.5] and block.ids["category"].to_list() == [4]
