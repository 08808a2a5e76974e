"""What watching costs those who score: CPU of the fraud worker with ``--monitor`` beside the same worker without.

`benchmarks.throughput`'s run of ours, in turn without and with, the rich feature set, a broker for each run. The worker
then sends each vector with its score, and each label, to ``fraud.by-transaction`` as well. The monitor is a process of
its own and not measured here, `benchmarks.drift` has its cost by row. All runs must give the same scores. What others
do on the machine shows in CPU time, too: the figure is the median over pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import BenchError, Cores, machine, versions
from benchmarks.throughput import Measured, measure_headrace
from benchmarks.workload import Workload, train
from features.fraud import SETS
from streams.broker import kafka_available

__all__ = ["run"]

_SET = "rich"


def run(workload: Workload, *, rounds: int = 3, notify: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """``us_without`` and ``us_with``: CPU per event, the median over ``rounds``; ``cost``: that of the pairs' ratios,
    less one; ``us_per_event``: by part, of the run with the least cost."""
    missing = kafka_available()
    if missing:
        raise BenchError(f"bench watched: {missing}")
    about = {"machine": machine(), "versions": versions()}
    cores = Cores.split()
    pairs: list[tuple[Measured, Measured]] = []
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        notify(f"training a model of the {_SET} set")
        train(Path(name), features=SETS[_SET])

        def measured(*options: str) -> Measured:
            with tempfile.TemporaryDirectory(prefix="checkpoints-", dir=name) as states:
                options = ("--set", _SET, "--checkpoints", states, *options)
                return measure_headrace(workload, Path(name), cores, options=options)

        for i in range(rounds):
            notify(f"{len(workload.transactions):,} events without and with --monitor, {i + 1} of {rounds}")
            pairs.append((measured(), measured("--monitor")))
    if len({run.scores.sha256() for pair in pairs for run in pair}) > 1:
        raise BenchError("the runs gave different scores: a cost counts only with equal scores")
    best = min(pairs, key=lambda pair: pair[1].cpu_s / pair[0].cpu_s)
    return {
        "features": len(SETS[_SET].names),
        "events": len(workload.transactions),
        "us_without": round(median(without.us_cpu for without, _ in pairs), 2),
        "us_with": round(median(watched.us_cpu for _, watched in pairs), 2),
        "cost": round(median(watched.cpu_s / without.cpu_s for without, watched in pairs) - 1, 4),
        "costs": [round(watched.cpu_s / without.cpu_s - 1, 4) for without, watched in pairs],
        "us_per_event": {"without": best[0].us_per_event(), "with": best[1].us_per_event()},
        **about,
    }
