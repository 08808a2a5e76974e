"""The terminal view of `headrace demo`: a picture of one snapshot, nothing more.

`DemoView` draws a `DemoSnapshot` to fit the console it is printed on, `summary` what is left at the end.
No state of the demo lives here; `streams.livescreen` keeps the picture on the screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

__all__ = ["BINS", "DemoSnapshot", "DemoView", "HighScore", "Phase", "phase_list", "plain_line", "summary"]

#: bins of the score histogram, equal widths over [0, 1]
BINS = 20

# Okabe and Ito's colours, told apart in every common colour blindness; no meaning is carried by colour alone.
_IN, _OUT, _HOT, _GOOD, _BAD = "#56b4e9", "#e69f00", "#d55e00", "#009e73", "bold red"
_DIM = "grey50"  # legible on dark and light grounds alike
_BARS, _ASCII_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*%#"


@dataclass(frozen=True, slots=True)
class Phase:
    """A step of the demo; ``seconds`` is how long it took, or has taken so far."""

    name: str
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HighScore:
    """A transaction with a high score; ``reason`` is its first reason, ready to read."""

    event_time: int
    card_id: int | str
    terminal_id: int | str
    amount: float
    score: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DemoSnapshot:
    """All that the view shows, at one moment.

    ``seconds_total`` None means until Ctrl-C. Latencies are None until there is one. The histories of events/s
    are oldest first, any length; ``high_scores`` and ``alerts`` newest first. ``score_histogram`` has `BINS` counts.
    ``live`` is false while phases before the last are under way. For `summary`, the rates are those of the whole run.
    ``late`` is part of ``scored``.
    """

    elapsed_s: float = 0.0
    seconds_total: float | None = None
    phases: Sequence[Phase] = ()
    live: bool = False
    backend: str = ""
    model: str = ""
    events_in_per_s: float = 0.0
    events_out_per_s: float = 0.0
    history_in: Sequence[float] = ()
    history_out: Sequence[float] = ()
    latency_ms_p50: float | None = None
    latency_ms_p99: float | None = None
    lag_records: int = 0
    received: int = 0
    scored: int = 0
    dead_letters: int = 0
    duplicates: int = 0
    late: int = 0
    score_histogram: Sequence[int] = (0,) * BINS
    high_scores: Sequence[HighScore] = ()
    alerts: Sequence[str] = ()

    @property
    def in_flight(self) -> int:
        """Received, and neither scored nor set aside yet: 0 at the end, or something was lost."""
        return self.received - self.scored - self.dead_letters - self.duplicates


class DemoView:
    """The snapshot as a picture that fills the console: from 80x24 up nothing is cut, a narrower one lacks the
    histogram."""

    def __init__(self, snapshot: DemoSnapshot) -> None:
        self.snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        picture = _Picture(self.snapshot, width, height, options.ascii_only)
        yield picture.live() if self.snapshot.live else picture.starting()


@dataclass(frozen=True, slots=True)
class _Picture:
    snapshot: DemoSnapshot
    width: int
    height: int
    ascii_only: bool = False

    def starting(self) -> RenderableType:
        """The phases as a checklist."""
        return Group(self._title(), Text(), phase_list(self.snapshot.phases, self.ascii_only))

    def live(self) -> RenderableType:
        """Header, rates and latency, histogram and high scores, alerts, accounting: as high as the console."""
        snapshot = self.snapshot
        alerts = list(snapshot.alerts[: 1 if self.height < 30 else 4]) or ["no alerts"]
        rows_left = self.height - 4 - 4 - 1 - len(alerts)
        tall = rows_left >= 18
        phases = [_phase_line(snapshot.phases, self.ascii_only)] if tall and snapshot.phases else []
        body_rows = max(5, rows_left - len(phases))
        side_by_side = self.width >= 76
        latency_width = 32
        rates_width = self.width - latency_width
        top = self._row(
            (_panel("events/s", self._rates(rates_width)), rates_width),
            (_panel("latency", self._latency()), latency_width),
        )
        body: RenderableType
        if side_by_side:
            left_width = (2 if self.width >= 110 else 1) * BINS + 4
            body = self._row(
                (self._left_column(left_width, body_rows), left_width),
                (_panel("newest high scores", self._scores(body_rows - 3, self.width - left_width - 4), body_rows), 0),
            )
        else:
            body = _panel("newest high scores", self._scores(body_rows - 3, self.width - 4), body_rows)
        lines = [self._alert(text) for text in alerts]
        return Group(self._title(), *phases, top, body, *lines, self._progress(), self._counts())

    def _left_column(self, width: int, rows: int) -> RenderableType:
        """The histogram, and the counts as a table below it where there is room for both."""
        table_rows = 8 if rows >= 22 else 0
        chart = _panel("scores, log scale", self._histogram(width - 4, rows - table_rows - 3), rows - table_rows)
        if not table_rows:
            return chart
        snapshot = self.snapshot
        grid = Table.grid(expand=True)
        grid.add_column(style=_DIM, no_wrap=True)
        grid.add_column(justify="right", no_wrap=True)
        for name in ("received", "scored", "dead_letters", "duplicates", "late", "in_flight"):
            grid.add_row(name.replace("_", " "), f"{getattr(snapshot, name):,}")
        return Group(chart, _panel("transactions", grid, table_rows))

    def _title(self) -> RenderableType:
        snapshot = self.snapshot
        clock = _clock(snapshot.elapsed_s)
        if snapshot.seconds_total is not None:
            clock += f" / {_clock(snapshot.seconds_total)}"
        head = Table.grid(expand=True, padding=0)
        head.add_column(ratio=1, no_wrap=True, overflow=self._cut)
        head.add_column(justify="right", no_wrap=True)
        where = Text.assemble((" headrace demo ", f"bold reverse {_IN}"), "  ", self._text(snapshot.backend))
        head.add_row(where, Text(f"{clock} ", "bold"))
        if snapshot.live:
            notes = f"late {snapshot.late:,} " + ("  Ctrl-C ends it " if snapshot.seconds_total is None else "")
            head.add_row(Text.assemble((" model ", _DIM), self._text(snapshot.model or "none")), Text(notes, _DIM))
        return head

    def _row(self, *parts: tuple[RenderableType, int]) -> Table:
        grid = Table.grid(expand=True, padding=0)
        for _, width in parts:
            grid.add_column(width=width or None, ratio=None if width else 1)
        grid.add_row(*(part for part, _ in parts))
        return grid

    def _rates(self, width: int) -> RenderableType:
        snapshot = self.snapshot
        room = max(4, width - 4 - 14)
        top = max([*snapshot.history_in[-room:], *snapshot.history_out[-room:], 1.0])
        text = Text(no_wrap=True, overflow="crop")
        for name, rate, history, style in (
            ("in ", snapshot.events_in_per_s, snapshot.history_in, _IN),
            ("out", snapshot.events_out_per_s, snapshot.history_out, _OUT),
        ):
            text.append(f"{name} ", style)
            text.append(f"{rate:>8,.0f} ", "bold")
            text.append(_sparkline(history[-room:], top, self.ascii_only), style)
            text.append("\n")
        text.rstrip()
        return text

    def _latency(self) -> RenderableType:
        snapshot = self.snapshot
        grid = Table.grid(expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, justify="right")
        p50, p99 = (_milliseconds(ms) for ms in (snapshot.latency_ms_p50, snapshot.latency_ms_p99))
        grid.add_row(Text.assemble(("p50 ", _DIM), (p50, "bold")), Text("records behind", _DIM))
        lag = Text(f"{snapshot.lag_records:,}", "bold")
        grid.add_row(Text.assemble(("p99 ", _DIM), (p99, "bold")), lag)
        return grid

    def _histogram(self, width: int, rows: int) -> RenderableType:
        """Columns of eighths, one a bin, highest bin full; a count of one shows as well."""
        bars = _ASCII_BARS if self.ascii_only else _BARS
        wide = 2 if width >= 2 * BINS else 1
        logs = [math.log1p(count) for count in self.snapshot.score_histogram]
        top = max([*logs, 1e-9])
        levels = [max(1, round(8 * rows * value / top)) if value else 0 for value in logs]
        span = BINS * wide
        margin = " " * ((width - span) // 2)
        text = Text(no_wrap=True, overflow="crop")
        for row in range(rows - 1, -1, -1):
            text.append(margin)
            for bin_, level in enumerate(levels):
                eighths = min(8, max(0, level - 8 * row))
                text.append(bars[eighths] * wide, _IN if bin_ < BINS // 2 else _HOT)
            text.append("\n")
        text.append(margin + "0" + "0.5".center(span - 2) + "1", _DIM)
        return text

    def _scores(self, rows: int, width: int) -> RenderableType:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style=_DIM)
        table.add_column("time", no_wrap=True)
        table.add_column("card", no_wrap=True, justify="right", overflow=self._cut, max_width=12)
        table.add_column("terminal", no_wrap=True, justify="right", overflow=self._cut, max_width=12)
        table.add_column("amount", no_wrap=True, justify="right")
        table.add_column("score", no_wrap=True, justify="right")
        table.add_column("first reason", no_wrap=True, overflow=self._cut, ratio=1)
        form = "%m-%d %H:%M:%S" if width >= 70 else "%H:%M"
        for row in self.snapshot.high_scores[: max(0, rows)]:
            when = datetime.fromtimestamp(row.event_time / 1000, UTC).strftime(form)
            amount, score = f"{row.amount:,.2f}", Text(f"{row.score:.3f}", _HOT if row.score >= 0.5 else "")
            card, terminal, reason = (self._text(v) for v in (row.card_id, row.terminal_id, row.reason))
            reason.stylize(_DIM)
            table.add_row(when, card, terminal, amount, score, reason)
        return table

    def _alert(self, text: str) -> RenderableType:
        quiet = not self.snapshot.alerts
        sign = ("-" if self.ascii_only else "·") if quiet else "!"
        style = _DIM if quiet else _HOT
        return Text.assemble(f" {sign} ", self._text(text), style=style, no_wrap=True, overflow=self._cut)

    def _progress(self) -> RenderableType:
        """A rule that fills up as the time goes; just a rule when there is no end."""
        total = self.snapshot.seconds_total
        share = min(1.0, self.snapshot.elapsed_s / total) if total else 0.0
        full = round(share * self.width)
        gone, rest = ("=", "-") if self.ascii_only else ("━", "─")
        return Text.assemble((gone * full, _IN), (rest * (self.width - full), _DIM))

    def _counts(self) -> RenderableType:
        snapshot = self.snapshot
        return Text.assemble(
            " ",
            *_accounting(snapshot, self.width < 92),
            (f" + in flight {snapshot.in_flight:,}", _DIM),
            no_wrap=True,
            overflow=self._cut,
        )

    @property
    def _cut(self) -> Literal["crop", "ellipsis"]:
        return "crop" if self.ascii_only else "ellipsis"

    def _text(self, value: object) -> Text:
        return _text(value, self.ascii_only)


def _text(value: object, ascii_only: bool) -> Text:
    """Text that came from outside: no markup, no escape sequences, nothing the terminal cannot encode."""
    shown = "".join(c if c.isprintable() else "?" for c in str(value))
    return Text(shown.encode("ascii", "replace").decode() if ascii_only else shown)


def phase_list(phases: Sequence[Phase], ascii_only: bool = False) -> RenderableType:
    """Phases as a checklist, the seconds of each beside it."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=2, justify="right")
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    # a long detail goes on in the next line; nothing of it is cut
    grid.add_column(style=_DIM, overflow="fold", ratio=1)
    for phase in phases:
        sign, style = _sign(phase, ascii_only)
        seconds = "" if phase.state == "waiting" else f"{phase.seconds:.1f} s"
        name = Text(phase.name, {"waiting": _DIM, "running": "bold"}.get(phase.state, ""))
        grid.add_row(Text(sign, style), name, seconds, _text(phase.detail, ascii_only))
    return grid


