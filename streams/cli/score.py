"""headrace score: scores of event files, offline."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from streams.cli.offline_io import add_inputs, add_models, add_order, add_predictor, check_output, read_inputs, written
from streams.cli.options import add_json, add_reasons, print_json
from streams.cli.registry import known_model, open_registry
from streams.errors import EXIT_OK

if TYPE_CHECKING:
    from models.slot import ModelSlot
    from streams.cli.offline_io import Inputs
    from streams.offline import OfflineFeatures

EXAMPLE = "headrace score --from transactions.parquet --labels labels.parquet --models models-dir --to scores.parquet"

_CHUNK_ROWS = 16_384


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_inputs(parser)
    add_models(parser)
    parser.add_argument(
        "--model", default="champion", metavar="REF", help="NAME@VERSION, an alias or NAME (default: champion)"
    )
    parser.add_argument(
        "--to",
        required=True,
        type=Path,
        metavar="FILE",
        help=".parquet: transaction_id, score, raw, and the conformal set; .jsonl: the records of fraud-scores",
    )
    add_predictor(parser)
    add_reasons(parser)
    add_order(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Writes one row or line per transaction, in the order of EVENTS, repeated ones left out."""
    check_output(args.to, [".parquet", ".jsonl"], [args.source, args.labels])
    from features.fraud import set_of
    from models.explain_policy import NO_REASONS
    from models.package import category_codes, read_manifest
    from models.slot import ModelSlot
    from streams.config import load_settings

    as_json_lines = args.to.suffix.lower() == ".jsonl"
    overrides = {name: getattr(args, name) for name in ("reasons", "reasons_max", "predictor")}
    settings = load_settings(args.config, overrides=overrides)
    slot = ModelSlot(reasons=settings.reasons_policy() if as_json_lines else NO_REASONS)
    registry = open_registry(args.models, settings.predictor)
    model = known_model(registry, args.model)
    features = set_of(read_manifest(registry.resolve(model)).schema_hash)
    slot.replace(registry.get(model, features.names, features.schema_hash, category_codes(features)))
    started = time.perf_counter()
    inputs = read_inputs(args, features, keep_extra=as_json_lines)
    made = inputs.features(args.order).in_input_order()
    with written(args.to) as path:
        if as_json_lines:
            _write_jsonl(path, inputs, made, slot, settings.log_sets)
        else:
            _write_parquet(path, inputs, made, slot, settings.log_sets)
    seconds = time.perf_counter() - started
    counts = inputs.counts(made)
    rate = len(inputs.events) / seconds
    if args.json:
        figures = {**counts, "quality": inputs.quality, "model": slot.label}
        print_json({**figures, "seconds": round(seconds, 3), "rows_per_s": round(rate, 1)})
    else:
        print(
            f"{counts['rows']:,} scores by {slot.label} in {args.to}, {seconds:.1f} s ({rate:,.0f} rows/s; "
            f"{counts['duplicates']:,} duplicates left out, {counts['late']:,} late)"
        )
        for line in inputs.quality_lines():
            print(line)
    return EXIT_OK


def _write_parquet(path: Path, inputs: Inputs, made: OfflineFeatures, slot: ModelSlot, with_sets: bool) -> None:
    """``set``: the labels that a score leaves possible, as in the records; left out where the model cannot say."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from models.conformal import SET_LABELS
    from streams.cli.features import id_array

    n = len(made.row)
    score, raw = np.empty(n), np.empty(n)

    def put(part: slice) -> None:
        raw[part], score[part] = slot.score(made.matrix[part])

    _in_parts(n, put)
    ids = id_array(inputs.events.ids["transaction_id"].take(made.row))
    columns = {"transaction_id": ids, "score": score, "raw": raw}
    sets = slot.serving.sets(raw) if with_sets else None
    if sets is not None:
        columns["set"] = pa.array([list(labels) for labels in SET_LABELS], pa.list_(pa.string())).take(pa.array(sets))
    pq.write_table(pa.table(columns), path)


def _write_jsonl(path: Path, inputs: Inputs, made: OfflineFeatures, slot: ModelSlot, with_sets: bool) -> None:
    """The values that a worker sends to fraud-scores, byte for byte; rows of the file count as offsets of partition 0
    where reasons are given for a sample."""
    import numpy as np

    from streams.encode import ScoreEncoder
    from streams.reasons import reason_texts

    encoder, events, serving = ScoreEncoder(inputs.settings.features.names), inputs.events, slot.serving
    with path.open("wb") as file:

        def put(part: slice) -> None:
            matrix = made.matrix[part]
            raw, score = serving.score(matrix)
            rows = events.take(made.row[part])
            reasons = serving.reasons(matrix, score, np.zeros(len(rows), np.int64), rows.offsets)
            values = encoder.encode(
                rows,
                features=matrix,
                late=made.late[part],
                model=serving.label,
                score=score,
                raw=raw,
                reasons=reason_texts(len(rows), reasons),
                sets=serving.sets(raw) if with_sets else None,
            )
            file.write(b"\n".join([*values, b""]))

        _in_parts(len(made.row), put)


def _in_parts(n: int, put: Callable[[slice], None]) -> None:
    """Calls ``put`` for some thousand rows at a time, with a progress bar."""
    from streams.cli.progress import progress

    with progress("scores", n) as advance:
        for start in range(0, n, _CHUNK_ROWS):
            part = slice(start, min(start + _CHUNK_ROWS, n))
            put(part)
            advance(part.stop - part.start)
