"""The monitor of lists: what was served and what users did next in, alerts out. Pure: no clock, no I/O.

    monitor = ListMonitor(ListSettings())
    alerts = monitor.observe(shown, model, pairs)      # Shown, see `monitoring.list_join`; [(model, Alert)]
    arrays = monitor.state(); ListMonitor(settings).restore(arrays)

Each list is joined with what its user does next (`ListJoin`), counted in the period of its own event time, and each
model's lists are watched apart: click-through, hit rate, coverage, popularity bias, the shares of rungs and sources
(`monitoring.list_counts`) and, by a `Monitor` of their own, the features of the pairs of user and item. Lists are given
in log order, in blocks of any size: how they are cut never shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, check_like, of_optional, of_texts, optional_of, prefixed, texts_of, under
from features.block import BoolArray, FloatArray, Ids, IntArray
from monitoring.alerts import Alert, alert_id
from monitoring.budget import chance_per_watch
from monitoring.evidence import number, track_evidence
from monitoring.family import Family
from monitoring.halves import OpenPeriod, close_below, numbers, open_arrays, restore_open
from monitoring.list_counts import LAYOUT, STATISTICS, ItemTally, exposure, figures_of, list_values, list_watches
from monitoring.list_join import LIST_MAX, ListJoin, Outcomes, Shown
from monitoring.monitor import Monitor
from monitoring.periods import LATE, Periods
from monitoring.settings import DAY_MS, MonitorError, MonitorSettings
from monitoring.track import Finding, Track

__all__ = ["ListMonitor", "ListSettings", "Pairs"]

#: models that are watched at once; a new one takes the place of the one that has not served for longest
_MODELS_MAX = 8
#: from this strength on an alert is critical
_CRITICAL = 2.0
#: periods after which an item that was neither shown nor looked at is not known any more
_KNOWN_PERIODS = 30
#: of the statistics, those whose means River's detectors see
_DETECTED = (("list_performance", "click_through"), ("list_performance", "hit_rate"), ("list_coverage", "coverage"))


@dataclass(frozen=True, slots=True)
class ListSettings:
    """``within_ms``: how long after a list what its user does counts for it. Of the other settings see
    `MonitorSettings`; the false alarms are of all watches together."""

    within_ms: int = 1_800_000
    lateness_ms: int = 3_600_000
    period_ms: int = DAY_MS
    windows: tuple[int, ...] = (1, 7)
    reference_periods: int = 28
    rows_min: int = 200
    false_alarms_per_30d: float = 1.0

    def of(self, features: Sequence[str]) -> MonitorSettings:
        """Of half of the watches: of the lists, or of the ``features`` of their pairs. MonitorError: a setting that
        cannot be."""
        return MonitorSettings(
            tuple(features),
            period_ms=self.period_ms,
            lateness_ms=self.lateness_ms,
            windows=self.windows,
            reference_periods=self.reference_periods,
            rows_min=self.rows_min,
            false_alarms_per_30d=self.false_alarms_per_30d / 2,
        )

    def check(self) -> None:
        """MonitorError: a setting that cannot be."""
        if self.within_ms < 1:
            raise MonitorError(f"within_ms: {self.within_ms} is not positive; give the time that a click may take")
        self.of(STATISTICS)


@dataclass(frozen=True, slots=True)
class Pairs:
    """One item of each of these lists: its ``row`` (m,) in the block, the ``event`` it was for, and the features that
    it was ranked by, ``x`` (m, d), in the order of ``names``."""

    row: IntArray
    event: Ids
    x: FloatArray
    names: tuple[str, ...]

    def part(self, begin: int, end: int) -> Pairs:
        """Those of the lists from ``begin`` to before ``end``."""
        at = np.arange(*np.searchsorted(self.row, [begin, end]))
        return Pairs(self.row[at] - begin, self.event.take(at), self.x[at], self.names)


class ListPeriod(OpenPeriod):
    """And its items."""

    def __init__(self) -> None:
        super().__init__(LAYOUT.size)
        self.tally = ItemTally()

    def state(self) -> Arrays:
        return super().state() | prefixed("tally/", self.tally.state())

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        super().restore(arrays)
        self.tally = ItemTally.of(under("tally/", arrays))


class _ListWatch:
    """The lists of one model."""

    def __init__(self, settings: ListSettings) -> None:
        self.settings = settings.of(STATISTICS)
        # a list's outcome may come so much later
        self._periods = Periods(settings.period_ms, settings.lateness_ms + settings.within_ms, by_rows=False)
        self._open: dict[int, ListPeriod] = {}
        self._before = ItemTally()
        #: codes of the items known, by rising code, and the period in which anything was last seen of each
        self._known: tuple[npt.NDArray[np.uint64], IntArray] = (np.zeros(0, np.uint64), np.zeros(0, np.int64))
        family = _family(self.settings)
        self.track = Track(self.settings, family, chance_per_watch(self.settings, family.count(self.settings)), None)

    def observe(self, shown: Shown, clock: IntArray, mine: bool, outcomes: Outcomes, joined: BoolArray) -> list[Alert]:
        """Takes lists, with the ``clock`` (n,) after each, which count where they are ``mine``, and of the ``outcomes``
        those that are, ``joined`` (m,)."""
        alerts: list[Alert] = []
        done = np.flatnonzero(joined)
        for run in self._periods.runs(shown.time_ms, clock):
            close_below(self._open, run.closed_to, lambda p, period: self._close(p, period, alerts))
            if mine:
                self._count_lists(shown, np.arange(run.start, run.stop), run.slot)
            at = done[(outcomes.row[done] >= run.start) & (outcomes.row[done] < run.stop)]
            slot = outcomes.time_ms[at] // self._periods.length
            self._count_outcomes(shown, outcomes, at, np.where(slot < run.closed_to, LATE, slot))
        return alerts

    def _count_lists(self, shown: Shown, lists: IntArray, slot: IntArray) -> None:
        for of in numbers(slot) if len(slot) else ():
            rows = lists[slot == of]
            period = self._open.setdefault(of, ListPeriod())
            period.seen(shown.time_ms[rows])
            there = np.arange(LIST_MAX) < shown.length[rows][:, None]
            sources = shown.sources[rows][there].astype(np.int64)
            LAYOUT.add_lists(period.counts, shown.rung[rows], shown.length[rows], sources)
            period.tally.add(0, shown.items[rows][there])
            period.tally.add(1, shown.clicked[rows][shown.known[rows]])

    def _count_outcomes(self, shown: Shown, outcomes: Outcomes, at: IntArray, slot: IntArray) -> None:
        for of in numbers(slot) if len(slot) else ():
            if of not in self._open:
                continue  # the list itself came too late to be counted
            mine = at[slot == of]
            LAYOUT.add_outcomes(
                self._open[of].counts,
                outcomes.rung[mine],
                outcomes.place[mine],
                outcomes.source[mine],
                outcomes.bought[mine],
            )

    def _close(self, number_: int, period: ListPeriod, alerts: list[Alert]) -> None:
        codes, _ = period.tally.counted()
        all_codes, place = np.unique(np.concatenate([self._known[0], codes]), return_inverse=True)
        last = np.zeros(len(all_codes), np.int64)
        last[place[: len(self._known[0])]] = self._known[1]
        last[place[len(self._known[0]) :]] = number_
        kept = last > number_ - _KNOWN_PERIODS
        self._known = all_codes[kept], last[kept]
        exposure(period.counts, period.tally, int(kept.sum()), self._before)
        self._before = period.tally
        finding = self.track.close(number_, period.counts, period.times)
        if finding is not None:
            alerts.append(self._alert(finding))

    def _alert(self, finding: Finding) -> Alert:
        track, i = self.track, int(finding.opened[0])
        watch, strength, value = finding.watches[i], float(finding.strength[i]), float(finding.values[i])
        window = max(1, int(finding.windows[i]))
        recent = track.counts[track.period > finding.period - window]
        return Alert(
            alert_id=alert_id(track.family.name, watch.subject, watch.measure, finding.period),
            event_time=(finding.period + 1) * self.settings.period_ms,
            kind=watch.kind,
            subject=watch.subject,
            severity="critical" if strength >= _CRITICAL else "warning",
            value=value,
            threshold=track.limits_of(i, value)[0],
            evidence={**track_evidence(track, self.settings, finding), "lists": figures_of(recent.sum(0))},
        )

    def figures(self) -> dict[str, Any]:
        """Of the longest window of closed periods, and of the reference."""
        track = self.track
        out: dict[str, Any] = {"learning": track.learning, "periods": track.closed}
        out |= {"incidents": track.incidents.count, "reference_periods": len(track.reference)}
        if track.closed:
            recent = track.counts[track.period > track.period[-1] - self.settings.windows[-1]]
            out["recent"] = figures_of(recent.sum(0))
        if not track.learning:
            out["reference"] = figures_of(track.reference.sum(0))
            out["strongest"] = number(float(track.strength.max(initial=0.0)))
        return out

    def state(self) -> Arrays:
        """All that later alerts depend on."""
        return {
            "clock": of_optional(self._periods.clock),
            "known": self._known[0],
            "known_at": self._known[1],
            **prefixed("before/", self._before.state()),
            **prefixed("open/", open_arrays(self._open)),
            **prefixed("track/", self.track.state()),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`."""
        self._periods.clock = optional_of(arrays["clock"])
        self._known = arrays["known"].copy(), arrays["known_at"].copy()
        self._before = ItemTally.of(under("before/", arrays))
        self._open = restore_open(under("open/", arrays), ListPeriod)
        self.track.restore(under("track/", arrays))


