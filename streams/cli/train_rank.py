"""headrace train --pipeline recommend: a ranker from a file of interactions, packaged."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from streams.cli.offline_io import report_invalid
from streams.cli.options import print_json
from streams.errors import EXIT_OK, ConfigError, HeadraceError

if TYPE_CHECKING:
    from features.block import Block
    from models.rank import Ranked
    from streams.codec import Dead
    from streams.config import Settings

__all__ = ["run_rank"]


def run_rank(args: argparse.Namespace) -> int:
    """Replays the stages, trains on the lists of one range of time, compares on those of the other, if there is one,
    with the candidates' own order, and adds a package to the registry."""
    from features.shopping import FEATURES, SCHEMA_HASH
    from models.auto import choose
    from models.rank import RANK_ROUNDS, Ranking, train_rank
    from models.registry import Registry
    from streams.cli.progress import progress
    from streams.config import load_settings

    if args.labels is not None:
        raise ConfigError("--labels: the recommend pipeline learns from what is clicked next; leave it out")
    if args.test is not None and args.test[0] < args.train[1]:
        raise ConfigError("--test: begins before the training's end; give a later range")
    settings = load_settings(args.config)
    lists, tests = _served(args, settings)
    with progress("training", RANK_ROUNDS) as advance:
        ranker = train_rank(lists, FEATURES, num_threads=args.threads, progress=lambda done, total: advance(1))
    metrics: dict[str, float] = {}
    if len(tests):
        scores = choose(ranker.model_text).predictor.predict_raw(tests.x)
        for name, of in (("", scores), ("candidates_", tests.x[:, FEATURES.index("prior")])):
            ranking = Ranking.of(of, tests.begin, tests.clicked)
            metrics[f"{name}recall_20"], metrics[f"{name}mrr_20"] = ranking.recall_20, ranking.mrr_20
    draft = ranker.draft(args.name, SCHEMA_HASH, datetime.now(UTC).isoformat(timespec="seconds"))
    manifest = Registry(args.models).add(draft, args.alias)
    figures = {
        "model": manifest.label,
        "alias": args.alias,
        "train_lists": len(lists),
        "test_lists": len(tests),
        **{name: round(value, 3) for name, value in metrics.items()},
    }
    if args.json:
        print_json(figures)
    else:
        pointed = f", now {args.alias}" if args.alias else ""
        print(f"{manifest.label} in {args.models}{pointed}")
        print(", ".join(f"{name} {value}" for name, value in list(figures.items())[2:]))
    return EXIT_OK


def _served(args: argparse.Namespace, settings: Settings) -> tuple[Ranked, Ranked]:
    """The lists of the two ranges. HeadraceError: there are no events, or no lists to learn from."""
    from streams.cli.progress import progress
    from streams.recommend_worker import shop_settings
    from streams.shop_offline import served_lists

    events = _events(args)
    ranges = [args.train, args.test or (0, 0)]
    with progress("lists", len(events)) as advance:
        lists, tests = served_lists(
            events, shop_settings(settings), settings.list_candidates, ranges, args.lists, advance
        )
    if not lists.clicked.any():
        raise HeadraceError(
            f"--train: {len(lists)} lists, none with the item that came next; give a later or longer range"
        )
    return lists, tests


def _events(args: argparse.Namespace) -> Block:
    """The valid interactions of the file, in the order of their times."""
    import numpy as np

    from streams.offline import read_interactions

    bad: list[Dead] = []
    events = read_interactions(args.source, bad)
    report_invalid(args.source, len(events), bad)
    if len(events) == 0:
        raise HeadraceError(f"--from {args.source}: no valid interaction in it; give a file of interactions")
    events = events.take(np.argsort(events.event_time_ms, kind="stable"))
    events.offsets = np.arange(len(events), dtype=np.int64)
    return events
