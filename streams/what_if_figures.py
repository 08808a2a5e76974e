"""What was served beside what would have been: score differences, alerts gained and lost, performance, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.block import BoolArray, FloatArray, Ids, IntArray
from models.evidence import average_precision, paired_evidence
from streams.what_if import Scored
from streams.what_if_cost import CostMatrix, cost_curve, saving
from streams.what_if_served import Known

__all__ = ["Beside", "Choice", "beside", "differing_features", "figures"]

#: gained and lost alerts that are shown, the largest differences
_SHOWN = 10
_RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Choice:
    """What makes an alert of a score: at or above ``before`` as it was served, at or above ``after`` in the what-if;
    and what it costs, if that is declared."""

    before: float
    after: float
    cost: CostMatrix | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """n transactions that were served, or replayed, or both, by place: arrays (n,), a score that is not there NaN."""

    places: IntArray
    times: IntArray
    amounts: FloatArray
    ids: Mapping[str, Ids]
    before: FloatArray
    after: FloatArray

    @property
    def both(self) -> BoolArray:
        """(n,) those that have both scores."""
        return ~(np.isnan(self.before) | np.isnan(self.after))

    @property
    def scored(self) -> Scored:
        """As rows without scores and features, to ask for their labels."""
        none = np.empty((len(self.places), 0))
        return Scored(self.places, self.times, self.amounts, self.before, self.ids, (), none, ())


def beside(served: Scored, replayed: Scored) -> Beside:
    """Each transaction once."""
    places = np.concatenate([served.places, replayed.places])
    united, first = np.unique(places, return_index=True)
    scores = []
    for side in (served, replayed):
        score = np.full(len(united), np.nan)
        score[np.searchsorted(united, side.places)] = side.scores
        scores.append(score)
    times = np.concatenate([served.times, replayed.times])[first]
    amounts = np.concatenate([served.amounts, replayed.amounts])[first]
    ids = {name: Ids.concat([served.ids[name], replayed.ids[name]]).take(first) for name in served.ids}
    return Beside(united, times, amounts, ids, scores[0], scores[1])


def differing_features(served: Scored, replayed: Scored) -> tuple[int, list[str]]:
    """(rows, names): how many rows were served with other values of the features that both have, bit for bit, and of
    which features. On the workers' own set it must be none."""
    common = [name for name in served.names if name in set(replayed.names)]
    _, mine, theirs = np.intersect1d(served.places, replayed.places, assume_unique=True, return_indices=True)
    a = served.matrix[:, [served.names.index(name) for name in common]][mine]
    b = replayed.matrix[:, [replayed.names.index(name) for name in common]][theirs]
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    differ[np.isnan(a).all(axis=1)] = False  # served without its features
    return int(differ.any(axis=1).sum()), [common[j] for j in np.flatnonzero(differ.any(axis=0))]


def figures(table: Beside, known: Known, choice: Choice, served: Scored) -> dict[str, Any]:
    """All that is reported, as plain data: ``rows`` have both scores, ``judged`` of these a final label too."""
    both = table.both
    judged = both & known.judged
    alerts = _alerts(table, choice)
    return {
        "rows": int(both.sum()),
        "only_served": int((np.isnan(table.after)).sum()),
        "only_replayed": int((np.isnan(table.before)).sum()),
        "served_models": dict(Counter(model or "none" for model in served.models)),
        "labelled": int((both & (known.labels >= 0)).sum()),
        "judged": int(judged.sum()),
        "frauds": int((judged & (known.labels == 1)).sum()),
        "score_difference": _differences(table.before[both], table.after[both]),
        "threshold": {"served": choice.before, "replayed": choice.after},
        "alerts": _counts(alerts, table, known, both),
        "performance": _performance(table, known, judged, alerts),
        "cost": None if choice.cost is None else _cost(choice.cost, table, known, judged, alerts),
        "gained": examples(table, known, alerts[1] & ~alerts[0] & both),
        "lost": examples(table, known, alerts[0] & ~alerts[1] & both),
    }


def _alerts(table: Beside, choice: Choice) -> tuple[BoolArray, BoolArray]:
    """(n,) each: which rows have an alert as served, and in the what-if."""
    return table.before >= choice.before, table.after >= choice.after


def _differences(before: FloatArray, after: FloatArray) -> dict[str, Any]:
    if len(before) == 0:
        return {}
    change = after - before
    size = np.abs(change)
    p50, p99 = np.quantile(size, [0.5, 0.99]).tolist()
    return {
        "equal_rows": int((change == 0).sum()),
        "mean": float(change.mean()),
        "abs_mean": float(size.mean()),
        "abs_p50": p50,
        "abs_p99": p99,
        "abs_max": float(size.max()),
    }


