"""The first checkpoints of a consumer group, from files that hold all events and labels before a seam.

A worker of the group then goes on at the seam with the state of that history, which is in no topic. The rows go through
the stages of the live tasks, in the order of `streams.offline`, and to the partitions where Kafka's Java client would
have put them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from features.block import Block, Ids, IntArray
from features.plan import BoundError
from streams.checkpoint_store import CheckpointStore, Series
from streams.checkpoints import meta_of
from streams.errors import ConfigError, HeadraceError
from streams.log import TP, CommitFailed, Log, LogConsumer, LogUnavailable, TopicInfo
from streams.offline import time_order
from streams.partitioner import partitions_of
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_stages import label_targets
from streams.rows import NO_ROWS, Rows
from streams.shuffle import TO_ALL, Shuffled
from streams.topics import BY_TERMINAL, LABELS, TRANSACTIONS
from streams.widths import note_of

__all__ = ["BootstrapError", "Built", "PartitionFigures", "Seam", "build", "find_seam", "install", "topics_of"]

#: where the topics take over: what they hold now is in the files too (end), or nothing of it is (earliest)
Seam = Literal["end", "earliest"]

_CHUNK_ROWS = 65_536
#: a member that died keeps its partitions for the session time-out, 45 s for a static one unless told otherwise
_JOIN_S = 60.0
#: as the only member one is given all partitions at once
_SHARED_S = 5.0
_FIRST_RECORDS_S = 10.0
_COMMIT_TRIES = 5


class BootstrapError(HeadraceError):
    """A group that cannot be given its first checkpoints: names the group, the reason and the remedy."""


@dataclass(slots=True)
class PartitionFigures:
    """What the files gave a partition: rows, distinct keys, newest event (of labels: label) time."""

    seam: int
    rows: int = 0
    newest_ms: int | None = None
    #: the keys, each as one word
    _keys: list[Any] = field(default_factory=list)

    def add(self, times: IntArray, keys: Ids) -> None:
        """Counts rows with these times and keys."""
        if len(times) == 0:
            return
        self.rows += len(times)
        self.newest_ms = max(int(times.max()), self.newest_ms or int(times[0]))
        words = keys.keys()
        # an odd factor: of integers each has a word of its own
        words = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) + words[:, 1]
        self._keys = [np.unique(np.concatenate([*self._keys, words]))]

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return sum(map(len, self._keys))


@dataclass(slots=True)
class Built:
    """The tasks as they are at the seam, and what went into them. ``rows`` + ``duplicates`` are the events."""

    tasks: dict[TP, Any]
    partitions: dict[TP, PartitionFigures]
    rows: int = 0
    duplicates: int = 0
    late: int = 0


# --- the state ---


@dataclass(slots=True)
class _History:
    """Labels in order: ``targets`` (m,) their partition of the terminal stage or TO_ALL, ``before`` (m,) how many rows
    come before each, rising."""

    labels: Block
    targets: IntArray
    before: IntArray
    done: int = 0

    @classmethod
    def of(cls, labels: Block, clock: IntArray, n_partitions: int) -> _History:
        labels = labels.take(time_order(labels, "label_time"))
        times = labels.columns["label_time"].astype(np.int64)
        slim = Block(
            topic=LABELS,
            partition=0,
            next_offset=labels.next_offset,
            offsets=labels.offsets,
            timestamps=labels.timestamps,
            ids={"transaction_id": labels.ids["transaction_id"]},
            columns={"label_time": times, "is_fraud": labels.columns["is_fraud"].astype(np.int64)},
        )
        before = np.searchsorted(clock, times, side="left")
        return cls(slim, label_targets(labels, n_partitions), before)

    def next(self, end: int) -> IntArray:
        """Which labels come before row ``end`` and were not given yet."""
        stop = max(self.done, int(np.searchsorted(self.before, end, side="left")))
        index = np.arange(self.done, stop)
        self.done = stop
        return index

    def of_target(self, index: IntArray, target: int) -> IntArray:
        """Those of these labels that this partition of the terminal stage gets."""
        at = self.targets[index]
        mine: IntArray = index[(at == target) | (at == TO_ALL)]
        return mine


def build(
    pipeline: FraudPipeline,
    seams: Mapping[TP, int],
    events: Block,
    labels: Block | None,
    progress: Callable[[int], None] = lambda _: None,
) -> Built:
    """The tasks of all input partitions after these events, at least one, and labels, to go on at ``seams``.

    ``events`` and ``labels`` as in `streams.offline.feature_matrix`, and taken in the order of that function for the
    pipeline's order. By event time, labels that are newer than all events wait in the terminal stage, as they would
    live. BootstrapError: a state grows beyond its bound.
    """
    by_time = pipeline.order == "event_time"
    tasks: dict[TP, Any] = {tp: pipeline.task(tp) for tp in seams}
    built = Built(tasks, {tp: PartitionFigures(seam) for tp, seam in seams.items()})
    n = len(events)
    rows = time_order(events, "event_time") if by_time else np.arange(n, dtype=np.int64)
    clock = np.maximum.accumulate(events.event_time_ms[rows])
    history = None
    if labels is not None:
        history = _History.of(labels, clock, pipeline.infos[BY_TERMINAL].partitions)
        _count_labels(pipeline, built, history.labels)
    try:
        for start in range(0, n, _CHUNK_ROWS):
            end = min(start + _CHUNK_ROWS, n)
            block = events.take(rows[start:end])
            block.offsets = np.arange(start, end, dtype=np.int64)
            block = _through_cards(pipeline, built, block)
            # a label of the time of a row comes before it; in the order of arrival nothing is left to wait
            _through_terminals(pipeline, built, block, history, n + 1 if end == n and not by_time else end)
            progress(end - start)
    except BoundError as exc:
        raise BootstrapError(f"{exc}. The bound is the setting state_mb_max") from exc
    _go_on(pipeline, built, seams, int(clock[-1]), history)
    return built


def _count_labels(pipeline: FraudPipeline, built: Built, labels: Block) -> None:
    ids, times = labels.ids["transaction_id"], labels.columns["label_time"].astype(np.int64)
    places = partitions_of(ids, pipeline.infos[LABELS].partitions)
    for p in range(pipeline.infos[LABELS].partitions):
        mine = places == p
        built.partitions[TP(LABELS, p)].add(times[mine], ids.take(mine))


def _through_cards(pipeline: FraudPipeline, built: Built, block: Block) -> Block:
    """The rows through the windows by card; returns those that go on, in their order."""
    places = partitions_of(block.ids["card_id"], pipeline.infos[TRANSACTIONS].partitions)
    kept = [np.empty(0, np.int64)]
    for p in np.unique(places).tolist():
        tp = TP(TRANSACTIONS, p)
        made = built.tasks[tp].stage.process(block.take(places == p))
        built.duplicates += made.duplicates
        built.late += int(np.count_nonzero(made.block.columns["late"]))
        built.partitions[tp].add(made.block.event_time_ms, made.block.ids["card_id"])
        kept.append(made.block.offsets)
    return block.take(np.sort(np.concatenate(kept)) - block.offsets[0])


def _through_terminals(pipeline: FraudPipeline, built: Built, block: Block, history: _History | None, end: int) -> None:
    """The rows, and the labels that come before row ``end``, through the windows by terminal."""
    n_partitions = pipeline.infos[BY_TERMINAL].partitions
    places = partitions_of(block.ids["terminal_id"], n_partitions)
    due = np.empty(0, np.int64) if history is None else history.next(end)
    built.rows += len(block)
    for p in range(n_partitions):
        tp = TP(BY_TERMINAL, p)
        rows, labels, kinds = block.take(places == p), None, None
        if history is not None and len(mine := history.of_target(due, p)):
            labels = history.labels.take(mine)
            kinds = np.zeros(len(rows) + len(mine), np.bool_)
            kinds[np.searchsorted(rows.offsets, history.before[mine], side="left") + np.arange(len(mine))] = True
        built.tasks[tp].stage.windows(rows, labels, kinds)
        built.partitions[tp].add(rows.event_time_ms, rows.ids["terminal_id"])


def _go_on(
    pipeline: FraudPipeline, built: Built, seams: Mapping[TP, int], newest_ms: int, history: _History | None
) -> None:
    """Tells the tasks where they go on: each source has come as far as the files, and sent all that is in them."""
    sources = {tp: task for tp, task in built.tasks.items() if tp.topic != BY_TERMINAL}
    for tp, task in sources.items():
        task.next_offset = seams[tp]
        task.remember(np.array([newest_ms], np.int64))
    for tp, task in built.tasks.items():
        if tp.topic != BY_TERMINAL:
            continue
        task.next_offset = seams[tp]
        if history is not None:
            _wait(pipeline, task, seams, history)
        for at, source in sources.items():
            origin = pipeline.source(at)
            # rows from before the seam that another group sends again count as taken
            task.positions.fresh(origin, np.arange(max(0, seams[at] - 1), seams[at], dtype=np.int64))
            task.order.push(Shuffled("watermark", origin, NO_ROWS, seams[at], source.watermark_ms))


def _wait(pipeline: FraudPipeline, task: Any, seams: Mapping[TP, int], history: _History) -> None:
    """Labels that are newer than all rows wait for their time."""
    mine = history.of_target(np.arange(history.done, len(history.labels)), task.tp.partition)
    places = partitions_of(history.labels.ids["transaction_id"].take(mine), pipeline.infos[LABELS].partitions)
    for p in np.unique(places).tolist():
        tp = TP(LABELS, p)
        waiting = Rows.of(history.labels.take(mine[places == p]))
        task.order.push(Shuffled("labels", pipeline.source(tp), waiting, seams[tp], None))


# --- the group ---


def topics_of(log: Log, pipeline: FraudPipeline) -> dict[str, TopicInfo]:
    """The pipeline's input topics. ConfigError: one is not there."""
    admin = log.admin()
    try:
        infos = admin.topics([info.name for info in pipeline.topics])
    finally:
        admin.close()
    if missing := [name for name in pipeline.inputs if name not in infos]:
        raise ConfigError(
            f"topic {', '.join(missing)}: not there, so there is no seam; create them with `headrace topics create`"
        )
    return infos