class ListMonitor:
    """See the module. Of one partition."""

    def __init__(self, settings: ListSettings) -> None:
        self.settings = settings
        self._join = ListJoin(within_ms=settings.within_ms, lateness_ms=settings.lateness_ms)
        #: all models there ever were, by number
        self._models: list[str] = []
        #: who served last comes last
        self._watches: dict[str, _ListWatch] = {}
        self._pairs: dict[tuple[str, tuple[str, ...]], Monitor] = {}

    def observe(
        self,
        shown: Shown,
        model: str,
        pairs: Pairs | None,
        followed: Callable[[Outcomes, Sequence[str]], None] = lambda outcomes, models: None,
    ) -> list[tuple[str, Alert]]:
        """Takes lists of one ``model`` (empty: none), and some of their pairs; the alerts of the periods that they
        complete, each with its model. What ``shown.model`` says is not looked at. ``followed`` is told the outcomes of
        earlier lists, whose ``model`` are places in the models that it is told, too."""
        if not len(shown):
            return []
        if model not in self._models:
            self._models.append(model)
        of = self._models.index(model)
        shown = replace(shown, model=np.full(len(shown), of))
        watch = self._watches.pop(model) if model in self._watches else _ListWatch(self.settings)
        self._watches[model] = watch
        if len(self._watches) > _MODELS_MAX:
            gone = next(iter(self._watches))
            del self._watches[gone]
            self._pairs = {watched: monitor for watched, monitor in self._pairs.items() if watched[0] != gone}
        alerts: list[tuple[str, Alert]] = []
        for begin, end, clock in self._runs(shown.time_ms):
            part = shown.part(begin, end)
            outcomes = self._join.process(part)
            followed(outcomes, self._models)
            for name, watch in self._watches.items():
                number_ = self._models.index(name)
                told = watch.observe(part, clock, number_ == of, outcomes, outcomes.model == number_)
                alerts += [(name, alert) for alert in told]
            if pairs is not None:
                alerts += [(model, a) for a in self._observe_pairs(model, part, clock, pairs.part(begin, end))]
        return alerts

    def _runs(self, times: IntArray) -> Iterator[tuple[int, int, IntArray]]:
        """Rows between moments at which anything closes, so that alerts come in one order however blocks are cut;
        with the clock of all lists after each."""
        settings = self.settings
        before = self._join.stream_time_ms
        clock = np.maximum.accumulate(times if before is None else np.maximum(times, before))
        closes = np.zeros(len(times), np.bool_)
        for allowance in (settings.lateness_ms, settings.lateness_ms + settings.within_ms):
            closes |= np.diff((clock - allowance) // settings.period_ms, prepend=0) != 0
        starts = [0, *(np.flatnonzero(closes[1:]) + 1).tolist(), len(times)]
        for begin, end in pairwise(starts):
            yield begin, end, clock[begin:end]

    def _observe_pairs(self, model: str, shown: Shown, clock: IntArray, pairs: Pairs) -> list[Alert]:
        if not len(pairs.row):
            return []
        monitor = self._pairs.get((model, pairs.names))
        if monitor is None:
            monitor = self._pairs[model, pairs.names] = Monitor(self.settings.of(pairs.names))
        return monitor.observe_scored(
            {
                "event_time": shown.time_ms[pairs.row],
                "clock": clock[pairs.row],
                "transaction_id": pairs.event,
                "features": pairs.x,
                # a place in a list has no probability: what it was ranked by is among the features
                "score": np.full(len(pairs.row), np.nan),
            }
        )

    def figures(self) -> dict[str, Any]:
        """By model (empty: none): what was served, see `figures_of`, and the drift of the ``pairs``, see
        `Monitor.figures`."""
        out = {model: watch.figures() for model, watch in self._watches.items()}
        for (model, _), monitor in self._pairs.items():
            if "scored" in (figures := monitor.figures()):
                out[model]["pairs"] = figures["scored"]
        return out

    def state(self) -> Arrays:
        """All that later alerts depend on, as plain arrays: equal for equal logs however they were cut."""
        out: Arrays = {
            "models": of_texts(self._models),
            "watched": np.array([self._models.index(model) for model in self._watches], np.int64),
            "paired": np.array([self._models.index(model) for model, _ in self._pairs], np.int64),
            **prefixed("join/", self._join.to_arrays()),
        }
        for i, watch in enumerate(self._watches.values()):
            out |= prefixed(f"watch{i}/", watch.state())
        for i, ((_, names), monitor) in enumerate(self._pairs.items()):
            out[f"names{i}"] = of_texts(names)
            out |= prefixed(f"pairs{i}/", monitor.state())
        return out

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`, on a monitor that has seen nothing yet. StateError: of other settings."""
        own = {name: arrays[name] for name in ("models", "watched", "paired") if name in arrays}
        expected = {name: array for name, array in self.state().items() if "/" not in name}
        check_like(own, expected, "the monitor of lists")
        self._models = texts_of(arrays["models"])
        settings = self.settings
        self._join = ListJoin.from_arrays(
            under("join/", arrays), within_ms=settings.within_ms, lateness_ms=settings.lateness_ms
        )
        for i, number_ in enumerate(arrays["watched"].tolist()):
            watch = self._watches[self._models[number_]] = _ListWatch(settings)
            watch.restore(under(f"watch{i}/", arrays))
        for i, number_ in enumerate(arrays["paired"].tolist()):
            names = tuple(texts_of(arrays[f"names{i}"]))
            monitor = self._pairs[self._models[number_], names] = Monitor(settings.of(names))
            monitor.restore(under(f"pairs{i}/", arrays))


def _family(settings: MonitorSettings) -> Family:
    seen = [STATISTICS.index(subject) for _, subject in _DETECTED]
    return Family(
        name="lists",
        size=LAYOUT.size,
        watches=tuple(list_watches(settings)),
        values=lambda now, then: list_values(now),
        series=lambda counts: list_values(counts)[:, seen],
        steps=lambda counts: settings.loss_min * np.nan_to_num(list_values(counts[None])[0, seen]),
        detected=_DETECTED,
    )
