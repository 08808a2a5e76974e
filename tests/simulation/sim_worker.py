"""One life of a worker in the simulation: the real assignment, committer and recovery rule, moved on step by step.

Each of its threads (consumer, transactions, stage, checkpoints, loader) is a function that does a little and returns.
Where a thread takes the lock, waits, or calls the brokers, others may work inside that very call, and it may crash.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sim_member import SimMember
from sim_producer import SimProducer, SimTransactions
from sim_stages import FirstTask, SecondTask, Task
from sim_store import GROUP, SimStore

from streams.assignment import Assignment
from streams.checkpoint import Expected
from streams.checkpoints import Checkpoints, StateOf
from streams.commit import Committer
from streams.errors import FatalError
from streams.log import TP, OutBatch, RecordBatch
from streams.recovery import Assigned

if TYPE_CHECKING:
    from sim_world import World

_INTERVAL_S, _FLUSH_S, _REVOKE_S = 0.5, 1.0, 5.0
_IN_FLIGHT = 3
_KEPT = 3
THREADS = ("consume", "consume", "transact", "work", "work", "work", "load", "checkpoint")


class Crash(BaseException):
    """This worker's threads go no further: not an Exception, which the committer would answer."""


@dataclass(frozen=True)
class Protocol:
    """The parts that a canary replaces."""

    assignment: Callable[[int, int], Assignment] = Assignment
    committer: Callable[..., Committer] = Committer
    second_task: type[SecondTask] = SecondTask
    store: type[SimStore] = SimStore
    #: who has revoked partitions joins once more before others get them, as members of a Kafka group do
    rejoins: bool = True


class _Lock:
    """Stands for an assignment's condition: to take it, or to wait, lets others work."""

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker
        self._held = 0

    def __enter__(self) -> None:
        if not self._held:
            self._worker.point("lock")
        self._held += 1

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self._held -= 1

    def wait_for(self, predicate: Callable[[], bool], timeout: float) -> bool:
        held, self._held = self._held, 0
        world = self._worker.world
        until = world.now + timeout
        while not predicate() and world.now < until:
            self._worker.point("waiting", others=True)
        self._held = held
        return predicate()

    def notify_all(self) -> None:
        pass


class _Thread:
    """Stands for the thread of the transactions: `SimWorker.transact` runs it for a while."""

    def __init__(self, target: Callable[[], None], **_: Any) -> None:
        self.run = target

    def start(self) -> None:
        pass

    def is_alive(self) -> bool:
        return False


def state_of(topic: str) -> StateOf:
    return StateOf(topic, f"id-{topic}", "", "", "")