def find_seam(log: Log, group: str, infos: Mapping[str, TopicInfo], at: Seam) -> dict[TP, int]:
    """The offset of each input partition at which the group is to begin. BootstrapError: it has begun already."""
    tps = [TP(name, p) for name in (TRANSACTIONS, LABELS, BY_TERMINAL) for p in range(infos[name].partitions)]
    consumer = log.consumer(group)
    try:
        committed = {tp: offset for tp, offset in consumer.committed(tps).items() if offset is not None}
        if committed:
            tp, offset = next(iter(committed.items()))
            raise BootstrapError(
                f"group {group} has committed offsets already ({tp.topic}/{tp.partition} at {offset}, "
                f"{len(committed)} partitions in all): its state is of what it has read; name a new one with --group"
            )
        return {tp: consumer.offset_range(tp)[1 if at == "end" else 0] for tp in tps}
    finally:
        consumer.close()


class _FromSeam:
    """Begins every partition at the seam."""

    def __init__(self, seams: Mapping[TP, int]) -> None:
        self._seams = seams

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        return {tp: self._seams[tp] for tp in partitions}

    def on_revoke(self, partitions: list[TP]) -> None:
        """Nothing to give up."""

    def on_lost(self, partitions: list[TP]) -> None:
        """Nothing to give up."""


