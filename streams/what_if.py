"""What-if: a range of the log scored again, by another model or on another feature set, through the stages that served.

The terminal stage is replayed from ``fraud.by-terminal``, so that rows and labels come in the very order in which they
were served. Rows there carry the features by card of the set that the workers ran with; for another set the card stage
is replayed from ``transactions`` first and its features take the place of theirs. Features are computed of rows in the
range only: all others just move the states on.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from features.block import Block, BoolArray, FloatArray, Ids, IntArray
from features.declare import FeatureSet
from models.package import LoadedModel
from streams.checkpoint import SettingsChanged
from streams.checkpoint_store import CheckpointStore
from streams.checkpoints import expected_of
from streams.dead_letters import log_ends
from streams.errors import ConfigError
from streams.log import TP, Log, RecordBatch
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_tasks import TerminalTask
from streams.replay import ReplayError
from streams.shuffle import Sent, Shuffled, ShuffleError, pack, unpack
from streams.stage_replay import StageReplays
from streams.topics import BY_TERMINAL, LABELS, TRANSACTIONS

__all__ = ["Scored", "Span", "joined", "places_of", "replay_range"]

#: a place is a source partition and, in this many bits, the offset there
_OFFSET_BITS = 44
#: ids of a transaction
_IDS = ("transaction_id", "card_id", "terminal_id")


class Span(NamedTuple):
    """Event times from ``begin_ms`` on and before ``end_ms``."""

    begin_ms: int
    end_ms: int

    def holds(self, times: IntArray) -> BoolArray:
        """(n,) which event times are in it."""
        inside: BoolArray = (times >= self.begin_ms) & (times < self.end_ms)
        return inside


def places_of(partitions: IntArray, offsets: IntArray) -> IntArray:
    """(n,) int64: each record of ``transactions`` as one number; they sort by partition and offset."""
    places: IntArray = (partitions << _OFFSET_BITS) | offsets
    return places


@dataclass(slots=True)
class Scored:
    """n transactions with their scores and their ``places`` (n,).

    ``times`` (n,) event times, ``amounts`` (n,), ``scores`` (n,) NaN where there is none, ``ids`` those of the event,
    ``matrix`` (n, d) the features of these ``names``, NaN where one was not logged.
    """

    places: IntArray
    times: IntArray
    amounts: FloatArray
    scores: FloatArray
    ids: Mapping[str, Ids]
    names: tuple[str, ...]
    matrix: FloatArray
    #: "name@version" of each row, "" without a model
    models: Sequence[str]

    def __len__(self) -> int:
        return len(self.places)

    def take(self, index: IntArray | BoolArray) -> Scored:
        """The rows at ``index`` (positions or a mask)."""
        positions = np.flatnonzero(index) if index.dtype == np.bool_ else index
        return Scored(
            self.places[positions],
            self.times[positions],
            self.amounts[positions],
            self.scores[positions],
            {name: column.take(positions) for name, column in self.ids.items()},
            self.names,
            self.matrix[positions],
            [self.models[i] for i in positions.tolist()] if self.models else (),
        )


def replay_range(
    log: Log,
    make: Callable[[], FraudPipeline],
    model: LoadedModel,
    span: Span,
    *,
    served_set: FeatureSet,
    group: str = "",
    store: CheckpointStore | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Scored:
    """The rows of ``span`` with the scores that ``model`` gives them, by rising place.

    ``make`` gives pipelines with the feature set to try and otherwise the settings of the group's workers, which ran
    with ``served_set``. Of the same set, a partition begins at the newest checkpoint of ``group`` before the range, if
    there is one, else at its log's first record.

    ConfigError: a topic is missing. ReplayError: the log has lost records that the features of the range need, or the
    group was bootstrapped with another set.
    """
    admin = log.admin()
    infos = admin.topics((TRANSACTIONS, LABELS, BY_TERMINAL))
    admin.close()
    missing = [name for name in (TRANSACTIONS, LABELS, BY_TERMINAL) if name not in infos]
    if missing:
        raise ConfigError(f"topic {missing[0]} is not there: nothing to replay; run a worker first")
    replays = StageReplays(log, make, infos, progress)
    features = make().settings.features
    if store is not None:
        try:
            replays.find_seams(store, group)
        except SettingsChanged as error:
            raise ReplayError(
                f"group {group} began at a seam, and what was before it is known in windows of other settings, or of "
                f"another set than {features.name}: try a model of the set that it serves, with the --config of its "
                "workers, or bootstrap a group with the other set"
            ) from error
    cards = None
    # rows follow from transactions, so their ends come first: workers may go on while this reads
    stops = log_ends(log, BY_TERMINAL)
    if features.schema_hash != served_set.schema_hash:
        cards = _CardFeatures(replays, log_ends(log, TRANSACTIONS), span)
    elif store is not None:
        _begin_at_checkpoints(replays, stops, store, group, span)
    parts: list[Scored] = []
    for rows, partitions, matrix in _vectors(replays, stops, span, cards):
        _, scores = model.score(matrix)
        ids = {name: rows.ids[name] for name in _IDS}
        amounts = rows.columns["amount"].astype(np.float64, copy=False)
        places = places_of(partitions, rows.offsets)
        models = [model.manifest.label] * len(rows)
        parts.append(Scored(places, rows.event_time_ms, amounts, scores, ids, features.names, matrix, models))
    return joined(parts, features.names)


def joined(parts: Sequence[Scored], names: tuple[str, ...]) -> Scored:
    """The rows of all parts, whose features have these ``names``, by place."""
    if not parts:
        none = np.empty(0, np.int64)
        ids = {name: Ids(ints=none) for name in _IDS}
        return Scored(none, none, np.empty(0), np.empty(0), ids, names, np.empty((0, len(names))), [])
    whole = Scored(
        np.concatenate([part.places for part in parts]),
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.amounts for part in parts]),
        np.concatenate([part.scores for part in parts]),
        {name: Ids.concat([part.ids[name] for part in parts]) for name in _IDS},
        names,
        np.concatenate([part.matrix for part in parts]),
        [model for part in parts for model in part.models],
    )
    return whole.take(np.argsort(whole.places, kind="stable"))


# --- where to begin ---


def _begin_at_checkpoints(
    replays: StageReplays, stops: Mapping[TP, int], store: CheckpointStore, group: str, span: Span
) -> None:
    """Begins the terminal stage's partitions at their newest checkpoints before the range."""
    pipeline = replays.pipeline()
    for tp, stop in stops.items():
        expected = expected_of(group, tp, pipeline.state_of(BY_TERMINAL))
        at_most = stop
        try:
            while (found := store.newest(expected, at_most)) is not None:
                task = TerminalTask(pipeline, tp)
                task.restore(found.arrays)
                # rows that still wait in it for their turn are to come, so what counts is which have had it
                newest_ms = task.stage.stream_time_ms
                if newest_ms is None or newest_ms < span.begin_ms:
                    replays.begins[tp] = found
                    break
                at_most = found.meta.offset - 1
        except SettingsChanged:
            return  # the log says all, if it still has its beginning


