"""The window engine in plain Python: a list per key, exact rational sums, no clever step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from features.declare import WindowFeature

UNIT = Fraction(1, 2**64)
NEVER = -(2**62)


def quantised(x: float) -> Fraction:
    """x as the engine holds it: the nearest multiple of 2**-64, ties to even."""
    return round(Fraction(x) / UNIT) * UNIT


@dataclass
class Event:
    time: int
    values: dict[str, float]
    label_time: int | None = None
    negative: bool = False


class NaiveWindows:
    """Row by row, label by label, as the docstrings of features.engine say."""

    def __init__(self, features: Sequence[WindowFeature], lateness_ms: int, waiting_max: int = 10**9) -> None:
        self.features = features
        self.lateness_ms = lateness_ms
        self.waiting_max = waiting_max
        self.span_ms = max(f.delay_ms + f.window_ms for f in features) + lateness_ms
        self.stream = NEVER
        self.events: dict[object, list[Event]] = {}
        self.transactions: dict[object, Event] = {}
        self.waiting: dict[object, int] = {}
        self.repeated = self.contradicting = self.unknown = self.forced = 0

    @property
    def horizon(self) -> int:
        return self.stream - self.span_ms

    def row(
        self, key: object, time: int, values: dict[str, float], transaction: object = None
    ) -> tuple[list[float], bool]:
        late = time < self.stream - self.lateness_ms
        self.stream = max(self.stream, time)
        event = Event(time, values)
        seen = [e for e in self.events.get(key, []) if self.horizon < e.time <= time] + [event]
        out = [self._feature(f, seen, time) for f in self.features]
        if not late:
            self.events.setdefault(key, []).append(event)
            self.transactions[transaction] = event
            event.label_time = self.waiting.pop(transaction, None)
        return out, late

    def _feature(self, f: WindowFeature, seen: list[Event], now: int) -> float:
        inside = [e for e in seen if now - f.delay_ms - f.window_ms < e.time <= now - f.delay_ms]
        if f.aggregate == "count":
            return len(inside)
        if not inside:
            return 0.0
        if f.aggregate == "risk":
            return sum(e.label_time is not None and e.label_time <= now for e in inside) / len(inside)
        assert f.field is not None
        total = float(sum(quantised(e.values[f.field]) for e in inside))
        return total if f.aggregate == "sum" else total / len(inside)

    def label(self, transaction: object, label_time: int, positive: bool) -> None:
        event = self.transactions.get(transaction)
        if event is not None and event.time > self.horizon:
            was_positive = event.label_time is not None
            if was_positive or event.negative:
                if was_positive == positive:
                    self.repeated += 1
                else:
                    self.contradicting += 1
            if positive and not was_positive:
                event.label_time = label_time
            event.negative = not positive and not was_positive
            return
        if transaction in self.waiting:
            if positive:
                self.repeated += 1
            else:
                self.contradicting += 1
            return
        self.unknown += 1
        if not positive:
            return
        while self.waiting and next(iter(self.waiting.values())) <= self.horizon:
            del self.waiting[next(iter(self.waiting))]
        while len(self.waiting) >= self.waiting_max:
            del self.waiting[next(iter(self.waiting))]
            self.forced += 1
        self.waiting[transaction] = label_time


class NaiveDedupe:
    """A list of (id, time), oldest arrival first."""

    def __init__(self, window_ms: int, lateness_ms: int, entries_max: int) -> None:
        self.window_ms, self.lateness_ms, self.entries_max = window_ms, lateness_ms, entries_max
        self.seen: list[tuple[object, int]] = []
        self.stream = NEVER
        self.forced = 0

    def row(self, key: object, time: int) -> bool:
        while self.seen and self.seen[0][1] < self.stream - self.window_ms - self.lateness_ms:
            self.seen.pop(0)
        if any(k == key and abs(time - t) <= self.window_ms for k, t in self.seen):
            return True
        if len(self.seen) >= self.entries_max:
            self.seen.pop(0)
            self.forced += 1
        self.seen.append((key, time))
        self.stream = max(self.stream, time)
        return False
