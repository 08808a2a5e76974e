"""What the control loop regains after concept drift, and that it changes nothing where nothing has changed.

A champion scores a stream whose concept changes abruptly: the weights of the features are permuted, so that a model
which knew the new concept would rank as well as the champion did before. Everything is the project's own: the monitor
raises the alerts, the loop reads them and the labelled rows from the in-process log, trains LightGBM, writes packages
to a registry, and from the next chunk on its champion scores. Labels come at once: N counts labels, not time.

Lost is the average precision of the champion on fresh rows before the change less that after it. N is how many labelled
events after the change there is a champion that has regained 80% of it, on fresh rows of the new concept. On stationary
streams the loop runs the same, and false alarms are put in besides: one for each kind of action.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import lightgbm
import numpy as np
import orjson

from benchmarks.machine import machine, versions
from features.block import FloatArray, Ids, IntArray
from models.calibrate import fit_platt
from models.evidence import average_precision
from models.lightgbm import LightGBMPredictor
from models.package import Draft
from models.rebuild import rebuild
from models.registry import Registry
from monitoring.monitor import Monitor
from monitoring.settings import MonitorSettings
from streams.control import CONTROL_TOPICS, Controller
from streams.control_settings import ControlSettings
from streams.log import OutBatch
from streams.memory import MemoryLog
from streams.topics import ALERTS, LABELLED, MODEL_EVENTS, topic_infos

__all__ = ["run"]

FEATURES = tuple(f"x{j}" for j in range(8))
_BEFORE = np.array([1.6, -1.2, 1.0, -0.8, 0.5, 0.3, 0.0, 0.0])
_AFTER = _BEFORE[[6, 7, 4, 5, 0, 1, 2, 3]]
#: log odds of a row that says nothing
_LEVEL = -4.0
_PARAMS = {"objective": "binary", "learning_rate": 0.1, "num_leaves": 15, "min_child_samples": 50, "seed": 1}
_PARAMS |= {"deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1}
_ROUNDS = 60
_PERIOD, _REFERENCE = 500, 28
_CHUNK, _PARTITIONS = 1_000, 2
#: of the stream, and the row from which on the concept is another
_ROWS, _CHANGE = 50_000, 20_000
_FRESH = 30_000
_REGAINED = 0.8
#: event time between two rows: 10,000 a day
_STEP_MS = 8_640
_T0 = 1_600_000_000_000


@dataclass(frozen=True, slots=True)
class _Stream:
    x: FloatArray
    y: IntArray


def run(
    *, seeds: Sequence[int] = (1, 2, 3), rows: int = _ROWS, notify: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Measure. Returns ``results: [{seed, action, lost, regained_share, regained_after, served_ap, served_ap_without,
    ..}]``, ``stationary: [{seed, alerts, cases, promoted}]``, ``ok``, and the machine."""
    settings = ControlSettings()
    results, stationary = [], []
    for seed, action in itertools.product(seeds, ("retrain", "refit")):
        notify(f"concept drift, seed {seed}, {action}: {rows:,} rows")
        results.append(_drifting(seed, action, rows))
    for seed in seeds:
        notify(f"stationary, seed {seed}: {rows:,} rows")
        stationary.append(_stationary(seed, rows))
    retrained = [row for row in results if row["action"] == "retrain"]
    after = [row["regained_after"] for row in retrained]
    promoted = sum(row["promoted"] for row in stationary)
    return {
        "results": results,
        "stationary": stationary,
        "regained_after_median": None if None in after else median(after),
        "regained_share_least": min(row["regained_share"] for row in retrained),
        "promoted_where_nothing_changed": promoted,
        "ok": None not in after and promoted == 0,
        "settings": {name: getattr(settings, name) for name in ("frauds_min", "look_frauds", "looks", "confidence")},
        "machine": machine(),
        "versions": versions(),
    }


def _rows(n: int, weights: FloatArray, rng: np.random.Generator) -> _Stream:
    x = rng.normal(size=(n, len(FEATURES)))
    chance = 1 / (1 + np.exp(-(x @ weights + _LEVEL)))
    return _Stream(x, (rng.random(n) < chance).astype(np.int64))


