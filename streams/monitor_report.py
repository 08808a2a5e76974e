"""What the monitor's report says of a period: distributions then and now, performance, maturity of labels, alerts.

All of it is read from the topics: ``fraud-scores``, ``labelled`` and ``alerts``; the report has no state of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import orjson

from features.block import BoolArray, FloatArray, IntArray
from monitoring.bins import MISSING, Bins, count_labelled, count_matrix
from monitoring.drift import distances
from monitoring.maturity import Maturity
from monitoring.performance import LAYOUT, METRICS, intervals, metrics
from monitoring.trained import Trained
from streams.dead_letters import log_ends
from streams.log import Log
from streams.replay import read_up_to
from streams.topics import LABELLED
from streams.what_if import Scored, Span

__all__ = ["NO_LABELS", "Column", "Labelled", "Material", "Window"]
__all__ += ["read_labelled", "report_figures"]

DAY_MS = 86_400_000
#: fewer rows cannot say what is common
ROWS_MIN = 100
#: days that performance is told of together
_WINDOW_DAYS = 7


@dataclass(frozen=True, slots=True)
class Labelled:
    """n rows of ``labelled``, each transaction once: event ``times``, when their label was known, ``labels`` 0 or 1,
    ``scores`` (NaN: none), and which labels came, the others being by the horizon, each (n,). ``newest_ms``: the newest
    label time of the topic, of whatever rows, none later than it was sent."""

    times: IntArray
    label_times: IntArray
    labels: IntArray
    scores: FloatArray
    came: BoolArray
    newest_ms: int = 0

    def within(self, span: Span) -> Labelled:
        """The rows of events in it."""
        rows = span.holds(self.times)
        return Labelled(
            self.times[rows],
            self.label_times[rows],
            self.labels[rows],
            self.scores[rows],
            self.came[rows],
            self.newest_ms,
        )


_NONE = np.empty(0, np.int64)
NO_LABELS = Labelled(_NONE, _NONE, _NONE, np.empty(0), np.empty(0, np.bool_))


@dataclass(frozen=True)
class Material:
    """What a report is made of: rows of the reference ``then`` and of the period ``now``, the labelled rows of both,
    the alerts of the period, oldest first, and whether there is a monitor that tells of the last two."""

    then: Scored
    now: Scored
    labelled: Labelled
    alerts: Sequence[Mapping[str, Any]]
    monitored: bool
    #: the newest time that the log tells of, and how old a label is when it is final
    newest_ms: int
    mature_ms: int
    horizon_ms: int
    threshold: float
    #: the ``reference`` in the package of the period's newest model, {} where it has none
    trained: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def columns(self) -> list[Column]:
        """The score, then the features, those that are farthest from the reference first."""
        return _columns_of(self)

    @cached_property
    def windows(self) -> list[Window]:
        """See `_windows_of`."""
        return _windows_of(self)

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """What share of the labels has arrived, by age."""
        return [point for point in _maturity_of(self) if point["labelled"] == point["labelled"]]


def read_labelled(log: Log, span: Span, progress: Callable[[int], None] = lambda _: None) -> Labelled:
    """The labelled rows of the range. ConfigError: there is no such topic."""
    found: dict[bytes, tuple[int, int, int, float | None, bool]] = {}
    newest_ms = 0
    for batch in read_up_to(log, log_ends(log, LABELLED), from_start=False):
        for i, value in enumerate(batch.values):
            if value is None:
                continue
            r = orjson.loads(value)
            # as the live monitor: a label of a clock that is ahead does not make all others old
            sent = batch.timestamps[i]
            newest_ms = max(newest_ms, min(r["label_time"], sent) if sent > 0 else r["label_time"])
            if span.begin_ms <= r["event_time"] < span.end_ms:
                source = next((v for name, v in batch.headers(i) if name == "source"), b"")
                row = (r["event_time"], r["label_time"], r["label"], r["score"], r["by"] == "label")
                found.setdefault(source, row)
        progress(len(batch))
    times, label_times, labels, scores, came = zip(*found.values(), strict=True) if found else ((),) * 5
    return Labelled(
        np.array(times, np.int64),
        np.array(label_times, np.int64),
        np.array(labels, np.int64),
        np.array(scores, np.float64),
        np.array(came, np.bool_),
        newest_ms,
    )


# --- distributions ---


@dataclass(frozen=True, slots=True)
class Column:
    """A feature, or the score, then and now: PSI, Jensen-Shannon and Kolmogorov-Smirnov (NaN: too few rows), means and
    shares that are missing; the values that are there; and the PSI of now from the histogram in the model's package
    (NaN: it has none)."""

    name: str
    psi: float
    js: float
    ks: float
    mean_then: float
    mean_now: float
    missing_then: float
    missing_now: float
    then: FloatArray
    now: FloatArray
    psi_trained: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the values."""
        names = ("psi", "js", "ks", "psi_trained", "mean_then", "mean_now", "missing_then", "missing_now")
        return {"name": self.name} | {name: _plain(getattr(self, name)) for name in names}


