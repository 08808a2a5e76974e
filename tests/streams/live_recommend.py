"""Workers of the recommend pipeline in threads, on a log in this process."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Sequence
from typing import Any

import orjson
from fraud_logs import Record
from workers import read_all

from streams.config import Settings, load_settings
from streams.log import Log, OutBatch, RecordBatch, connect
from streams.recommend_worker import make_worker
from streams.topics import INTERACTIONS, RECOMMENDATIONS, all_topics


class Running:
    """A worker in a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self.ready = threading.Event()
        self.worker, self.pipeline = make_worker(settings, self.ready.set)
        self.codes: list[int] = []
        self._thread = threading.Thread(target=lambda: self.codes.append(asyncio.run(self.worker.run())), daemon=True)
        self._thread.start()

    def wait_ready(self) -> Running:
        assert self.ready.wait(60), self.worker.error
        return self

    def stop(self) -> dict[str, int]:
        self.worker.stop()
        self._thread.join(30)
        assert self.codes == [0], self.worker.error
        return self.pipeline.figures()


def shop(**overrides: Any) -> tuple[Settings, Log]:
    """Settings for a log of its own, whose topics are there."""
    name = f"memory://{uuid.uuid4().hex}"
    settings = {"bootstrap": name, "group": "shop", "commit_interval_ms": 50, "publish_ms": 5_000, **overrides}
    log = connect(name)
    log.admin().create_topics(all_topics(2))
    return load_settings(None, {}, settings), log


def send(log: Log, records: Sequence[Record]) -> None:
    producer = log.producer()
    assert producer.send(OutBatch(INTERACTIONS, [r.value for r in records], [r.key for r in records])) == len(records)
    assert producer.flush(20) == 0
    producer.close()


def values_of(batches: list[RecordBatch]) -> list[dict[str, Any]]:
    return [orjson.loads(value or b"") for batch in batches for value in batch.values]


def lists(log: Log, n: int) -> list[dict[str, Any]]:
    """The first ``n`` lists or more, once they are there."""
    return values_of(read_all(log, RECOMMENDATIONS, lambda got: sum(map(len, got)) >= n))
