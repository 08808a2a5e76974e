"""headrace replay: a range of the log again with another model, threshold or feature set, beside what was served."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.cli.offline_io import SET_CHOICES
from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.cli.progress import progress
from streams.cli.registry import known_model, open_registry
from streams.cli.times import time_ms
from streams.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    from features.declare import FeatureSet
    from models.package import Manifest
    from streams.config import Settings
    from streams.log import Log
    from streams.what_if import Scored, Span
    from streams.what_if_figures import Beside, Choice
    from streams.what_if_served import Known

EXAMPLE = (
    "headrace replay --from 2026-05-01 --to 2026-05-08 --model fraud@7 --models models-dir --threshold 0.3 "
    "--cost fn:amount,review:5 --report what-if"
)

#: in the place of a model: another threshold only
_AS_SERVED = "as served"
#: gained, and lost, alerts that are printed
_ROWS_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    when = "event time: 2026-05-01, 2026-05-01T12:30 (UTC unless it says otherwise) or milliseconds"
    parser.add_argument("--from", dest="begin", metavar="T0", help=f"begin of the range, {when} (default: all)")
    parser.add_argument("--to", dest="end", metavar="T1", help="its end, not in it (default: all)")
    parser.add_argument("--model", metavar="MODEL", help="to score with: a package's folder, NAME@VERSION or an alias")
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="scores at or above it are alerts (default: as was served)"
    )
    parser.add_argument(
        "--features", choices=SET_CHOICES, metavar="SET", help="feature set of the model (default: the one it names)"
    )
    parser.add_argument(
        "--cost",
        metavar="COSTS",
        help="fn:COST,fp:COST,review:COST, or a .json or .toml of them: a missed fraud (or fn:amount), a false alert, "
        "any alert",
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page with plots, and rows.parquet, there")
    served = parser.add_argument_group("what the workers ran with")
    served.add_argument("--models", metavar="DIR", default=os.environ.get("HEADRACE_MODELS"), help="their registry")
    served.add_argument("--group", metavar="GROUP", help="their consumer group (default: headrace-fraud)")
    served.add_argument("--order", choices=["arrival", "event_time"], help="order of the stage (default: arrival)")
    served.add_argument(
        "--served-threshold", type=float, metavar="X", help="what made an alert (default: alert_threshold, 0.5)"
    )
    served.add_argument("--checkpoints", metavar="URL", help="where they keep states (default: a cache)")
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 2 where there is nothing to compare: an empty range, a model that does not fit, no change asked for."""
    from streams.cli.broker_wait import await_broker
    from streams.config import load_settings
    from streams.monitor_worker import join_settings
    from streams.report_page import report_folder
    from streams.what_if import Span
    from streams.what_if_cost import CostMatrix
    from streams.what_if_figures import Choice, beside, differing_features, figures
    from streams.what_if_served import known_labels, read_served

    if args.model is None and (args.threshold is None or args.features is not None):
        raise ConfigError("--model: none given; give a model to score with, or with what was served a --threshold")
    _check_threshold("--threshold", args.threshold, 1.0)
    _check_threshold("--served-threshold", args.served_threshold)
    span = Span(time_ms("--from", args.begin, 0), time_ms("--to", args.end, 1 << 62))
    if span.end_ms <= span.begin_ms:
        raise ConfigError(f"--to {args.end}: not after --from {args.begin}; give the end of the range, not in it")
    cost = None if args.cost is None else CostMatrix.parse(args.cost)
    overrides = {"bootstrap": args.bootstrap, "group": args.group, "order": args.order, "models": args.models}
    overrides |= {"alert_threshold": args.served_threshold, "checkpoints": args.checkpoints}
    settings = load_settings(args.config, overrides=overrides)
    before = settings.alert_threshold
    choice = Choice(before, before if args.threshold is None else args.threshold, cost)
    model = None if args.model is None else _package(args.model, settings)
    report = None if args.report is None else report_folder("--report", args.report)

    log = await_broker(settings)
    with progress("records", None) as advance:
        served = read_served(log, span, advance)
        replayed = served if model is None else _replayed(log, settings, model, args.features, span, served, advance)
    if len(served) + len(replayed) == 0:
        raise ConfigError(f"no transaction in the range {_span_text(span)}; give another --from and --to")
    table = beside(served, replayed)
    if not table.both.any():
        raise ConfigError(
            f"no transaction in the range {_span_text(span)} has both scores, of {len(served):,} served and "
            f"{len(replayed):,} replayed; give another --from and --to, or the --config that the workers ran with"
        )
    known = known_labels(log, table.scored, join_settings(settings), settings.label_mature_ms)
    found = figures(table, known, choice, served)
    differing, names = differing_features(served, replayed)
    head: dict[str, Any] = {
        "from": None if args.begin is None else span.begin_ms,
        "to": None if args.end is None else span.end_ms,
        "model": _AS_SERVED if model is None else model.label,
        "differing_features": {"rows": differing, "names": names},
        "rows_of_training": 0 if model is None else _rows_of_training(model, table),
    }
    found = head | found
    if report is not None:
        found["report"] = str(_write_report(report, found, table, known, choice))
    if args.json:
        print_json(found)
    else:
        print("\n".join(_lines(found)))
    return EXIT_OK