def _columns_of(material: Material) -> list[Column]:
    """The score, then the features, those that are farthest from the reference first."""
    then, now = material.then, material.now
    names = [name for name in now.names if name in set(then.names)]
    matrices = [
        np.column_stack([side.scores, side.matrix[:, [side.names.index(name) for name in names]]])
        for side in (then, now)
    ]
    far = np.full((len(names) + 1, 3), np.nan)
    if min(len(then), len(now)) >= ROWS_MIN:
        bins = Bins.of(matrices[0])
        counts = []
        for matrix in matrices:
            counts.append(np.zeros((len(names) + 1, MISSING + 1), np.int64))
            slot = np.zeros(len(matrix), np.int64)
            count_matrix(np.ascontiguousarray(matrix), slot, 0, bins.edges, bins.discrete, counts[-1])
        far = distances(counts[1][:, :MISSING], counts[0][:, :MISSING])
    trained = _from_trained(material, names, matrices[1])
    columns = []
    for j, name in enumerate(("score", *names)):
        values = [matrix[:, j] for matrix in matrices]
        known_then, known_now = (column[np.isfinite(column)] for column in values)
        mean_then, mean_now = (float(c.mean()) if len(c) else np.nan for c in (known_then, known_now))
        missing_then, missing_now = (float(np.isnan(c).mean()) if len(c) else np.nan for c in values)
        columns.append(
            Column(
                name=name,
                psi=float(far[j, 0]),
                js=float(far[j, 1]),
                ks=float(far[j, 2]),
                mean_then=mean_then,
                mean_now=mean_now,
                missing_then=missing_then,
                missing_now=missing_now,
                then=known_then,
                now=known_now,
                psi_trained=float(trained[j]),
            )
        )
    features = sorted(columns[1:], key=lambda column: -(column.psi if column.psi == column.psi else -1.0))
    return [columns[0], *features]


def _from_trained(material: Material, names: Sequence[str], now: FloatArray) -> FloatArray:
    """(1 + names,) PSI of the columns ``now`` (n, 1 + names), the score first, from what the model was made on. NaN:
    the package does not tell, or there are fewer than 100 values."""
    far = np.full(len(names) + 1, np.nan)
    trained = Trained.of(material.trained, names)
    if trained is None:
        return far
    counts, plain = np.zeros_like(trained.counts), np.zeros(len(far), np.bool_)
    x = np.ascontiguousarray(np.roll(now, -1, 1))  # the score comes last there
    count_matrix(x, np.zeros(len(x), np.int64), 0, trained.edges, plain, counts)
    enough = np.isin(np.arange(len(far)), trained.known) & (counts[:, :MISSING].sum(1) >= ROWS_MIN)
    far[enough] = distances(counts[enough, :MISSING], trained.counts[enough, :MISSING])[:, 0]
    return np.roll(far, 1)


