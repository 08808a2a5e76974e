"""The predictor on a graphics card: nvForest of RAPIDS (the extra ``headrace[gpu]``), in double precision.

Its scores agree with LightGBM's to `TOLERANCE`, not to the bit, so nobody gets it without asking. It knows neither
LightGBM's zero nor its casts, so rows are brought to values on which both decide alike before it sees them; where
there are none (zeros that are missing, thresholds and values of +inf) it refuses.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from features.block import FloatArray, IntArray
from models.errors import ModelError, PredictorUnavailableError, UnsupportedModelError
from models.forest import check_supported
from models.modeltext import CATEGORICAL, MISSING_ZERO, ModelText, load_booster, parse
from models.predictor import as_matrix

__all__ = ["TOLERANCE", "GpuPredictor", "agree"]

#: of a raw score s, how far it may be from LightGBM's, as a share of max(1, |s|)
TOLERANCE = 1e-12

#: LightGBM's kZeroThreshold, a float there: a number up to this size is zero to it
_ZERO = float(np.float32(1e-35))
#: categories from here on do not fit LightGBM's int
_CODES_END = 2.0**31
_NO_CATEGORY = -1.0


class GpuPredictor:
    """nvForest on ``device``; ``cpu`` runs the same library without a card, to test with.

    PredictorUnavailableError: nvForest is not installed, or there is no card that it can use. UnsupportedModelError:
    the model is one that it would score wrongly.
    """

    name = "gpu"

    def __init__(self, model_text: str, device: Literal["gpu", "cpu"] = "gpu") -> None:
        model = parse(model_text)
        self._n_features = model.n_features
        self._categories = _category_columns(model)
        self._forest = _loaded(model_text, device)
        # the library's handle belongs to one thread at a time
        self._lock = threading.Lock()

    @property
    def n_features(self) -> int:
        """Columns of the matrices it scores."""
        return self._n_features

    def predict_raw(self, x: FloatArray) -> FloatArray:
        """Raw scores (n,), see `Predictor`. ModelError: a value is +inf."""
        x = as_matrix(x, self._n_features)
        if len(x) == 0:
            return np.empty(0, np.float64)
        infinite = np.isposinf(x).any(axis=0)
        if infinite.any():
            raise ModelError(
                f"gpu predictor: +inf in column {int(np.flatnonzero(infinite)[0])}, which nvForest scores wrongly; "
                "clip the feature, or serve the model by auto"
            )
        plain = self._as_decided(x)
        with self._lock:
            found: Any = self._forest.predict(plain)
            # of a card the scores are in its own memory
            on_host = found.get() if hasattr(found, "get") else found
        return np.array(on_host, dtype=np.float64).reshape(-1)

    def warm(self) -> None:
        """One row scored."""
        self.predict_raw(np.zeros((1, self._n_features)))

    def _as_decided(self, x: FloatArray) -> FloatArray:
        """``x`` with values on which nvForest decides as LightGBM does on those of ``x``."""
        plain: FloatArray = np.where(np.abs(x) <= _ZERO, 0.0, x)
        if len(self._categories):
            codes = np.trunc(plain[:, self._categories])
            known = (codes >= 0.0) & (codes < _CODES_END)
            plain[:, self._categories] = np.where(known, codes, _NO_CATEGORY)
        return plain


def agree(a: FloatArray, b: FloatArray) -> bool:
    """Whether raw scores (n,) are those of ``b`` (n,) within `TOLERANCE`."""
    return a.shape == b.shape and bool((np.abs(a - b) <= TOLERANCE * np.maximum(1.0, np.abs(b))).all())


def _category_columns(model: ModelText) -> IntArray:
    """The features that are categories; UnsupportedModelError where nvForest would decide otherwise than LightGBM."""
    check_supported(model, "gpu")
    categories: set[int] = set()
    numbers: set[int] = set()
    for tree in model.trees:
        for node in range(tree.n_leaves - 1):
            if tree.decision[node] & CATEGORICAL:
                categories.add(int(tree.feature[node]))
                continue
            numbers.add(int(tree.feature[node]))
            if tree.missing(node) == MISSING_ZERO:
                raise UnsupportedModelError(
                    "model: zero_as_missing, which nvForest does not know, not supported by the gpu predictor; "
                    "serve the model by auto"
                )
    if both := categories & numbers:
        raise UnsupportedModelError(
            f"model: feature {model.feature_names[min(both)]} is a number and a category, not supported by the gpu "
            "predictor; serve the model by auto"
        )
    return np.array(sorted(categories), np.int64)


def _loaded(model_text: str, device: str) -> Any:
    """nvForest's model of raw scores."""
    try:
        import nvforest
    except (ImportError, OSError) as error:
        raise PredictorUnavailableError(
            f"gpu predictor: nvForest is not to be had ({error}); pip install 'headrace[gpu]', or take auto"
        ) from error
    # without its link function: as a regression, whatever the objective
    whole = load_booster(model_text).model_to_string(num_iteration=-1)
    text = re.sub(r"^objective=.*\n", "", whole, count=1, flags=re.MULTILINE)
    with TemporaryDirectory(prefix="headrace-gpu-") as folder:
        path = Path(folder) / "model.txt"
        path.write_text(text.replace("tree\n", "tree\nobjective=regression\n", 1), "utf-8")
        try:
            return nvforest.load_model(path, model_type="lightgbm", device=device, precision="double")
        except RuntimeError as error:
            raise PredictorUnavailableError(
                f"gpu predictor: nvForest cannot use the {device} ({' '.join(str(error).split())}); install NVIDIA's "
                "driver, or take auto"
            ) from error
