"""Models are swapped while events flow and workers are killed: what is sent twice is the same bytes."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import lightgbm as lgb
import numpy as np
import orjson
import pytest
from cluster import Feed, Tail, Worker, fresh_topics, headrace, lines, sources, stream, until

from features.fraud import DEFAULT
from models.package import Draft
from models.registry import Registry
from streams.broker import Broker
from streams.topics import MODEL_EVENTS

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

N = 12_000
STREAM = stream(N)
#: commits come only where partitions move: a worker that is killed has sent much that is not committed
SELDOM = """
commit_interval_ms = 60000
models_poll_ms = 50
[kafka]
consumer.session.timeout.ms = 2000
consumer.heartbeat.interval.ms = 400
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with m@1, the champion, and m@2."""
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        rng = np.random.default_rng(version)
        x = rng.random((300, len(DEFAULT))) * 20
        data = lgb.Dataset(x, (x[:, 0] > 10).astype(float), feature_name=list(DEFAULT.names))
        booster = lgb.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, 3 + version)
        text = booster.model_to_string()
        draft = Draft("m", text, DEFAULT.names, DEFAULT.schema_hash, "2026-01-01T00:00:00+00:00")
        Registry(folder).add(draft, "champion" if version == 1 else None)
    return folder


class Swapping:
    """Makes the one, then the other model champion, again and again."""

    def __init__(self, models: Path) -> None:
        self._registry, self._done = Registry(models), threading.Event()
        self.swaps = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(0.3):
            self.swaps += 1
            self._registry.set_alias("champion", f"m@{1 + self.swaps % 2}")

    def stop(self) -> None:
        self._done.set()
        self._thread.join(20)


def test_workers_are_killed_between_swaps(kafka: Broker, tmp_path: Path, models: Path) -> None:
    log = fresh_topics(kafka.bootstrap)
    options = (kafka.bootstrap, tmp_path, "swapped", "--models", str(models))
    with ExitStack() as stack, Tail(log) as tail:
        workers = [stack.enter_context(Worker(*options, config=SELDOM)) for _ in range(2)]
        for worker in workers:
            worker.wait_ready()
        feed, swapping = Feed(log, STREAM.records, per_s=400), Swapping(models)
        kills = 0
        while kills < 2 or not tail.repeated:  # who has no terminals leaves nothing that is scored again
            tail.read(len(tail.by_source) + N // 20)
            workers.pop(-1 if kills % 2 else 0).kill()
            workers.append(stack.enter_context(Worker(*options, config=SELDOM)))
            workers[-1].wait_ready()
            kills += 1
            assert feed.sent < len(STREAM.records), "nothing was sent again: the test shows nothing"
        feed.hurry(5_000)
        feed.join()
        tail.read(N)
        swapping.stop()
        workers[-1].stop()
    assert set(tail.by_source) == sources(log)
    assert tail.contradicting == 0
    whose = Counter(orjson.loads(out.value or b"")["model"] for out in tail.by_source.values())
    assert set(whose) == {"m@1", "m@2"} and swapping.swaps > 3


def test_a_change_is_told_on_the_topic(kafka: Broker, tmp_path: Path, models: Path) -> None:
    admin = fresh_topics(kafka.bootstrap).admin()
    if MODEL_EVENTS in admin.topics([MODEL_EVENTS]):
        admin.delete_topics([MODEL_EVENTS])
    until(lambda: not admin.topics([MODEL_EVENTS]), "the topic to go")
    admin.close()
    where = ("--bootstrap", kafka.bootstrap)
    told = headrace("models", "promote", "m@2", "--models", str(models), *where)
    assert told.returncode == 0, told.stderr
    out = tmp_path / "events.jsonl"
    consumed = headrace("consume", "--topic", "model-events", "--to", str(out), "--count", "1", *where)
    assert consumed.returncode == 0, consumed.stderr
    [event] = lines(out)
    found = (event["event"], event["model"], event["sha256"])
    assert found == ("promoted", "m@2", Registry(models).fingerprint("m@2"))
