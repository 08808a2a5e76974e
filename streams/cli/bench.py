"""headrace bench: what headrace does, measured on this machine."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streams.cli.options import add_json, print_json
from streams.errors import EXIT_FAILED, EXIT_OK, ConfigError

EXAMPLE = "headrace bench throughput --events 300000 --json"

_WHAT = {
    "throughput": "events per second on one core, beside a plain Faust app on the same records",
    "latency": "from produce to score consumed, at 100, 1,000 and 10,000 events per second",
    "swap": "from produce to score consumed while the champion changes every few seconds, beside the time between",
    "watched": "CPU of the scoring worker with --monitor beside the same one without",
    "peers": "the same job by a loop by hand, by plain Faust, and offline by polars and DuckDB",
    "predictor": "rows per second of each predictor, and of reasons",
    "features": "microseconds per event of the window engine; with --cards N the memory of the card stage instead",
    "sets": "the rich feature set beside the default one on the published protocol, with --from and --labels",
    "recovery": "from the start of a killed worker to its next score, with a checkpoint and events since",
    "soak": "minutes on end while workers come and go: memory, latency, every row against offline; fails on any",
    "control": "what the control loop regains after concept drift, and that it leaves a stationary stream alone",
    "drift": "delay and false alarms of the monitor and of each of River's detectors on streams whose drift is known",
    "recommend": "recall and rank of the next click on the open click log, and recommendations per second",
}


#: of the throughput
_EVENTS = 300_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    whats = "; ".join(f"{name}: {text}" for name, text in _WHAT.items())
    parser.add_argument("what", choices=list(_WHAT), help=whats)
    parser.add_argument(
        "--events",
        type=int,
        metavar="N",
        help="throughput, watched, peers: events (default: 300000); recovery: in the checkpoint (default: 100000)",
    )
    parser.add_argument(
        "--cards", type=int, metavar="N", help="recovery: cards (default: 20000); features: measure their memory"
    )
    parser.add_argument("--tiled", action="store_true", help="features: with --cards, in tiles instead of exact")
    parser.add_argument(
        "--since", type=int, default=300_000, metavar="N", help="recovery: events to replay (default: 300000)"
    )
    parser.add_argument(
        "--plain-events",
        type=int,
        default=20_000,
        metavar="N",
        help="throughput, peers: of them through plain Faust and the loop (throughput: 0 = none)",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="throughput, watched: runs of ours, the median counts"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="latency: at each rate (default: 10); swap: in all (default: 40)"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="throughput, peers: transactions of a file"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="throughput: the labels of --from")
    parser.add_argument(
        "--delivery",
        choices=["at_least_once", "exactly_once"],
        default="at_least_once",
        help="throughput, latency, soak: of the worker (default: at_least_once)",
    )
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="soak: how long (default: 30)")
    parser.add_argument(
        "--rate",
        type=float,
        metavar="N",
        help="events per second; soak (default: half of what is measured first), swap (default: 1000)",
    )
    parser.add_argument(
        "--reasons", default="above:0.5", metavar="POLICY", help="throughput: of the worker (default: above:0.5)"
    )
    parser.add_argument("--quick", action="store_true", help="drift, control: one seed of each stream")
    parser.add_argument("--days", default="1:8", metavar="A:B", help="recommend: first and last day (default: 1:8)")
    parser.add_argument(
        "--sample", type=float, default=0.03, metavar="SHARE", help="recommend: of the sessions (default: 0.03)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, prints a table, and with --json all figures as the last line."""
    figures = _MEASURES[args.what](args)
    for line in _TABLES[args.what](figures):
        print(line)
    if args.json:
        print_json(figures)
    return EXIT_OK if figures.get("ok", True) else EXIT_FAILED


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


def _workload(args: argparse.Namespace) -> Any:
    workload = _module("workload")
    if args.source is None:
        return workload.simulated(args.events or _EVENTS)
    if args.labels is None:
        raise ConfigError("--from: give --labels too, so that the risks are those of the data")
    return workload.from_files(args.source, args.labels, args.events or _EVENTS)


