"""From a feature set to columns: one state per entity and partition, ``process(block) -> (matrix, late)``.

    cards = EntityWindows(DEFAULT.for_entity("card_id"))
    matrix, late = cards.process(block)                  # (n, k) float64, (n,) bool
    terminals = LabelledWindows(DEFAULT.for_entity("terminal_id"))
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

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.block import Block, BoolArray, FloatArray, Ids, IntArray
from features.declare import RowFeature
from features.entity_windows import EntityWindows
from features.fifo import Dedupe
from features.fraud import DEFAULT
from features.labelled_windows import LabelledWindows
from features.plan import StateError

__all__ = ["Dedupe", "EntityWindows", "LabelledWindows", "StateError", "interleave", "row_features", "warm"]

_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
_NIGHT_HOUR_LAST = 6


def row_features(features: Sequence[RowFeature], block: Block) -> FloatArray:
    """(n, len(features)) float64: features of each row alone; weekday and hour are in UTC."""
    out = np.empty((len(block), len(features)), np.float64)
    for j, feature in enumerate(features):
        column = block.columns[feature.field]
        if feature.operation == "field":
            out[:, j] = column
        elif feature.operation == "weekend":
            out[:, j] = (column.astype(np.int64) // _DAY_MS + 3) % 7 >= 5  # day 0 was a Thursday
        else:
            out[:, j] = column.astype(np.int64) % _DAY_MS // _HOUR_MS <= _NIGHT_HOUR_LAST
    return out


def interleave(times: IntArray, label_times: IntArray) -> BoolArray:
    """Order of rows and labels, each sorted by time, in one log: a label before rows of the same time.

    (rows + labels,) bool, True = the next label, False = the next row: the ``kinds`` of `LabelledWindows.process`.
    """
    kinds = np.zeros(len(times) + len(label_times), np.bool_)
    kinds[np.searchsorted(times, label_times, side="left") + np.arange(len(label_times))] = True
    return kinds


def warm() -> None:
    """Compiles every kernel, by a tiny run of all states: to be called before subscribing."""
    n = 600
    numbers = np.arange(n, dtype=np.int64)
    times = numbers // 2 * _DAY_MS  # so that keys come, go idle and leave, and every table grows
    ids = Ids(ints=numbers)
    columns: dict[str, npt.NDArray[Any]] = {"event_time": times, "amount": np.ones(n)}
    block = Block("warm", 0, n, numbers, times, {f"{e}_id": ids for e in ("transaction", "card", "terminal")}, columns)
    labels = Block("warm", 0, n, numbers, times, {"transaction_id": ids}, {"label_time": times, "is_fraud": np.ones(n)})
    cards, terminals = DEFAULT.for_entity("card_id"), DEFAULT.for_entity("terminal_id")
    by_card, by_terminal, dedupe = EntityWindows(cards), LabelledWindows(terminals), Dedupe()
    for _ in range(2):
        dedupe.process(ids.keys(), times)
        by_card.process(block)
        by_terminal.process(block, labels)
        dedupe = Dedupe.from_arrays(dedupe.to_arrays())
        by_card = EntityWindows.from_arrays(by_card.to_arrays(), cards)
        by_terminal = LabelledWindows.from_arrays(by_terminal.to_arrays(), terminals)
