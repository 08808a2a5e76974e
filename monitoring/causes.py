"""One cause is one alert over all partitions and models: findings that belong together become one record.

Each partition of the log watches its share of the rows, and each model apart, so that what changes for all of them is
found once by each, within days of one another. What is found within `SPAN_MS` of an incident of its group is one more
member of it, of the nearest one. A group is what is watched (payments, lists), before labels and by labels, since a
change of the inputs and a change of what they mean are two causes. The first finding is the alert; with each new member
the record is given again under the same id. From its first to its last finding an incident is `LENGTH_MS` long at most:
what is found later is another cause, or the same one that nobody has met, which is worth an alert either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monitoring.alerts import SEVERITIES

__all__ = ["LABELLED_KINDS", "LENGTH_MS", "SPAN_MS", "Causes"]

#: as long as the longest window of the watches, a week, sees what has changed; and a day
SPAN_MS = 8 * 86_400_000
#: of an incident, so that findings which follow one another do not become one without end
LENGTH_MS = 2 * SPAN_MS
#: by labels: found when those of the period are mature
LABELLED_KINDS = frozenset({"performance_drift", "calibration_drift", "list_performance"})
#: incidents of a group that are remembered, and members that are listed of each
_INCIDENTS, _MEMBERS = 64, 50


class Causes:
    """The incidents of all groups. Plain JSON data in and out: a finding has the fields of an alert, and ``model`` and
    ``partition`` in its evidence."""

    def __init__(self, span_ms: int = SPAN_MS, length_ms: int = LENGTH_MS) -> None:
        self.span_ms, self.length_ms = span_ms, length_ms
        #: by group, oldest first: ``alert`` as it was last given, ``ids`` of all members, ``first`` and ``last`` time
        self.groups: dict[str, list[dict[str, Any]]] = {}

    def take(self, finding: Mapping[str, Any]) -> tuple[dict[str, Any], bool] | None:
        """The alert to be given, and whether it is a new one; None: the finding was taken before."""
        incidents = self.groups.setdefault(_group(finding), [])
        identity, time_ms = finding["alert_id"], finding["event_time"]
        if any(identity in incident["ids"] for incident in incidents):
            return None
        near = [incident for incident in incidents if self._admits(incident, time_ms)]
        if near:
            nearest = min(near, key=lambda incident: _away(incident, time_ms))
            _join(nearest, finding)
            return nearest["alert"], False
        alert = dict(finding) | {"evidence": {**finding["evidence"], "members": [_member(finding)]}}
        incidents.append({"alert": alert, "ids": [identity], "first": time_ms, "last": time_ms})
        del incidents[:-_INCIDENTS]
        return alert, True

    def _admits(self, incident: Mapping[str, Any], time_ms: int) -> bool:
        length = max(incident["last"], time_ms) - min(incident["first"], time_ms)
        return _away(incident, time_ms) <= self.span_ms and length <= self.length_ms


def _away(incident: Mapping[str, Any], time_ms: int) -> int:
    away: int = max(incident["first"] - time_ms, time_ms - incident["last"], 0)
    return away


def _group(finding: Mapping[str, Any]) -> str:
    topic = str(finding["evidence"].get("partition", "")).rpartition("/")[0]
    return f"{topic} {'labelled' if finding['kind'] in LABELLED_KINDS else 'scored'}"


def _member(finding: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a finding in the alert that it belongs to."""
    evidence = finding["evidence"]
    names = ("alert_id", "event_time", "kind", "subject", "severity", "value", "threshold")
    told = {name: finding[name] for name in names}
    return told | {name: evidence.get(name) for name in ("model", "partition", "since", "strength")}


def _join(incident: dict[str, Any], finding: Mapping[str, Any]) -> None:
    """The finding becomes a member; the alert is as severe as its severest one."""
    incident["ids"].append(finding["alert_id"])
    incident["first"] = min(incident["first"], finding["event_time"])
    incident["last"] = max(incident["last"], finding["event_time"])
    alert = incident["alert"]
    evidence = dict(alert["evidence"])
    if len(evidence["members"]) < _MEMBERS:
        evidence["members"] = [*evidence["members"], _member(finding)]
    else:
        evidence["members_beyond"] = evidence.get("members_beyond", 0) + 1
    severity = max(alert["severity"], finding["severity"], key=SEVERITIES.index)
    incident["alert"] = alert | {"severity": severity, "evidence": evidence}
