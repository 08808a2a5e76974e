"""Which predictor serves a model: the fastest of those that match LightGBM bit for bit, by batch size."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from features.block import FloatArray
from models import golden
from models.compiled import CompiledPredictor
from models.errors import ModelError, PredictorUnavailableError, UnsupportedModelError
from models.forest import Forest
from models.forestfile import read_forest
from models.gpu import TOLERANCE, GpuPredictor, agree
from models.lightgbm import LightGBMPredictor
from models.modeltext import ModelText, parse
from models.predictor import Predictor, PredictorKind, as_matrix

__all__ = ["BATCH_SIZES", "AutoPredictor", "Choice", "choose"]

logger = logging.getLogger("headrace.models")

#: Batch sizes at which candidates are measured; a batch is served by the choice for the next larger one.
BATCH_SIZES = (1, 8, 64, 1024, 4096)
#: a size is measured so often at most, and not again once it has taken so long
_REPEATS, _ENOUGH_S = 3, 0.02


@dataclass(frozen=True, slots=True)
class Choice:
    """A predictor for a model and why. ``us_per_row[name][i]`` was measured at ``BATCH_SIZES[i]``."""

    predictor: Predictor
    reason: str
    us_per_row: dict[str, tuple[float, ...]]


class AutoPredictor:
    """Serves each batch by the predictor chosen for its size; all of them give the same bits."""

    def __init__(self, by_size: tuple[Predictor, ...]) -> None:
        self._by_size = by_size

    @property
    def name(self) -> str:
        """The name of the only predictor in use, or "auto(a|b)"."""
        names = dict.fromkeys(p.name for p in self._by_size)
        return f"auto({'|'.join(names)})" if len(names) > 1 else next(iter(names))

    @property
    def n_features(self) -> int:
        """Columns of the matrices it scores."""
        return self._by_size[0].n_features

    def predict_raw(self, x: FloatArray) -> FloatArray:
        """Raw scores (n,), see `Predictor`."""
        return self._by_size[min(bisect_left(BATCH_SIZES, len(x)), len(BATCH_SIZES) - 1)].predict_raw(x)

    def warm(self) -> None:
        """Warm all that are in use."""
        for predictor in self._by_size:
            predictor.warm()


def choose(
    model_text: str,
    golden_batch: tuple[FloatArray, FloatArray] | None = None,
    forest_file: bytes | None = None,
    wanted: PredictorKind = "auto",
) -> Choice:
    """The predictor for a model text: the ``wanted`` one or, where it cannot serve the model, `auto`'s, and why. In
    the latter case the log has a warning.

    ``golden_batch`` = (inputs (n, d), their raw scores (n,)); by default made from the model. ModelError
    when LightGBM itself does not match it: then nothing can be trusted to score this model.
    ``forest_file``: the model as it was flattened when it was packaged, see `models.forestfile`; else it is flattened.
    """
    model = parse(model_text)
    forest = None if forest_file is None else read_forest(forest_file, model)
    oracle = LightGBMPredictor(model_text)
    x, expected = golden_batch or (golden.inputs(model), None)
    raw = oracle.predict_raw(as_matrix(x, oracle.n_features))
    if expected is not None and not golden.same_bits(raw, expected):
        wrong = int(np.sum(raw.view(np.int64) != expected.view(np.int64))) if raw.shape == expected.shape else len(raw)
        raise ModelError(
            f"golden batch: LightGBM gives other raw scores than the package for {wrong} of {len(raw)} rows; "
            "the package was made with another LightGBM or machine: package the model again"
        )
    refusal = ""
    if wanted == "gpu":
        gpu, refusal = _gpu(model_text, x, raw)
        if gpu is not None:
            return gpu
    if wanted == "lightgbm":
        oracle.warm()
        return Choice(oracle, "lightgbm: asked for", {})
    compiled, other = _compiled(forest or model, x, raw)
    if compiled is None:
        oracle.warm()
        asked = wanted == "compiled"
        refusal = f"compiled: asked for, but {other}" if asked else refusal
        choice = Choice(oracle, "lightgbm" if asked else f"lightgbm: {other}", {})
    elif wanted == "compiled":
        choice = Choice(compiled, "compiled: asked for, bit-equal", {})
    else:
        choice = _fastest(oracle, compiled, x)
    if not refusal:
        return choice
    logger.warning("%s; %s serves the model", refusal, choice.predictor.name)
    return replace(choice, reason=f"{refusal}; so {choice.reason}")


def _gpu(model_text: str, x: FloatArray, raw: FloatArray) -> tuple[Choice | None, str]:
    """The predictor of a graphics card if it gives about ``raw``, else why not."""
    finite = ~np.isposinf(x).any(axis=1)
    x, raw = np.ascontiguousarray(x[finite]), raw[finite]
    try:
        gpu = GpuPredictor(model_text)
        found = gpu.predict_raw(x)
    except (PredictorUnavailableError, UnsupportedModelError) as error:
        return None, str(error)
    if not agree(found, raw):
        return None, f"gpu differs from LightGBM on the golden batch by more than {TOLERANCE:g}"
    figures = _figures(gpu, x) if len(x) else ()
    return Choice(gpu, f"gpu: asked for, agrees within {TOLERANCE:g}", {"gpu": figures}), ""


def _compiled(model: ModelText | Forest, x: FloatArray, raw: FloatArray) -> tuple[CompiledPredictor | None, str]:
    """The compiled predictor if it reproduces ``raw`` by each of its kernels, else why not."""
    try:
        compiled = CompiledPredictor(model)
    except UnsupportedModelError as error:
        return None, str(error)
    compiled.warm()
    for size in (1, 8, len(x)):
        parts = [compiled.predict_raw(x[i : i + size]) for i in range(0, len(x), size)]
        if not golden.same_bits(np.concatenate(parts), raw):
            return None, f"compiled differs from LightGBM on the golden batch, {size} rows at a time"
    return compiled, ""


def _fastest(oracle: LightGBMPredictor, compiled: CompiledPredictor, x: FloatArray) -> Choice:
    figures: dict[str, tuple[float, ...]] = {}
    for candidate in (oracle, compiled):
        figures[candidate.name] = _figures(candidate, x)
    by_size = tuple(
        compiled if figures["compiled"][i] <= figures["lightgbm"][i] else oracle for i in range(len(BATCH_SIZES))
    )
    ratios = ", ".join(
        f"{figures['lightgbm'][i] / figures['compiled'][i]:.1f}x at {n}" for i, n in enumerate(BATCH_SIZES)
    )
    return Choice(AutoPredictor(by_size), f"compiled is bit-equal; against lightgbm, by rows: {ratios}", figures)


def _figures(candidate: Predictor, x: FloatArray) -> tuple[float, ...]:
    """Microseconds per row at each of `BATCH_SIZES`."""
    batches = (np.ascontiguousarray(np.resize(x, (n, x.shape[1]))) for n in BATCH_SIZES)
    return tuple(_us_per_row(candidate.predict_raw, batch) for batch in batches)


def _us_per_row(predict: Callable[[FloatArray], FloatArray], x: FloatArray) -> float:
    """Best of a few runs, microseconds per row."""
    took: list[float] = []
    while len(took) < _REPEATS and sum(took) < _ENOUGH_S:
        start = time.perf_counter()
        predict(x)
        took.append(time.perf_counter() - start)
    return min(took) * 1e6 / len(x)
