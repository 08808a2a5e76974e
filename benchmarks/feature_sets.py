"""The rich fraud set beside the default one on the published protocol, week after week, with the noise.

Each fold trains on seven days, leaves seven for the labels to come, and tests on the seven after them, as
`models.train.train_fraud` does it; folds go back in time from the last whole week. State is warm from the first event.
Noise is that of the cards that happen to be in a test week: both models' scores are weighed anew for cards drawn with
replacement, the same cards for both, so that what remains is the noise of the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.block import FloatArray, IntArray
from features.fraud import DEFAULT, RICH
from models.lightgbm import LightGBMPredictor
from models.train import DAY_MS, Split, train_fraud
from streams.offline import feature_matrix, fraud_rows, read_events, read_labels
from streams.pipelines.fraud_stages import StageSettings

__all__ = ["paired_noise", "run"]

_WEEK_MS = 7 * DAY_MS
_RESAMPLES = 100
_FIGURES = ("auc", "average_precision", "card_precision_100")


def run(
    source: Path, labels: Path, *, folds: int = 6, notify: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """``folds``, newest first: the test week's first day, figures of either set, the ``gain`` in average precision and
    its ``noise`` (standard deviation); ``gain`` and ``noise`` are those of the mean over the folds."""
    events, said = read_events(source), read_labels(labels)
    made = feature_matrix(events, said, StageSettings(RICH), "event_time")
    events = events.take(made.row)
    times, y = events.event_time_ms, fraud_rows(events, said)
    cards = np.unique(events.ids["card_id"].keys(), axis=0, return_inverse=True)[1].astype(np.int64)
    matrices = {"default": made.matrix[:, RICH.positions(DEFAULT.features)], "rich": made.matrix}
    end = (int(times.max()) // DAY_MS + 1) * DAY_MS
    results = []
    for fold in range(folds):
        test_to = end - fold * _WEEK_MS
        split = Split(test_to - 3 * _WEEK_MS, test_to - 2 * _WEEK_MS, test_to - _WEEK_MS, test_to)
        tested = (times >= split.test_from) & (times < split.test_to)
        raw: list[FloatArray] = []
        row: dict[str, Any] = {"test_from": str(np.datetime64(split.test_from, "ms").astype("datetime64[D]"))}
        for (name, matrix), features in zip(matrices.items(), (DEFAULT, RICH), strict=True):
            trained = train_fraud(matrix, y, times, cards, features.names, split)
            row[name] = {figure: round(trained.metrics[figure], 4) for figure in _FIGURES}
            raw.append(LightGBMPredictor(trained.model_text).predict_raw(np.ascontiguousarray(matrix[tested])))
        row["gain"] = round(row["rich"]["average_precision"] - row["default"]["average_precision"], 4)
        row["noise"] = round(paired_noise(raw[0], raw[1], y[tested], cards[tested]), 4)
        notify(f"{row['test_from']}: {row['default']} {row['rich']} +- {row['noise']}")
        results.append(row)
    return {
        "folds": results,
        "gain": round(float(np.mean([row["gain"] for row in results])), 4),
        "noise": round(float(np.sqrt(np.sum([row["noise"] ** 2 for row in results])) / folds), 4),
    }


def paired_noise(first: FloatArray, second: FloatArray, y: npt.ArrayLike, card: IntArray) -> float:
    """Standard deviation of the difference in average precision of two scores (n,), over cards drawn anew."""
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(1)
    labels = np.asarray(y)
    _, place = np.unique(card, return_inverse=True)
    n = int(place.max()) + 1
    gains = []
    for _ in range(_RESAMPLES):
        weight = np.bincount(rng.integers(0, n, n), minlength=n)[place]
        drawn = weight > 0
        precisions = [
            average_precision_score(labels[drawn], raw[drawn], sample_weight=weight[drawn]) for raw in (first, second)
        ]
        gains.append(precisions[1] - precisions[0])
    return float(np.std(gains))
