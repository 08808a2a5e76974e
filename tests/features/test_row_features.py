"""Features of the row alone: the calendar at its edges, missing values, codes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.block import Block, Ids
from features.declare import (
    FeatureError,
    RowFeature,
    bucket,
    category,
    day_of_month,
    field,
    hour,
    log,
    night,
    weekday,
    weekend,
)
from features.engine import row_features
from features.fraud import DEFAULT
from features.schema import TIME_MS_MIN, EventSchema, Field
from tests.features.history_runs import PAYMENTS

DAY_MS = 86_400_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def values(feature: RowFeature, columns: dict[str, np.ndarray], ids: dict[str, Ids] | None = None) -> np.ndarray:
    n = len(next(iter(columns.values())))
    return row_features([feature], Block("t", 0, n, np.arange(n), np.zeros(n, np.int64), ids or {}, columns))[:, 0]


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


def test_row_feature_definition_is_plain_data() -> None:
    assert RowFeature("a", "field", "amount").definition() == {"name": "a", "operation": "field", "field": "amount"}


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(st.integers(TIME_MS_MIN, 4_200_000_000_000), min_size=1))
def test_calendar_is_that_of_the_standard_library(times_ms: list[int]) -> None:
    moments = [EPOCH + timedelta(milliseconds=t) for t in times_ms]
    times = np.array(times_ms)
    for feature, expected in (
        (hour(), [m.hour for m in moments]),
        (weekday(), [m.weekday() for m in moments]),
        (day_of_month(), [m.day for m in moments]),
        (weekend(), [m.weekday() >= 5 for m in moments]),
        (night(), [m.hour <= 6 for m in moments]),
    ):
        np.testing.assert_array_equal(values(feature, {"event_time": times}), expected, err_msg=feature.name)


def test_leap_days_and_month_ends() -> None:
    days = [(2020, 2, 29), (2020, 3, 1), (2021, 2, 28), (2021, 3, 1), (2100, 2, 28), (2100, 3, 1), (2024, 12, 31)]
    ends = [datetime(*day, 23, 59, 59, 999_000, tzinfo=UTC) for day in days]
    times = np.array([(end - EPOCH) // timedelta(milliseconds=1) for end in ends])
    np.testing.assert_array_equal(values(day_of_month(), {"event_time": times}), [day for _, _, day in days])


@pytest.mark.parametrize("zone", ["Pacific/Auckland", "America/St_Johns"])
def test_the_zone_of_the_machine_does_not_matter(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    # half past midnight of Saturday, in UTC; and the hour that summer time skips, or has twice, in Europe and America
    moments = [(2020, 2, 29, 0, 30), (2021, 3, 14, 2, 30), (2021, 3, 28, 1, 30), (2021, 10, 31, 1, 30)]
    times = np.array([(datetime(*moment, tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1) for moment in moments])
    with monkeypatch.context() as there:
        there.setenv("TZ", zone)
        time.tzset()
        made = [
            values(feature, {"event_time": times}).tolist()
            for feature in (hour(), weekday(), day_of_month(), weekend(), night())
        ]
    time.tzset()
    assert made == [[0, 2, 1, 1], [5, 6, 6, 6], [29, 14, 28, 31], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_log_and_bucket_keep_what_is_missing() -> None:
    tips = {"tip": np.array([0.0, 1.0, np.nan, 10.0, 9.999, 100.0, 1e9])}
    np.testing.assert_array_equal(values(log("tip", schema=PAYMENTS), tips), np.log1p(tips["tip"]))
    np.testing.assert_array_equal(values(field("tip", schema=PAYMENTS), tips), tips["tip"])
    buckets = values(bucket("tip", [1, 10, 100], schema=PAYMENTS), tips)
    np.testing.assert_array_equal(buckets, [0, 1, np.nan, 2, 1, 3, 3])


def test_codes_of_ids() -> None:
    shop = category("shop_id", {"nl": 3, 5: 0, "grün": 2}, schema=PAYMENTS)
    column = {"event_time": np.zeros(6, np.int64)}
    mixed = Ids.of(["nl", "5", "NL", "grün", 5, 6])
    np.testing.assert_array_equal(values(shop, column, {"shop_id": mixed}), [3, 0, np.nan, 2, 0, np.nan])
    integers = Ids(ints=np.array([5, 6, 2**62, -5, 5, 0]))
    np.testing.assert_array_equal(values(shop, column, {"shop_id": integers}), [0, np.nan, np.nan, np.nan, 0, np.nan])


def test_what_a_reader_sees() -> None:
    made = [hour(), log("tip", schema=PAYMENTS), bucket("tip", [1, 10], schema=PAYMENTS)]
    made.append(category("shop_id", {"nl": 3, "be": 0}, schema=PAYMENTS))
    assert [(f.name, f.what(), f.unit) for f in made] == [
        ("hour", "hour of event_time (UTC)", "hour"),
        ("log_tip", "ln(1 + tip)", "ln EUR"),
        ("bucket_tip", "bucket of tip by 1, 10", "bucket"),
        ("category_shop_id", "code of shop_id, 2 values", "code"),
    ]


SIGNED = EventSchema("s", "id", "time", (Field("id", "id"), Field("time", "time_ms"), Field("balance", "number")))


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: log("balance", schema=SIGNED), r"log_balance: field 'balance' of s may be negative; .*minimum of 0"),
        (lambda: log("price"), "log_price: field 'price' of transactions does not exist; choose a number: amount"),
        (lambda: bucket("card_id", [1]), "bucket_card_id: field 'card_id' .* is of kind id"),
        (lambda: bucket("amount", []), r"bucket_amount: the edges of 'amount' are \(\); give finite numbers that rise"),
        (lambda: bucket("amount", [2, 2]), r"\(2.0, 2.0\); give finite numbers that rise"),
        (lambda: bucket("amount", [1, float("nan")]), "give finite numbers that rise"),
        (lambda: bucket("amount", [1], name="1st"), "'1st' is not a feature name"),
        (lambda: category("amount", {"a": 1}), "category_amount: transactions has no id field 'amount'; choose one of"),
        (lambda: category("card_id", {}), "category_card_id: the codes of 'card_id' are {}; give each value a whole"),
        (lambda: category("card_id", {"a": -1}), "give each value a whole number of 0 or more"),
        (lambda: category("card_id", {"5": 1, 5: 2}), "a value of 'card_id' has two codes, as 5 and '5' are the same"),
    ],
)
def test_errors_name_feature_field_and_remedy(declare: Callable[[], object], said: str) -> None:
    with pytest.raises(FeatureError, match=said):
        declare()
