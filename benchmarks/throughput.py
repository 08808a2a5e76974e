"""Events per second on one core: this pipeline and a plain Faust app, the same job on the same records.

Each has a broker of its own with the same settings, one after the other. The process under test has the last core for
itself; broker and benchmark have the others. It is stopped (SIGSTOP) while a backlog is sent, so that start-up,
compiling and producing are not measured: first the labels, so that every score is determined whatever the order in
which a worker reads two topics, then the transactions, and these are timed: from going on to the timestamp of the last
score's record. Where there is no Kafka, ours runs on the in-process log, alone, and the figures say so.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from benchmarks import plain_faust
from benchmarks.machine import BenchError, Child, Cores, cpu_seconds, headrace, machine, thread_seconds, versions
from benchmarks.workload import Records, Scores, Workload, read_scores, send, train
from streams.broker import Broker, kafka_available
from streams.cli.run import keep_freed_memory, spare_the_collector
from streams.config import load_settings
from streams.fraud_worker import make_worker
from streams.log import TP, Log, LogConsumer, TopicInfo, connect
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS, topic_infos

__all__ = ["Measured", "measure_app", "measure_headrace", "measure_in_process", "measure_plain_faust", "run"]

GROUP = "headrace-bench"
PARTS = ("consume", "decode", "features", "shuffle", "score", "explain", "encode", "monitor", "produce")
_PHASE_S = 900.0
_POLL_S = 0.02


@dataclass(slots=True)
class Measured:
    """One run of one worker. Seconds are of the transactions' phase; ``labels_cpu_s`` of the labels' before it."""

    events: int
    labels: int
    wall_s: float
    cpu_s: float
    labels_cpu_s: float
    scores: Scores
    parts_s: dict[str, float] = field(default_factory=dict)

    @property
    def us_cpu(self) -> float:
        """Microseconds of CPU per event."""
        return self.cpu_s / self.events * 1e6

    def figures(self) -> dict[str, Any]:
        """Rates, and microseconds of CPU per event."""
        return {
            "events": self.events,
            "events_per_s": round(self.events / self.wall_s),
            "events_per_cpu_s": round(self.events / self.cpu_s),
            "us_cpu_per_event": round(self.us_cpu, 2),
            "us_cpu_per_label": round(self.labels_cpu_s / max(1, self.labels) * 1e6, 2),
            "output_sha256": self.scores.sha256(),
        }

    def us_per_event(self) -> dict[str, float]:
        """CPU by part; ``other`` is Faust, the event loop and the interpreter, so that all add up to the whole."""
        parts = {name: self.parts_s.get(name, 0.0) for name in (*PARTS, "librdkafka")}
        parts["other"] = max(0.0, self.cpu_s - sum(parts.values()))
        return {name: round(seconds / self.events * 1e6, 3) for name, seconds in parts.items()}


def measure_headrace(
    workload: Workload,
    folder: Path,
    cores: Cores,
    partitions: int = 1,
    order: str = "arrival",
    delivery: str = "at_least_once",
    reasons: str = "above:0.5",
    options: Sequence[str] = (),
) -> Measured:
    """One run of ``headrace run``, with more ``options``, with the champion of ``folder``/models."""
    with Broker.start() as broker:
        log = _log_with(broker, topic_infos((TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES), partitions))
        command = headrace("run", "--pipeline", "fraud", "--json", "--bootstrap", broker.bootstrap, "--group", GROUP)
        command += ["--models", str(folder / "models"), "--order", order, "--partitions", str(partitions)]
        command += ["--delivery", delivery, "--checkpoints", str(folder / "checkpoints"), "--reasons", reasons]
        with Child([*command, *options], cores.worker) as child:
            phases = _Phases(child, log, lambda: _figures(child))
            # markers of transactions have offsets too: the number of scores alone does not tell that all are there
            also = (TRANSACTIONS, BY_TERMINAL) if delivery == "exactly_once" else ()
            return phases.run(workload, GROUP, (LABELS, BY_TERMINAL), FRAUD_SCORES, also)


def _log_with(broker: Broker, topics: Sequence[TopicInfo]) -> Log:
    """The broker's log with these topics, and with a group coordinator, which aiokafka does not wait for."""
    log = connect(f"headrace://{broker.bootstrap}")
    log.admin().create_topics(topics)
    first = log.consumer("bench-first")
    first.committed([TP(topics[0].name, 0)])
    first.close()
    return log


