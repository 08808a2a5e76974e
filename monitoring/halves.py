"""The two halves of the monitor, rows -> closed periods: of scored rows, and of rows whose labels are mature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, check_like, of_optional, optional_of, prefixed, under
from features.block import BoolArray, FloatArray, Ids, IntArray
from features.kernel import own
from monitoring.bins import BINS, Bins, bin_of, count_labelled, count_matrix, count_scores
from monitoring.drift import SEGMENT_VALUES, ScoredLayout
from monitoring.performance import LAYOUT
from monitoring.periods import LATE, Periods, Run
from monitoring.samples import Samples, row_hash
from monitoring.settings import MonitorError, MonitorSettings
from monitoring.trained import Trained

__all__ = ["ERRORS", "LabelledHalf", "LabelledPeriod", "OpenPeriod", "ScoredHalf", "ScoredPeriod"]

#: rows of a period whose errors the detectors see
ERRORS = 500
_TIMES = (np.iinfo(np.int64).max, np.iinfo(np.int64).min)


class OpenPeriod:
    """``counts`` (size,) int64, and the first and last event time (2,) of the rows of a period."""

    def __init__(self, size: int) -> None:
        self.counts = np.zeros(size, np.int64)
        self.times = np.array(_TIMES, np.int64)

    def seen(self, event_time_ms: IntArray) -> None:
        """Takes the times of rows."""
        self.times[0] = min(self.times[0], event_time_ms.min())
        self.times[1] = max(self.times[1], event_time_ms.max())

    def state(self) -> Arrays:
        """``counts``, ``times``."""
        return {"counts": self.counts, "times": self.times}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`."""
        self.counts, self.times = arrays["counts"].copy(), arrays["times"].copy()


class ScoredPeriod(OpenPeriod):
    """And a few of its rows."""

    def __init__(self, size: int, columns: int) -> None:
        super().__init__(size)
        self.samples = Samples(columns)

    def state(self) -> Arrays:
        return super().state() | prefixed("samples/", self.samples.state())

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        super().restore(arrays)
        self.samples.restore(under("samples/", arrays))


