"""Which scores are explained, and by how many reasons each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from features.block import FloatArray, IntArray
from models.errors import ModelError

__all__ = ["NO_REASONS", "Reasons", "ReasonsPolicy", "strongest"]

_FORMS = "all, none, above:THRESHOLD such as above:0.5, or sample:RATE such as sample:0.01"
_GOLDEN = 0x9E37_79B9_7F4A_7C15
_MIX = ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB))
_DOUBLE_BITS = 53


class Reasons(NamedTuple):
    """Why k rows have their scores, r reasons each, largest first.

    ``rows`` (k,) int64 rising; ``feature`` (k, r) int64 indexes ``names``; ``value`` and ``contribution`` (k, r).
    """

    names: tuple[str, ...]
    rows: IntArray
    feature: IntArray
    value: FloatArray
    contribution: FloatArray


@dataclass(frozen=True, slots=True)
class ReasonsPolicy:
    """``bound`` is the threshold or the rate; ``most`` reasons are given for a row, 0 = all features."""

    kind: Literal["all", "none", "above", "sample"]
    bound: float = 0.0
    most: int = 5
    seed: int = 0

    @classmethod
    def parse(cls, text: str, most: int = 5) -> ReasonsPolicy:
        """The policy of a setting's text; ModelError when it is none.

        >>> ReasonsPolicy.parse("above:0.5")
        ReasonsPolicy(kind='above', bound=0.5, most=5, seed=0)
        """
        kind, colon, number = text.partition(":")
        if kind in ("all", "none") and not colon:
            return cls(kind, most=most)  # type: ignore[arg-type]
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if kind == "above" and math.isfinite(bound):
            return cls("above", bound, most)
        if kind == "sample" and 0.0 <= bound <= 1.0:
            return cls("sample", bound, most)
        limits = "; the rate of sample is 0 to 1" if kind == "sample" else ""
        raise ModelError(f"{text!r} does not say which scores are explained; write {_FORMS}{limits}")

    def rows(self, score: FloatArray, partitions: IntArray, offsets: IntArray) -> IntArray:
        """The rows that are explained, rising, of n rows with their scores and where their events were in the log.

        A row's choice depends on its own score or position alone, so that blocks and workers do not show.
        """
        if self.kind == "all":
            return np.arange(len(score), dtype=np.int64)
        if self.kind == "above":
            return np.flatnonzero(score > self.bound)
        if self.kind == "sample":
            return np.flatnonzero(_uniform(self.seed, partitions, offsets) < self.bound)
        return np.empty(0, np.int64)


NO_REASONS = ReasonsPolicy("none")


def strongest(
    names: tuple[str, ...], rows: IntArray, values: FloatArray, contributions: FloatArray, most: int
) -> Reasons:
    """The ``most`` largest contributions of each row, by magnitude, equal ones in the order of ``names``.

    ``values`` (k, d) and ``contributions`` (k, d or more, the first d count) of the ``rows``.
    """
    d = len(names)
    contributions = contributions[:, :d]
    order = np.argsort(-np.abs(contributions), axis=1, kind="stable")[:, : most or d]
    return Reasons(
        names,
        rows,
        order,
        np.take_along_axis(values, order, axis=1),
        np.take_along_axis(contributions, order, axis=1),
    )


def _uniform(seed: int, partitions: IntArray, offsets: IntArray) -> FloatArray:
    """(n,) in [0, 1): a hash of seed, partition and offset (the finalizer of SplitMix64, twice)."""
    first = _mixed(partitions.astype(np.uint64) + np.uint64((seed + 1) * _GOLDEN % 2**64))
    word = _mixed(first ^ (offsets.astype(np.uint64) * np.uint64(_GOLDEN)))
    return (word >> np.uint64(64 - _DOUBLE_BITS)).astype(np.float64) * 2.0**-_DOUBLE_BITS


def _mixed(word: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    for shift, factor in _MIX:
        word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    return word ^ (word >> np.uint64(31))
