"""The shop of `headrace demo`: simulated, a list after each click, one user's list as it changes.

By itself with ``--pipeline recommend``; by default beside the card business, on the same log: `streams.both_demo`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.console import Console

from features.schema import TIME_MS_MIN
from streams.broker import BrokerError, kafka_available
from streams.demo_children import Child, DemoWorker, Job, WorkerProcess, WorkerThread
from streams.demo_plan import DemoSettings
from streams.demo_screen import Steps
from streams.demo_traffic import send, send_paced
from streams.errors import EXIT_FAILED, EXIT_OK, HeadraceError
from streams.log import Log, LogProducer, connect
from streams.pipelines.recommend_stages import ShopSettings
from streams.shop_demo_lists import ListReader
from streams.shop_demo_model import train_on_history
from streams.shop_demo_screen import ShopScreen
from streams.shop_simulator import Shop, ShopChunk, shop_stream
from streams.simulator import DAY_MS, midnight
from streams.topics import all_topics
from streams.worker import ensure_topics

__all__ = ["ShopDemo"]

logger = logging.getLogger("headrace.demo")

#: event time against the clock, and the part of a day that is sent before the live part
_SPEED_UP = 360
_HISTORY_MS = DAY_MS // 4
_SHOP = ShopSettings(publish_ms=20_000)
_SLICE = 2_000
_READY_S, _SLICE_S, _DRAIN_S = 120.0, 60.0, 15.0


class DemoError(HeadraceError):
    """The demo cannot go on."""


class _Stopped(Exception):
    """Ctrl-C."""


class ShopDemo:
    """One run. ``stop`` set from anywhere ends it at once, in order; `run` returns the exit code.

    `run_on` does the same on a log of others, once ``log`` of theirs is there (backend and log), and leaves the screen
    to them.
    """

    def __init__(
        self,
        settings: DemoSettings,
        console: Console,
        stop: threading.Event,
        log: Future[tuple[str, Log]] | None = None,
    ) -> None:
        self.settings = settings
        self.seconds = 0.0
        self.problems: list[str] = []
        self._console, self._stop = console, stop
        self._others = log
        self._steps = Steps(("kafka", "model", "worker", "history") if log is None else ("model", "worker", "history"))
        self.screen = ShopScreen(console, self._steps, "" if log is None else "shop ")
        self._backend = ""
        #: records sent in all, and of the live part, and what of it is wrong on purpose
        self._history = self._sent = self._malformed = self._duplicates = 0
        self._worker: DemoWorker | None = None
        self._lists: ListReader | None = None
        self._producer: LogProducer | None = None
        self._children: list[Child] = []
        self._training: Job[str] | None = None
        self._books: Mapping[str, int] = {}

    def run(self) -> int:
        """Everything, from the start of the broker to the books; 0 if they agree, else 1."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-demo-")))
            logging.basicConfig(filename=folder / "demo.log", level=logging.INFO, force=True)
            stack.callback(logging.basicConfig, force=True)
            stack.callback(self._close)
            try:
                with self.screen.on():
                    try:
                        self._run(folder)
                    except _Stopped:
                        logger.info("stopped")
                    self._finish()
            except (HeadraceError, OSError) as error:
                self._steps.fail()
                self.problems = [str(error)]
        self._console.print(self.farewell(), highlight=False, markup=False, soft_wrap=True)
        return EXIT_FAILED if self.problems else EXIT_OK

    def run_on(self) -> None:
        """As `run`, in a thread of its own that lives as long as its worker."""
        with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
            try:
                with contextlib.suppress(_Stopped):
                    self._run(Path(folder))
                self._finish()
            except (HeadraceError, OSError) as error:
                self._steps.fail()
                self.problems = [f"shop: {error}"]
            finally:
                self._close()

    @property
    def is_live(self) -> bool:
        """Whether its live part has begun."""
        return self.screen.live_since is not None

    def figures(self) -> dict[str, Any]:
        """What ``--json`` prints, after `run`: ``received`` and the like are of the live part; a list is ``scored``."""
        lists, books = self._lists, self._books
        live = {name: books.get(name, 0) for name in ("received", "dead_letters", "duplicates", "late")}
        live["received"] -= self._history if books else 0
        scored = max(0, books.get("recommended", 0) - self._history)
        latency = [lists.latency.percentile(p) if lists is not None else math.nan for p in (50.0, 99.0)]
        return {
            **live,
            "scored": scored,
            "events_per_s": round(scored / self.seconds, 1) if self.seconds else 0.0,
            "latency_ms_p50": None if math.isnan(latency[0]) else round(latency[0], 3),
            "latency_ms_p99": None if math.isnan(latency[1]) else round(latency[1], 3),
            "hit_rate": round(lists.hits / lists.asked, 4) if lists is not None and lists.asked else None,
            "rungs": dict(lists.rungs) if lists is not None else {},
            "seconds": round(self.seconds, 3),
            "backend": self._backend,
            "history": self._history,
            "worker": dict(books),
            "phases_s": {name: round(value, 2) for name, value in self._steps.seconds().items()},
            "ok": not self.problems,
            "problems": self.problems,
        }

    # -- in order --

    def _run(self, folder: Path) -> None:
        shop = self._shop()
        if self._others is None:
            log = self._open_log(folder)
            self._train(shop, folder / "models")
        else:
            self._train(shop, folder / "models")
            others = self._others
            self._wait(others.done)
            self._backend, log = others.result()
        self._start_worker(log, folder)
        self._fill(shop)
        self._go_live(shop)

    def _open_log(self, folder: Path) -> Log:
        self._steps.start("kafka", "a real Apache Kafka, single node")
        reason = "asked for by --memory" if self.settings.memory else kafka_available()
        url, self._backend = f"memory://demo-{id(self)}", "memory"
        if reason is None:
            broker = Child("broker", "streams.cli.main", ["broker", "--port", "0"], folder)
            self._children.append(broker)
            self._wait(lambda: broker.ready.is_set() or broker.code is not None, _READY_S, "Kafka to start")
            if broker.code is not None:
                raise BrokerError(broker.complaint() or "Kafka did not start")
            url, self._backend = f"headrace://{broker.said('ready').split()[1]}", "kafka"
        log = connect(url)
        ensure_topics(log, all_topics())
        self._steps.done("kafka", f"the log in this process instead: {reason}" if reason else log.url)
        return log

    def _train(self, shop: Shop, models: Path) -> None:
        """A ranker of the lists that would have been served after the history's clicks."""
        self._steps.start("model", "compiles the kernels at the first start")
        training = self._training = Job(lambda: train_on_history(shop, _HISTORY_MS, _SHOP, models))
        self._wait(lambda: not training.is_alive())
        self._steps.done("model", training.result())

    def _start_worker(self, log: Log, folder: Path) -> None:
        self._steps.start("worker", "compiles its kernels at the first start")
        config = folder / "headrace.toml"
        kafka = self._backend == "kafka"
        settings = {
            "bootstrap": log.url.removeprefix("headrace://"),
            "group": "headrace-recommend",
            "checkpoints": str(folder / "checkpoints") if kafka else "none",
            "publish_ms": _SHOP.publish_ms,
            "models": str(folder / "models"),
        }
        # JSON's texts and integers are TOML's too
        config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        if self._stop.is_set():
            raise _Stopped
        worker = WorkerProcess(config, folder, "recommend") if kafka else WorkerThread(config, "recommend")
        self._worker = worker
        self._children += [worker.child] if isinstance(worker, WorkerProcess) else []
        self._producer = log.producer()
        lists = self._lists = self.screen.lists = ListReader(log)
        lists.start()
        self._wait(lambda: worker.is_ready and lists.subscribed.is_set(), _READY_S, "the worker to be ready")
        self._steps.done("worker", worker.where)

    def _shop(self) -> Shop:
        """A shop whose history and live part end in the past (rule 11); one without an end begins long ago."""
        start_ms = midnight(TIME_MS_MIN, -1)
        if self.settings.seconds is not None:
            days = math.ceil(1.2 * self.settings.seconds * _SPEED_UP / 86_400) + 2
            start_ms = midnight(int(time.time() * 1000), days)
        return Shop.for_pace(self.settings.seed, start_ms=start_ms, rate=self.settings.rate, speed_up=_SPEED_UP)

    def _fill(self, shop: Shop) -> None:
        """A quarter of a day before the live part, so that items are known."""
        assert self._producer is not None and self._lists is not None
        self._steps.start("history")
        lists, end = self._lists, shop.start_ms + _HISTORY_MS
        waiting = 0
        for chunk in takewhile(lambda chunk: chunk.send_time < end, shop_stream(shop, 0, speed_up=_SPEED_UP)):
            send(self._producer, chunk.batches(), self._stop)
            self._history += len(chunk.values)
            waiting += len(chunk.values)
            if waiting >= _SLICE:
                waiting = 0
                self._wait(lambda: lists.count >= self._history - _SLICE, _SLICE_S, "the history")
                self._steps.note("history", f"{lists.count:,} clicks through the worker so far")
        self._wait(lambda: lists.count >= self._history, _SLICE_S, "the history")
        self._steps.done("history", f"{self._history:,} clicks of {shop.users:,} users on {shop.items:,} items")

    def _go_live(self, shop: Shop) -> None:
        assert self._producer is not None and self._lists is not None
        producer, lists = self._producer, self._lists
        lists.go_live()
        skipped_s = _HISTORY_MS / 1000 / _SPEED_UP
        chunks = (
            ShopChunk(c.due_s - skipped_s, c.send_time, c.keys, c.values, c.malformed, c.duplicates)
            for c in shop_stream(shop, 0, speed_up=_SPEED_UP, malformed=0.002, repeated=0.003)
            if c.send_time >= shop.start_ms + _HISTORY_MS
        )

        def sending(chunk: ShopChunk) -> None:
            self._sent += len(chunk.values)
            self._malformed += chunk.malformed
            self._duplicates += chunk.duplicates
            lists.sending(chunk)

        self.screen.live_since = started = time.monotonic()
        sender = Job(lambda: send_paced(producer, chunks, self._stop, seconds=self.settings.seconds, sending=sending))
        try:
            self._wait(lambda: not sender.is_alive())
        finally:
            sender.join(_DRAIN_S)
            self.seconds = time.monotonic() - started
        sender.result()

    def _finish(self) -> None:
        """Waits until all that was sent has its list, and ends the worker."""
        if self._worker is None or self._lists is None or self._producer is None:
            return
        self._producer.flush(_DRAIN_S)
        lists, worker = self._lists, self._worker
        expected = self._history + self._sent - self._malformed - self._duplicates
        deadline = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline and worker.code is None:
            if lists.count >= expected and lists.dead_letters >= self._malformed:
                break
            self.screen.draw()
            time.sleep(0.05)
        was_ready, code = worker.is_ready, worker.stop()
        self._books = worker.figures()
        lists.wait_for(self._books.get("recommended", 0), 5.0)
        lists.close()
        if code and was_ready:
            raise DemoError(f"the worker ended with exit code {code}")
        self.problems = self._disagreements(expected)

    def _disagreements(self, expected: int) -> list[str]:
        books, lists = self._books, self._lists
        if not books or lists is None:
            return ["the worker left no figures"] if self._history + self._sent else []
        received, made = books["received"], books["recommended"]
        checks = [
            ("received by the worker", received, "lists + dead letters + duplicates",
             made + books["dead_letters"] + books["duplicates"]),
            ("lists of the worker", made, "well-formed and sent once", expected),
            ("lists of the worker", made, "lists consumed", lists.count),
            ("dead letters of the worker", books["dead_letters"], "sent malformed", self._malformed),
        ]  # fmt: skip
        return [f"{a} {n:,} is not {b} {m:,}" for a, n, b, m in checks if n != m]

    def farewell(self) -> str:
        """What there is to say at the end."""
        if self.problems:
            return "\n".join(self.problems)
        if self.screen.live_since is None:
            return "stopped before the first live click"
        figures = self.figures()
        hit = "none" if figures["hit_rate"] is None else f"{figures['hit_rate']:.1%}"
        return (
            f"{figures['scored']:,} lists in {self.seconds:.0f} s, {figures['dead_letters']} dead letters, "
            f"{figures['duplicates']} duplicates, all accounted for; latency p50 {figures['latency_ms_p50']} ms, p99 "
            f"{figures['latency_ms_p99']} ms; the next item was in the list before in {hit} of the clicks"
        )

    def _close(self) -> None:
        """Whatever still runs ends: the worker first, the broker last."""
        if self._training is not None:
            # it cannot be ended, and what it writes lies in our folder
            self._training.join(_DRAIN_S)
        if self._lists is not None:
            self._lists.close()
        if self._producer is not None:
            self._producer.close()
        for child in reversed(self._children):
            child.stop()

    def _wait(self, condition: Any, timeout_s: float | None = None, what: str = "") -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not condition():
            self.screen.draw()
            if self._stop.is_set():
                raise _Stopped
            if self._worker is not None and self._worker.code is not None:
                raise DemoError(f"the worker ended by itself with exit code {self._worker.code}")
            if self._lists is not None and self._lists.error is not None:
                raise DemoError(f"reading the lists failed: {self._lists.error}")
            if deadline is not None and time.monotonic() > deadline:
                raise DemoError(f"waited too long for {what}")
            self._stop.wait(0.05)
        self.screen.draw()
