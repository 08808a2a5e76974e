"""Reasons of scores as the JSON that score records carry."""

from __future__ import annotations

import orjson

from models.explain_policy import Reasons
from streams.encode import Column, RecordTemplate

__all__ = ["reason_texts"]

_REASON = RecordTemplate([("feature", "json"), ("value", "number"), ("contribution", "number")])


def reason_texts(rows: int, reasons: Reasons | None) -> list[bytes] | None:
    """For each of so many rows its ``reasons`` as a JSON array, empty where it is not explained; None: no row is."""
    if reasons is None:
        return None
    names = [orjson.dumps(name) for name in reasons.names]
    count, each = reasons.feature.shape
    columns: dict[str, Column] = {
        "feature": [names[i] for i in reasons.feature.ravel().tolist()],
        "value": reasons.value.ravel(),
        "contribution": reasons.contribution.ravel(),
    }
    texts = _REASON.render(count * each, columns)
    out = [b"[]"] * rows
    for i, row in enumerate(reasons.rows.tolist()):
        out[row] = b"[%b]" % b",".join(texts[i * each : (i + 1) * each])
    return out
