"""The registry's models in a worker: watched, loaded off the hot path, and swapped at offsets.

The protocol is in `streams.model_events`; `ModelWatch` takes its steps.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.errors import ModelError
from models.slot import ModelSlot
from streams.errors import FatalError, HeadraceError
from streams.log import TP, Log, RecordBatch
from streams.model_events import LineupRef, ModelRef, Schedule, partition_key, swap_event
from streams.model_log import ModelLog
from streams.model_shelf import ModelShelf
from streams.recovery import Assigned

__all__ = ["ModelWatch"]

logger = logging.getLogger("headrace.models")

#: how long a thread that loads a model may keep the stages from going on, each time
_SWITCH_S = 0.0005
#: a swap that is not read back for so long is worth a line in the log
_PENDING_SAID_S = 10.0
#: a worker that leaves waits so long for a model that is being loaded
_CLOSE_S = 5.0
#: a worker that gives a partition up waits no longer to say so
_LEFT_S = 1.0
#: where another worker has claimed what is ours, it or we hear soon from the group who is wrong
_CLAIM_AGAIN_S = 2.0

_GIVING_WAY = threading.Lock()


@dataclass(slots=True)
class _Held:
    """A partition of ours."""

    #: number of the assignment
    epoch: int
    #: the last batch that has begun: its first offset, and its end
    begun: int
    frontier: int
    holder: str = ""
    floor: int = 0
    #: no batch may begin: steps 2 to 4 have not ended, or are to be taken again
    settling: bool = True
    #: since when another is the holder
    overtaken_at: float | None = None
    #: the swap that is not read back, and since when
    pending: tuple[int, LineupRef] | None = None
    pending_since: float = 0.0
    decided: LineupRef | None = None


class ModelWatch:
    """A `streams.gate.Gate` for the partitions of ``topic``, whose rows ``slot`` scores."""

    def __init__(self, shelf: ModelShelf, slot: ModelSlot, topic: str, poll_s: float = 1.0) -> None:
        self._shelf, self._slot, self._topic, self._poll_s = shelf, slot, topic, poll_s
        self._lock = threading.Lock()
        self._held: dict[TP, _Held] = {}
        self._group = ""
        self._log: ModelLog | None = None
        self._failed: Callable[[HeadraceError], None] = lambda error: None
        self._owns: Callable[[TP, int], bool] = lambda tp, epoch: True
        #: what the log was told last of a roll-back that cannot be done
        self._said = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-models", daemon=True)
        #: the registry's lineup, as far as it could be loaded
        self._wanted, lineup = shelf.first()
        slot.install(lineup)

    # -- Gate --

    def start(
        self, log: Log, group: str, failed: Callable[[HeadraceError], None], owns: Callable[[TP, int], bool]
    ) -> None:
        self._group, self._failed, self._owns = group, failed, owns
        self._log = ModelLog(log, group, changed=self._on_read, failed=failed)
        self._log.start()
        self._thread.start()

    def assigned(self, assigned: Assigned) -> None:
        """Steps 2 to 4."""
        tp = assigned.tp
        if tp.topic != self._topic:
            return
        live_from = assigned.earliest if assigned.committed is None else max(assigned.committed, assigned.earliest)
        held = _Held(assigned.epoch, live_from, live_from)
        with self._lock:
            before = self._held.get(tp)
            if before is not None and before.epoch > held.epoch:
                return
            self._held[tp] = held
        # after it is held: lost from now on, it is given up
        if self._wants(tp, held):
            self._take(tp, held)
        else:
            self._drop(tp, held)

    def admits(self, batches: Sequence[RecordBatch]) -> bool:
        """Steps 5 and 6."""
        if not batches or batches[0].tp.topic != self._topic:
            return True
        with self._lock:
            for batch in batches:
                held = self._held.get(batch.tp)
                if held is None:
                    continue
                if held.settling or (held.pending is not None and batch.next_offset > held.pending[0]):
                    return False
            for batch in batches:
                held = self._held.get(batch.tp)
                if held is not None:
                    held.begun = max(held.begun, batch.offsets[0])
                    held.frontier = max(held.frontier, batch.next_offset)
        return True

    def given_up(self, partition: TP, settled: int | None) -> None:
        """Step 8."""
        with self._lock:
            held = self._held.pop(partition, None)
        if held is not None and not held.settling and settled is not None:
            self._leave(partition, held.holder, max(settled, held.floor))

    def forget(self, partition: TP) -> None:
        if partition.topic == self._topic:
            with self._lock:
                if partition not in self._held:  # else it has come back, and has a schedule or will have one
                    self._slot.forget(partition.partition)

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        if self._log is not None:
            self._log.close()

    # -- the watching thread --

    def _run(self) -> None:
        try:
            while not self._closing.wait(self._poll_s):
                self._claim_again()
                self._guard()
                self._follow_registry()
                self._decide()
        except HeadraceError as exc:
            self._failed(exc)
        except Exception as exc:
            logger.exception("watching the models failed")
            self._failed(FatalError("models", f"{type(exc).__name__}: {exc}. See the log above."))

    def _guard(self) -> None:
        """A canary that has left its bounds ends, for all workers: by the registry."""
        guard, canary = self._slot.lineup.guard, self._wanted.canary
        reason = None if guard is None or canary is None else guard.verdict()
        if reason is None or canary is None:
            self._said = ""
            return
        try:
            ended = self._shelf.end_canary(canary.model, reason)
        except (ModelError, OSError) as exc:  # a registry that may only be read: somebody else has to
            if self._said != str(exc):
                self._said = str(exc)
                logger.error(
                    "canary %s must end (%s), and this worker cannot end it: %s. End it with `headrace models`.",
                    canary.model,
                    reason,
                    exc,
                )
            return
        if ended:
            logger.error("canary %s rolled back: %s", canary.model, reason)
            self._tell("canary-rolled-back", canary, {"reason": reason})

    def _follow_registry(self) -> None:
        """Step 5: what the registry wants now is loaded, or refused and nothing changes."""
        with _others_first():
            news = self._shelf.news(self._wanted)
        for model, reason in news.refused:
            logger.error("model %s is refused, nothing changes: %s", model, reason)
            self._tell("refused", ModelRef(model, ""), {"reason": reason})
        if news.lineup is None:
            return
        for ref in news.refs.models:
            if ref not in self._wanted.models:
                self._tell("loaded", ref, {"predictor": self._shelf.predictor(ref)})
        with self._lock:
            self._wanted = news.refs
        self._slot.install(news.lineup)

    def _decide(self) -> None:
        """Step 5, and 6 up to the record."""
        now = time.monotonic()
        decided: list[tuple[TP, str, int]] = []
        with self._lock:
            wanted = self._wanted
            for tp, held in self._held.items():
                if held.pending is not None:
                    if now - held.pending_since > _PENDING_SAID_S:
                        held.pending_since = now
                        logger.warning("%s/%d waits for its swap to be in the log: is the broker up?", *tp)
                elif not held.settling and held.decided != wanted:
                    offset = max(held.frontier, held.floor)
                    held.pending, held.pending_since = (offset, wanted), now
                    decided.append((tp, held.holder, offset))
        assert self._log is not None
        for tp, holder, offset in decided:
            self._log.write(swap_event(self._group, tp, holder, offset, wanted), partition_key(self._group, tp))

    def _claim_again(self) -> None:
        """What others have claimed and the group still says is ours."""
        now = time.monotonic()
        with self._lock:
            late = [
                (tp, held)
                for tp, held in self._held.items()
                if held.overtaken_at is not None and now - held.overtaken_at > _CLAIM_AGAIN_S
            ]
        for tp, held in late:
            if self._wants(tp, held):
                logger.warning("%s/%d was claimed by another worker, and is ours: claimed again", *tp)
                self._take(tp, held)

    # -- the thread that reads model-events --

    def _on_read(self, tp: TP) -> None:
        """Step 6: what we have written has come back, or what makes it void."""
        assert self._log is not None
        schedule = self._log.schedule(tp)
        with self._lock:
            held = self._held.get(tp)
            if held is None or held.settling:
                return
            if schedule.holder != held.holder:
                _overtaken(held)
            elif held.pending is not None and _settled(schedule, held.holder, held.pending):
                at, held.decided = held.pending
                held.pending = None
                self._arrange(tp, held, schedule)
                champion = held.decided.champion
                logger.info("%s/%d: %s from offset %d on", *tp, None if champion is None else champion.model, at)

    def _arrange(self, tp: TP, held: _Held, schedule: Schedule) -> None:
        """Gives the slot what is in force from the last begun batch on, which may not be scored yet. Locked."""
        swaps = schedule.since(held.begun)
        self._slot.schedule(tp.partition, [(at, self._shelf.lineup(refs)) for at, refs in swaps])
        needed = [refs for other in self._held for _, refs in self._swaps_of(other)]
        self._shelf.keep({ref for refs in needed for ref in refs.models})

    def _swaps_of(self, tp: TP) -> Sequence[tuple[int, LineupRef]]:
        """What may still score: the swaps that were read, and the one that was not."""
        assert self._log is not None
        held = self._held[tp]
        return [*self._log.schedule(tp).since(held.begun), *([] if held.pending is None else [held.pending])]

    # -- the thread of an assignment, and the watching one --

    def _wants(self, tp: TP, held: _Held) -> bool:
        """Whether the partition is still ours. Not to be asked under our lock: `admits` comes the other way."""
        return not self._closing.is_set() and self._owns(tp, held.epoch)

    def _take(self, tp: TP, held: _Held) -> None:
        """Steps 2 to 4, as far as the partition stays ours."""
        assert self._log is not None
        holder, wants = uuid.uuid4().hex, partial(self._wants, tp, held)
        with self._lock:
            held.holder, held.settling, held.overtaken_at, held.pending = holder, True, None, None
            live_from = held.frontier
        event = self._event("assigned", tp, holder, live_from)
        claimed = self._log.written(tp, event, lambda schedule: schedule.holder == holder, wants)
        if claimed is None:
            # whatever holders before us have sent is below the end; those after us find it out for themselves
            self._drop(tp, held)
            return
        floor = claimed.floor(live_from, self._log.end_of(tp))
        with self._lock:
            wanted = self._wanted
            held.floor, held.pending, held.pending_since = floor, (floor, wanted), time.monotonic()
        schedule: Schedule | None = claimed
        if claimed.at(floor) != wanted:
            event = swap_event(self._group, tp, holder, floor, wanted)
            schedule = self._log.written(tp, event, lambda schedule: _settled(schedule, holder, (floor, wanted)), wants)
        if schedule is not None and schedule.holder == holder:
            self._load_for(tp, schedule, held.begun)
        with self._lock:
            mine = self._held.get(tp) is held
            now = self._log.schedule(tp)
            if mine and now.holder != holder:
                _overtaken(held)
            elif mine and schedule is not None:
                held.decided, held.settling, held.pending = wanted, False, None
                self._arrange(tp, held, now)
        if schedule is None or not mine:
            self._drop(tp, held)
            self._leave(tp, holder, floor)

    def _drop(self, tp: TP, held: _Held) -> None:
        with self._lock:
            if self._held.get(tp) is held:
                del self._held[tp]

    # -- any thread --

    def _load_for(self, tp: TP, schedule: Schedule, live_from: int) -> None:
        """Step 4: the models that the schedule names from the committed offset on."""
        for at, refs in schedule.since(live_from):
            for ref in refs.models:
                try:
                    with _others_first():
                        self._shelf.load(ref)
                except ModelError as exc:
                    raise FatalError(
                        "model-missing",
                        f"{tp.topic}/{tp.partition} has scores by {ref.model} from offset {at} on, of which some may "
                        f"have to be sent again as they were: {exc}. Put the package back, or begin anew with another "
                        "--group.",
                    ) from exc

    def _event(self, event: str, tp: TP, holder: str, offset: int) -> dict[str, Any]:
        where = {"group": self._group, "topic": tp.topic, "partition": tp.partition, "offset": offset}
        return {"event": event, **where, "holder": holder}

    def _leave(self, tp: TP, holder: str, offset: int) -> None:
        """Says that this holder is none any more: for the next one's sake, which does without if need be."""
        assert self._log is not None
        try:
            key = partition_key(self._group, tp)
            written = self._log.write(self._event("left", tp, holder, offset), key, _LEFT_S)
        except HeadraceError as exc:
            logger.warning("%s/%d: %s", *tp, exc)
            return
        if not written and not self._closing.is_set():
            logger.warning("%s/%d is left without a word in the log: is the broker up?", *tp)

    def _tell(self, event: str, ref: ModelRef, more: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.write(
                {"event": event, "group": self._group, "model": ref.model, "sha256": ref.sha256 or None, **more},
                ref.model.encode(),
            )


def _overtaken(held: _Held) -> None:
    """Another is the holder: we are told soon that the partition is lost, or claim it again."""
    held.pending, held.settling, held.overtaken_at = None, True, time.monotonic()


def _settled(schedule: Schedule, holder: str, swap: tuple[int, LineupRef]) -> bool:
    """Whether this holder's swap was read back, or cannot count any more."""
    return schedule.holder != holder or (bool(schedule.swaps) and schedule.swaps[-1] == swap)


@contextmanager
def _others_first() -> Iterator[None]:
    """Inside, work in Python on this thread gives way to the stages more often: a model's text takes long to read.

    Threads that are inside at the same time take turns, so that each finds what it leaves.
    """
    with _GIVING_WAY:
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, _SWITCH_S))
        try:
            yield
        finally:
            sys.setswitchinterval(before)
