"""What two packages have in common, and what not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.modeltext import parse
from models.package import Manifest, read_manifest

__all__ = ["MetricDifference", "compare"]

#: of a training, what is compared elsewhere: what search and budget came to is in parameters, rounds and size
_NOT_COMPARED = ("params", "search", "budget", "protocol")
#: standard errors of a 95% interval
_Z = 1.96


@dataclass(frozen=True, slots=True)
class MetricDifference:
    """A metric of both packages; ``noise``: half the 95% interval of the difference, None where it is not known.

    It takes the two tests for independent, so where they are of the same rows the difference is better known.
    """

    first: float | None
    second: float | None
    noise: float | None

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the difference is larger than the noise; None where that is not known."""
        if self.first is None or self.second is None or self.noise is None:
            return None
        return abs(self.second - self.first) > self.noise


def compare(first: Path, second: Path) -> dict[str, Any]:
    """The packages in two directories beside each other; PackageError where one cannot be read.

    ``features``: those of one only, and whether common ones have the same order; ``metrics``: a `MetricDifference` by
    name; ``training`` and ``settings``: (first, second) of what differs; ``size``: (first, second) by name.
    """
    a, b = read_manifest(first), read_manifest(second)
    common = [name for name in a.features if name in set(b.features)]
    names = [name for name in (*a.metrics, *b.metrics) if name not in ("rows", "frauds")]
    others: dict[str, tuple[Any, Any]] = {
        "objective": (a.objective, b.objective),
        "schema_hash": (a.schema_hash, b.schema_hash),
    }
    others["calibration"] = (a.calibration.to_json(), b.calibration.to_json())
    others |= {f"{name} (library)": (v, b.libraries.get(name)) for name, v in a.libraries.items()}
    params = a.training.get("params", {}), b.training.get("params", {})
    sizes = _size(first), _size(second)
    return {
        "models": [a.label, b.label],
        "features": {
            "first_only": [name for name in a.features if name not in set(b.features)],
            "second_only": [name for name in b.features if name not in set(a.features)],
            "same_order": common == [name for name in b.features if name in set(a.features)],
        },
        "metrics": {name: _metric(a, b, name) for name in dict.fromkeys(names)},
        "training": {k: v for k, v in _differing(a.training, b.training).items() if k not in _NOT_COMPARED},
        "settings": _differing(*params) | {name: pair for name, pair in others.items() if pair[0] != pair[1]},
        "size": {name: (mine, sizes[1][name]) for name, mine in sizes[0].items()},
    }


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (a.get(name), b.get(name)) for name in dict.fromkeys((*a, *b)) if a.get(name) != b.get(name)}


def _size(package: Path) -> dict[str, int]:
    text = (package / "model.txt").read_text("utf-8")
    trees = parse(text).trees
    return {"bytes": len(text.encode()), "trees": len(trees), "leaves": sum(tree.n_leaves for tree in trees)}


def _metric(a: Manifest, b: Manifest, name: str) -> MetricDifference:
    first, second = (m.metrics.get(name) for m in (a, b))
    errors = [_measured_error(m, name) or _standard_error(m.metrics, name) for m in (a, b)]
    known = [error for error in errors if error is not None]
    return MetricDifference(first, second, _Z * math.hypot(*known) if len(known) == 2 else None)


def _measured_error(manifest: Manifest, name: str) -> float | None:
    """The standard deviation over draws of cards, where the training measured it."""
    found = manifest.evaluation.get("intervals", {}).get(name, {})
    deviation: float | None = found.get("deviation")
    return deviation


def _standard_error(metrics: Mapping[str, Any], name: str) -> float | None:
    """Of the area under the ROC curve by Hanley and McNeil (1982), of the average precision by the binomial of the
    frauds (Boyd, Eng and Page, 2013); of others none is known from the manifest."""
    rows, frauds, value = metrics.get("rows"), metrics.get("frauds"), metrics.get(name)
    if not rows or not frauds or value is None:
        return None
    if name == "average_precision":
        return math.sqrt(value * (1 - value) / frauds)
    if name == "auc" and rows > frauds:
        q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
        spread = value * (1 - value) + (frauds - 1) * (q1 - value**2) + (rows - frauds - 1) * (q2 - value**2)
        return math.sqrt(max(0.0, spread) / (frauds * (rows - frauds)))
    return None
