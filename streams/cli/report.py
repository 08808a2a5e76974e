"""headrace report: what the monitor knows of a day or a range, as a page: then and now, performance, alerts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.cli.progress import progress
from streams.cli.times import time_ms
from streams.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    from streams.config import Settings
    from streams.log import Log
    from streams.monitor_report import Labelled
    from streams.what_if import Scored, Span

EXAMPLE = "headrace report --to reports --day 2026-05-07"

_DAY_MS = 86_400_000
_LINES_SHOWN = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="folder for index.html and its plots")
    parser.add_argument("--day", metavar="DAY", help="this day, UTC (default: the newest one)")
    parser.add_argument("--from", dest="begin", metavar="T0", help="instead of a day, event times from here on")
    parser.add_argument("--until", metavar="T1", help="and before here (default: all there is)")
    parser.add_argument("--daily", action="store_true", help="a page for each day of the range, and a list")
    parser.add_argument(
        "--reference-days", type=int, default=28, metavar="N", help="compare with so many days before (default: 28)"
    )
    parser.add_argument(
        "--models",
        metavar="DIR",
        default=os.environ.get("HEADRACE_MODELS"),
        help="registry of the workers: compare with what the model was tested on as well (default: $HEADRACE_MODELS)",
    )
    add_config(parser)
    add_bootstrap(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 2 where the range has no transaction."""
    from streams.cli.broker_wait import await_broker
    from streams.config import load_settings
    from streams.report_page import report_folder

    if args.day is not None and (args.begin or args.until or args.daily):
        raise ConfigError(f"--day {args.day}: a day, and --from, --until or --daily too; give one or the other")
    if args.reference_days < 1:
        raise ConfigError(f"--reference-days {args.reference_days}: below 1; give how many days to compare with")
    begin = time_ms("--day", args.day, -1) if args.day else time_ms("--from", args.begin, -1)
    end = begin + _DAY_MS if args.day else time_ms("--until", args.until, 1 << 62)
    _check_days(args, begin, end)
    if end <= begin:
        raise ConfigError(f"--until {args.until}: not after --from {args.begin}; give the end of the range, not in it")
    whole = args.begin is not None or args.until is not None
    settings = load_settings(args.config, overrides={"bootstrap": args.bootstrap, "models": args.models})
    folder = report_folder("--to", args.to)
    log = await_broker(settings)
    with progress("records", None) as advance:
        newest_only = not (args.day or args.daily or whole)
        recent_ms = (args.reference_days + 1) * _DAY_MS if newest_only else None
        topics = _Topics.read(log, settings, (begin - args.reference_days * _DAY_MS, end), recent_ms, advance)
    spans = topics.spans(begin, end, whole=whole, daily=args.daily)
    made = [
        (day, topics.page(folder / day if args.daily else folder, span, args.reference_days)) for day, span in spans
    ]
    if args.daily:
        from streams.monitor_page import write_index

        write_index(folder, made)
    path = str(folder / "index.html")
    if args.json:
        print_json({"report": path} | ({"days": dict(made)} if args.daily else made[0][1]))
    else:
        for day, figures in made:
            print("\n".join(_lines(day, figures)))
        print(f"report in {path}")
    return EXIT_OK


def _check_days(args: argparse.Namespace, begin_ms: int, end_ms: int) -> None:
    """ConfigError: a day is asked for that does not begin, or end, at midnight UTC."""
    ends = [("--day", args.day, begin_ms)]
    if args.daily:
        ends += [("--from", args.begin, begin_ms), ("--until", args.until, end_ms)]
    for option, text, ms in ends:
        if text is not None and ms % _DAY_MS:
            raise ConfigError(f"{option} {text}: not a whole day, UTC; give one such as 2026-05-01")


