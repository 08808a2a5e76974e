"""A challenger from the newest labelled rows: the champion's leaf values refitted, or new trees; honest by time.

The rows since the world changed are cut by time: what is proposed is fitted on the earlier ones and chosen on the last
third, beside the champion. Only what is better there is fitted again on all of them and given back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightgbm
import numpy as np

from features.block import BoolArray, FloatArray, IntArray
from models.calibrate import Calibration, fit_platt
from models.conformal import fit_conformal
from models.errors import ModelError
from models.evidence import average_precision, paired_evidence
from models.lightgbm import LightGBMPredictor
from models.modeltext import load_booster

__all__ = [
    "DEFAULT_ALPHA",
    "DEFAULT_PARAMS",
    "DEFAULT_ROUNDS",
    "Champion",
    "Declined",
    "Kind",
    "LabelledRows",
    "Rebuilt",
    "rebuild",
]

Kind = Literal["refit", "retrain"]

#: of a champion that does not say how it was trained
DEFAULT_PARAMS = {"objective": "binary", "learning_rate": 0.05, "num_leaves": 15, "min_child_samples": 50}
DEFAULT_ROUNDS = 200
DEFAULT_ALPHA = 0.1

#: share of the rows since the change that choose
_VALIDATION = 1 / 3
#: of the former leaf values, how much is kept by a refit
_DECAYS = (0.1, 0.5, 0.9)


class Declined(ModelError):
    """Nothing is proposed; the text says why."""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows with their final labels: ``x`` (n, d) the columns ``features``, ``y`` (n,) 0/1, ``event_time_ms`` (n,),
    ``group`` (n,) integers of who belongs together, such as the card. In any order."""

    features: tuple[str, ...]
    x: FloatArray
    y: IntArray
    event_time_ms: IntArray
    group: IntArray

    def take(self, index: IntArray | BoolArray) -> LabelledRows:
        """These rows."""
        return LabelledRows(self.features, self.x[index], self.y[index], self.event_time_ms[index], self.group[index])

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True)
class Champion:
    """What is to be beaten, and how it was trained: LightGBM's parameters and rounds; ``alpha``: of its conformal
    sets."""

    model_text: str
    calibration: Calibration
    params: Mapping[str, Any]
    rounds: int
    alpha: float = DEFAULT_ALPHA


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A challenger: ``recipe`` says how it was made, ``metrics`` are those of the rows that chose it, and of the
    champion on the same rows as ``champion_..``; ``rows`` and ``frauds`` it was fitted on at last. ``conformal``: as a
    manifest has it, of the rows that chose the recipe, not measured on later ones."""

    model_text: str
    calibration: Calibration
    recipe: str
    metrics: dict[str, float]
    rows: int
    frauds: int
    conformal: Mapping[str, Any]


#: fits on rows and gives a model text
_Fit = Callable[[LabelledRows], str]


def rebuild(rows: LabelledRows, since_ms: int, champion: Champion, kind: Kind, *, num_threads: int = 1) -> Rebuilt:
    """A challenger of the champion that is better on the last third of the rows since ``since_ms`` (event time).

    ``refit``: the champion's trees with leaf values moved towards the rows since the change. ``retrain``: new trees on
    these rows, or on all rows there are. The same rows in any order give the same bits. Declined: too few frauds to
    choose by, or nothing better than the champion.
    """
    # ties of time are broken by content, so that the order of the input cannot show
    rows = rows.take(np.lexsort((rows.x[:, 0], rows.group, rows.event_time_ms)))
    since = rows.event_time_ms >= since_ms
    places = np.flatnonzero(since)
    if len(places) < 3:
        raise Declined(f"{len(places)} labelled rows since the change; nothing can be learned of them yet")
    begin = int(rows.event_time_ms[places[len(places) - int(len(places) * _VALIDATION) - 1]])
    earlier, later = rows.event_time_ms < begin, rows.event_time_ms >= begin
    validation = rows.take(later)
    best: tuple[float, str, _Fit, BoolArray, FloatArray] | None = None
    for recipe, fit, use in _recipes(champion, kind, since, num_threads):
        if not _both_classes(rows.y[use & earlier]):
            continue
        raw = LightGBMPredictor(fit(rows.take(use & earlier)), num_threads).predict_raw(validation.x)
        found = average_precision(validation.y, raw)
        if best is None or found > best[0]:
            best = (found, recipe, fit, use, raw)
    if best is None or not _both_classes(validation.y):
        raise Declined(f"{int(rows.y[since].sum())} frauds since the change are too few to learn from and to choose by")
    _, recipe, fit, use, raw = best
    calibration = fit_platt(raw, validation.y)
    metrics = _metrics(validation, champion, calibration.apply(raw), num_threads)
    if metrics["average_precision"] <= metrics["champion_average_precision"]:
        raise Declined(
            f"{recipe}: average precision {metrics['average_precision']:.3f} on the last {len(validation)} rows, the "
            f"champion has {metrics['champion_average_precision']:.3f}"
        )
    # of the scores of rows that were not learned from, as the calibration is; what is fitted again on all rows leaves
    # none by which the thresholds could be carried over to it
    frauds = int(validation.y.sum())
    conformal = fit_conformal(raw, validation.y, champion.alpha).to_json()
    conformal["fold"] = {"fraud": frauds, "legitimate": len(validation) - frauds}
    final = rows.take(use)
    return Rebuilt(fit(final), calibration, recipe, metrics, len(final), int(final.y.sum()), conformal)


def _recipes(
    champion: Champion, kind: Kind, since: BoolArray, num_threads: int
) -> Sequence[tuple[str, _Fit, BoolArray]]:
    if kind == "refit":
        return [(f"refit, decay {decay}", _refitted(champion, decay), since) for decay in _DECAYS]
    params = {**champion.params, "num_threads": num_threads, "deterministic": True, "force_row_wise": True}
    fit = _trained({"seed": 1, "verbosity": -1} | params, champion.rounds)
    return [("rows since the change", fit, since), ("all rows", fit, np.ones(len(since), np.bool_))]


def _refitted(champion: Champion, decay: float) -> _Fit:
    def fit(rows: LabelledRows) -> str:
        booster = load_booster(champion.model_text)
        booster.params |= {"num_threads": 1, "verbosity": -1}
        text: str = booster.refit(rows.x, rows.y, decay_rate=decay, feature_name=list(rows.features)).model_to_string()
        return text

    return fit


def _trained(params: Mapping[str, Any], rounds: int) -> _Fit:
    def fit(rows: LabelledRows) -> str:
        names = list(rows.features)
        data = lightgbm.Dataset(rows.x, rows.y, feature_name=names, params={"verbosity": -1})
        text: str = lightgbm.train(dict(params), data, rounds).model_to_string()
        return text

    return fit


def _both_classes(y: IntArray) -> bool:
    return 0 < int(y.sum()) < len(y)


def _metrics(
    validation: LabelledRows, champion: Champion, probability: FloatArray, num_threads: int
) -> dict[str, float]:
    raw = LightGBMPredictor(champion.model_text, num_threads).predict_raw(validation.x)
    every, before = np.ones(len(validation), np.bool_), champion.calibration.apply(raw)
    # the intervals are not looked at: what is promoted is decided on later rows
    found = paired_evidence(validation.y, before, probability, validation.group, every, resamples=1)
    if not found.differences:
        raise Declined(f"{found.frauds} frauds in the last third of the rows since the change are too few to choose by")
    metrics: dict[str, float] = {"rows": found.rows, "frauds": found.frauds}
    for name, difference in found.differences.items():
        metrics |= {name: difference.challenger, f"champion_{name}": difference.champion}
    return metrics
