"""headrace items: withdraw items from all recommendations, and take that back."""

from __future__ import annotations

import argparse

from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.errors import EXIT_OK

EXAMPLE = "headrace items withdraw 214536502 sku-17"

_SEND_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's action and options."""
    parser.add_argument(
        "action", choices=["withdraw", "restore"], help="recommend them never again, or again once they are looked at"
    )
    parser.add_argument("item", nargs="+", metavar="ITEM", help="the item_id, as in the interactions")
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes to `items` what every worker reads: see `streams.pipelines.recommend_withdrawn`."""
    from streams.cli.broker_wait import await_broker
    from streams.config import load_settings
    from streams.errors import ConfigError, FatalError
    from streams.log import DeliveryFailed
    from streams.pipelines.recommend_withdrawn import decisions
    from streams.topics import ITEMS, topic_infos
    from streams.worker import ensure_topics

    if "" in args.item:
        raise ConfigError("ITEM: an empty id is no item's; give the item_id")
    settings = load_settings(args.config, overrides={"bootstrap": args.bootstrap})
    log = await_broker(settings)
    partitions = ensure_topics(log, topic_infos((ITEMS,), settings.partitions))[ITEMS].partitions
    keys = [item.encode("utf-8", "surrogatepass") for item in dict.fromkeys(args.item)]
    producer = log.producer()
    try:
        for batch in decisions(keys, partitions, withdrawn=args.action == "withdraw"):
            producer.send(batch)
        left = producer.flush(_SEND_S)
    except DeliveryFailed as exc:
        raise FatalError("not-told", f"{exc}; the broker refuses what is written to {ITEMS}") from exc
    finally:
        producer.close()
    if left:
        raise FatalError("not-told", f"{left} of {len(keys)} items were not taken by {log.url} in time; run it again")
    done = "withdrawn" if args.action == "withdraw" else "restored"
    if args.json:
        print_json({done: len(keys)})
    else:
        print(f"{done}: {', '.join(dict.fromkeys(args.item))}")
    return EXIT_OK