def _lookback_ms(pipeline: FraudPipeline, key: str) -> int:
    """How long before a row events can still matter to its features by ``key``."""
    spans = [f.span_ms + f.tile_ms for f in pipeline.settings.features.for_stage(key)]
    return max(spans, default=0) + pipeline.settings.allowed_lateness_ms


@dataclass(slots=True)
class _History:
    """Whether what is left of a topic's log reaches far enough back: ``known_ms``, from where it must be whole."""

    topic: str
    known_ms: int
    #: partitions of which nothing before the first record that is left is known, until the first rows are seen
    lost: set[TP] = field(default_factory=set)

    @classmethod
    def of(cls, replays: StageReplays, stops: Mapping[TP, int], known_ms: int) -> _History:
        [topic] = {tp.topic for tp in stops}
        consumer = replays.log.consumer(f"headrace-replay-{uuid.uuid4().hex}")
        try:
            earliest = {tp: consumer.offset_range(tp)[0] for tp in stops}
        finally:
            consumer.close()
        begins = {tp: found.meta.offset for tp, found in replays.begins.items()}
        return cls(topic, known_ms, {tp for tp in stops if earliest[tp] > begins.get(tp, 0)})

    def check(self, tp: TP, times: IntArray) -> None:
        """The partition's next rows have these event times. ReplayError: it begins too late."""
        if tp not in self.lost or len(times) == 0:
            return
        # the first row alone: how many come with it says nothing about what is lost
        first = int(times[0])
        if first > self.known_ms:
            raise ReplayError(
                f"{self.topic}/{tp.partition}: its first records are gone (retention), and what is left begins "
                f"{(first - self.known_ms) / 3_600_000:,.1f} h too late for the windows of the range; give a later "
                "--from, or --checkpoints with a state from before the range, or keep the topic longer (retention.ms)"
            )
        self.lost.discard(tp)


