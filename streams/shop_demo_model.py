"""The ranker of the shop's demo, trained on what its history would have been served."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from features.schema import INTERACTIONS
from features.shopping import FEATURES, SCHEMA_HASH
from models.rank import train_rank
from models.registry import Registry
from streams.codec import Decoder
from streams.log import TP, RecordBatch
from streams.pipelines.recommend_lists import ListRules
from streams.pipelines.recommend_stages import ShopSettings
from streams.shop_offline import served_lists
from streams.shop_simulator import Shop

__all__ = ["train_on_history"]

#: enough to beat the candidates' own order, in seconds
_LISTS_MAX, _ROUNDS = 2_000, 40


def train_on_history(shop: Shop, history_ms: int, settings: ShopSettings, models: Path) -> str:
    """Adds a champion to the registry, trained on the lists of the later half of the shop's first ``history_ms``;
    returns what it is, in words."""
    rows = shop.day(0)
    values = shop.values(rows)[: int(np.searchsorted(rows.event_time, shop.start_ms + history_ms))]
    n = len(values)
    records = RecordBatch(TP(INTERACTIONS.topic, 0), list(range(n)), [-1] * n, [None] * n, [*values], lambda i: [], n)
    events, _ = Decoder(INTERACTIONS).decode(records)
    later_half = (shop.start_ms + history_ms // 2, shop.start_ms + history_ms)
    [lists] = served_lists(events, settings, ListRules().candidates, [later_half], _LISTS_MAX)
    ranker = train_rank(lists, FEATURES, rounds=_ROUNDS)
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Registry(models).add(ranker.draft("recommend", SCHEMA_HASH, created_at), "champion")
    return f"{manifest.label}: LambdaRank, {len(lists):,} lists of the history, {len(FEATURES)} features of each item"
