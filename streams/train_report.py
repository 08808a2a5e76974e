"""The report of a training: one HTML file that needs nothing else, and its plots as PNG files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.importance import importance
from models.package import Manifest
from models.train import Trained
from streams.report_page import Page
from streams.train_plots import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["METRIC_TITLES", "page", "write_report"]

METRIC_TITLES = {
    "auc": "AUC ROC",
    "average_precision": "average precision",
    "card_precision_100": "card precision, top 100",
    "log_loss": "log loss",
    "brier": "Brier score",
}


def write_report(folder: Path, manifest: Manifest, trained: Trained) -> Path:
    """``report.html`` and its plots in the folder, which is there; returns the page's path. HeadraceError: it cannot be
    written."""
    of_features = importance(trained.model_text, trained.tested.x, trained.tested.y)
    figures = plots(trained.tested, trained.evaluation["calibration_table"], trained.features, of_features)
    return page(manifest, figures).write(folder, "report.html")


def page(manifest: Manifest, figures: Mapping[str, Figure]) -> Page:
    """The page of a manifest and its plots, as `streams.train_plots.plots` names them."""
    training = manifest.training
    page = Page(manifest.label, f"trained {manifest.created_at}")
    page.heading("Protocol")
    page.table(("", "UTC"), _protocol(manifest))
    _metrics(page, manifest)
    page.plot("ranking", figures["ranking"], "ROC and precision-recall curves")
    page.plot("scores", figures["scores"], "calibration, and scores by class")
    _calibration(page, manifest.evaluation["calibration_table"])
    _conformal(page, manifest.conformal)
    page.heading("What the model goes by")
    page.plot("importance", figures["importance"], "importance of features")
    page.text(
        "Gain is of the training, the others are of the test range. Where features say the same, gain and SHAP are "
        "shared among them, and permutation shows little for each."
    )
    if "search" in training:
        _search(page, training["search"])
    if "budget" in training:
        page.heading("Budget")
        page.table(("", ""), [(name.replace("_", " "), _text(value)) for name, value in training["budget"].items()])
    page.heading("Settings")
    page.table(("", ""), [("rounds", training["rounds"]), *((n, _text(v)) for n, v in training["params"].items())])
    page.heading("Libraries")
    page.table(("", ""), list(manifest.libraries.items()))
    return page


def _text(value: object) -> str:
    """A value in words."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _protocol(manifest: Manifest) -> list[tuple[str, str]]:
    training = manifest.training
    rows = [
        ("training range", f"{_day(training['train_from'])} to {_day(training['train_to'])}"),
        ("training rows", f"{training['rows']:,}, {training['frauds']:,} frauds"),
        (f"calibration fold ({manifest.calibration.kind})", f"from {_day(training['calibration_from'])}"),
        ("delay of labels", f"{training['label_delay_ms'] / 86_400_000:g} days"),
        ("test range", f"{_day(training['test_from'])} to {_day(training['test_to'])}"),
        ("features", f"{len(manifest.features)}, schema {manifest.schema_hash[:12]}"),
    ]
    if training.get("validation_from") is not None:
        rows.insert(2, ("validation fold, for settings", f"from {_day(training['validation_from'])}"))
    return rows


def _metrics(page: Page, manifest: Manifest) -> None:
    metrics, intervals = manifest.metrics, manifest.evaluation.get("intervals", {})
    rows = []
    for name, title in METRIC_TITLES.items():
        of = intervals.get(name)
        between = "" if of is None else f"{of['low']:.4f} to {of['high']:.4f}"
        rows.append((title, f"{metrics[name]:.4f}", between))
    page.heading("Test")
    page.text(f"{metrics['rows']:,} rows, {metrics['frauds']:,} frauds, of cards without a known fraud.")
    page.table(("", "test", "interval"), rows)
    if intervals:
        page.text(
            f"Intervals of {intervals['confidence']:.0%}: {intervals['resamples']:,} draws of as many cards, with "
            f"replacement, seed {intervals['seed']}. What the days of one week have in common is not in them."
        )


def _calibration(page: Page, table: list[dict[str, Any]]) -> None:
    page.heading("Calibration")
    page.table(
        ("from", "to", "mean probability", "rows", "frauds", "share of frauds", "95% interval"),
        [
            (
                *(_text(row[name]) for name in ("from", "to", "probability", "rows", "frauds", "share")),
                f"{row['low']:.4g} to {row['high']:.4g}",
            )
            for row in table
        ],
    )


def _conformal(page: Page, conformal: Mapping[str, Any]) -> None:
    measured = conformal["measured"]
    rows = []
    for name in ("fraud", "legitimate"):
        of = measured[name]
        covered = "-" if of["coverage"] is None else f"{of['coverage']:.1%}"
        rows.append((name, f"{of['rows']:,}", covered, f"{of['low']:.1%} to {of['high']:.1%}"))
    page.heading("Conformal sets")
    page.text(
        f"A set holds the labels that a score leaves possible; of each class {1 - conformal['alpha']:.0%} of the sets "
        "are to hold the true label. Measured on all rows of the test range."
    )
    page.table(("class", "test rows", "sets that hold it", "95% interval"), rows)
    sets = ", ".join(f"{name} {share:.1%}" for name, share in measured["sets"].items())
    page.text(f"Sets of the test rows: {sets}.")


def _search(page: Page, search: Mapping[str, Any]) -> None:
    names = list(search["tried"][0])
    trials = sorted(enumerate(search["tried"]), key=lambda trial: -trial[1]["average_precision"])
    page.heading("Search")
    page.text(
        f"{search['trials']} trials, seed {search['seed']}, by {search['metric']}: settings it began with "
        f"{search['start']:.4f}, best {search['best']:.4f}, noise of the difference {search['noise']:.4f}; chosen: "
        f"{search['chosen']}."
    )
    page.table(
        ("trial", *(name.replace("_", " ") for name in names)),
        [(number, *(_text(trial[name]) for name in names)) for number, trial in trials],
    )