class LabelledPeriod(OpenPeriod):
    """And its cards: ``card`` (k,) int64 identities, ``best`` (k,) score, ``hit`` (k,) 1 where it had a fraud; and
    ``errors`` (k,) float64 0 or 1 of its first `ERRORS` rows, 1 where the action was wrong."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.errors = np.zeros(0)
        self._parts: list[tuple[IntArray, FloatArray, IntArray]] = []

    def add_errors(self, wrong: BoolArray) -> None:
        """Rows (n,); all but the first of the period are left out."""
        if len(self.errors) < ERRORS:
            self.errors = np.concatenate([self.errors, wrong.astype(np.float64)])[:ERRORS]

    def add_cards(self, card: IntArray, score: FloatArray, label: IntArray) -> None:
        """Rows (n,); kept by card once there are many."""
        self._parts.append((card, score, label))
        if len(self._parts) > 64:
            self.cards()

    def cards(self) -> tuple[IntArray, FloatArray, IntArray]:
        """(card, best, hit), by rising card."""
        parts = self._parts or [(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))]
        card, score, label = (np.concatenate(column) for column in zip(*parts, strict=True))
        cards, place = np.unique(card, return_inverse=True)
        best = np.full(len(cards), -np.inf)
        np.maximum.at(best, place, score)
        hit = np.zeros(len(cards), np.int64)
        np.maximum.at(hit, place, label)
        self._parts = [(cards, best, hit)]
        return cards, best, hit

    def state(self) -> Arrays:
        card, best, hit = self.cards()
        return super().state() | {"card": card, "best": best, "hit": hit, "errors": self.errors}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        super().restore(arrays)
        self._parts = [(arrays["card"].copy(), arrays["best"].copy(), arrays["hit"].copy())]
        self.errors = arrays["errors"].copy()


P = TypeVar("P", bound=OpenPeriod)
#: called with each period that is complete, in order: its number and what is in it
Close = Callable[[int, P], None]


def open_arrays(periods: Mapping[int, OpenPeriod]) -> Arrays:
    """The open periods as plain arrays, by number."""
    out: Arrays = {"numbers": np.array(sorted(periods), np.int64)}
    for number in sorted(periods):
        out |= prefixed(f"{number}/", periods[number].state())
    return out


def restore_open(arrays: Mapping[str, npt.NDArray[Any]], make: Callable[[], P]) -> dict[int, P]:
    """The reverse of `open_arrays`."""
    periods = {}
    for number in arrays["numbers"].tolist():
        period = make()
        part = under(f"{number}/", arrays)
        check_like(part, period.state(), "an open period")
        period.restore(part)
        periods[number] = period
    return periods


def numbers(slot: IntArray) -> list[int]:
    """The periods of the rows of a run, rising, without that of late rows."""
    first, last = int(slot.min()), int(slot.max())
    if first == last:
        return [first] if first != LATE else []
    return [n for n in np.unique(slot).tolist() if n != LATE]


def close_below(periods: dict[int, P], limit: int, close: Close[P]) -> None:
    """Closes the open periods below ``limit``, oldest first."""
    for number in sorted(n for n in periods if n < limit):
        close(number, periods.pop(number))


def _column(columns: Mapping[str, Any], name: str, dtype: type[np.generic], n: int | None) -> npt.NDArray[Any]:
    if name not in columns:
        raise MonitorError(f"columns: {name} is missing; give it for every row")
    array = np.asarray(columns[name])
    if n is not None and len(array) != n:
        raise MonitorError(f"columns: {name} has {len(array)} rows, event_time {n}; give each row once")
    return own(array, dtype)


class _Half(ABC, Generic[P]):
    """The open periods of one half, and ``late``, how many rows came after their period was closed."""

    def __init__(self, settings: MonitorSettings, allowance_ms: int) -> None:
        self.settings = settings
        self.periods = Periods(
            settings.period_rows or settings.period_ms, allowance_ms, settings.period_rows is not None
        )
        self.open: dict[int, P] = {}
        self.late = 0

    @abstractmethod
    def make_period(self) -> P:
        """A period without rows."""

    def _period(self, number: int) -> P:
        return self.open.get(number) or self.open.setdefault(number, self.make_period())

    def _runs(self, times: IntArray, clock: IntArray, close: Close[P]) -> Iterator[Run]:
        """The rows (n,) in runs, see `Periods.runs`; closes the periods that are complete before each, and at last."""
        for run in self.periods.runs(times, clock):
            close_below(self.open, run.closed_to, close)
            self.late += int(np.count_nonzero(run.slot == LATE))
            yield run
        full = self.periods.full()
        if full is not None:
            close_below(self.open, full, close)

    def state(self) -> Arrays:
        """``clock`` (0,) or (1,), ``late`` (1,) and the open periods."""
        return {
            "clock": of_optional(self.periods.clock),
            "late": np.array([self.late], np.int64),
            **prefixed("open/", open_arrays(self.open)),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`; what `make_period` needs is set before."""
        self.periods.clock = optional_of(arrays["clock"])
        self.late = int(arrays["late"][0])
        self.open = restore_open(under("open/", arrays), self.make_period)


