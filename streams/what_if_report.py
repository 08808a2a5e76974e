"""The page of a what-if replay: plots of what was served beside what would have been."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.block import BoolArray
from streams.alert_log import time_text
from streams.report_page import COLORS, Page, new_figure
from streams.what_if_cost import CostMatrix, cost_curve
from streams.what_if_figures import Beside, Choice
from streams.what_if_served import Known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["write_report"]

_SERVED, _REPLAYED = "as served", "what-if"
_BINS = 40
_POINTS_MAX = 20_000
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
#: a longer range has its alerts by day, a shorter one by hour
_BY_DAY_FROM_MS = 3 * _DAY_MS


def write_report(folder: Path, found: Mapping[str, Any], table: Beside, known: Known, choice: Choice) -> Path:
    """Writes ``index.html`` with its plots into the folder; returns the page's path.

    ``found`` are the figures of the command. HeadraceError: it cannot be written.
    """
    rows = table.both
    judged = rows & known.judged
    if rows.any():
        begin, end = (time_text(int(edge)) for edge in (table.times[rows].min(), table.times[rows].max()))
        page = Page(f"What if: {found['model']}", f"{int(rows.sum()):,} transactions from {begin} to {end}")
    else:
        page = Page(f"What if: {found['model']}", "no transaction has both scores")
    page.table(("", _SERVED, _REPLAYED, "difference"), _summary(found))
    if found["rows_of_training"]:
        trained = f"{found['rows_of_training']:,} of these rows are of the model's training"
        page.text(f"{trained}: on them it is better than it will be.", emphasis=True)
    for line in _remarks(found):
        page.text(line)
    if rows.any():
        page.heading("Scores")
        page.plot("scores", _scores(table, rows, choice), "histogram of both scores, and each score against the other")
        page.heading("Alerts")
        page.plot("alerts", _alerts(table, rows, choice), "alerts kept, gained and lost over time")
    for name, title in (("gained", "Gained alerts"), ("lost", "Lost alerts")):
        if found[name]:
            page.heading(f"{title}: the largest differences")
            page.table(_EXAMPLE, map(_example, found[name]))
    if judged.any():
        page.heading("On final labels")
        page.plot("performance", _judged(table, known, judged, choice), "precision against recall, and cost")
    return page.write(folder)


# --- words ---


def _summary(found: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    alerts, threshold = found["alerts"], found["threshold"]
    yield "threshold", f"{threshold['served']:g}", f"{threshold['replayed']:g}", ""
    change = f"+{alerts['gained']:,} / -{alerts['lost']:,}"
    yield "alerts", f"{alerts['served']:,}", f"{alerts['replayed']:,}", change
    frauds = [alerts["kept_frauds"] + alerts[f"{side}_frauds"] for side in ("lost", "gained")]
    change = f"+{alerts['gained_frauds']:,} / -{alerts['lost_frauds']:,}"
    yield "of them known frauds", f"{frauds[0]:,}", f"{frauds[1]:,}", change
    performance = found["performance"]
    if performance is not None:
        for name in ("average_precision", "precision", "recall"):
            before, after = (performance[side][name] for side in ("served", "replayed"))
            gain, change = performance["gains"].get(name), ""
            if gain is not None:
                change = f"{gain['gain']:+.4f} ({gain['low']:+.4f} .. {gain['high']:+.4f})"
            yield name.replace("_", " "), _number(before), _number(after), change
    cost = found["cost"]
    if cost is not None:
        change = f"{-cost['saved']:+,.2f}"
        if cost["saved_low"] is not None:
            change += f" ({-cost['saved_high']:+,.2f} .. {-cost['saved_low']:+,.2f})"
        yield "cost", f"{cost['served']:,.2f}", f"{cost['replayed']:,.2f}", change


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _remarks(found: Mapping[str, Any]) -> Iterator[str]:
    served = ", ".join(f"{name} ({n:,} rows)" for name, n in found["served_models"].items()) or "nothing"
    yield (
        f"Served: {served}. Labels: {found['labelled']:,} known, {found['judged']:,} of them final, of these "
        f"{found['frauds']:,} frauds; average precision, precision, recall and cost are of final labels, their "
        "differences with 95% intervals over cards."
    )
    left_out = [f"{found[name]:,} {name.replace('_', ' ')}" for name in ("only_served", "only_replayed") if found[name]]
    if left_out:
        yield f"Left out: {', '.join(left_out)}."
    differing = found["differing_features"]
    if differing["rows"]:
        yield f"{differing['rows']:,} rows were served with other values of {', '.join(differing['names'])}."
    cost = found["cost"]
    if cost is not None:
        matrix = ", ".join(f"{name} {value}" for name, value in cost["matrix"].items())
        least = [f"{cost[f'{side}_least']['cost']:,.2f} at {cost[f'{side}_least']['threshold']:.4g}" for side in _SIDES]
        yield f"Costs: {matrix}. The least on these very rows: {least[0]} {_SERVED}, {least[1]} in the {_REPLAYED}."


_SIDES = ("served", "replayed")
_EXAMPLE = ("transaction", "event time", "card", "terminal", "amount", _SERVED, _REPLAYED, "label")


def _example(row: Mapping[str, Any]) -> Sequence[object]:
    label = {None: "unknown", 0: "legitimate", 1: "fraud"}[row["label"]]
    ids = (row["transaction_id"], time_text(row["event_time"]), row["card_id"], row["terminal_id"])
    return (*ids, f"{row['amount']:,.2f}", f"{row['served']:.4f}", f"{row['replayed']:.4f}", label)


# --- plots ---


def _scores(table: Beside, rows: BoolArray, choice: Choice) -> Figure:
    figure = new_figure(9.5, 3.6)
    histogram, scatter = figure.subplots(1, 2)
    before, after = table.before[rows], table.after[rows]
    edges = np.linspace(min(before.min(), after.min()), max(before.max(), after.max()) + 1e-9, _BINS + 1)
    for scores, name, color in ((before, _SERVED, COLORS[0]), (after, _REPLAYED, COLORS[1])):
        histogram.stairs(np.histogram(scores, edges)[0], edges, label=name, color=color, linewidth=1.6)
    histogram.set(xlabel="score", ylabel="transactions", yscale="log")
    _thresholds(histogram, choice)
    histogram.legend(fontsize=8)
    changed = (before >= choice.before) != (after >= choice.after)
    # by an even step, so that the same rows give the same plot
    same = np.flatnonzero(~changed)[:: max(1, len(before) // _POINTS_MAX)]
    for at, color in ((same, COLORS[0]), (np.flatnonzero(changed), COLORS[1])):
        scatter.scatter(before[at], after[at], s=6, alpha=0.4, color=color, linewidths=0)
    scatter.axvline(choice.before, color=COLORS[2], linewidth=0.8, linestyle="--")
    scatter.axhline(choice.after, color=COLORS[2], linewidth=0.8, linestyle="--")
    scatter.set(xlabel=f"score {_SERVED}", ylabel=f"score in the {_REPLAYED}")
    return figure


def _thresholds(axes: Axes, choice: Choice) -> None:
    axes.axvline(choice.before, color=COLORS[0], linewidth=0.9, linestyle="--")
    axes.axvline(choice.after, color=COLORS[1], linewidth=0.9, linestyle=":")


def _alerts(table: Beside, rows: BoolArray, choice: Choice) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9.5, 3.0)
    axes = figure.subplots()
    times = table.times[rows]
    width = _DAY_MS if int(times.max() - times.min()) >= _BY_DAY_FROM_MS else _HOUR_MS
    first = int(times.min()) // width
    n = int(times.max()) // width - first + 1
    before, after = table.before[rows] >= choice.before, table.after[rows] >= choice.after
    kept, gained, lost = (
        np.bincount(times[chosen] // width - first, minlength=n)
        for chosen in (before & after, after & ~before, before & ~after)
    )
    at = np.array([(first + i) * width for i in range(n)], "datetime64[ms]")
    bar = np.timedelta64(int(width * 0.9), "ms")
    axes.bar(at, kept, bar, label="kept", color=COLORS[0], align="edge")
    axes.bar(at, gained, bar, bottom=kept, label="gained", color=COLORS[1], align="edge")
    axes.bar(at, -lost, bar, label="lost", color="#bbbbbb", align="edge")
    axes.axhline(0, color=COLORS[2], linewidth=0.8)
    axes.set(ylabel=f"alerts each {'day' if width == _DAY_MS else 'hour'}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, ncols=3)
    axes.tick_params(axis="x", labelrotation=20)
    return figure


def _judged(table: Beside, known: Known, judged: BoolArray, choice: Choice) -> Figure:
    figure = new_figure(9.5, 3.6)
    curve, cost = figure.subplots(1, 2)
    labels, amounts = known.labels[judged], table.amounts[judged]
    # without a declared cost each error counts the same
    matrix = choice.cost or CostMatrix(fn=1.0, fp=1.0)
    for scores, name, color in ((table.before, _SERVED, COLORS[0]), (table.after, _REPLAYED, COLORS[1])):
        order = np.argsort(-scores[judged], kind="stable")
        hits, taken = np.cumsum(labels[order] == 1), np.arange(1, len(order) + 1)
        last = np.append(np.diff(scores[judged][order]) != 0, True)
        if hits[-1]:
            curve.plot(hits[last] / hits[-1], hits[last] / taken[last], color=color, label=name, linewidth=1.4)
        found = cost_curve(matrix, scores[judged], labels, amounts)
        inside = found.thresholds <= 1.0
        cost.plot(found.thresholds[inside], found.costs[inside], color=color, label=name, linewidth=1.4)
    curve.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    cost.set(xlabel="threshold", ylabel="cost" if choice.cost else "errors (no --cost was declared)")
    _thresholds(cost, choice)
    for axes in (curve, cost):
        axes.legend(fontsize=8)
    return figure