class _Topics:
    """What was read of the topics, of which each page shows a part."""

    def __init__(self, settings: Settings, served: Scored, labelled: Labelled, alerts: list[Any], monitored: bool):
        self._settings, self._served, self._labelled = settings, served, labelled
        self._alerts, self._monitored = alerts, monitored
        self._newest_ms = max(int(served.times.max(initial=0)), labelled.newest_ms)

    @classmethod
    def read(
        cls,
        log: Log,
        settings: Settings,
        ends: tuple[int, int],
        recent_ms: int | None,
        advance: Callable[[int], None],
    ) -> _Topics:
        """Of event times between these ends, with ``recent_ms`` of those at most so much older than the newest. Of a
        group without a monitor only the scores. ConfigError: there are none."""
        from streams.alert_log import read_alerts
        from streams.monitor_report import NO_LABELS, read_labelled
        from streams.topics import ALERTS, LABELLED
        from streams.what_if import Span
        from streams.what_if_served import read_served

        span = Span(*ends)
        admin = log.admin()
        there = admin.topics((LABELLED, ALERTS))
        admin.close()
        served = read_served(log, span, advance, recent_ms)
        if recent_ms is not None:
            span = Span(max(span.begin_ms, int(served.times.max(initial=0)) - recent_ms), span.end_ms)
        labelled = read_labelled(log, span, advance) if LABELLED in there else NO_LABELS
        alerts = list(read_alerts(log).values()) if ALERTS in there else []
        monitored = labelled.newest_ms > 0 or len(alerts) > 0
        return cls(settings, served, labelled, sorted(alerts, key=lambda alert: alert["event_time"]), monitored)

    def spans(self, begin_ms: int, end_ms: int, *, whole: bool, daily: bool) -> list[tuple[str, tuple[int, int]]]:
        """The pages to make: name, begin and end. ConfigError: no transaction in the range."""
        from streams.alert_log import time_text

        times = self._served.times
        times = times[(times >= begin_ms) & (times < end_ms)]
        if len(times) == 0:
            raise ConfigError("no scored transaction in this range; give another --day, or --from and --until")
        first, last = int(times.min()) // _DAY_MS, int(times.max()) // _DAY_MS
        if daily:
            days = range(first, last + 1)
            return [(time_text(day * _DAY_MS)[:10], (day * _DAY_MS, (day + 1) * _DAY_MS)) for day in days]
        if whole:
            begin, end = max(begin_ms, int(times.min())), min(end_ms, int(times.max()) + 1)
            return [(f"{time_text(begin)} to {time_text(end)}", (begin, end))]
        return [(time_text(last * _DAY_MS)[:10], (last * _DAY_MS, (last + 1) * _DAY_MS))]

    def page(self, folder: Path, span: tuple[int, int], reference_days: int) -> dict[str, Any]:
        """Writes the page of the span; its figures."""
        from streams.alert_log import time_text
        from streams.monitor_page import write_monitor_report
        from streams.monitor_report import Material, report_figures
        from streams.report_page import report_folder
        from streams.what_if import Span

        now, settings = Span(*span), self._settings
        then = Span(now.begin_ms - reference_days * _DAY_MS, now.begin_ms)
        mature_ms, horizon_ms = settings.label_mature_ms, settings.label_horizon_ms
        if settings.label_negatives == "horizon" or settings.label_conflicts == "last":
            mature_ms = max(mature_ms, horizon_ms)
        material = Material(
            then=self._served.take(then.holds(self._served.times)),
            now=self._served.take(now.holds(self._served.times)),
            labelled=self._labelled.within(Span(then.begin_ms, now.end_ms)),
            alerts=[alert for alert in self._alerts if now.begin_ms < alert["event_time"] <= now.end_ms],
            monitored=self._monitored,
            newest_ms=self._newest_ms,
            mature_ms=mature_ms,
            horizon_ms=horizon_ms,
            threshold=settings.alert_threshold,
            trained=_trained(settings, self._served, now),
        )
        figures = report_figures(material)
        title = f"Monitor: {time_text(now.begin_ms)} to {time_text(now.end_ms)}"
        write_monitor_report(report_folder("--to", folder), title, material, figures)
        return figures


def _trained(settings: Settings, served: Scored, now: Span) -> Mapping[str, Any]:
    """The reference in the package of the newest model of the period; {} where it is not to be had."""
    if not settings.models:
        return {}
    import numpy as np

    from models.errors import ModelError
    from models.package import read_manifest
    from streams.cli.registry import open_registry

    registry = open_registry(Path(settings.models))
    rows = np.flatnonzero(now.holds(served.times))
    if len(rows) == 0:
        return {}
    label = served.models[int(rows[np.argmax(served.times[rows])])]
    try:
        return read_manifest(registry.resolve(label)).reference
    except ModelError:
        return {}  # no model, or one that was deleted since


def _lines(day: str, figures: Mapping[str, Any]) -> Iterator[str]:
    models = ", ".join(figures["models"])
    yield f"{day}: {figures['rows']:,} transactions by {models}, against {figures['reference_rows']:,} before"
    far = [column for column in figures["columns"] if column["psi"] is not None]
    for column in sorted(far, key=lambda column: -column["psi"])[:_LINES_SHOWN]:
        trained = "" if column["psi_trained"] is None else f"; {column['psi_trained']:.4f} from training"
        yield f"  {column['name']:<30} PSI {column['psi']:.4f}, KS {column['ks']:.4f}{trained}"
    performance = figures["performance"]
    if performance is not None:
        value = performance["average_precision"]
        if value["value"] is not None:
            ends = f" ({value['low']:.4f} .. {value['high']:.4f})" if value["low"] is not None else ""
            frauds = f"{performance['frauds']:,} frauds with final labels"
            yield f"  average precision {value['value']:.4f}{ends} on {frauds}"
    for alert in figures["alerts"]:
        yield f"  alert {alert['alert_id']}: {alert['kind']} of {alert['subject']}, {alert['severity']}"
    if not figures["monitored"]:
        yield "  no monitor has run: no labels joined, no alerts"
