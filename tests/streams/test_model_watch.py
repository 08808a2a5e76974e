"""Who holds a partition in model-events, where the group and the log are not of one mind, or the log takes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from swaps import add_model, model_events
from workers import until

from features.fraud import DEFAULT
from models.explain_policy import ReasonsPolicy
from models.registry import Registry
from models.slot import ModelSlot
from streams import model_watch
from streams.assignment import Assignment
from streams.errors import FatalError, HeadraceError
from streams.log import TP, DeliveryFailed, OutBatch, RecordBatch, connect
from streams.memory_producer import MemoryProducer
from streams.model_events import partition_key
from streams.model_log import ModelLog
from streams.model_shelf import ModelShelf
from streams.model_watch import ModelWatch
from streams.recovery import Assigned
from streams.topics import BY_TERMINAL, MODEL_EVENTS, topic_infos
from streams.worker import Worker, ensure_topics

PLACE = TP(BY_TERMINAL, 1)


class Watched:
    """A gate as a worker has it; ``owned`` are the assignments that the group says are ours."""

    def __init__(self, models: Path) -> None:
        self.log = connect(f"memory://{uuid.uuid4().hex}")
        ensure_topics(self.log, topic_infos((BY_TERMINAL, MODEL_EVENTS), 2))
        self.registry = Registry(models)
        shelf = ModelShelf(self.registry, DEFAULT.names, DEFAULT.schema_hash, ReasonsPolicy("none"))
        self.slot, self.owned, self.errors = ModelSlot(), {(PLACE, 1)}, list[HeadraceError]()
        self.watch = ModelWatch(shelf, self.slot, BY_TERMINAL, 0.02)
        self.watch.start(self.log, "g", self.errors.append, lambda tp, epoch: (tp, epoch) in self.owned)

    def assigned(self, epoch: int = 1) -> None:
        self.watch.assigned(Assigned(PLACE, epoch, None, 0))

    def admits(self) -> bool:
        return self.watch.admits([RecordBatch(PLACE, [0], [1], [None], [b""], lambda i: [], 1)])

    def kinds(self) -> list[str]:
        return [event["event"] for event in model_events(self.log)]

    def claim(self, holder: str) -> None:
        """Another worker's record."""
        ModelLog.write(self.model_log, claim_of(holder), partition_key("g", PLACE))

    @property
    def model_log(self) -> ModelLog:
        found = self.watch._log
        assert found is not None
        return found


def claim_of(holder: str) -> dict[str, Any]:
    return {"event": "assigned", "group": "g", "topic": PLACE.topic, "partition": 1, "offset": 0, "holder": holder}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        add_model(folder, version, "champion" if version == 1 else None)
    return folder


