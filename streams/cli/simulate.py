"""headrace simulate: simulated card payments and their labels to Kafka, at a rate."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from streams.cli.options import add_bootstrap, add_json, print_json
from streams.errors import EXIT_FAILED, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from streams.log import Log
    from streams.simulator_stream import Chunk

EXAMPLE = "headrace simulate --rate 200 --bootstrap 127.0.0.1:9092"

#: event time against the clock: a day in four minutes
SPEED_UP = 360
#: a fortnight of the clock is nearly fourteen years of events, the last of which are of its beginning
PERIOD_MS = 14 * 86_400_000
_LINE_EVERY_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--rate", type=float, default=200.0, metavar="N", help="payments per second, day and night (default: 200)"
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="end after so long (default: never)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the simulated world (default: 1)")
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Waits for the broker and the topics, then sends until --seconds, Ctrl-C or SIGTERM."""
    from streams.config import load_settings
    from streams.demo_report import Accounts
    from streams.demo_traffic import send_paced
    from streams.log import connect

    if not 0 < args.rate <= 100_000:
        raise ConfigError(f"--rate {args.rate:g}: not in 0..100,000; give payments per second")
    if args.seconds is not None and args.seconds <= 0:
        raise ConfigError(f"--seconds {args.seconds:g}: not above 0; leave it out to go on until Ctrl-C")
    settings = load_settings(overrides={"bootstrap": args.bootstrap})
    logging.getLogger("headrace").setLevel(logging.INFO)
    log = connect(settings.log_url(), settings.kafka_config())
    _wait_for_topics(log, settings.bootstrap)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    accounts = Accounts()
    told = started = time.monotonic()

    def sending(chunk: Chunk) -> None:
        nonlocal told
        accounts.add(chunk, live=True)
        if time.monotonic() - told >= _LINE_EVERY_S:
            told = time.monotonic()
            when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(chunk.send_time / 1000))
            _say(f"{accounts.sent:,} payments, {accounts.labels:,} labels; events are at {when}")

    producer = log.producer()
    send_paced(producer, chunks(args.rate, args.seed, time.time_ns() // 1_000_000), stop,
               seconds=args.seconds, sending=sending)  # fmt: skip
    left = producer.flush(30.0)
    producer.close()
    seconds = time.monotonic() - started
    figures = {
        "transactions": accounts.sent,
        "labels": accounts.labels,
        "malformed": accounts.malformed,
        "duplicates": accounts.duplicates,
        "undelivered": left,
        "seconds": round(seconds, 3),
        "events_per_s": round(accounts.sent / seconds, 1),
    }
    if args.json:
        print_json(figures)
    else:
        print(", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in figures.items()))
    return EXIT_FAILED if left else EXIT_OK


def chunks(rate: float, seed: int, now_ms: int) -> Iterator[Chunk]:
    """The world's stream from where the clock says: a run that begins later begins later in event time too, with ids
    of its own, so that a restarted producer's payments are neither late nor duplicates."""
    from dataclasses import replace

    from streams.demo_plan import faults
    from streams.simulator import World, midnight
    from streams.simulator_stream import stream

    period_start = now_ms - now_ms % PERIOD_MS
    event_ms = period_start - SPEED_UP * (PERIOD_MS - now_ms % PERIOD_MS)
    start_ms = midnight(event_ms)
    world = World.for_pace(seed, start_ms=start_ms, rate=rate, speed_up=SPEED_UP, first_transaction_id=1_000 * now_ms)
    skipped_s = (event_ms - start_ms) / (1_000 * SPEED_UP)
    for chunk in stream(world, 0, speed_up=SPEED_UP, imperfections=faults()):
        if chunk.due_s >= skipped_s:
            yield replace(chunk, due_s=chunk.due_s - skipped_s)


def _wait_for_topics(log: Log, bootstrap: str) -> None:
    from streams.topics import LABELS, TRANSACTIONS

    admin = log.admin()
    _say(f"waiting for Kafka at {bootstrap}")
    told = False
    while missing := {TRANSACTIONS, LABELS} - set(admin.topics([TRANSACTIONS, LABELS])):
        if not told:
            told = True
            _say(f"waiting for topics {', '.join(sorted(missing))}: create them with `headrace topics create`")
        time.sleep(0.5)
    admin.close()
    _say(f"sending to {TRANSACTIONS} and {LABELS}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