def install(
    log: Log, store: CheckpointStore, group: str, pipeline: FraudPipeline, tasks: Mapping[TP, Any]
) -> int | None:
    """Makes the tasks' states the group's first checkpoints; returns the event time of the oldest record that was found
    behind the seam, if there is one.

    1. Joins the group as its only member: nobody else commits meanwhile.
    2. Deletes checkpoints that are left of an earlier try: they are of another seam.
    3. Writes a checkpoint of every task that has a state, at its seam, and once more as what its log is verified from.
    4. Commits the seam. A checkpoint counts only below a commit, so a crash before leaves a group that has not begun:
       run it again.

    BootstrapError: the group has other members. StoreError: checkpoints cannot be written.
    """
    seams = {tp: task.next_offset for tp, task in tasks.items()}
    stateful = {tp: task for tp, task in tasks.items() if pipeline.is_stateful(tp.topic)}
    consumer = log.consumer(group)
    try:
        consumer.subscribe(list(pipeline.inputs), _FromSeam(seams))
        oldest_ms = _join(consumer, group, pipeline, seams)
        _forget(store, pipeline, stateful)
        for tp, task in stateful.items():
            meta, arrays = meta_of(group, tp, pipeline.state_of(tp.topic), task.next_offset), task.state()
            store.save(meta, arrays)
            store.save_seam(meta, arrays)
        try:
            _commit(
                consumer, group, seams, note_of({name: pipeline.infos[name].partitions for name in pipeline.inputs})
            )
        except CommitFailed as exc:
            _forget(store, pipeline, stateful)
            raise _has_members(group) from exc
        return oldest_ms
    finally:
        consumer.close()


def _forget(store: CheckpointStore, pipeline: FraudPipeline, tasks: Mapping[TP, Any]) -> None:
    for tp in tasks:
        of = pipeline.state_of(tp.topic)
        series = Series(of.stage, of.topic_id, tp.partition)
        store.prune(series, keep=0)
        store.delete_seam(series)


def _has_members(group: str) -> BootstrapError:
    return BootstrapError(
        f"group {group} has other members, whose workers have a state already: stop them, or name a new --group"
    )


def _join(consumer: LogConsumer, group: str, pipeline: FraudPipeline, seams: Mapping[TP, int]) -> int | None:
    """Waits for all partitions, and for the first records of transactions behind the seam; their oldest event time."""
    started = time.monotonic()
    shared_since: float | None = None
    behind = {tp for tp in seams if tp.topic == TRANSACTIONS and consumer.offset_range(tp)[1] > seams[tp]}
    oldest_ms: int | None = None
    while True:
        for batch in consumer.poll(0.1, 1000):
            if batch.tp in behind:
                behind.discard(batch.tp)
                times = pipeline.transactions.decode(batch)[0].event_time_ms
                if len(times):
                    oldest_ms = int(times.min()) if oldest_ms is None else min(oldest_ms, int(times.min()))
        now, mine = time.monotonic(), consumer.assignment()
        if mine == set(seams):
            shared_since = None
            if not behind or now - started > _FIRST_RECORDS_S:
                return oldest_ms
        elif mine:
            shared_since = shared_since or now
        if now - started > _JOIN_S or (shared_since is not None and now - shared_since > _SHARED_S):
            raise _has_members(group)


def _commit(consumer: LogConsumer, group: str, seams: Mapping[TP, int], note: str) -> None:
    for _ in range(_COMMIT_TRIES):
        try:
            return consumer.commit(seams, note=note)
        except LogUnavailable as exc:
            error = exc
            time.sleep(1.0)
    raise BootstrapError(
        f"group {group}: the checkpoints are written, but whether the seam is committed is not known ({error}): run it "
        "again once the broker answers; if it says then that the group has committed offsets, it is done"
    )
