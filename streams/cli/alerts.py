"""headrace alerts: lists what the monitor has raised, and explains it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from streams.cli.broker_wait import open_log
from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    from streams.log import Log

EXAMPLE = "headrace alerts --kind input_drift"

_SEVERITIES = ("warning", "critical")
_WATCHES_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("alert", nargs="*", metavar="ID", help="explain these, as the list shows them")
    parser.add_argument("--kind", metavar="KIND", help="only of this kind, such as input_drift")
    parser.add_argument("--subject", metavar="NAME", help="only about this feature, segment or score")
    parser.add_argument("--severity", choices=_SEVERITIES, help="only so severe")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="the newest so many (default: 100)")
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Reads all alerts that are in the topic now; an alert that was sent twice is one."""
    if args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: below 1; give how many alerts to show")
    alerts = _alerts(open_log(args))
    if args.alert:
        chosen = [_named(alerts, name) for name in args.alert]
    else:
        wanted = {name: getattr(args, name) for name in ("kind", "subject", "severity")}
        matching = [
            alert
            for alert in alerts.values()
            if all(value is None or alert[name] == value for name, value in wanted.items())
        ]
        chosen = sorted(matching, key=lambda alert: (-alert["event_time"], alert["alert_id"]))[: args.limit]
    if args.json:
        print_json({"alerts": chosen, "total": len(alerts)})
    elif args.alert:
        print("\n\n".join("\n".join(explained(alert)) for alert in chosen))
    else:
        _print_list(chosen, len(alerts))
    return EXIT_OK


def _alerts(log: Log) -> dict[str, dict[str, Any]]:
    import orjson

    from streams.dead_letters import read_now
    from streams.topics import ALERTS

    alerts: dict[str, dict[str, Any]] = {}
    for batch in read_now(log, ALERTS):
        for value in batch.values:
            if value is not None:
                alert = orjson.loads(value)
                alerts[alert["alert_id"]] = alert
    return alerts


def _named(alerts: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    found = [alert for identity, alert in alerts.items() if identity.startswith(name)]
    if len(found) != 1:
        what = f"{len(found)} alerts begin with it; give more of it" if found else "no such alert"
        raise ConfigError(f"{name}: {what}; `headrace alerts` lists them")
    return found[0]


def _when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}"


def _print_list(alerts: list[dict[str, Any]], total: int) -> None:
    for alert in alerts:
        beyond = f"{_number(alert['value'])} (limit {_number(alert['threshold'])})"
        what = f"{alert['kind']:<22} {alert['subject']:<24} {beyond:<28}"
        print(f"{_when(alert['event_time'])}  {alert['severity']:<8}  {what} {alert['alert_id']}  {alert['action']}")
    if not alerts:
        print("no alerts" if total == 0 else f"none of {total:,} alerts match")
    elif len(alerts) < total:
        print(f"{len(alerts):,} of {total:,} alerts; `headrace alerts ID` explains one")


def explained(alert: Mapping[str, Any]) -> Iterator[str]:
    """What was noticed, since when, how sure, where, what a naive detector would have said, and what was done."""
    evidence: Mapping[str, Any] = alert["evidence"]
    yield f"{alert['alert_id']}: {alert['kind']} of {alert['subject']}, {alert['severity']}"
    yield f"  noticed   {_when(alert['event_time'])}" + (
        f", changed about {_when(evidence['since'])}" if "since" in evidence else ""
    )
    yield f"  value     {_number(alert['value'])}, limit {_number(alert['threshold'])}" + (
        f": {_number(evidence['strength'])} times as far from the usual as is allowed" if "strength" in evidence else ""
    )
    if "model" in evidence:
        yield f"  model     {evidence['model'] or 'none'}, seen in {evidence.get('partition', 'all partitions')}"
    for name in ("features", "segments"):
        if evidence.get(name):
            yield f"  {name:<9} {', '.join(evidence[name])}"
    for watch in evidence.get("watches", [])[:_WATCHES_SHOWN]:
        yield (
            f"  watch     {watch['measure']} of {watch['subject']} over {watch['periods']} periods: "
            f"{_number(watch['value'])}, usual {_number(watch['expected'])}, limit {_number(watch['threshold'])}"
        )
    if (more := evidence.get("watches_beyond", 0) - _WATCHES_SHOWN) > 0:
        yield f"            and {more} more"
    for example in evidence.get("examples", []):
        yield f"  example   transaction {example['transaction_id']}, score {_number(example['score'])}"
    naive = evidence.get("naive")
    if naive:
        adwin = "had fired" if naive["adwin_default"]["fired"] else "had not fired"
        yield f"  naive     to alert always: {naive['always']} alerts by now; ADWIN as it comes {adwin}"
    if "budget" in evidence:
        yield (
            f"  budget    {_number(evidence['budget']['false_alarms_per_30d'])} false alarms in 30 days over "
            f"{evidence['budget']['watches']} watches"
        )
    yield f"  action    {alert['action']}"
