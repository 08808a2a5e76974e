"""What a model swap costs those that are scored meanwhile: ``headrace bench swap``.

One worker, a real broker, transactions at a steady rate, as in `benchmarks.latency`. Every few seconds another package
of the same 300 trees, which the worker has not seen before, becomes champion: it finds that out, loads, verifies and
warms it and swaps. Rows sent in the two seconds after a change are *during*, the others *between*: one run, so the
machine's mood is in both. No row may be missing, and each must have come once.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import Receiver, paced
from benchmarks.machine import BenchError, Child, headrace, machine, versions
from benchmarks.workload import MODEL, simulated, train
from features.block import FloatArray
from features.fraud import DEFAULT
from models.package import package_from_text
from models.registry import Registry
from streams.broker import Broker
from streams.latency import LatencyDigest
from streams.log import connect
from streams.topics import all_topics

__all__ = ["run", "swap_figures"]

_WARM_S, _LATE_S = 5.0, 30.0
#: time between two changes of the champion, and how long after one its swap may be felt
_EVERY_S, _DURING_S = 5.0, 2.0


def run(rate: int = 1_000, seconds: float = 40.0, notify: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """``between`` and ``during``: latencies of the rows, as of `LatencyDigest`; ``swaps``; ``ratio_p99``."""
    if rate < 1 or not seconds >= 2 * _EVERY_S:
        raise BenchError(
            f"{rate} events/s for {seconds:g} s: give 1 or more, and {2 * _EVERY_S:g} s or more, as there is another "
            f"champion every {_EVERY_S:g} s"
        )
    about = {"machine": machine(), "versions": versions()}
    n = int(rate * (_WARM_S + seconds))
    notify(f"{rate:,} events/s for {seconds:.0f} s, another champion every {_EVERY_S:.0f} s")
    workload = simulated(n)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name, Broker.start(long_run=True) as broker:
        text, registry = train(Path(name)), Registry(Path(name) / "models")
        draft = package_from_text(text, MODEL, created_at="2024-01-01T00:00:00Z", features=DEFAULT.names)
        labels = [registry.add(draft).label for _ in range(int(seconds / _EVERY_S))]
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
            swapping = threading.Thread(target=_swap, args=(registry, labels, changes, done), daemon=True)
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
    figures = swap_figures(planned, (arrivals - planned) * 1000, np.array(changes))
    return {**figures, "rate": rate, "rows": n, **about}


def _swap(registry: Registry, labels: Sequence[str], changes: list[float], done: threading.Event) -> None:
    """Makes one package after another champion, and notes when."""
    for label in labels:
        if done.wait(_EVERY_S if changes else _WARM_S + _EVERY_S):
            return
        registry.set_alias("champion", label)
        changes.append(time.perf_counter())


def swap_figures(planned: FloatArray, took_ms: FloatArray, changes: FloatArray) -> dict[str, Any]:
    """What `run` gives of rows that were to be sent at ``planned`` (n,) s, rising, and ``took_ms`` (n,), where the
    champion changed at ``changes`` (k,) s, rising."""
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
