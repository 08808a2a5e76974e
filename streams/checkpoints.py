"""A worker's checkpoints: taken between two blocks, found again when a partition is assigned.

A checkpoint at offset s is used only where s <= the committed offset: outputs behind s may not have been sent yet
when it was written. One that is newer just waits until the commits have passed it.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from streams.checkpoint import CheckpointError, CheckpointMeta, Expected, SettingsChanged
from streams.checkpoint_store import CheckpointStore, Series
from streams.errors import FatalError
from streams.latency import LatencyDigest
from streams.log import TP
from streams.recovery import Assigned
from streams.snapshot import JOBS_MAX, Child, Job, Outcome, fork_write, pages_are_joined, start_joining
from streams.store import Draft, StoreError

__all__ = ["CheckpointSettings", "Checkpoints", "StateOf", "Stateful", "expected_of", "meta_of"]

logger = logging.getLogger("headrace.checkpoints")

#: when one is due, those come along of which so much of the interval has passed
_ALONG = 0.9


class Stateful(Protocol):
    """A task whose state is a function of its log below ``next_offset``."""

    next_offset: int

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """The state as plain arrays."""

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Makes a task that has read nothing yet what `state` said."""


@dataclass(frozen=True, slots=True)
class StateOf:
    """What the state of a partition is of: the stage, its topic as it is now, and all settings that it depends on."""

    stage: str
    topic_id: str
    fingerprint: str
    feature_set: str
    feature_set_hash: str