def summary(snapshot: DemoSnapshot, *, ascii_only: bool = False) -> RenderableType:
    """What is left on the screen at the end: the figures and whether every transaction is accounted for."""
    right = snapshot.in_flight == 0
    sign = ("ok" if ascii_only else "✓") if right else ("NOT EQUAL" if ascii_only else "✗")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=_DIM, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("log", _text(snapshot.backend, ascii_only))
    grid.add_row("model", _text(snapshot.model or "none", ascii_only))
    p50, p99 = _milliseconds(snapshot.latency_ms_p50), _milliseconds(snapshot.latency_ms_p99)
    grid.add_row("latency", f"p50 {p50}   p99 {p99}")
    grid.add_row("rate", f"{snapshot.events_out_per_s:,.0f} events/s over {snapshot.elapsed_s:.0f} s")
    grid.add_row("late", f"{snapshot.late:,} of the scored")
    line = Text.assemble(*_accounting(snapshot, False), "  ", (sign, f"bold {_GOOD}" if right else _BAD))
    if not right:
        missing = abs(snapshot.in_flight)
        what = "unaccounted for" if snapshot.in_flight > 0 else "counted more than once"
        line.append(f"\n{missing:,} {what}", _BAD)
    title = Text("headrace demo: the end", "bold")
    return Panel(Group(grid, Text(), line), title=title, title_align="left", border_style=_GOOD if right else _BAD)


