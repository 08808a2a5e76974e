"""A model swap takes effect at an offset that is in the log first: what is sent again has the bytes that were sent."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest
from swaps import FraudRunning, Stream, fresh
from workers import until

from models.lineup import CanaryGuard
from models.registry import Registry
from streams.errors import FatalError
from streams.topics import SHADOW_SCORES


def models_of(stream: Stream) -> list[str]:
    """By transaction, whose its score is; each must have the same bytes however often it was sent."""
    found = stream.scores()
    differing = {source: values for source, values in found.items() if len(set(values)) > 1}
    assert not differing, differing
    records = sorted((orjson.loads(values[0]) for values in found.values()), key=lambda r: r["transaction_id"])
    return [record["model"] for record in records]


def test_after_a_crash_the_swap_is_where_it_was(tmp_path: Path) -> None:
    url, stream, models = fresh(tmp_path)
    first = FraudRunning(url, models, "g", commits=False)
    stream.send(300)
    assert set(models_of(stream)) == {"m@1"}
    Registry(models).set_alias("champion", "m@2")
    stream.await_event("swap", 2, model="m@2")
    stream.send(300)
    assert models_of(stream)[300:] == ["m@2"] * 300
    first.crash()
    Registry(models).set_alias("champion", "m@3")  # while nobody runs
    stream.send(100)
    second = FraudRunning(url, models, "g")
    stream.send(100)
    whose = models_of(stream)
    second.stop()
    assert whose[:600] == ["m@1"] * 300 + ["m@2"] * 300 and whose[700:] == ["m@3"] * 100
    sent = stream.scores()
    assert sum(len(values) > 1 for values in sent.values()) >= 600, "nothing was sent again: the test shows nothing"


@pytest.mark.parametrize("seed", range(2))
def test_any_order_of_swaps_and_crashes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    url, stream, models = fresh(tmp_path)
    worker = FraudRunning(url, models, "g", commits=False)
    for _ in range(10):
        step = rng.integers(4)
        if step <= 1:
            stream.send(int(rng.integers(1, 120)))
        elif step == 2:
            Registry(models).set_alias("champion", f"m@{rng.integers(1, 4)}")
        else:
            worker.crash()
            worker = FraudRunning(url, models, "g", commits=bool(rng.integers(2)))
    worker.crash()
    worker = FraudRunning(url, models, "g")
    stream.send(50)
    models_of(stream)
    worker.stop()


def test_what_the_registry_says_is_followed_and_what_is_broken_is_not(tmp_path: Path) -> None:
    url, stream, models = fresh(tmp_path)
    registry = Registry(models)
    worker = FraudRunning(url, models, "g", commits=False)
    stream.send(20)
    assert set(models_of(stream)) == {"m@1"}
    with (models / "m" / "2" / "model.txt").open("a") as file:
        file.write(" ")
    registry.set_alias("champion", "m@2")
    [refused] = stream.await_event("refused", model="m@2")
    assert "sha256" in refused["reason"]
    registry.set_alias("champion", "m@1")
    registry.set_alias("shadow", "m@3")
    until(lambda: sum(event["shadow"] is not None for event in stream.events("swap")) >= 2, "the shadow", 60)
    before = stream.sent
    stream.send(60)
    assert set(models_of(stream)) == {"m@1"}
    shadows = stream.scores(SHADOW_SCORES, 60)
    assert {orjson.loads(v)["model"] for values in shadows.values() for v in values} == {"m@3"}
    assert min(orjson.loads(v)["transaction_id"] for values in shadows.values() for v in values) == before
    registry.clear("shadow")
    registry.set_canary("m@3", 0.5)
    until(lambda: sum(event["canary"] is not None for event in stream.events("swap")) >= 2, "the canary", 60)
    before = stream.sent
    stream.send(100)
    assert set(models_of(stream)[before:]) == {"m@1", "m@3"}
    guard = worker.pipeline.slot.lineup.guard
    assert isinstance(guard, CanaryGuard) and guard.rows > 0 and guard.failed == 0
    guard.count(1000, 1000)  # as if they had failed
    [ended] = stream.await_event("canary-rolled-back", model="m@3")
    assert "rows failed" in ended["reason"] and registry.canary is None
    assert registry.history()[-1].reason == ended["reason"]
    until(lambda: {e["partition"]: e["canary"] for e in stream.events("swap")} == {0: None, 1: None}, "its end", 60)
    before = stream.sent
    stream.send(50)
    assert set(models_of(stream)[before:]) == {"m@1"}
    worker.crash()
    shutil.rmtree(models / "m" / "3")  # it has scored what is not committed
    with pytest.raises(AssertionError, match="did not get ready"):
        FraudRunning(url, models, "g", wait_s=5.0)
    until(lambda: isinstance(FraudRunning.last.worker.error, FatalError), "the refusal", 60)
    assert "m@3" in str(FraudRunning.last.worker.error) and "Put the package back" in str(
        FraudRunning.last.worker.error
    )


def test_one_that_leaves_hands_over_at_once(tmp_path: Path) -> None:
    url, stream, models = fresh(tmp_path, 2)
    first = FraudRunning(url, models, "g")
    stream.send(40)
    models_of(stream)
    first.stop()
    assert len(stream.events("left")) == 2
    Registry(models).set_alias("champion", "m@2")
    stream.send(40)  # while nobody runs: for the new champion, as nothing was sent that is not committed
    second = FraudRunning(url, models, "g")
    assert models_of(stream) == ["m@1"] * 40 + ["m@2"] * 40
    second.stop()
    assert all(len(values) == 1 for values in stream.scores().values())


def test_workers_that_share_the_partitions_swap_alike(tmp_path: Path) -> None:
    url, stream, models = fresh(tmp_path, 2)
    workers = [FraudRunning(url, models, "g") for _ in range(2)]
    stream.send(40)
    models_of(stream)
    Registry(models).set_alias("champion", "m@2")
    swaps = stream.await_event("swap", 2, model="m@2")
    stream.send(40)
    assert models_of(stream) == ["m@1"] * 40 + ["m@2"] * 40
    assert {event["partition"] for event in swaps} == {0, 1}
    for worker in workers:
        worker.stop()
