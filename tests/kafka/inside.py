"""A worker of the fraud pipeline in a thread of the test, so that parts of it can be made slow or to fail."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from features.block import Block
from streams.config import load_settings
from streams.encode import ScoreEncoder
from streams.fraud_worker import make_worker


class SlowEncoder(ScoreEncoder):
    """Takes ``score_s`` for each score."""

    def __init__(self, names: tuple[str, ...], score_s: float) -> None:
        super().__init__(names)
        self._score_s = score_s

    def encode(self, block: Block, **columns: Any) -> list[bytes]:
        time.sleep(len(block) * self._score_s)
        return super().encode(block, **columns)


class ThreadWorker:
    """Runs from its making on, ready; watches what it holds. ``stop`` it."""

    def __init__(self, bootstrap: str, group: str, *, score_s: float = 0.0, **settings: Any) -> None:
        wanted = {"bootstrap": bootstrap, "group": group, "order": "event_time", "checkpoints": "none"}
        self.settings = load_settings(environment={}, overrides=wanted | {"commit_interval_ms": 100} | settings)
        self._ready = threading.Event()
        self.worker, self.pipeline = make_worker(self.settings, self._ready.set)
        self.pipeline.encoder = SlowEncoder(self.pipeline.settings.features.names, score_s)
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(120)
        #: the most of each stage's lag, and of what was read and not done
        self.records: dict[str, float] = {}
        self.in_flight = 0
        threading.Thread(target=self._look, daemon=True).start()

    def _run(self) -> None:
        self.code = asyncio.run(self.worker.run())

    def _look(self) -> None:
        reader = self.worker.reader
        assert reader is not None
        while self._thread.is_alive():
            self.in_flight = max(self.in_flight, reader.assignment.in_flight_records())
            for stage, lag in self.worker.lag.items():
                self.records[stage] = max(self.records.get(stage, 0), lag["records"])
            time.sleep(0.02)

    def idle(self) -> bool:
        return all(lag == {"records": 0, "seconds": 0.0} for lag in self.worker.lag.values())

    def counted(self, *names: str) -> int:
        return sum(self.pipeline.meters.counts[name] for name in names)

    def stop(self) -> dict[str, int]:
        self.worker.stop()
        self._thread.join(60)
        assert self.code == 0
        return self.pipeline.figures()