def plain_line(snapshot: DemoSnapshot) -> str:
    """One line of text for logs and pipes."""
    if not snapshot.live:
        running = [p for p in snapshot.phases if p.state in ("running", "failed")]
        return "; ".join(f"{p.name} {p.seconds:.1f} s" + (" FAILED" if p.state == "failed" else "") for p in running)
    p50, p99 = _milliseconds(snapshot.latency_ms_p50), _milliseconds(snapshot.latency_ms_p99)
    counts = "".join(text for text, _ in _accounting(snapshot, False))
    return (
        f"{snapshot.elapsed_s:5.0f} s  in {snapshot.events_in_per_s:,.0f}/s  out {snapshot.events_out_per_s:,.0f}/s  "
        f"p50 {p50}  p99 {p99}  lag {snapshot.lag_records:,}  {counts} + in flight {snapshot.in_flight:,}"
    )


def _accounting(snapshot: DemoSnapshot, short: bool) -> list[tuple[str, str]]:
    dead, repeated = ("dead", "dup") if short else ("dead letters", "duplicates")
    return [
        (f"received {snapshot.received:,}", _IN),
        (" = ", ""),
        (f"scored {snapshot.scored:,}", _OUT),
        (f" + {dead} {snapshot.dead_letters:,} + {repeated} {snapshot.duplicates:,}", ""),
    ]


