"""Made-up scored and labelled rows for the monitor's tests: from a seed, with a drift where it is asked for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from features.block import Ids
from monitoring.learning import rows_of
from monitoring.monitor import Monitor
from monitoring.settings import DAY_MS, MonitorSettings

#: quick: periods of 400 rows, windows of 1 and 3, 12 periods of reference
SETTINGS = MonitorSettings(
    features=("a", "b", "c"),
    segments=("channel",),
    period_rows=400,
    windows=(1, 3),
    reference_periods=12,
    rows_min=100,
)
BY_TIME = MonitorSettings(
    features=("a", "b", "c"),
    segments=("channel",),
    period_ms=DAY_MS,
    windows=(1, 3),
    reference_periods=12,
    label_horizon_ms=2 * DAY_MS,
    rows_min=50,
)


def scored(n: int, seed: int = 0, at: int | None = None, per_day: int = 400, **drift: float) -> dict[str, Any]:
    """(n) rows. From row ``at`` on: ``shift`` of feature a, ``missing`` share of b, ``unseen`` share of new values of
    c, ``lift`` of the scores' log odds, ``segment`` share of a new segment value."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=n), rng.gamma(2.0, size=n), rng.integers(0, 5, n).astype(np.float64)
    odds = rng.normal(-3.0, 1.5, n) + a / 2
    channel = rng.choice(["web", "shop", "app"], n, p=[0.5, 0.3, 0.2]).astype(object)
    time = 100 * DAY_MS + (np.arange(n) * DAY_MS) // per_day
    later = np.arange(n) >= (n if at is None else at)
    a[later] += drift.get("shift", 0.0)
    odds[later] += drift.get("lift", 0.0)
    b[later & (rng.random(n) < drift.get("missing", 0.0))] = np.nan
    c[later & (rng.random(n) < drift.get("unseen", 0.0))] = 9.0
    channel[later & (rng.random(n) < drift.get("segment", 0.0))] = "new"
    return {
        "event_time": time,
        "transaction_id": Ids(ints=np.arange(n) + 10_000),
        "features": np.column_stack([a, b, c]),
        "score": 1 / (1 + np.exp(-odds)),
        "segments": {"channel": Ids.of(channel.tolist())},
    }


def labelled(n: int, seed: int = 0, at: int | None = None, per_day: int = 400, **drift: float) -> dict[str, Any]:
    """(n) rows whose scores are right, labels a day later. From ``at`` on labels are those of other rows (``noise``, a
    share of them), or more frequent than scored (``lift`` of log odds)."""
    rows = scored(n, seed, per_day=per_day)
    rng = np.random.default_rng(seed + 1)
    score = rows["score"]
    later = np.arange(n) >= (n if at is None else at)
    odds = np.log(score / (1 - score)) + np.where(later, drift.get("lift", 0.0), 0.0)
    mixed = later & (rng.random(n) < drift.get("noise", 0.0))
    odds[mixed] = rng.permutation(odds)[mixed]
    return {
        "event_time": rows["event_time"],
        "label_time": rows["event_time"] + DAY_MS,
        "transaction_id": rows["transaction_id"],
        "card_id": Ids(ints=rng.integers(0, 150, n)),
        "score": score,
        "label": (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(np.int64),
    }


def part(columns: dict[str, Any], index: Any) -> dict[str, Any]:
    """The rows at ``index``."""
    return rows_of(columns, index)


def fed(
    settings: MonitorSettings, rows: dict[str, Any], labels: dict[str, Any] | None, cuts: list[int]
) -> tuple[Any, Monitor]:
    """(alerts as JSON, monitor) of a new monitor fed with blocks cut at ``cuts``."""
    monitor, alerts = Monitor(settings), []
    ends = [0, *cuts, len(rows["event_time"])]
    for start, stop in pairwise(ends):
        alerts += monitor.observe_scored(part(rows, slice(start, stop)))
    if labels is not None:
        ends[-1] = len(labels["event_time"])
        for start, stop in pairwise(ends):
            alerts += monitor.observe_labelled(part(labels, slice(start, stop)))
    return [alert.to_json() for alert in alerts], monitor
