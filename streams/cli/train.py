"""headrace train: a model from event files, packaged."""

from __future__ import annotations

import argparse
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from streams.cli.offline_io import add_alias, add_inputs, add_models, add_pipeline, add_set, read_inputs
from streams.cli.options import add_json, print_json
from streams.cli.registry import check_new_name
from streams.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    from features.block import Ids, IntArray
    from models.train import Split, Trained
    from streams.cli.offline_io import Inputs

EXAMPLE = (
    "headrace train --from transactions.parquet --labels labels.parquet "
    "--train 2018-07-25:2018-07-31 --test 2018-08-08:2018-08-14 --models models-dir --alias champion"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_pipeline(parser, "recommend")
    add_inputs(parser)
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
    parser.add_argument(
        "--lists", type=threads, default=10_000, metavar="N", help="recommend: lists of each range at most (10000)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Computes the features, trains, tests, and adds a package to the registry."""
    args.name = args.name or args.pipeline
    check_new_name(args.name)
    if args.pipeline == "recommend":
        from streams.cli.train_rank import run_rank

        return run_rank(args)

    from features.fraud import SETS
    from models.registry import Registry

    for option in ("labels", "test"):
        if getattr(args, option) is None:
            raise ConfigError(f"--{option}: missing; the fraud pipeline needs it")
    split = _split(args)
    inputs = read_inputs(args, SETS[args.set])
    trained = _train(inputs, split, args.threads)
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    draft = trained.draft(args.name, inputs.settings.features.schema_hash, created_at)
    manifest = Registry(args.models).add(draft, args.alias)
    training, metrics = trained.training, trained.metrics
    if args.json:
        print_json(
            {
                "model": manifest.label,
                "alias": args.alias,
                "train_rows": training["rows"],
                "train_frauds": training["frauds"],
                **{f"test_{name}" if name in ("rows", "frauds") else name: value for name, value in metrics.items()},
            }
        )
        return EXIT_OK
    pointed = f", now {args.alias}" if args.alias else f"; `headrace models promote {manifest.label}` makes it champion"
    print(f"{manifest.label} in {args.models}{pointed}")
    print(f"train: {training['rows']:,} rows, {training['frauds']:,} frauds")
    print(f"test:  {metrics['rows']:,} rows, {metrics['frauds']:,} frauds")
    for name, title in _TITLES.items():
        print(f"  {title:26} {metrics[name]:.4f}")
    return EXIT_OK


def _split(args: argparse.Namespace) -> Split:
    """The ranges; ConfigError where they contradict each other."""
    from models.errors import ModelError
    from models.train import Split

    (train_from, train_to), (test_from, test_to) = args.train, args.test
    try:
        return Split(train_from, train_to, test_from, test_to, args.label_delay)
    except ModelError as error:
        raise ConfigError(f"--train, --test: {error}") from error


_TITLES = {
    "auc": "AUC ROC",
    "average_precision": "average precision",
    "card_precision_100": "card precision, top 100",
    "log_loss": "log loss",
    "brier": "Brier score",
}


def _train(inputs: Inputs, split: Split, num_threads: int) -> Trained:
    """The model, by the labels that are known when the test begins; tested by all labels."""
    from models.train import FRAUD_ROUNDS, train_fraud
    from streams.cli.progress import progress
    from streams.offline import fraud_rows

    assert inputs.labels is not None
    made = inputs.features("event_time")
    events = inputs.events.take(made.row)
    times = events.event_time_ms
    in_training = (times >= split.train_from) & (times < split.train_to)
    y = fraud_rows(events, inputs.labels)
    y[in_training] = fraud_rows(events, inputs.labels, split.test_from)[in_training]
    names = inputs.settings.features.names
    with progress("training", 2 * FRAUD_ROUNDS) as advance:
        return train_fraud(
            made.matrix,
            y,
            times,
            _card_numbers(events.ids["card_id"]),
            names,
            split,
            num_threads=num_threads,
            progress=lambda done, total: advance(1),
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


def duration(text: str) -> int:
    """An argparse type: a duration such as 7d, in ms."""
    from features.declare import FeatureError, duration_ms

    try:
        return duration_ms(text, feature="--label-delay")
    except FeatureError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
