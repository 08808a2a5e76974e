"""A calibration that learns from each label as it comes, and the gate that it must pass. River lives here.

The learner is River's logistic regression of the label on the champion's raw score: what it has learned is a Platt
calibration, so it becomes a version of the package like any other. It is judged by its progressive loss: each row is
first predicted by what was learned from the rows before it, then learned from (test-then-train; Dawid, 1984).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from river import linear_model, optim

from features.block import FloatArray, IntArray
from models.calibrate import Calibration
from models.errors import ModelError

__all__ = ["Gate", "OnlineCalibrator"]

#: raw scores are taken relative to this one, about that of a rare class, so that slope and level are learned apart
_CENTER = -4.0
#: fewer rounds than this have no spread worth the name
_ROUNDS_MIN = 8

_RIVER: Any = linear_model
_OPTIM: Any = optim


class OnlineCalibrator:
    """``slope * (raw + 4) + level`` as log odds, learned by stochastic gradient descent with a constant rate.

    River's object is made anew for each call from the two numbers, which are all that it knows: no pickle, no private
    attribute. ``rows`` is how many it has learned from.
    """

    def __init__(self, slope: float, level: float, rows: int = 0, rate: float = 0.05) -> None:
        self.slope, self.level, self.rows = slope, level, rows
        self._rate = rate

    @classmethod
    def of(cls, calibration: Calibration, rate: float = 0.05) -> OnlineCalibrator:
        """Begins with what the champion has; where that is not Platt's, with LightGBM's own map of log odds."""
        a, b = (calibration.a, calibration.b) if calibration.kind == "platt" else (1.0, 0.0)
        return cls(a, b + a * _CENTER, rate=rate)

    def state(self) -> FloatArray:
        """(3,) float64: slope, level, rows."""
        return np.array([self.slope, self.level, float(self.rows)])

    @classmethod
    def from_state(cls, state: Sequence[float], rate: float = 0.05) -> OnlineCalibrator:
        """The inverse of `state`. ModelError: it is none."""
        if len(state) != 3 or not np.isfinite(state).all():
            raise ModelError(f"online calibration: {list(state)} is no slope, level and rows; begin from the champion")
        return cls(float(state[0]), float(state[1]), int(state[2]), rate)

    def update(self, raw: FloatArray, y: IntArray) -> FloatArray:
        """Learns from rows in order, ``raw`` (n,) and ``y`` (n,) 0/1; (n,) the probabilities before each was known."""
        model = _RIVER.LogisticRegression(
            optimizer=_OPTIM.SGD(self._rate),
            intercept_init=self.level,
            intercept_lr=self._rate,
            initializer=_OPTIM.initializers.Constant(self.slope),
        )
        # of no weight: River knows the slope only from the first row on that it learns from
        model.learn_one({"raw": 1.0}, False, w=0.0)
        out = np.empty(len(raw), np.float64)
        for i, (value, label) in enumerate(zip((raw - _CENTER).tolist(), y.tolist(), strict=True)):
            row = {"raw": value}
            out[i] = model.predict_proba_one(row)[True]
            model.learn_one(row, label == 1)
        if len(raw):
            self.slope, self.level = float(model.weights["raw"]), float(model.intercept)
            self.rows += len(raw)
        return out

    def calibration(self, version: int) -> Calibration | None:
        """What was learned, as a package's calibration; None where it would reverse the ranking."""
        if self.slope <= 0:
            return None
        return Calibration("platt", a=self.slope, b=self.level - self.slope * _CENTER, version=version)


@dataclass(frozen=True, slots=True)
class Gate:
    """How much less the learner loses than the champion, by rounds of rows: sums that are all it needs to know.

    Rounds are runs of consecutive rows, so what moves neighbouring rows together is inside one of them and the means
    of rounds are nearly independent: the interval is Student's of their mean (batch means), since of so few rounds the
    spread is not known either.
    """

    rounds: int = 0
    rows: int = 0
    gains: float = 0.0
    squares: float = 0.0
    champion: float = 0.0

    def add(self, champion: FloatArray, learner: FloatArray) -> Gate:
        """With one more round, of the losses of both on the same rows (n,)."""
        if len(champion) == 0:
            return self
        loss, gain = float(champion.mean()), float((champion - learner).mean())
        return replace(
            self,
            rounds=self.rounds + 1,
            rows=self.rows + len(champion),
            gains=self.gains + gain,
            squares=self.squares + gain * gain,
            champion=self.champion + loss,
        )

    def figures(self, confidence: float) -> dict[str, Any]:
        """``champion`` mean log loss, ``gain`` of the learner, and its interval ``low``, ``high``; None where there
        are too few rounds to say."""
        out: dict[str, Any] = {"rounds": self.rounds, "rows": self.rows, "confidence": confidence}
        if self.rounds < _ROUNDS_MIN:
            return out | {"champion": None, "gain": None, "low": None, "high": None}
        from scipy.special import stdtrit

        mean = self.gains / self.rounds
        spread = max(0.0, self.squares / self.rounds - mean * mean) * self.rounds / (self.rounds - 1)
        half = float(stdtrit(self.rounds - 1, (1.0 + confidence) / 2.0)) * (spread / self.rounds) ** 0.5
        return out | {"champion": self.champion / self.rounds, "gain": mean, "low": mean - half, "high": mean + half}

    def passed(self, confidence: float, gain_min: float) -> bool:
        """Whether the learner is better beyond chance, and by at least this share of the champion's loss."""
        found = self.figures(confidence)
        return bool(found["low"] is not None and found["low"] > 0 and found["gain"] >= gain_min * found["champion"])
