"""Live equals offline, checked: each stage replayed from its own input log, beside what the log says it put out.

The card and label stages are replayed from their topics and compared with the rows in ``fraud.by-terminal``; the
terminal stage from ``fraud.by-terminal``, compared with the vectors in ``fraud-scores``. Every value is compared by
its bits. Only what the group has committed is looked at: what lies behind may still be on its way. A group that was
bootstrapped is replayed from the states at its seam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from features.block import FloatArray, IntArray
from streams.checkpoint_store import CheckpointStore
from streams.errors import ConfigError
from streams.log import TP, Log
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_tasks import TerminalTask
from streams.replay import read_up_to
from streams.rows import Rows
from streams.shedding import SHED
from streams.shuffle import ShuffleError, unpack
from streams.stage_replay import StageReplays
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS

__all__ = ["Difference", "StageResult", "verify_fraud"]

#: differences that are shown, of each stage
_SHOWN = 10
_ABSENT = "absent"

Words = npt.NDArray[np.int64]
#: (source topic, source partition, target partition); the target is 0 where there is one place only
Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that the log holds otherwise than the replay gives it: by column, (in the log, replayed)."""

    stage: str
    source: str
    columns: dict[str, tuple[Any, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        columns = {name: {"log": log, "replayed": replayed} for name, (log, replayed) in self.columns.items()}
        return {"stage": self.stage, "source": self.source, "columns": columns}


@dataclass(slots=True)
class StageResult:
    """What was found for one stage; ``repeated`` rows were in the log more than once, each time compared."""

    stage: str
    rows: int = 0
    mismatching_rows: int = 0
    repeated: int = 0
    differences: list[Difference] = field(default_factory=list)

    def to_json(self) -> dict[str, int]:
        """The counts."""
        return {"rows": self.rows, "mismatching_rows": self.mismatching_rows, "repeated": self.repeated}


class _Table:
    """Rows of words by source offset, of each place in the order in which they came."""

    def __init__(self) -> None:
        #: of the rows of each source topic
        self.names: dict[str, tuple[str, ...]] = {}
        #: which of them are the bits of a float64
        self.floats: frozenset[str] = frozenset()
        self._offsets: dict[Place, list[IntArray]] = {}
        self._words: dict[Place, list[Words]] = {}

    def add(self, place: Place, offsets: IntArray, words: Words) -> None:
        """``words`` (n, k), one row for each offset."""
        self._offsets.setdefault(place, []).append(offsets)
        self._words.setdefault(place, []).append(words)

    @property
    def places(self) -> set[Place]:
        return set(self._offsets)

    def of(self, place: Place) -> tuple[IntArray, Words]:
        """Offsets (m,) in rising order, those that came more than once in the order of coming, and their words."""
        if place not in self._offsets:
            return np.empty(0, np.int64), np.empty((0, len(self.names.get(place[0], ()))), np.int64)
        offsets = np.concatenate(self._offsets[place])
        order = np.argsort(offsets, kind="stable")
        return offsets[order], np.concatenate(self._words[place])[order]


def verify_fraud(
    log: Log,
    group: str,
    make_pipeline: Callable[[], FraudPipeline],
    progress: Callable[[int], None] = lambda _: None,
    store: CheckpointStore | None = None,
) -> list[StageResult]:
    """Results of the stages ``card``, ``labels`` and ``terminal``.

    ``make_pipeline`` gives pipelines with the settings that the group's workers ran with, order included; ``store`` has
    the states of a group that was bootstrapped. ConfigError: a topic is missing, the group has committed nothing, or
    its scores have no feature vectors. CheckpointError: the seam is of other settings.
    """
    topics = (TRANSACTIONS, LABELS, BY_TERMINAL, FRAUD_SCORES)
    admin = log.admin()
    infos = admin.topics(topics)
    admin.close()
    missing = [name for name in topics if name not in infos]
    if missing:
        raise ConfigError(f"topic {missing[0]} is not there: nothing to verify; run a worker first")
    consumer = log.consumer(group)
    try:
        inputs = [TP(t, p) for t in (TRANSACTIONS, LABELS, BY_TERMINAL) for p in range(infos[t].partitions)]
        committed = {tp: offset or 0 for tp, offset in consumer.committed(inputs).items()}
        ends = {TP(t, p): consumer.offset_range(TP(t, p))[1] for t in topics[2:] for p in range(infos[t].partitions)}
    finally:
        consumer.close()
    if not any(committed.values()):
        raise ConfigError(f"group {group} has committed nothing: name the group of the workers with --group")

    replays = StageReplays(log, make_pipeline, infos, progress)
    if store is not None:
        replays.find_seams(store, group)

    def stops(topic: str, of: Mapping[TP, int]) -> dict[TP, int]:
        return {tp: offset for tp, offset in of.items() if tp.topic == topic}

    results = []
    shuffled = _in_shuffle(replays, stops(BY_TERMINAL, ends))
    wanted = {f.name for f in make_pipeline().settings.features.for_stage("card_id")}
    if TRANSACTIONS in shuffled.names and not wanted <= shuffled.floats:
        raise ConfigError(
            f"the rows in {BY_TERMINAL} are of another feature set: {', '.join(sorted(wanted - shuffled.floats)[:3])} "
            "and others are not in them; give the --set, or the --models, that the workers ran with"
        )
    for stage, topic in (("card", TRANSACTIONS), ("labels", LABELS)):
        replayed = _sent_again(replays, stops(topic, committed))
        results.append(_compare(stage, topic, replayed, shuffled, stops(topic, committed)))
    del shuffled
    replayed = _scored_again(replays, stops(BY_TERMINAL, committed))
    scores = _in_scores(log, stops(FRAUD_SCORES, ends), replayed.names[TRANSACTIONS], progress)
    results.append(_compare("terminal", TRANSACTIONS, replayed, scores, None))
    return results


# --- rows between the stages ---


def _sent_again(replays: StageReplays, stops: Mapping[TP, int]) -> _Table:
    table, pipeline = _Table(), replays.pipeline()
    task = replays.tasks(pipeline)
    for batch in replays.read(stops):
        for out in pipeline.process([(task(batch.tp), batch)]):
            if out.topic == BY_TERMINAL:
                _add_messages(table, out.values, out.partition or 0)
    return table


def _in_shuffle(replays: StageReplays, stops: Mapping[TP, int]) -> _Table:
    table = _Table()
    for batch in replays.read(stops):
        _add_messages(table, batch.values, batch.tp.partition)
    return table


def _add_messages(table: _Table, values: Any, target: int) -> None:
    for value in values:
        try:
            message = unpack(value)
        except ShuffleError:
            continue  # the live stage has dead-lettered it
        if len(message.rows):
            names, words = _plain(message.rows)
            if message.source.topic not in table.names:
                table.names[message.source.topic] = names
                table.floats |= {word[3:] for word in message.rows.layout.words if word.startswith("f8:")}
            place = (message.source.topic, message.source.partition, target)
            table.add(place, message.rows.offsets.copy(), words)


def _plain(rows: Rows) -> tuple[tuple[str, ...], Words]:
    """The rows in a form that does not depend on how they were put into blocks: (n, k) int64, ids as their keys."""
    block = rows.block("", 0, 0)
    columns: list[tuple[str, npt.NDArray[Any]]] = [("timestamp", block.timestamps)]
    for name, ids in sorted(block.ids.items()):
        keys = ids.keys().view(np.int64)
        columns += [(f"{name} (key, high)", keys[:, 0]), (f"{name} (key, low)", keys[:, 1])]
    for name, column in sorted(block.columns.items()):
        if name == SHED:
            continue  # decided by a clock when it was sent, and taken from the log
        columns.append((name, column.view(np.int64) if column.dtype == np.float64 else column.astype(np.int64)))
    extra = block.extra or [None] * len(block)
    columns.append(("extra", np.array([_hash(text) for text in extra], np.int64)))
    return tuple(name for name, _ in columns), np.column_stack([column for _, column in columns])


def _hash(text: bytes | None) -> int:
    return 0 if text is None else xxhash.xxh3_64_intdigest(text) >> 1


# --- scores ---


def _scored_again(replays: StageReplays, stops: Mapping[TP, int]) -> _Table:
    table, pipeline = _Table(), replays.pipeline()
    table.names[TRANSACTIONS] = ("late", *pipeline.settings.features.names)
    table.floats = frozenset(pipeline.settings.features.names)
    task = replays.tasks(pipeline)
    for batch in replays.read(stops):
        vectors = TerminalTask.vectors(pipeline, [(task(batch.tp), batch)], [])
        if vectors is not None:
            words = _vector_words(vectors.late, vectors.matrix)
            partitions = vectors.source_partitions
            for partition in np.unique(partitions).tolist():
                mine = partitions == partition
                table.add((TRANSACTIONS, partition, 0), vectors.rows.offsets[mine], words[mine])
    return table


def _vector_words(late: npt.NDArray[Any], matrix: FloatArray) -> Words:
    # a NaN is null in a score record, whatever its bits were
    matrix = np.where(np.isnan(matrix), np.nan, matrix)
    return np.column_stack([late.astype(np.int64), np.ascontiguousarray(matrix).view(np.int64)])


def _in_scores(log: Log, stops: Mapping[TP, int], names: tuple[str, ...], progress: Callable[[int], None]) -> _Table:
    table = _Table()
    table.names[TRANSACTIONS] = names
    for batch in read_up_to(log, stops):
        by_source: dict[int, tuple[list[int], list[bool], list[list[float]]]] = {}
        for i, value in enumerate(batch.values):
            source = next((v for name, v in batch.headers(i) if name == "source"), None)
            if source is None or value is None:
                continue  # not from one of our workers
            partition, offset = map(int, source.rsplit(b"/", 2)[1:])
            record = orjson.loads(value)
            if record["features"] is None:
                raise ConfigError(
                    f"{FRAUD_SCORES}: records without feature vectors (log_features = false): nothing to compare with; "
                    "run the workers with log_features = true"
                )
            offsets, late, vectors = by_source.setdefault(partition, ([], [], []))
            offsets.append(offset)
            late.append(record["late"])
            vectors.append([record["features"].get(name) for name in names[1:]])
        for partition, (offsets, late, vectors) in by_source.items():
            matrix = np.array(vectors, np.float64)
            table.add((TRANSACTIONS, partition, 0), np.array(offsets, np.int64), _vector_words(np.array(late), matrix))
        progress(len(batch))
    return table


# --- comparing ---


def _compare(stage: str, topic: str, replayed: _Table, logged: _Table, stops: Mapping[TP, int] | None) -> StageResult:
    """``stops``: source offsets from there on are not compared; None = those that the replay does not have either."""
    result = StageResult(stage)
    shape = replayed if topic in replayed.names else logged
    for place in sorted(p for p in replayed.places | logged.places if p[0] == topic):
        expected_at, expected = replayed.of(place)
        found_at, found = logged.of(place)
        stop = None if stops is None else stops.get(TP(topic, place[1]), 0)
        known = np.isin(found_at, expected_at) if stop is None else found_at < stop
        found_at, found = found_at[known], found[known]
        result.rows += len(expected_at)
        result.repeated += len(found_at) - len(np.unique(found_at))
        _compare_place(result, place, shape, expected_at, expected, found_at, found)
    return result


def _compare_place(
    result: StageResult,
    place: Place,
    shape: _Table,
    expected_at: IntArray,
    expected: Words,
    found_at: IntArray,
    found: Words,
) -> None:
    wrong: dict[int, dict[str, tuple[Any, Any]]] = {}
    at = np.searchsorted(expected_at, found_at)
    there = at < len(expected_at)
    there[there] = expected_at[at[there]] == found_at[there]
    for i in np.flatnonzero(~there):
        wrong[int(found_at[i])] = {"row": ("present", _ABSENT)}
    for i in np.flatnonzero(~np.isin(expected_at, found_at)):
        wrong[int(expected_at[i])] = {"row": (_ABSENT, "present")}
    rows = np.flatnonzero(there)
    if expected.shape[1] == found.shape[1]:
        for i in rows[(found[rows] != expected[at[rows]]).any(axis=1)]:
            pairs = zip(shape.names[place[0]], found[i].tolist(), expected[at[i]].tolist(), strict=True)
            wrong[int(found_at[i])] = {
                name: (_shown(a, name in shape.floats), _shown(b, name in shape.floats))
                for name, a, b in pairs
                if a != b
            }
    else:
        for i in rows:
            wrong[int(found_at[i])] = {"columns": (found.shape[1], expected.shape[1])}
    result.mismatching_rows += len(wrong)
    for offset in sorted(wrong)[: _SHOWN - len(result.differences)]:
        result.differences.append(Difference(result.stage, f"{place[0]}/{place[1]}/{offset}", wrong[offset]))


def _shown(word: int, is_float: bool) -> Any:
    if not is_float:
        return word
    value = float(np.array([word], np.int64).view(np.float64)[0])
    return None if np.isnan(value) else value
