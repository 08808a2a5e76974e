"""Raw score -> probability, as plain data that a manifest can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from features.block import FloatArray
from models.errors import PackageError

__all__ = ["Calibration", "CalibrationMethod", "default_calibration", "fit_calibration", "fit_isotonic", "fit_platt"]

Kind = Literal["identity", "platt", "isotonic"]
#: how a binary model is calibrated; ``none``: as LightGBM itself makes probabilities
CalibrationMethod = Literal["platt", "isotonic", "none"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """A monotone map of raw scores.

    ``platt``: 1 / (1 + exp(-(a * raw + b))). ``isotonic``: linear between the knots ``x`` (ascending) and ``y``,
    flat outside. ``identity``: the raw score itself, for objectives that are not probabilities.
    ``version`` counts the calibrations of one model.
    """

    kind: Kind
    a: float = 1.0
    b: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    version: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("identity", "platt", "isotonic"):
            raise PackageError(f"calibration kind: {self.kind!r} is unknown; use identity, platt or isotonic")
        if not np.isfinite([self.a, self.b, *self.x, *self.y]).all():
            raise PackageError("calibration: a parameter is not finite; calibrate again")
        if self.kind == "platt" and self.a <= 0:
            raise PackageError(f"calibration a: {self.a} would reverse the ranking; it must be positive")
        if self.kind == "isotonic":
            steps_ok = len(self.x) > 0 and np.all(np.diff(self.x) > 0) and np.all(np.diff(self.y) >= 0)
            if len(self.x) != len(self.y) or not steps_ok:
                raise PackageError("calibration x, y: need knots of equal number, x ascending, y not descending")

    def apply(self, raw: FloatArray) -> FloatArray:
        """Probabilities (n,) of raw scores (n,); NaN stays NaN."""
        if self.kind == "identity":
            return raw
        if self.kind == "platt":
            # SciPy is a fifth of the start of a worker; where a model is, LightGBM has brought it already
            from scipy.special import expit

            out: FloatArray = expit(self.a * raw + self.b)
            return out
        between: FloatArray = np.interp(raw, np.asarray(self.x), np.asarray(self.y))
        return between

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        out: dict[str, Any] = {"kind": self.kind, "version": self.version}
        if self.kind == "platt":
            out |= {"a": self.a, "b": self.b}
        elif self.kind == "isotonic":
            out |= {"x": list(self.x), "y": list(self.y)}
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_json`; PackageError on anything else."""
        try:
            return cls(
                kind=data["kind"],
                a=float(data.get("a", 1.0)),
                b=float(data.get("b", 0.0)),
                x=tuple(float(v) for v in data.get("x", ())),
                y=tuple(float(v) for v in data.get("y", ())),
                version=int(data.get("version", 1)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PackageError(f"calibration: cannot be read ({error!r}); package the model again") from error


def default_calibration(objective: str) -> Calibration:
    """The probability that LightGBM makes of a raw score of ``objective`` (as in the model text, "binary sigmoid:1");
    where that is none, the raw score itself."""
    words = objective.split()
    if words[:1] in (["binary"], ["cross_entropy"]):
        settings = dict(word.split(":", 1) for word in words[1:] if ":" in word)
        return Calibration("platt", a=float(settings.get("sigmoid", "1")))
    return Calibration("identity")


def fit_calibration(method: CalibrationMethod, raw: FloatArray, y: npt.ArrayLike) -> Calibration:
    """The map of a binary model's raw scores (n,) to probabilities, by rows that it was not trained on."""
    if method == "none":
        return default_calibration("binary")
    return fit_platt(raw, y) if method == "platt" else fit_isotonic(raw, y)


def fit_platt(raw: FloatArray, y: npt.ArrayLike, version: int = 1) -> Calibration:
    """Platt scaling by maximum likelihood on rows that the model was not trained on; PackageError where they are of
    one class or ranked the wrong way round."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1e6).fit(raw.reshape(-1, 1), _both_classes(y))
    a = float(fitted.coef_[0, 0])
    if not a > 0:
        raise PackageError(
            f"calibration: of the {len(raw)} rows of its fold, those with higher scores are not frauds more often; the "
            "model ranks no better than chance there: train on more rows or other features"
        )
    return Calibration("platt", a=a, b=float(fitted.intercept_[0]), version=version)


def fit_isotonic(raw: FloatArray, y: npt.ArrayLike, version: int = 1) -> Calibration:
    """Isotonic regression; it makes ties, so ranking metrics are to be taken from the raw score."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(raw, _both_classes(y))
    x, knots = np.unique(fitted.X_thresholds_, return_index=True)
    return Calibration("isotonic", x=tuple(x.tolist()), y=tuple(fitted.y_thresholds_[knots].tolist()), version=version)


def _both_classes(y: npt.ArrayLike) -> npt.NDArray[np.int8]:
    labels = np.asarray(y).astype(np.int8)
    if labels.min(initial=1) == labels.max(initial=0):
        raise PackageError(
            f"calibration labels: {len(labels)} rows of one class, both are needed; use a longer calibration range"
        )
    return labels
