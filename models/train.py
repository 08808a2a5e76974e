"""Training of the fraud model with an honest split by time: train, wait for the labels, test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray, IntArray
from models.calibrate import Calibration, fit_platt
from models.errors import ModelError
from models.lightgbm import LightGBMPredictor
from models.metrics import evaluate, not_known_before
from models.package import Draft

__all__ = ["DAY_MS", "FRAUD_PARAMS", "Split", "Trained", "train_fraud"]

DAY_MS = 86_400_000

#: Settings of the published comparison on the card-fraud data; fixed, so that two trainings give the same model.
FRAUD_PARAMS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.03,
    "num_leaves": 15,
    "max_bin": 1023,
    "min_child_samples": 50,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 1,
    "verbosity": -1,
}
FRAUD_ROUNDS = 200


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
class Trained:
    """A trained model: LightGBM's text, its calibration, the test metrics and what it was trained on."""

    model_text: str
    features: tuple[str, ...]
    calibration: Calibration
    metrics: dict[str, float]
    training: dict[str, Any]

    def draft(self, name: str, schema_hash: str, created_at: str) -> Draft:
        """As a package, see `models.registry.Registry.add`."""
        return Draft(
            name=name,
            model_text=self.model_text,
            features=self.features,
            schema_hash=schema_hash,
            created_at=created_at,
            calibration=self.calibration,
            training=self.training,
            metrics=self.metrics,
        )


def train_fraud(
    x: FloatArray,
    y: npt.ArrayLike,
    event_time_ms: IntArray,
    card: IntArray,
    features: Sequence[str],
    split: Split,
    *,
    calibration_share: float = 0.25,
    num_threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train on the rows of ``split``'s training range, calibrate, and measure on its test range.

    ``x`` (n, d) float64 with the d ``features``, ``y`` (n,) 0/1, ``card`` (n,) integers that identify cards (for
    card precision). Rows in any order of time.

    The calibration's fold is the last ``calibration_share`` of the training range: a first model, trained on the rows
    before it, scores it, and Platt's map is fitted to these scores. The model returned is then trained on the whole
    range; it has seen more rows than the one calibrated, which the test's Brier score and log loss include.
    ``progress(done, all)`` is called after each boosting round. ``num_threads`` changes nothing but the time.
    """
    labels = np.asarray(y).astype(np.int8)
    train = (event_time_ms >= split.train_from) & (event_time_ms < split.train_to)
    test = (event_time_ms >= split.test_from) & (event_time_ms < split.test_to)
    fold_from = int(np.ceil(split.train_to - calibration_share * (split.train_to - split.train_from)))
    fold = train & (event_time_ms >= fold_from)
    for name, rows in (("train", train & ~fold), ("calibration", fold), ("test", test)):
        frauds = int(labels[rows].sum())
        if frauds == 0 or frauds == int(rows.sum()):
            raise ModelError(f"{name} range: {int(rows.sum())} rows, {frauds} frauds; both classes needed, widen it")

    step = _Progress(progress, 2 * FRAUD_ROUNDS)
    first = _fit(x, labels, train & ~fold, features, num_threads, step)
    calibration = fit_platt(LightGBMPredictor(first).predict_raw(np.ascontiguousarray(x[fold])), labels[fold])
    text = _fit(x, labels, train, features, num_threads, step)

    raw = LightGBMPredictor(text, num_threads).predict_raw(np.ascontiguousarray(x[test]))
    since = event_time_ms >= (split.train_from if split.known_from is None else split.known_from)
    day = event_time_ms // DAY_MS
    unknown = np.zeros(len(x), dtype=np.bool_)
    unknown[since] = not_known_before(day[since], card[since], labels[since], -(-split.label_delay_ms // DAY_MS))
    use = unknown[test]
    metrics = evaluate(raw[use], calibration.apply(raw[use]), labels[test][use], day[test][use], card[test][use])
    training = split.to_json() | {
        "rows": int(train.sum()),
        "frauds": int(labels[train].sum()),
        "calibration_from": fold_from,
        "rounds": FRAUD_ROUNDS,
        "params": FRAUD_PARAMS,
    }
    return Trained(text, tuple(features), calibration, metrics, training)


class _Progress:
    """LightGBM callback that counts rounds over several trainings."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def __call__(self, env: Any) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._done, self._total)


def _fit(
    x: FloatArray,
    y: npt.NDArray[np.int8],
    rows: BoolArray,
    features: Sequence[str],
    num_threads: int,
    step: _Progress,
) -> str:
    data = lightgbm.Dataset(x[rows], y[rows], feature_name=list(features), params={"verbosity": -1})
    params = FRAUD_PARAMS | {"num_threads": num_threads}
    text: str = lightgbm.train(params, data, FRAUD_ROUNDS, callbacks=[step]).model_to_string()
    return text
