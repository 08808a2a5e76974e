"""What the shop's demo shows: the counts, and one user's list as it changes with each step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streams.demo_screen import Steps
from streams.liveview import phase_list
from streams.shop_demo_lists import Followed, ListReader

__all__ = ["ShopScreen"]

_DRAW_S = 0.25
_LINE_S = 5.0
_ITEMS_SHOWN = 8


class ShopScreen:
    """Full screen on a terminal, else a plain line now and then; `draw` may be called as often as one likes.

    With a ``label``, which begins each line, another has the screen of a terminal: what it may show is `below`.
    """

    def __init__(self, console: Console, steps: Steps, label: str = "") -> None:
        self.lists: ListReader | None = None
        self.live_since: float | None = None
        self._console, self._steps, self._label = console, steps, label
        self._live: Live | None = None
        self._drawn = self._lined = -math.inf
        self._shown: set[str] = set()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Shows itself while inside."""
        if not self._console.is_terminal or self._label:
            yield
            return
        with Live(console=self._console, screen=True, auto_refresh=False) as self._live:
            yield
        self._live = None
        self._console.print(phase_list(self._steps.phases(), self._console.options.ascii_only))

    def draw(self) -> None:
        """Draws if it is time to."""
        now = time.monotonic()
        if self._live is not None:
            if now - self._drawn >= _DRAW_S:
                self._drawn = now
                self._live.update(self._picture(now), refresh=True)
            return
        if self._console.is_terminal:
            return
        for phase in self._steps.phases():
            if phase.state in ("done", "failed") and phase.name not in self._shown:
                self._shown.add(phase.name)
                self._print(f"{phase.name}: {phase.state}, {phase.seconds:.1f} s  {phase.detail}".rstrip())
        if self.live_since is not None and now - self._lined >= _LINE_S:
            self._lined = now
            self._print(f"{now - self.live_since:.0f} s: {self._counts()}")
            if self.lists is not None and self.lists.followed is not None:
                self._print("    " + _in_a_line(self.lists.followed))

    def below(self) -> RenderableType:
        """The recommendations, in a few rows."""
        title = Text("recommendations  ", "bold")
        if self.live_since is None or self.lists is None or self.lists.followed is None:
            return Group(title, phase_list(self._steps.phases(), self._console.options.ascii_only))
        return Group(title + Text(self._counts(), "not bold"), _side_by_side(self.lists.followed))

    def _picture(self, now: float) -> RenderableType:
        parts: list[RenderableType] = [Text("headrace: recommendations", "bold"), Text("")]
        parts.append(phase_list(self._steps.phases(), self._console.options.ascii_only))
        if self.live_since is None or self.lists is None:
            return Group(*parts)
        parts += [Text(""), Text(f"{now - self.live_since:.0f} s   {self._counts()}"), Text("")]
        if self.lists.followed is not None:
            parts.append(_side_by_side(self.lists.followed))
        return Group(*parts)

    def _counts(self) -> str:
        lists = self.lists
        if lists is None:
            return ""
        if lists.count == lists.history:
            return "no list yet"
        p50, p99 = lists.latency.percentile(50.0), lists.latency.percentile(99.0)
        rungs = ", ".join(f"{rung} {n:,}" for rung, n in sorted(lists.rungs.items()))
        hit = f"{lists.hits / lists.asked:.0%}" if lists.asked else "none"
        return (
            f"{lists.count - lists.history:,} lists ({rungs}); next item was in the list: {hit}; "
            f"latency p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        )

    def _print(self, line: str) -> None:
        self._console.print(self._label + line, highlight=False, markup=False, soft_wrap=True)


def _in_a_line(followed: Followed) -> str:
    steps = ", ".join(f"{step}{' (in the list)' if hit else ''}" for step, hit in list(followed.steps)[-2:])
    items = ", ".join(f"{item['item_id']} ({item['source']})" for item in list(followed.items)[:4])
    return f"user {followed.user}: {steps} -> {followed.rung}: {items}"


def _side_by_side(followed: Followed) -> RenderableType:
    steps, items = (
        Table(title=f"user {followed.user}", expand=True),
        Table(title=f"list now: {followed.rung}", expand=True),
    )
    steps.add_column("what they did")
    steps.add_column("in the list before")
    for step, hit in followed.steps:
        steps.add_row(step, "yes" if hit else "")
    for name in ("item", "score", "source"):
        items.add_column(name)
    for item in list(followed.items)[:_ITEMS_SHOWN]:
        score = item["score"]
        items.add_row(str(item["item_id"]), "" if score is None else f"{score:.3f}", item["source"])
    grid = Table.grid(expand=True, padding=(0, 2))
    grid.add_row(steps, items)
    return grid
