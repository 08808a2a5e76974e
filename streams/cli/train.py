"""headrace train: a model from event files, packaged."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from streams.cli.offline_io import add_alias, add_inputs, add_models, add_pipeline, add_set, read_inputs
from streams.cli.options import add_bootstrap, add_json, print_json
from streams.cli.registry import check_new_name
from streams.cli.train_topics import topic_inputs
from streams.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    from features.block import Ids, IntArray
    from models.package import Manifest
    from models.train import Recipe, Split, Trained
    from streams.cli.offline_io import Inputs

EXAMPLE = (
    "headrace train --from transactions.parquet --labels labels.parquet "
    "--train 2018-07-25:2018-07-31 --test 2018-08-08:2018-08-14 --models models-dir --alias champion"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_pipeline(parser, "recommend")
    add_inputs(parser, required=False)
    parser.add_argument(
        "--from-topics", action="store_true", help="fraud: in the place of files, the topics of events and labels"
    )
    add_bootstrap(parser)
    add_set(parser)
    what = "first and last day (UTC, both included), or two ISO times, the second excluded"
    parser.add_argument("--train", required=True, type=time_range, metavar="A:B", help=f"train on these events: {what}")
    parser.add_argument("--test", type=time_range, metavar="C:D", help="test on these events, likewise")
    parser.add_argument(
        "--label-delay",
        type=duration,
        default="7d",
        metavar="7d",
        help="time after which labels are known; the test begins that long after the training's end or later",
    )
    add_models(parser)
    parser.add_argument("--name", help="name of the package (default: that of the pipeline)")
    add_alias(parser)
    parser.add_argument(
        "--threads", type=threads, default=2, metavar="N", help="of the trainer; the model is the same (default: 2)"
    )
    _add_recipe(parser)
    parser.add_argument(
        "--lists", type=threads, default=10_000, metavar="N", help="recommend: lists of each range at most (10000)"
    )
    add_json(parser)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """How the fraud model is made; defaults are those of the published comparison."""
    group = parser.add_argument_group("fraud: how to train")
    group.add_argument(
        "--search",
        type=count,
        default=0,
        metavar="N",
        help="try N settings on a validation fold, with trees of rows whose labels were known by then, which may lie "
        "before --train (0: fixed settings)",
    )
    group.add_argument(
        "--class-weight",
        type=class_weight,
        default=1.0,
        metavar="W",
        help="how many legitimate rows a fraud counts for, or balanced (default: 1)",
    )
    group.add_argument(
        "--calibration",
        choices=["platt", "isotonic", "none"],
        default="platt",
        help="how probabilities are made, on the last quarter of the training range (default: platt)",
    )
    group.add_argument(
        "--budget", type=budget, metavar="2us", help="fewer trees and leaves, until a row takes no longer to score"
    )
    group.add_argument(
        "--coverage",
        type=coverage,
        default=0.9,
        metavar="SHARE",
        help="of the conformal sets: how often they hold the true label (default: 0.9)",
    )
    group.add_argument("--seed", type=count, default=0, metavar="N", help="of search and intervals (default: 0)")
    group.add_argument("--report", type=Path, metavar="DIR", help="of report.html (default: the package's folder)")
    group.add_argument("--no-report", action="store_true", help="make no report")


def run(args: argparse.Namespace) -> int:
    """Computes the features, trains, tests, adds a package to the registry and writes the report."""
    args.name = args.name or args.pipeline
    check_new_name(args.name)
    if args.pipeline == "recommend":
        from streams.cli.train_rank import run_rank

        _check_rank(args)
        return run_rank(args)

    from features.fraud import SETS
    from models.package import category_codes
    from models.registry import Registry
    from streams.report_page import report_folder
    from streams.train_report import write_report

    _check_sources(args)
    split, recipe = _split(args), _recipe(args)
    if args.report is not None:
        report_folder("--report", args.report)
    features = SETS[args.set]
    inputs = topic_inputs(args, features, split.test_to) if args.from_topics else read_inputs(args, features)
    codes = category_codes(features)
    trained = _train(inputs, split, recipe, list(codes), args.threads)
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    registry = Registry(args.models)
    manifest = registry.add(trained.draft(args.name, features.schema_hash, created_at, codes), args.alias)
    report = None
    if not args.no_report:
        report = write_report(args.report or registry.resolve(manifest.label), manifest, trained)
    return _say(args, inputs, manifest, report)


def _say(args: argparse.Namespace, inputs: Inputs, manifest: Manifest, report: Path | None) -> int:
    """What came of it."""
    from streams.train_report import METRIC_TITLES

    training, metrics = manifest.training, manifest.metrics
    intervals = manifest.evaluation["intervals"]
    if args.json:
        print_json(
            {
                "model": manifest.label,
                "alias": args.alias,
                "train_rows": training["rows"],
                "train_frauds": training["frauds"],
                **{f"test_{name}" if name in ("rows", "frauds") else name: value for name, value in metrics.items()},
                "intervals": {name: [intervals[name]["low"], intervals[name]["high"]] for name in METRIC_TITLES},
                "conformal": manifest.conformal,
                "search": {k: v for k, v in training.get("search", {}).items() if k != "tried"} or None,
                "budget": training.get("budget"),
                "quality": inputs.quality,
                "report": None if report is None else str(report),
            }
        )
        return EXIT_OK
    pointed = f", now {args.alias}" if args.alias else f"; `headrace models promote {manifest.label}` makes it champion"
    print(f"{manifest.label} in {args.models}{pointed}")
    print(f"train: {training['rows']:,} rows, {training['frauds']:,} frauds")
    print(f"test:  {metrics['rows']:,} rows, {metrics['frauds']:,} frauds; in brackets: 95% intervals over cards")
    for name, title in METRIC_TITLES.items():
        print(f"  {title:26} {metrics[name]:.4f}  [{intervals[name]['low']:.4f}, {intervals[name]['high']:.4f}]")
    for line in [*_found(manifest), *inputs.quality_lines()]:
        print(line)
    if report is not None:
        print(f"report: {report}")
    return EXIT_OK


def _found(manifest: Manifest) -> list[str]:
    """What conformal sets, search and budget came to, in words."""
    training, conformal = manifest.training, manifest.conformal
    kept = [
        f"{conformal['measured'][name]['coverage']:.1%} [{conformal['measured'][name]['low']:.1%}, "
        f"{conformal['measured'][name]['high']:.1%}] of {name} rows"
        for name in ("fraud", "legitimate")
        if conformal["measured"][name]["coverage"] is not None
    ]
    lines = [f"conformal sets for {1 - conformal['alpha']:.0%} hold the true label of {' and '.join(kept)}"]
    search: Mapping[str, Any] | None = training.get("search")
    if search is not None:
        lines.append(
            f"search: {search['trials']} trials, validation AP {search['start']:.4f} to begin with, best "
            f"{search['best']:.4f}, noise {search['noise']:.4f}; chosen: {search['chosen']}"
        )
    cut: Mapping[str, Any] | None = training.get("budget")
    if cut is not None and cut["cut"]:
        lines.append(
            f"budget: {cut['us_per_row']:.3g} us per row in place of {cut['us_per_row_full']:.3g}, {cut['rounds']} "
            f"trees of {cut['num_leaves']} leaves; validation AP {cut['average_precision']:.4f} in place of "
            f"{cut['average_precision_full']:.4f}, noise {cut['noise']:.4f}"
        )
    elif cut is not None:
        lines.append(f"budget: kept as it is, {cut['us_per_row']:.3g} us per row")
    return lines


def _check_sources(args: argparse.Namespace) -> None:
    """ConfigError: it is not said what to train on, or twice."""
    files = {"--from": args.source, "--labels": args.labels}
    for option, path in files.items():
        if args.from_topics and path is not None:
            raise ConfigError(f"{option} {path}: --from-topics reads no file; leave out one of them")
        if not args.from_topics and path is None:
            raise ConfigError(f"{option}: missing; give a file, or --from-topics")
    if args.test is None:
        raise ConfigError("--test: missing; the fraud pipeline needs it")
    if args.bootstrap is not None and not args.from_topics:
        raise ConfigError(f"--bootstrap {args.bootstrap}: files need no Kafka; leave it out, or give --from-topics")


def _check_rank(args: argparse.Namespace) -> None:
    """ConfigError: an option of the fraud pipeline, or no file."""
    if args.source is None:
        raise ConfigError("--from: missing; give a file of interactions")
    given = {
        "--from-topics": args.from_topics,
        "--bootstrap": args.bootstrap is not None,
        "--search": args.search != 0,
        "--class-weight": args.class_weight != 1.0,
        "--calibration": args.calibration != "platt",
        "--budget": args.budget is not None,
        "--coverage": args.coverage != 0.9,
        "--seed": args.seed != 0,
        "--report": args.report is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise ConfigError(f"{option}: only the fraud pipeline has it; leave it out")


def _recipe(args: argparse.Namespace) -> Recipe:
    from models.train import Recipe

    return Recipe(
        calibration=args.calibration,
        class_weight=args.class_weight,
        search=args.search,
        budget_us=args.budget,
        alpha=round(1.0 - args.coverage, 12),
        resamples=500,
        seed=args.seed,
    )


def _split(args: argparse.Namespace) -> Split:
    """The ranges; ConfigError where they contradict each other."""
    from models.errors import ModelError
    from models.train import Split

    (train_from, train_to), (test_from, test_to) = args.train, args.test
    try:
        return Split(train_from, train_to, test_from, test_to, args.label_delay)
    except ModelError as error:
        raise ConfigError(f"--train, --test: {error}") from error


def _train(inputs: Inputs, split: Split, recipe: Recipe, categorical: list[str], num_threads: int) -> Trained:
    """The model, by the labels that are known when the test begins; tested by all labels."""
    from models.train import train_fraud
    from streams.cli.progress import progress
    from streams.offline import fraud_rows

    assert inputs.labels is not None
    made = inputs.features("event_time")
    events = inputs.events.take(made.row)
    times = events.event_time_ms
    before = times < split.train_to
    y = fraud_rows(events, inputs.labels)
    y[before] = fraud_rows(events, inputs.labels, split.test_from)[before]
    names = inputs.settings.features.names
    with progress("training", 100) as advance:
        shown = 0

        def step(done: int, total: int) -> None:
            nonlocal shown
            percent = 100 * done // total
            if percent > shown:
                advance(percent - shown)
                shown = percent

        return train_fraud(
            made.matrix,
            y,
            times,
            _card_numbers(events.ids["card_id"]),
            names,
            split,
            recipe,
            categorical=categorical,
            num_threads=num_threads,
            progress=step,
        )


def _card_numbers(ids: Ids) -> IntArray:
    """(n,) integers that identify the cards, in the order of their ids, for ties."""
    import numpy as np

    if ids.ints is not None:
        return ids.ints
    return np.unique(np.array(ids.texts()), return_inverse=True)[1].astype(np.int64)


def time_range(text: str) -> tuple[int, int]:
    """An argparse type: ``A:B`` as event times in ms, the end excluded."""
    for colon in (i for i, c in enumerate(text) if c == ":"):
        try:
            return _time(text[:colon], end=False), _time(text[colon + 1 :], end=True)
        except ValueError:
            continue
    raise argparse.ArgumentTypeError(
        f"{text!r} is no range of time: write two days, as in 2018-07-25:2018-07-31, or two ISO times with a : between"
    )


def _time(text: str, *, end: bool) -> int:
    """ms since the epoch of a day's begin (its end where ``end``) or of an ISO time; UTC unless it says otherwise."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    else:
        moment = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1 if end else 0)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def threads(text: str) -> int:
    """An argparse type: a number of threads."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads: give 1 or more")
    return int(text)


def count(text: str) -> int:
    """An argparse type: a whole number of 0 or more."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number: give 0 or more")
    return int(text)


def class_weight(text: str) -> float | Literal["balanced"]:
    """An argparse type: balanced, or a number above 0."""
    if text == "balanced":
        return "balanced"
    value = _number(text)
    if not value > 0.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no weight: give a number above 0, or balanced")
    return value


def coverage(text: str) -> float:
    """An argparse type: a share between 0.5 and 1."""
    value = _number(text)
    if not 0.5 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no coverage: give a share such as 0.9, from 0.5 to below 1")
    return value


def budget(text: str) -> float:
    """An argparse type: a time such as 2us or 500ns, in microseconds."""
    for unit, factor in (("ns", 1e-3), ("us", 1.0), ("µs", 1.0), ("ms", 1e3)):
        value = _number(text.removesuffix(unit)) if text.endswith(unit) else math.nan
        if value > 0.0:
            return value * factor
    raise argparse.ArgumentTypeError(f"{text!r} is no time per row: give one such as 2us or 500ns")


def _number(text: str) -> float:
    """NaN for what is no finite number."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def duration(text: str) -> int:
    """An argparse type: a duration such as 7d, in ms."""
    from features.declare import FeatureError, duration_ms

    try:
        return duration_ms(text, feature="--label-delay")
    except FeatureError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
