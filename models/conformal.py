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

from features.block import FloatArray
from models.errors import PackageError
from models.metrics import wilson

__all__ = ["FRAUD", "LEGITIMATE", "Conformal", "coverage", "fit_conformal"]

#: bits of a set
LEGITIMATE, FRAUD = 1, 2
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


def _quantile(misfit: FloatArray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest misfit; infinite where there are not so many."""
    rank = math.ceil((len(misfit) + 1) * (1.0 - alpha))
    return float(np.sort(misfit)[rank - 1]) if rank <= len(misfit) else math.inf


def coverage(conformal: Conformal, raw: FloatArray, y: npt.ArrayLike) -> dict[str, Any]:
    """What the sets are worth on rows (n,) with labels.

    By class ``rows``, the ``coverage`` (share of sets that hold the label) with its 95% interval ``low``, ``high``
    (Wilson, rows taken as independent); ``sets``: the share of rows with each set.
    """
    fraud, sets = np.asarray(y) == 1, conformal.sets(raw)
    found: dict[str, Any] = {}
    for name, rows, bit in (("fraud", fraud, FRAUD), ("legitimate", ~fraud, LEGITIMATE)):
        n, k = int(rows.sum()), int(np.count_nonzero(sets[rows] & bit))
        low, high = wilson(k, n)
        found[name] = {"rows": n, "coverage": k / n if n else None, "low": low, "high": high}
    return found | {"sets": {name: float(np.mean(sets == code)) for name, code in _SETS.items()}}