def _sign(phase: Phase, ascii_only: bool) -> tuple[str, str]:
    plain = {"waiting": ("-", _DIM), "running": (">", _IN), "done": ("ok", _GOOD), "failed": ("X", _BAD)}
    signs = {"waiting": ("·", _DIM), "running": ("▸", _IN), "done": ("✓", _GOOD), "failed": ("✗", _BAD)}
    return (plain if ascii_only else signs)[phase.state]


def _phase_line(phases: Sequence[Phase], ascii_only: bool) -> Text:
    text = Text(no_wrap=True, overflow="crop" if ascii_only else "ellipsis")
    for phase in phases:
        if phase.state in ("done", "failed"):
            sign, style = _sign(phase, ascii_only)
            text.append(f" {sign} ", style).append(f"{phase.name} {phase.seconds:.1f} s ", _DIM)
    return text


def _panel(title: str, body: RenderableType, height: int | None = None) -> Panel:
    return Panel(body, title=title, title_align="left", border_style=_DIM, padding=(0, 1), height=height)


def _sparkline(values: Sequence[float], top: float, ascii_only: bool) -> str:
    bars = _ASCII_BARS if ascii_only else _BARS
    return "".join(bars[min(8, max(1, round(8 * value / top)))] for value in values)


def _milliseconds(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "--"
    if value >= 10_000:
        return f"{value / 1000:,.1f} s"
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:02d}:{whole % 60:02d}"
