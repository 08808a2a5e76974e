"""headrace simulate: simulated card payments and their labels, or a shop's interactions, to Kafka, at a rate."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from streams.cli.options import add_bootstrap, add_json, print_json
from streams.errors import EXIT_FAILED, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from streams.log import Log
    from streams.shop_simulator import ShopChunk
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
        "--pipeline", choices=["fraud", "recommend"], default="fraud", help="whose events (default: fraud)"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=200.0,
        metavar="N",
        help="payments or interactions per second, day and night (default: 200)",
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="end after so long (default: never)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the simulated world (default: 1)")
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Waits for the broker and the topics, then sends until --seconds, Ctrl-C or SIGTERM."""
    from streams.config import load_settings
    from streams.demo_traffic import send_paced
    from streams.log import connect

    if not 0 < args.rate <= 100_000:
        raise ConfigError(f"--rate {args.rate:g}: not in 0..100,000; give events per second")
    if args.seconds is not None and args.seconds <= 0:
        raise ConfigError(f"--seconds {args.seconds:g}: not above 0; leave it out to go on until Ctrl-C")
    settings = load_settings(overrides={"bootstrap": args.bootstrap})
    logging.getLogger("headrace").setLevel(logging.INFO)
    log = connect(settings.log_url(), settings.kafka_config())
    traffic = _Payments(args) if args.pipeline == "fraud" else _Shop(args)
    _wait_for_topics(log, settings.bootstrap, traffic.topics)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    told = started = time.monotonic()

    def sending(chunk: Any) -> None:
        nonlocal told
        traffic.add(chunk)
        if time.monotonic() - told >= _LINE_EVERY_S:
            told = time.monotonic()
            when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(chunk.send_time / 1000))
            _say(f"{traffic.line()}; events are at {when}")

    producer = log.producer()
    records: Iterator[Any] = traffic.chunks()
    send_paced(producer, records, stop, seconds=args.seconds, sending=sending)
    left = producer.flush(30.0)
    producer.close()
    seconds = time.monotonic() - started
    figures = {
        **traffic.figures(),
        "undelivered": left,
        "seconds": round(seconds, 3),
        "events_per_s": round(traffic.sent / seconds, 1),
    }
    if args.json:
        print_json(figures)
    else:
        print(", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in figures.items()))
    return EXIT_FAILED if left else EXIT_OK


class _Payments:
    """Card payments and their labels."""

    topics = ("transactions", "transaction-labels")

    def __init__(self, args: argparse.Namespace) -> None:
        from streams.demo_report import Accounts

        self._args, self._accounts = args, Accounts()

    @property
    def sent(self) -> int:
        return self._accounts.sent

    def chunks(self) -> Iterator[Chunk]:
        return chunks(self._args.rate, self._args.seed, time.time_ns() // 1_000_000)

    def add(self, chunk: Chunk) -> None:
        self._accounts.add(chunk, live=True)

    def line(self) -> str:
        return f"{self._accounts.sent:,} payments, {self._accounts.labels:,} labels"

    def figures(self) -> dict[str, int]:
        books = self._accounts
        return {"transactions": books.sent, "labels": books.labels, "malformed": books.malformed,
                "duplicates": books.duplicates}  # fmt: skip


class _Shop:
    """A shop's interactions."""

    topics = ("interactions",)

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self.sent = self._malformed = self._duplicates = 0

    def chunks(self) -> Iterator[ShopChunk]:
        return shop_chunks(self._args.rate, self._args.seed, time.time_ns() // 1_000_000)

    def add(self, chunk: ShopChunk) -> None:
        self.sent += len(chunk.values)
        self._malformed += chunk.malformed
        self._duplicates += chunk.duplicates

    def line(self) -> str:
        return f"{self.sent:,} interactions"

    def figures(self) -> dict[str, int]:
        return {"interactions": self.sent, "malformed": self._malformed, "duplicates": self._duplicates}


def shop_chunks(rate: float, seed: int, now_ms: int) -> Iterator[ShopChunk]:
    """As `chunks`, of the shop."""
    from dataclasses import replace

    from streams.shop_simulator import Shop, shop_stream

    event_ms, start_ms = _event_time(now_ms)
    shop = Shop.for_pace(seed, start_ms=start_ms, rate=rate, speed_up=SPEED_UP, first_event_id=1_000 * now_ms)
    skipped_s = (event_ms - start_ms) / (1_000 * SPEED_UP)
    for chunk in shop_stream(shop, 0, speed_up=SPEED_UP, malformed=0.002, repeated=0.003):
        if chunk.due_s >= skipped_s:
            yield replace(chunk, due_s=chunk.due_s - skipped_s)


def _event_time(now_ms: int) -> tuple[int, int]:
    """Where the simulated time is now, and the midnight before."""
    from streams.simulator import midnight

    event_ms = now_ms - now_ms % PERIOD_MS - SPEED_UP * (PERIOD_MS - now_ms % PERIOD_MS)
    return event_ms, midnight(event_ms)


def chunks(rate: float, seed: int, now_ms: int) -> Iterator[Chunk]:
    """The world's stream from where the clock says: a run that begins later begins later in event time too, with ids
    of its own, so that a restarted producer's payments are neither late nor duplicates."""
    from dataclasses import replace

    from streams.demo_plan import faults
    from streams.simulator import World
    from streams.simulator_stream import stream

    event_ms, start_ms = _event_time(now_ms)
    world = World.for_pace(seed, start_ms=start_ms, rate=rate, speed_up=SPEED_UP, first_transaction_id=1_000 * now_ms)
    skipped_s = (event_ms - start_ms) / (1_000 * SPEED_UP)
    for chunk in stream(world, 0, speed_up=SPEED_UP, imperfections=faults()):
        if chunk.due_s >= skipped_s:
            yield replace(chunk, due_s=chunk.due_s - skipped_s)


def _wait_for_topics(log: Log, bootstrap: str, topics: Sequence[str]) -> None:
    admin = log.admin()
    _say(f"waiting for Kafka at {bootstrap}")
    told = False
    while missing := set(topics) - set(admin.topics(topics)):
        if not told:
            told = True
            _say(f"waiting for topics {', '.join(sorted(missing))}: create them with `headrace topics create`")
        time.sleep(0.5)
    admin.close()
    _say(f"sending to {' and '.join(topics)}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