class ScoredHalf(_Half[ScoredPeriod]):
    """Scored rows by period. ``bins`` and ``segment_values`` are None until they are known: the first rows are kept and
    counted once there are enough of them to tell. ``trained``: they are counted in its bins too."""

    def __init__(
        self,
        settings: MonitorSettings,
        bins: Bins | None,
        segment_values: tuple[tuple[str, ...], ...] | None,
        trained: Trained | None = None,
    ) -> None:
        super().__init__(settings, settings.lateness_ms)
        self.layout = ScoredLayout(len(settings.features) + 1, len(settings.segments), trained is not None)
        self.bins, self.segment_values, self.trained = bins, segment_values, trained
        self._none_discrete = np.zeros(self.layout.columns, np.bool_)

    def make_period(self) -> ScoredPeriod:
        return ScoredPeriod(self.layout.size, self.layout.columns)

    def observe(self, columns: Mapping[str, Any], close: Close[ScoredPeriod]) -> None:
        """Counts rows, see `monitoring.monitor`; `bins` must be known."""
        times = _column(columns, "event_time", np.int64, None)
        n = len(times)
        clock = _column(columns, "clock", np.int64, n) if "clock" in columns else times
        x = _column(columns, "features", np.float64, n)
        if x.shape != (n, len(self.settings.features)):
            raise MonitorError(
                f"columns: features is {x.shape}, must be {(n, len(self.settings.features))} as declared"
            )
        score = _column(columns, "score", np.float64, n)
        segments = [self._places(s, columns["segments"][name]) for s, name in enumerate(self.settings.segments)]
        hashes = row_hash(times, score)
        for run in self._runs(times, clock, close):
            rows = slice(run.start, run.stop)
            self._count(run, times[rows], x[rows], score[rows], [s[rows] for s in segments])
            for number in numbers(run.slot):
                at = run.start + np.flatnonzero(run.slot == number)
                self.open[number].samples.add(at, hashes, columns["transaction_id"], x, score)

    def _count(self, run: Run, times: IntArray, x: FloatArray, score: FloatArray, segments: list[IntArray]) -> None:
        assert self.bins is not None
        edges, discrete, layout = self.bins.edges, self.bins.discrete, self.layout
        for number in numbers(run.slot):
            period = self._period(number)
            mine = run.slot == number
            period.seen(times[mine])
            counts = period.counts
            matrix = layout.matrix(counts)
            count_matrix(x, run.slot, number, edges[:-1], discrete[:-1], matrix[:-1])
            count_matrix(score[:, None], run.slot, number, edges[-1:], discrete[-1:], matrix[-1:])
            count_scores(score, run.slot, number, self.settings.threshold, layout.head(counts), layout.fine(counts))
            if self.trained is not None:
                edges_then, plain, then = self.trained.edges, self._none_discrete, layout.trained(counts)
                count_matrix(x, run.slot, number, edges_then[:-1], plain[:-1], then[:-1])
                count_matrix(score[:, None], run.slot, number, edges_then[-1:], plain[-1:], then[-1:])
            if segments:
                by_segment, bins = layout.by_segment(counts), np.empty(len(score), np.int64)
                bin_of(score, edges[-1], bool(discrete[-1]), bins)
                for s, place in enumerate(segments):
                    cells = np.bincount(place[mine] * BINS + bins[mine], minlength=(SEGMENT_VALUES + 1) * BINS)
                    by_segment[s] += cells.reshape(-1, BINS)

    def _places(self, s: int, ids: Ids) -> IntArray:
        """(n,) the place of each value of segment s among those known, 15 for others."""
        assert self.segment_values is not None
        place = {text: i for i, text in enumerate(self.segment_values[s])}
        if ids.ints is not None:
            whole = {int(t): i for t, i in place.items() if _is_integer(t)}
            if not whole:
                return np.full(len(ids), SEGMENT_VALUES, np.int64)
            known = np.array(sorted(whole), np.int64)
            at = np.minimum(np.searchsorted(known, ids.ints), len(known) - 1)
            places = np.array([whole[v] for v in known.tolist()], np.int64)
            return np.where(known[at] == ids.ints, places[at], SEGMENT_VALUES)
        return np.array([place.get(segment_text(v), SEGMENT_VALUES) for v in ids.to_list()], np.int64)


def _is_integer(text: str) -> bool:
    """Whether it is an int64 as it is written in decimals, as which it names the same value as that integer."""
    return text.removeprefix("-").isdecimal() and len(text) < 19 and str(int(text)) == text


def segment_text(value: int | str) -> str:
    """A segment's value as it is named."""
    return str(value).rstrip("\0")


class LabelledHalf(_Half[LabelledPeriod]):
    """Labelled rows by period of their event; a period closes when all its labels are mature."""

    def __init__(self, settings: MonitorSettings) -> None:
        super().__init__(settings, settings.label_horizon_ms + settings.lateness_ms)

    def make_period(self) -> LabelledPeriod:
        return LabelledPeriod(LAYOUT.size)

    def observe(self, columns: Mapping[str, Any], close: Close[LabelledPeriod]) -> None:
        """Counts rows, see `monitoring.monitor`."""
        times = _column(columns, "event_time", np.int64, None)
        n = len(times)
        known = _column(columns, "label_time", np.int64, n)
        score = _column(columns, "score", np.float64, n)
        label = _column(columns, "label", np.int64, n)
        ids: Ids = columns["card_id"]
        # the identity of a text is 128 bits; half of it is enough to tell the cards of a day apart
        card = ids.ints if ids.ints is not None else ids.keys()[:, 1].view(np.int64)
        threshold = self.settings.threshold
        for run in self._runs(times, known, close):
            rows = slice(run.start, run.stop)
            for number in numbers(run.slot):
                period = self._period(number)
                mine = run.slot == number
                period.seen(times[rows][mine])
                head, fine = LAYOUT.head(period.counts), LAYOUT.fine(period.counts)
                count_labelled(score[rows], label[rows], run.slot, number, threshold, head, fine)
                mine &= ~np.isnan(score[rows])
                scored, fraud = score[rows][mine], label[rows][mine] != 0
                period.add_errors((scored >= threshold) != fraud)
                period.add_cards(card[rows][mine], scored, fraud.astype(np.int64))
