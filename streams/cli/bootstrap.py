"""headrace bootstrap: a new group's first checkpoints, from files of events and labels."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from streams.cli.offline_io import SET_CHOICES, add_inputs, read_inputs
from streams.cli.options import add_bootstrap, add_json, print_json
from streams.cli.progress import progress
from streams.cli.registry import check_champion
from streams.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    from streams.bootstrap import Built

EXAMPLE = "headrace bootstrap --from transactions.parquet --labels labels.parquet --group fraud-2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_inputs(parser)
    parser.add_argument(
        "--seam",
        choices=["end", "earliest"],
        default="end",
        help="where the topics take over from the files: at their present end, or, where they begin exactly where the "
        "files end, at their earliest record (default: end)",
    )
    parser.add_argument("--group", metavar="GROUP", help="a consumer group that is new (default: headrace-fraud)")
    parser.add_argument(
        "--order", choices=["arrival", "event_time"], help="order that its workers will run with (default: arrival)"
    )
    parser.add_argument(
        "--set", choices=("auto", *SET_CHOICES), help="feature set (default: auto, the champion's or the default one)"
    )
    parser.add_argument("--models", metavar="DIR", help="registry that its workers will run with")
    parser.add_argument(
        "--checkpoints", metavar="URL", help="where its workers find states: a directory, s3://.. (default: a cache)"
    )
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 once the checkpoints are written and the seam is committed; 1 for a group that has begun already."""
    from streams.bootstrap import build, find_seam, install, topics_of
    from streams.checkpoint_store import CheckpointStore
    from streams.cli.broker_wait import await_broker
    from streams.config import load_settings
    from streams.fraud_worker import make_pipeline
    from streams.store import open_store

    started = time.perf_counter()
    overrides = {name: getattr(args, name) for name in ("bootstrap", "group", "order", "models", "checkpoints")}
    settings = load_settings(args.config, overrides=overrides | {"feature_set": args.set})
    check_champion(settings)
    url = settings.checkpoint_url()
    if url is None:
        raise ConfigError("--checkpoints none: there is nowhere to put them; name a directory or an fsspec URL")
    pipeline = make_pipeline(settings)
    log = await_broker(settings)
    pipeline.bind(topics_of(log, pipeline))
    seams = find_seam(log, settings.group, pipeline.infos, args.seam)
    inputs = read_inputs(args, pipeline.settings.features)
    with progress("events", len(inputs.events)) as advance:
        built = build(pipeline, seams, inputs.events, inputs.labels, advance)
    store = CheckpointStore(open_store(url), settings.group)
    oldest_ms = install(log, store, settings.group, pipeline, built.tasks)
    newest_ms = int(inputs.events.event_time_ms.max())
    if oldest_ms is not None and oldest_ms <= newest_ms:
        print(
            f"{args.source}: its newest event, {_shown(newest_ms)}, is not older than what is behind the seam, "
            f"{_shown(oldest_ms)}: are the same events in the files and in the topics? Then begin anew with another "
            "--group and files that end before",
            file=sys.stderr,
        )
    figures = {
        "group": settings.group,
        "checkpoints": store.url,
        "seam": args.seam,
        "rows": built.rows,
        "duplicates": built.duplicates,
        "late": built.late,
        "labels": 0 if inputs.labels is None else len(inputs.labels),
        "invalid_events": inputs.invalid_events,
        "invalid_labels": inputs.invalid_labels,
        "quality": inputs.quality,
        "newest_event_ms": newest_ms,
        "oldest_behind_seam_ms": oldest_ms,
        "seconds": round(time.perf_counter() - started, 3),
        "partitions": _partitions(built),
    }
    if args.json:
        print_json(figures)
    else:
        _print(figures)
        for line in inputs.quality_lines():
            print(line)
    return EXIT_OK


def _partitions(built: Built) -> list[dict[str, Any]]:
    return [
        {"topic": tp.topic, "partition": tp.partition, "seam": of.seam, "rows": of.rows, "keys": of.keys}
        | {"newest_ms": of.newest_ms}
        for tp, of in built.partitions.items()
    ]


def _print(figures: dict[str, Any]) -> None:
    print(f"{'partition':<24} {'seam':>12} {'rows':>12} {'keys':>10}  newest")
    for of in figures["partitions"]:
        place = f"{of['topic']}/{of['partition']}"
        newest = "-" if of["newest_ms"] is None else _shown(of["newest_ms"])
        print(f"{place:<24} {of['seam']:>12,} {of['rows']:>12,} {of['keys']:>10,}  {newest}")
    print(
        f"group {figures['group']} begins at the seam with the state of {figures['rows']:,} events and "
        f"{figures['labels']:,} labels ({figures['duplicates']:,} duplicates left out, {figures['late']:,} late by "
        f"card); {figures['seconds']:.1f} s"
    )


def _shown(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")