def _counts(alerts: tuple[BoolArray, BoolArray], table: Beside, known: Known, both: BoolArray) -> dict[str, Any]:
    before, after = alerts[0] & both, alerts[1] & both
    out: dict[str, Any] = {"served": int(before.sum()), "replayed": int(after.sum())}
    for name, rows in (("kept", before & after), ("gained", after & ~before), ("lost", before & ~after)):
        labels = known.labels[rows]
        out[name] = int(rows.sum())
        out[f"{name}_frauds"], out[f"{name}_legitimate"] = int((labels == 1).sum()), int((labels == 0).sum())
        out[f"{name}_amount"] = float(table.amounts[rows].sum())
    return out


def _performance(
    table: Beside, known: Known, judged: BoolArray, alerts: tuple[BoolArray, BoolArray]
) -> dict[str, Any] | None:
    """None where no label is final yet."""
    if not judged.any():
        return None
    labels = known.labels[judged]
    out: dict[str, Any] = {}
    for name, scores, alert in zip(("served", "replayed"), (table.before, table.after), alerts, strict=True):
        hits = int((labels[alert[judged]] == 1).sum())
        n, frauds = int(alert[judged].sum()), int(labels.sum())
        out[name] = {
            "average_precision": average_precision(labels, scores[judged]) if frauds else None,
            "precision": hits / n if n else None,
            "recall": hits / frauds if frauds else None,
        }
    out["gains"] = _gains(table, labels, judged)
    return out


def _gains(table: Beside, labels: IntArray, judged: BoolArray) -> dict[str, Any]:
    """By metric, what is gained, above 0 where the what-if is better, with its 95% interval over cards; {} where there
    are too few frauds to say, or scores are no probabilities."""
    before, after = table.before[judged], table.after[judged]
    if any(((score < 0) | (score > 1)).any() for score in (before, after)):
        return {}
    cards = _groups(table, judged)
    everything = np.ones(len(labels), np.bool_)
    found = paired_evidence(labels, before, after, cards, everything, resamples=_RESAMPLES)
    return {
        name: {"gain": d.gain, "low": d.low, "high": d.high, "better": _SIDES.get(d.better or "")}
        for name, d in found.differences.items()
    }


_SIDES = {"champion": "served", "challenger": "replayed"}


def _groups(table: Beside, rows: BoolArray) -> IntArray:
    """(m,) a number for the card of each of these rows."""
    _, groups = np.unique(table.ids["card_id"].take(rows).keys(), axis=0, return_inverse=True)
    return groups.reshape(-1).astype(np.int64)


def _cost(
    matrix: CostMatrix, table: Beside, known: Known, judged: BoolArray, alerts: tuple[BoolArray, BoolArray]
) -> dict[str, Any] | None:
    """None where no label is final yet. The least cost is that of the best threshold for these very rows: what comes
    next will cost more."""
    if not judged.any():
        return None
    labels, amounts = known.labels[judged], table.amounts[judged]
    before, after = (matrix.of(alert[judged], labels, amounts) for alert in alerts)
    saved = saving(before, after, _groups(table, judged))
    out: dict[str, Any] = {
        "matrix": matrix.to_json(),
        "served": float(before.sum()),
        "replayed": float(after.sum()),
        "saved": saved.saved,
        "saved_low": saved.low if np.isfinite(saved.low) else None,
        "saved_high": saved.high if np.isfinite(saved.high) else None,
    }
    for name, scores in (("served", table.before), ("replayed", table.after)):
        threshold, least = cost_curve(matrix, scores[judged], labels, amounts).least
        out[f"{name}_least"] = {"threshold": threshold, "cost": least}
    return out


def examples(table: Beside, known: Known, rows: BoolArray) -> list[dict[str, Any]]:
    """The rows whose score differs most."""
    chosen = np.flatnonzero(rows)
    change = np.abs(table.after[chosen] - table.before[chosen])
    chosen = chosen[np.argsort(-change, kind="stable")][:_SHOWN]
    names = {name: ids.take(chosen).to_list() for name, ids in table.ids.items()}
    return [
        {
            **{name: ids[k] for name, ids in names.items()},
            "event_time": int(table.times[i]),
            "amount": float(table.amounts[i]),
            "served": float(table.before[i]),
            "replayed": float(table.after[i]),
            "label": None if known.labels[i] < 0 else int(known.labels[i]),
        }
        for k, i in enumerate(chosen.tolist())
    ]
