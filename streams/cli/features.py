"""headrace features: the features of event files, offline; or what they are."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from streams.cli.offline_io import add_inputs, add_order, add_pipeline, add_set, check_output, read_inputs, written
from streams.cli.options import add_json, print_json
from streams.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from features.block import Block, Ids
    from features.declare import FeatureSet
    from streams.offline import OfflineFeatures

EXAMPLE = "headrace features --from transactions.parquet --labels labels.parquet --to features.parquet"

_MEMORY_NOTE = "memory: of the state that the features of an entity share"
_TILES_NOTE = 'window "30d by 1d": of whole tiles of 1d, so that either edge is off by less than one tile'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_pipeline(parser)
    add_set(parser)
    add_inputs(parser, required=False)
    parser.add_argument(
        "--to", type=Path, metavar="FILE.parquet", help="transaction_id and the features, rows as in EVENTS"
    )
    add_order(parser)
    parser.add_argument(
        "--describe",
        action="store_true",
        help="show each feature instead, reading no file: entity, what, window, delay, unit, memory per key",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes one row per transaction, repeated ones left out."""
    from features.fraud import SETS

    features = SETS[args.set]
    files = {"--from": args.source, "--labels": args.labels, "--to": args.to}
    if args.describe:
        given = [f"{option} {path}" for option, path in files.items() if path is not None]
        if given:
            raise ConfigError(f"{' '.join(given)}: --describe reads and writes no file; leave out one or the other")
        return _describe(features, as_json=args.json)
    missing = [option for option in ("--from", "--to") if files[option] is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)}: missing; give both, or --describe alone to see the features")
    check_output(args.to, [".parquet"], [args.source, args.labels])
    import pyarrow.parquet as pq

    started = time.perf_counter()
    inputs = read_inputs(args, features)
    made = inputs.features(args.order).in_input_order()
    table = _table(inputs.events, made, inputs.settings.features)
    with written(args.to) as path:
        pq.write_table(table, path)
    seconds = time.perf_counter() - started
    counts = inputs.counts(made)
    if args.json:
        rate = round(len(inputs.events) / seconds, 1)
        print_json({**counts, "quality": inputs.quality, "seconds": round(seconds, 3), "rows_per_s": rate})
    else:
        print(
            f"{counts['rows']:,} rows with {len(inputs.settings.features)} features in {args.to}, {seconds:.1f} s "
            f"({counts['duplicates']:,} duplicates left out, {counts['late']:,} late)"
        )
        for line in inputs.quality_lines():
            print(line)
    return EXIT_OK


def _table(events: Block, made: OfflineFeatures, features: FeatureSet) -> pa.Table:
    """transaction_id and the features: counts and flags as int32, the others as float64."""
    import numpy as np
    import pyarrow as pa

    columns = {"transaction_id": id_array(events.ids["transaction_id"].take(made.row))}
    whole = {row["name"] for row in features.describe() if row["unit"] in ("events", "flag")}
    for j, name in enumerate(features.names):
        column = made.matrix[:, j]
        columns[name] = pa.array(column.astype(np.int32) if name in whole else column)
    return pa.table(columns)


def id_array(ids: Ids) -> pa.Array:
    """Ids as int64, or as text where not all of them are such integers."""
    import pyarrow as pa

    return pa.array(ids.ints) if ids.ints is not None else pa.array([str(v) for v in ids.to_list()], pa.string())


def _describe(features: FeatureSet, *, as_json: bool) -> int:
    rows = features.describe()
    if as_json:
        print_json({"name": features.name, "schema_hash": features.schema_hash, "features": rows})
        return EXIT_OK
    columns = {title: [row[title] for row in rows] for title in rows[0]}
    notes = [_MEMORY_NOTE] if any(columns["memory"]) else []
    notes += [_TILES_NOTE] if any(" by " in window for window in columns["window"]) else []
    note = "\n".join(notes)
    if sys.stdout.isatty():
        _print_table(f"{features.name}: {len(features)} features", columns, note)
        return EXIT_OK
    widths = {title: max(map(len, [title, *texts])) for title, texts in columns.items()}
    for cells in [columns.keys(), *zip(*columns.values(), strict=True)]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths.values(), strict=True))
        print(line.rstrip())
    if note:
        print(f"\n{note}")
    return EXIT_OK


def _print_table(title: str, columns: dict[str, list[str]], note: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=note or None, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    Console().print(table)