def _throughput(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("throughput").run
    return measure(
        _workload(args),
        plain_events=args.plain_events,
        rounds=args.rounds,
        delivery=args.delivery,
        reasons=args.reasons,
        plain=args.plain_events > 0,
        notify=_notify,
    )


def _peers(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("peers").run
    return measure(_workload(args), peer_events=args.plain_events, notify=_notify)


def _peers_table(figures: dict[str, Any]) -> list[str]:
    lines = [
        f"{row['peer']:<12} {row['events_per_s']:>9,} events/s on one core, {row['us_cpu_per_event']:8.2f} us of CPU "
        f"each, ratio {row['ratio']:7.2f}   scores: {row['equality'] or 'all others are compared with these'}"
        for row in figures["results"]
    ]
    return [*lines, "the windows alone, offline:", *_rows_table(figures["offline"])]


def _latency(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("latency").run
    return measure(seconds=10.0 if args.seconds is None else args.seconds, delivery=args.delivery, notify=_notify)


def _swap(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("swap").run
    seconds = 40.0 if args.seconds is None else args.seconds
    return measure(1_000 if args.rate is None else int(args.rate), seconds, notify=_notify)


def _swap_table(figures: dict[str, Any]) -> list[str]:
    text = "{name:<8} {count:7,} rows   p50 {latency_ms_p50:7.1f} ms   p99 {latency_ms_p99:7.1f} ms"
    lines = [text.format(name=name, **figures[name]) for name in ("between", "during")]
    return [*lines, f"p99 during {figures['swaps']} swaps: {figures['ratio_p99']} times that between them"]


def _watched(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("watched").run
    return measure(_workload(args), rounds=args.rounds, notify=_notify)


def _watched_table(figures: dict[str, Any]) -> list[str]:
    pairs = ", ".join(f"{cost:+.1%}" for cost in figures["costs"])
    text = "{features} features: {us_without} us of CPU per event without, {us_with} with --monitor"
    return [text.format(**figures), f"cost {figures['cost']:+.1%}, the median of {pairs}"]


def _predictor(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("predictor").run
    return measure()


def _features(args: argparse.Namespace) -> dict[str, Any]:
    if args.cards is not None:
        fill: Callable[..., dict[str, Any]] = _module("card_memory").run
        return fill(args.cards, tiled=args.tiled, notify=_notify)
    measure: Callable[..., dict[str, Any]] = _module("features").run
    return measure()


def _sets(args: argparse.Namespace) -> dict[str, Any]:
    if args.source is None or args.labels is None:
        raise ConfigError("bench sets: give --from TRANSACTIONS and --labels LABELS, of nine weeks or more")
    measure: Callable[..., dict[str, Any]] = _module("feature_sets").run
    return measure(args.source, args.labels, notify=_notify)


def _sets_table(figures: dict[str, Any]) -> list[str]:
    lines = [
        f"{fold['test_from']}   average precision {fold['default']['average_precision']:.3f} -> "
        f"{fold['rich']['average_precision']:.3f}   gain {fold['gain']:+.3f} (noise {fold['noise']:.3f})"
        for fold in figures["folds"]
    ]
    return [*lines, f"mean gain {figures['gain']:+.3f} (noise {figures['noise']:.3f})"]


def _recovery(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("recovery").run
    cards = 20_000 if args.cards is None else args.cards
    events = max(100_000, cards) if args.events is None else args.events
    return measure(cards=cards, events=events, since=args.since, notify=_notify)


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
    if "bytes_per_card" in figures:
        return _rows_table({"results": [figures]})
    lines = _rows_table(figures)
    lines += ["one key with 30% of the events:", *_rows_table({"results": figures["hot"]})]
    lines += ["few and many keys, a block of each in turn:", *_rows_table({"results": figures["flatness"]})]
    return [*lines, "the same job by others:", *_rows_table(figures["peers"])]


def _recovery_table(figures: dict[str, Any]) -> list[str]:
    replayed = ", ".join(f"{n:,} of {topic}" for topic, n in figures["replayed"].items())
    rows = [
        ("load", "load_s", f"{figures['checkpoint_bytes'] / 1e6:,.0f} MB, {figures['load_s_per_gb']:.1f} s per GB"),
        ("replay", "replay_s", f"{figures['replay_s_per_million_events']:.2f} s per million events; {replayed}"),
        ("assigned", "start_to_assignment_s", "from the start of the process"),
        ("ready", "start_to_ready_s", "from the start of the process"),
        ("score", "start_to_first_score_s", "from the start of the process"),
    ]
    lines = [f"{name:<9} {figures[key]:8.2f} s   {text}" for name, key, text in rows]
    text = "pauses    {pause_ms_p99:8.2f} ms  p99, {pause_ms:.2f} at most, of {written} checkpoints"
    lines.append(text.format(**figures["checkpoints"]))
    text = "{cpu_ms_max:8.2f} ms  of CPU at most ({wall_ms_max:.2f} wall), {cpu_ms_p50:.2f} p50, of {count} {what}"
    parts = {"fork": "forks", "while_written": "blocks while one is written", "without": "blocks without one"}
    for name, what in parts.items():
        if figures["pauses"][name]["count"]:
            lines.append(f"{'':<9} {text}".format(what=what, **figures["pauses"][name]))
    if figures["verified"] is not None:
        lines.append("verified  {rows:8,} rows, {mismatching_rows:,} differ".format(**figures["verified"]))
    return lines


def _soak(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("soak").run
    return measure(args.minutes, rate=args.rate, delivery=args.delivery, notify=_notify)


def _soak_table(figures: dict[str, Any]) -> list[str]:
    lines = [
        f"minute {part['minute']:6.2f}   p50 {part['latency_ms_p50'] or 0:7.1f} ms   "
        f"p99 {part['latency_ms_p99'] or 0:7.1f} ms"
        for part in figures["latency"]
    ]
    lines.append(
        f"memory {figures['memory_mb']:,.0f} MB, {figures['memory_slope_mb_per_min']:+.2f} "
        f"(error {figures['memory_slope_error']:.2f}) MB a minute"
        + ("" if figures["memory_windows_full"] else ", while windows still grew")
    )
    lines.append("workers came {joins} times, {kills} of them were killed".format(**figures))
    lines.append(
        "{rows:,} rows: {missing:,} missing, {differing:,} differing, {unexpected:,} unexpected".format(**figures)
    )
    return lines


def _drift(args: argparse.Namespace) -> dict[str, Any]:
    module = _module("drift")
    measure: Callable[..., dict[str, Any]] = module.run
    return measure(quick=args.quick, data=module.default_data(), notify=_notify)


def _drift_table(figures: dict[str, Any]) -> list[str]:
    text = "missed {missed:3} of {changes:3}, after {delay_events} events; {false_per_100k:8} false per 100,000"
    lines = [f"{row['detector']:<13} {text.format(**row)}" for row in figures["totals"]]
    lines.append("the monitor by stream:")
    ours = [row for row in figures["results"] if row["detector"] == "monitor"]
    lines += [f"  {row['stream']:<16} {text.format(**row)}" for row in ours]
    cost = "{features} features: {us_per_scored_row} us of CPU per scored row, {us_per_labelled_row} per labelled one"
    lines.append(cost.format(**figures["cost"]))
    for row in (figures["fraud"] or {"results": []})["results"]:
        said = "; ".join(f"day {a['day']} {a['kind']} {a['subject']}" for a in row["alerts"]) or "no alert"
        lines.append(f"fraud data, {row['change']}, {row['days_judged']} days: {said}")
    return lines


def _control(args: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[..., dict[str, Any]] = _module("control").run
    return measure(seeds=(1,) if args.quick else (1, 2, 3), notify=_notify)


def _control_table(figures: dict[str, Any]) -> list[str]:
    text = (
        "seed {seed} {action:<8} average precision {ap_before:.3f} before, {ap_after_without:.3f} after the change; "
        "{share:4.0%} regained, 80% after {after} labelled events"
    )
    lines = [
        text.format(share=row["regained_share"], after=row["regained_after"] or "no number of", **row)
        for row in figures["results"]
    ]
    text = "seed {seed} stationary: {cases} cases, {false_alarms_put_in} of them put in, {promoted} promoted"
    return lines + [text.format(**row) for row in figures["stationary"]]


def _recommend(args: argparse.Namespace) -> dict[str, Any]:
    try:
        first, last = map(int, args.days.split(":"))
    except ValueError as error:
        raise ConfigError(f"--days: {args.days!r} is not two days; write the first and the last, as in 1:8") from error
    if not 0.0 < args.sample <= 1.0:
        raise ConfigError(f"--sample: {args.sample} is no share of the sessions; give more than 0 and at most 1")
    measure: Callable[..., dict[str, Any]] = _module("recommend").run
    return measure((first, last), args.sample, notify=_notify)


def _recommend_table(figures: dict[str, Any]) -> list[str]:
    lines = [
        f"{r['protocol']:<10} {r['method']:<14} Recall@20 {r['recall_20']:6.2f}   MRR@20 {r['mrr_20']:6.2f}"
        for r in figures["results"]
    ]
    speed = figures["speed"]
    lines.append(
        f"{speed['lists_per_s']:,} recommendations/s from {speed['items']:,} items on one core, "
        f"p50 {speed['us_p50'] / 1e3:.2f} ms, p99 {speed['us_p99'] / 1e3:.2f} ms of CPU"
    )
    return lines


_MEASURES = {
    "throughput": _throughput,
    "latency": _latency,
    "swap": _swap,
    "watched": _watched,
    "peers": _peers,
    "predictor": _predictor,
    "features": _features,
    "sets": _sets,
    "recovery": _recovery,
    "soak": _soak,
    "control": _control,
    "drift": _drift,
    "recommend": _recommend,
}
_TABLES = {
    "throughput": _throughput_table,
    "latency": _latency_table,
    "swap": _swap_table,
    "watched": _watched_table,
    "peers": _peers_table,
    "predictor": _predictor_table,
    "features": _features_table,
    "sets": _sets_table,
    "recovery": _recovery_table,
    "soak": _soak_table,
    "control": _control_table,
    "drift": _drift_table,
    "recommend": _recommend_table,
}
