"""Its pictures."""

from typing import Any

import numpy as np

from benchmarks import _pictures
from benchmarks._registry import Context
from benchmarks.demos.uncertainty import _networks
from benchmarks.demos.uncertainty._networks import ANGLES, SEEDS, Problem, Told
from maskjax import metrics, report


def draw_reliability(context: Context, problem: Problem, told: dict[str, Told]) -> str:
    """Of all seeds together."""
    y, bins = np.tile(problem.test[1], SEEDS), {}
    for way, each in told.items():
        pooled = np.asarray(_networks.mean(each.test)).reshape(len(y), -1)
        bins[way] = metrics.reliability(pooled, y)
    drawn = report.plot_reliability(bins)
    drawn.axes[0].set_title(f"images as they were learned, {SEEDS} seeds together")
    return _pictures.save(drawn, context, "uncertainty_reliability")


def draw_turned(context: Context, found: dict[str, Any]) -> str:
    title = f"mean and range of {SEEDS} seeds"
    drawn, panels = _pictures.page(title, 3, size=(12, 4.2))
    names = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}
    for axes, (name, title) in zip(panels, names.items(), strict=True):
        curves = {way: each[f"turned_{name}"] for way, each in found.items()}
        how = {"title": title, "xlabel": "degrees turned", "xticks": ANGLES}
        _pictures.curves(axes, ANGLES, curves, legend=None, **how)
    panels[1].legend(fontsize="small")
    return _pictures.save(drawn, context, "uncertainty_turned")
