"""Split conformal prediction by class: which labels a score leaves possible, wrong at most so often.

For each class k the calibration fold's rows of that class are ranked by how badly the model's raw score fits k; label k
is left out of the set of a new row whose score fits worse than all but a share ``alpha`` of them. If new rows of class
k come from the same distribution as those of the fold, the true label is in the set with probability 1 - alpha or more,
for each class on its own (Vovk, 2013; Sadinle, Lei and Wasserman, 2019). Later rows are not quite from the same
distribution, so what is kept is to be measured on them. Raw scores are used, since a calibration may make ties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.block import BoolArray, FloatArray, IntArray
from models.errors import PackageError
from models.metrics import wilson

__all__ = ["FRAUD", "LEGITIMATE", "SET_LABELS", "UNSAID", "Conformal", "carried_over", "coverage", "fit_conformal"]

#: bits of a set
LEGITIMATE, FRAUD = 1, 2
#: in the place of a set, where a model has no thresholds
UNSAID = -1
#: the labels of each set
SET_LABELS = ((), ("legitimate",), ("fraud",), ("legitimate", "fraud"))
_SETS = {"none": 0, "legitimate": LEGITIMATE, "fraud": FRAUD, "both": LEGITIMATE | FRAUD}


@dataclass(frozen=True, slots=True)
class Conformal:
    """The set of a raw score holds fraud from ``fraud_from`` on, legitimate up to ``legitimate_to``, ends included.

    Either may be infinite: a class with too few rows in the fold is never left out. ``alpha``: the share of rows of a
    class whose set may lack it.
    """

    alpha: float
    fraud_from: float
    legitimate_to: float

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise PackageError(f"conformal alpha: {self.alpha} is not between 0 and 1; fit it again")
        if math.isnan(self.fraud_from) or math.isnan(self.legitimate_to):
            raise PackageError("conformal: a threshold is not a number; fit it again")

    def sets(self, raw: FloatArray) -> npt.NDArray[np.int8]:
        """(n,) int8 of raw scores (n,): 0 none, `LEGITIMATE`, `FRAUD`, or both bits; NaN: both."""
        legitimate = ~(raw > self.legitimate_to)
        fraud = ~(raw < self.fraud_from)
        found: npt.NDArray[np.int8] = LEGITIMATE * legitimate.astype(np.int8) + FRAUD * fraud.astype(np.int8)
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest; null: no threshold."""
        ends = {"fraud_from": self.fraud_from, "legitimate_to": self.legitimate_to}
        return {"alpha": self.alpha} | {name: end if math.isfinite(end) else None for name, end in ends.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Conformal:
        """The inverse of `to_json`, other fields are left alone; PackageError on anything else."""
        try:
            low, high = data["fraud_from"], data["legitimate_to"]
            return cls(
                float(data["alpha"]),
                -math.inf if low is None else float(low),
                math.inf if high is None else float(high),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PackageError(f"conformal: cannot be read ({error!r}); package the model again") from error


def fit_conformal(raw: FloatArray, y: npt.ArrayLike, alpha: float = 0.1) -> Conformal:
    """From the raw scores (n,) of rows that the model was not trained on, and their labels (n,) 0/1."""
    fraud = np.asarray(y) == 1
    return Conformal(alpha, -_quantile(-raw[fraud], alpha), _quantile(raw[~fraud], alpha))


def carried_over(conformal: Conformal, before: FloatArray, after: FloatArray) -> Conformal:
    """The thresholds for another model of the same kind, which puts its scores elsewhere: those that as many rows pass.

    ``before`` (n,) raw scores of the model that ``conformal`` is of, ``after`` (m,) of the other one, of rows that
    neither was trained on and that are alike; their labels need not be known. In doubt a label stays in the set.
    """
    low, high = conformal.fraud_from, conformal.legitimate_to
    ranked = np.sort(after)
    if math.isfinite(low):
        low = float(ranked[math.floor(float(np.mean(before < low)) * len(ranked))])
    if math.isfinite(high):
        high = float(ranked[math.ceil(float(np.mean(before <= high)) * len(ranked)) - 1])
    return Conformal(conformal.alpha, low, high)


def _quantile(misfit: FloatArray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest misfit; infinite where there are not so many."""
    rank = math.ceil((len(misfit) + 1) * (1.0 - alpha))
    return float(np.sort(misfit)[rank - 1]) if rank <= len(misfit) else math.inf


def coverage(conformal: Conformal, raw: FloatArray, y: npt.ArrayLike, card: IntArray) -> dict[str, Any]:
    """What the sets are worth on rows (n,) with labels; ``card`` (n,): rows of one card depend on each other.

    By class ``rows``, the ``coverage`` (share of sets that hold the label) with its 95% interval ``low``, ``high``:
    Wilson's, of so many independent rows as vary as much as the cards do (Kish's effective size). What makes the rows
    of one week like each other is not in it. ``sets``: the share of rows with each set.
    """
    fraud, sets = np.asarray(y) == 1, conformal.sets(raw)
    found: dict[str, Any] = {}
    for name, rows, bit in (("fraud", fraud, FRAUD), ("legitimate", ~fraud, LEGITIMATE)):
        held = (sets[rows] & bit) != 0
        n, share = len(held), float(held.mean()) if len(held) else None
        size = n if share is None else n / _design_effect(held, card[rows])
        low, high = wilson((share or 0.0) * size, size)
        found[name] = {"rows": n, "coverage": share, "low": low, "high": high}
    return found | {"sets": {name: float(np.mean(sets == code)) for name, code in _SETS.items()}}


def _design_effect(held: BoolArray, group: IntArray) -> float:
    """How many times the variance of independent rows a share has whose rows (n,) come in groups; 1 or more.

    Where nothing varies, or there is one group, a group tells no more than a row would."""
    names, which = np.unique(group, return_inverse=True)
    off = held - held.mean()
    independent = float(off @ off)
    if independent == 0.0 or len(names) == 1:
        return len(held) / len(names)
    sums = np.bincount(which, off)
    return max(1.0, float(sums @ sums) / independent * len(names) / (len(names) - 1))
