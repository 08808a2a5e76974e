"""headrace bench: what headrace does, measured on this machine."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streams.cli.options import add_json, print_json
from streams.errors import EXIT_OK, ConfigError

EXAMPLE = "headrace bench throughput --events 300000 --json"

_WHAT = {
    "throughput": "events per second on one core, beside a plain Faust app on the same records",
    "latency": "from produce to score consumed, at 100, 1,000 and 10,000 events per second",
    "predictor": "rows per second of each predictor, and of reasons",
    "features": "microseconds per event of the window engine",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    whats = "; ".join(f"{name}: {text}" for name, text in _WHAT.items())
    parser.add_argument("what", choices=list(_WHAT), help=whats)
    parser.add_argument("--events", type=int, default=300_000, metavar="N", help="throughput: events (default: 300000)")
    parser.add_argument(
        "--plain-events",
        type=int,
        default=20_000,
        metavar="N",
        help="throughput: of them through plain Faust, 0 = none",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="throughput: runs of ours, the median counts"
    )
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="latency: at each rate (default: 10)")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="throughput: transactions of a file")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="throughput: the labels of --from")
    parser.add_argument(
        "--delivery",
        choices=["at_least_once", "exactly_once"],
        default="at_least_once",
        help="throughput, latency: of the worker (default: at_least_once)",
    )
    parser.add_argument(
        "--reasons", default="above:0.5", metavar="POLICY", help="throughput: of the worker (default: above:0.5)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, prints a table, and with --json all figures as the last line."""
    figures = _MEASURES[args.what](args)
    for line in _TABLES[args.what](figures):
        print(line)
    if args.json:
        print_json(figures)
    return EXIT_OK


def _module(name: str) -> Any:
    """A module of ``benchmarks/``, which is in the source tree and not part of an installed headrace."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks").is_dir():
        raise ConfigError(f"bench: no benchmarks in {root}; run it from a clone of the source, after `make install`")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module(f"benchmarks.{name}")


def _notify(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _throughput(args: argparse.Namespace) -> dict[str, Any]:
    workload = _module("workload")
    if args.source is None:
        events = workload.simulated(args.events)
    elif args.labels is None:
        raise ConfigError("--from: give --labels too, so that the risks are those of the data")
    else:
        events = workload.from_files(args.source, args.labels, args.events)
    measure: Callable[..., dict[str, Any]] = _module("throughput").run
    return measure(
        events,
        plain_events=args.plain_events,
        rounds=args.rounds,
        delivery=args.delivery,
        reasons=args.reasons,
        plain=args.plain_events > 0,
        notify=_notify,
    )


def _latency(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("latency").run
    return measure(seconds=args.seconds, delivery=args.delivery, notify=_notify)


def _predictor(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("predictor").run
    return measure()


def _features(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("features").run
    return measure()


def _throughput_table(figures: dict[str, Any]) -> list[str]:
    ours = figures["headrace"]
    lines = [
        f"headrace     {ours['events_per_s']:>9,} events/s on one core, {ours['us_cpu_per_event']:.2f} us of CPU each",
        *(f"  {name:<12} {us:6.2f} us" for name, us in figures["us_per_event"].items()),
    ]
    if figures["ratio_plain_faust"] is not None:
        rival = figures["plain_faust"]
        lines.append(
            f"plain Faust  {rival['events_per_s']:>9,} events/s on one core, "
            f"{rival['us_cpu_per_event']:.0f} us of CPU each"
        )
        lines.append(f"ratio        {figures['ratio_plain_faust']:>9} (CPU per event); scores: {figures['equality']}")
    return lines


def _latency_table(figures: dict[str, Any]) -> list[str]:
    return [
        f"{r['rate']:>7,} events/s   p50 {r['latency_ms_p50']:7.1f} ms   p99 {r['latency_ms_p99']:7.1f} ms   "
        f"p99.9 {r['latency_ms_p999']:7.1f} ms"
        for r in figures["results"]
    ]


def _rows_table(figures: dict[str, Any]) -> list[str]:
    return ["   ".join(f"{k} {v}" for k, v in row.items() if k != "sha256") for row in figures["results"]]


def _predictor_table(figures: dict[str, Any]) -> list[str]:
    return [*_rows_table(figures), "reasons:", *_rows_table({"results": figures["reasons"]})]


def _features_table(figures: dict[str, Any]) -> list[str]:
    lines = _rows_table(figures)
    lines += ["one key with 30% of the events:", *_rows_table({"results": figures["hot"]})]
    return [*lines, "the same job by others:", *_rows_table(figures["peers"])]


_MEASURES = {"throughput": _throughput, "latency": _latency, "predictor": _predictor, "features": _features}
_TABLES = {
    "throughput": _throughput_table,
    "latency": _latency_table,
    "predictor": _predictor_table,
    "features": _features_table,
}
