"""The whole job by others, side by side: what each costs per event, and whether it says the same.

Online, on real Kafka, one core each, as in `throughput`: ours, a loop by hand, a plain Faust app. Offline, the feature
windows alone, on the same table: ours, naive Python, polars and DuckDB, as in `features`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.feature_peers import compare, table
from benchmarks.machine import BenchError, Cores, machine, versions
from benchmarks.throughput import Measured, measure_app, measure_headrace, measure_plain_faust
from benchmarks.workload import Workload, train
from streams.broker import kafka_available

__all__ = ["run"]


def run(
    workload: Workload,
    *,
    peer_events: int = 20_000,
    offline_events: int = 200_000,
    notify: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """``results``: [{peer, events, events_per_s, us_cpu_per_event, ratio, equality}], ``ratio`` = its CPU per event by
    ours; ``offline`` as `feature_peers.compare`. The peers do the first ``peer_events`` of the events. BenchError
    where there is no Kafka.
    """
    missing = kafka_available()
    if missing:
        raise BenchError(f"{missing}: peers are measured on a real Kafka")
    cores = Cores.split()
    about = {"machine": machine(), "versions": versions()}
    few = workload.head(peer_events)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        notify("training a model of 300 trees x 31 leaves")
        model_file = train(Path(name))
        notify(f"headrace, {len(workload.transactions):,} events")
        ours = measure_headrace(workload, Path(name), cores)
        notify(f"a loop by hand, {len(few.transactions):,} events")
        loop = measure_app("python_loop", few, model_file, cores)
        notify(f"plain Faust, {len(few.transactions):,} events")
        faust = measure_plain_faust(few, model_file, cores)
    results = [_row(name, m, ours) for name, m in (("headrace", ours), ("python loop", loop), ("plain Faust", faust))]
    notify(f"the windows alone, offline, {offline_events:,} events")
    return {"results": results, "offline": compare(table(offline_events, 1_000)), "workload": workload.name, **about}


def _row(name: str, measured: Measured, ours: Measured) -> dict[str, Any]:
    figures = measured.figures()
    same = None if measured is ours else ours.scores.difference(measured.scores)
    return {
        "peer": name,
        **{key: figures[key] for key in ("events", "events_per_s", "us_cpu_per_event")},
        "ratio": round(measured.us_cpu / ours.us_cpu, 2),
        "equality": same,
    }
