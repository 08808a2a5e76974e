"""What the windows of one entity compute, compiled for the kernels; and the form of columns that kernels take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from features.block import KeyArray
from features.declare import FeatureError, WindowFeature
from features.memory import head_words
from features.windows import COUNT, MEAN, RISK, SUM, Plan

__all__ = [
    "FORMAT",
    "LATENESS_MS",
    "BoundError",
    "StateError",
    "WindowPlan",
    "bytes_per_event",
    "bytes_per_key",
    "check_identity",
    "entity_of",
    "identity_of",
    "key_name",
]

LATENESS_MS = 3_600_000
#: version of the arrays that states are saved as
FORMAT = 1
# what a state keeps beside its features' own words: see `features.rings`, `features.state` and `features.labelled`
_HEAD_WORDS, _SLOT_WORDS, _LABEL_HEAD_WORDS = 3, 1, 5
_TABLE_BYTES = 46  # 32 at a load of 0.7
_AGGREGATES = {"count": COUNT, "sum": SUM, "mean": MEAN, "risk": RISK}


class StateError(ValueError):
    """Arrays that are not a state of these features, or values a state cannot take."""


class BoundError(StateError):
    """The state would need more memory than its ``bytes_max``.

    The state holds what came before row ``row`` (and label ``label``) of the block, nothing of it or after it. So it
    can go on from there once it may hold more.
    """

    def __init__(self, reason: str, row: int, label: int = 0) -> None:
        super().__init__(reason)
        self.row = row
        self.label = label


class _State(Protocol):
    names: tuple[str, ...]
    allowed_lateness_ms: int

    @property
    def entity(self) -> str: ...


def entity_of(features: Sequence[WindowFeature], lateness_ms: int) -> str:
    """The one entity of a state's features; FeatureError or ValueError where a state cannot be made of them."""
    entities = {f.entity for f in features}
    if len(entities) != 1:
        raise FeatureError(
            f"window features of one entity are needed, got {sorted(entities) or 'none'}; "
            "give the result of FeatureSet.for_entity(..)"
        )
    if lateness_ms < 0:
        raise ValueError(f"allowed_lateness_ms is {lateness_ms}; it cannot be negative: give 0 or more")
    return features[0].entity


def identity_of(features: Sequence[WindowFeature], lateness_ms: int) -> npt.NDArray[np.uint8]:
    """(32,) uint8: says what the arrays of a state mean."""
    definition = [[f.definition() for f in features], lateness_ms, FORMAT]
    return np.frombuffer(hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).digest(), np.uint8)


def check_identity(arrays: Mapping[str, npt.NDArray[Any]], identity: npt.NDArray[np.uint8], state: _State) -> None:
    """StateError where the arrays are not of a state like this one."""
    if not np.array_equal(arrays["identity"], identity):
        raise StateError(
            f"the saved state by {state.entity} is of other features or another allowed lateness than "
            f"{', '.join(state.names)} with {state.allowed_lateness_ms} ms; rebuild it by replaying the log"
        )


def key_name(key: KeyArray) -> str:
    """The id of a key where it is an integer, else its hash (see `features.block.key_of_text`)."""
    hi, lo = (int(word) for word in key)
    return f"text of hash {hi:016x}{lo:016x}" if hi else str(lo - (lo >> 63 << 64))


class WindowPlan:
    """What the kernels need to know of one entity's features: boundaries (see `features.windows`) and columns."""

    def __init__(self, features: Sequence[WindowFeature], lateness_ms: int) -> None:
        self.entity = entity_of(features, lateness_ms)
        self.features = tuple(features)
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
        scratch = np.zeros((3, len(offsets)), np.int64)
        self.kernel = Plan(offsets, aggregates, self.span_ms, scratch[0], scratch[1], scratch[2])
        # no boundary to be found but the row's own place, and nothing to compute
        self.unasked = Plan(offsets[:1] * 0, aggregates[:0], self.span_ms, *np.zeros((3, 1), np.int64))
        self.identity = identity_of(features, lateness_ms)

    @property
    def labelled(self) -> bool:
        """True where labels are needed."""
        return any(f.aggregate == "risk" for f in self.features)

    @property
    def ring_width(self) -> int:
        return 1 + 2 * len(self.fields)

    @property
    def ring_own(self) -> int:
        return 2 * len(self.fields) + self.hints

    @property
    def hints(self) -> int:
        """Search hints of a ring: one per boundary above 0."""
        return int(np.count_nonzero(self.kernel.offsets))


def bytes_per_key(features: Sequence[WindowFeature]) -> int:
    """Bytes of state per key of these features of one entity, its events not counted, all arrays being full.

    Arrays grow ahead of need and tables are full at 70%: up to twice as much may be reserved.
    """
    plan = WindowPlan(features, 0)
    words = head_words(_HEAD_WORDS + plan.ring_own) + _SLOT_WORDS
    if plan.labelled:
        words += head_words(_HEAD_WORDS + plan.hints) + head_words(_LABEL_HEAD_WORDS)
    return 8 * words + _TABLE_BYTES


def bytes_per_event(features: Sequence[WindowFeature]) -> int:
    """Bytes of state per event that is in the longest window; a key has room for 4 at the least.

    Rings are powers of two, and the smaller ones they grew out of wait for new keys: up to three times as much may be
    reserved. Frauds take 24 more each.
    """
    plan = WindowPlan(features, 0)
    return 8 * plan.ring_width + (_TABLE_BYTES if plan.labelled else 0)