# --- what was asked for ---


class _Package(NamedTuple):
    """A package that was named, and what it says of itself."""

    path: Path
    manifest: Manifest

    @property
    def label(self) -> str:
        return self.manifest.label


def _check_threshold(option: str, value: float | None, most: float = math.inf) -> None:
    """ConfigError: below 0, above ``most``, or no finite number."""
    if value is not None and not (0.0 <= value <= most and math.isfinite(value)):
        raise ConfigError(f"{option} {value:g}: no score, which is from 0 to 1; give a number of these")


def _package(reference: str, settings: Settings) -> _Package:
    """ConfigError: there is no such package."""
    from models.package import read_manifest

    path = Path(reference)
    if not (path / "manifest.json").is_file():
        if not settings.models:
            raise ConfigError(
                f"--model {reference}: no package's folder, and no registry to look it up in; give --models DIR"
            )
        registry = open_registry(Path(settings.models))
        path = registry.resolve(known_model(registry, reference))
    return _Package(path, read_manifest(path))


def _rows_of_training(package: _Package, table: Beside) -> int:
    """How many rows the model was trained on: of these it knows the labels."""
    first, stop = (package.manifest.training.get(name) for name in ("train_from", "train_to"))
    if first is None or stop is None:
        return 0
    return int(((table.times >= first) & (table.times < stop)).sum())


def _set_of(package: _Package, asked: str | None, served_set: FeatureSet) -> FeatureSet:
    """The feature set to replay. ConfigError: it is not the one that the model was made for."""
    from features.fraud import SETS

    made_for = package.manifest.schema_hash
    own = next((features for features in SETS.values() if features.schema_hash == made_for), None)
    if made_for and own is None:
        raise ConfigError(
            f"--model {package.label}: made for a set that this version does not have; give another model"
        )
    features = SETS[asked] if asked else own or served_set
    if own not in (None, features):
        raise ConfigError(
            f"--features {asked}: the model {package.label} was made for {own.name}; leave --features out, or give a "
            f"model of {features.name}"
        )
    return features


def _served_set(settings: Settings, served: Scored) -> FeatureSet:
    """The feature set that the workers ran with: that of the model in the records, else what the settings say."""
    from features.fraud import SETS
    from models.errors import ModelError
    from models.package import read_manifest
    from models.registry import Registry
    from streams.fraud_worker import feature_set

    for label in dict.fromkeys(served.models) if settings.models else ():
        try:
            made_for = read_manifest(Registry(settings.models).resolve(label)).schema_hash
        except ModelError:
            continue  # deleted since
        for features in SETS.values():
            if features.schema_hash == made_for:
                return features
    return feature_set(settings)


def _replayed(
    log: Log,
    settings: Settings,
    package: _Package,
    asked: str | None,
    span: Span,
    served: Scored,
    advance: Callable[[int], None],
) -> Scored:
    from features.fraud import SETS
    from models.errors import PackageError
    from models.package import load_package
    from models.slot import ModelSlot
    from streams.checkpoint_store import CheckpointStore
    from streams.fraud_worker import make_pipeline
    from streams.store import open_store
    from streams.what_if import replay_range

    served_set = _served_set(settings, served)
    features = _set_of(package, asked, served_set)
    try:
        model = load_package(package.path, features.names, features.schema_hash)
    except PackageError as error:
        raise ConfigError(f"--model {package.label}: {error}") from error
    model.predictor.warm()
    name = next(name for name, known in SETS.items() if known is features)
    own = replace(settings, feature_set=name, monitor=False)
    url = settings.checkpoint_url()
    return replay_range(
        log,
        lambda: make_pipeline(own, ModelSlot()),
        model,
        span,
        served_set=served_set,
        group=settings.group,
        store=None if url is None else CheckpointStore(open_store(url), settings.group),
        progress=advance,
    )


# --- what is said ---


