"""The topic of alerts as the web page shows it: all that are in it, each once, the newest with their evidence."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from typing import Any

from monitoring.alerts import SEVERITIES
from streams.alert_log import alert_in, newer
from streams.item_feed import TopicFeed
from streams.log import Log
from streams.topic_thread import TopicThread
from streams.topics import ALERTS

__all__ = ["AlertBook"]

logger = logging.getLogger("headrace.web")

#: alerts that are kept with their evidence
_KEEP = 200
#: alerts that are known by id, so that each is counted once; one that was told of longer ago counts again
_KNOWN = 20_000
#: until it is looked again whether the topic is there, and whether it can be read
_AGAIN_S = 5.0
_CLOSE_S = 5.0


class AlertBook(TopicThread):
    """Reads the topic from the earliest record on, outside any group; `start` and `close` once each."""

    def __init__(self, log: Log) -> None:
        what = "alerts for the web page are not read"
        super().__init__(
            log, ALERTS, name="headrace-web-alerts", what=what, logger=logger, again_s=_AGAIN_S, close_s=_CLOSE_S
        )
        self._lock = threading.Lock()
        self._alerts: dict[str, dict[str, Any]] = {}
        #: (kind, severity) that the alert is counted under, the alert told of longest ago first
        self._known: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._counts: Counter[tuple[str, str]] = Counter()

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """Alerts by (kind, severity), as severe as they are by now."""
        with self._lock:
            return dict(self._counts)

    def newest(self, most: int = _KEEP) -> list[dict[str, Any]]:
        """As in the topic, the newest by event time first."""
        with self._lock:
            alerts = list(self._alerts.values())
        return sorted(alerts, key=lambda alert: (-alert["event_time"], alert["alert_id"]))[:most]

    def _follow(self) -> None:
        feed = TopicFeed(self._log, ALERTS)
        feed.start()
        try:
            while not self._stop.wait(0.2):
                while batches := feed.take():
                    for batch in batches:
                        for value in batch.values:
                            self._take(value)
        finally:
            feed.close()

    def _take(self, value: bytes | None) -> None:
        alert = alert_in(value)
        if alert is None:
            return
        name = alert["alert_id"]
        with self._lock:
            self._count(name, alert["kind"], alert["severity"])
            self._alerts[name] = newer(self._alerts.get(name), alert)
            if len(self._alerts) > 2 * _KEEP:
                kept = sorted(self._alerts.items(), key=lambda item: item[1]["event_time"])[-_KEEP:]
                self._alerts = dict(kept)

    def _count(self, name: str, kind: str, severity: str) -> None:
        before = self._known.pop(name, None)
        if before is not None:
            # down to 0, which stays: a gauge that is left out keeps its last value where it is read
            self._counts[before] -= 1
            severity = max(before[1], severity, key=SEVERITIES.index)
        self._known[name] = (kind, severity)
        self._counts[kind, severity] += 1
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
