"""Windows of whole tiles in plain Python: every event is kept, the tiles say which of them count."""

from __future__ import annotations

import math
from collections.abc import Sequence

from features.declare import WindowFeature
from tests.oracles.history import Event
from tests.oracles.windows import NEVER


class NaiveTiles:
    """Row by row, as the docstring of features.tiled says."""

    def __init__(self, features: Sequence[WindowFeature], lateness_ms: int) -> None:
        self.features = features
        self.lateness_ms = lateness_ms
        self.stream = NEVER
        self.events: dict[object, list[Event]] = {}

    def row(self, key: object, time: int, values: dict[str, float | str]) -> tuple[list[float], bool]:
        late = time < self.stream - self.lateness_ms
        self.stream = max(self.stream, time)
        event = Event(time, values)
        out = [self.feature(f, self.events.get(key, []), event, late) for f in self.features]
        if not late:
            self.events.setdefault(key, []).append(event)
        return out, late

    def feature(self, f: WindowFeature, known: list[Event], event: Event, late: bool) -> float:
        far = self.stream - self.lateness_ms if late else event.time
        first = (far - f.delay_ms - f.window_ms) // f.tile_ms + 1
        last = (event.time - f.delay_ms) // f.tile_ms
        inside = [e for e in known if first <= e.time // f.tile_ms <= last]
        if f.delay_ms == 0:
            inside.append(event)
        if f.aggregate == "count":
            return len(inside)
        numbers = [x for e in inside if not math.isnan(x := e.number(f.field))]
        total = math.fsum(numbers)
        if f.aggregate == "mean":
            return total / len(numbers) if numbers else 0.0
        return total