# --- labels ---


@dataclass(frozen=True, slots=True)
class Window:
    """Performance over the days that end with ``day_ms``: figures of `METRICS` and their 95% intervals (8, 2), of
    ``rows`` rows with final labels, ``frauds`` of them."""

    day_ms: int
    rows: int
    frauds: int
    figures: FloatArray
    ends: FloatArray

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        out: dict[str, Any] = {"day": self.day_ms, "rows": self.rows, "frauds": self.frauds}
        for name, value, (low, high) in zip(METRICS, self.figures.tolist(), self.ends.tolist(), strict=True):
            out[name] = {"value": _plain(value), "low": _plain(low), "high": _plain(high)}
        return out


def _windows_of(material: Material) -> list[Window]:
    """Performance of each week that ends with a day all of whose labels are final: half-arrived ones would show early
    frauds and no legitimate payments that nobody has confirmed yet."""
    labelled = material.labelled
    days = labelled.times // DAY_MS
    final = (days + 1) * DAY_MS + material.mature_ms <= material.newest_ms
    scored = final & ~np.isnan(labelled.scores)
    if not scored.any():
        return []
    first, last = int(days[scored].min()), int(days[scored].max())
    counts = np.zeros((last - first + 1, LAYOUT.size), np.int64)
    slot = np.where(scored, days - first, -1)
    for day, row in enumerate(counts):
        head, fine = LAYOUT.head(row), LAYOUT.fine(row)
        count_labelled(labelled.scores, labelled.labels, slot, day, material.threshold, head, fine)
    windows = []
    for day in range(len(counts)):
        part = counts[max(0, day - _WINDOW_DAYS + 1) : day + 1]
        whole = part.sum(0)
        figures = metrics(whole[None])[0]
        windows.append(Window((first + day) * DAY_MS, int(whole[0]), int(whole[1]), figures, intervals(part)))
    return windows


def _maturity_of(material: Material) -> list[dict[str, float]]:
    """By age, the share of the transactions that have their label; see `monitoring.maturity`. [] where none came."""
    labelled, horizon = material.labelled, material.horizon_ms
    if not labelled.came.any():
        return []
    table = Maturity(horizon)
    table.arrived(np.maximum(labelled.label_times - labelled.times, 0)[labelled.came])
    table.survived(int((~labelled.came).sum()))
    times = np.concatenate([material.then.times, material.now.times])
    # each labelled row is one of these; those that are left wait, or have waited until the horizon
    left, count = np.unique(times, return_counts=True)
    have, had = np.unique(labelled.times, return_counts=True)
    count[np.searchsorted(left, have[np.isin(have, left)])] -= had[np.isin(have, left)]
    ages = np.repeat(material.newest_ms - left, np.maximum(count, 0))
    table.survived(int((ages >= horizon).sum()))
    return table.curve(np.maximum(ages[ages < horizon], 0))


# --- all of it ---


def report_figures(material: Material) -> dict[str, Any]:
    """Plain data: what the command prints and the page shows."""
    now, then = material.now, material.then
    windows = material.windows
    return {
        "rows": len(now),
        "reference_rows": len(then),
        "models": dict(Counter(model or "none" for model in now.models)),
        "reference_models": dict(Counter(model or "none" for model in then.models)),
        "alert_rate": {
            side: _plain(float((rows.scores >= material.threshold).mean())) if len(rows) else None
            for side, rows in (("then", then), ("now", now))
        },
        "columns": [column.to_json() for column in material.columns],
        "performance": windows[-1].to_json() if windows else None,
        "maturity": [{name: _plain(value) for name, value in point.items()} for point in material.curve],
        "alerts": [{k: v for k, v in alert.items() if k != "evidence"} for alert in material.alerts],
        "monitored": material.monitored,
    }


def _plain(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
