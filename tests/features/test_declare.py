"""The little language: what it makes, and what it says of what cannot be."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from features.declare import (
    FeatureError,
    FeatureSet,
    WindowFeature,
    bucket,
    by,
    category,
    duration_ms,
    field,
    night,
    weekend,
)
from features.fraud import DEFAULT, LABEL_DELAY, RICH
from features.history import HistoryWindows
from features.plan import bytes_per_event, bytes_per_key
from features.schema import SCHEMAS, TRANSACTION_LABELS, TRANSACTIONS
from features.windowfeature import memory_text
from tests.features.history_runs import CARDS, PAYMENTS, every_aggregate

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
    # models and saved states carry this hash: a change of it makes all of them unusable
    assert DEFAULT.schema_hash == "c8d4b70367bcaa803fdf395ae46ed0c7c4fa6af2e0417729ac50ed6a156d05ec"


def test_rich_set_has_the_default_one_and_reads_no_label_early() -> None:
    assert RICH.features[: len(DEFAULT)] == DEFAULT.features
    risks = [f for stage in RICH.stages for f in RICH.for_stage(stage) if f.aggregate == "risk"]
    assert len(risks) == 5 and all(f.delay_ms == duration_ms(LABEL_DELAY) for f in risks)
    assert RICH.entities == RICH.stages == ("card_id", "terminal_id")


def test_a_group_is_a_value() -> None:
    cards = by("card_id").count("1d")
    assert [f.name for f in cards.mean("amount", "90s")] == ["card_count_1d", "card_mean_amount_90s"]
    assert list(cards) == [WindowFeature("card_count_1d", "card_id", "count", None, DAY_MS, 0, "events")]


@pytest.mark.parametrize(
    ("text", "ms"), [("90s", 90_000), ("5m", 300_000), ("1h", 3_600_000), ("30d", 30 * DAY_MS), ("4w", 28 * DAY_MS)]
)
def test_durations(text: str, ms: int) -> None:
    assert duration_ms(text) == ms


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: by("card"), r"by\('card'\).*choose one of transaction_id, card_id, terminal_id"),
        (lambda: by("amount"), "no such id field"),
        (lambda: by("card_id").mean("price", "1d"), r"card_mean_price_1d: field 'price'.*not exist.*choose.*amount"),
        (lambda: by("card_id").sum("card_id", "1d"), "card_sum_card_id_1d: field 'card_id'.*is of kind id"),
        (lambda: by("card_id").count("1 day"), "card_count: '1 day' is not a duration; write"),
        (lambda: by("card_id").count(7), "card_count: 7 is not a duration; write"),
        (lambda: by("card_id").count("1d", name=3), "3 is not a feature name"),
        (lambda: by("card_id").mean(3, "1d"), "card_mean_3_1d: field 3 of transactions does not exist"),
        (lambda: by("terminal_id").risk("7d"), "terminal_risk_7d: a risk without a delay.*own label"),
        (lambda: by("card_id").count(last=3, within=""), "card_count_last3: '' is not a duration"),
        (lambda: FeatureSet("s", ["amount"]), r"'s': 'amount' is not a feature; write field\('amount'\)"),
        (lambda: FeatureSet("s", "amount"), "'s' is empty"),
        (lambda: bucket("amount", [1, "a"]), r"bucket_amount: the edges of 'amount' are \[1, 'a'\]; give numbers"),
        (lambda: category("card_id", {"a": 1.7}), "category_card_id: the codes .* 1.7.*give each value a whole"),
        (lambda: category("card_id", ["a"]), "category_card_id: .* give each value a whole number"),
        (lambda: by("card_id").count("1day", name="c"), "c: '1day' is not a duration; write"),
        (lambda: by("card_id").count("0d"), "card_count_0d: a window of '0d' holds nothing"),
        (lambda: by("card_id").count("9999d"), "card_count: '9999d' is longer than ten years"),
        (lambda: by("card_id").count("1d", delay="x"), "card_count_1d: 'x' is not a duration"),
        (lambda: by("card_id").risk("1d", delay="0s"), "card_risk_1d: a risk without a delay.*own label"),
        (lambda: by("card_id").count(), "card_count: no window given; give one of a window such as '7d', last=5"),
        (lambda: by("card_id").count("1d", last=5), r"card_count_1d: a window and last= given; give one of"),
        (lambda: by("card_id").count(last=5, session="5m"), "card_count_session_5m: last= and session= given"),
        (lambda: by("card_id").count("-1d", name="c"), "c: '-1d' is not a duration"),
        (lambda: by("card_id").count("1d", within="2d"), "card_count_1d: within='2d' bounds last= and session=; drop"),
        (lambda: by("card_id").count(last=0), r"card_count: last=0 is no number of events; give .* from 1 to 100000"),
        (lambda: by("card_id").count(last=5, within="0s"), "card_count_last5: within='0s' holds nothing"),
        (lambda: by("card_id").count(session="0s"), "card_count_session_0s: a session's gap of '0s' is not between"),
        (lambda: by("card_id").count(session="2d"), "session's gap of '2d' .* the 1d that .* or a longer within="),
        (lambda: by("card_id").count(session="1h", delay="1d"), "card_count_session_1h: .* drop the delay"),
        (lambda: by("card_id").max("terminal_id", "1d"), "card_max_terminal_id_1d: .*is of kind id; choose a number"),
        (lambda: by("card_id").distinct("amount", "1d"), "no id field 'amount' that every event has; choose one of"),
        (lambda: by("card_id").first_seen("shop", "1d"), "first_seen_shop_1d: transactions has no id field 'shop'"),
        (lambda: by("card_id").decayed_count(half_life="0s"), "a half-life of '0s' forgets at once; give one such as"),
        (lambda: by("card_id").decayed_sum("amount", half_life="400d"), "'400d' reaches back 20 times as far, more"),
        (lambda: by("card_id").distance("amount", "lon", "1d"), "field 'lon' of transactions does not exist"),
        (lambda: by("card_id", "terminal_id").risk("1d", delay="7d"), r"not of card_id.*write by\('card_id'\).risk"),
        (lambda: by("card_id", "card_id"), r"by\('card_id', 'card_id'\): name each field of the entity once"),
        (lambda: by(), "name each field of the entity once; choose from transaction_id, card_id"),
        (lambda: by("terminal_id", schema=TRANSACTION_LABELS), "no such id field; choose one of transaction_id$"),
        (lambda: DEFAULT.for_stage("transaction_id"), "no features by 'transaction_id'; it has card_id, terminal_id"),
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
        FeatureSet("s", [by("card_id", "terminal_id").count("1d", name="f")]),
        FeatureSet("s", [by("card_id").count(last=1, within="1d", name="f")]),
        FeatureSet("s", [by("card_id").count(last=2, within="1d", name="f")]),
        FeatureSet("s", [by("card_id").count(session="1h", name="f")]),
        FeatureSet("s", [by("card_id").decayed_count(half_life="1d", name="f")]),
        FeatureSet("s", [by("card_id").decayed_count(half_life="2d", name="f")]),
        FeatureSet("s", [bucket("amount", [1.0])]),
        FeatureSet("s", [bucket("amount", [2.0])]),
        FeatureSet("s", [category("card_id", {"a": 1})]),
        FeatureSet("s", [category("card_id", {"a": 2})]),
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
        "window": "7d", "delay": "7d", "unit": "share", "memory": "54 B/event + 246 B/key",
    }  # fmt: skip
    assert rows["card_mean_amount_1d"]["what"] == "mean of amount"
    assert rows["is_night"]["what"] == "night of event_time (UTC)"


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


def test_names_units_and_windows_of_every_aggregate() -> None:
    rows = FeatureSet("payments", [every_aggregate(by("card_id", schema=PAYMENTS))]).describe()
    said = {row["name"]: (row["what"], row["window"], row["delay"], row["unit"]) for row in rows}
    assert said["card_max_amount_5s"] == ("max of amount", "5s", "", "EUR")
    assert said["card_distinct_shop_id_20s"] == ("distinct of shop_id", "20s", "", "values")
    assert said["card_first_seen_shop_id_20s"] == ("first seen of shop_id", "20s", "", "flag")
    assert said["card_since_last_60s"] == ("since last", "1m", "", "s")
    assert said["card_zscore_tip_20s"] == ("zscore of tip", "20s", "", "std")
    assert said["card_decayed_sum_tip_2s"] == ("decayed sum of tip", "half-life 2s", "3s", "EUR")
    assert said["card_count_last3"] == ("count", "last 3 within 20s", "", "events")
    assert said["card_since_first_last2"] == ("since first", "last 2 within 90d", "", "s")
    assert said["card_sum_amount_session_5s"] == ("sum of amount", "session 5s within 20s", "", "EUR")
    assert said["card_count_session_2s"] == ("count", "session 2s within 1d", "", "events")
    assert said["card_speed_lat_lon_20s"] == ("speed of lat, lon", "20s", "", "km/h")


def test_entities_of_several_fields() -> None:
    features = FeatureSet(
        "s", [by("terminal_id").count("1d"), by("card_id", "terminal_id").count("1d"), by("card_id").count("1d")]
    )
    assert features.names == ("terminal_count_1d", "card_terminal_count_1d", "card_count_1d")
    assert features.entities == ("terminal_id", "card_id+terminal_id", "card_id")
    assert features.stages == ("terminal_id", "card_id")
    assert [f.name for f in features.for_stage("card_id")] == ["card_terminal_count_1d", "card_count_1d"]
    assert [f.name for f in features.for_entity("card_id")] == ["card_count_1d"]


def test_prefix_sums_are_chosen_where_they_can_be() -> None:
    cards = by("card_id", schema=PAYMENTS)
    sums = cards.count("1d").sum("amount", "1d").mean("amount", "1d", delay="1h").risk("1d", delay="7d")
    assert all(f.by_prefix_sums for f in sums)
    others = cards.count(last=2).count(session="1h").sum("tip", "1d").max("amount", "1d").decayed_count(half_life="1h")
    assert not any(f.by_prefix_sums for f in [*others, *by("card_id", "shop_id", schema=PAYMENTS).count("1d")])


def test_memory_is_what_the_states_take() -> None:
    for entity in DEFAULT.entities:
        features = DEFAULT.for_entity(entity)
        assert memory_text(features) == f"{bytes_per_event(features)} B/event + {bytes_per_key(features)} B/key"
    words = 1 + len(HistoryWindows(CARDS).fields)
    assert memory_text(CARDS).startswith(f"{8 * words} B/event + ")
    assert {row["memory"] for row in RICH.describe() if not row["entity"]} == {""}
    assert len({row["memory"] for row in RICH.describe() if row["entity"] == "card_id"}) == 2
