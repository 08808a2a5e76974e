"""How long scoring stands still while checkpoints of very many cards are taken: beside blocks without any.

The card stage of one partition, default set, is filled until every card has some events; then blocks of some hundred
rows of cards drawn at random come at a steady rate, and a checkpoint is taken as a worker takes it: by
`Checkpoints.step` between two blocks. A pause is what a checkpoint adds: the fork between two blocks, and the pages
that a block is the first to write to while the child has them too. So forks are measured, and blocks, those with a
child beside them apart from the others.

In wall time and in CPU time of the thread that scores: forks and copied pages are in both, what other processes take
from the machine only in the first, so that on a shared machine the second tells of checkpoints. Bias: one partition has
all the cards, where a worker's partitions share them and one is written at a time, though a fork visits all.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import BenchError
from features.block import Block, Ids
from features.engine import warm
from features.fraud import DEFAULT
from streams.checkpoint_store import CheckpointStore
from streams.checkpoints import Checkpoints, CheckpointSettings, StateOf
from streams.latency import LatencyDigest
from streams.log import TP
from streams.pipelines.fraud_stages import CardStage, StageSettings
from streams.store import open_store

__all__ = ["run"]

_START_MS = 1_600_000_000_000
_DAY_MS = 86_400_000
_FILL_ROWS = 20_000
_EVENTS_PER_CARD_AND_DAY = 2
_EVENTS_PER_S = 50_000
#: checkpoints that may fail before the measurement does
_FAILED_MAX = 3
_TP = TP("transactions", 0)


class _Task:
    """A card stage fed with cards drawn at random, as a task of a worker."""

    def __init__(self, cards: int, bytes_max: int) -> None:
        warm(DEFAULT)
        self._settings = StageSettings(DEFAULT, state_bytes_max=bytes_max)
        self.stage = CardStage(self._settings)
        self.next_offset = 0
        self._cards = cards
        self._rng = np.random.default_rng(7)

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        return {**self.stage.to_arrays(), "next_offset": np.array([self.next_offset])}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.stage = CardStage.from_arrays(self._settings, arrays)
        self.next_offset = int(arrays["next_offset"][0])

    def block(self, rows: int) -> Block:
        """The next so many events, of new transactions."""
        numbers = np.arange(self.next_offset, self.next_offset + rows)
        times = _START_MS + numbers * _DAY_MS // (_EVENTS_PER_CARD_AND_DAY * self._cards)
        ids = {"transaction_id": Ids(ints=numbers), "card_id": Ids(ints=self._rng.integers(0, self._cards, rows))}
        columns = {"event_time": times, "amount": self._rng.gamma(2.0, 30.0, rows)}
        return Block("transactions", 0, 0, numbers, times, ids, columns)

    def process(self, block: Block) -> None:
        self.stage.process(block)
        self.next_offset += len(block)


class _Times:
    """Milliseconds, by wall and by the thread's CPU."""

    def __init__(self) -> None:
        self._wall, self._cpu = LatencyDigest(), LatencyDigest()

    def add(self, wall_s: float, cpu_s: float) -> None:
        self._wall.add(np.array([1e3 * wall_s]))
        self._cpu.add(np.array([1e3 * cpu_s]))

    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = {"count": self._wall.count}
        if not self._wall.count:
            return figures
        for name, digest in (("wall", self._wall), ("cpu", self._cpu)):
            for label, percent in (("p50", 50.0), ("p99", 99.0), ("max", 100.0)):
                figures[f"{name}_ms_{label}"] = round(digest.percentile(percent), 2)
        return figures


def run(
    cards: int,
    *,
    events: int | None = None,
    rows: int = 500,
    checkpoints: int = 3,
    rest_s: float = 1.0,
    bytes_max: int = 8 * 10**9,
    notify: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Milliseconds of forks and of blocks of ``rows`` rows; ``checkpoints`` are taken, ``rest_s`` between two.

    ``events`` come before the first, 10 a card where not told. BoundError where the state takes more than
    ``bytes_max``, BenchError where a checkpoint cannot be written.
    """
    task = _Task(cards, bytes_max)
    events = 10 * cards if events is None else events
    notify(f"{events:,} events of {cards:,} cards, then {checkpoints} checkpoints in this process")
    while task.next_offset < events:
        task.process(task.block(min(_FILL_ROWS, events - task.next_offset)))
    fork, beside, without = _Times(), _Times(), _Times()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        of = StateOf("card", "bench", "bench", DEFAULT.name, "bench")
        store = CheckpointStore(open_store(folder), "bench")
        taken = Checkpoints(store, "bench", lambda topic: of, CheckpointSettings(interval_s=rest_s))
        while taken.written < checkpoints:
            block = task.block(rows)
            forks, wall_s, cpu_s = taken.pauses.count, time.perf_counter(), time.thread_time()
            taken.step({_TP: task}, lambda tp: 0)
            if taken.pauses.count > forks:
                fork.add(time.perf_counter() - wall_s, time.thread_time() - cpu_s)
            wall_s, cpu_s = time.perf_counter(), time.thread_time()
            task.process(block)
            took_s = time.perf_counter() - wall_s
            (beside if taken.writing else without).add(took_s, time.thread_time() - cpu_s)
            if taken.pauses.count > checkpoints + _FAILED_MAX:
                raise BenchError(f"only {taken.written} of {taken.pauses.count} checkpoints were written; see the log")
            time.sleep(max(0.0, rows / _EVENTS_PER_S - took_s))
    return {
        "cards": cards,
        "rows_per_block": rows,
        "checkpoints": checkpoints,
        "took_s": round(taken.took_s, 2),
        "fork": fork.figures(),
        "while_written": beside.figures(),
        "without": without.figures(),
    }
