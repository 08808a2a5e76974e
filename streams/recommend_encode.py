"""Recommendation lists -> values of `recommendations`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import orjson

from features.block import Block, FloatArray
from features.schema import ACTIONS
from features.shopping import SOURCES
from streams.encode import RecordTemplate

__all__ = ["RecommendationEncoder", "Served"]

_WRITE = msgspec.json.Encoder().encode
_ACTIONS = [orjson.dumps(action) for action in ACTIONS]


class Served(NamedTuple):
    """What one event's user is recommended, best first: k items with their scores and the source that named each.

    ``propensities``: how likely each was to be in its place; None where nothing is explored. ``features`` (k, d), NaN
    in the row of an item that has none; None where they are not logged.
    """

    rung: str
    items: list[int | str]
    scores: list[float]
    sources: list[str]
    propensities: list[float] | None = None
    features: FloatArray | None = None


class RecommendationEncoder:
    """Fields in the contract's order, then ``item_id`` and ``action`` of the event, by which earlier lists are judged,
    ``weights``, what was added to the scores of each source's items to order them (null: nothing), and ``features``:
    for each name the values of the items, in their order; null where ``feature_names`` is None, as none are logged.

    >>> import numpy as np
    >>> from features.block import Ids
    >>> none = np.array([0])
    >>> ids = {"event_id": Ids.of([7]), "user_id": Ids.of(["u"]), "item_id": Ids.of([1])}
    >>> block = Block("interactions", 0, 1, none, none, ids, {"event_time": np.array([5]), "action": none})
    >>> served = Served("trending", [3, "x"], [0.5, 0.25], ["trending", "popular"])
    >>> RecommendationEncoder(None).encode(block, None, [served])[0].decode().split('"items":')[1][:48]
    '[{"item_id":3,"score":0.5,"source":"trending"},{'
    """

    def __init__(self, feature_names: Sequence[str] | None) -> None:
        self.feature_names = None if feature_names is None else tuple(feature_names)
        self._template = RecordTemplate(
            [
                ("event_id", "id"),
                ("event_time", "integer"),
                ("user_id", "id"),
                ("items", "json"),
                ("model", "json"),
                ("rung", "json"),
                ("item_id", "id"),
                ("action", "json"),
                ("weights", "json"),
                ("features", "json"),
            ]
        )

    def encode(
        self, block: Block, model: str | None, lists: Sequence[Served], weights: FloatArray | None = None
    ) -> list[bytes]:
        """One value per row of the block, which has as many lists; ``model`` is "name@version", None without one;
        ``weights`` (sources,) as of `SOURCES`."""
        by_source = None if weights is None else dict(zip(SOURCES, weights.tolist(), strict=True))
        columns: dict[str, Any] = {
            **block.ids,
            "event_time": block.event_time_ms,
            "items": [_items(served) for served in lists],
            "model": b"null" if model is None else orjson.dumps(model),
            "action": [_ACTIONS[action] for action in block.columns["action"].tolist()],
            "weights": orjson.dumps(by_source),
            "rung": [b'"%s"' % served.rung.encode() for served in lists],
            "features": b"null" if self.feature_names is None else [self._features(served) for served in lists],
        }
        return self._template.render(len(block), columns)

    def _features(self, served: Served) -> bytes:
        if served.features is None or self.feature_names is None:
            return b"null"
        columns = served.features.T.tolist()
        return orjson.dumps(dict(zip(self.feature_names, columns, strict=True)))


def _items(served: Served) -> bytes:
    columns = zip(served.items, served.scores, served.sources, strict=True)
    if served.propensities is None:
        return _WRITE([{"item_id": item, "score": score, "source": source} for item, score, source in columns])
    return _WRITE(
        [
            {"item_id": item, "score": score, "source": source, "propensity": propensity}
            for (item, score, source), propensity in zip(columns, served.propensities, strict=True)
        ]
    )
