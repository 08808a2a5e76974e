"""`headrace demo`: the whole pipeline on this machine for a minute, from nothing to live fraud scores.

    broker ───────────────┐            (a child process; or the log in this process)
    kernels ──┐           ├─► worker ─► recent history ─► live: stream in, scores out ─► drain ─► books
    history ──┴─► features ─► model ──┘

What takes long runs in threads and children; this thread draws, waits, and is where Ctrl-C arrives. Everything
written lies in one temporary folder; every child ends with us.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from streams.broker import BrokerError, kafka_available
from streams.config import Settings, load_settings
from streams.demo_children import Beside, Child, DemoWorker, Job, WorkerProcess, WorkerThread
from streams.demo_model import History, Reasons, Stopped, add_model, make_features, make_history, train
from streams.demo_plan import HISTORY_DAYS, RECENT_DAYS, SLICES_AT_ONCE, DemoSettings, Plan, make_plan, write_config
from streams.demo_report import Accounts, figures
from streams.demo_scores import ScoreReader
from streams.demo_screen import Steps, View
from streams.demo_traffic import send, send_paced
from streams.demo_warm import PARTS
from streams.errors import EXIT_FAILED, EXIT_OK, HeadraceError
from streams.fraud_worker import stage_settings
from streams.log import TP, Log, LogProducer, connect
from streams.simulator_stream import Chunk, Tag, stream
from streams.topics import LABELS, TRANSACTIONS, all_topics
from streams.worker import ensure_topics

__all__ = ["Demo"]

logger = logging.getLogger("headrace.demo")

_T = TypeVar("_T")
_LOG_FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_STEPS = ("kafka", "kernels", "history", "features", "model", "worker", "windows")
#: how long things may take that normally take a moment
_READY_S, _SLICE_S, _DRAIN_S = 90.0, 60.0, 15.0


class DemoError(HeadraceError):
    """The demo cannot go on."""


class Demo:
    """One run. ``stop`` set from anywhere ends it at once, in order; `run` returns the exit code."""

    def __init__(
        self, settings: DemoSettings, console: Console, stop: threading.Event, beside: Beside | None = None
    ) -> None:
        self.settings = settings
        self.accounts = Accounts()
        self.backend = ""
        self.model = ""
        self.problems: list[str] = []
        self.seconds = 0.0
        self._console = console
        self._stop = stop
        self._steps = Steps(_STEPS)
        self._view = View(settings.seconds, self._steps, self.accounts)
        self._beside = beside
        if beside is not None:
            self._view.below = beside.below
        self._log: Log | None = None
        self._producer: LogProducer | None = None
        self._worker: DemoWorker | None = None
        self._scores: ScoreReader | None = None
        self._children: list[Child] = []
        self._jobs: list[Job[object]] = []

    def run(self) -> int:
        """Everything, from the start of the broker to the books; 0 if they agree, else 1."""
        failure = ""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-demo-")))
            # the worker of a log in this process logs here too; the terminal is for the picture
            logging.basicConfig(filename=folder / "demo.log", level=logging.INFO, format=_LOG_FORM, force=True)
            for name in ("faust", "mode"):
                logging.getLogger(name).setLevel(logging.WARNING)
            stack.callback(logging.basicConfig, force=True)
            stack.callback(self._close)
            try:
                with self._view.on(self._console):
                    try:
                        self._run(folder)
                    except Stopped:
                        logger.info("stopped")
                    self._finish()
            except (HeadraceError, OSError) as error:
                self._steps.fail()
                failure = f"{error}{self._logs(folder)}"
        self.problems = [failure] if failure else self._disagreements()
        self.problems += self._beside.end() if self._beside is not None else []
        self._view.leave(self._console, self.problems, self.seconds, stopped=self._stop.is_set())
        return EXIT_FAILED if self.problems else EXIT_OK

    def figures(self) -> dict[str, object]:
        """What ``--json`` prints, after `run`."""
        return figures(
            self.accounts,
            self._scores,
            seconds=self.seconds,
            backend=self.backend,
            model=self.model,
            phases=self._steps.seconds(),
            problems=self.problems,
        )

    # -- in order --

    def _run(self, folder: Path) -> None:
        plan = make_plan(self.settings, int(time.time() * 1000))
        broker = self._start_broker(folder)
        if self._beside is not None:
            self._beside.start()
        opened = self._job(lambda: self._open_log(broker))
        warming = [self._child(f"kernels-{part}", "streams.demo_warm", [part], folder) for part in PARTS]
        self._steps.start("kernels", "compiled at the first start, kept beside the source")
        config = folder / "headrace.toml"
        history = self._history(plan)
        self._wait(lambda: all(child.code or (child.code == 0 and child.said("compiled")) for child in warming))
        if any(child.code for child in warming):
            raise DemoError("the kernels could not be compiled: see the log below")
        fresh = any(child.said("compiled") != "compiled 0" for child in warming)
        self._steps.done(
            "kernels", "compiled by numba, kept beside the source" if fresh else "kept from an earlier start"
        )
        write_config(config, plan, folder / "models", "")
        self._train(plan, history, load_settings(config, {}), folder / "models")
        self._log = self._await_log(opened)
        if self._beside is not None:
            self._beside.use(self.backend, self._log)
        write_config(config, plan, folder / "models", self._log.url)
        self._start_worker(config, folder, load_settings(config, {}))
        self._fill_windows(plan)
        if self._beside is not None:
            beside = self._beside
            self._wait(lambda: beside.is_live)
        self._go_live(plan)

    def _start_broker(self, folder: Path) -> Child | None:
        """The broker as a child, None for the log in this process."""
        reason = "asked for by --memory" if self.settings.memory else kafka_available()
        if reason is not None:
            self._in_process(reason)
            return None
        self._steps.start("kafka", "a real Apache Kafka, single node")
        return self._child("broker", "streams.cli.main", ["broker", "--port", "0"], folder)

    def _in_process(self, reason: str) -> None:
        self.backend = "memory"
        self._view.backend = "log in this process (memory://)"
        self._steps.done("kafka", f"no Kafka, the log in this process instead: {reason}")

    def _open_log(self, broker: Child | None) -> Log:
        """The log with its topics, once the broker is there."""
        url = "memory://demo"
        if broker is not None:
            while not broker.ready.wait(0.1):
                if self._stop.is_set():
                    raise Stopped
                if broker.code is not None:
                    raise BrokerError(broker.complaint() or "Kafka did not start")
                self._steps.note("kafka", " ".join(broker.tail(1)) or "a real Apache Kafka, single node")
            url = f"headrace://{broker.said('ready').split()[1]}"
        log = connect(url)
        ensure_topics(log, all_topics())
        if broker is not None:
            self.backend, self._view.backend = "kafka", f"Apache Kafka at {url.removeprefix('headrace://')}"
            self._steps.done("kafka", f"a real {self._view.backend}")
        return log

    def _await_log(self, opened: Job[Log]) -> Log:
        """The log; the one in this process where Kafka cannot be started after all."""
        self._wait(lambda: not opened.is_alive())
        try:
            return opened.result()
        except BrokerError as error:
            self._in_process(str(error))
            return self._open_log(None)

    def _history(self, plan: Plan) -> History:
        self._steps.start("history", "simulating a card business")
        history = self._wait_for(lambda: make_history(plan))
        n = len(history.transactions)
        detail = f"{HISTORY_DAYS} days, {n:,} payments of {plan.world.cards:,} cards, {history.frauds:,} known frauds"
        self._steps.done("history", detail)
        return history

    def _train(self, plan: Plan, history: History, settings: Settings, models: Path) -> None:
        self._steps.start("features", "by the stages that run live")
        features = self._wait_for(lambda: make_features(history, stage_settings(settings), self._stop))
        n, d = features.matrix.shape
        self._steps.done("features", f"{n:,} x {d} by the stages that run live")
        self._steps.start("model")
        trained = self._wait_for(
            lambda: train(plan, history, features, self._stop, lambda text: self._steps.note("model", text))
        )
        self.model = self._view.model = add_model(trained, models)
        metrics = trained.metrics
        self._steps.done(
            "model",
            f"LightGBM; a later week: AUC {metrics['auc']:.3f}, average precision {metrics['average_precision']:.3f}",
        )
        self._reasons = Reasons(trained)

    def _start_worker(self, config: Path, folder: Path, settings: Settings) -> None:
        assert self._log is not None
        self._group = settings.group
        self._steps.start("worker")
        self._worker = WorkerThread(config) if self.backend == "memory" else WorkerProcess(config, folder)
        self._children += [self._worker.child] if isinstance(self._worker, WorkerProcess) else []
        self._producer = self._log.producer()
        self._scores = self._view.scores = ScoreReader(self._log, self._reasons)
        self._scores.start()
        worker, scores = self._worker, self._scores
        self._wait(lambda: worker.is_ready and scores.subscribed.is_set(), _READY_S, "the worker to be ready")
        self._steps.done("worker", worker.where)

    def _fill_windows(self, plan: Plan) -> None:
        """Sends the days that the windows look back on; `SLICES_AT_ONCE` slices at most are not scored yet."""
        assert self._producer is not None and self._scores is not None
        self._steps.start("windows")
        world, scores = plan.world, self._scores
        end, first_id = world.time_of(HISTORY_DAYS), world.first_id(plan.recent_from)
        sent = deque([0], maxlen=SLICES_AT_ONCE)
        for chunk in stream(world, plan.recent_from, speed_up=plan.slice_ms / 1000, chunk_s=1.0):
            if chunk.send_time >= end:
                break
            # labels of what the worker never sees are left out
            known = [r for r in chunk.records if r.tag != Tag.LABEL or int(r.key) >= first_id]
            chunk = replace(chunk, records=known)
            self._wait_scored(sent[0])
            self.accounts.add(chunk, live=False)
            send(self._producer, chunk.batches(), self._stop)
            sent.append(self.accounts.history)
            self._steps.note("windows", f"{RECENT_DAYS} days through the worker, {scores.count:,} payments so far")
        self._wait_scored(self.accounts.history)
        detail = f"{RECENT_DAYS} days, {self.accounts.history:,} payments through the worker fill them"
        self._steps.done("windows", detail)

    def _wait_scored(self, count: int) -> None:
        """Until so many scores came; draws now and then."""
        assert self._scores is not None
        deadline = time.monotonic() + _SLICE_S
        while not self._scores.wait_for(count, 0.05):
            self._pulse(deadline, "the history to be scored")
        self._pulse(deadline, "the history to be scored")

    def _go_live(self, plan: Plan) -> None:
        assert self._producer is not None and self._scores is not None
        producer, scores = self._producer, self._scores
        scores.go_live()
        self._view.go_live()
        chunks = stream(plan.world, HISTORY_DAYS, rate=self.settings.rate, imperfections=plan.faults)

        def sending(chunk: Chunk) -> None:
            self.accounts.add(chunk, live=True)
            scores.sending(chunk)

        started = time.monotonic()
        sender = self._job(
            lambda: send_paced(producer, chunks, self._stop, seconds=self.settings.seconds, sending=sending)
        )
        try:
            self._wait(lambda: not sender.is_alive())
        except DemoError:
            self._stop.set()
            raise
        finally:
            sender.join(_DRAIN_S)
            self.seconds = time.monotonic() - started
        sender.result()

    def _finish(self) -> None:
        """Waits until the worker has read and scored all that was sent, and ends it."""
        for job in self._jobs:
            job.join(5.0)
        if self._beside is not None:
            self._beside.end()
        if self._worker is None or self._scores is None or self._producer is None or self._log is None:
            return
        self._view.finishing()
        self._producer.flush(_DRAIN_S)
        deadline = time.monotonic() + _DRAIN_S
        accounts, scores = self.accounts, self._scores
        while time.monotonic() < deadline and self._worker.code is None:
            if scores.count >= accounts.to_score and scores.dead_letters >= accounts.malformed:
                break
            self._view.draw()
            time.sleep(0.05)
        if self._worker.code is None:
            self._wait_committed(deadline)
        was_ready = self._worker.is_ready
        code = self._worker.stop()
        self.accounts.worker = self._worker.figures()
        # what it sent while it left
        scores.wait_for(self.accounts.worker.get("scored", 0), 5.0)
        scores.close()
        if code and was_ready:
            raise DemoError(f"the worker ended with exit code {code}")

    def _wait_committed(self, deadline: float) -> None:
        """A repeated transaction leaves no trace but in the worker's offsets."""
        assert self._log is not None
        consumer = self._log.consumer(self._group)
        try:
            topics = self._log.admin().topics([TRANSACTIONS, LABELS])
            ends = {
                tp: consumer.offset_range(tp)[1]
                for name, info in topics.items()
                for tp in (TP(name, p) for p in range(info.partitions))
            }
            while time.monotonic() < deadline:
                committed = consumer.committed(list(ends))
                if all((committed[tp] or 0) >= end for tp, end in ends.items()):
                    return
                self._view.draw()
                time.sleep(0.05)
        finally:
            consumer.close()

    def _close(self) -> None:
        """Whatever still runs ends: the worker first, the broker last."""
        if self._beside is not None:
            self._beside.end()
        if self._scores is not None:
            self._scores.close()
        if self._producer is not None:
            self._producer.close()
        for child in self._children:
            if child.name != "broker":
                child.ask_to_end()
        for child in reversed(self._children):
            child.stop()

    def _disagreements(self) -> list[str]:
        scores = self._scores
        return self.accounts.problems(*((scores.count, scores.dead_letters) if scores is not None else (0, 0)))

    # -- waiting --

    def _child(self, name: str, module: str, words: list[str], folder: Path) -> Child:
        child = Child(name, module, words, folder)
        self._children.append(child)
        return child

    def _job(self, call: Callable[[], _T]) -> Job[_T]:
        job = Job(call)
        self._jobs.append(job)  # type: ignore[arg-type]
        return job

    def _wait_for(self, call: Callable[[], _T]) -> _T:
        """The result of a call in a thread, drawing meanwhile."""
        job = self._job(call)
        self._wait(lambda: not job.is_alive())
        return job.result()

    def _wait(self, condition: Callable[[], bool], timeout_s: float | None = None, what: str = "") -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not condition():
            self._pulse(deadline, what)
            self._stop.wait(0.05)
        self._pulse(deadline, what)

    def _pulse(self, deadline: float | None, what: str) -> None:
        """Draws; raises when it is time to end, or when something that we need has ended."""
        self._view.draw()
        if self._stop.is_set():
            raise Stopped
        if self._worker is not None and self._worker.code is not None:
            raise DemoError(f"the worker ended by itself with exit code {self._worker.code}")
        if self._scores is not None and self._scores.error is not None:
            raise DemoError(f"reading the scores failed: {self._scores.error}")
        if deadline is not None and time.monotonic() > deadline:
            raise DemoError(f"waited too long for {what}")

    def _logs(self, folder: Path) -> str:
        """The last lines of each log that says something."""
        parts = []
        for path in sorted(folder.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-12:]
            if lines:
                parts.append(f"\n-- {path.stem}, last lines of its log --\n" + "\n".join(lines))
        return "".join(parts)
