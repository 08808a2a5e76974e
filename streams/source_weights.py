"""What lists are to be ordered with, by model and source of candidates: written by the monitor, read by every worker.

The topic `source-weights` is compacted. The monitor's task of a partition of `recommendations` writes to the same
partition, under the model as key, whenever its evidence is for other weights, see `models.online_weights`. Users are
spread over partitions by a hash, so each says the same thing of other users: what is used is the plain mean of those
that have said anything of a model. A model of which nobody has has no weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import orjson

from features.block import FloatArray
from features.shopping import SOURCES
from models.online_weights import WEIGHT_MAX, SourceWeights
from streams.log import TP, OutBatch, RecordBatch
from streams.topics import SOURCE_WEIGHTS

__all__ = ["ServedWeights", "weights_record"]


class _Weights(msgspec.Struct):
    model: str | None
    weights: dict[str, float]


_READ = msgspec.json.Decoder(_Weights).decode


def weights_record(model: str, tp: TP, event_time_ms: int, served: FloatArray, learner: SourceWeights) -> OutBatch:
    """From the list of this time on: ``served`` (k,) for the sources of ``learner``, of lists of ``model`` (empty:
    none) in this partition."""
    by_source = dict(zip(learner.sources, served.tolist(), strict=True))
    value = {
        "event_time": event_time_ms,
        "model": model or None,
        "partition": tp.partition,
        "weights": {source: by_source[source] for source in SOURCES},
    }
    return OutBatch(SOURCE_WEIGHTS, [orjson.dumps(value)], [orjson.dumps(model or None)], tp.partition)


class ServedWeights:
    """The weights in force by model, from the records of the topic in the order of each partition."""

    def __init__(self) -> None:
        self._said: dict[str | None, dict[int, FloatArray]] = {}

    def take(self, batches: Sequence[RecordBatch]) -> int:
        """Takes records; how many of them were of another kind, which change nothing."""
        unreadable = 0
        for batch in batches:
            for value in batch.values:
                try:
                    read = _READ(value or b"")
                except ValueError:  # msgspec's are ValueErrors
                    unreadable += 1
                    continue
                weights = np.array([read.weights.get(source, 0.0) for source in SOURCES])
                self._said.setdefault(read.model, {})[batch.tp.partition] = np.clip(weights, -WEIGHT_MAX, WEIGHT_MAX)
        return unreadable

    def of(self, model: str | None) -> FloatArray | None:
        """(sources,) what is to be added to the model's scores, in the order of `SOURCES`; None: nothing."""
        said = self._said.get(model)
        if said is None:
            return None
        weights: FloatArray = np.mean([said[partition] for partition in sorted(said)], axis=0)
        return weights if weights.any() else None
