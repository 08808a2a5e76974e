"""The simulated world: its clock, its one generator, the scheduler, the faults, and what must hold.

A schedule is a number: all that happens follows from it. First there are faults; then they stop, and the run must end
with every record's effect there once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

from sim_broker import COMMITTED, SimBroker
from sim_stages import PARTITIONS, TOPICS, FirstTask, SecondTask, rows_of
from sim_store import SimFiles
from sim_worker import THREADS, Crash, Protocol, SimWorker

from streams.errors import FatalError
from streams.log import TP

T = TypeVar("T")

PARTITIONS_OF = {topic: [TP(topic, p) for p in range(PARTITIONS)] for topic in TOPICS}
_WORKERS = 2
#: also those that were replaced and do not know
_LIVES_MAX = 4
_STEP_S = 0.05
#: calls inside calls
_DEPTH_MAX = 3
_HEALTHY_STEPS_MAX = 5_000
#: how often a fault comes at the most where it may; each schedule draws its own
_RATES = {
    # at a place, or to a request
    "crash": 0.1,
    "yield": 0.5,
    "abort": 0.1,
    "late": 0.1,
    # when a fault may come from outside
    "replace": 0.02,
    "outage": 0.4,
    "expel": 0.6,
    "leave": 0.4,
    "refuse": 0.1,
    "rebalance": 0.4,
}
#: places where every step comes by, relative to those of the protocol
_CRASHES = {"lock": 0.1, "poll": 0.1, "waiting": 0.1}
#: why a worker may end by itself
_REASONS = {"delivery-failed", "transaction-fenced", "transaction-stalled", "transactions-abort"}


class Violation(BaseException):
    """The protocol broke a promise, by name. Not an Exception, which the committer would answer."""

    def __init__(self, promise: str, what: str) -> None:
        super().__init__(f"{promise}: {what}")
        self.promise = promise


class World:
    """One schedule. ``watch`` False: only the ends are looked at, not each step."""

    def __init__(
        self, seed: int, *, exactly_once: bool, protocol: Protocol | None = None, watch: bool = True, keep: bool = False
    ) -> None:
        self.rng = random.Random(seed)
        self.exactly_once = exactly_once
        self.now = 0.0
        #: what has happened, for who reads a schedule that failed
        self.events: list[str] = []
        #: places where workers have crashed
        self.crashes: Counter[str] = Counter()
        #: what else has happened that the protocol must stand
        self.met: Counter[str] = Counter()
        self._keep, self._watch = keep, watch
        self._protocol = protocol or Protocol()
        # a few faults in each schedule, each more or less often: others stay away, so that runs get far
        self._rates = {name: rate * self.rng.random() * self.pick((0, 1, 1)) for name, rate in _RATES.items()}
        #: how quickly records arrive
        self._deliveries = self.pick((0.1, 0.5, 1.0))
        self._ids = 0
        self._depth = 0
        self._faults = True
        self.files = SimFiles()
        self.broker = SimBroker(self, [tp for tps in PARTITIONS_OF.values() for tp in tps])
        #: how often readers have seen each row, and the outputs, by partition and offset of their input record
        self.rows: dict[tuple[int, int], int] = {}
        self.outputs: dict[tuple[int, int], list[bytes]] = {}
        self.inputs: dict[TP, list[bytes]] = {tp: [] for tp in PARTITIONS_OF["in"]}
        self._to_come = [
            (self.pick(PARTITIONS_OF["in"]), b"%d,k%d" % (self.rng.randrange(3), self.rng.randrange(4)))
            for _ in range(self.rng.randint(4, 24))
        ]
        self.workers: list[SimWorker] = []
        #: crashed, and the group does not know yet
        self._gone: list[SimWorker] = []

    def new_id(self) -> int:
        self._ids += 1
        return self._ids

    def pick(self, among: Sequence[T]) -> T:
        """One of these, quicker than `random.choice`."""
        return among[int(self.rng.random() * len(among))]

    def chance(self, name: str) -> bool:
        """Whether this fault comes here and now."""
        return self._faults and self.rng.random() < self._rates[name]

    def note(self, text: str) -> None:
        if self._keep:
            self.events.append(f"{self.now:7.2f} {'  ' * self._depth}{text}")

    # -- the scheduler --

    def run(self) -> None:
        """The whole schedule. Violation where a promise is broken."""
        for _ in range(self.rng.randint(100, 400)):
            self.step()
        self.note("no more faults")
        self._faults = False
        self.broker.down_until = 0.0
        for _ in range(_HEALTHY_STEPS_MAX):
            if not self._to_come and self._finished():
                break
            self.step()
        else:
            raise Violation("liveness", f"after {_HEALTHY_STEPS_MAX} steps without faults {self._left()}")
        self._check_end()

    def step(self) -> None:
        """Somebody does something: the brokers, a worker, a fault."""
        self.now += _STEP_S
        choice = self.rng.random()
        if choice < 0.25:
            self._broker_step()
        elif choice < 0.3:
            self._fault_step()
        elif self.workers:
            worker, thread = self.pick(self.workers), self.pick(THREADS)
            if worker.may_run(thread):
                if self._keep:
                    self.note(f"worker {self._name(worker)}: {thread}")
                worker.run(thread)

    def point(self, worker: SimWorker, name: str, others: bool) -> None:
        """The worker may crash here, and others may work before it goes on."""
        if worker.dead:
            raise Crash
        self.now += 0.001
        if self._faults and self.rng.random() < self._rates["crash"] * _CRASHES.get(name, 1):
            self.crashes[name] += 1
            self.kill(worker, f"crashes at {name}")
            raise Crash
        if others:
            self.now += 0.01
        if self._depth < _DEPTH_MAX and (others or self.rng.random() < self._rates["yield"]):
            self._depth += 1
            for _ in range(self.pick((1, 1, 2, 3, 8))):
                self.step()
            self._depth -= 1
            if worker.dead:
                raise Crash

    def _broker_step(self) -> None:
        broker = self.broker
        if self._to_come and self.rng.random() < 0.5:
            tp, value = self._to_come.pop()
            self.inputs[tp].append(value)
            broker.receive(tp, value)
        broker.expire_transactions()
        sending = [producer for producer in broker.producers if producer.pending]
        if sending and (not self._faults or self.rng.random() < self._deliveries):
            broker.deliver(self.pick(sending))
        asking = [worker.member for worker in self.workers + self._gone if worker.member.requests]
        if asking and not broker.down:
            self.pick(asking).serve()

    def _fault_step(self) -> None:
        """Starts what is missing, and breaks what is there."""
        slots = {worker.slot for worker in self.workers}
        for slot in range(_WORKERS):
            if (slot not in slots and self.rng.random() < 0.5) or (
                slot in slots and len(self.workers) < _LIVES_MAX and self.chance("replace")
            ):
                self._start(slot)
        if self._gone and self.rng.random() < 0.3:
            self.broker.remove(self._gone.pop(0).member.member_id)
        if not self.workers:
            return
        worker = self.pick(self.workers)
        for name, fault in self._FAULTS.items():
            if self.chance(name):
                self.note(f"fault: {name} (worker {self._name(worker)})")
                fault(self, worker)
                break

    def _start(self, slot: int) -> None:
        worker = SimWorker(self, slot, self._protocol)
        self.workers.append(worker)
        self.note(f"worker {self._name(worker)} starts")

    def _expel(self, worker: SimWorker) -> None:
        self.broker.remove(worker.member.member_id)

    def _outage(self, worker: SimWorker) -> None:
        self.broker.down_until = self.now + self.pick((0.2, 1.0, 5.0))

    def _leave(self, worker: SimWorker) -> None:
        if "consume" not in worker.active:
            worker.run_as("consume", worker.leave)

    def _refuse(self, worker: SimWorker) -> None:
        if not self.exactly_once:
            worker.producer.fail()

    def _rebalance(self, worker: SimWorker) -> None:
        self.broker.rebalance()

    _FAULTS: ClassVar[dict[str, Callable[[World, SimWorker], None]]] = {
        "expel": _expel,
        "outage": _outage,
        "leave": _leave,
        "refuse": _refuse,
        "rebalance": _rebalance,
    }

    def kill(self, worker: SimWorker, why: str) -> None:
        """The worker is no more. The group learns of it later; what it had sent may still arrive."""
        if worker.dead:
            return
        self.note(f"worker {self._name(worker)} ends: {why}")
        worker.dead = True
        worker.producer.lose()
        if self.rng.random() < 0.5:
            worker.half_written()
        if worker in self.workers:
            self.workers.remove(worker)
            self._gone.append(worker)

    def failed(self, worker: SimWorker, error: FatalError) -> None:
        """The worker ends by itself, for a reason that there may be."""
        if error.reason not in _REASONS:
            raise Violation("reason", str(error))
        self.met[error.reason] += 1
        self.kill(worker, str(error))

    @staticmethod
    def _name(worker: SimWorker) -> str:
        return f"{worker.slot}.{worker.member.member_id}"

    # -- promises, at each step --

    def seen(self, tp: TP, value: bytes) -> None:
        """Readers of committed records see this one from now on."""
        if tp.topic == "shuffle":
            for row in rows_of(value):
                place = (row.partition, row.offset)
                self.rows[place] = self.rows.get(place, 0) + 1
                self.met["row again"] += self.rows[place] > 1
        elif tp.topic == "out":
            partition, offset, _ = value.split(b",", 2)
            known = self.outputs.setdefault((int(partition), int(offset)), [])
            self.met["output again"] += bool(known)
            known.append(value)
            if known[0] != value:
                raise Violation("identical", f"one source, two outputs: {known[0]!r}, {value!r}")
            if self.exactly_once and len(known) > 1:
                raise Violation("once", f"{value!r} is seen {len(known)} times")

    def committing(self, tp: TP, before: int, offset: int) -> None:
        """The group's offset moves; all that lies before it must have been sent and seen."""
        self.note(f"committed {tp.topic}/{tp.partition}: {before} -> {offset}")
        if not self._watch:
            return
        if offset < before:
            raise Violation("backwards", f"{tp}: committed {before}, then {offset}")
        for at in range(before, offset):
            value, transaction = self.broker.logs[tp][at]
            if value is None or (transaction is not None and transaction.state != COMMITTED):
                continue
            sources = [(tp.partition, at)] if tp.topic == "in" else [row[:2] for row in rows_of(value)]
            sent = self.rows if tp.topic == "in" else self.outputs
            missing = [source for source in sources if source not in sent]
            if missing:
                raise Violation("flushed", f"{tp} is committed up to {offset}, nobody has seen what {missing} gave")

    def loaded(self, tp: TP, start: int) -> None:
        """A state was found for an assigned partition, of this offset."""
        if self._watch and start > self.broker.committed.get(tp, 0):
            raise Violation("checkpoint", f"{tp}: state of {start}, committed {self.broker.committed.get(tp, 0)}")

    # -- promises, at the end --

    def _left(self) -> str:
        ends = {tp: len(self.broker.logs[tp]) for tp in self.broker.inputs}
        left = {f"{tp.topic}/{tp.partition}": (self.broker.committed.get(tp, 0), end) for tp, end in ends.items()}
        return f"committed and end: {left}; workers: {[self._name(worker) for worker in self.workers]}"

    def _finished(self) -> bool:
        broker = self.broker
        return (
            len(self.workers) >= _WORKERS
            and not self._gone
            and not any(producer.pending for producer in broker.producers)
            and not broker.open_transactions()
            and all(broker.committed.get(tp, 0) == len(broker.logs[tp]) for tp in broker.inputs)
            and all(tp in self._owned() for tp in broker.inputs)
        )

    def _owned(self) -> dict[TP, FirstTask | SecondTask]:
        """The tasks of the partitions' owners, whose state is whole."""
        owned = {}
        for worker in self.workers:
            for tp, partition in worker.assignment.partitions.items():
                member = self.broker.members.get(self.broker.owner.get(tp, 0))
                if member is worker.member and not partition.recovering and not partition.loading:
                    owned[tp] = worker.tasks[tp, partition.epoch]
        return owned

    def _check_end(self) -> None:
        owned = self._owned()
        sources = {(tp.partition, at) for tp, values in self.inputs.items() for at in range(len(values))}
        lacking = sources - set(self.outputs)
        if lacking:
            raise Violation("lost", f"nothing came out for {sorted(lacking)}")
        if self.exactly_once and set(self.rows.values()) - {1}:
            raise Violation("once", f"rows more than once: {self.rows}")
        second_keys: Counter[bytes] = Counter()
        for tp, values in self.inputs.items():
            counts: Counter[bytes] = Counter()
            for at, value in enumerate(values):
                key, key2 = value.split(b",")
                counts[key] += 1
                second_keys[key2] += 1
                shown = self.outputs[tp.partition, at][0].split(b",")
                if shown[2] != key2 or int(shown[3]) != counts[key]:
                    raise Violation("effect", f"{tp} offset {at}: {shown}, {counts[key]} expected")
            if owned[tp].counts != counts:
                raise Violation("effect", f"{tp}: state {owned[tp].counts}, {counts} expected")
        found: Counter[bytes] = Counter()
        for tp in PARTITIONS_OF["shuffle"]:
            found += owned[tp].counts
        if found != second_keys:
            raise Violation("effect", f"second stage: state {found}, {second_keys} expected")
        for key2, n in second_keys.items():
            numbers = sorted(int(v[0].split(b",")[4]) for v in self.outputs.values() if v[0].split(b",")[2] == key2)
            if numbers != list(range(1, n + 1)):
                raise Violation("effect", f"second stage, {key2!r}: numbers {numbers} of 1..{n}")
