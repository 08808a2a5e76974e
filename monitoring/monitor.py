"""The monitor: scored and labelled rows in, alerts out. Pure: no clock, no I/O.

    monitor = Monitor(MonitorSettings(features=names, segments=("channel",)), reference)   # Reference | None
    alerts = monitor.observe_scored({
        "event_time": (n,) int64 ms,
        "transaction_id": Ids (n),
        "features": (n, d) float64, columns in the order of settings.features,
        "score": (n,) float64 calibrated probability, NaN where there is none,
        "clock": (n,) int64 ms, the time that periods close by (may be left out when rows come in the order of their
            events: it is event_time then),
        "segments": {name: Ids (n)} for each name of settings.segments (may be left out when there are none),
    })
    alerts = monitor.observe_labelled({
        "event_time": (n,) int64 ms,
        "label_time": (n,) int64 ms, when the label became known, or the horizon passed: the clock of this half,
        "card_id": Ids (n),
        "score": (n,) float64,
        "label": (n,) 0/1 of any integer type,
    })
    arrays = monitor.state(); Monitor(settings, reference).restore(arrays)

Rows are given in log order, in blocks of any size: how they are cut never shows. The two halves (scored, labelled)
share nothing, so their calls may be interleaved in any way. Of one model's scores only: after a swap, begin a new
Monitor (with that model's reference, or None: it learns it from its first periods).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, of_texts, prefixed, texts_of, under
from features.block import IntArray
from features.plan import StateError
from monitoring.alerts import Alert, alert_id
from monitoring.bins import Bins
from monitoring.budget import chance_per_watch
from monitoring.detectors import DETECTORS
from monitoring.drift import SEGMENT_VALUES, ScoredLayout, mean_bins, mean_steps, scored_values, scored_watches
from monitoring.evidence import figures_of_labels, labelled_evidence, number, scored_evidence
from monitoring.family import Family
from monitoring.halves import LabelledHalf, LabelledPeriod, ScoredHalf, ScoredPeriod, segment_text
from monitoring.learning import FirstRows, frequent, rows_of
from monitoring.performance import (
    LAYOUT,
    METRICS,
    card_precision,
    error_rate,
    labelled_watches,
    metrics,
    unexplained,
    unexplained_loss,
)
from monitoring.reference import Reference
from monitoring.settings import MonitorError, MonitorSettings
from monitoring.track import Finding, Track
from monitoring.trained import Trained

__all__ = ["Monitor", "build_reference"]

#: from this strength on an alert is critical; what labels say always is
_CRITICAL = 2.0


class Monitor:
    """See the module. ``reference`` of the model that is watched; None: learned from the first periods, and then in
    `reference`. ``trained``: the present is held against what the model was made on too, by limits from the learned
    reference: how far windows of its world are apart by chance. MonitorError: a reference of other settings."""

    def __init__(
        self, settings: MonitorSettings, reference: Reference | None = None, trained: Trained | None = None
    ) -> None:
        for option, errors in (("detectors", False), ("error_detectors", True)):
            usable = [name for name, kind in DETECTORS.items() if kind.errors == errors]
            for name in getattr(settings, option):
                if name not in usable:
                    raise MonitorError(f"{option}: {name!r} is none of them; use some of {', '.join(usable)}")
        if reference is not None:
            reference.check(settings)
            if trained is not None:
                raise MonitorError("trained: a reference that is given has no counts in its bins; give one of the two")
        if trained is not None and len(trained.edges) != len(settings.features) + 1:
            raise MonitorError(
                f"trained: it is of {len(trained.edges) - 1} features, the settings name {len(settings.features)}; "
                "read it for these"
            )
        self.settings = settings
        self._given = reference
        self._first = FirstRows(settings)
        self._scored = ScoredHalf(settings, None, None, trained)
        self._scored_track: Track | None = None
        self._labelled = LabelledHalf(settings)
        labelled = _labelled_family(settings)
        # the segments' values may not be known yet, how many there can be is
        spare = tuple(tuple("" for _ in range(SEGMENT_VALUES)) for _ in settings.segments)
        watches = labelled.count(settings) + _scored_family(settings, spare, trained).count(settings)
        self._chance = chance_per_watch(settings, watches)
        given = reference.labelled if reference is not None and len(reference.labelled) else None
        self._labelled_track = Track(settings, labelled, self._chance, given)
        #: cards found in the top of a period, each with that period: not listed again
        self._found: dict[int, int] = {}
        #: (k, 2) the newest periods and their card precision
        self._card_precision: list[tuple[int, float]] = []
        if reference is not None:
            self._set_bins(reference.bins, reference.segment_values, reference.scored)

    @property
    def trained(self) -> Trained | None:
        """What the model was made on, as given."""
        return self._scored.trained

    @property
    def reference(self) -> Reference | None:
        """What the present is held against; None while it is being learned. Its labelled part may be none, if only that
        is still being learned."""
        track = self._scored_track
        if track is None or track.learning or self._scored.bins is None or self._scored.segment_values is None:
            return None
        labelled = self._labelled_track
        return Reference(
            self.settings.period,
            self.settings.features,
            self.settings.segments,
            self._scored.segment_values,
            self._scored.bins,
            track.reference[:, : self._scored.layout.own_size],
            labelled.reference[:0] if labelled.learning else labelled.reference,
        )

    def observe_scored(self, columns: Mapping[str, Any]) -> list[Alert]:
        """Takes scored rows, see the module; the alerts of the periods that they complete."""
        if len(columns["event_time"]) == 0:
            return []
        alerts: list[Alert] = []
        if self._scored.bins is None:
            if self.settings.start_ms is not None:
                columns = rows_of(columns, np.asarray(columns["event_time"]) >= self.settings.start_ms)
                if len(columns["event_time"]) == 0:
                    return []
            taken = self._first.take(columns)
            if taken is None:
                return []
            self._set_bins(*self._first.bins(), None)
            first, self._first = self._first.columns(), FirstRows(self.settings)
            self._scored.observe(first, lambda p, period: self._close_scored(p, period, alerts))
            columns = rows_of(columns, slice(taken, None))
        self._scored.observe(columns, lambda p, period: self._close_scored(p, period, alerts))
        return alerts

    def observe_labelled(self, columns: Mapping[str, Any]) -> list[Alert]:
        """Takes labelled rows, see the module; the alerts of the periods that they complete."""
        alerts: list[Alert] = []
        self._labelled.observe(columns, lambda p, period: self._close_labelled(p, period, alerts))
        return alerts

    def _set_bins(self, bins: Bins, segment_values: tuple[tuple[str, ...], ...], reference: IntArray | None) -> None:
        self._scored.bins, self._scored.segment_values = bins, segment_values
        family = _scored_family(self.settings, segment_values, self._scored.trained)
        self._scored_track = Track(self.settings, family, self._chance, reference)

    def _close_scored(self, number_: int, period: ScoredPeriod, alerts: list[Alert]) -> None:
        track, bins, layout = self._scored_track, self._scored.bins, self._scored.layout
        assert track is not None and bins is not None
        finding = track.close(number_, period.counts, period.times)
        if finding is not None:
            edges, of, trained = bins.edges, layout.matrix, self._scored.trained
            if trained is not None and finding.watches[finding.opened[0]].then_rows is not None:
                edges, of = trained.edges, layout.trained
            matrices = np.stack([of(track.then[0]), of(period.counts)])
            evidence = scored_evidence(track, self.settings, finding, edges, matrices, period.samples)
            alerts.append(self._alert(track, finding, period.times, evidence))

    def _close_labelled(self, number_: int, period: LabelledPeriod, alerts: list[Alert]) -> None:
        track = self._labelled_track
        self._find_cards(number_, period)
        finding = track.close(number_, period.counts, period.times, period.errors)
        if finding is not None:
            evidence = labelled_evidence(track, self.settings, finding)
            evidence["card_precision"] = [number(v) for _, v in self._card_precision]
            alerts.append(self._alert(track, finding, period.times, evidence))

    def _find_cards(self, number_: int, period: LabelledPeriod) -> None:
        """The card precision of the period: of its 100 highest cards."""
        oldest = number_ - self.settings.reference_periods
        recent = {card: when for card, when in self._found.items() if when > oldest}
        found = set(recent)
        precision = card_precision(*period.cards(), found)
        self._found = {card: recent.get(card, number_) for card in found}
        self._card_precision = [*self._card_precision, (number_, precision)][-self.settings.reference_periods :]

    def _alert(self, track: Track, finding: Finding, times: IntArray, evidence: dict[str, Any]) -> Alert:
        i = int(finding.opened[0])
        watch, strength = finding.watches[i], float(finding.strength[i])
        settings = self.settings
        end = int(times[1]) if settings.period_rows else (finding.period + 1) * settings.period_ms
        critical = strength >= _CRITICAL or watch.kind == "performance_drift"
        return Alert(
            alert_id=alert_id(track.family.name, watch.subject, watch.measure, finding.period),
            event_time=end,
            kind=watch.kind,
            subject=watch.subject,
            severity="critical" if critical else "warning",
            value=float(finding.values[i]),
            threshold=track.limits_of(i, float(finding.values[i]))[0],
            evidence=evidence,
        )

    def figures(self) -> dict[str, Any]:
        """JSON data for metrics and reports: of each half the newest closed period and how far it is from the
        reference (``strength``: 1 is the limit), the watches left out, and the figures of the labelled rows of the
        longest window."""
        out: dict[str, Any] = {"chance_per_watch_and_period": number(self._chance)}
        for track, late in ((self._scored_track, self._scored.late), (self._labelled_track, self._labelled.late)):
            if track is None:
                continue
            half: dict[str, Any] = {"learning": track.learning, "periods": track.closed, "late_rows": late}
            half |= {"incidents": track.incidents.count, "reference_periods": len(track.reference)}
            if not track.learning:
                left_out = np.flatnonzero(track.left_out()).tolist()
                half["left_out"] = sorted({f"{track.watches[i].subject}/{track.watches[i].measure}" for i in left_out})
                half["strongest"] = number(float(track.strength.max(initial=0.0)))
                if track.judged:
                    half["psi"] = self._psi(track, "psi")
                    if self._scored.trained is not None and track is self._scored_track:
                        half["psi_trained"] = self._psi(track, "psi_trained")
            out[track.family.name] = half
        labelled = self._labelled_track
        if labelled.judged:
            recent = labelled.counts[labelled.period > labelled.period[-1] - self.settings.windows[-1]]
            out["labelled"] |= figures_of_labels(recent, labelled.reference, self.settings.threshold)
            out["labelled"]["card_precision"] = [number(v) for _, v in self._card_precision]
        return out

    def _psi(self, track: Track, measure: str) -> dict[str, float | None]:
        """By subject, of the longest window."""
        now = track.counts[track.period > track.period[-1] - self.settings.windows[-1]].sum(0)
        values = track.family.values(now[None], track.then)[0]
        named = zip(track.family.watches, values.tolist(), strict=True)
        return {watch.subject: number(value) for watch, value in named if watch.measure == measure}

    def state(self) -> Arrays:
        """All that later alerts depend on, as plain arrays in canonical form: equal for equal logs however they were
        cut."""
        out: Arrays = {
            "found": np.array(sorted(self._found.items()), np.int64).reshape(-1, 2),
            "card_precision": np.array([v for _, v in self._card_precision], np.float64),
            "card_periods": np.array([p for p, _ in self._card_precision], np.int64),
            **prefixed("first/", self._first.state()),
            **prefixed("scored/", self._scored.state()),
            **prefixed("labelled/", self._labelled.state()),
            **prefixed("labelled_track/", self._labelled_track.state()),
        }
        bins, values = self._scored.bins, self._scored.segment_values
        if bins is not None and values is not None and self._scored_track is not None:
            out |= {"edges": bins.edges, "discrete": bins.discrete}
            out |= {f"segment_values/{s}": of_texts(texts) for s, texts in enumerate(values)}
            out |= prefixed("scored_track/", self._scored_track.state())
        return out

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`, on a monitor with the same settings and reference that has seen nothing yet.
        StateError: of other settings, or of another reference."""
        known = "edges" in arrays
        if known and self._given is None:
            values = [texts_of(arrays[f"segment_values/{s}"]) for s in range(len(self.settings.segments))]
            self._set_bins(Bins(arrays["edges"], arrays["discrete"]), tuple(map(tuple, values)), None)
        track = self._scored_track
        if track is not None:
            if not known or not np.array_equal(arrays["edges"], self._scored.bins.edges, equal_nan=True):  # type: ignore[union-attr]
                raise StateError(
                    "the saved state of the monitor is of another reference; rebuild it by replaying the log"
                )
            track.restore(under("scored_track/", arrays))
        self._first.restore(under("first/", arrays))
        self._scored.restore(under("scored/", arrays))
        self._labelled.restore(under("labelled/", arrays))
        self._labelled_track.restore(under("labelled_track/", arrays))
        self._found = {int(card): int(when) for card, when in arrays["found"]}
        pairs = zip(arrays["card_periods"].tolist(), arrays["card_precision"].tolist(), strict=True)
        self._card_precision = list(pairs)


