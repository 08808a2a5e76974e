"""Alert: what was noticed, since when, how sure, where, and what a naive detector would have said."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, TypeGuard

__all__ = ["SEVERITIES", "Alert", "alert_id", "is_alert"]

#: mildest first
SEVERITIES = ("warning", "critical")
#: the end of the year 9999: later is no date
_TIME_END_MS = 253_402_300_800_000


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert, the fields of the contract of topic ``alerts``.

    ``event_time`` ms: the end of the period that raised it. ``kind``: input_drift, score_drift, segment_drift,
    missing_rate, unseen_rate, estimated_performance, performance_drift, calibration_drift; of lists list_performance,
    list_coverage, popularity_bias, rung_share, source_share. ``value`` and ``threshold`` are those of the strongest
    watch, on ``subject``. ``evidence`` is JSON data, see `monitoring.evidence`. ``action``
    is "none" until a policy takes one.
    """

    alert_id: str
    event_time: int
    kind: str
    subject: str
    severity: str
    value: float
    threshold: float
    evidence: dict[str, Any] = field(default_factory=dict)
    action: str = "none"

    def to_json(self) -> dict[str, Any]:
        """Plain data, the contract's fields in their order."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def is_alert(record: object) -> TypeGuard[dict[str, Any]]:
    """Whether it is the JSON of an `Alert`, each field of its type, the severity one that there is."""
    if not isinstance(record, dict) or not record.keys() >= Alert.__dataclass_fields__.keys():
        return False
    texts = all(isinstance(record[name], str) for name in ("alert_id", "kind", "subject", "severity", "action"))
    # JSON has no NaN: it is null there
    figures = all(type(record[name]) in (int, float, type(None)) for name in ("value", "threshold"))
    timed = type(record["event_time"]) is int and 0 <= record["event_time"] < _TIME_END_MS
    return texts and figures and timed and isinstance(record["evidence"], dict) and record["severity"] in SEVERITIES


def alert_id(half: str, subject: str, measure: str, period: int) -> str:
    """16 hexadecimal digits: the same alert of the same log has the same id, whoever raises it."""
    return hashlib.sha256(f"{half}\0{subject}\0{measure}\0{period}".encode()).hexdigest()[:16]
