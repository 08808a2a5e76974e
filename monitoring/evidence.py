"""What an alert says of itself: since when, how strong, where, examples, and what naive detectors would have said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from river import drift

from features.block import FloatArray, IntArray
from monitoring.bins import BINS, MISSING
from monitoring.budget import Watch
from monitoring.performance import LAYOUT, METRICS, estimated, intervals, metrics
from monitoring.samples import Samples
from monitoring.settings import MonitorSettings
from monitoring.track import Finding, Track

__all__ = ["change_point", "figures_of_labels", "labelled_evidence", "number", "scored_evidence", "track_evidence"]

#: watches that are listed, and rows shown
_WATCHES, _EXAMPLES = 10, 3
#: what people use who do not look at their data: a PSI, and a period in periods
_RULE_PSI, _FIXED_PERIODS = 0.2, 30


def number(value: float) -> float | None:
    """``value`` for JSON: six digits, None where it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def change_point(deviation: FloatArray) -> int:
    """The index from which on ``deviation`` (n,) from the usual is best told apart from none: of all k the one with the
    largest sum(deviation[k:])^2 / (n - k), the likelihood ratio of a step of the mean at k. NaN counts as usual."""
    x = np.nan_to_num(deviation)
    sums = np.cumsum(x[::-1])[::-1]
    gain = sums * np.abs(sums) / np.arange(len(x), 0, -1)
    side = np.sign(sums[-1]) or 1.0
    return int(np.argmax(gain * side))


def _series(track: Track, watch: Watch) -> tuple[FloatArray, FloatArray]:
    """(values, deviations from the usual) (h,) of the kept periods, one by one, of what ``watch`` looks at."""
    if watch in track.family.watches:
        j = track.family.watches.index(watch)
        values = track.family.values(track.counts, track.then)[:, j]
        center = track.limits[0].center[j]
        if watch.distance:
            return values, np.log(values + 1e-7) - center
        return values, values - center
    u = [subject for _, subject in track.family.detected].index(watch.subject)
    values = track.family.series(track.counts)[:, u]
    return values, values - float(np.nanmean(track.family.series(track.reference)[:, u]))


def track_evidence(track: Track, settings: MonitorSettings, finding: Finding) -> dict[str, Any]:
    """Of any half: what was found, since when, and what others would have said."""
    # what belongs to incidents that stood before is not this one's
    beyond = np.flatnonzero((finding.strength >= 1) & (track.incidents.member == track.incidents.count))
    beyond = beyond[np.argsort(-finding.strength[beyond], kind="stable")]
    strongest = finding.watches[finding.opened[0]]
    values, deviations = _series(track, strongest)
    at = change_point(deviations)
    watches = [finding.watches[i] for i in beyond]
    adwin: Any = drift.ADWIN()  # type: ignore[no-untyped-call]
    adwin_at = []
    for period, value in zip(track.period.tolist(), values.tolist(), strict=True):
        if value == value:
            adwin.update(value)
            if adwin.drift_detected:
                adwin_at.append(period)
    first = _watch_json(track, finding, int(finding.opened[0]))
    return {
        "summary": (
            "{subject}: {measure} is {value} over {periods} periods, usually {expected}, the limit is {threshold}"
            if first["periods"]
            else "{subject}: {measure} of River gave an alarm at {value}, sensitivity {threshold}"
        ).format(**first),
        "since": _start(track, settings, at),
        "strength": number(finding.strength[finding.opened[0]]),
        "incident": track.incidents.count,
        "watches": [_watch_json(track, finding, int(i)) for i in beyond[:_WATCHES]],
        "watches_beyond": len(beyond),
        "features": [s for s in dict.fromkeys(w.subject for w in watches) if s in settings.features],
        "segments": list(
            dict.fromkeys(w.subject for w in watches if w.kind == "segment_drift" or w.subject in settings.segments)
        ),
        "rows": int(track.counts[-1, 0]),
        "naive": {
            "always": track.judged,
            "fixed_period": {"every_periods": _FIXED_PERIODS, "fires_now": track.judged % _FIXED_PERIODS == 0},
            "adwin_default": {"fired": bool(adwin_at), "values": int(np.count_nonzero(~np.isnan(values)))},
        },
        "budget": {
            "false_alarms_per_30d": settings.false_alarms_per_30d,
            "watches": len(track.watches),
            "chance_per_watch_and_period": number(track.chance),
        },
    }


