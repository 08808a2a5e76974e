"""A small world for tests of the control loop: labelled rows whose concept changes, alerts about it, a champion."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import orjson

from features.block import FloatArray, IntArray
from models.package import Draft
from models.rebuild import rebuild
from models.registry import Registry
from streams.control import CONTROL_TOPICS, Controller
from streams.control_settings import ControlSettings
from streams.control_state import Command, written
from streams.log import Log, OutBatch
from streams.memory import MemoryLog
from streams.topics import ALERTS, CONTROL, LABELLED, MODEL_EVENTS, topic_infos

PARTITIONS = 2
T0 = 1_600_000_000_000
STEP_MS = 1_000
FEATURES = ("a", "b", "c", "d")
BEFORE, AFTER = np.array([2.0, -1.5, 0.5, 0.0]), np.array([0.0, 0.5, -1.5, 2.0])
PARAMS = {"objective": "binary", "num_leaves": 7, "min_child_samples": 20, "learning_rate": 0.2, "verbosity": -1}
PARAMS |= {"num_threads": 1, "deterministic": True, "seed": 1}
SMALL = {"round_rows": 50, "frauds_min": 120, "look_frauds": 40, "look_rounds": 8, "turns": 1, "cooldown_ms": 0}
SMALL["probation_looks"] = 0

_numbers = itertools.count()


def rows_of(n: int, weights: FloatArray, seed: int, level: float = -2.5) -> tuple[FloatArray, IntArray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(FEATURES)))
    chance = 1 / (1 + np.exp(-(x @ weights + level)))
    return x, (rng.random(n) < chance).astype(np.int64)


@cache
def champion_text() -> str:
    x, y = rows_of(4000, BEFORE, 99)
    text: str = lgb.train(PARAMS, lgb.Dataset(x, y, feature_name=list(FEATURES)), 30).model_to_string()
    return text


def new_registry(folder: Path, **more: Any) -> Registry:
    """With a champion more, whose package has ``more``."""
    registry = Registry(folder)
    training = {"params": PARAMS, "rounds": 30}
    draft = Draft("m", champion_text(), FEATURES, "", "2026-01-01T00:00:00+00:00", training=training, **more)
    registry.add(draft, "champion")
    return registry


def new_log() -> MemoryLog:
    log = MemoryLog.named(f"control-{next(_numbers)}")
    log.admin().create_topics(topic_infos(CONTROL_TOPICS, PARTITIONS))
    return log


def send_rows(
    log: Log, x: FloatArray, y: IntArray, first: int = 0, label_ms: int = 0, seconds: IntArray | None = None
) -> int:
    """Labelled rows, one a second or at these ``seconds``, round about the partitions, labelled so long after; returns
    the number of the next one."""
    by_partition: list[list[tuple[bytes, bytes]]] = [[] for _ in range(PARTITIONS)]
    for i, (vector, label) in enumerate(zip(x.tolist(), y.tolist(), strict=True), first):
        time_ms = T0 + (i if seconds is None else int(seconds[i - first])) * STEP_MS
        record = {"transaction_id": i, "event_time": time_ms, "card_id": i % 97, "terminal_id": 1, "label": label}
        record |= {"label_time": time_ms + label_ms, "features": dict(zip(FEATURES, vector, strict=True))}
        by_partition[i % PARTITIONS].append((b"%d" % i, orjson.dumps(record)))
    producer = log.producer()
    for p, sent in enumerate(by_partition):
        producer.send(OutBatch(LABELLED, [value for _, value in sent], [key for key, _ in sent], p))
    return first + len(x)


def alert_of(row: int, kind: str = "performance_drift", since: int | None = None, name: str = "") -> dict[str, Any]:
    evidence = {"model": "m@1", "since": T0 + (row if since is None else since) * STEP_MS}
    return {
        "alert_id": name or f"{kind[:4]}{row:012d}",
        "event_time": T0 + row * STEP_MS,
        "kind": kind,
        "subject": "score",
        "severity": "critical",
        "value": 0.5,
        "threshold": 0.1,
        "evidence": evidence,
        "action": "none",
    }


def send_alert(log: Log, alert: Mapping[str, Any]) -> None:
    log.producer().send(OutBatch(ALERTS, [orjson.dumps(alert)], [f"{alert['kind']}/{alert['subject']}".encode()]))


def send_command(log: Log, command: str, **more: Any) -> None:
    value = written(Command(command, by="ann", **more))  # type: ignore[arg-type]
    log.producer().send(OutBatch(CONTROL, [value], [f"command/{next(_numbers)}".encode()], 0))


def records(log: MemoryLog, topic: str) -> list[Any]:
    """Committed records, partition by partition."""
    with log.changed:
        parts = log.partitions(topic)
        rows = [row for part in parts for row in part.rows[: part.stable_end] if row is not None]
    return [orjson.loads(row[2] or b"null") for row in rows]


def events(log: MemoryLog) -> list[dict[str, Any]]:
    return records(log, MODEL_EVENTS)


def names_of(log: MemoryLog) -> list[str]:
    return [event["event"] for event in events(log)]


def actions(log: MemoryLog) -> list[str]:
    """What the alerts say was done, in the order of the log."""
    return [alert["action"] for alert in records(log, ALERTS) if alert["action"] != "none"]


def controller(
    log: Log,
    registry: Registry,
    build: Callable[..., Any] | None = rebuild,
    mature_ms: int = 0,
    lateness_ms: int = 0,
    **settings: Any,
) -> Controller:
    made = ControlSettings.of(SMALL | settings)
    times = {"mature_ms": mature_ms, "lateness_ms": lateness_ms}
    return Controller(log, registry, made, **times, build=build, clock=lambda: T0)


def run(log: Log, registry: Registry, **how: Any) -> Controller:
    with controller(log, registry, **how) as loop:
        loop.run_to_end()
    return loop


def drifted(log: Log, before: int = 1000, after: int = 2000, label_ms: int = 0) -> None:
    """The concept changes after ``before`` rows; the monitor notices 600 rows later."""
    x, y = rows_of(before, BEFORE, 1)
    x2, y2 = rows_of(after, AFTER, 2)
    send_rows(log, np.concatenate([x, x2]), np.concatenate([y, y2]), label_ms=label_ms)
    send_alert(log, alert_of(before + 600, since=before))


def models(registry: Registry) -> Sequence[tuple[str, tuple[str, ...]]]:
    return [(entry.manifest.label, entry.aliases) for entry in registry.entries()]


def story(log: MemoryLog, registry: Registry) -> tuple[Any, ...]:
    """All that a run leaves behind."""
    texts = [registry.get(label).model_text for label, _ in models(registry)]
    changes = [(change.action, change.alias, change.model, change.reason) for change in registry.history()]
    return (records(log, CONTROL)[-1], events(log), sorted(map(str, records(log, ALERTS))), texts, changes)
