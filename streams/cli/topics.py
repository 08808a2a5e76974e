"""headrace topics: the topics of all pipelines."""

from __future__ import annotations

import argparse

from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.errors import EXIT_OK

EXAMPLE = "headrace topics create --partitions 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("action", choices=["create", "list"], help="create what is missing, or list what is there")
    parser.add_argument("--partitions", type=int, metavar="N", help="of each new topic (default: 4)")
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Creates the missing topics of all pipelines, co-partitioned, or lists the topics there are."""
    from streams.cli.broker_wait import await_broker
    from streams.config import load_settings
    from streams.topics import all_topics
    from streams.worker import ensure_topics

    settings = load_settings(args.config, overrides={"bootstrap": args.bootstrap, "partitions": args.partitions})
    log = await_broker(settings)
    create = args.action == "create"
    there = ensure_topics(log, all_topics(settings.partitions)) if create else log.admin().topics()
    if args.json:
        print_json({"topics": {name: info.partitions for name, info in sorted(there.items())}})
    else:
        for name, info in sorted(there.items()):
            print(f"{name:<28} {info.partitions} partitions")
    return EXIT_OK
