"""headrace models evidence: the model in the shadow beside the one that serves, on labels that are final."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from streams.cli.options import add_bootstrap, add_config, print_json
from streams.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    from models.evidence import Evidence

__all__ = ["add_evidence", "evidence"]

_TITLES = {"average_precision": "average precision", "log_loss": "log loss", "brier": "Brier score"}


def add_evidence(parser: argparse.ArgumentParser) -> None:
    """The options of `evidence`."""
    when = "event time: 2026-05-01, 2026-05-01T12:30 (UTC unless it says otherwise) or milliseconds"
    parser.add_argument("--from", dest="begin", metavar="T0", help=f"begin of the range, {when} (default: all)")
    parser.add_argument("--to", dest="end", metavar="T1", help="its end, not in it (default: all)")
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="SHARE", help="of the intervals (default: 0.95)"
    )
    add_config(parser)
    add_bootstrap(parser)


def evidence(args: argparse.Namespace) -> int:
    """Of each pair of models that scored the same transactions the metrics of both, and the gain with its interval.

    Exit code 2 where no transaction has a score of both.
    """
    from streams.cli.broker_wait import await_broker
    from streams.cli.progress import progress
    from streams.cli.times import time_ms
    from streams.config import load_settings
    from streams.monitor_worker import join_settings
    from streams.shadow_evidence import compared, paired
    from streams.topics import FRAUD_SCORES, SHADOW_SCORES
    from streams.what_if import Span
    from streams.what_if_served import known_labels, read_served

    if not 0.5 <= args.confidence < 1.0:
        raise ConfigError(f"--confidence {args.confidence}: not a share from 0.5 to below 1; give 0.95")
    span = Span(time_ms("--from", args.begin, 0), time_ms("--to", args.end, 1 << 62))
    if span.end_ms <= span.begin_ms:
        raise ConfigError(f"--to {args.end}: not after --from {args.begin}; give the end of the range, not in it")
    settings = load_settings(args.config, overrides={"bootstrap": args.bootstrap})
    log = await_broker(settings)
    with progress("records", None) as advance:
        pairs = paired(
            read_served(log, span, advance, topic=FRAUD_SCORES), read_served(log, span, advance, topic=SHADOW_SCORES)
        )
    if not len(pairs.served):
        raise ConfigError(
            f"no transaction has a score of the champion and of a shadow in {SHADOW_SCORES}; begin one with "
            "`headrace models shadow`, or give another --from and --to"
        )
    known = known_labels(log, pairs.served, join_settings(settings), settings.label_mature_ms)
    found = [
        (champion, challenger, compared(pairs, known, champion, challenger, args.confidence))
        for champion, challenger in pairs.models
    ]
    if args.json:
        print_json({"pairs": [_plain(*one) for one in found]})
        return EXIT_OK
    for champion, challenger, of in found:
        print("\n".join(_lines(champion, challenger, of)))
    return EXIT_OK


def _plain(champion: str, challenger: str, of: Evidence) -> dict[str, Any]:
    differences = {name: {**asdict(d), "better": d.better} for name, d in of.differences.items()}
    figures = {"rows": of.rows, "frauds": of.frauds, "cards": of.groups, "confidence": of.confidence}
    return {"champion": champion, "challenger": challenger, **figures, "differences": differences}


def _lines(champion: str, challenger: str, of: Evidence) -> list[str]:
    head = f"{challenger} in the shadow of {champion}: {of.rows:,} transactions with final labels, {of.frauds:,} frauds"
    if not of.differences:
        return [head, "  too few frauds to say who is better"]
    lines = [f"{head}, {of.groups:,} cards"]
    for name, d in of.differences.items():
        who = {"champion": champion, "challenger": challenger, None: "nobody can tell"}[d.better]
        lines.append(
            f"  {_TITLES[name]:18} {d.champion:.4f} -> {d.challenger:.4f}, gain {d.gain:+.4f} "
            f"[{d.low:+.4f}, {d.high:+.4f}]; better: {who}"
        )
    return lines