def _figures(child: Child) -> dict[str, float]:
    """CPU seconds by part so far."""
    seconds: dict[str, float] = orjson.loads(child.next_line(lambda: child.signal(signal.SIGUSR1)))["seconds"]
    return seconds | {"librdkafka": thread_seconds(child.pid, "rdk:")}


def measure_plain_faust(workload: Workload, model_file: Path, cores: Cores) -> Measured:
    """One run of the plain Faust app."""
    return measure_app("plain_faust", workload, model_file, cores, (plain_faust.BY_TERMINAL,))


def measure_app(name: str, workload: Workload, model_file: Path, cores: Cores, topics: Sequence[str] = ()) -> Measured:
    """One run of ``benchmarks.<name>``, which has a ``main``, a ``GROUP`` and ``SCORES``, and ``topics`` of its own."""
    module: Any = importlib.import_module(f"benchmarks.{name}")
    with Broker.start() as broker:
        log = _log_with(broker, [TopicInfo(topic, 1, "") for topic in (TRANSACTIONS, LABELS, *topics, module.SCORES)])
        here = str(Path(__file__).parent.parent)
        program = f"import sys; sys.path.insert(0, {here!r}); from benchmarks.{name} import main; main()"
        command = [sys.executable, "-c", program, "--bootstrap", broker.bootstrap, "--model", str(model_file)]
        with Child(command, cores.worker) as child:
            return _Phases(child, log, dict).run(workload, module.GROUP, (LABELS,), module.SCORES)


class _Phases:
    """The two backlogs of one worker, and what it takes for each."""

    def __init__(self, child: Child, log: Log, figures: Callable[[], Mapping[str, float]]) -> None:
        self._child, self._log, self._figures = child, log, figures
        self._partitions = {name: info.partitions for name, info in log.admin().topics().items()}

    def run(
        self,
        workload: Workload,
        group: str,
        labels_done: Sequence[str],
        scores_topic: str,
        scores_done: Sequence[str] = (),
    ) -> Measured:
        """``labels_done`` and ``scores_done``: topics that are committed to their ends after each backlog."""
        child, n = self._child, len(workload.transactions)
        child.wait_ready()
        offsets = self._log.consumer(group)
        cpu = cpu_seconds(child.pid)
        self._backlog(LABELS, workload.labels)
        self._wait(lambda: all(self._committed(offsets, topic) for topic in labels_done), "the labels")
        labels_cpu_s = cpu_seconds(child.pid) - cpu
        before = self._figures()
        cpu = cpu_seconds(child.pid)
        started_ms = self._backlog(TRANSACTIONS, workload.transactions)
        self._wait(
            lambda: (
                self._count(offsets, scores_topic) >= n
                and all(self._committed(offsets, topic) for topic in scores_done)
            ),
            "the scores",
        )
        cpu_s = cpu_seconds(child.pid) - cpu
        after = self._figures()
        offsets.close()
        scores = read_scores(self._log, scores_topic, n)
        parts = {name: after[name] - before.get(name, 0.0) for name in after}
        return Measured(
            n, len(workload.labels), (scores.last_ms - started_ms) / 1000, cpu_s, labels_cpu_s, scores, parts
        )

    def _backlog(self, topic: str, records: Records) -> float:
        """Sends while the worker stands still; returns the time at which it goes on, ms since the epoch."""
        self._child.signal(signal.SIGSTOP)
        try:
            send(self._log, topic, records)
        finally:
            started_ms = time.time() * 1000
            self._child.signal(signal.SIGCONT)
        return started_ms

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PHASE_S
        while not done():
            self._child.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{what} were not done within {_PHASE_S:.0f} s; see the worker's log above")
            time.sleep(_POLL_S)

    def _places(self, topic: str) -> list[TP]:
        return [TP(topic, p) for p in range(self._partitions[topic])]

    def _count(self, consumer: LogConsumer, topic: str) -> int:
        return sum(consumer.offset_range(tp)[1] for tp in self._places(topic))

    def _committed(self, consumer: LogConsumer, topic: str) -> bool:
        """Whether the group is at the end of the topic."""
        committed = consumer.committed(self._places(topic))
        return all((offset or 0) >= consumer.offset_range(tp)[1] for tp, offset in committed.items())


