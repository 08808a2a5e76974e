"""The monitor's last task: what partitions and models have found, grouped by cause, becomes alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from features.arrays import Arrays, check_like, of_texts, texts_of
from monitoring.alerts import is_alert
from monitoring.causes import Causes
from streams.codec import Dead
from streams.log import TP, OutBatch, RecordBatch
from streams.stage import Meters, dead_letters, fresh_part
from streams.topics import ALERTS

__all__ = ["IncidentTask"]


class _Pipeline(Protocol):
    meters: Meters


class IncidentTask:
    """monitor.findings -> alerts. All findings are in one partition, so that one task sees all of them, in the order of
    that log; one that was sent again counts once."""

    def __init__(self, pipeline: _Pipeline, tp: TP) -> None:
        self.pipeline, self.tp = pipeline, tp
        self.next_offset = 0
        self.causes = Causes()

    def state(self) -> Arrays:
        """All that `process` depends on, between two batches; equal for equal logs: ``next_offset`` (1,), ``groups``
        (1,) text, JSON."""
        groups = orjson.dumps(self.causes.groups).decode()
        return {"next_offset": np.array([self.next_offset], np.int64), "groups": of_texts([groups])}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`, on a task that has seen nothing yet. StateError: of another kind of task."""
        check_like(arrays, self.state(), "{}/{}".format(*self.tp))
        self.next_offset = int(arrays["next_offset"][0])
        self.causes.groups = orjson.loads(texts_of(arrays["groups"])[0])

    def tick(self, now_s: float, at_end: bool) -> list[OutBatch]:
        """Nothing to tell: a cause is told of when it is found."""
        return []

    def process(self, batch: RecordBatch) -> list[OutBatch]:
        """Takes the findings; an alert is given for each new cause, and again with each new member."""
        meters = self.pipeline.meters
        batch = fresh_part(batch, self.next_offset)
        alerts: list[dict[str, Any]] = []
        dead: list[Dead] = []
        new = 0
        for i, value in enumerate(batch.values):
            finding = _read(value)
            if finding is None:
                dead.append(Dead(i, "record: no finding of a monitor; let only headrace write to this topic"))
                continue
            given = self.causes.take(finding)
            if given is not None:
                alerts.append(given[0])
                new += given[1]
        self.next_offset = batch.next_offset
        if batch.replay:
            meters.replayed(len(batch))
            return []
        meters.counts["alerts"] += new
        meters.counts["dead_letters"] += len(dead)
        outputs = [_records(alerts)] if alerts else []
        if dead:
            outputs.append(dead_letters(batch, dead, "incidents"))
        return outputs


def _read(value: bytes | None) -> dict[str, Any] | None:
    """The finding; None: it is none."""
    try:
        finding = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    return finding if is_alert(finding) else None


def _records(alerts: Sequence[Mapping[str, Any]]) -> OutBatch:
    """Keyed by what they are about, which stays so: records of one alert are in the order in which they were given."""
    keys = [f"{alert['kind']}/{alert['subject']}".encode() for alert in alerts]
    return OutBatch(ALERTS, [orjson.dumps(alert) for alert in alerts], keys)
