"""All windows of one stage: prefix sums, tiles and histories, of each entity whose first field is the stage's key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, prefixed, under
from features.block import Block, BoolArray, FloatArray
from features.durations import FeatureError
from features.entity_windows import EntityWindows
from features.history import HistoryWindows
from features.labelled_windows import LabelledWindows
from features.plan import LATENESS_MS, BoundError, StateError
from features.tiled import TiledWindows
from features.windowfeature import WindowFeature

__all__ = ["StageWindows"]

_SUMS = "sums."
_TILED = "tiled."


def _prefix(feature: WindowFeature) -> str:
    """Before the names of the arrays of the state that keeps the feature."""
    if feature.by_prefix_sums:
        return _SUMS
    return f"{_TILED}{feature.entity}." if feature.tile_ms else f"history.{feature.entity}."


class StageWindows:
    """One state per way of keeping windows and entity, as one: columns in the order of the features given.

    With ``labelled`` the prefix sums are `LabelledWindows`, and `process` takes labels. ``bytes_max`` bounds `nbytes`:
    `BoundError` where a row would need more, after which the states hold different parts of the block and are to be
    rebuilt from the log.
    """

    def __init__(
        self,
        features: Sequence[WindowFeature],
        *,
        allowed_lateness_ms: int = LATENESS_MS,
        labelled: bool = False,
        bytes_max: int | None = None,
    ) -> None:
        stages = sorted({f.keys[0] for f in features})
        if len(stages) != 1:
            raise FeatureError(
                f"window features of one stage are needed, got {stages or 'none'}; give the result of "
                "FeatureSet.for_stage(..)"
            )
        self.entity = stages[0]
        self.names = tuple(f.name for f in features)
        self.allowed_lateness_ms = allowed_lateness_ms
        self.bytes_max = bytes_max
        self._labelled = labelled
        groups: dict[str, list[WindowFeature]] = {}
        for f in features:
            groups.setdefault(_prefix(f), []).append(f)
        #: prefix of the state's arrays -> its features
        self._groups = {prefix: tuple(group) for prefix, group in groups.items()}
        place = {name: i for i, name in enumerate(self.names)}
        self._places = {prefix: [place[f.name] for f in group] for prefix, group in groups.items()}
        self._sums: EntityWindows | None = None
        if sums := self._groups.get(_SUMS):
            kind = LabelledWindows if labelled else EntityWindows
            self._sums = kind(sums, allowed_lateness_ms=allowed_lateness_ms)
        self._others: dict[str, HistoryWindows | TiledWindows] = {
            prefix: (TiledWindows if prefix.startswith(_TILED) else HistoryWindows)(
                group, allowed_lateness_ms=allowed_lateness_ms
            )
            for prefix, group in self._groups.items()
            if prefix != _SUMS
        }

    @property
    def _states(self) -> dict[str, EntityWindows | HistoryWindows | TiledWindows]:
        sums = {} if self._sums is None else {_SUMS: self._sums}
        return {**sums, **self._others}

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns and ids of a block that are read besides the event time and the entity."""
        return tuple(dict.fromkeys(name for state in self._states.values() for name in state.fields))

    @property
    def stream_time_ms(self) -> int | None:
        """Largest event time seen; None before the first row."""
        return next(iter(self._states.values())).stream_time_ms

    @property
    def nbytes(self) -> int:
        """Bytes of memory the states hold."""
        return sum(state.nbytes for state in self._states.values())

    @property
    def labels_repeated(self) -> int:
        """Labels that said again what was known."""
        return self._sums.labels_repeated if isinstance(self._sums, LabelledWindows) else 0

    @property
    def labels_contradicting(self) -> int:
        """Labels that said the opposite of an earlier one."""
        return self._sums.labels_contradicting if isinstance(self._sums, LabelledWindows) else 0

    @property
    def labels_unknown(self) -> int:
        """Labels that came when their transaction was not known: the positive ones wait for it."""
        return self._sums.labels_unknown if isinstance(self._sums, LabelledWindows) else 0

    @property
    def waiting_forced(self) -> int:
        """Waiting labels dropped because too many were waiting."""
        return self._sums.waiting_forced if isinstance(self._sums, LabelledWindows) else 0

    def process(
        self, block: Block, labels: Block | None = None, kinds: BoolArray | None = None, *, wanted: bool = True
    ) -> tuple[FloatArray, BoolArray]:
        """Features (n, k) float64 and late mask (n,) of the block's rows, which become part of the state.

        ``labels``, ``kinds`` and ``wanted`` as for `LabelledWindows.process`. StateError where a value cannot be held;
        then nothing has changed.
        """
        if labels is not None and not self._labelled:
            raise StateError(f"windows by {self.entity} were made without labels; make them with labelled=True")
        # every check comes before the first change: the others say what they would take, sums check and change at once
        columns: dict[str, Any] = {prefix: state.columns(block) for prefix, state in self._others.items()}
        made: dict[str, FloatArray] = {}
        late = np.zeros(len(block), np.bool_)
        if isinstance(self._sums, LabelledWindows):
            with self._bound(self._sums):
                made[_SUMS], late = self._sums.process(block, labels, kinds, wanted=wanted)
        elif self._sums is not None:
            with self._bound(self._sums):
                made[_SUMS], late = self._sums.process(block, wanted=wanted)
        for prefix, state in self._others.items():
            with self._bound(state):
                made[prefix], late = state.process_columns(*columns[prefix])
        if not wanted:
            return np.empty((len(block), 0), np.float64), late
        out = np.empty((len(block), len(self.names)), np.float64)
        for prefix, matrix in made.items():
            out[:, self._places[prefix]] = matrix
        return out, late

    @contextmanager
    def _bound(self, state: EntityWindows | HistoryWindows | TiledWindows) -> Iterator[None]:
        """The state may take what the others leave of ``bytes_max``, but drops what is idle before it takes more than
        its part of that: memory once taken is not given back, and the first one would take all."""
        if self.bytes_max is not None:
            left = max(0, self.bytes_max - self.nbytes)
            state.bytes_max, state.bytes_eager = state.nbytes + left, state.nbytes + left // len(self._states)
        try:
            yield
        except BoundError as exc:
            whole = f"{exc}. All windows of the stage share {self.bytes_max} bytes, {self.nbytes} are taken"
            raise BoundError(whole, exc.row, exc.label) from None

    def to_arrays(self) -> Arrays:
        """The arrays of all states, canonical as theirs, their names with a prefix: see `_prefix`."""
        arrays: Arrays = {}
        for prefix, state in self._states.items():
            arrays |= prefixed(prefix, state.to_arrays())
        return arrays

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, npt.NDArray[Any]],
        features: Sequence[WindowFeature],
        *,
        allowed_lateness_ms: int = LATENESS_MS,
        labelled: bool = False,
        bytes_max: int | None = None,
    ) -> Self:
        """The reverse of `to_arrays`; settings as for the constructor. StateError if of other features."""
        state = cls(features, allowed_lateness_ms=allowed_lateness_ms, labelled=labelled, bytes_max=bytes_max)
        found = {name.rpartition(".")[0] + "." for name in arrays}
        if found != set(state._groups):
            raise StateError(
                f"the saved state by {state.entity} has {', '.join(sorted(found))} where "
                f"{', '.join(sorted(state._groups))} are needed; rebuild it by replaying the log"
            )
        needed = sum(array.nbytes for array in arrays.values())
        if bytes_max is not None and needed > bytes_max:
            raise StateError(
                f"the saved state by {state.entity} has {needed} bytes, more than bytes_max = {bytes_max}; "
                "raise bytes_max"
            )
        for prefix, kept in state._states.items():
            loaded = type(kept).from_arrays(
                under(prefix, arrays), state._groups[prefix], allowed_lateness_ms=allowed_lateness_ms
            )
            if isinstance(loaded, EntityWindows):
                state._sums = loaded
            else:
                state._others[prefix] = loaded
        return state