@pytest.fixture
def watched(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(model_watch, "_CLAIM_AGAIN_S", 0.1)
    found = Watched(models)
    yield found
    found.watch.close()


def test_what_was_lost_while_others_were_loaded_is_not_claimed(watched: Watched) -> None:
    watched.owned.clear()
    watched.assigned()
    assert watched.kinds() == [] and watched.watch._held == {}


class Pipeline:
    """Of one task, which is kept or not."""

    inputs = (BY_TERMINAL,)

    @staticmethod
    def task(tp: TP) -> str:
        return "state"

    @staticmethod
    def is_stateful(topic: str) -> bool:
        return False


def test_the_state_of_a_lost_assignment_is_not_kept(watched: Watched) -> None:
    worker: Any = Worker(watched.log, Pipeline(), "g")  # type: ignore[arg-type]
    assignment = Assignment(10, 1000)
    worker._reader = SimpleNamespace(assignment=assignment)
    assert worker.recover(Assigned(PLACE, 5, 7, 3)) == 3 and worker._recovered == {}
    epoch = assignment.add(PLACE, 7)
    assert worker.recover(Assigned(PLACE, epoch, 7, 3)) == 7 and worker._recovered == {(PLACE, epoch): "state"}
    worker._recovered.clear()
    worker.gate = SimpleNamespace(assigned=lambda assigned: assignment.forget([assigned.tp]))
    worker.recover(Assigned(PLACE, epoch, 7, 3))
    assert worker._recovered == {}


def test_a_gate_that_never_opens_is_no_progress() -> None:
    assignment = Assignment(10, 1000)
    epoch = assignment.add(PLACE, 0)
    assignment.loaded(PLACE, 0)
    [batch] = assignment.accept([RecordBatch(PLACE, [0], [1], [None], [b""], lambda i: [], 1)])
    assignment.admits, assignment.progress_at = (lambda batches: False), 0.0
    assert batch.epoch == epoch and assignment.begin([batch]) is None and assignment.progress_at == 0.0


def test_what_is_lost_while_it_is_claimed_is_left(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    end_of = watched.model_log.end_of

    def lose(tp: TP) -> int:
        watched.owned.clear()
        return end_of(tp)

    monkeypatch.setattr(watched.model_log, "end_of", lose)
    watched.assigned()
    until(lambda: watched.kinds() == ["assigned", "swap", "left"], "the end", 60)
    assert watched.watch._held == {}
    monkeypatch.undo()
    watched.owned.add((PLACE, 2))
    watched.assigned(2)
    assert watched.admits() and watched.slot.cuts(1, 5)[0][1].champion.label == "m@1"


def test_a_claim_that_is_overtaken_in_the_same_poll_does_not_wait_for_ever(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ModelLog.write
    others = iter(["zombie"])

    def overtaken(self: ModelLog, event: Mapping[str, Any], key: bytes, *more: Any) -> bool:
        other = next(others, None) if event["event"] == "assigned" else None
        if other is None:
            return write(self, event, key, *more)
        values = [orjson.dumps(one) for one in (event, claim_of(other))]
        return self._producer is not None and self._producer.send(OutBatch(MODEL_EVENTS, values, [key, key])) == 2

    monkeypatch.setattr(ModelLog, "write", overtaken)
    watched.assigned()
    until(watched.admits, "the second claim", 60)
    assert watched.kinds().count("assigned") == 3 and not watched.errors


def test_a_zombie_s_claim_is_answered_where_the_partition_is_still_ours(watched: Watched) -> None:
    watched.assigned()
    before = watched.watch._held[PLACE].holder
    assert watched.admits()
    watched.claim("zombie")
    until(lambda: watched.watch._held[PLACE].holder != before and watched.admits(), "the second claim", 60)
    assert watched.model_log.schedule(PLACE).holder == watched.watch._held[PLACE].holder
    watched.owned.clear()
    watched.claim("successor")
    until(lambda: not watched.admits(), "it waits", 60)
    written = len(watched.kinds())
    watched.watch._held[PLACE].overtaken_at = 0.0  # long ago
    watched.watch._claim_again()
    watched.watch.given_up(PLACE, 0)
    assert watched.kinds()[written:] == [] and watched.model_log.schedule(PLACE).holder == "successor"


def test_the_schedule_goes_when_no_batch_needs_it(watched: Watched) -> None:
    watched.assigned()
    assert watched.slot.cuts(1, 5)[0][1] is watched.slot._scheduled[1][0][1]
    watched.watch.given_up(TP("transactions", 1), 0)
    watched.watch.forget(PLACE)
    assert 1 in watched.slot._scheduled, "it is still ours"
    watched.watch.given_up(PLACE, None)
    assert 1 in watched.slot._scheduled, "a batch may be within its stage"
    watched.watch.forget(TP("transactions", 1))
    assert 1 in watched.slot._scheduled
    watched.watch.forget(PLACE)
    assert watched.slot._scheduled == {}


def test_a_pending_swap_s_package_is_kept(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.assigned()
    held = watched.watch._held[PLACE]
    kept: list[Any] = []
    monkeypatch.setattr(ModelShelf, "keep", lambda self, refs: kept.append(refs))
    later = model_watch.LineupRef(model_watch.ModelRef("m@9", "9"))
    with watched.watch._lock:
        held.pending = (5, later)
        watched.watch._arrange(PLACE, held, watched.model_log.schedule(PLACE))
        held.pending = None
    assert later.champion in kept[-1] and len(kept[-1]) == 2


def test_a_log_that_takes_nothing_ends_the_worker_by_name(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: MemoryProducer, timeout_s: float) -> int:
        raise DeliveryFailed("model-events/0: not authorised")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryProducer, "flush", refuse)
        until(lambda: bool(watched.errors), "the failure", 60)
        [error] = watched.errors
        assert isinstance(error, FatalError) and error.reason == "model-events" and "not authorised" in str(error)
        watched.watch.close()
    assert watched.model_log._closing.is_set()


def test_a_record_that_is_none_s_is_passed_over(watched: Watched) -> None:
    for bad in ({"partition": "x"}, {"topic": 1}, {"holder": 1}, {"event": "swap"}, {"event": "left", "holder": "b"}):
        ModelLog.write(watched.model_log, {**claim_of("z"), "offset": "?", **bad}, partition_key("g", PLACE))
    watched.assigned()
    assert watched.admits() and not watched.errors
    holder = watched.watch._held[PLACE].holder
    ModelLog.write(watched.model_log, {**claim_of(holder), "event": "swap"}, partition_key("g", PLACE))
    until(lambda: bool(watched.errors), "the failure", 60)
    assert "cannot be read" in str(watched.errors[0])


def test_a_canary_that_nobody_may_end_goes_on(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def refuse(self: ModelShelf, model: str, reason: str) -> bool:
        calls.append(model)
        raise PermissionError("read-only")

    monkeypatch.setattr(ModelShelf, "end_canary", refuse)
    watched.registry.set_canary("m@2", 0.5)

    def failing() -> bool:
        guard = watched.slot.lineup.guard
        if guard is not None:
            guard.count(1000, 1000)
        return len(calls) > 3

    until(failing, "the guard", 60)
    watched.registry.clear("canary")
    assert not watched.errors and sum("cannot end it" in message for message in caplog.messages) == 1