def _start(track: Track, settings: MonitorSettings, at: int) -> int:
    """Event time ms at which the kept period ``at`` begins."""
    if settings.period_rows is None:
        return int(track.period[at]) * settings.period_ms
    return int(track.times[at, 0])


def _watch_json(track: Track, finding: Finding, i: int) -> dict[str, Any]:
    watch = finding.watches[i]
    threshold, expected = track.limits_of(i, float(finding.values[i]))
    return {
        "kind": watch.kind,
        "subject": watch.subject,
        "measure": watch.measure,
        "periods": int(finding.windows[i]),
        "value": number(finding.values[i]),
        "threshold": number(threshold),
        "expected": number(expected),
        "strength": number(finding.strength[i]),
    }


def scored_evidence(
    track: Track, settings: MonitorSettings, finding: Finding, edges: FloatArray, matrices: IntArray, samples: Samples
) -> dict[str, Any]:
    """Of scored rows. ``edges`` (d + 1, 15) and ``matrices`` (2, d + 1, 18): the reference's counts and the period's;
    ``samples`` of the period."""
    out = track_evidence(track, settings, finding)
    names = [*settings.features, "score"]
    then, now = matrices
    subject = finding.watches[finding.opened[0]].subject
    j = names.index(subject) if subject in names else len(names) - 1
    shares_then, shares_now = (m / np.maximum(m.sum(-1, keepdims=True), 1) for m in (then, now))
    out["distribution"] = {
        "subject": names[j],
        "edges": [number(e) for e in edges[j].tolist() if math.isfinite(e)],
        "then": [number(v) for v in shares_then[j].tolist()],
        "now": [number(v) for v in shares_now[j].tolist()],
    }
    measures = [(i, w) for i, w in enumerate(finding.watches[: len(track.family.watches)]) if w.measure == "psi"]
    out["naive"]["psi_0.2"] = [w.subject for i, w in measures if w.subject in names and finding.values[i] > _RULE_PSI]
    out["examples"] = _examples(samples, names, edges[j], j, shares_now[j] - shares_then[j])
    return out


def _examples(
    samples: Samples, names: Sequence[str], edges: FloatArray, j: int, excess: FloatArray
) -> list[dict[str, Any]]:
    """Rows of the sample whose value of column j is where there is most more than there was."""
    values = samples.rows[:, j]
    place = np.where(np.isnan(values), MISSING, np.searchsorted(edges, values, "right"))
    best = np.argsort(-excess[np.minimum(place, BINS - 1)], kind="stable")[:_EXAMPLES]
    return [
        {
            "transaction_id": samples.ids[i].decode("utf-8", "replace"),
            "score": number(samples.rows[i, -1]),
            "features": {name: number(v) for name, v in zip(names[:-1], samples.rows[i].tolist(), strict=False)},
        }
        for i in best.tolist()
    ]


def figures_of_labels(periods: IntArray, reference: IntArray, threshold: float) -> dict[str, Any]:
    """The figures of the labelled rows of ``periods`` (p, size) together, with intervals, those of ``reference``
    (R, size), and what was estimated without labels (CBPE) with its error."""
    together = periods.sum(0)[None]
    now, then, ends = metrics(together)[0], metrics(reference.sum(0)[None])[0], intervals(periods)
    guess = estimated(LAYOUT.fine(together).sum(1), threshold)[0]
    known = dict(zip(METRICS, now.tolist(), strict=True))
    return {
        "rows": int(together[0, 0]),
        "positives": int(together[0, 1]),
        "metrics": {
            name: {"value": number(now[i]), "interval": [number(v) for v in ends[i]], "reference": number(then[i])}
            for i, name in enumerate(METRICS)
        },
        "estimated": {
            name: {"value": number(guess[i]), "error": number(guess[i] - known[name])}
            for i, name in enumerate(METRICS[: len(guess)])
        },
    }


def labelled_evidence(track: Track, settings: MonitorSettings, finding: Finding) -> dict[str, Any]:
    """Of labelled rows."""
    out = track_evidence(track, settings, finding)
    window = max(1, int(finding.windows[finding.opened[0]]))
    recent = track.counts[track.period > finding.period - window]
    return out | figures_of_labels(recent, track.reference, settings.threshold)
