"""What an alert asks for: the strongest action among its findings about the model that scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from monitoring.causes import LABELLED_KINDS
from streams.control_settings import ACTIONS, ControlSettings

__all__ = ["Wanted", "is_alert", "known_ms", "read_alert", "wanted"]


class Wanted(NamedTuple):
    """``action`` of the policy, since when (event time ms) the world is another, and when the finding was known."""

    action: str
    since_ms: int
    known_ms: int


def read_alert(value: bytes | None) -> dict[str, Any] | None:
    """An alert as the monitor gives it; None for anything else, such as the records of what was done about one."""
    try:
        alert = orjson.loads(value or b"")
    except ValueError:
        return None
    return alert if is_alert(alert) and alert.get("action") == "none" else None


def is_alert(alert: Any) -> bool:
    """Whether it has what is looked at here, in the types of the contract."""
    fields = {"alert_id": str, "event_time": int, "kind": str, "subject": str, "evidence": dict}
    return isinstance(alert, dict) and _is(alert, fields)


def _is(record: Mapping[str, Any], fields: Mapping[str, type]) -> bool:
    return all(isinstance(record.get(name), kind) for name, kind in fields.items())


def wanted(settings: ControlSettings, alert: Mapping[str, Any], champion: str, labels_ms: int) -> Wanted | None:
    """What the policy says to the alert and to the findings that have joined it since: one cause is one alert, whose
    kind and time are those of the first. The newest of the findings that ask for most counts. None: it is about other
    models than ``champion`` only. ``labels_ms``: see `known_ms`."""
    found = [
        Wanted(settings.action(finding["kind"]), _since(finding, evidence), _known_ms(finding, labels_ms))
        for finding, evidence in _findings(alert)
        if evidence.get("model") in (None, "", champion)
    ]
    return max(found, key=lambda one: (ACTIONS.index(one.action), one.known_ms), default=None)


def known_ms(alert: Mapping[str, Any], labels_ms: int) -> int:
    """When the newest of its findings was known. The time of a finding is the end of its period of events; one by
    labels is not known before the labels of that period are all there, which is ``labels_ms`` later."""
    return max(_known_ms(finding, labels_ms) for finding, _ in _findings(alert))


def _known_ms(finding: Mapping[str, Any], labels_ms: int) -> int:
    return int(finding["event_time"]) + (labels_ms if finding["kind"] in LABELLED_KINDS else 0)


def _findings(alert: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(finding, what has its model and since) of the alert and its members."""
    evidence = alert["evidence"]
    yield alert, evidence
    members = evidence.get("members")
    for member in members if isinstance(members, list) else ():
        if isinstance(member, dict) and _is(member, {"kind": str, "event_time": int}):
            yield member, member


def _since(finding: Mapping[str, Any], evidence: Mapping[str, Any]) -> int:
    since = evidence.get("since")
    return since if isinstance(since, int) else int(finding["event_time"])
