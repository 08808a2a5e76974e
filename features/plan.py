"""What the windows of one entity compute, compiled for the kernels; and the form of columns that kernels take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.declare import FeatureError, WindowFeature
from features.windows import COUNT, MEAN, RISK, SUM, Plan

__all__ = ["FORMAT", "LATENESS_MS", "Arrays", "StateError", "WindowPlan"]

Arrays = dict[str, npt.NDArray[Any]]

LATENESS_MS = 3_600_000
#: version of the arrays that states are saved as
FORMAT = 1
_AGGREGATES = {"count": COUNT, "sum": SUM, "mean": MEAN, "risk": RISK}


class StateError(ValueError):
    """Arrays that are not a state of these features, or values a state cannot take."""


class WindowPlan:
    """What the kernels need to know of one entity's features: boundaries (see `features.windows`) and columns."""

    def __init__(self, features: Sequence[WindowFeature], lateness_ms: int) -> None:
        self.features = tuple(features)
        entities = {f.entity for f in features}
        if len(entities) != 1:
            raise FeatureError(
                f"window features of one entity are needed, got {sorted(entities) or 'none'}; "
                "give the result of FeatureSet.for_entity(..)"
            )
        if lateness_ms < 0:
            raise ValueError(f"allowed_lateness_ms is {lateness_ms}; it cannot be negative: give 0 or more")
        self.entity = self.features[0].entity
        self.fields = tuple(dict.fromkeys(f.field for f in features if f.field is not None))
        edges = {edge for f in features for edge in (f.delay_ms, f.delay_ms + f.window_ms)}
        offsets = np.array(sorted(edges), np.int64)
        boundary = {int(edge): b for b, edge in enumerate(offsets)}
        aggregates = np.array(
            [
                (
                    _AGGREGATES[f.aggregate],
                    self.fields.index(f.field) if f.field is not None else 0,
                    boundary[f.delay_ms],
                    boundary[f.delay_ms + f.window_ms],
                )
                for f in features
            ],
            np.int64,
        )
        self.span_ms = int(offsets[-1]) + lateness_ms
        scratch = np.zeros((2, len(offsets)), np.int64)
        self.kernel = Plan(offsets, aggregates, self.span_ms, scratch[0], scratch[1])
        definition = [[f.definition() for f in features], lateness_ms, FORMAT]
        digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).digest()
        #: says what the arrays of a state mean
        self.identity = np.frombuffer(digest, np.uint8)

    @property
    def ring_width(self) -> int:
        return 1 + 2 * len(self.fields)

    @property
    def ring_own(self) -> int:
        return 2 * len(self.fields) + len(self.kernel.offsets)
