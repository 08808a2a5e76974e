"""The stages of the fraud pipeline as pure functions of their logs: card, labels, terminal.

A stage sees Blocks and gives Blocks; no clock, no randomness, no I/O. Live tasks (`streams.pipelines.fraud`) and
offline runs (`streams.offline`) call the same `process`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, prefixed, under
from features.block import Block, BoolArray, FloatArray, Ids, IntArray
from features.declare import FeatureSet
from features.engine import Dedupe, EntityWindows, LabelledWindows, StageWindows, entity_state, row_features
from features.plan import BoundError, key_name
from streams.partitioner import partitions_of
from streams.shuffle import TO_ALL

__all__ = [
    "Assembly",
    "CardRows",
    "CardStage",
    "StageSettings",
    "TerminalStage",
    "empty_rows",
    "label_targets",
    "late_by_ms",
]


@dataclass(frozen=True, slots=True)
class StageSettings:
    """What the results of the stages depend on besides their logs."""

    features: FeatureSet
    allowed_lateness_ms: int = 3_600_000
    dedupe_ms: int = 86_400_000
    dedupe_entries: int = 20_000_000
    #: of each stage's windows, in each partition; None = no bound
    state_bytes_max: int | None = None


@dataclass(slots=True)
class CardRows:
    """What the card stage makes of a block: ``block`` has the rows that go on, with the card features and ``late``
    as columns; ``lateness_ms`` (rows,) is how far each is behind the newest event, all 0 where none is late."""

    block: Block
    duplicates: int
    lateness_ms: IntArray


#: before the names of the arrays of a stage's parts
_WINDOWS, _SEEN = "windows/", "dedupe/"


class CardStage:
    """Windows by card, and the transactions seen before."""

    def __init__(self, settings: StageSettings) -> None:
        self._windows = _windows_by_card(settings)
        self._seen = Dedupe(**_dedupe_settings(settings))

    def to_arrays(self) -> Arrays:
        """The state in canonical form: equal for equal input, however it was cut into blocks."""
        return prefixed(_WINDOWS, self._windows.to_arrays()) | prefixed(_SEEN, self._seen.to_arrays())

    @classmethod
    def from_arrays(cls, settings: StageSettings, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The reverse of `to_arrays`. StateError if of other features or another allowed lateness."""
        stage = cls(settings)
        stage._windows = _windows_by_card(settings, under(_WINDOWS, arrays))
        stage._seen = Dedupe.from_arrays(under(_SEEN, arrays), **_dedupe_settings(settings))
        return stage

    def process(self, block: Block, *, wanted: bool = True) -> CardRows:
        """Drops repeated transactions, adds the features by card; where these are not ``wanted``, only to the state."""
        repeated = self._seen.process(block.ids["transaction_id"].keys(), block.event_time_ms)
        duplicates = int(np.count_nonzero(repeated))
        rows = block.take(~repeated) if duplicates else block
        stream_time_ms = self._windows.stream_time_ms
        with _refusals_by_name(rows, "card_id"):
            matrix, late = self._windows.process(rows, wanted=wanted)
        lateness = late_by_ms(rows.event_time_ms, stream_time_ms) if late.any() else np.zeros(len(rows), np.int64)
        columns = {name: matrix[:, j] for j, name in enumerate(self._windows.names)} if wanted else {}
        out = Block(
            topic=rows.topic,
            partition=rows.partition,
            next_offset=rows.next_offset,
            offsets=rows.offsets,
            timestamps=rows.timestamps,
            ids=rows.ids,
            columns={**rows.columns, **columns, "late": late},
            extra=rows.extra,
            epoch=rows.epoch,
        )
        return CardRows(out, duplicates, lateness)


@contextmanager
def _refusals_by_name(rows: Block, entity: str, labels: Block | None = None) -> Iterator[None]:
    """A `BoundError` names a key that is a text as it was sent: windows know no more of it than its hash."""
    try:
        yield
    except BoundError as exc:
        reason = str(exc)
        for block, field, at in ((rows, entity, exc.row), (labels, "transaction_id", exc.label)):
            if block is not None and at < len(block):
                key = block.ids[field].take(np.array([at]))
                reason = reason.replace(f" {key_name(key.keys()[0])},", f" {key.to_list()[0]!r},")
        raise BoundError(reason, exc.row, exc.label) from None


def _windows_by_card(settings: StageSettings, arrays: Arrays | None = None) -> EntityWindows | StageWindows:
    return entity_state(
        settings.features.for_stage("card_id"),
        labelled=False,
        arrays=arrays,
        **_window_settings(settings),
    )


def _window_settings(settings: StageSettings) -> dict[str, Any]:
    return {"allowed_lateness_ms": settings.allowed_lateness_ms, "bytes_max": settings.state_bytes_max}