def _span_text(span: Span) -> str:
    ends = ("..." if ms in (0, 1 << 62) else _when(ms) for ms in span)
    return " to ".join(ends)


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M")


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    served = ", ".join(f"{name} ({n:,})" for name, n in found["served_models"].items()) or "nothing"
    what = "as they were" if found["model"] == _AS_SERVED else f"by {found['model']}"
    yield f"{found['rows']:,} rows scored {what} beside what was served: {served}"
    for name, what in (("only_served", "served, yet not replayed"), ("only_replayed", "replayed, yet without a score")):
        if found[name]:
            yield f"  {found[name]:,} {what}: left out"
    if found["rows_of_training"]:
        yield f"  {found['rows_of_training']:,} are of the model's training: on them it is better than it will be"
    differing = found["differing_features"]
    if differing["rows"]:
        yield (
            f"  {differing['rows']:,} rows were served with other values of {', '.join(differing['names'])}. If not "
            "since the feature set is another, the workers ran with other settings: give their --order and --config"
        )
    if change := found["score_difference"]:
        yield (
            f"scores    {change['equal_rows']:,} equal; differ by {change['abs_mean']:.4g} (mean), "
            f"{change['abs_p99']:.4g} (99%), {change['abs_max']:.4g} (most); {change['mean']:+.4g} on balance"
        )
    alerts, threshold = found["alerts"], found["threshold"]
    yield (
        f"alerts    {alerts['served']:,} at {threshold['served']:g} as served, {alerts['replayed']:,} at "
        f"{threshold['replayed']:g}: {alerts['gained']:,} gained ({alerts['gained_frauds']:,} frauds known, "
        f"{alerts['gained_legitimate']:,} legitimate), {alerts['lost']:,} lost ({alerts['lost_frauds']:,} frauds, "
        f"{alerts['lost_legitimate']:,} legitimate)"
    )
    yield f"labels    {found['labelled']:,} known, {found['judged']:,} of them final, {found['frauds']:,} frauds"
    yield from _performance_lines(found["performance"])
    yield from _cost_lines(found)
    for name in ("gained", "lost"):
        for row in found[name][:_ROWS_SHOWN]:
            label = {None: "", 0: ", legitimate", 1: ", fraud"}[row["label"]]
            yield (
                f"  {name:<7} transaction {row['transaction_id']}, {row['amount']:,.2f}: {row['served']:.3f} -> "
                f"{row['replayed']:.3f}{label}"
            )
    if "report" in found:
        yield f"report    {found['report']}"


def _performance_lines(performance: Mapping[str, Any] | None) -> Iterator[str]:
    if performance is None:
        return
    for name in ("average_precision", "precision", "recall"):
        before, after = (performance[side][name] for side in ("served", "replayed"))
        line = f"{name.replace('_', ' '):<18} {_share(before)} as served, {_share(after)}"
        if gain := performance["gains"].get(name):
            sure = f"{gain['better']} is better" if gain["better"] else "nobody can tell who is better"
            line += f"; gain {gain['gain']:+.4f}, 95% in {gain['low']:+.4f} .. {gain['high']:+.4f}: {sure}"
        yield line


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _cost_lines(found: Mapping[str, Any]) -> Iterator[str]:
    cost = found["cost"]
    if cost is None:
        return
    matrix = ", ".join(f"{name} {value}" for name, value in cost["matrix"].items())
    line = f"cost      {cost['served']:,.2f} as served, {cost['replayed']:,.2f} ({matrix}): saves {cost['saved']:,.2f}"
    if cost["saved_low"] is not None:
        line += f", 95% in {cost['saved_low']:,.2f} .. {cost['saved_high']:,.2f}"
    yield line
    least = [cost[f"{side}_least"] for side in ("served", "replayed")]
    yield (
        f"          least on these rows: {least[0]['cost']:,.2f} at {least[0]['threshold']:.4g} as served, "
        f"{least[1]['cost']:,.2f} at {least[1]['threshold']:.4g}"
    )


def _write_report(folder: Path, found: Mapping[str, Any], table: Beside, known: Known, choice: Choice) -> Path:
    """The page's path; beside it every row: ids, event_time, amount, both scores (null where there is none), label
    (null: not known), and whether that is final."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from streams.cli.features import id_array
    from streams.what_if_report import write_report

    path = write_report(folder, found, table, known, choice)
    columns = {name: id_array(column) for name, column in table.ids.items()}
    columns |= {"event_time": pa.array(table.times), "amount": pa.array(table.amounts)}
    for name, scores in (("served", table.before), ("replayed", table.after)):
        columns[name] = pa.array(scores, mask=np.isnan(scores))
    columns |= {"label": pa.array(known.labels, mask=known.labels < 0), "final": pa.array(known.judged)}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    return path