def build_reference(
    settings: MonitorSettings, scored: Mapping[str, Any], labelled: Mapping[str, Any] | None = None
) -> Reference:
    """The reference of rows as `Monitor` takes them, in any order, of whole periods. ``labelled`` should not be rows
    that the model was trained on, on which it looks better than it is. MonitorError: too few rows or periods."""
    columns = rows_of(scored, np.argsort(np.asarray(scored["event_time"]), kind="stable"))
    bins = Bins.of(np.column_stack([columns["features"], columns["score"]]))
    values = tuple(frequent([segment_text(v) for v in columns["segments"][n].to_list()]) for n in settings.segments)
    half = ScoredHalf(settings, bins, values)
    periods: list[IntArray] = []
    half.observe(columns, lambda _, period: periods.append(period.counts))
    periods += [half.open[p].counts for p in sorted(half.open)]
    known: list[IntArray] = []
    if labelled is not None:
        labels = LabelledHalf(settings)
        rows = rows_of(labelled, np.argsort(np.asarray(labelled["event_time"]), kind="stable"))
        labels.observe(rows, lambda _, period: known.append(period.counts))
        known += [labels.open[p].counts for p in sorted(labels.open)]
    reference = Reference(
        settings.period,
        settings.features,
        settings.segments,
        values,
        bins,
        _enough(periods, half.layout.size, settings),
        _enough(known, LAYOUT.size, settings),
    )
    if len(reference.scored) == 0:
        raise MonitorError(f"reference scored: no period has {settings.rows_min} rows; build it from more")
    reference.check(settings)
    return reference