def measure_in_process(workload: Workload, folder: Path, reasons: str = "above:0.5") -> Measured:
    """One run on the in-process log, in a thread of this process: no client, no network, nothing pinned."""
    log = connect(f"memory://bench-{uuid.uuid4().hex}")
    wanted = {
        "bootstrap": log.url,
        "models": str(folder / "models"),
        "partitions": 1,
        "group": GROUP,
        "reasons": reasons,
    }
    ready = threading.Event()
    worker, pipeline = make_worker(load_settings(overrides=wanted), ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(worker.run()), daemon=True)
    spare_the_collector()
    keep_freed_memory()
    thread.start()

    def wait(done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PHASE_S
        while not done():
            if not thread.is_alive() or time.monotonic() > deadline:
                raise BenchError(f"{what} were not done; see the worker's log above")
            time.sleep(_POLL_S)

    def parts() -> dict[str, float]:
        return {**pipeline.meters.seconds, **worker.seconds}

    wait(ready.is_set, "the worker's partitions")
    reader, n = worker.reader, len(workload.transactions)
    assert reader is not None
    cpu = time.process_time()
    send(log, LABELS, workload.labels)
    wait(lambda: pipeline.meters.counts["labels"] >= len(workload.labels), "the labels")
    time.sleep(0.5)  # what the reader says of ends is at most 0.1 s old: the shuffled labels are in the log by now
    wait(lambda: all(reader.assignment.at_end().values()), "the labels")
    labels_cpu_s = time.process_time() - cpu
    reader.stop_flow()
    wait(lambda: reader.flow_is_stopped, "the pauses")
    send(log, TRANSACTIONS, workload.transactions)
    before, cpu, started = parts(), time.process_time(), time.monotonic()
    reader.resume_flow()
    wait(lambda: pipeline.meters.counts["scored"] >= n, "the scores")
    wall_s, cpu_s, after = time.monotonic() - started, time.process_time() - cpu, parts()
    worker.stop()
    thread.join(30)
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    scores = read_scores(log, FRAUD_SCORES, n)
    return Measured(n, len(workload.labels), wall_s, cpu_s, labels_cpu_s, scores, spent)


def run(
    workload: Workload,
    *,
    plain_events: int = 60_000,
    rounds: int = 3,
    partitions: int = 1,
    order: str = "arrival",
    delivery: str = "at_least_once",
    reasons: str = "above:0.5",
    plain: bool = True,
    notify: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The figures of ``headrace bench throughput``: medians over ``rounds`` runs of ours and one of plain Faust.

    Plain Faust does the first ``plain_events`` events. The ratio is of CPU time per event. BenchError when runs of
    ours differ in any score: a speed counts only with equal scores; ``equality`` compares with plain Faust's.
    """
    missing = kafka_available()
    if missing:
        notify(f"{missing}; measuring ours alone, on the in-process log")
    cores = Cores(None, ()) if missing else Cores.split()
    about = {"machine": machine(), "versions": versions()}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        notify("training a model of 300 trees x 31 leaves")
        model_file = train(folder)
        runs = []
        for i in range(rounds):
            notify(f"headrace, {len(workload.transactions):,} events, run {i + 1} of {rounds}")
            runs.append(
                measure_in_process(workload, folder, reasons)
                if missing
                else measure_headrace(workload, folder, cores, partitions, order, delivery, reasons)
            )
        if len({r.scores.sha256() for r in runs}) > 1:
            raise BenchError("the runs gave different scores: a speed counts only with equal scores")
        ours = sorted(runs, key=lambda r: r.cpu_s)[rounds // 2]
        rival = None
        if plain and not missing:
            few = workload.head(plain_events)
            notify(f"plain Faust, {len(few.transactions):,} events")
            rival = measure_plain_faust(few, model_file, cores)
    figures: dict[str, Any] = {
        "events_per_s": ours.figures()["events_per_s"],
        "ratio_plain_faust": None,
        "us_per_event": ours.us_per_event(),
        "log": "memory" if missing else "kafka",
        "workload": workload.name,
        "partitions": partitions,
        "order": order,
        "delivery": "at_least_once" if missing else delivery,
        "reasons": reasons,
        "headrace": ours.figures(),
        "headrace_runs_events_per_s": [r.figures()["events_per_s"] for r in runs],
    }
    if rival is not None:
        figures["ratio_plain_faust"] = round(rival.us_cpu / ours.us_cpu, 1)
        figures["plain_faust"] = rival.figures()
        figures["equality"] = ours.scores.difference(rival.scores)
    return figures | {"pinned": cores.worker is not None} | about
