"""headrace verify: replays each stage from its own input log and compares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from streams.cli.offline_io import SET_CHOICES
from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.cli.progress import progress
from streams.cli.registry import check_champion
from streams.errors import EXIT_FAILED, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from streams.config import Settings
    from streams.log import Log
    from streams.verify_rows import StageResult

EXAMPLE = "headrace verify --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--pipeline", default="fraud", choices=["fraud", "recommend"], help="whose stages (default: fraud)"
    )
    parser.add_argument("--models", metavar="DIR", help="registry that the workers ran with: its champion says the set")
    parser.add_argument(
        "--set", choices=("auto", *SET_CHOICES), help="feature set (default: auto, the champion's or the default one)"
    )
    parser.add_argument("--group", metavar="GROUP", help="consumer group of the workers (default: headrace-PIPELINE)")
    parser.add_argument(
        "--order", choices=["arrival", "event_time"], help="order that the workers ran with (default: arrival)"
    )
    parser.add_argument(
        "--checkpoints",
        metavar="URL",
        help="where the workers keep states: for a group that bootstrap began (default: a cache)",
    )
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when no row differs, 1 when one does."""
    from streams.cli.broker_wait import await_broker
    from streams.config import load_settings

    overrides = {"bootstrap": args.bootstrap, "group": args.group, "order": args.order, "models": args.models}
    overrides |= {"feature_set": args.set, "checkpoints": args.checkpoints}
    if args.pipeline == "recommend":
        overrides["recommend_models"] = args.models
        for option in ("set", "order", "checkpoints"):
            if getattr(args, option) is not None:
                raise ConfigError(f"--{option} {getattr(args, option)}: is of the fraud pipeline; leave it out")
    settings = load_settings(args.config, overrides=overrides, defaults={"group": f"headrace-{args.pipeline}"})
    if args.pipeline == "fraud":
        check_champion(settings)
    log = await_broker(settings)
    with progress("records", None) as advance:
        results = (_fraud if args.pipeline == "fraud" else _recommend)(settings, log, advance)
    mismatching = sum(result.mismatching_rows for result in results)
    differences = [difference.to_json() for result in results for difference in result.differences]
    if args.json:
        print_json(
            {
                "rows": sum(result.rows for result in results),
                "mismatching_rows": mismatching,
                "first_differences": differences,
                "stages": {result.stage: result.to_json() for result in results},
            }
        )
    else:
        for result in results:
            again = f", {result.repeated:,} of them sent more than once" if result.repeated else ""
            print(f"{result.stage:<9} {result.rows:>12,} rows, {result.mismatching_rows:,} differ{again}")
        for difference in differences:
            print(f"  {difference['stage']} {difference['source']}: {difference['columns']}")
    if mismatching:
        print(
            "rows differ. Many at once mean that the workers ran with other settings: give their --order, --set or "
            "--models, and --config",
            file=sys.stderr,
        )
    return EXIT_FAILED if mismatching else EXIT_OK


def _fraud(settings: Settings, log: Log, advance: Callable[[int], None]) -> list[StageResult]:
    from streams.checkpoint_store import CheckpointStore
    from streams.fraud_worker import make_pipeline
    from streams.store import open_store
    from streams.verify import verify_fraud

    url = settings.checkpoint_url()
    store = None if url is None else CheckpointStore(open_store(url), settings.group)
    return verify_fraud(log, settings.group, lambda: make_pipeline(settings), advance, store)


def _recommend(settings: Settings, log: Log, advance: Callable[[int], None]) -> list[StageResult]:
    from streams.recommend_worker import make_pipeline
    from streams.verify_recommend import verify_recommend

    return verify_recommend(log, settings.group, make_pipeline(settings, log), advance)
