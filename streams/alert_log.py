"""Alerts read back from the log, and explained in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from monitoring.alerts import SEVERITIES, is_alert
from streams.dead_letters import read_now
from streams.log import Log
from streams.topics import ALERTS

__all__ = ["alert_in", "explained", "figure_text", "newer", "read_alerts", "time_text"]

_WATCHES_SHOWN = 5


def read_alerts(log: Log) -> dict[str, dict[str, Any]]:
    """All alerts that are in the topic now by their id; one that was sent twice is one, and what is no alert
    is left out. ConfigError: no such topic."""
    alerts: dict[str, dict[str, Any]] = {}
    for batch in read_now(log, ALERTS):
        for value in batch.values:
            alert = alert_in(value)
            if alert is not None:
                alerts[alert["alert_id"]] = newer(alerts.get(alert["alert_id"]), alert)
    return alerts


def alert_in(value: bytes | None) -> dict[str, Any] | None:
    """The alert in a record of the topic; None: it is none."""
    try:
        alert = orjson.loads(value or b"null")
    except orjson.JSONDecodeError:
        return None
    return alert if is_alert(alert) else None


def newer(before: Mapping[str, Any] | None, alert: dict[str, Any]) -> dict[str, Any]:
    """The later record of an alert: a member more does not undo what was done, and what is said to have been done, of
    the alert as it was then, makes it no milder."""
    if before is None:
        return alert
    stays: dict[str, Any] = {}
    if alert.get("action") == "none":
        stays["action"] = before.get("action", "none")
    if before.get("severity") == SEVERITIES[-1]:
        stays["severity"] = SEVERITIES[-1]
    return {**alert, **stays}


def time_text(time_ms: int) -> str:
    """Minutes, UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def figure_text(value: Any) -> str:
    """Four digits."""
    return "none" if value is None else f"{value:.4g}"


def explained(alert: Mapping[str, Any]) -> Iterator[str]:
    """What was noticed, since when, how sure, where, what a naive detector would have said, and what was done."""
    evidence: Mapping[str, Any] = alert["evidence"]
    yield f"{alert['alert_id']}: {alert['kind']} of {alert['subject']}, {alert['severity']}"
    yield f"  noticed   {time_text(alert['event_time'])}" + (
        f", changed about {time_text(evidence['since'])}" if "since" in evidence else ""
    )
    yield f"  value     {figure_text(alert['value'])}, limit {figure_text(alert['threshold'])}" + (
        f": {figure_text(evidence['strength'])} times as far from the usual as is allowed"
        if "strength" in evidence
        else ""
    )
    if "model" in evidence:
        yield f"  model     {evidence['model'] or 'none'}, seen first in {evidence.get('partition', 'all partitions')}"
    members = evidence.get("members", [])
    if len(members) > 1:
        more = evidence.get("members_beyond", 0)
        yield f"  cause     {len(members) + more} findings of partitions and models are this one alert"
        for member in members[1:]:
            strength = figure_text(member.get("strength"))
            yield (
                f"  member    {time_text(member['event_time'])} {member['kind']} of {member['subject']}, strength "
                f"{strength}, {member['model'] or 'no model'}, {member['partition']}"
            )
    for name in ("features", "segments"):
        if evidence.get(name):
            yield f"  {name:<9} {', '.join(evidence[name])}"
    for watch in evidence.get("watches", [])[:_WATCHES_SHOWN]:
        yield (
            f"  watch     {watch['measure']} of {watch['subject']} over {watch['periods']} periods: "
            f"{figure_text(watch['value'])}, usual {figure_text(watch['expected'])}, "
            f"limit {figure_text(watch['threshold'])}"
        )
    if (more := evidence.get("watches_beyond", 0) - _WATCHES_SHOWN) > 0:
        yield f"            and {more} more"
    for example in evidence.get("examples", []):
        yield f"  example   transaction {example['transaction_id']}, score {figure_text(example['score'])}"
    naive = evidence.get("naive")
    if naive:
        adwin = "had fired" if naive["adwin_default"]["fired"] else "had not fired"
        yield f"  naive     to alert always: {naive['always']} alerts by now; ADWIN as it comes {adwin}"
    if "budget" in evidence:
        yield (
            f"  budget    {figure_text(evidence['budget']['false_alarms_per_30d'])} false alarms in 30 days over "
            f"{evidence['budget']['watches']} watches"
        )
    yield f"  action    {alert['action']}"
