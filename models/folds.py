"""Which rows a model learns from, is chosen on, is calibrated on and is tested on: by time, never mixed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, IntArray
from models.errors import ModelError

__all__ = ["DAY_MS", "Folds", "Split"]

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Split:
    """Event times in ms since the epoch, UTC, ends excluded: rows in [train_from, train_to) and [test_from, test_to).

    ``label_delay_ms``: a row's label is known that long after its event, so the test may begin at
    ``train_to + label_delay_ms`` at the earliest: ModelError otherwise. Test rows of cards with a fraud known by
    their day, counted from ``known_from`` (default: train_from, the protocol's), are left out; trainings of
    different length are compared with one ``known_from``.
    """

    train_from: int
    train_to: int
    test_from: int
    test_to: int
    label_delay_ms: int = 7 * DAY_MS
    known_from: int | None = None

    def __post_init__(self) -> None:
        if not self.train_from < self.train_to:
            raise ModelError(f"train range: ends at {self.train_to}, not after its begin {self.train_from}; swap them")
        if not self.test_from < self.test_to:
            raise ModelError(f"test range: ends at {self.test_to}, not after its begin {self.test_from}; swap them")
        if self.test_from < self.train_to + self.label_delay_ms:
            raise ModelError(
                f"test range: begins at {self.test_from}, before the labels of the training range are known at "
                f"{self.train_to + self.label_delay_ms} (its end + the delay); begin the test then, or train on less"
            )

    def to_json(self) -> dict[str, int | None]:
        """Plain data for a manifest."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Folds:
    """Masks (n,) of the rows of a split.

    The end of ``train`` is ``validation`` and ``calibration``, in this order of time; ``validation`` is None where no
    such fold was asked for, and ``fit`` is then what is left. Else ``fit`` is as long as what is left but ends
    ``gap_ms`` before the validation begins, as the training ends before the test: it may reach back behind the training
    range. The gap is the label's delay, or less where that would leave less than half as many rows.
    """

    train: BoolArray
    fit: BoolArray
    validation: BoolArray | None
    calibration: BoolArray
    test: BoolArray
    validation_from: int | None
    calibration_from: int
    gap_ms: int = 0

    @classmethod
    def of(cls, event_time_ms: IntArray, y: npt.NDArray[np.int8], split: Split, share: float, validate: bool) -> Folds:
        """The last ``share`` of the training range is the calibration's, with ``validate`` as much before it the
        validation's. ModelError: a fold lacks a class of ``y`` (n,) 0/1."""
        length = split.train_to - split.train_from
        first, second = (int(np.ceil(split.train_to - k * share * length)) for k in (2, 1))
        train = (event_time_ms >= split.train_from) & (event_time_ms < split.train_to)
        test = (event_time_ms >= split.test_from) & (event_time_ms < split.test_to)
        calibration = train & (event_time_ms >= second)
        validation = train & (event_time_ms >= first) & ~calibration if validate else None
        fit, gap = train & ~calibration, 0
        if validate:
            gap = _gap(np.sort(event_time_ms), split, first)
            fit = (event_time_ms >= split.train_from - gap) & (event_time_ms < first - gap)
        ranges = {
            "fit" if validate else "train": fit,
            "validation": validation,
            "calibration": calibration,
            "test": test,
        }
        for name, rows in ranges.items():
            if rows is None:
                continue
            frauds = int(y[rows].sum())
            if frauds in (0, int(rows.sum())):
                raise ModelError(
                    f"{name} range: {int(rows.sum())} rows, {frauds} frauds; both classes needed, widen it"
                )
        return cls(train, fit, validation, calibration, test, first if validate else None, second, gap)


def _gap(times: IntArray, split: Split, first: int) -> int:
    """What is left out before ``first``, in 28ths of the label's delay; of rows at ``times`` (n,), sorted."""

    def rows(gap: int) -> int:
        begin, end = np.searchsorted(times, [split.train_from - gap, first - gap])
        return int(end - begin)

    gaps = (split.label_delay_ms * k // 28 for k in range(28, 0, -1))
    return next((gap for gap in gaps if 2 * rows(gap) >= rows(0)), 0)
