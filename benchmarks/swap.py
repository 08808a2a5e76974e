"""What a model swap costs those that are scored meanwhile: ``python -m benchmarks.swap``.

One worker, a real broker, transactions at a steady rate, as in `benchmarks.latency`. Every few seconds another package
of the same 300 trees becomes champion: the worker finds that out, loads, verifies and warms it and swaps. Rows sent in
the two seconds after a change are *during*, the others *between*: one run, so the machine's mood is in both. No row may
be missing, and each must have come once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import Receiver, paced
from benchmarks.machine import BenchError, Child, headrace, machine, versions
from benchmarks.workload import MODEL, simulated, train
from features.fraud import DEFAULT
from models.package import package_from_text
from models.registry import Registry
from streams.broker import Broker
from streams.latency import LatencyDigest
from streams.log import connect
from streams.topics import all_topics

__all__ = ["run"]

_WARM_S, _LATE_S = 5.0, 30.0
#: time between two changes of the champion, and how long after one its swap may be felt
_EVERY_S, _DURING_S = 5.0, 2.0


def run(rate: int = 1_000, seconds: float = 40.0) -> dict[str, Any]:
    """``between`` and ``during``: latencies of the rows, as of `LatencyDigest`; ``swaps``; ``ratio_p99``."""
    n = int(rate * (_WARM_S + seconds))
    workload = simulated(n)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name, Broker.start(long_run=True) as broker:
        text, registry = train(Path(name)), Registry(Path(name) / "models")
        registry.add(package_from_text(text, MODEL, created_at="2024-01-01T00:00:00Z", features=DEFAULT.names))
        log = connect(f"headrace://{broker.bootstrap}")
        log.admin().create_topics(all_topics(4))
        command = headrace("run", "--pipeline", "fraud", "--bootstrap", broker.bootstrap, "--models", f"{name}/models")
        with Child([*command, "--checkpoints", f"{name}/checkpoints"], None) as worker:
            worker.wait_ready()
            arrivals = np.full(n, np.nan)
            receiver = Receiver(log, arrivals)
            receiver.start()
            if not receiver.assigned.wait(30.0):
                raise BenchError("the consumer of the scores got no partitions within 30 s")
            changes: list[float] = []
            done = threading.Event()
            swapping = threading.Thread(target=_swap, args=(registry, changes, done), daemon=True)
            swapping.start()
            planned = paced(log, workload, 0, n, rate)
            done.set()
            deadline = time.monotonic() + _LATE_S
            while receiver.count < n and time.monotonic() < deadline:
                time.sleep(0.01)
            receiver.ended.set()
            receiver.join(10.0)
            swapping.join(10.0)
    missing = int(np.count_nonzero(np.isnan(arrivals)))
    if missing or receiver.count != n:
        raise BenchError(f"{missing} of {n} scores did not come, {receiver.count} came in all")
    return {**_figures(planned, (arrivals - planned) * 1000, np.array(changes)), "rate": rate, "rows": n}


def _swap(registry: Registry, changes: list[float], done: threading.Event) -> None:
    """Notes when it has made the other package champion."""
    while not done.wait(_EVERY_S if changes else _WARM_S + _EVERY_S):
        registry.set_alias("champion", f"{MODEL}@{2 - len(changes) % 2}")
        changes.append(time.perf_counter())


def _figures(planned: Any, took_ms: Any, changes: Any) -> dict[str, Any]:
    warm = planned >= planned[0] + _WARM_S
    last = np.searchsorted(changes, planned, side="right") - 1
    during = (last >= 0) & (planned - changes[np.maximum(last, 0)] < _DURING_S)
    digests = {}
    for part, rows in (("between", warm & ~during), ("during", warm & during)):
        digest = LatencyDigest()
        digest.add(took_ms[rows])
        digests[part] = digest.to_dict()
    ratio = digests["during"]["latency_ms_p99"] / digests["between"]["latency_ms_p99"]
    return {**digests, "swaps": len(changes), "ratio_p99": round(ratio, 2)}


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000, help="events per second (default: 1000)")
    parser.add_argument("--seconds", type=float, default=40.0, help="after the warm-up (default: 40)")
    args = parser.parse_args()
    print(json.dumps({**run(args.rate, args.seconds), "machine": machine(), "versions": versions()}))


if __name__ == "__main__":
    main()
