"""Keeps the demo's picture on the screen, or writes plain lines where stdout is no terminal."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console, RenderableType
from rich.layout import Layout
from rich.live import Live

from streams.liveview import DemoSnapshot, DemoView, plain_line

__all__ = ["LiveScreen"]

#: of what is below, where the console has so many in all; else one line of it, which may be broken once
_BELOW_ROWS, _TALL, _BELOW_ROWS_LOW = 15, 40, 2


class LiveScreen:
    """Shows snapshots: full screen on a terminal, else a plain line every ``every_s`` seconds of `elapsed_s`.

    A context manager; leaving it gives the terminal back as it was. `update` draws at once, so the caller sets the
    pace (about four times a second is calm). Lines go to the console that is passed in.
    """

    def __init__(self, console: Console, *, every_s: float = 5.0) -> None:
        self._console, self._every_s = console, every_s
        self._live = Live(console=console, screen=True, auto_refresh=False) if console.is_terminal else None
        self._next_s = -math.inf
        self._shown: set[str] = set()

    def __enter__(self) -> LiveScreen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, snapshot: DemoSnapshot, below: RenderableType | None = None) -> None:
        """Shows this snapshot in place of the last, with what is ``below`` it where that is shown at all."""
        if self._live is not None:
            picture: RenderableType = DemoView(snapshot)
            if below is not None:
                whole = Layout()
                rows = _BELOW_ROWS if self._console.height >= _TALL else _BELOW_ROWS_LOW
                whole.split_column(Layout(picture), Layout(below, size=rows))
                picture = whole
            self._live.update(picture, refresh=True)
            return
        for phase in snapshot.phases:
            if phase.state in ("done", "failed") and phase.name not in self._shown:
                self._shown.add(phase.name)
                self._print(f"{phase.name}: {phase.state}, {phase.seconds:.1f} s  {phase.detail}".rstrip())
        if snapshot.live and snapshot.elapsed_s >= self._next_s:
            self._next_s = snapshot.elapsed_s + self._every_s
            self._print(plain_line(snapshot))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
