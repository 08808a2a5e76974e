"""From the demo's counters to snapshots on the screen, and the farewell that is left on it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from rich.console import Console, RenderableType

from streams.demo_report import Accounts
from streams.demo_scores import ScoreReader
from streams.livescreen import LiveScreen
from streams.liveview import DemoSnapshot, Phase, phase_list, summary

__all__ = ["Steps", "View"]

_DRAW_S = 0.25
_RATE_S = 1.0
_HISTORY = 400


@dataclass(slots=True)
class _Step:
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    started: float = 0.0
    ended: float = 0.0
    detail: str = ""


class Steps:
    """The checklist of the demo's start, in order; steps overlap."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._steps = {name: _Step() for name in names}

    def start(self, name: str, detail: str = "") -> None:
        """``name`` begins now."""
        self._steps[name] = _Step("running", time.monotonic(), 0.0, detail)

    def note(self, name: str, detail: str) -> None:
        """What ``name`` is at."""
        self._steps[name].detail = detail

    def done(self, name: str, detail: str) -> None:
        """``name`` has ended well."""
        step, now = self._steps[name], time.monotonic()
        self._steps[name] = _Step("done", step.started or now, now, detail)

    def fail(self) -> None:
        """Whatever is under way has failed."""
        for step in self._steps.values():
            if step.state == "running":
                step.state, step.ended = "failed", time.monotonic()

    def seconds(self) -> dict[str, float]:
        """How long each step took; those that have ended well."""
        return {name: s.ended - s.started for name, s in self._steps.items() if s.state == "done"}

    def phases(self) -> list[Phase]:
        """For the view."""
        now = time.monotonic()
        return [
            Phase(name, s.state, (s.ended or now) - s.started if s.started else 0.0, s.detail)
            for name, s in self._steps.items()
        ]


class View:
    """Draws the demo as it is now; `draw` may be called as often as one likes. One thread."""

    def __init__(self, seconds_total: float | None, steps: Steps, accounts: Accounts) -> None:
        self.backend = self.model = ""
        self.scores: ScoreReader | None = None
        #: what is shown below, if anything
        self.below: Callable[[], RenderableType | None] = lambda: None
        self._seconds_total = seconds_total
        self._steps, self._accounts = steps, accounts
        self._screen: LiveScreen | None = None
        self._began = time.monotonic()
        self._live_since: float | None = None
        self._live_until: float | None = None
        self._drawn = -math.inf
        self._rated = -math.inf
        self._at_rate = (0, 0)
        self._in: deque[float] = deque([0.0], maxlen=_HISTORY)
        self._out: deque[float] = deque([0.0], maxlen=_HISTORY)

    @contextmanager
    def on(self, console: Console) -> Iterator[None]:
        """Shows itself while inside."""
        with LiveScreen(console) as screen:
            self._screen = screen
            self.draw(now=True)
            yield
            self.draw(now=True)

    def go_live(self) -> None:
        """The start is over."""
        self._live_since = self._rated = time.monotonic()
        self._in.clear()
        self._out.clear()
        self.draw(now=True)

    def finishing(self) -> None:
        """Nothing more is sent."""
        self._live_until = time.monotonic()

    def draw(self, *, now: bool = False) -> None:
        """Draws if it is time to."""
        moment = time.monotonic()
        if self._screen is None or not (now or moment - self._drawn >= _DRAW_S):
            return
        self._drawn = moment
        if self._live_since is not None and moment - self._rated >= _RATE_S:
            counts, seconds = self._counts(), moment - self._rated
            self._in.append((counts[0] - self._at_rate[0]) / seconds)
            self._out.append((counts[1] - self._at_rate[1]) / seconds)
            self._rated, self._at_rate = moment, counts
        self._screen.update(self._snapshot(moment), self.below())

    def _counts(self) -> tuple[int, int]:
        """Sent and scored in the live part."""
        scores = self.scores
        return self._accounts.sent, scores.count - scores.history if scores is not None else 0

    def _snapshot(self, moment: float) -> DemoSnapshot:
        scores, accounts = self.scores, self._accounts
        since = self._live_since
        if since is None or scores is None:
            return DemoSnapshot(
                elapsed_s=moment - self._began,
                phases=self._steps.phases(),
                backend=self.backend,
            )
        sent, scored = self._counts()
        p50, p99 = scores.latency.percentile(50.0), scores.latency.percentile(99.0)
        return DemoSnapshot(
            elapsed_s=(self._live_until or moment) - since,
            seconds_total=self._seconds_total,
            phases=self._steps.phases(),
            live=True,
            backend=self.backend,
            model=self.model,
            events_in_per_s=self._in[-1] if self._in else 0.0,
            events_out_per_s=self._out[-1] if self._out else 0.0,
            history_in=tuple(self._in),
            history_out=tuple(self._out),
            latency_ms_p50=None if math.isnan(p50) else p50,
            latency_ms_p99=None if math.isnan(p99) else p99,
            lag_records=max(0, sent - accounts.duplicates - scored - scores.dead_letters),
            received=sent,
            scored=scored,
            dead_letters=scores.dead_letters,
            duplicates=accounts.duplicates,
            late=scores.late,
            score_histogram=scores.histogram.tolist(),
            high_scores=list(scores.high_scores),
        )

    def leave(self, console: Console, problems: list[str], seconds: float, *, stopped: bool) -> None:
        """What is left on the terminal: the checklist, the figures of the worker, whether they agree."""
        ascii_only = console.options.ascii_only
        if console.is_terminal:
            console.print(phase_list(self._steps.phases(), ascii_only))
        scores, accounts = self.scores, self._accounts
        if self._live_since is None or scores is None:
            if stopped:
                console.print("stopped before the first live transaction", highlight=False)
        elif accounts.worker:
            live = accounts.live_figures()
            rate = live["scored"] / seconds if seconds else 0.0
            snapshot = replace(
                self._snapshot(time.monotonic()),
                elapsed_s=seconds,
                events_out_per_s=rate,
                received=live["received"],
                scored=live["scored"],
                dead_letters=live["dead_letters"],
                duplicates=live["duplicates"],
            )
            console.print(summary(snapshot, ascii_only=ascii_only))
            console.print(
                f"Figures of the worker itself. It had also scored {accounts.history:,} payments of the history; "
                f"it read {accounts.labels:,} labels. {scores.high:,} live scores were 0.5 or more.",
                style="grey50",
                highlight=False,
            )
        for problem in problems:
            console.print(problem, style="bold red", highlight=False, markup=False, soft_wrap=True)