def meta_of(group: str, tp: TP, of: StateOf, offset: int) -> CheckpointMeta:
    """What a checkpoint made now says of itself: the state of this partition below ``offset``."""
    return CheckpointMeta(
        group=group,
        stage=of.stage,
        topic=tp.topic,
        topic_id=of.topic_id,
        partition=tp.partition,
        offset=offset,
        fingerprint=of.fingerprint,
        feature_set=of.feature_set,
        feature_set_hash=of.feature_set_hash,
        headrace_version=_own_version(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@functools.cache
def _own_version() -> str:
    """Asked between two blocks: to look into the installed files again takes a millisecond."""
    return version("headrace")


def expected_of(group: str, tp: TP, of: StateOf) -> Expected:
    """What a checkpoint must say of itself to be used for this partition."""
    return Expected(
        group=group,
        stage=of.stage,
        topic=tp.topic,
        topic_id=of.topic_id,
        partition=tp.partition,
        fingerprint=of.fingerprint,
    )


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """How often checkpoints are taken, how many are kept, and what a history with a gap means."""

    interval_s: float = 60.0
    kept: int = 3
    #: whether a group goes on where records that its state needs were deleted; else the worker ends
    degrade: bool = False


@dataclass(frozen=True, slots=True)
class _Taken:
    at_s: float
    offset: int


class _Part(NamedTuple):
    """A checkpoint that is being written, and the one that was taken ``before``."""

    tp: TP
    series: Series
    draft: Draft
    before: _Taken | None


@dataclass(slots=True)
class _Writing:
    child: Child
    parts: Sequence[_Part]
    began_s: float


@dataclass(slots=True)
class Checkpoints:
    """``of`` says what the state of a topic's tasks is of.

    `load` is called on a thread of its own, all else on the event loop.
    """

    store: CheckpointStore
    group: str
    of: Callable[[str], StateOf]
    settings: CheckpointSettings = field(default_factory=CheckpointSettings)
    #: written since the start
    written: int = 0
    #: how long the last ones took, from the fork until they were where they are kept
    took_s: float = 0.0
    #: how long each fork for some held up the event loop, and with it all stages
    pauses: LatencyDigest = field(default_factory=LatencyDigest)
    _taken: dict[TP, _Taken] = field(default_factory=dict)
    #: offsets of the checkpoints that were loaded
    _found: dict[TP, int] = field(default_factory=dict)
    _writing: _Writing | None = None
    #: whether pages were joined before the first fork
    _prepared: bool = False

    # -- finding them --

    def load(self, assigned: Assigned, task: Stateful) -> int:
        """Restores the task from the newest usable checkpoint; returns the offset from which its log is to be read.

        FatalError where the state is of other settings, or where records that it needs are no longer in the log.
        """
        tp, committed = assigned.tp, assigned.committed
        self._found[tp] = offset = 0
        if committed is None:
            self._begin_group(assigned, task)
        else:
            self._found[tp] = offset = self._restore(tp, committed, task)
            missing = assigned.earliest - offset
            if missing > 0:
                self._missing(tp, offset, missing)
        return max(offset, assigned.earliest)

    def _begin_group(self, assigned: Assigned, task: Stateful) -> None:
        """Keeps where a group has begun that finds a log without its first records: to a worker that takes over before
        the first checkpoint they would look like history that is missing."""
        tp, earliest = assigned.tp, assigned.earliest
        if earliest > 0:
            try:
                self.store.save(meta_of(self.group, tp, self.of(tp.topic), earliest), task.state())
            except (CheckpointError, StoreError) as exc:
                logger.error("%s/%d: that its history begins at %d could not be kept: %s", *tp, earliest, exc)

    def _restore(self, tp: TP, committed: int, task: Stateful) -> int:
        of = self.of(tp.topic)
        expected = expected_of(self.group, tp, of)
        started = time.monotonic()
        try:
            found = self.store.newest(expected, committed)
        except SettingsChanged as exc:
            what = f"this worker's feature set is {of.feature_set} {of.feature_set_hash}"
            raise FatalError("state-of-other-settings", f"{exc}; {what}. Nothing was changed.") from exc
        except StoreError as exc:
            remedy = "or run with --checkpoints none, which replays the whole log"
            raise FatalError("checkpoint-store", f"{exc}; {remedy}") from exc
        if found is None:
            return 0
        task.restore(found.arrays)
        logger.info("%s/%d: state of offset %d loaded in %.1f s", *tp, found.meta.offset, time.monotonic() - started)
        return found.meta.offset

    def _missing(self, tp: TP, offset: int, missing: int) -> None:
        what = (
            f"{tp.topic}/{tp.partition}: {missing} records from offset {offset} on, which the state needs, were "
            "deleted by retention"
        )
        if not self.settings.degrade:
            raise FatalError(
                "history-missing",
                f"{what}. Let the topic keep its records longer than checkpoints are apart; go on without them by "
                'missing_history = "degrade", or begin anew with another --group.',
            )
        logger.error("%s: the features of what they belong to are too small from now on", what)

    # -- taking them --

    @property
    def writing(self) -> bool:
        """Whether a child process is writing one."""
        return self._writing is not None

    def step(
        self, tasks: Mapping[TP, Stateful], committed: Callable[[TP], int], busy: Collection[TP] = frozenset()
    ) -> None:
        """To be called often, between blocks: ends what was written, begins the next checkpoints that are due, once the
        pages that the last ones broke are joined again.

        ``committed`` tells the committed offset of a partition: what is behind it may have to be kept for long. Tasks
        of ``busy`` partitions are in the middle of a block: their turn comes another time.
        """
        if not self._prepared:
            self._prepared = True
            start_joining()
        if self._writing is not None:
            outcomes = self._writing.child.poll()
            if outcomes is not None:
                self._end(outcomes, committed)
        elif pages_are_joined() and (due := self._due(tasks, busy)):
            self._begin({tp: tasks[tp] for tp in due})

    def _due(self, tasks: Mapping[TP, Stateful], busy: Collection[TP]) -> list[TP]:
        """The partitions whose checkpoints are to be taken now, those first that have been due for longest."""
        now = time.monotonic()
        for tp in [tp for tp in self._taken if tp not in tasks]:
            del self._taken[tp]
        ages: list[tuple[float, TP]] = []
        for tp, task in tasks.items():
            taken = self._taken.setdefault(tp, _Taken(now, self._found.get(tp, 0)))
            if tp not in busy and task.next_offset > taken.offset:
                ages.append((now - taken.at_s, tp))
        if not ages or max(ages)[0] < self.settings.interval_s:
            return []
        return [tp for age, tp in sorted(ages, reverse=True) if age >= _ALONG * self.settings.interval_s][:JOBS_MAX]

    def _begin(self, tasks: Mapping[TP, Stateful]) -> None:
        began = time.perf_counter()
        parts, jobs = list[_Part](), list[Job]()
        for tp, task in tasks.items():
            of = self.of(tp.topic)
            meta = meta_of(self.group, tp, of, task.next_offset)
            try:
                draft = self.store.draft(meta)
            except StoreError as exc:
                self._not_taken(tp, str(exc))
                continue
            parts.append(_Part(tp, Series(of.stage, of.topic_id, tp.partition), draft, self._taken.get(tp)))
            jobs.append(Job(task.state, meta, draft))
            self._taken[tp] = _Taken(time.monotonic(), task.next_offset)
        if not jobs:
            return
        try:
            child = fork_write(jobs)
        except CheckpointError as exc:
            for part in parts:
                self._not_taken(part.tp, str(exc))
            return
        self._writing = _Writing(child, parts, time.monotonic())
        self.pauses.add(np.array([1000 * (time.perf_counter() - began)]))

    def _end(self, outcomes: Sequence[Outcome], committed: Callable[[TP], int]) -> threading.Thread:
        """Of the child: its outcomes; what it did not come to is due again."""
        writing = self._writing
        assert writing is not None
        self._writing = None
        done: list[tuple[_Part, int]] = []
        for part, outcome in zip(writing.parts, outcomes, strict=False):
            if outcome.error is None:
                done.append((part, committed(part.tp)))
            else:
                self._not_taken(part.tp, outcome.error)
        for part in writing.parts[len(outcomes) :]:
            self._taken.pop(part.tp, None)
            if part.before is not None:
                self._taken[part.tp] = part.before
        # an upload may take long
        thread = threading.Thread(
            target=self._publish, args=(done, writing.began_s), name="headrace-publish", daemon=True
        )
        thread.start()
        return thread

    def _not_taken(self, tp: TP, reason: str) -> None:
        """Due again after the interval, also where no record comes meanwhile."""
        logger.error("no checkpoint of %s/%d: %s", *tp, reason)
        self._taken[tp] = _Taken(time.monotonic(), 0)

    def _publish(self, done: Sequence[tuple[_Part, int]], began_s: float) -> None:
        for part, committed in done:
            try:
                self.store.publish(part.draft)
                self.written += 1
                self.took_s = time.monotonic() - began_s
                self.store.prune(part.series, self.settings.kept, committed)
            except StoreError as exc:
                logger.error("checkpoint of %s/%d: %s", *part.tp, exc)

    def finish(self, tasks: Mapping[TP, Stateful], timeout_s: float) -> None:
        """The last ones of a worker that leaves, as far as time allows; blocks."""
        deadline = time.monotonic() + timeout_s
        if self._writing is not None:
            self._end_by(deadline, self._cut_short(self._writing.child))
        left = [tp for tp, task in tasks.items() if task.next_offset != self._known(tp)]
        while left and time.monotonic() < deadline:
            some, others = left[:JOBS_MAX], left[JOBS_MAX:]
            self._begin({tp: tasks[tp] for tp in some})
            if self._writing is None:  # it was said why
                left = others
                continue
            begun, child = [part.tp for part in self._writing.parts], self._writing.child
            outcomes = child.wait(max(0.0, deadline - time.monotonic()))
            if outcomes is None:
                outcomes = self._cut_short(child)
            self._end_by(deadline, outcomes)
            left = begun[len(outcomes) :] + others
        for tp in left:
            logger.info("no time for a checkpoint of %s/%d: its next owner replays more", *tp)

    @staticmethod
    def _cut_short(child: Child) -> Sequence[Outcome]:
        """Of what it had done."""
        child.kill()
        outcomes = child.poll() or ()
        return outcomes[:-1] if outcomes and outcomes[-1].error is not None else outcomes

    def _end_by(self, deadline: float, outcomes: Sequence[Outcome]) -> None:
        # what was done is committed, or this checkpoint waits for a commit that may never come
        self._end(outcomes, lambda _: 0).join(max(0.0, deadline - time.monotonic()))

    def _known(self, tp: TP) -> int:
        """Up to where there is a checkpoint, or one is being written."""
        taken = self._taken.get(tp)
        return self._found.get(tp, 0) if taken is None else taken.offset
