"""Reference: what the rows were like when the world was as the model knows it, period by period."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.arrays import Arrays, of_texts, texts_of
from features.block import IntArray
from monitoring.bins import EDGES, Bins
from monitoring.drift import SEGMENT_VALUES, ScoredLayout
from monitoring.performance import LAYOUT
from monitoring.settings import MonitorError, MonitorSettings

__all__ = ["FORMAT_VERSION", "Reference"]

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Reference:
    """``period``: the length of a period, as `MonitorSettings.period`. The bins of the features and, last, the score;
    the values of each segment; and the counts of each period: ``scored`` (P, size of `ScoredLayout`) and ``labelled``
    (Q, size of `LabelledLayout`), none where labels are to be learned from the stream. Made by
    `monitoring.monitor.build_reference`."""

    period: str
    features: tuple[str, ...]
    segments: tuple[str, ...]
    segment_values: tuple[tuple[str, ...], ...]
    bins: Bins
    scored: IntArray
    labelled: IntArray

    def __post_init__(self) -> None:
        d, s = len(self.features), len(self.segments)
        shapes = {
            "edges": (self.bins.edges.shape, (d + 1, EDGES)),
            "discrete": (self.bins.discrete.shape, (d + 1,)),
            "scored": (self.scored.shape[1:], (ScoredLayout(d + 1, s).size,)),
            "labelled": (self.labelled.shape[1:], (LAYOUT.size,)),
            "segment_values": (len(self.segment_values), s),
        }
        for name, (found, expected) in shapes.items():
            if found != expected:
                raise MonitorError(f"reference {name}: is {found}, must be {expected}; build the reference again")
        if any(len(values) > SEGMENT_VALUES for values in self.segment_values):
            raise MonitorError(f"reference segment_values: more than {SEGMENT_VALUES}; build the reference again")

    def check(self, settings: MonitorSettings) -> None:
        """MonitorError where it is not of these settings."""
        for name in ("period", "features", "segments"):
            if getattr(self, name) != getattr(settings, name):
                raise MonitorError(
                    f"reference {name}: made for {getattr(self, name)}, the settings say {getattr(settings, name)}; "
                    "build the reference again, or watch what it was made for"
                )
        for name in ("scored", "labelled"):
            periods = len(getattr(self, name))
            if 0 < periods < max(8, 2 * settings.windows[-1]):
                raise MonitorError(
                    f"reference {name}: {periods} periods are too few to tell how windows of {settings.windows[-1]} "
                    "periods differ by chance; build it from more, or leave it out to learn it from the stream"
                )

    def to_arrays(self) -> Arrays:
        """Plain arrays; of the names, ``segment_values`` are joined field by field, ``segment_counts`` long."""
        return {
            "period": of_texts([self.period]),
            "features": of_texts(self.features),
            "segments": of_texts(self.segments),
            "segment_values": of_texts(value for values in self.segment_values for value in values),
            "segment_counts": np.array([len(values) for values in self.segment_values], np.int64),
            "edges": self.bins.edges,
            "discrete": self.bins.discrete,
            "scored": self.scored,
            "labelled": self.labelled,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Reference:
        """The reverse of `to_arrays`. MonitorError: something is missing or of another shape."""
        try:
            values = texts_of(arrays["segment_values"])
            ends = np.cumsum(arrays["segment_counts"]).tolist()
            return cls(
                texts_of(arrays["period"])[0],
                tuple(texts_of(arrays["features"])),
                tuple(texts_of(arrays["segments"])),
                tuple(tuple(values[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)) if ends else (),
                Bins(arrays["edges"].astype(np.float64), arrays["discrete"].astype(np.bool_)),
                arrays["scored"].astype(np.int64),
                arrays["labelled"].astype(np.int64),
            )
        except (KeyError, IndexError, AttributeError, UnicodeDecodeError) as error:
            raise MonitorError(f"reference: cannot be read ({error!r}); build it again") from error

    def to_json(self) -> dict[str, Any]:
        """Plain data for a package; counts are mostly 0 and kept as pairs of position and count."""
        return {
            "format_version": FORMAT_VERSION,
            "period": self.period,
            "features": list(self.features),
            "segments": {name: list(v) for name, v in zip(self.segments, self.segment_values, strict=True)},
            "edges": [[e for e in row if np.isfinite(e)] for row in self.bins.edges.tolist()],
            "discrete": self.bins.discrete.tolist(),
            "scored": _sparse(self.scored),
            "labelled": _sparse(self.labelled),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reference:
        """The reverse of `to_json`. MonitorError: another format, or what cannot be read."""
        try:
            if data["format_version"] != FORMAT_VERSION:
                raise MonitorError(
                    f"reference format_version: {data['format_version']}, this headrace reads {FORMAT_VERSION}; "
                    "build the reference again"
                )
            edges = np.full((len(data["edges"]), EDGES), np.nan)
            for row, given in zip(edges, data["edges"], strict=True):
                row[: len(given)] = given
            features, segments = tuple(data["features"]), data["segments"]
            return cls(
                data["period"],
                features,
                tuple(segments),
                tuple(tuple(values) for values in segments.values()),
                Bins(edges, np.array(data["discrete"], np.bool_)),
                _dense(data["scored"], ScoredLayout(len(features) + 1, len(segments)).size),
                _dense(data["labelled"], LAYOUT.size),
            )
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            if isinstance(error, MonitorError):
                raise
            raise MonitorError(f"reference: cannot be read ({error!r}); build it again") from error


def _sparse(counts: IntArray) -> list[list[list[int]]]:
    return [[(at := np.flatnonzero(row)).tolist(), row[at].tolist()] for row in counts]


def _dense(rows: list[list[list[int]]], size: int) -> IntArray:
    out = np.zeros((len(rows), size), np.int64)
    for row, (at, counts) in zip(out, rows, strict=True):
        row[at] = counts
    return out
