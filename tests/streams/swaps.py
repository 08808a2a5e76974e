"""Fraud workers in threads, with a registry of small models that differ: for tests of model swaps."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import lightgbm as lgb
import numpy as np
import orjson
from workers import end_offsets, read_all

from features.fraud import DEFAULT
from models.package import Draft
from models.registry import Registry
from streams.config import Settings
from streams.errors import FatalError
from streams.fraud_worker import make_worker
from streams.log import Log, OutBatch, connect
from streams.topics import FRAUD_SCORES, MODEL_EVENTS, TRANSACTIONS
from streams.worker import Worker

NOW = 1_700_000_000_000


@cache
def model_text(version: int) -> str:
    """A model that no other version's scores are taken for."""
    rng = np.random.default_rng(version)
    x = rng.random((300, len(DEFAULT))) * 20
    data = lgb.Dataset(x, (x[:, 0] > 10).astype(float), feature_name=list(DEFAULT.names))
    booster = lgb.train({"objective": "binary", "verbosity": -1, "num_leaves": 4, "num_threads": 1}, data, 2 + version)
    text: str = booster.model_to_string()
    return text


def add_model(folder: Path, version: int, alias: str | None = None) -> str:
    """The next version of package m."""
    draft = Draft("m", model_text(version), DEFAULT.names, DEFAULT.schema_hash, "2026-01-01T00:00:00+00:00")
    return Registry(folder).add(draft, alias).label


class FraudRunning:
    """A worker in a thread of its own; ``commits`` False: it never commits, so all that it has sent is sent again."""

    #: the one that was begun last
    last: ClassVar[FraudRunning]

    def __init__(
        self, url: str, models: Path, group: str, *, commits: bool = True, wait_s: float = 240.0, **settings: Any
    ) -> None:
        FraudRunning.last = self
        self.ready = threading.Event()
        self.code: int | None = None
        self.settings = Settings(
            bootstrap=url,
            models=str(models),
            group=group,
            partitions=2,
            checkpoints="none",
            models_poll_ms=20,
            commit_interval_ms=50 if commits else 10_000_000,
            **settings,
        )
        self.worker: Worker
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.ready.wait(wait_s), "the worker did not get ready"

    def _run(self) -> None:
        async def main() -> int:
            self.worker, self.pipeline = make_worker(self.settings, self.ready.set)
            return await self.worker.run()

        self.code = asyncio.run(main())

    def crash(self) -> None:
        """Ends without a commit, and without a word to others."""
        self.worker.failed(FatalError("crash", "a test wants it. Nothing to do."))
        self.join()

    def stop(self) -> None:
        self.worker.stop()
        self.join()
        assert self.code == 0

    def join(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive(), "the worker did not leave"


class Stream:
    """Transactions into a log, and what comes out."""

    def __init__(self, log: Log) -> None:
        self.log, self.sent = log, 0
        self._producer = log.producer()

    def send(self, n: int) -> None:
        events = [
            {
                "transaction_id": i,
                "event_time": NOW + i,
                "card_id": i % 97,
                "terminal_id": i % 31,
                "amount": float(i % 40),
            }
            for i in range(self.sent, self.sent + n)
        ]
        keys = [str(event["card_id"]).encode() for event in events]
        self._producer.send(OutBatch(TRANSACTIONS, [orjson.dumps(event) for event in events], keys))
        assert self._producer.flush(30) == 0
        self.sent += n

    def scores(self, topic: str = FRAUD_SCORES, count: int | None = None) -> dict[bytes, list[bytes]]:
        """By source the values that were sent, once there are so many, by default one for each transaction."""
        found: dict[bytes, list[bytes]] = {}

        def enough(batches: Sequence[Any]) -> bool:
            found.clear()
            found.update(by_source(batches))
            return len(found) >= (self.sent if count is None else count)

        read_all(self.log, topic, enough, 60)
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The records of model-events of this kind, so far."""
        return [event for event in model_events(self.log) if event["event"] == kind]

    def await_event(self, kind: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Those with these fields, once there are so many."""
        deadline = time.monotonic() + 60
        while True:
            found = [event for event in self.events(kind) if fields.items() <= event.items()]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{kind} {fields} did not come: {model_events(self.log)}"
            time.sleep(0.02)


def model_events(log: Log) -> list[dict[str, Any]]:
    """All records of model-events so far."""
    admin = log.admin()
    partitions = admin.topics([MODEL_EVENTS])[MODEL_EVENTS].partitions
    admin.close()
    total = sum(end_offsets(log, MODEL_EVENTS, partitions).values())
    batches = read_all(log, MODEL_EVENTS, lambda got: sum(map(len, got)) >= total, 60)
    return [orjson.loads(value) for batch in batches for value in batch.values if value is not None]


def by_source(batches: Sequence[Any]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = defaultdict(list)
    for batch in batches:
        for i, value in enumerate(batch.values):
            found[dict(batch.headers(i))["source"]].append(value)
    return found


def fresh(tmp_path: Path, versions: int = 3) -> tuple[str, Stream, Path]:
    """A log in memory, a stream into it, and a registry with m@1, the champion, and more versions."""
    url = f"memory://{uuid.uuid4().hex}"
    models = tmp_path / "models"
    for version in range(1, versions + 1):
        add_model(models, version, "champion" if version == 1 else None)
    return url, Stream(connect(url)), models
