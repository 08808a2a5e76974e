"""headrace run: one worker."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
from collections.abc import Coroutine
from typing import Any

from streams.cli.offline_io import SET_CHOICES
from streams.cli.options import add_bootstrap, add_config, add_json, add_reasons, print_json

#: objects more than before until cycles are looked for: more than the blocks in flight hold (default 700)
_GC_NET_ALLOCATIONS = 200_000

EXAMPLE = "headrace run --pipeline fraud --models models-dir --bootstrap 127.0.0.1:9092"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--pipeline", required=True, choices=["fraud"], help="which pipeline to run")
    parser.add_argument("--models", metavar="DIR", help="registry of model packages; the champion scores")
    parser.add_argument(
        "--order", choices=["arrival", "event_time"], help="order of the terminal stage (default: arrival)"
    )
    parser.add_argument(
        "--set", choices=("auto", *SET_CHOICES), help="feature set (default: auto, the champion's or the default one)"
    )
    parser.add_argument(
        "--delivery",
        choices=["at_least_once", "exactly_once"],
        help="exactly_once: each output once for readers of committed records, later by the commit interval "
        "(default: at_least_once)",
    )
    parser.add_argument(
        "--checkpoints", metavar="URL", help="where states are kept: a directory, s3://.., or none (default: a cache)"
    )
    add_reasons(parser)
    parser.add_argument("--group", metavar="GROUP", help="consumer group (default: headrace-fraud)")
    parser.add_argument("--partitions", type=int, metavar="N", help="of topics that are missing (default: 4)")
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints ``ready`` once assigned and recovered; SIGTERM or Ctrl-C drains, commits and leaves.

    With ``--json`` the last line are the figures; SIGUSR1 prints those so far.
    """
    from streams.cli.registry import check_champion
    from streams.config import load_settings
    from streams.fraud_worker import make_worker

    overrides = {
        name: getattr(args, name)
        for name in ("models", "order", "delivery", "checkpoints", "reasons", "reasons_max", "group", "partitions")
    }
    overrides |= {"bootstrap": args.bootstrap, "feature_set": args.set}
    settings = load_settings(args.config, overrides=overrides)
    check_champion(settings)
    logging.getLogger().setLevel(settings.log_level)
    for faust_logger in ("faust", "mode", "streams.transport"):
        logging.getLogger(faust_logger).setLevel(logging.WARNING)
    worker, pipeline = make_worker(settings, on_ready=lambda: print("ready", flush=True))

    def report() -> None:
        figures = pipeline.figures()
        if args.json:
            seconds = {**pipeline.meters.seconds, **worker.seconds}
            print_json(
                {
                    **figures,
                    "quality": pipeline.quality(),
                    "checkpoints": worker.checkpoints,
                    "seconds": {k: round(v, 4) for k, v in sorted(seconds.items())},
                }
            )
        else:
            print(", ".join(f"{name} {count:,}" for name, count in figures.items()), flush=True)
            for topic, counters in (("transactions", pipeline.transactions), ("labels", pipeline.labels)):
                if counters.quality:
                    print(f"{topic}: {counters.quality}", flush=True)

    spare_the_collector()

    async def main() -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop)
        loop.add_signal_handler(signal.SIGUSR1, report)
        return await worker.run()

    code = _run(main())
    report()
    return code


def _run(main: Coroutine[Any, Any, int]) -> int:
    """On uvloop where it is: what Faust does for each message then costs a third less."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(main)
    return uvloop.run(main)


def spare_the_collector() -> None:
    """Records come and go by reference count; looking for cycles among them again and again costs a fifth of all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_NET_ALLOCATIONS)
