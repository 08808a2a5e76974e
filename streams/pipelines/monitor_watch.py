"""What is watched: for each model that scores, a `Monitor` of its vectors and of those that got their label."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from features.arrays import Arrays, of_texts, prefixed, texts_of, under
from features.block import Block, FloatArray, Ids, IntArray
from monitoring.alerts import Alert
from monitoring.labels import JoinSettings
from monitoring.monitor import Monitor
from monitoring.settings import MonitorSettings
from monitoring.trained import Trained
from streams.labelled import LabelledRows, matrix_of
from streams.log import TP, OutBatch
from streams.pipelines.fraud_monitor import MODEL
from streams.topics import FINDINGS

__all__ = ["Packages", "WatchSettings", "Watches", "alert_records", "values_of"]

#: the ``reference`` in the package "name@version", {} where there is none; the same whenever it is asked
Packages = Callable[[str], Mapping[str, Any]]

#: models that are watched at once; a new one takes the place of the one that has not scored for longest
_MODELS_MAX = 8
_FINDINGS_KEY = b"findings"
#: whole numbers below are the same as float64 and as int64
_WHOLE_MAX = 2.0**53


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """What alerts depend on besides the log: how long after its event a row counts as having its final label, from
    which score on rows are acted on, how many alerts a month are expected where nothing changes, and the features by
    whose values the scores are watched apart too, where a model has them."""

    mature_ms: int = 7 * 86_400_000
    threshold: float = 0.5
    false_alarms: float = 1.0
    segments: tuple[str, ...] = ()

    def of(self, features: Sequence[str], join: JoinSettings, partitions: int) -> MonitorSettings:
        """Of one of so many partitions, which share the false alarms. MonitorError: a setting that cannot be."""
        # what is known at the horizon only comes when it is looked for next
        mature_ms = max(self.mature_ms, join.horizon_ms + join.look_ms) if join.at_horizon else self.mature_ms
        return MonitorSettings(
            tuple(features),
            tuple(name for name in self.segments if name in features),
            label_horizon_ms=mature_ms,
            threshold=self.threshold,
            false_alarms_per_30d=self.false_alarms / partitions,
        )


class _Watched(NamedTuple):
    model: str
    features: tuple[str, ...]


def _no_package(model: str) -> Mapping[str, Any]:
    return {}


class Watches:
    """Of one of ``partitions`` partitions, which all see a share of the transactions, by chance. Their clock is the
    time that all sources of the log have passed, given with the rows: sources are at different times in a backlog, and
    neither an event nor a label of a wrong clock may end a period. ``packages`` is asked once for each model, when its
    first row comes: what it says is part of the state from then on."""

    def __init__(
        self, settings: WatchSettings, join: JoinSettings, tp: TP, partitions: int, packages: Packages | None = None
    ) -> None:
        self._settings = settings
        self._packages = packages or _no_package
        self._join = join
        self._tp = tp
        self._partitions = partitions
        #: who scored last comes last
        self._monitors: OrderedDict[_Watched, Monitor] = OrderedDict()

    def scored(self, vectors: Block, names: tuple[str, ...], time_ms: int) -> list[OutBatch]:
        """Takes the vectors of one message, whose features have these names; the alerts that follow. ``time_ms``: that
        all sources have passed, `NO_TIME` before there is one."""
        outputs: list[OutBatch] = []
        matrix = matrix_of(vectors, names)
        for model, rows in _by_model(vectors):
            watched = _Watched(model, names)
            monitor = self._monitors.get(watched) or self._new(watched)
            self._monitors[watched] = monitor
            self._monitors.move_to_end(watched)
            if len(self._monitors) > _MODELS_MAX:
                self._monitors.popitem(last=False)
            block, x = (vectors, matrix) if rows is None else (vectors.take(rows), matrix[rows])
            columns = {
                "event_time": block.event_time_ms,
                "clock": np.full(len(block), time_ms),
                "transaction_id": block.ids["transaction_id"],
                "features": x,
                "score": block.columns["score"],
                "segments": {name: values_of(x[:, names.index(name)]) for name in monitor.settings.segments},
            }
            outputs += self._alerts(model, monitor.observe_scored(columns))
        return outputs

    def labelled(self, labelled: LabelledRows, time_ms: int) -> list[OutBatch]:
        """Takes vectors that got their label; the alerts that follow. ``time_ms`` as in `scored`."""
        outputs: list[OutBatch] = []
        for model, rows in _by_model(labelled.block):
            monitor = self._monitors.get(_Watched(model, labelled.names))
            if monitor is None:
                continue
            at = slice(None) if rows is None else rows
            block = labelled.block if rows is None else labelled.block.take(rows)
            times = block.event_time_ms
            known = times + self._join.horizon_ms if self._join.at_horizon else labelled.label_times[at]
            columns = {
                "event_time": times,
                "label_time": np.minimum(known, time_ms),
                "transaction_id": block.ids["transaction_id"],
                "card_id": block.ids["card_id"],
                "score": block.columns["score"],
                "label": labelled.labels[at],
            }
            outputs += self._alerts(model, monitor.observe_labelled(columns))
        return outputs

    def figures(self) -> dict[str, Any]:
        """By model, see `Monitor.figures`."""
        return {watched.model: monitor.figures() for watched, monitor in self._monitors.items()}

    def to_arrays(self) -> Arrays:
        """Equal for equal logs: ``models`` (m,) texts, and for each ``i/features``, ``i/trained/..`` where its package
        tells what it was made on, and ``i/state/..`` of its own."""
        out: Arrays = {"models": of_texts(watched.model for watched in self._monitors)}
        for i, (watched, monitor) in enumerate(self._monitors.items()):
            out[f"{i}/features"] = of_texts(watched.features)
            out |= {} if monitor.trained is None else prefixed(f"{i}/trained/", monitor.trained.to_arrays())
            out |= prefixed(f"{i}/state/", monitor.state())
        return out

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `to_arrays`. StateError: of other settings."""
        for i, model in enumerate(texts_of(arrays["models"])):
            watched = _Watched(model, tuple(texts_of(arrays[f"{i}/features"])))
            told = under(f"{i}/trained/", arrays)
            monitor = self._monitors[watched] = self._monitor(watched, Trained.from_arrays(told) if told else None)
            monitor.restore(under(f"{i}/state/", arrays))

    def _new(self, watched: _Watched) -> Monitor:
        return self._monitor(watched, Trained.of(self._packages(watched.model), watched.features))

    def _monitor(self, watched: _Watched, trained: Trained | None) -> Monitor:
        return Monitor(self._settings.of(watched.features, self._join, self._partitions), trained=trained)

    def _alerts(self, model: str, alerts: Sequence[Alert]) -> list[OutBatch]:
        return [alert_records(model, self._tp, alerts)] if alerts else []


