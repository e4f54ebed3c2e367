"""Its pictures."""

from typing import Any

import numpy as np

from benchmarks import _pictures, _shift
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


def draw_risk(context: Context, problem: Problem, told: dict[str, Told]) -> str:
    """Of all seeds together; unknown images can't be right."""
    curves = {}
    for way, each in told.items():
        _, both, gone = _networks.with_unknown(problem, each)
        curves[way] = metrics.risk_coverage(both.max(-1).ravel(), gone.ravel())
    drawn = report.plot_risk_coverage(curves)
    drawn.axes[0].set_title("of what is answered, how much is wrong or unknown")
    return _pictures.save(drawn, context, "uncertainty_risk")


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


def draw_entropies(context: Context, problem: Problem, told: dict[str, Told]) -> str:
    title, size = f"unknown: {problem.what}", (3.2 * len(told), 3.2)
    drawn, panels = _pictures.page(title, len(told), size=size, sharey=True)
    bins = np.linspace(0, np.log(problem.widths[-1]), 31)
    for axes, (way, each) in zip(panels, told.items(), strict=True):
        for images, label in ((each.test, "learned"), (each.unknown, "unknown")):
            entropy = np.asarray(metrics.entropy(_networks.mean(images))).ravel()
            axes.hist(entropy, bins, density=True, alpha=0.6, label=label)
        axes.set_title(way, fontsize="medium")
        axes.set(xlabel="entropy (nats)", yscale="log")
    panels[0].legend()
    return _pictures.save(drawn, context, "uncertainty_entropy")


def draw_cubic(context: Context, curve: dict[str, Any], numbers: _shift.Numbers) -> str:
    title, size = "x**3: mean and 2 standard deviations", (3.4 * len(curve), 3.6)
    drawn, panels = _pictures.page(title, len(curve), size=size, sharey=True)
    grid = numbers.x_test[:, 0]
    for axes, (way, (mean, deviation)) in zip(panels, curve.items(), strict=True):
        axes.plot(grid, numbers.y_test, color="black", linestyle="--", linewidth=1)
        axes.scatter(numbers.x_train[:, 0], numbers.y_train, s=10, color="black")
        (line,) = axes.plot(grid, mean)
        band = mean - 2 * deviation, mean + 2 * deviation
        axes.fill_between(grid, *band, color=line.get_color(), alpha=0.25)
        axes.axvspan(-4, 4, color="gray", alpha=0.08)
        how = {"title": way, "ylim": (-250, 250)}
        axes.set(xlabel="x; points come from the gray part", **how)
    return _pictures.save(drawn, context, "uncertainty_cubic")
