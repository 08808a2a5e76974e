"""Training of the fraud model with an honest split by time: train, wait for the labels, test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray, IntArray
from models.boosting import FRAUD_PARAMS, FRAUD_ROUNDS, Rows, Settings, Steps, fit
from models.budget import LEAF_PARTS, MEASURED_ROWS, cut_to, shrink
from models.calibrate import Calibration, CalibrationMethod, fit_calibration
from models.conformal import carried_over, coverage, fit_conformal
from models.errors import ModelError
from models.folds import DAY_MS, Folds, Split
from models.histogram import reference
from models.intervals import metric_intervals
from models.lightgbm import LightGBMPredictor
from models.metrics import calibration_table, evaluate, not_known_before
from models.package import Draft
from models.search import search

__all__ = ["DAY_MS", "Recipe", "Split", "Tested", "Trained", "train_fraud"]


#: fewer rows do not say where a model puts its scores
_CARRY_ROWS_MIN = 1000
#: for the manifest
_PROTOCOL = (
    "folds of the training range by time: fit, validation (where settings were chosen, validation_gap_ms after the end "
    "of fit), calibration; the model is then trained on all of it; labels come before the test range; test rows of "
    "cards with a fraud known by their day, counted from known_from or train_from, are not measured"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train; ModelError where a value cannot be.

    ``calibration_share``: the last part of the training range is the calibration's fold, and as much before it is the
    validation's where ``search`` or ``budget_us`` need one. ``class_weight``: how many legitimate rows a fraud counts
    for, "balanced": so many that both classes weigh the same. ``search``: trials, see `models.search.search`;
    ``budget_us``: microseconds per row at most, see `models.budget.shrink`. ``alpha``: see `models.conformal`.
    ``resamples``: of the bootstrap of the metrics, 0: no intervals. ``seed``: of search and bootstrap.
    """

    calibration: CalibrationMethod = "platt"
    calibration_share: float = 0.25
    class_weight: float | Literal["balanced"] = 1.0
    search: int = 0
    budget_us: float | None = None
    alpha: float = 0.1
    resamples: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        weight = self.class_weight
        wrong = {
            f"calibration: {self.calibration!r} is unknown; use one of {', '.join(get_args(CalibrationMethod))}": (
                self.calibration not in get_args(CalibrationMethod)
            ),
            f"calibration share: {self.calibration_share} is not above 0 and at most 0.4; give 0.25": (
                not 0.0 < self.calibration_share <= 0.4
            ),
            f"class weight: {weight!r} is neither above 0 nor balanced; give one of them": (
                weight != "balanced" if isinstance(weight, str) else not 0.0 < weight < float("inf")
            ),
            f"search: {self.search} trials; give 0 or more": self.search < 0,
            f"resamples: {self.resamples}; give 0 or more": self.resamples < 0,
            f"conformal alpha: {self.alpha} is not between 0 and 1; give 0.1": not 0.0 < self.alpha < 1.0,
            f"budget: {self.budget_us} us; give more than 0": self.budget_us is not None and not self.budget_us > 0.0,
        }
        for text, is_wrong in wrong.items():
            if is_wrong:
                raise ModelError(text)

    @property
    def trainings(self) -> int:
        """How many models are trained."""
        budget = 0 if self.budget_us is None else 1 + 2 * len(LEAF_PARTS)
        return 2 + (self.search + 1 if self.search else 0) + budget


