"""Plots of a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from features.block import FloatArray
from models.importance import Importance
from models.metrics import Ranked
from models.train import Tested
from streams.report_page import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plots"]

_BLUE, _RED, _GREY = COLORS[0], COLORS[1], "#8a8f98"
#: probabilities with a tick on axes of log-odds
_TICKS = (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
#: shares below it lie on the edge of the calibration plot
_SHARE_MIN = 1e-4
#: features in the plot of importance at most
_FEATURES_MAX = 20


def plots(
    tested: Tested, table: Sequence[Mapping[str, Any]], features: Sequence[str], importance: Importance
) -> dict[str, Figure]:
    """Figures by name: ranking, scores, importance. ``table``: `models.metrics.calibration_table`."""
    figure, (calibration, scores) = _figure(10, 4.2, 2)
    _calibration(calibration, table)
    _scores(scores, tested)
    return {"ranking": _ranking(tested), "scores": figure, "importance": _importance(features, importance)}


def _figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    figure = new_figure(width, height)
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.grid(color="#e6e8eb", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _ranking(tested: Tested) -> Figure:
    """ROC and precision-recall curves."""
    labels = tested.y.astype(np.float64)
    ranked, ones = Ranked(labels, tested.raw), np.ones(len(labels))
    found, taken = ranked.counts(ones)
    recall, wrong = found / found[-1], (taken - found) / (taken[-1] - found[-1])
    figure, (roc, pr) = _figure(10, 4.2, 2)
    roc.plot([0.0, *wrong], [0.0, *recall], color=_BLUE)
    roc.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
    roc.set(title=f"ROC, area {ranked.auc(ones):.3f}", xlabel="share of legitimate above", ylabel="recall")
    pr.plot(recall, found / taken, color=_BLUE)
    pr.axhline(labels.mean(), color=_GREY, linestyle=":", linewidth=1)
    pr.set(title=f"average precision {ranked.average_precision(ones):.3f}", xlabel="recall", ylabel="precision")
    for axis in (roc, pr):
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    return figure


def _calibration(axis: Axes, table: Sequence[Mapping[str, Any]]) -> None:
    """Share of frauds against probability, both logarithmic since most rows lie near 0."""
    p, share, low, high = (
        np.array([row[name] for row in table], np.float64) for name in ("probability", "share", "low", "high")
    )
    at, low, high = (np.maximum(v, _SHARE_MIN) for v in (share, low, high))
    p = np.maximum(p, _SHARE_MIN)
    axis.plot([_SHARE_MIN, 1], [_SHARE_MIN, 1], color=_GREY, linestyle=":", linewidth=1)
    axis.vlines(p, low, high, color=_BLUE, linewidth=1.5)
    axis.plot(p[share > 0], at[share > 0], "o", color=_BLUE, markersize=5)
    axis.plot(p[share == 0], at[share == 0], "o", color=_BLUE, markersize=5, markerfacecolor="white")
    axis.set(xscale="log", yscale="log", xlim=(_SHARE_MIN * 0.8, 1.25), ylim=(_SHARE_MIN * 0.8, 1.25))
    axis.set(title="calibration, 95% intervals", xlabel="mean probability", ylabel="share of frauds")


def _log_odds(p: FloatArray) -> FloatArray:
    p = np.clip(p, 1e-5, 1.0 - 1e-5)
    odds: FloatArray = np.log(p / (1.0 - p))
    return odds


def _scores(axis: Axes, tested: Tested) -> None:
    """How many rows of either class have which score."""
    odds = _log_odds(tested.probability)
    bins = np.linspace(odds.min() - 1e-9, odds.max() + 1e-9, 60)
    for rows, name, color in ((~tested.y, "legitimate", _BLUE), (tested.y, "fraud", _RED)):
        axis.hist(odds[rows], bins.tolist(), color=color, alpha=0.25)
        axis.hist(odds[rows], bins.tolist(), color=color, histtype="step", label=name)
    ticks = [t for t in _TICKS if bins[0] <= _log_odds(np.array([t]))[0] <= bins[-1]]
    axis.set_xticks(_log_odds(np.array(ticks)).tolist(), [f"{t:g}" for t in ticks])
    axis.set(yscale="log", title="scores of the test range", xlabel="probability (log-odds scale)", ylabel="rows")
    axis.legend(frameon=False)


def _importance(features: Sequence[str], importance: Importance) -> Figure:
    """The features that matter, most important on top."""
    panels = [("gain (part of all)", importance.gain), ("permutation (average precision lost)", importance.permutation)]
    if importance.shap is not None:
        panels.append(("mean |SHAP| (log-odds)", importance.shap))
    order = np.argsort(panels[-1][1], kind="stable")[-_FEATURES_MAX:]
    figure, axes = _figure(10, 1.4 + 0.26 * len(order), len(panels))
    for i, (axis, (title, values)) in enumerate(zip(axes, panels, strict=True)):
        axis.barh(np.arange(len(order)), values[order], color=_BLUE, height=0.7)
        # a $ would begin a formula
        names = [features[j].replace("$", r"\$") for j in order] if i == 0 else [""] * len(order)
        axis.set_yticks(np.arange(len(order)), names)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", visible=False)
    return figure
