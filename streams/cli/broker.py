"""headrace broker: a real single-node Apache Kafka in the foreground."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from streams.cli.options import port
from streams.errors import EXIT_OK

EXAMPLE = "headrace broker --port 9092 --data /tmp/kafka"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--port", type=port, default=9092, help="port on 127.0.0.1, 0 = any free one (default: 9092)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="keep the log here (default: a temporary folder, removed at the end)"
    )


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; prints ``ready HOST:PORT`` when it does. Raises BrokerError."""
    from streams.broker import Broker, BrokerError

    serving = False
    ended = threading.Event()

    def end(_signal: int, _frame: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        ended.set()
        if not serving:
            raise SystemExit(EXIT_OK)  # out of `Broker.start`, which cleans up

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with Broker.start(args.port, args.data, notify=lambda text: print(text, file=sys.stderr, flush=True)) as broker:
        serving = True
        print(f"ready {broker.bootstrap}", flush=True)
        while not ended.wait(0.2):
            code = broker.wait(0)
            if code is not None:
                raise BrokerError(f"Kafka ended by itself with code {code}; its log: {broker.failure()}")
    return EXIT_OK