@dataclass(frozen=True, slots=True)
class Tested:
    """The test range as it was measured: ``x`` (n, d), all others (n,), ``y`` bool, ``day`` since the epoch."""

    x: FloatArray
    raw: FloatArray
    probability: FloatArray
    y: BoolArray
    day: IntArray
    card: IntArray


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model: LightGBM's text, its calibration, the test metrics and what it was trained on.

    ``evaluation``: ``intervals`` of the metrics (`metric_intervals`; absent without resamples) and the
    ``calibration_table``. ``conformal``: `Conformal.to_json`, how many rows of each class the ``fold`` had
    that it is of, how many rows it was ``carried_by`` (0: it was not), and what is ``measured`` on all rows of the
    test range.
    ``reference``: `models.histogram.reference` of the test range's rows, which the model was not trained on.
    """

    model_text: str
    features: tuple[str, ...]
    calibration: Calibration
    metrics: dict[str, float]
    training: dict[str, Any]
    evaluation: dict[str, Any]
    conformal: dict[str, Any]
    reference: dict[str, Any]
    tested: Tested = field(repr=False)

    def draft(
        self,
        name: str,
        schema_hash: str,
        created_at: str,
        categories: Mapping[str, Mapping[str, int]] | None = None,
    ) -> Draft:
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
            evaluation=self.evaluation,
            conformal=self.conformal,
            reference=self.reference,
            categories=categories or {},
        )


def train_fraud(
    x: FloatArray,
    y: npt.ArrayLike,
    event_time_ms: IntArray,
    card: IntArray,
    features: Sequence[str],
    split: Split,
    recipe: Recipe | None = None,
    *,
    categorical: Sequence[str] = (),
    num_threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train on the rows of ``split``'s training range, calibrate, and measure on its test range.

    ``x`` (n, d) float64 with the d ``features``, those in ``categorical`` category codes; ``y`` (n,) 0/1, ``card`` (n,)
    integers that identify cards (for card precision). Rows in any order of time.

    1. With a search or a budget, settings are chosen on the validation fold, see `models.folds.Folds`.
    2. The model returned is trained on the whole range, and cut to the budget.
    3. Another one of the same settings, trained on the rows before the calibration's fold, scores it; calibration and
       conformal thresholds are fitted to these scores. The model returned has seen more rows than this one, which the
       test's Brier score and log loss include; the thresholds are carried over to it by the rows whose labels are still
       waited for when the training ends (`models.conformal.carried_over`).
    4. The test range is measured once. Nothing is chosen by it.

    ``progress(done, all)`` is called after each boosting round. ``num_threads`` changes nothing but the time.
    """
    recipe = recipe or Recipe()
    labels = np.asarray(y).astype(np.int8)
    validate = recipe.search > 0 or recipe.budget_us is not None
    folds = Folds.of(event_time_ms, labels, split, recipe.calibration_share, validate)
    data = Rows(x, labels, tuple(features), tuple(categorical))
    steps = Steps(progress, recipe.trainings)
    settings, chosen = _settings(data, folds, card, recipe, num_threads, steps)

    text = fit(data, folds.train, settings, num_threads, steps).text
    if recipe.budget_us is not None:
        cut = cut_to(text, recipe.budget_us, data.matrix(folds.train, MEASURED_ROWS))
        text, settings = cut.text, settings.changed(rounds=cut.rounds)
        chosen["budget"] |= {"us_per_row": cut.us_per_row, "rounds": cut.rounds}
    first = fit(data, folds.train & ~folds.calibration, settings, num_threads, steps)
    raw = LightGBMPredictor(first.text).predict_raw(data.matrix(folds.calibration))
    calibration = fit_calibration(recipe.calibration, raw, labels[folds.calibration])
    conformal = fit_conformal(raw, labels[folds.calibration], recipe.alpha)
    waiting = (event_time_ms >= split.train_to) & (event_time_ms < split.train_to + split.label_delay_ms)
    carried_by = int(waiting.sum())
    if carried_by >= _CARRY_ROWS_MIN:
        after = LightGBMPredictor(text, num_threads).predict_raw(data.matrix(waiting))
        conformal = carried_over(conformal, raw, after)
    else:
        carried_by = 0

    all_raw = LightGBMPredictor(text, num_threads).predict_raw(data.matrix(folds.test))
    measured = _unknown(split, event_time_ms, card, labels)[folds.test]
    rows, raw = np.flatnonzero(folds.test)[measured], all_raw[measured]
    _check_measured(split, labels[rows])
    tested = Tested(x[rows], raw, calibration.apply(raw), labels[rows] == 1, event_time_ms[rows] // DAY_MS, card[rows])
    return Trained(
        model_text=text,
        features=tuple(features),
        calibration=calibration,
        metrics=evaluate(raw, tested.probability, tested.y, tested.day, tested.card),
        training=_training(split, folds, labels, settings) | chosen,
        evaluation=_evaluation(tested, recipe),
        conformal=conformal.to_json()
        | {
            "fold": _classes(labels[folds.calibration]),
            "carried_by": carried_by,
            "measured": coverage(conformal, all_raw, labels[folds.test], card[folds.test]),
        },
        reference=reference(data.matrix(folds.test), features, calibration.apply(all_raw)),
        tested=tested,
    )


def _check_measured(split: Split, y: npt.NDArray[np.int8]) -> None:
    """ModelError where the rows that are measured tell nothing."""
    frauds = int(np.count_nonzero(y))
    if frauds in (0, len(y)):
        raise ModelError(
            f"test range [{split.test_from}, {split.test_to}): of {len(y)} transactions of cards without a known fraud "
            f"{frauds} are frauds; both kinds are needed: give a longer range, or another one"
        )


def _training(split: Split, folds: Folds, y: npt.NDArray[np.int8], settings: Settings) -> dict[str, Any]:
    """What the model was trained on and how, as plain data."""
    return split.to_json() | {
        "rows": int(folds.train.sum()),
        "frauds": int(y[folds.train].sum()),
        "protocol": _PROTOCOL,
        "validation_from": folds.validation_from,
        "validation_gap_ms": folds.gap_ms,
        "calibration_from": folds.calibration_from,
        "rounds": settings.rounds,
        "params": dict(settings.params),
    }


def _settings(
    data: Rows, folds: Folds, card: IntArray, recipe: Recipe, num_threads: int, steps: Steps
) -> tuple[Settings, dict[str, Any]]:
    """The settings to train with, and how they were found, as plain data."""
    settings, found = Settings(FRAUD_PARAMS, FRAUD_ROUNDS), {}
    if recipe.class_weight != 1.0:
        before = data.y[folds.train & ~folds.calibration]
        weight = recipe.class_weight
        ratio = float(np.sum(before == 0) / np.sum(before == 1)) if isinstance(weight, str) else weight
        settings = settings.changed(scale_pos_weight=ratio)
    if recipe.search:
        assert folds.validation is not None
        searched = search(
            data,
            folds.fit,
            folds.validation,
            card,
            settings,
            trials=recipe.search,
            seed=recipe.seed,
            num_threads=num_threads,
            steps=steps,
        )
        settings, found["search"] = searched.settings, searched.summary
    if recipe.budget_us is not None:
        assert folds.validation is not None
        shrunk = shrink(
            data,
            folds.fit,
            folds.validation,
            card,
            settings,
            recipe.budget_us,
            num_threads=num_threads,
            steps=steps,
        )
        settings, found["budget"] = shrunk.settings, shrunk.summary
    return settings, found


def _unknown(split: Split, event_time_ms: IntArray, card: IntArray, labels: npt.NDArray[np.int8]) -> BoolArray:
    """(n,) rows that the protocol measures: those of cards without a fraud known by their day."""
    since = event_time_ms >= (split.train_from if split.known_from is None else split.known_from)
    day = event_time_ms // DAY_MS
    unknown = np.zeros(len(event_time_ms), dtype=np.bool_)
    unknown[since] = not_known_before(day[since], card[since], labels[since], -(-split.label_delay_ms // DAY_MS))
    return unknown


def _classes(y: npt.NDArray[np.int8]) -> dict[str, int]:
    return {"fraud": int(y.sum()), "legitimate": int(np.sum(y == 0))}


def _evaluation(tested: Tested, recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = {"calibration_table": calibration_table(tested.probability, tested.y)}
    if recipe.resamples:
        found["intervals"] = metric_intervals(
            tested.raw,
            tested.probability,
            tested.y,
            tested.day,
            tested.card,
            resamples=recipe.resamples,
            seed=recipe.seed,
        )
    return found
