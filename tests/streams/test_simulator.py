"""The simulated world: the same to the bit from its seed, and as fraudulent as it says."""

import hashlib

import numpy as np
import pytest

from streams.errors import ConfigError
from streams.simulator import DAY_MS, Columns, FraudKind, World, midnight

START_MS = midnight(1_750_000_000_000)


def world(seed: int = 7, **options: int) -> World:
    return World(seed, start_ms=START_MS, **{"cards": 3000, "terminals": 6000, **options})


@pytest.fixture(scope="module")
def past() -> tuple[Columns, Columns]:
    return world().history(30)


def test_the_same_seed_gives_the_same_bytes(past: tuple[Columns, Columns]) -> None:
    digest = hashlib.sha256()
    for columns in past:
        for name, column in sorted(columns.items()):
            digest.update(name.encode() + column[:50_000].tobytes())
    # Moves only when the world is changed on purpose: say so in CHANGELOG.md, the demo's figures move with it.
    assert digest.hexdigest() == "2ba3b251a73f0ca7ed588da0b0613c4a01005a073f8cbb6b34e8c2c1be7b3688"


def test_another_seed_gives_another_world(past: tuple[Columns, Columns]) -> None:
    assert not np.array_equal(world(8).history(1)[0]["amount"][:100], past[0]["amount"][:100])


def test_columns_are_the_contracts(past: tuple[Columns, Columns]) -> None:
    transactions, labels = past
    assert list(transactions) == ["transaction_id", "event_time", "card_id", "terminal_id", "amount"]
    assert list(labels) == ["transaction_id", "label_time", "is_fraud"]
    assert {c.dtype for c in labels.values()} == {np.dtype(np.int64)}
    assert [c.dtype.name for c in transactions.values()] == ["int64"] * 4 + ["float64"]
    assert len({len(c) for c in transactions.values()}) == 1


def test_sorted_with_ids_in_order_and_whole_cents(past: tuple[Columns, Columns]) -> None:
    transactions = past[0]
    assert np.array_equal(transactions["transaction_id"], np.arange(len(transactions["amount"])))
    assert (np.diff(transactions["event_time"]) >= 0).all()
    assert transactions["event_time"][0] >= START_MS and transactions["event_time"][-1] < START_MS + 30 * DAY_MS
    cents = np.rint(transactions["amount"] * 100)
    assert cents.min() >= 1 and np.array_equal(cents / 100, transactions["amount"])
    assert transactions["card_id"].min() >= 0 and transactions["card_id"].max() < 3000
    assert transactions["terminal_id"].min() >= 0 and transactions["terminal_id"].max() < 6000


def test_one_label_a_transaction_late_as_said(past: tuple[Columns, Columns]) -> None:
    transactions, labels = past
    assert np.array_equal(np.sort(labels["transaction_id"]), transactions["transaction_id"])
    assert (np.diff(labels["label_time"]) >= 0).all()
    delay_days = (labels["label_time"] - transactions["event_time"][labels["transaction_id"]]) / DAY_MS
    assert delay_days.min() > 0 and delay_days.max() <= 21
    assert ((delay_days >= 7) & (delay_days < 7.4)).mean() == pytest.approx(0.83, abs=0.02)


def test_frauds_of_each_kind_and_not_too_many(past: tuple[Columns, Columns]) -> None:
    kind = np.concatenate([world().day(d).kind for d in range(30)])
    is_fraud = np.empty(len(kind), np.int64)
    is_fraud[past[1]["transaction_id"]] = past[1]["is_fraud"]
    assert np.array_equal(is_fraud == 1, kind != FraudKind.NONE)
    assert 0.005 <= is_fraud.mean() <= 0.015
    for each in (FraudKind.LARGE_AMOUNT, FraudKind.TERMINAL, FraudKind.CARD):
        assert (kind == each).mean() > 0.0005


