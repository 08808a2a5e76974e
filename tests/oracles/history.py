"""Windows over events in plain Python: a list per key, every window found anew by going through all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from features.declare import WindowFeature
from tests.oracles.windows import NEVER, quantised

NAN = math.nan
PAST = {"previous", "since_last", "since_first", "first_seen", "ratio", "zscore", "distance", "speed"}


@dataclass
class Event:
    time: int
    values: dict[str, float | str]

    def number(self, name: str | None) -> float:
        assert name is not None
        return float(self.values[name])


def mean(values: list[float]) -> float:
    return float(sum(quantised(v) for v in values)) / len(values)


def std(values: list[float]) -> float:
    if len(set(values)) == 1:  # whose mean may be rounded
        return 0.0
    middle, total = mean(values), 0.0
    for v in values:
        total += (v - middle) * (v - middle)
    return math.sqrt(total / len(values))


def kilometres(lat_a: float, lon_a: float, lat_b: float, lon_b: float) -> float:
    """Great circle by the spherical law of cosines written with atan2: another formula than the engine's."""
    a, b, d = math.radians(lat_a), math.radians(lat_b), math.radians(lon_b - lon_a)
    y = math.hypot(math.cos(b) * math.sin(d), math.cos(a) * math.sin(b) - math.sin(a) * math.cos(b) * math.cos(d))
    x = math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(d)
    return 6371.0088 * math.atan2(y, x)


class NaiveHistory:
    """Row by row, as the docstring of features.declare says."""

    def __init__(self, features: Sequence[WindowFeature], lateness_ms: int) -> None:
        self.features = features
        self.lateness_ms = lateness_ms
        self.span_ms = max(f.delay_ms + f.window_ms for f in features) + lateness_ms
        self.stream = NEVER
        self.events: dict[object, list[Event]] = {}

    def row(self, key: object, time: int, values: dict[str, float | str]) -> tuple[list[float], bool]:
        late = time < self.stream - self.lateness_ms
        self.stream = max(self.stream, time)
        event = Event(time, values)
        known = [e for e in self.events.get(key, []) if self.stream - self.span_ms < e.time <= time]
        known.sort(key=lambda e: e.time)  # stable: in the order of the log where times are equal
        out = [self.feature(f, known, event) for f in self.features]
        if not late:
            self.events.setdefault(key, []).append(event)
        return out, late

    def window(self, f: WindowFeature, known: list[Event], event: Event) -> list[Event]:
        seen = known if f.aggregate in PAST else [*known, event]
        end = event.time - f.delay_ms
        inside = [e for e in seen if end - f.window_ms < e.time <= end]
        if f.last:
            inside = inside[-f.last :]
        if f.gap_ms:
            session: list[Event] = []
            after = event.time
            for e in reversed(inside):
                if after - e.time >= f.gap_ms:
                    break
                session.insert(0, e)
                after = e.time
            inside = session
        return inside

    def feature(self, f: WindowFeature, known: list[Event], event: Event) -> float:
        inside = self.window(f, known, event)
        if f.aggregate == "count":
            return len(inside)
        if f.aggregate == "since_last":
            return (event.time - inside[-1].time) / 1000 if inside else NAN
        if f.aggregate == "since_first":
            return (event.time - inside[0].time) / 1000 if inside else NAN
        if f.aggregate == "distinct":
            return len({e.values[f.field or ""] for e in inside})
        if f.aggregate == "first_seen":
            return float(event.values[f.field or ""] not in [e.values[f.field or ""] for e in inside])
        if f.aggregate == "decayed_count":
            return sum(0.5 ** ((event.time - e.time) / f.half_life_ms) for e in inside)
        if f.aggregate in ("distance", "speed"):
            return self.moved(f, inside, event)
        numbers = [(e, e.number(f.field)) for e in inside]
        present = [(e, x) for e, x in numbers if not math.isnan(x)]
        if f.aggregate == "decayed_sum":
            return sum(x * 0.5 ** ((event.time - e.time) / f.half_life_ms) for e, x in present)
        return self.of_values(f, [x for _, x in present], event)

    def of_values(self, f: WindowFeature, values: list[float], event: Event) -> float:
        if f.aggregate == "sum":
            return float(sum(quantised(v) for v in values))
        if not values:
            return 0.0 if f.aggregate == "mean" else NAN
        middle, now = mean(values), event.number(f.field)
        if f.aggregate == "ratio":
            return now / middle if middle else NAN
        if f.aggregate == "zscore":
            return (now - middle) / std(values) if std(values) else NAN
        return {
            "mean": lambda: middle,
            "min": lambda: min(values),
            "max": lambda: max(values),
            "std": lambda: std(values),
            "first": lambda: values[0],
            "last": lambda: values[-1],
            "previous": lambda: values[-1],
        }[f.aggregate]()

    def moved(self, f: WindowFeature, inside: list[Event], event: Event) -> float:
        there = [e for e in inside if not (math.isnan(e.number(f.field)) or math.isnan(e.number(f.second)))]
        if not there:
            return NAN
        before = there[-1]
        km = kilometres(before.number(f.field), before.number(f.second), event.number(f.field), event.number(f.second))
        return km if f.aggregate == "distance" else km / (max(1000, event.time - before.time) / 3_600_000)
