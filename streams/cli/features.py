"""headrace features: the features of event files, offline."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from streams.cli.offline_io import add_inputs, add_order, add_pipeline, check_output, read_inputs, written
from streams.cli.options import add_json, print_json
from streams.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from features.block import Block, Ids
    from features.declare import FeatureSet
    from streams.offline import OfflineFeatures

EXAMPLE = "headrace features --from transactions.parquet --labels labels.parquet --to features.parquet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_pipeline(parser)
    add_inputs(parser, required=False)
    parser.add_argument(
        "--to", type=Path, metavar="FILE.parquet", help="transaction_id and the features, rows as in EVENTS"
    )
    add_order(parser)
    parser.add_argument("--describe", action="store_true", help="show the features instead: window, delay, unit")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes one row per transaction, repeated ones left out."""
    if args.describe:
        return _describe(as_json=args.json)
    if args.source is None or args.to is None:
        raise ConfigError("--from and --to: both are needed; or --describe to see the features")
    check_output(args.to, [".parquet"], [args.source, args.labels])
    import pyarrow.parquet as pq

    started = time.perf_counter()
    inputs = read_inputs(args)
    made = inputs.features(args.order).in_input_order()
    table = _table(inputs.events, made, inputs.settings.features)
    with written(args.to) as path:
        pq.write_table(table, path)
    seconds = time.perf_counter() - started
    counts = inputs.counts(made)
    if args.json:
        rate = round(len(inputs.events) / seconds, 1)
        print_json({**counts, "seconds": round(seconds, 3), "rows_per_s": rate})
    else:
        print(
            f"{counts['rows']:,} rows with {len(inputs.settings.features)} features in {args.to}, {seconds:.1f} s "
            f"({counts['duplicates']:,} duplicates left out, {counts['late']:,} late)"
        )
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


def _describe(*, as_json: bool) -> int:
    from features.fraud import DEFAULT

    rows = DEFAULT.describe()
    if as_json:
        print_json({"name": DEFAULT.name, "schema_hash": DEFAULT.schema_hash, "features": rows})
        return EXIT_OK
    titles = {name: name for name in rows[0]}
    widths = {name: max(len(row[name]) for row in [titles, *rows]) for name in titles}
    for row in [titles, *rows]:
        print("  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip())
    return EXIT_OK