# --- features by card, of another set ---


class _CardFeatures:
    """Features by card of the rows in the range, by place, to take the place of those that a log of rows carries."""

    def __init__(self, replays: StageReplays, stops: Mapping[TP, int], span: Span) -> None:
        self._span = span
        pipeline = replays.pipeline()
        self._names = [f.name for f in pipeline.settings.features.for_stage("card_id")]
        history = _History.of(replays, stops, span.begin_ms - _lookback_ms(pipeline, "card_id"))
        task = replays.tasks(pipeline)
        places, features = [np.empty(0, np.int64)], [np.empty((0, len(self._names)))]
        for batch in replays.read(stops, from_start=False):
            block, _ = pipeline.transactions.decode(batch)
            history.check(batch.tp, block.event_time_ms)
            wanted = bool(span.holds(block.event_time_ms).any())
            rows = task(batch.tp).stage.process(block, wanted=wanted).block
            if wanted:
                rows = rows.take(span.holds(rows.event_time_ms))
                places.append(places_of(np.full(len(rows), batch.tp.partition, np.int64), rows.offsets))
                features.append(np.column_stack([rows.columns[name] for name in self._names]).astype(np.float64))
        order = np.argsort(joined := np.concatenate(places))
        self._places, self._features = joined[order], np.concatenate(features)[order]

    def put(self, message: Shuffled) -> bytes:
        """The message with these features, NaN in rows outside of the range. ReplayError: a row of it is not one."""
        block = message.block
        matrix = np.full((len(block), len(self._names)), np.nan)
        inside = np.flatnonzero(self._span.holds(block.event_time_ms))
        if len(inside):
            partitions = np.full(len(inside), message.source.partition, np.int64)
            wanted = places_of(partitions, block.offsets[inside])
            at = np.searchsorted(self._places, wanted)
            found = at < len(self._places)
            found[found] = self._places[at[found]] == wanted[found]
            if not found.all():
                offset = int(block.offsets[inside[np.argmin(found)]])
                raise ReplayError(
                    f"{message.source.topic}/{message.source.partition}/{offset}: was served, but replayed it is no "
                    "row (repeated or unreadable); give the --config that the workers ran with"
                )
            matrix[inside] = self._features[at]
        block.columns.update({name: matrix[:, j] for j, name in enumerate(self._names)})
        [(_, value)] = pack("rows", [Sent(message.source, block, message.watermark_ms)], None, 1)
        return value


# --- the terminal stage ---


def _vectors(
    replays: StageReplays, stops: Mapping[TP, int], span: Span, cards: _CardFeatures | None
) -> Iterator[tuple[Block, IntArray, FloatArray]]:
    """Rows of the range, their source partitions (n,) and features (n, d), as they become due."""
    pipeline = replays.pipeline()
    history = _History.of(replays, stops, span.begin_ms - _lookback_ms(pipeline, "terminal_id"))
    task = replays.tasks(pipeline)
    #: partitions where rows of the range may wait for their turn
    reached = set(replays.begins)
    for batch in replays.read(stops, from_start=False):
        terminal: TerminalTask = task(batch.tp)
        inside = _look(batch, span, cards, history)
        if inside:
            reached.add(batch.tp)
        batch.replay = not (inside or (batch.tp in reached and terminal.order.waiting))
        vectors = TerminalTask.vectors(pipeline, [(terminal, batch)], [])
        if vectors is None:
            continue
        wanted = np.flatnonzero(span.holds(vectors.rows.event_time_ms))
        if len(wanted):
            yield vectors.rows.take(wanted), vectors.source_partitions[wanted], vectors.matrix[wanted]


def _look(batch: RecordBatch, span: Span, cards: _CardFeatures | None, history: _History) -> bool:
    """Whether rows of the range are in the batch; they get their features by card."""
    inside = False
    for i, value in enumerate(batch.values):
        try:
            message = unpack(value)
        except ShuffleError:
            continue  # the live stage has dead-lettered it
        if message.kind != "rows":
            continue
        times = message.rows.integers("event_time")
        history.check(batch.tp, times)
        inside |= bool(span.holds(times).any())
        if cards is not None:
            batch.values[i] = cards.put(message)
    return inside
