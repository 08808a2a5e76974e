"""From a feature set to columns: one state per stage and partition, ``process(block) -> (matrix, late)``.

    cards = entity_state(DEFAULT.for_stage("card_id"), labelled=False)
    matrix, late = cards.process(block)                  # (n, k) float64, (n,) bool
    terminals = entity_state(DEFAULT.for_stage("terminal_id"), labelled=True)
    matrix, late = terminals.process(block, labels, kinds)
    row_features(DEFAULT.row_features, block)            # (n, k) float64

The column order is that of the features given; `FeatureSet.positions` says where they go in the set's matrix.
States are pure functions of the rows they were given: ``process(A + B)`` equals ``process(A); process(B)`` bit
for bit, evictions and drops included, and `to_arrays` is canonical: equal for equal input however it was cut,
and whether or not the state was exported and loaded in between.

A row is *late* if its event time is below the state's stream time (the largest event time seen) minus the
allowed lateness. Late rows get their features, with themselves counted, and are not put into the windows; they
see nothing older than stream time - longest window - delay - allowed lateness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from features.block import Block, BoolArray, Ids, IntArray
from features.declare import FeatureSet, WindowFeature
from features.entity_windows import EntityWindows
from features.fifo import Dedupe
from features.fraud import DEFAULT
from features.history import HistoryWindows
from features.labelled_windows import LabelledWindows
from features.plan import LATENESS_MS, StateError
from features.rowfeatures import row_features
from features.stage_windows import StageWindows

__all__ = [
    "Dedupe",
    "EntityWindows",
    "HistoryWindows",
    "LabelledWindows",
    "StageWindows",
    "StateError",
    "entity_state",
    "interleave",
    "row_features",
    "warm",
]

_DAY_MS = 86_400_000


@overload
def entity_state(
    features: Sequence[WindowFeature],
    *,
    labelled: Literal[True],
    allowed_lateness_ms: int = ...,
    bytes_max: int | None = ...,
    arrays: Mapping[str, npt.NDArray[Any]] | None = ...,
) -> LabelledWindows | StageWindows: ...


@overload
def entity_state(
    features: Sequence[WindowFeature],
    *,
    labelled: Literal[False],
    allowed_lateness_ms: int = ...,
    bytes_max: int | None = ...,
    arrays: Mapping[str, npt.NDArray[Any]] | None = ...,
) -> EntityWindows | StageWindows: ...


def entity_state(
    features: Sequence[WindowFeature],
    *,
    labelled: bool,
    allowed_lateness_ms: int = LATENESS_MS,
    bytes_max: int | None = None,
    arrays: Mapping[str, npt.NDArray[Any]] | None = None,
) -> EntityWindows | StageWindows:
    """The state for these features of one stage (`FeatureSet.for_stage`), empty or as its ``arrays`` say.

    ``bytes_max`` bounds its memory: `BoundError` where a row would need more.

    Where prefix sums do for all of them it is their state alone, else one that joins the kinds that are needed.
    """
    settings: dict[str, Any] = {"allowed_lateness_ms": allowed_lateness_ms, "bytes_max": bytes_max}
    kind: type[EntityWindows | StageWindows] = LabelledWindows if labelled else EntityWindows
    if not all(f.by_prefix_sums for f in features):
        kind, settings = StageWindows, {**settings, "labelled": labelled}
    return kind(features, **settings) if arrays is None else kind.from_arrays(arrays, features, **settings)


def interleave(times: IntArray, label_times: IntArray) -> BoolArray:
    """Order of rows and labels, each sorted by time, in one log: a label before rows of the same time.

    (rows + labels,) bool, True = the next label, False = the next row: the ``kinds`` of `LabelledWindows.process`.
    """
    kinds = np.zeros(len(times) + len(label_times), np.bool_)
    kinds[np.searchsorted(times, label_times, side="left") + np.arange(len(label_times))] = True
    return kinds


def warm(features: FeatureSet = DEFAULT) -> None:
    """Compiles every kernel that the set needs, by a tiny run of all its states: to be called before subscribing."""
    n = 600
    numbers = np.arange(n, dtype=np.int64)
    times = numbers // 2 * _DAY_MS  # so that keys come, go idle and leave, and every table grows
    ids = Ids(ints=numbers)
    names = {name for stage in features.stages for f in features.for_stage(stage) for name in (*f.keys, *f.fields)}
    columns: dict[str, npt.NDArray[Any]] = {name: np.ones(n) for name in names} | {"event_time": times}
    block = Block("warm", 0, n, numbers, times, dict.fromkeys((*names, "transaction_id"), ids), columns)
    labels = Block("warm", 0, n, numbers, times, {"transaction_id": ids}, {"label_time": times, "is_fraud": np.ones(n)})
    dedupe = Dedupe()
    for _ in range(2):
        dedupe.process(ids.keys(), times)
        dedupe = Dedupe.from_arrays(dedupe.to_arrays())
    for stage in features.stages:
        windows = features.for_stage(stage)
        if any(f.aggregate == "risk" for f in windows):
            judged = entity_state(windows, labelled=True)
            judged.process(block, labels)
            entity_state(windows, labelled=True, arrays=judged.to_arrays()).process(block, labels)
        else:
            state = entity_state(windows, labelled=False)
            state.process(block)
            entity_state(windows, labelled=False, arrays=state.to_arrays()).process(block)