def _enough(periods: list[IntArray], size: int, settings: MonitorSettings) -> IntArray:
    """(P, size) the periods that have rows enough."""
    return np.array([c for c in periods if c[0] >= settings.rows_min], np.int64).reshape(-1, size)


def _scored_family(
    settings: MonitorSettings, segment_values: tuple[tuple[str, ...], ...], trained: Trained | None
) -> Family:
    layout = ScoredLayout(len(settings.features) + 1, len(settings.segments), trained is not None)
    known = [len(values) for values in segment_values]
    columns = [] if trained is None else trained.known.tolist()

    def against(counts: IntArray) -> IntArray:
        then = counts.copy()
        if trained is not None:
            layout.trained(then)[:] = trained.counts
        return then

    return Family(
        name="scored",
        size=layout.size,
        watches=tuple(scored_watches(settings, segment_values, trained)),
        values=lambda now, then: scored_values(layout, known, columns, now, then),
        series=lambda counts: mean_bins(layout, counts),
        steps=lambda counts: mean_steps(layout, counts, settings.psi_min),
        detected=(*(("input_drift", name) for name in settings.features), ("score_drift", "score")),
        against=against,
    )


def _labelled_family(settings: MonitorSettings) -> Family:
    loss = METRICS.index("log_loss")
    return Family(
        name="labelled",
        size=LAYOUT.size,
        watches=tuple(labelled_watches(settings)),
        values=lambda now, then: unexplained(now, then, settings.threshold),
        series=lambda counts: unexplained_loss(counts, settings.threshold),
        steps=lambda counts: settings.loss_min * metrics(counts[None])[0, loss : loss + 1],
        detected=(("performance_drift", "score"),),
        error_rate=error_rate,
    )
