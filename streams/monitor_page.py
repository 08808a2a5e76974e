"""The monitor's report as a page with plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.block import FloatArray
from monitoring.performance import METRICS
from streams.alert_log import explained, figure_text, time_text
from streams.monitor_report import Column, Material, Window
from streams.report_page import COLORS, Page, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["write_index", "write_monitor_report"]

_ACROSS = 4
_BINS = 24
#: more values than this are drawn as a histogram
_VALUES_MAX = 12
#: what no rule of thumb calls small any more
_RULE_PSI = 0.2
_SHOWN = ("auc", "average_precision", "precision", "recall", "log_loss", "calibration_gap")
_TOLD = ("auc", "average_precision", "precision", "recall")
_DAY_MS = 86_400_000


def write_monitor_report(folder: Path, title: str, material: Material, figures: Mapping[str, Any]) -> Path:
    """Writes ``index.html`` and its plots into the folder, which is there; returns the page's path. ``figures`` as of
    `report_figures`."""
    now, then = material.now, material.then
    page = Page(title, f"{len(now):,} transactions, against {len(then):,} of the reference {_span_text(then.times)}")
    page.table(("", "reference", "now"), _summary(figures))
    page.heading("Alerts")
    _alerts(page, material)
    columns = material.columns
    page.heading("Distributions then and now")
    if len(now) and len(then):
        page.plot("distributions", _distributions(columns), "histograms of the score and of each feature, then and now")
        page.table(_COLUMN_HEAD, map(_column_row, columns))
    else:
        page.text("The period, or the reference before it, has no transactions: nothing to compare.")
    windows = material.windows
    page.heading("Performance on final labels")
    if windows:
        page.text(
            "Each point is of the seven days up to it, with its 95% interval; days whose labels may still come are "
            "left out."
        )
        page.plot("performance", _performance(windows), "metrics by day with intervals")
        page.table(("", *(name.replace("_", " ") for name in _TOLD), "rows", "frauds"), map(_window_row, windows[-7:]))
    else:
        page.text(
            "No day's labels are final yet." if material.monitored else "Nobody has joined labels: no monitor has run."
        )
    curve = material.curve
    if curve:
        page.heading("How fast labels arrive")
        page.plot("maturity", _maturity(curve, material.mature_ms), "share of transactions with a label, by age")
    return page.write(folder)


def write_index(folder: Path, days: Sequence[tuple[str, Mapping[str, Any]]]) -> Path:
    """A page that leads to the pages of days, each in its folder, newest first."""
    page = Page("Monitor reports", f"{len(days):,} days")
    rows = [(name, f"{f['rows']:,}", len(f["alerts"]), _largest(f), f"{name}/index.html") for name, f in days]
    page.links(("day", "transactions", "alerts", "largest PSI"), rows[::-1])
    return page.write(folder)


def _largest(figures: Mapping[str, Any]) -> str:
    known = [column for column in figures["columns"] if column["psi"] is not None]
    if not known:
        return "none"
    largest = max(known, key=lambda column: column["psi"])
    return f"{largest['psi']:.3f} of {largest['name']}"


# --- words ---


def _span_text(times: Any) -> str:
    if len(times) == 0:
        return "(none)"
    return f"from {time_text(int(times.min()))} to {time_text(int(times.max()))}"


def _summary(figures: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    yield "transactions", f"{figures['reference_rows']:,}", f"{figures['rows']:,}"
    models = (", ".join(figures[name]) or "none" for name in ("reference_models", "models"))
    yield "models", *models
    rates = (figures["alert_rate"][side] for side in ("then", "now"))
    yield "scores at the threshold", *("none" if rate is None else f"{rate:.4%}" for rate in rates)
    score = figures["columns"][0]
    yield "mean score", figure_text(score["mean_then"]), figure_text(score["mean_now"])
    yield "alerts in the period", "", f"{len(figures['alerts']):,}"


_COLUMN_HEAD = (
    "",
    "PSI",
    "Jensen-Shannon",
    "KS",
    "PSI from training",
    "mean then",
    "mean now",
    "missing then",
    "missing now",
)


def _column_row(column: Column) -> Sequence[object]:
    far = (
        f"{value:.4f}" if value == value else "none" for value in (column.psi, column.js, column.ks, column.psi_trained)
    )
    means = (f"{value:.4g}" if value == value else "none" for value in (column.mean_then, column.mean_now))
    missing = (f"{value:.2%}" if value == value else "none" for value in (column.missing_then, column.missing_now))
    return (column.name, *far, *means, *missing)


def _window_row(window: Window) -> Sequence[object]:
    cells = []
    for name in _TOLD:
        j = METRICS.index(name)
        low, high = window.ends[j].tolist()
        cells.append(f"{window.figures[j]:.4f}" if window.figures[j] == window.figures[j] else "none")
        if low == low:
            cells[-1] += f" ({low:.4f} .. {high:.4f})"
    return (time_text(window.day_ms)[:10], *cells, f"{window.rows:,}", f"{window.frauds:,}")


def _alerts(page: Page, material: Material) -> None:
    if not material.alerts:
        page.text("None in this period." if material.monitored else "No monitor has run: nobody would have raised one.")
    for alert in material.alerts:
        head, *lines = explained(alert)
        page.text(head, emphasis=alert["severity"] == "critical")
        page.lines([line.strip() for line in lines])


# --- plots ---


def _distributions(columns: Sequence[Column]) -> Figure:
    down = -(-len(columns) // _ACROSS)
    figure = new_figure(9.8, 1.75 * down + 0.3)
    grid = figure.subplots(down, _ACROSS, squeeze=False).ravel()
    for axes, column in zip(grid, columns, strict=False):
        _distribution(axes, column)
    for axes in grid[len(columns) :]:
        axes.axis("off")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def _distribution(axes: Axes, column: Column) -> None:
    sides = ((column.then, "reference", COLORS[0]), (column.now, "now", COLORS[1]))
    values = np.unique(np.concatenate([column.then, column.now]))
    if len(values) <= _VALUES_MAX:
        for k, (side, name, color) in enumerate(sides):
            bars = [np.count_nonzero(side == value) / max(1, len(side)) for value in values]
            axes.bar(np.arange(len(values)) + 0.4 * (k - 0.5), bars, 0.4, color=color, label=name)
        axes.set_xticks(range(len(values)), [f"{value:.3g}" for value in values])
    else:
        edges = _edges(column)
        for side, name, color in sides:
            shares = np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0] / max(1, len(side))
            axes.stairs(shares, edges, color=color, label=name, linewidth=1.3)
    if column.name == "score":
        axes.set_yscale("log")
    strong = column.psi == column.psi and column.psi >= _RULE_PSI
    psi = f"PSI {column.psi:.3f}" if column.psi == column.psi else "too few rows"
    name = column.name if len(column.name) < 26 else f"{column.name[:24]}.."
    # a name may hold what matplotlib takes for mathematics
    title = f"{name}: {psi}" if len(name) < 14 else f"{name}\n{psi}"
    axes.set_title(title.replace("$", r"\$"), fontsize=8, color="#a1283b" if strong else "#222222")
    axes.tick_params(labelsize=6.5)
    axes.yaxis.get_offset_text().set_fontsize(6.5)


def _edges(column: Column) -> FloatArray:
    """Of bins of one width between the outer percentiles of both; what lies beyond is in the outermost."""
    pooled = [np.quantile(side, [0.002, 0.998]) for side in (column.then, column.now) if len(side)]
    low, high = min(q[0] for q in pooled), max(q[1] for q in pooled)
    return np.linspace(low, high if high > low else low + 1.0, _BINS + 1)


def _performance(windows: Sequence[Window]) -> Figure:
    from matplotlib.dates import AutoDateLocator, DateFormatter

    figure = new_figure(9.8, 4.4)
    grid = figure.subplots(2, 3).ravel()
    days = np.array([window.day_ms for window in windows], "datetime64[ms]")
    for axes, name in zip(grid, _SHOWN, strict=True):
        j = METRICS.index(name)
        values = np.array([window.figures[j] for window in windows])
        low, high = (np.array([window.ends[j, k] for window in windows]) for k in (0, 1))
        axes.fill_between(days, low, high, color=COLORS[0], alpha=0.2, linewidth=0)
        axes.plot(days, values, color=COLORS[0], marker=".", linewidth=1.2)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="y", nbins=5)
        dates = AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(dates)
        axes.xaxis.set_major_formatter(DateFormatter("%b %d"))  # type: ignore[no-untyped-call]
    return figure


def _maturity(curve: Sequence[Mapping[str, float]], mature_ms: int) -> Figure:
    figure = new_figure(9.5, 2.6)
    axes = figure.subplots()
    ages = [point["age_ms"] / _DAY_MS for point in curve]
    axes.step([0, *ages], [0, *(point["labelled"] for point in curve)], where="post", color=COLORS[0], linewidth=1.5)
    axes.axvline(mature_ms / _DAY_MS, color=COLORS[2], linestyle="--", linewidth=0.8)
    axes.set(
        xlabel="days after the event (dashed: a label is taken for final)", ylabel="have their label", ylim=(0, 1.05)
    )
    return figure
