"""headrace run: one worker."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import importlib
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from streams.cli.offline_io import SET_CHOICES
from streams.cli.options import add_bootstrap, add_config, add_json, add_reasons, print_json

if TYPE_CHECKING:
    from streams.beside import Beside
    from streams.worker import Worker

#: objects more than before until cycles are looked for: more than the blocks in flight hold (default 700)
_GC_NET_ALLOCATIONS = 200_000
#: by glibc's numbers for them: how much free memory is kept (M_TRIM_THRESHOLD), and from where on an allocation is a
#: mapping of its own (M_MMAP_THRESHOLD): states are, what a block needs is not
_MALLOC_BYTES = {-1: 64 << 20, -3: 4 << 20}

#: by pipeline, the module whose ``make_worker(settings, on_ready)`` gives a worker of it and the pipeline
PIPELINES = {
    "fraud": "streams.fraud_worker",
    "monitor": "streams.monitor_worker",
    "recommend": "streams.recommend_worker",
}

EXAMPLE = "headrace run --pipeline fraud --models models-dir --bootstrap 127.0.0.1:9092"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--pipeline", required=True, choices=[*PIPELINES, "all"], help="all: a process for each")
    parser.add_argument(
        "--models",
        metavar="DIR",
        help="registry of model packages; the champion scores; monitor: what they were made on is watched",
    )
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
    parser.add_argument(
        "--shed",
        metavar="POLICY",
        help="older:SECONDS[,below:AMOUNT]: under overload, leave unscored what would be scored so long after it was "
        "sent; features stay exact (default: none)",
    )
    add_reasons(parser)
    parser.add_argument(
        "--monitor",
        action="store_true",
        default=None,
        help="fraud: send what is scored, and labels, to the monitor pipeline as well (all: always)",
    )
    parser.add_argument(
        "--group",
        metavar="GROUP",
        help="consumer group (default: headrace-PIPELINE); all: what comes before -PIPELINE (default: headrace)",
    )
    parser.add_argument("--partitions", type=int, metavar="N", help="of topics that are missing (default: 4)")
    parser.add_argument(
        "--web",
        metavar="HOST:PORT",
        help="web page, /metrics and /healthz; :PORT and PORT are on 127.0.0.1, port 0 is any free one; all: fraud "
        "there, monitor and recommend at the next two ports (default: none)",
    )
    parser.add_argument(
        "--web-remote",
        action="store_true",
        default=None,
        help="let --web listen where other machines reach it: all who do can read scores and metrics",
    )
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints ``ready`` once assigned and recovered; SIGTERM or Ctrl-C drains, commits and leaves.

    With ``--json`` the last line are the figures; SIGUSR1 prints those so far.
    """
    from pathlib import Path

    from streams.beside import Beside
    from streams.cli.registry import check_champion, open_registry
    from streams.config import load_settings
    from streams.quality import in_words

    if args.pipeline == "all":
        from streams.cli.run_all import run_all

        return run_all(args, list(PIPELINES))
    names = ("models", "order", "delivery", "checkpoints", "reasons", "reasons_max", "shed", "group", "partitions")
    overrides = {name: getattr(args, name) for name in names}
    overrides |= {"bootstrap": args.bootstrap, "feature_set": args.set, "monitor": args.monitor}
    overrides |= {"web_address": args.web, "web_remote": args.web_remote}
    if args.pipeline == "recommend":
        overrides["recommend_models"] = args.models
    settings = load_settings(args.config, overrides=overrides, defaults={"group": f"headrace-{args.pipeline}"})
    if args.pipeline == "fraud":
        check_champion(settings)
    elif args.pipeline == "monitor" and settings.models:
        open_registry(Path(settings.models))
    logging.getLogger().setLevel(settings.log_level)
    for faust_logger in ("faust", "mode", "streams.transport"):
        logging.getLogger(faust_logger).setLevel(logging.WARNING)
    make_worker: Callable[..., tuple[Worker, Any]] = importlib.import_module(PIPELINES[args.pipeline]).make_worker
    beside: Beside | None = None

    def ready() -> None:
        if beside is not None:
            beside.ready()
        print("ready", flush=True)

    worker, pipeline = make_worker(settings, on_ready=ready)
    beside = Beside(args.pipeline, settings, worker, pipeline)

    #: what a pipeline has to say besides numbers
    details: Callable[[], dict[str, Any]] = getattr(pipeline, "details", dict)

    def report() -> None:
        figures = pipeline.figures()
        if args.json:
            seconds = {**pipeline.meters.seconds, **worker.seconds}
            print_json(
                {
                    **figures,
                    **details(),
                    "quality": pipeline.quality(),
                    "checkpoints": worker.checkpoints,
                    "lag": worker.lag,
                    "recovery": worker.recovery,
                    "seconds": {k: round(v, 4) for k, v in sorted(seconds.items())},
                }
            )
        else:
            print(", ".join(f"{name} {count:,}" for name, count in figures.items()), flush=True)
            for stage, lag in worker.lag.items():
                if lag["records"]:
                    print(f"{stage}: {lag['records']:,} records wait, one since {lag['seconds']:.1f} s", flush=True)
            for topic, found in pipeline.quality().items():
                print(f"{topic}: {in_words(found)}", flush=True)

    spare_the_collector()
    keep_freed_memory()

    code = _run(_main(worker, beside, report))
    report()
    return code


async def _main(worker: Worker, beside: Beside, report: Callable[[], None]) -> int:
    def leave() -> None:
        beside.leaving()
        worker.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    loop.add_signal_handler(signal.SIGUSR1, report)
    url = beside.start(loop)
    if url:
        print(f"web {url}", flush=True)
    try:
        return await worker.run()
    finally:
        await asyncio.to_thread(beside.close)


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


def keep_freed_memory() -> bool:
    """Lets the next block have the memory of the last one; whether the C library can be told.

    By default glibc gives the megabytes of a block back to the system as soon as they are free, and each page that the
    next one needs is a fault: 0.7 of the 1.1 us that it took to send a row of 37 features to the monitor.
    """
    mallopt = None if sys.platform != "linux" else getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return [mallopt(name, value) for name, value in _MALLOC_BYTES.items()] == [1] * len(_MALLOC_BYTES)
