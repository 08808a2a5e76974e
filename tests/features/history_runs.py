"""Feature sets with every aggregate, and rows with missing values for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from features.block import Block, Ids
from features.declare import Group, WindowFeature, by
from features.schema import EventSchema, Field
from tests.features.streams_of_rows import STEP_MS

PAYMENTS = EventSchema(
    topic="payments",
    key="card_id",
    time="event_time",
    fields=(
        Field("event_id", "id"),
        Field("event_time", "time_ms", unit="ms"),
        Field("card_id", "id"),
        Field("shop_id", "id"),
        Field("amount", "number", minimum=0.0, maximum=1e12, unit="EUR"),
        Field("tip", "number", required=False, minimum=0.0, maximum=1e9, unit="EUR"),
        Field("lat", "number", required=False, minimum=-90, maximum=90, unit="deg"),
        Field("lon", "number", required=False, minimum=-180, maximum=180, unit="deg"),
    ),
)


def every_aggregate(group: Group) -> Group:
    """Small windows on a grid of half seconds, so that rows fall on boundaries all the time."""
    plain = group.max("amount", "5s").min("tip", "20s").std("amount", "20s").first("tip", "5s").last("tip", "5s")
    plain = plain.max("amount", "20s", delay="3s").distinct("shop_id", "20s").first_seen("shop_id", "20s")
    plain = plain.since_last("60s").since_first("20s").previous("tip", "20s").sum("tip", "5s").mean("tip", "20s")
    plain = plain.ratio("amount", "20s").zscore("tip", "20s").ratio("tip", "20s", delay="3s", name="ratio_after_3s")
    plain = plain.since_last("5s", delay="3s", name="since_last_after_3s")
    decayed = plain.decayed_count(half_life="1s").decayed_sum("tip", half_life="2s", delay="3s")
    newest = decayed.count(last=3, within="20s").mean("amount", last=3, within="60s").std("tip", last=1)
    newest = newest.since_first(last=2).distinct("shop_id", last=2, delay="3s").previous("amount", last=1, within="20s")
    session = newest.count(session="2s").sum("amount", session="5s", within="20s").since_first(session="2s")
    session = session.distinct("shop_id", session="5s").zscore("amount", session="5s").max("tip", session="2s")
    return session.distance("lat", "lon", "20s").speed("lat", "lon", "20s")


CARDS: tuple[WindowFeature, ...] = every_aggregate(by("card_id", schema=PAYMENTS)).features
PAIRS: tuple[WindowFeature, ...] = (
    by("card_id", "shop_id", schema=PAYMENTS)
    .count("20s").sum("amount", "20s").mean("amount", "5s", delay="3s").since_last("60s").zscore("tip", "20s").features
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    time: int
    card: int | str
    shop: int | str
    amount: float
    tip: float
    lat: float
    lon: float


_IDS = st.sampled_from([1, 2, "2", "a"])
_AMOUNTS = st.one_of(st.integers(0, 10**7).map(lambda cents: cents / 100), st.sampled_from([0.0, 0.1, 1e12]))
_TIPS = st.one_of(st.just(math.nan), st.integers(0, 3).map(float), st.floats(0.0, 1e9))
_LATS = st.sampled_from([math.nan, 0.0, 52.09, 52.37, -33.87, 90.0])
_LONS = st.sampled_from([math.nan, 0.0, 4.9, 5.12, 151.21, -179.9])


@st.composite
def history_runs(draw: st.DrawFn, max_rows: int = 50) -> list[Row]:
    """Rows with ties, gaps, bursts, missing values, out of order within and beyond the lateness."""
    now, rows = 1_000_000, []
    for _ in range(draw(st.integers(1, max_rows))):
        now += STEP_MS * draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4, 10, 40, 150, 200_000]))
        time = now - STEP_MS * draw(st.sampled_from([0, 0, 0, 1, 4, 8, 9, 30, 100]))
        rows.append(Row(time, draw(_IDS), draw(_IDS), draw(_AMOUNTS), draw(_TIPS), draw(_LATS), draw(_LONS)))
    return rows


def long_history(seed: int, n: int, cards: int) -> list[Row]:
    """A seeded run long enough for rings to grow, wrap around, expire and be reused."""
    rng = np.random.default_rng(seed)
    now, rows = 1_000_000, []
    for _ in range(n):
        now += STEP_MS * int(rng.choice([0, 1, 2, 5, 400], p=[0.6, 0.25, 0.1, 0.04, 0.01]))
        back = rng.choice([0, 8, 60], p=[0.7, 0.25, 0.05])
        time = now - (STEP_MS * int(rng.integers(0, back + 1)))
        tip = math.nan if rng.random() < 0.3 else round(float(rng.gamma(2.0, 3.0)), 2)
        lat = math.nan if rng.random() < 0.2 else float(rng.uniform(-90, 90))
        card = int(rng.integers(0, cards)) if rng.random() < 0.6 else 0
        amount = round(float(rng.gamma(2.0, 30.0)), 2)
        rows.append(Row(time, card, int(rng.integers(0, 300)), amount, tip, lat, float(rng.uniform(-180, 180))))
    return rows


def block_of(rows: list[Row]) -> Block:
    n = len(rows)
    times = np.array([r.time for r in rows], np.int64)
    numbers = {name: np.array([getattr(r, name) for r in rows], np.float64) for name in ("amount", "tip", "lat", "lon")}
    ids = {"card_id": Ids.of([r.card for r in rows]), "shop_id": Ids.of([r.shop for r in rows])}
    ids["transaction_id"] = ids["event_id"] = Ids(ints=np.arange(n))
    return Block("payments", 0, n, np.arange(n), times, ids, {"event_time": times, **numbers})
