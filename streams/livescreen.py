"""Keeps the demo's picture on the screen, or writes plain lines where stdout is no terminal."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.live import Live

from streams.liveview import DemoSnapshot, DemoView, plain_line

__all__ = ["LiveScreen"]


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

    def update(self, snapshot: DemoSnapshot) -> None:
        """Shows this snapshot in place of the last."""
        if self._live is not None:
            self._live.update(DemoView(snapshot), refresh=True)
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
