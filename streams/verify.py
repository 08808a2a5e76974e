"""Live equals offline, checked: each stage replayed from its own input log, beside what the log says it put out.

The card and label stages are replayed from their topics and compared with the rows in ``fraud.by-terminal``; the
terminal stage from ``fraud.by-terminal``, compared with the vectors in ``fraud-scores``. Every value is compared by
its bits. Only what the group has committed is looked at: what lies behind may still be on its way. A group that was
bootstrapped is replayed from the states at its seam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from features.block import FloatArray
from streams.checkpoint_store import CheckpointStore
from streams.errors import ConfigError
from streams.log import TP, Log
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_tasks import TerminalTask
from streams.replay import read_up_to
from streams.stage_replay import StageReplays
from streams.topics import BY_TERMINAL, FRAUD_SCORES, LABELS, TRANSACTIONS
from streams.verify_rows import StageResult, Table, Words, add_messages, compare, places

__all__ = ["StageResult", "verify_fraud"]


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
    inputs = (TRANSACTIONS, LABELS, BY_TERMINAL)
    infos, committed, ends = places(log, group, inputs, (BY_TERMINAL, FRAUD_SCORES))
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
        results.append(compare(stage, topic, replayed, shuffled, stops(topic, committed)))
    del shuffled
    replayed = _scored_again(replays, stops(BY_TERMINAL, committed))
    scores = _in_scores(log, stops(FRAUD_SCORES, ends), replayed.names[TRANSACTIONS], progress)
    results.append(compare("terminal", TRANSACTIONS, replayed, scores, None))
    return results


# --- rows between the stages ---


def _sent_again(replays: StageReplays, stops: Mapping[TP, int]) -> Table:
    table, pipeline = Table(), replays.pipeline()
    task = replays.tasks(pipeline)
    for batch in replays.read(stops):
        for out in pipeline.process([(task(batch.tp), batch)]):
            if out.topic == BY_TERMINAL:
                add_messages(table, out.values, out.partition or 0)
    return table


def _in_shuffle(replays: StageReplays, stops: Mapping[TP, int]) -> Table:
    table = Table()
    for batch in replays.read(stops):
        add_messages(table, batch.values, batch.tp.partition)
    return table


# --- scores ---


def _scored_again(replays: StageReplays, stops: Mapping[TP, int]) -> Table:
    table, pipeline = Table(), replays.pipeline()
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


def _in_scores(log: Log, stops: Mapping[TP, int], names: tuple[str, ...], progress: Callable[[int], None]) -> Table:
    table = Table()
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