def _champion(registry: Registry, rng: np.random.Generator) -> None:
    """A model of the world before the change."""
    train, calibration = _rows(20_000, _BEFORE, rng), _rows(10_000, _BEFORE, rng)
    data = lightgbm.Dataset(train.x, train.y, feature_name=list(FEATURES), params={"verbosity": -1})
    text = lightgbm.train(_PARAMS, data, _ROUNDS).model_to_string()
    platt = fit_platt(LightGBMPredictor(text).predict_raw(calibration.x), calibration.y)
    training = {"params": _PARAMS, "rounds": _ROUNDS}
    draft = Draft("fraud", text, FEATURES, "", "2026-01-01T00:00:00+00:00", platt, training)
    registry.add(draft, "champion")


class _World:
    """The stream through champion, monitor, log and control loop, chunk by chunk."""

    def __init__(self, folder: Path, settings: ControlSettings, rng: np.random.Generator) -> None:
        self.registry = Registry(folder)
        _champion(self.registry, rng)
        self.log = MemoryLog(str(folder))
        self.log.admin().create_topics(topic_infos(CONTROL_TOPICS, _PARTITIONS))
        self.loop = Controller(self.log, self.registry, settings, mature_ms=0, build=rebuild, clock=lambda: _T0)
        self._producer = self.log.producer()
        self._monitors: dict[str, Monitor] = {}
        self.alerts = 0
        #: (rows seen, "name@version") of each champion
        self.champions: list[tuple[int, str]] = []
        #: seconds of CPU in the loop
        self.seconds = 0.0

    def go(self, stream: _Stream, alarms: Sequence[tuple[int, str]] = ()) -> FloatArray:
        """(n,) the scores that were served. ``alarms`` are put in: (row, kind)."""
        served = np.empty(len(stream.y), np.float64)
        with self.loop:
            for begin in range(0, len(stream.y), _CHUNK):
                at = slice(begin, min(begin + _CHUNK, len(stream.y)))
                champion = self.registry.get("champion")
                label = champion.manifest.label
                if not self.champions or self.champions[-1][1] != label:
                    self.champions.append((begin, label))
                served[at] = champion.score(stream.x[at])[1]
                self._send(stream, at, served[at], label)
                for row, kind in alarms:
                    if at.start <= row < at.stop:
                        self._raise(
                            {"kind": kind, "event_time": _T0 + row * _STEP_MS, "alert_id": f"false-{row}"}, label
                        )
                started = time.process_time()
                self.loop.run_to_end()
                self.seconds += time.process_time() - started
        return served

    def _send(self, stream: _Stream, at: slice, score: FloatArray, label: str) -> None:
        """The rows to the topic and to the monitor of this model, whose alerts go to theirs."""
        numbers = np.arange(at.start, at.stop, dtype=np.int64)
        times, x, y = _T0 + numbers * _STEP_MS, stream.x[at], stream.y[at]
        values: list[list[bytes]] = [[] for _ in range(_PARTITIONS)]
        for i, time_ms, vector, one in zip(numbers.tolist(), times.tolist(), x.tolist(), y.tolist(), strict=True):
            record = {"transaction_id": i, "event_time": time_ms, "label_time": time_ms, "card_id": i % 2_003}
            record |= {"label": one, "model": label, "features": dict(zip(FEATURES, vector, strict=True))}
            values[i % _PARTITIONS].append(orjson.dumps(record))
        for p, part in enumerate(values):
            keys = [b"%d" % i for i in numbers.tolist() if i % _PARTITIONS == p]
            self._producer.send(OutBatch(LABELLED, part, keys, p))
        monitor = self._monitors.get(label)
        if monitor is None:
            settings = MonitorSettings(FEATURES, period_rows=_PERIOD, reference_periods=_REFERENCE)
            monitor = self._monitors[label] = Monitor(settings)
        ids = {"transaction_id": Ids(ints=numbers), "card_id": Ids(ints=numbers % 2_003)}
        columns = {"event_time": times, "label_time": times, "features": x, "score": score, "label": y, **ids}
        for alert in monitor.observe_scored(columns) + monitor.observe_labelled(columns):
            self.alerts += 1
            self._raise(alert.to_json(), label)

    def _raise(self, alert: dict[str, Any], label: str) -> None:
        alert = {"subject": "score", "evidence": {}, "action": "none", **alert}
        alert["evidence"] = {"model": label, **alert["evidence"]}
        self._producer.send(OutBatch(ALERTS, [orjson.dumps(alert)], [b"alert"]))

    def events(self) -> list[dict[str, Any]]:
        """What the loop has told."""
        with self.log.changed:
            parts = self.log.partitions(MODEL_EVENTS)
            rows = [row for part in parts for row in part.rows if row is not None]
        return [orjson.loads(row[2] or b"{}") for row in rows]


