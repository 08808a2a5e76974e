"""headrace produce: events of a file to a topic."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from streams.cli.broker_wait import open_log
from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.errors import EXIT_FAILED, EXIT_OK, ConfigError, HeadraceError

if TYPE_CHECKING:
    from streams.log import LogProducer

#: values and keys, some thousand at a time
_Records = tuple[list[bytes], Sequence[bytes | None] | None]

_FLUSH_S = 60.0

EXAMPLE = "headrace produce --topic transactions --from transactions.parquet --rate 5000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--topic", required=True, metavar="T", help="topic to send to")
    parser.add_argument("--from", dest="source", required=True, type=Path, metavar="FILE", help=".jsonl or .parquet")
    parser.add_argument("--rate", type=float, metavar="N", help="events per second (default: as fast as it goes)")
    parser.add_argument("--key", metavar="FIELD", help="field that is the record key (default: the topic's own)")
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Sends every row or line, in order, and returns when the broker has acknowledged all."""
    from features.schema import SCHEMAS
    from streams.cli.progress import progress
    from streams.files import count_rows, read_records
    from streams.log import DeliveryFailed

    if args.rate is not None and args.rate <= 0:
        raise ConfigError(f"--rate {args.rate}: not above 0; leave it out for full speed")
    total = count_rows(args.source)
    log = open_log(args)
    if args.topic not in log.admin().topics([args.topic]):
        raise ConfigError(f"--topic {args.topic}: not there; create the topics with `headrace topics create`")
    schema = SCHEMAS.get(args.topic)
    key_field = args.key or (schema.key if schema else None)
    records = read_records(args.source, key_field)
    if args.key is not None:
        records = _with_field(records, args.key, args.source)
    producer = log.producer()
    started = time.monotonic()
    try:
        with progress(f"to {args.topic}", total) as advance:
            sent = _send(producer, args.topic, records, args.rate, advance)
        left = producer.flush(_FLUSH_S)
    except DeliveryFailed as exc:
        raise HeadraceError(
            f"{exc}. What was sent before it may be in the topic. If a record is too large, raise the topic's "
            "max.message.bytes."
        ) from exc
    finally:
        producer.close()
    seconds = time.monotonic() - started
    figures = {"sent": sent - left, "seconds": round(seconds, 3), "events_per_s": round(sent / seconds, 1)}
    if left:
        print(f"{left:,} records were not acknowledged in {_FLUSH_S:.0f} s: is the broker up?", file=sys.stderr)
    if args.json:
        print_json(figures)
    else:
        print(f"sent {sent - left:,} records to {args.topic} in {seconds:.1f} s ({sent / seconds:,.0f}/s)")
    return EXIT_OK if not left else EXIT_FAILED


def _with_field(records: Iterable[_Records], field: str, path: Path) -> Iterator[_Records]:
    """The records, as long as every JSON object among them has the field; else ConfigError, with its line."""
    before = 0
    for values, keys in records:
        for i, (value, key) in enumerate(zip(values, keys or [], strict=True)):
            names = _names(value) if key is None else None
            if names is not None and field not in names:
                raise ConfigError(
                    f"--key {field}: {path}, {_place(path, before + i)} has no such field; it has "
                    f"{', '.join(names) or 'none'}. {_sent_before(before)}"
                )
        yield values, keys
        before += len(values)


def _names(value: bytes) -> list[str] | None:
    """The fields of a JSON object; None of anything else, which is sent as it is: the dead letters tell of it."""
    import orjson

    try:
        event = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    return list(event) if isinstance(event, dict) else None


def _place(path: Path, index: int) -> str:
    """Where record ``index`` is: its line, blank ones counted, or its row of a Parquet file."""
    from streams.files import file_kind

    if file_kind(path) == "parquet":
        return f"row {index + 1}"
    with path.open("rb") as file:
        numbers = (number for number, line in enumerate(file, 1) if line.strip())
        return f"line {next(islice(numbers, index, None))}"


def _sent_before(count: int) -> str:
    return f"The {count:,} records before were sent" if count else "Nothing was sent"


def _send(
    producer: LogProducer,
    topic: str,
    records: Iterable[_Records],
    rate: float | None,
    advance: Callable[[int], None],
) -> int:
    """All records, ``rate`` a second at most; returns how many. HeadraceError: the broker takes none for a while."""
    from streams.log import OutBatch

    started = time.monotonic()
    sent = 0
    for values, keys in records:
        step = len(values) if rate is None else max(1, int(rate / 100))
        for start in range(0, len(values), step):
            end = start + step
            batch = OutBatch(topic, values[start:end], None if keys is None else keys[start:end])
            done = producer.send(batch)
            heard = time.monotonic()
            while done < len(batch):
                producer.poll(0.05)
                before, done = done, producer.send(batch, done)
                if done > before:
                    heard = time.monotonic()
                elif time.monotonic() - heard > _FLUSH_S:
                    raise HeadraceError(
                        f"the broker has taken no record for {_FLUSH_S:.0f} s, after {sent + done:,} were given to it: "
                        "is it up?"
                    )
            sent += len(batch)
            if rate is not None:
                time.sleep(max(0.0, sent / rate - (time.monotonic() - started)))
            advance(len(batch))
    return sent
