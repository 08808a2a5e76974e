"""`headrace demo` as it is by default: the card business, and beside it, on the same log, the shop."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from rich.console import Console, RenderableType

from streams.demo import Demo
from streams.demo_children import Job
from streams.demo_plan import DemoSettings
from streams.log import Log
from streams.shop_demo import ShopDemo

__all__ = ["BothDemo"]


class _Shop:
    """The shop, in a thread of its own; it is live for as long as the card business is."""

    def __init__(self, settings: DemoSettings, console: Console) -> None:
        self._log: Future[tuple[str, Log]] = Future()
        self._stop = threading.Event()
        self.demo = ShopDemo(settings, console, self._stop, self._log)
        self._job: Job[None] | None = None

    def start(self) -> None:
        """Trains its ranker, then waits for the log."""
        self._job = Job(self.demo.run_on)

    def use(self, backend: str, log: Log) -> None:
        """Goes on with this log."""
        self._log.set_result((backend, log))

    @property
    def is_live(self) -> bool:
        """Whether its live part has begun, or never will."""
        return self.demo.is_live or self._job is None or not self._job.is_alive()

    def below(self) -> RenderableType | None:
        """One user's list."""
        return self.demo.screen.below()

    def end(self) -> list[str]:
        """Ends its live part and waits until all of it is accounted for; what was wrong."""
        self._stop.set()
        if self._job is not None:
            self._job.join()
            try:
                self._job.result()
            except Exception as error:  # noqa: BLE001 - a defect of the shop's thread is told like any other
                self.demo.problems = [f"shop: {type(error).__name__}: {error}"]
        return self.demo.problems


class BothDemo:
    """One run of both. ``clicks`` per second; the other settings are those of the card business."""

    def __init__(self, settings: DemoSettings, clicks: float, console: Console, stop: threading.Event) -> None:
        self._console = console
        # how long it is live, the card business says
        self._shop = _Shop(replace(settings, rate=clicks, seconds=None), console)
        self._fraud = Demo(settings, console, stop, self._shop)

    def run(self) -> int:
        """Everything; 0 if the books of both agree, else 1."""
        code = self._fraud.run()
        if self._shop.demo.is_live and not self._shop.demo.problems:
            self._console.print(f"shop: {self._shop.demo.farewell()}", highlight=False, markup=False, soft_wrap=True)
        return code

    def figures(self) -> dict[str, Any]:
        """Those of the card business, and as ``recommendations`` those of the shop; ``ok`` and ``problems`` are of
        both."""
        return {**self._fraud.figures(), "recommendations": self._shop.demo.figures()}