def values_of(column: FloatArray) -> Ids:
    """The values (n,) of a feature as those of a segment: a value has one name, whatever the others are."""
    if np.isfinite(column).all() and (column == np.rint(column)).all() and (np.abs(column) < _WHOLE_MAX).all():
        return Ids(ints=column.astype(np.int64))
    return Ids(mixed=[_value_name(value) for value in column.tolist()])


def _value_name(value: float) -> str:
    if value != value:
        return "missing"
    return str(int(value)) if value.is_integer() and abs(value) < _WHOLE_MAX else repr(value)


def alert_records(model: str, tp: TP, alerts: Sequence[Alert]) -> OutBatch:
    """As findings, all of one key, so that one task sees them in order; one of each partition and model has an id of
    its own."""
    place = f"{tp.topic}/{tp.partition}"
    told = [
        replace(
            alert,
            alert_id=hashlib.sha256(f"{alert.alert_id}\0{model}\0{place}".encode()).hexdigest()[:16],
            evidence={"model": model or None, "partition": place, **alert.evidence},
        )
        for alert in alerts
    ]
    values = [orjson.dumps(alert.to_json()) for alert in told]
    return OutBatch(FINDINGS, values, [_FINDINGS_KEY] * len(values))


def _by_model(block: Block) -> list[tuple[str, IntArray | None]]:
    """The models of the rows in order of appearance, with their rows; None = all."""
    models = block.ids[MODEL].to_list()
    distinct = dict.fromkeys(models)
    if len(distinct) == 1:
        return [(str(models[0]), None)]
    of = np.array(list(map(str, models)))
    return [(str(model), np.flatnonzero(of == str(model))) for model in distinct]
