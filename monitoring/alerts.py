"""Alert: what was noticed, since when, how sure, where, and what a naive detector would have said."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Alert", "alert_id"]


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


def alert_id(half: str, subject: str, measure: str, period: int) -> str:
    """16 hexadecimal digits: the same alert of the same log has the same id, whoever raises it."""
    return hashlib.sha256(f"{half}\0{subject}\0{measure}\0{period}".encode()).hexdigest()[:16]
