"""Changes of a registry as events on ``model-events``, for those who read along."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streams.errors import FatalError

if TYPE_CHECKING:
    from models.registry import Registry

__all__ = ["add_announce", "announce"]

_SEND_S = 20.0


def add_announce(parser: argparse.ArgumentParser) -> None:
    """``--bootstrap`` and ``--config``: where the change is told as well."""
    parser.add_argument(
        "--bootstrap", metavar="HOST:PORT", help="Kafka on whose topic model-events the change is told too"
    )
    parser.add_argument("--config", metavar="FILE", help="settings of Kafka's clients, e.g. headrace.toml")


def announce(args: argparse.Namespace, registry: Registry, event: str, label: str, more: Mapping[str, Any]) -> None:
    """Tells of a change that the registry has already, where ``--bootstrap`` is given; workers see it either way.

    FatalError: it could not be told.
    """
    if args.bootstrap is None:
        return
    from pathlib import Path

    import orjson

    from streams.config import load_settings
    from streams.log import OutBatch, connect
    from streams.topics import MODEL_EVENTS, topic_infos
    from streams.worker import ensure_topics

    config = None if args.config is None else Path(args.config)
    settings = load_settings(config, overrides={"bootstrap": args.bootstrap})
    log = connect(settings.log_url(), settings.kafka_config())
    ensure_topics(log, topic_infos((MODEL_EVENTS,), settings.partitions))
    value = {"event": event, "time": int(time.time() * 1000), "registry": str(registry.root.resolve())}
    value |= {"model": label, "sha256": registry.fingerprint(label), **more}
    producer = log.producer()
    producer.send(OutBatch(MODEL_EVENTS, [orjson.dumps(value)], [label.encode()]))
    left = producer.flush(_SEND_S)
    producer.close()
    if left:
        raise FatalError(
            "not-told", f"{event} {label} is in the registry, but {args.bootstrap} did not take the event in time"
        )
