"""headrace demo: the whole pipeline on this machine, live."""

from __future__ import annotations

import argparse
import signal
import threading

from streams.cli.options import add_json, print_json

EXAMPLE = "headrace demo --seconds 60"

#: events per second by pipeline
_RATES = {"fraud": 1_000.0, "recommend": 200.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=float, default=30.0, metavar="N", help="length of the live part (default: 30)"
    )
    length.add_argument("--forever", action="store_true", help="until Ctrl-C")
    parser.add_argument("--pipeline", choices=[*_RATES, "both"], default="both", help="what to show (default: both)")
    parser.add_argument(
        "--rate", type=float, metavar="N", help="transactions per second (default: 1000); of recommend clicks (200)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the simulated world (default: 1)")
    parser.add_argument("--memory", action="store_true", help="no Kafka: the log in this process")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ends by itself, or in order at Ctrl-C or SIGTERM; 0 if received = scored + dead letters + duplicates."""
    stop = threading.Event()
    # before the slow imports, so that Ctrl-C is heard at any moment
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())

    from rich.console import Console

    from streams.both_demo import BothDemo
    from streams.demo import Demo
    from streams.demo_plan import DemoSettings
    from streams.shop_demo import ShopDemo

    settings = DemoSettings(
        seconds=None if args.forever else args.seconds,
        rate=_RATES["recommend" if args.pipeline == "recommend" else "fraud"] if args.rate is None else args.rate,
        seed=args.seed,
        memory=args.memory,
    )
    demo: Demo | ShopDemo | BothDemo
    if args.pipeline == "both":
        demo = BothDemo(settings, _RATES["recommend"], Console(), stop)
    else:
        demo = (Demo if args.pipeline == "fraud" else ShopDemo)(settings, Console(), stop)
    code = demo.run()
    if args.json:
        print_json(demo.figures())
    return code