def _dedupe_settings(settings: StageSettings) -> dict[str, int]:
    return {
        "window_ms": settings.dedupe_ms,
        "allowed_lateness_ms": settings.allowed_lateness_ms,
        "entries_max": settings.dedupe_entries,
    }


def late_by_ms(times: IntArray, stream_time_ms: int | None) -> IntArray:
    """(n,) how far each event time is behind the newest one so far, 0 for a new newest."""
    if len(times) == 0:
        return np.empty(0, np.int64)
    newest = np.maximum.accumulate(times if stream_time_ms is None else np.maximum(times, stream_time_ms))
    behind: IntArray = newest - times
    return behind


def label_targets(labels: Block, n_partitions: int) -> IntArray:
    """(n,) partition of the terminal stage for each label: its terminal's, or all where it does not say."""
    targets = np.full(len(labels), TO_ALL, np.int64)
    present = labels.columns["terminal_id_present"].astype(np.bool_)
    if present.any():
        targets[present] = partitions_of(labels.ids["terminal_id"].take(present), n_partitions)
    return targets


class TerminalStage:
    """Windows by terminal with delayed risk, and the whole feature matrix."""

    def __init__(self, settings: StageSettings) -> None:
        self._windows = _windows_by_terminal(settings)
        self.assembly = Assembly(settings.features)

    def to_arrays(self) -> Arrays:
        """The state in canonical form: equal for equal input, however it was cut into blocks."""
        return prefixed(_WINDOWS, self._windows.to_arrays())

    @classmethod
    def from_arrays(cls, settings: StageSettings, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The reverse of `to_arrays`. StateError if of other features or another allowed lateness."""
        stage = cls(settings)
        stage._windows = _windows_by_terminal(settings, under(_WINDOWS, arrays))
        return stage

    @property
    def label_counts(self) -> dict[str, int]:
        """Labels that did not simply count: repeated, contradicting, without their transaction yet."""
        w = self._windows
        return {
            "labels_repeated": w.labels_repeated,
            "labels_contradicting": w.labels_contradicting,
            "labels_unknown": w.labels_unknown,
        }

    @property
    def stream_time_ms(self) -> int | None:
        """Newest event time of the rows so far; None before the first."""
        return self._windows.stream_time_ms

    @property
    def reads(self) -> frozenset[str]:
        """Ids and columns of the rows that `windows` looks at."""
        return frozenset({"transaction_id", "event_time", self._windows.entity, *self._windows.fields})

    def windows(
        self, rows: Block, labels: Block | None, kinds: BoolArray | None, *, wanted: bool = True
    ) -> tuple[FloatArray, BoolArray]:
        """(n, k) features by terminal, (n, 0) where they are not ``wanted``, and the late mask; labels become part of
        the state.

        ``kinds`` is the order of rows and labels in the log, True = the next label.
        """
        with _refusals_by_name(rows, "terminal_id", labels):
            return self._windows.process(rows, labels, kinds, wanted=wanted)

    def process(self, rows: Block, labels: Block | None, kinds: BoolArray | None) -> tuple[FloatArray, BoolArray]:
        """`windows`, then `Assembly.of` them: (n, d) float64 features in the set's order, and the late mask."""
        return self.assembly.of(rows, *self.windows(rows, labels, kinds))


def _windows_by_terminal(settings: StageSettings, arrays: Arrays | None = None) -> LabelledWindows | StageWindows:
    return entity_state(
        settings.features.for_stage("terminal_id"),
        labelled=True,
        arrays=arrays,
        **_window_settings(settings),
    )


class Assembly:
    """Puts the features of a row together: those of the row alone, by card (columns of the row), by terminal."""

    def __init__(self, features: FeatureSet) -> None:
        by_card = features.for_stage("card_id")
        self._row_features = features.row_features
        self._of_row = features.positions(features.row_features)
        self._of_card = list(zip(features.positions(by_card), [f.name for f in by_card], strict=True))
        self._of_terminal = features.positions(features.for_stage("terminal_id"))
        self._width = len(features)

    def of(self, rows: Block, by_terminal: FloatArray, late: BoolArray) -> tuple[FloatArray, BoolArray]:
        """(n, d) float64 features in the set's order, and which rows were late at either stage."""
        out = np.empty((len(rows), self._width), np.float64)
        out[:, self._of_terminal] = by_terminal
        out[:, self._of_row] = row_features(self._row_features, rows)
        for position, name in self._of_card:
            out[:, position] = rows.columns[name]
        return out, late | rows.columns["late"].astype(np.bool_)


def empty_rows(settings: StageSettings) -> Block:
    """No rows, with the ids and columns that `TerminalStage.windows` reads."""
    none = np.empty(0, np.int64)
    ids = {name: Ids(ints=none) for name in ("transaction_id", "card_id", "terminal_id")}
    fields = {name for f in settings.features.for_stage("terminal_id") for name in f.fields if name not in ids}
    return Block("", 0, 0, none, none, ids, {"event_time": none, **{name: np.empty(0) for name in fields}})
