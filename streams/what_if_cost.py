"""What alerts and missed frauds cost, by a matrix that the user declares, and what another choice would have cost."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from features.block import BoolArray, FloatArray, IntArray
from streams.errors import ConfigError

__all__ = ["AMOUNT", "CostMatrix", "Curve", "Saving", "cost_curve", "saving"]

#: of a missed fraud that costs its amount
AMOUNT = "amount"
_FIELDS = {"fn": AMOUNT, "fp": 0.0, "review": 0.0}
_REMEDY = "give fn:COST,fp:COST,review:COST (fn:amount, a missed fraud costs its amount), or a .json or .toml of them"


@dataclass(frozen=True, slots=True)
class CostMatrix:
    """``fn``: a fraud without an alert, None = its amount; ``fp``: an alert on a legitimate payment; ``review``: any
    alert. A payment without alert and fraud costs nothing."""

    fn: float | None = None
    fp: float = 0.0
    review: float = 0.0

    @classmethod
    def parse(cls, text: str) -> CostMatrix:
        """From ``fn:500,fp:5,review:2`` or the file of that name; what is not given is as by default. ConfigError."""
        path = Path(text)
        if path.suffix.lower() in (".json", ".toml"):
            return cls._of(_read(path), f"--cost {path}")
        pairs = [part.partition(":") for part in text.split(",")]
        if any(not colon for _, colon, _ in pairs):
            raise ConfigError(f"--cost {text}: not pairs NAME:COST; {_REMEDY}")
        return cls._of({name.strip(): value.strip() for name, _, value in pairs}, f"--cost {text}")

    @classmethod
    def _of(cls, given: Any, where: str) -> CostMatrix:
        if not isinstance(given, dict) or not given:
            raise ConfigError(f"{where}: no costs in it; {_REMEDY}")
        values: dict[str, float | None] = {}
        for name, value in given.items():
            if name not in _FIELDS:
                raise ConfigError(f"{where}: {name} is none of {', '.join(_FIELDS)}; {_REMEDY}")
            if name == "fn" and value == AMOUNT:
                values[name] = None
                continue
            try:
                number = float(value) if not isinstance(value, bool) else -1.0
            except (TypeError, ValueError, OverflowError):
                number = -1.0
            if not 0.0 <= number < float("inf"):
                raise ConfigError(f"{where}: {name} {value!r:.40} is not a cost of 0 or more; {_REMEDY}")
            values[name] = number
        return cls(**values)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, float | str]:
        """Plain data."""
        return {"fn": AMOUNT if self.fn is None else self.fn, "fp": self.fp, "review": self.review}

    def missed(self, labels: IntArray, amounts: FloatArray) -> FloatArray:
        """(n,) what each row costs without an alert."""
        return np.where(labels == 1, amounts if self.fn is None else self.fn, 0.0)

    def alerted(self, labels: IntArray) -> FloatArray:
        """(n,) what each row costs with one."""
        return np.where(labels == 1, self.review, self.review + self.fp)

    def of(self, alerts: BoolArray, labels: IntArray, amounts: FloatArray) -> FloatArray:
        """(n,) what each row costs where these have an alert."""
        return np.where(alerts, self.alerted(labels), self.missed(labels, amounts))


def _read(path: Path) -> Any:
    try:
        text = path.read_text("utf-8")
        return json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"--cost {path}: cannot be read ({error.strerror}); {_REMEDY}") from error
    except ValueError as error:
        raise ConfigError(f"--cost {path}: neither JSON nor TOML as its name says ({error}); {_REMEDY}") from error


class Saving(NamedTuple):
    """What is saved in all, and its interval."""

    saved: float
    low: float
    high: float


def saving(before: FloatArray, after: FloatArray, groups: IntArray, confidence: float = 0.95) -> Saving:
    """What ``after`` costs less than ``before``, both (n,), in all; rows of one group, (n,), such as a card, are not
    independent of each other: the interval is the normal one of the groups' sums."""
    gain = before - after
    total = float(gain.sum())
    _, place = np.unique(groups, return_inverse=True)
    sums = np.bincount(place.reshape(-1), gain)
    if len(sums) < 2:
        return Saving(total, -np.inf, np.inf)
    error = float(np.sqrt(len(sums) * np.var(sums, ddof=1)))
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    return Saving(total, total - z * error, total + z * error)


class Curve(NamedTuple):
    """The cost in all, (k,), of alerts at each threshold, (k,) falling, the first above every score."""

    thresholds: FloatArray
    costs: FloatArray

    @property
    def least(self) -> tuple[float, float]:
        """The threshold of the least cost, the highest of several, and that cost."""
        at = int(np.argmin(self.costs))
        return float(self.thresholds[at]), float(self.costs[at])


def cost_curve(matrix: CostMatrix, scores: FloatArray, labels: IntArray, amounts: FloatArray) -> Curve:
    """What each threshold would have cost on rows (n,) whose labels are known."""
    order = np.argsort(-scores, kind="stable")
    missed, alerted = matrix.missed(labels, amounts)[order], matrix.alerted(labels)[order]
    costs = missed.sum() + np.append(0.0, np.cumsum(alerted - missed))
    ranked = scores[order]
    # an alert is at or above the threshold, so rows of one score go together
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1) + 1
    above = np.nextafter(ranked[0], np.inf)
    return Curve(np.append(above, ranked[ends - 1]), np.append(costs[0], costs[ends]))
