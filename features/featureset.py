"""An ordered set of features: the columns of a model's input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from features.durations import FeatureError, duration_text
from features.rowfeatures import RowFeature
from features.windowfeature import WindowFeature, check_tiles, memory_text

__all__ = ["Feature", "FeatureSet"]

Feature = RowFeature | WindowFeature


def _checked(name: str, part: Feature | Iterable[WindowFeature]) -> list[Feature]:
    """The features of a part; FeatureError where it is something else."""
    features: list[Feature] = list(part) if isinstance(part, Iterable) else [part]
    for feature in features:
        if not isinstance(feature, RowFeature | WindowFeature):
            raise FeatureError(
                f"feature set {name!r}: {part!r} is not a feature; write field({part!r}) or by(..).count(..)"
            )
    return features


@dataclass(frozen=True, slots=True, init=False)
class FeatureSet:
    """An ordered set of features: the columns of a model's input, in this order.

    >>> from features.declare import by, field
    >>> FeatureSet("demo", [field("amount"), by("card_id").count("1d")]).names
    ('amount', 'card_count_1d')
    """

    name: str
    features: tuple[Feature, ...]

    def __init__(self, name: str, parts: Iterable[Feature | Iterable[WindowFeature]]) -> None:
        features: list[Feature] = []
        for part in () if isinstance(parts, str) or not isinstance(parts, Iterable) else parts:
            features.extend(_checked(name, part))
        if not features:
            raise FeatureError(f"feature set {name!r} is empty; declare at least one feature")
        seen: dict[str, Feature] = {}
        for feature in features:
            if feature.name in seen:
                raise FeatureError(f"{feature.name}: declared twice in {name!r}; drop one or give it another name=")
            seen[feature.name] = feature
        check_tiles(f for f in features if isinstance(f, WindowFeature))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "features", tuple(features))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features)

    @property
    def schema_hash(self) -> str:
        """sha256 (hex) over the canonical JSON of all definitions, order included."""
        definitions = [f.definition() for f in self.features]
        return hashlib.sha256(json.dumps(definitions, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def entities(self) -> tuple[str, ...]:
        """Entities of the window features, in order of first mention; several fields are joined by "+"."""
        return tuple(dict.fromkeys(f.entity for f in self._windows))

    @property
    def stages(self) -> tuple[str, ...]:
        """First fields of the entities, in order of first mention: what the rows must be partitioned by."""
        return tuple(dict.fromkeys(f.keys[0] for f in self._windows))

    @property
    def row_features(self) -> tuple[RowFeature, ...]:
        return tuple(f for f in self.features if isinstance(f, RowFeature))

    @property
    def _windows(self) -> tuple[WindowFeature, ...]:
        return tuple(f for f in self.features if isinstance(f, WindowFeature))

    def for_entity(self, entity: str) -> tuple[WindowFeature, ...]:
        """The window features of ``entity``, in order; FeatureError where it has none."""
        return self._found(entity, self.entities, tuple(f for f in self._windows if f.entity == entity))

    def for_stage(self, key: str) -> tuple[WindowFeature, ...]:
        """The window features whose entity's first field is ``key``, in order; FeatureError where it has none.

        All of them can be computed where the rows are partitioned by ``key``.
        """
        return self._found(key, self.stages, tuple(f for f in self._windows if f.keys[0] == key))

    def _found(self, key: str, there: tuple[str, ...], found: tuple[WindowFeature, ...]) -> tuple[WindowFeature, ...]:
        if not found:
            raise FeatureError(f"{self.name} has no features by {key!r}; it has {', '.join(there) or 'none'}")
        return found

    def positions(self, features: Iterable[Feature]) -> list[int]:
        """Column of each of these features in the set's matrix."""
        index = {name: i for i, name in enumerate(self.names)}
        return [index[f.name] for f in features]

    def describe(self) -> list[dict[str, str]]:
        """One row per feature: name, entity, what, window, delay, unit, memory ("" where there is none).

        ``memory`` is that of the state which the feature shares with others of its entity, see `memory_text`.
        """
        states: dict[tuple[str, bool, bool], list[WindowFeature]] = {}
        for f in self._windows:
            states.setdefault((f.entity, f.by_prefix_sums, f.tile_ms > 0), []).append(f)
        rows = []
        for feature in self.features:
            row = {"name": feature.name, "entity": "", "what": feature.what(), "window": "", "delay": ""}
            row |= {"unit": feature.unit, "memory": ""}
            if isinstance(feature, WindowFeature):
                row["entity"] = feature.entity
                row["window"] = feature.extent()
                row["delay"] = duration_text(feature.delay_ms) if feature.delay_ms else ""
                row["memory"] = memory_text(states[feature.entity, feature.by_prefix_sums, feature.tile_ms > 0])
            rows.append(row)
        return rows