def _drifting(seed: int, action: str, rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = ControlSettings(policy={"performance_drift": action, "calibration_drift": action})
        world = _World(Path(folder), settings, rng)
        before, after = _rows(_CHANGE, _BEFORE, rng), _rows(rows - _CHANGE, _AFTER, rng)
        fresh = {"before": _rows(_FRESH, _BEFORE, rng), "after": _rows(_FRESH, _AFTER, rng)}
        stream = _Stream(np.concatenate([before.x, after.x]), np.concatenate([before.y, after.y]))
        served = world.go(stream)

        def precision(label: str, where: str) -> float:
            return average_precision(fresh[where].y, world.registry.get(label).score(fresh[where].x)[0])

        first = world.champions[0][1]
        held, fallen = precision(first, "before"), precision(first, "after")
        shares = [
            (at - _CHANGE, label, (precision(label, "after") - fallen) / (held - fallen))
            for at, label in world.champions[1:]
        ]
        without = world.registry.get(first).score(after.x)[0]
        noticed = [event["clock"] for event in world.events() if event["event"] == "opened"]
        return {
            "seed": seed,
            "action": action,
            "ap_before": round(held, 4),
            "ap_after_without": round(fallen, 4),
            "lost": round(held - fallen, 4),
            "noticed_after": (noticed[0] - _T0) // _STEP_MS - _CHANGE + 1 if noticed else None,
            "champions": [{"after": at, "model": label, "regained": round(share, 3)} for at, label, share in shares],
            "regained_after": next((at for at, _, share in shares if share >= _REGAINED), None),
            "regained_share": round(shares[-1][2], 4) if shares else 0.0,
            "served_ap": round(average_precision(after.y, served[_CHANGE:]), 4),
            "served_ap_without": round(average_precision(after.y, without), 4),
            "us_per_row": round(world.seconds / rows * 1e6, 2),
        }


def _stationary(seed: int, rows: int) -> dict[str, Any]:
    """With a false alarm for each action, one after the other."""
    rng = np.random.default_rng(1_000 + seed)
    with tempfile.TemporaryDirectory() as folder:
        policy = {"performance_drift": "retrain", "score_drift": "refit", "calibration_drift": "update"}
        world = _World(Path(folder), ControlSettings(policy=policy, cooldown_ms=0), rng)
        alarms = [(rows * (1 + i) // 6, kind) for i, kind in enumerate(policy)]
        world.go(_rows(rows, _BEFORE, rng), alarms)
        names = [event["event"] for event in world.events()]
        return {
            "seed": seed,
            "alerts_of_the_monitor": world.alerts,
            "false_alarms_put_in": len(alarms),
            "cases": names.count("opened"),
            "given_up": names.count("given-up"),
            "promoted": names.count("promoted") + names.count("updated"),
            "changes_of_the_champion": len(world.champions) - 1,
            "us_per_row": round(world.seconds / rows * 1e6, 2),
        }


def main() -> None:
    """Print the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.control --seeds 1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    print(json.dumps(run(seeds=parser.parse_args().seeds, notify=print)))


if __name__ == "__main__":
    main()
