"""headrace consume: records of a topic to a file, from the earliest."""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.cli.broker_wait import open_log
from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.errors import EXIT_OK, ConfigError
from streams.listeners import FromStart

if TYPE_CHECKING:
    from streams.log import RecordBatch

EXAMPLE = "headrace consume --topic fraud-scores --to scores.jsonl --idle 5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--topic", required=True, metavar="T", help="topic to read, from its earliest record")
    parser.add_argument("--to", required=True, type=Path, metavar="FILE.jsonl", help="one value per line; - is stdout")
    parser.add_argument("--count", type=int, metavar="N", help="end after so many records")
    parser.add_argument("--idle", type=float, metavar="SECONDS", help="end when nothing came for so long")
    parser.add_argument(
        "--envelope", action="store_true", help="each line also has topic, partition, offset, timestamp, key, headers"
    )
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes committed records until --count or --idle; without either until Ctrl-C."""
    if args.count is not None and args.count < 0:
        raise ConfigError(f"--count {args.count}: below 0; leave it out to read on")
    log = open_log(args)
    if args.topic not in log.admin().topics([args.topic]):
        raise ConfigError(f"--topic {args.topic}: not there; create the topics with `headrace topics create`")
    try:
        out = sys.stdout.buffer if str(args.to) == "-" else args.to.open("wb")
    except OSError as exc:
        raise ConfigError(f"--to {args.to}: {exc.strerror}; check the path and its rights") from exc
    consumer = log.consumer(f"headrace-consume-{uuid.uuid4().hex}")
    listener = FromStart(consumer)
    consumer.subscribe([args.topic], listener)
    written, told = 0, False
    last = time.monotonic()
    try:
        while args.count is None or written < args.count:
            batches = consumer.poll(0.1, 10_000)
            if batches or not consumer.assignment():  # to join a group takes its time: that is not silence
                last = time.monotonic()
            elif not told and all(earliest == end for earliest, end in listener.ranges.values()):
                told = True
                print(f"{args.topic} is empty: {_waiting(args)}", file=sys.stderr, flush=True)
            elif args.idle is not None and time.monotonic() - last > args.idle:
                break
            for batch in batches:
                n = len(batch) if args.count is None else min(len(batch), args.count - written)
                out.write(b"".join(_line(batch, i, args.envelope) for i in range(n)))
                written += n
            if batches and args.idle is None:
                out.flush()
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()
        out.flush()
        if out is not sys.stdout.buffer:
            out.close()
    if args.json:
        print_json({"records": written})
    elif str(args.to) != "-":
        print(f"{written:,} records of {args.topic} in {args.to}")
    return EXIT_OK


def _waiting(args: argparse.Namespace) -> str:
    until = "Ctrl-C" if args.count is None else f"{args.count:,} records have come"
    return f"waiting until {until} (--idle ends earlier)" if args.idle is None else f"waiting {args.idle:g} s (--idle)"


def _line(batch: RecordBatch, i: int, envelope: bool) -> bytes:
    value = batch.values[i]
    if not envelope:
        return (b"null" if value is None else value) + b"\n"
    import orjson

    key = batch.keys[i]
    record: dict[str, Any] = {
        "topic": batch.tp.topic,
        "partition": batch.tp.partition,
        "offset": batch.offsets[i],
        "timestamp": batch.timestamps[i],
        "key": None if key is None else key.decode("utf-8", "replace"),
        "headers": {name: v.decode("utf-8", "replace") for name, v in batch.headers(i)},
    }
    record.update(value_as_json(value))
    return orjson.dumps(record) + b"\n"


def value_as_json(value: bytes | None) -> dict[str, Any]:
    """For orjson, on one line: ``value`` as JSON where it is JSON, else as text, else ``value_base64``."""
    import base64

    import orjson

    if value is None:
        return {"value": None}
    try:
        event = orjson.loads(value)
        return {"value": event if b"\n" in value or b"\r" in value else orjson.Fragment(value)}
    except orjson.JSONDecodeError:
        pass
    try:
        return {"value": value.decode("utf-8")}
    except UnicodeDecodeError:
        return {"value": None, "value_base64": base64.b64encode(value).decode()}