def test_each_kind_does_what_its_name_says(past: tuple[Columns, Columns]) -> None:
    transactions = past[0]
    days = [world().day(d) for d in range(30)]
    kind, amount, card = np.concatenate([d.kind for d in days]), transactions["amount"], transactions["card_id"]
    honest = kind == FraudKind.NONE
    most = np.zeros(3000)
    np.maximum.at(most, card[honest], amount[honest])
    large = kind == FraudKind.LARGE_AMOUNT
    assert (amount[large] > most[card[large]]).all()
    # Whatever is bought at a compromised terminal on its days is fraud, of one kind or another.
    for rows in days[::10]:
        broken = np.unique(rows.terminal_id[rows.kind == FraudKind.TERMINAL])
        assert len(broken) and (rows.kind[np.isin(rows.terminal_id, broken)] != FraudKind.NONE).all()
    mean = np.bincount(card[honest], amount[honest], 3000) / np.maximum(1, np.bincount(card[honest], minlength=3000))
    stolen = kind == FraudKind.CARD
    assert np.median(amount[stolen] / mean[card[stolen]]) > 2.5
    sprees = 0
    for rows in days:
        for thief in np.unique(rows.card_id[rows.kind == FraudKind.CARD]):
            times = rows.event_time[(rows.kind == FraudKind.CARD) & (rows.card_id == thief)]
            sprees += bool((times[3:] - times[:-3] < 40 * 60_000).any())
    assert 30 * 3000 * 0.0006 * 0.5 < sprees < 30 * 3000 * 0.0006 * 1.6


def test_cards_shop_near_home_and_by_day(past: tuple[Columns, Columns]) -> None:
    transactions = past[0]
    one_card = transactions["card_id"] == int(np.argmax(np.bincount(transactions["card_id"])))
    assert len(np.unique(transactions["terminal_id"][one_card])) < 200
    by_hour = np.bincount(transactions["event_time"] // 3_600_000 % 24, minlength=24)
    assert by_hour[11:20].min() > 3 * by_hour[1:5].max()


def test_a_longer_history_begins_with_the_shorter(past: tuple[Columns, Columns]) -> None:
    fresh = world()
    late_day = fresh.day(20)  # without the days before it
    begin = int(late_day.transaction_id[0])
    assert begin == np.searchsorted(past[0]["event_time"], START_MS + 20 * DAY_MS)
    short = fresh.history(20)[0]
    for name, column in short.items():
        assert np.array_equal(column, past[0][name][:begin])
    assert np.array_equal(late_day.event_time, past[0]["event_time"][begin : begin + len(late_day)])


def test_the_label_delay_keeps_its_shape_and_leaves_transactions_alone() -> None:
    usual, quick = world(cards=300), world(cards=300, label_delay_ms=70_000)
    rows = quick.day(3)
    assert np.array_equal(rows.cents, usual.day(3).cents)
    long, short = usual.label_times(3, rows) - rows.event_time, quick.label_times(3, rows) - rows.event_time
    assert np.abs(short * (7 * DAY_MS / 70_000) / long - 1).max() < 1e-3
    assert np.array_equal(usual.label_times(3, rows, 70_000), quick.label_times(3, rows))


def test_tiny_worlds_work() -> None:
    transactions, labels = world(cards=1, terminals=1).history(20)
    assert set(transactions["terminal_id"]) == {0} and len(labels["is_fraud"]) == len(transactions["amount"])
    lonely = world(cards=400, terminals=50).history(2)[0]
    assert lonely["terminal_id"].max() < 50


def test_for_pace_sizes_the_world() -> None:
    paced = World.for_pace(1, start_ms=START_MS, rate=500, speed_up=3600)
    assert paced.rows_per_day == pytest.approx(500 * 86_400 / 3600, rel=0.03)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"cards": 0}, "cards=0"), ({"terminals": -1}, "terminals=-1"), ({"label_delay_ms": 0}, "label_delay_ms=0")],
)
def test_impossible_worlds_are_refused(options: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        world(**options)


def test_a_start_that_is_no_midnight_and_no_history_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a UTC midnight"):
        World(1, start_ms=START_MS + 1)
    with pytest.raises(ConfigError, match="days=0"):
        world().history(0)
    assert midnight(START_MS + 5, 2) == START_MS - 2 * DAY_MS
