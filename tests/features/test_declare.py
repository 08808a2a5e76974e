"""The little language: what it makes, and what it says of what cannot be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from features.block import Block, Ids
from features.declare import FeatureError, FeatureSet, RowFeature, WindowFeature, by, duration_ms, field, night, weekend
from features.engine import row_features
from features.fraud import DEFAULT
from features.schema import SCHEMAS, TRANSACTION_LABELS, TRANSACTIONS

DAY_MS = 86_400_000


def test_default_set_is_the_contract() -> None:
    assert DEFAULT.names == (
        "amount", "is_weekend", "is_night",
        "card_count_1d", "card_mean_amount_1d", "card_count_7d", "card_mean_amount_7d", "card_count_30d",
        "card_mean_amount_30d",
        "terminal_count_1d", "terminal_risk_1d", "terminal_count_7d", "terminal_risk_7d", "terminal_count_30d",
        "terminal_risk_30d",
    )  # fmt: skip
    assert DEFAULT.entities == ("card_id", "terminal_id")
    assert DEFAULT.positions(DEFAULT.for_entity("terminal_id")) == [9, 10, 11, 12, 13, 14]
    assert {f.delay_ms for f in DEFAULT.for_entity("terminal_id")} == {7 * DAY_MS}


def test_a_group_is_a_value() -> None:
    cards = by("card_id").count("1d")
    assert [f.name for f in cards.mean("amount", "90s")] == ["card_count_1d", "card_mean_amount_90s"]
    assert list(cards) == [WindowFeature("card_count_1d", "card_id", "count", None, DAY_MS, 0, "events")]


@pytest.mark.parametrize(("text", "ms"), [("90s", 90_000), ("5m", 300_000), ("1h", 3_600_000), ("30d", 30 * DAY_MS)])
def test_durations(text: str, ms: int) -> None:
    assert duration_ms(text) == ms


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: by("card"), r"by\('card'\).*choose one of transaction_id, card_id, terminal_id"),
        (lambda: by("amount"), "no such id field"),
        (lambda: by("card_id").mean("price", "1d"), r"card_mean_price_1d: field 'price'.*not exist.*choose.*amount"),
        (lambda: by("card_id").sum("card_id", "1d"), "card_sum_card_id_1d: field 'card_id'.*is of kind id"),
        (lambda: by("card_id").count("1 day"), "card_count_1 day.*is not a feature name"),
        (lambda: by("card_id").count("1day", name="c"), "c: '1day' is not a duration; write"),
        (lambda: by("card_id").count("0d"), "card_count_0d: a window of '0d' holds nothing"),
        (lambda: by("card_id").count("9999d"), "card_count_9999d.*ten years"),
        (lambda: by("card_id").count("1d", delay="x"), "card_count_1d: 'x' is not a duration"),
        (lambda: by("card_id").risk("1d", delay="0s"), "card_risk_1d: a risk without a delay.*own label"),
        (lambda: field("time"), "time: field 'time' of transactions does not exist"),
        (lambda: FeatureSet("s", []), "'s' is empty"),
        (lambda: FeatureSet("s", [by("card_id").count("1d").count("1d", delay="1d")]), "card_count_1d: declared twice"),
        (lambda: DEFAULT.for_entity("transaction_id"), "no features by 'transaction_id'; it has card_id, terminal_id"),
    ],
)  # fmt: skip
def test_errors_name_feature_field_and_remedy(declare: Callable[[], object], said: str) -> None:
    with pytest.raises(FeatureError, match=said):
        declare()


def test_hash_changes_with_every_part_of_a_definition() -> None:
    variants = [
        FeatureSet("s", [by("card_id").count("1d", name="f")]),
        FeatureSet("s", [by("card_id").count("2d", name="f")]),
        FeatureSet("s", [by("card_id").count("1d", name="g")]),
        FeatureSet("s", [by("card_id").count("1d", name="f", delay="1d")]),
        FeatureSet("s", [by("card_id").sum("amount", "1d", name="f")]),
        FeatureSet("s", [by("card_id").mean("amount", "1d", name="f")]),
        FeatureSet("s", [by("terminal_id").count("1d", name="f")]),
        FeatureSet("s", [weekend(), night()]),
        FeatureSet("s", [night(), weekend()]),
    ]
    assert len({v.schema_hash for v in variants}) == len(variants)
    assert variants[0].schema_hash == FeatureSet("t", [by("card_id").count("24h", name="f")]).schema_hash


def test_describe() -> None:
    rows = {row["name"]: row for row in DEFAULT.describe()}
    assert list(rows) == list(DEFAULT.names)
    assert rows["terminal_risk_7d"] == {
        "name": "terminal_risk_7d", "entity": "terminal_id", "what": "risk",
        "window": "7d", "delay": "7d", "unit": "share",
    }  # fmt: skip
    assert rows["card_mean_amount_1d"]["what"] == "mean of amount"
    assert rows["is_night"]["what"] == "night of event_time (UTC)"


def test_row_features_at_the_edges_of_day_and_week() -> None:
    friday_ms = 1_522_972_800_000 - DAY_MS + DAY_MS  # 2018-04-06T00:00:00Z
    hour_ms = 3_600_000
    times = friday_ms + np.array([0, 7 * hour_ms - 1, 7 * hour_ms, DAY_MS - 1, DAY_MS, 3 * DAY_MS - 1, 3 * DAY_MS])
    block = Block(
        "t", 0, 7, np.arange(7), times, {"card_id": Ids.of([1] * 7)}, {"event_time": times, "amount": np.arange(7) / 4}
    )
    matrix = row_features(DEFAULT.row_features, block)
    np.testing.assert_array_equal(matrix[:, 0], np.arange(7) / 4)
    np.testing.assert_array_equal(matrix[:, 1], [0, 0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(matrix[:, 2], [1, 1, 0, 0, 1, 0, 1])


def test_schemas() -> None:
    assert TRANSACTIONS.names == ("transaction_id", "event_time", "card_id", "terminal_id", "amount")
    assert TRANSACTION_LABELS.of_kind("time_ms") == ("label_time",)
    assert not TRANSACTION_LABELS.field("terminal_id").required
    assert TRANSACTIONS.schema_hash != TRANSACTION_LABELS.schema_hash
    assert all(
        schema.key in schema.of_kind("id") and schema.time in schema.of_kind("time_ms") for schema in SCHEMAS.values()
    )
    with pytest.raises(KeyError, match="no field 'price'; it has transaction_id"):
        TRANSACTIONS.field("price")


def test_row_feature_definition_is_plain_data() -> None:
    assert RowFeature("a", "field", "amount").definition() == {"name": "a", "operation": "field", "field": "amount"}
