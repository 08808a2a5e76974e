"""headrace alerts: lists what the monitor has raised, and explains it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from monitoring.alerts import SEVERITIES
from streams.cli.broker_wait import open_log
from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.errors import EXIT_OK, ConfigError

EXAMPLE = "headrace alerts --kind input_drift"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("alert", nargs="*", metavar="ID", help="explain these, as the list shows them")
    parser.add_argument("--kind", metavar="KIND", help="only of this kind, such as input_drift")
    parser.add_argument("--subject", metavar="NAME", help="only about this feature, segment or score")
    parser.add_argument("--severity", choices=SEVERITIES, help="only so severe")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="the newest so many (default: 100)")
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Reads all alerts that are in the topic now; an alert that was sent twice is one."""
    from streams.alert_log import explained, read_alerts

    if args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: below 1; give how many alerts to show")
    alerts = read_alerts(open_log(args))
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


def _named(alerts: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    found = [alert for identity, alert in alerts.items() if identity.startswith(name)]
    if len(found) != 1:
        what = f"{len(found)} alerts begin with it; give more of it" if found else "no such alert"
        raise ConfigError(f"{name}: {what}; `headrace alerts` lists them")
    return found[0]


def _print_list(alerts: list[dict[str, Any]], total: int) -> None:
    from streams.alert_log import figure_text, time_text

    for alert in alerts:
        beyond = f"{figure_text(alert['value'])} (limit {figure_text(alert['threshold'])})"
        what = f"{alert['kind']:<22} {alert['subject']:<24} {beyond:<28}"
        evidence = alert["evidence"]
        found = len(evidence.get("members", ())) + evidence.get("members_beyond", 0)
        line = (
            f"{time_text(alert['event_time'])}  {alert['severity']:<8}  {what} {alert['alert_id']}  {alert['action']}"
        )
        print(line + (f"  {found} findings" if found > 1 else ""))
    if not alerts:
        print("no alerts" if total == 0 else f"none of {total:,} alerts match")
    elif len(alerts) < total:
        print(f"{len(alerts):,} of {total:,} alerts; `headrace alerts ID` explains one")