class SimWorker:
    """From its start to its end, by a crash, an error, or its leaving."""

    def __init__(self, world: World, slot: int, protocol: Protocol) -> None:
        self.world, self.slot, self.protocol = world, slot, protocol
        broker, rng = world.broker, world.rng
        self.dead = False
        #: threads that are inside a call
        self.active: set[str] = set()
        self.assignment = protocol.assignment(rng.randint(1, 5), 10_000)
        self.assignment.cond = _Lock(self)  # type: ignore[assignment]
        self.producer: SimProducer
        transactions: SimTransactions | None = None
        if world.exactly_once:
            self.producer = transactions = SimTransactions(broker, self, f"x-{slot}")
        else:
            self.producer = SimProducer(broker, self)
        self.member = SimMember(broker, self)
        kept_bytes = world.pick((300, 1_000_000))
        self.committer = protocol.committer(
            self.assignment,
            self.member,
            self.producer.flush,
            _INTERVAL_S,
            transactions,
            kept_bytes=kept_bytes,
            clock=lambda: world.now,
            thread=_Thread,
        )
        self.checkpoints = Checkpoints(protocol.store(world.files, GROUP), GROUP, state_of)
        self.tasks: dict[tuple[TP, int], Task] = {}
        self._to_load: deque[Assigned] = deque()
        self._loaded: deque[tuple[TP, int, int]] = deque()
        self._queue: deque[RecordBatch] = deque()
        self._begun: list[RecordBatch] = []
        #: of the batches that were begun, what is not in the producer's queue yet; None before they were processed
        self._unsent: deque[OutBatch] | None = None
        self._sent = 0
        self._drafts: deque[tuple[TP, int, dict[str, Any]]] = deque()

    def point(self, name: str, *, others: bool = False) -> None:
        """A place where this worker may crash, and others may work before it goes on."""
        self.world.point(self, name, others)

    def may_run(self, thread: str) -> bool:
        """Whether the thread has something to do and is not inside a call."""
        if thread in self.active:
            return False
        if thread == "transact":
            return self.world.exactly_once and not self.committer._transactions.empty()
        if thread == "work":
            return bool(self._begun or self._queue)
        if thread == "load":
            return bool(self._to_load)
        return thread == "consume" or bool(self.tasks)

    def run(self, thread: str) -> None:
        """A step of the thread."""
        self.run_as(thread, getattr(self, thread))

    def run_as(self, thread: str, call: Callable[[], None]) -> None:
        """A call on the thread. A crash or a fatal error ends the worker."""
        self.active.add(thread)
        try:
            call()
        except Crash:
            pass
        except FatalError as exc:
            self.world.failed(self, exc)
        finally:
            self.active.discard(thread)

    # -- the consumer thread: what `BlockReader` does --

    def consume(self) -> None:
        while self._loaded:
            tp, epoch, start = self._loaded.popleft()
            if self.assignment.owns(tp, epoch):
                self.member.positions[tp] = start
                self.assignment.loaded(tp, start)
        batches = self.member.poll(self.world.rng.randint(1, 6))
        self._queue.extend(self.assignment.accept(batches))
        for tp, position in list(self.member.positions.items()):
            partition = self.assignment.partitions[tp]
            if partition.loading:
                continue
            self.assignment.read_to_end(tp, self.member.at_end(tp), position)
            if not partition.in_flight and position >= partition.live_from:
                partition.recovering = False
        if self.committer.due_in_s() <= 0:
            self.committer.commit(_FLUSH_S, wait=False)

    def wants(self, tp: TP) -> bool:
        """Whether the member reads on: also some records while the state is loading, to be read again."""
        partition = self.assignment.partitions[tp]
        if partition.loading:
            return self.world.rng.random() < 0.2
        return len(partition.in_flight) < _IN_FLIGHT

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int]:
        self.committer.joined(self.member.membership())
        starts: dict[TP, int] = {}
        for tp in partitions:
            committed = self.world.broker.committed.get(tp)
            starts[tp] = live_from = committed or 0
            self._to_load.append(Assigned(tp, self.assignment.add(tp, live_from), committed, 0))
        return starts

    def on_revoke(self, partitions: list[TP]) -> None:
        self.committer.joined(self.member.membership())
        deadline = self.world.now + _REVOKE_S
        self.drain(partitions, _REVOKE_S)
        self.committer.commit(max(0.1, deadline - self.world.now), only=partitions)
        self.assignment.forget(partitions)

    def drain(self, partitions: list[TP], timeout_s: float) -> None:
        deadline = self.world.now + timeout_s
        while not self.assignment.drain(partitions, 0.05) and self.world.now < deadline:
            if self.committer.full:
                self.committer.commit(_FLUSH_S, wait=False)

    def on_lost(self, partitions: list[TP]) -> None:
        self.world.met["partitions lost"] += bool(partitions)
        self.assignment.forget(partitions)

    def leave(self) -> None:
        """Finishes what it has taken, commits, leaves the group."""
        deadline = self.world.now + _REVOKE_S
        self.drain(list(self.assignment.partitions), _REVOKE_S)
        while not self.committer.commit(_FLUSH_S) and self.world.now < deadline:
            self.point("leaving")
        self.world.broker.remove(self.member.member_id)
        self.committer.close()
        self.world.kill(self, "has left")

    # -- the thread of the transactions --

    def transact(self) -> None:
        """All that waits, then the end of the thread's loop, which begins anew next time."""
        self.committer._transactions.put(None)
        self.committer._thread.run()

    # -- the event loop --

    def work(self) -> None:
        """A step of the run at hand: begin, process, send one output after the other, done."""
        if not self._begun:
            run = self._next_run()
            fresh = self.assignment.begin(run)
            if fresh is not None:
                for _ in run:
                    self._queue.popleft()
                self._begun, self._unsent, self._sent = fresh, None, 0
        elif self._unsent is None:
            self._unsent = deque()
            for batch in self._begun:
                outputs = self.tasks[batch.tp, batch.epoch].process(batch)
                if self.world.exactly_once:
                    self.committer.keep(batch.tp, batch.epoch, outputs)
                else:
                    self._unsent.extend(outputs)
        elif self._unsent:
            out = self._unsent[0]
            self._sent = self.producer.send(out, self._sent)
            if self._sent == len(out):
                self._unsent.popleft()
                self._sent = 0
        else:
            self.assignment.done(self._begun)
            self._begun = []

    def _next_run(self) -> list[RecordBatch]:
        """The next batch; at least once perhaps with the one after it, if that is of another partition."""
        run = [self._queue[0]]
        if not self.world.exactly_once and len(self._queue) > 1 and self.world.rng.random() < 0.5:
            other = self._queue[1]
            if other.tp.topic == run[0].tp.topic and other.tp != run[0].tp:
                run.append(other)
        return run

    def load(self) -> None:
        """Makes the task of an assigned partition, by the newest checkpoint that may be used."""
        assigned = self._to_load.popleft()
        tp = assigned.tp
        task: Task = FirstTask(tp) if tp.topic == "in" else self.protocol.second_task(tp)
        start = self.checkpoints.load(assigned, task)
        self.world.met["state loaded"] += start > 0
        self.world.loaded(tp, start)
        self.tasks[tp, assigned.epoch] = task
        self.point("loaded")
        self._loaded.append((tp, assigned.epoch, start))

    def checkpoint(self) -> None:
        """Between two steps of a batch: takes a state, or publishes one that was taken."""
        if self.world.rng.random() < 0.5:
            if not self._drafts:
                return
            tp, offset, state = self._drafts.popleft()
            self.point("publish")
            self.world.files.put(self._expected(tp), offset, state)
            self.checkpoints.store.prune(self.world.files.series(self._expected(tp)), _KEPT)
        else:
            (tp, _), task = self.world.pick(list(self.tasks.items()))
            self._drafts.append((tp, task.next_offset, task.state()))

    def _expected(self, tp: TP) -> Expected:
        of = state_of(tp.topic)
        return Expected(
            group=GROUP,
            stage=of.stage,
            topic=tp.topic,
            topic_id=of.topic_id,
            partition=tp.partition,
            fingerprint=of.fingerprint,
        )

    def half_written(self) -> None:
        """At a crash: what was being written lies there, as far as it came."""
        for tp, offset, _ in self._drafts:
            self.world.files.put(self._expected(tp), offset, None)
