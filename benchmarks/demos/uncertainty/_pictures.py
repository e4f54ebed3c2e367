"""Its pictures."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import _pictures, _shift
from benchmarks._registry import Context
from benchmarks.demos.uncertainty._networks import ANGLES, SEEDS, TURNED, Problem, Told
from maskjax import metrics, report


def draw_reliability(context: Context, problem: Problem, told: dict[str, Told]) -> str:
    """Of all seeds together."""
    y = jnp.tile(problem.test[1], SEEDS)
    pooled = {
        way: each.test.mean(0).reshape(-1, each.test.shape[-1])
        for way, each in told.items()
    }
    bins = {way: metrics.reliability(probs, y) for way, probs in pooled.items()}
    drawn = report.plot_reliability(bins)
    drawn.axes[0].set_title(f"images as they were learned, {SEEDS} seeds together")
    return _pictures.save(drawn, context.out / "uncertainty_reliability.png")


def draw_risk(context: Context, problem: Problem, told: dict[str, Told]) -> str:
    """Of all seeds together; unknown images can't be right."""
    curves = {}
    for way, each in told.items():
        test, unknown = each.test.mean(0), each.unknown.mean(0)
        wrong = test.argmax(-1) != problem.test[1]
        gone = jnp.concatenate([wrong, jnp.ones(unknown.shape[:2], bool)], axis=1)
        sure = jnp.concatenate([test, unknown], axis=1).max(-1)
        curves[way] = metrics.risk_coverage(sure.ravel(), gone.ravel())
    drawn = report.plot_risk_coverage(curves)
    drawn.axes[0].set_title("of what is answered, how much is wrong or unknown")
    return _pictures.save(drawn, context.out / "uncertainty_risk.png")


def draw_turned(context: Context, found: dict[str, Any]) -> str:
    drawn = Figure(figsize=(12, 4.2), layout="constrained")
    names = ("turned_accuracy", *TURNED)
    for axes, name in zip(drawn.subplots(1, 3), names, strict=True):
        for way, each in found.items():
            _pictures.band(axes, ANGLES, each[name], way)
        title = name.removeprefix("turned_")
        axes.set_title(title.upper() if title in ("nll", "ece") else title)
        axes.set(xlabel="degrees turned", xticks=ANGLES)
        axes.grid(visible=True, alpha=0.3)
    drawn.axes[1].legend(fontsize="small")
    drawn.suptitle(f"mean and range of {SEEDS} seeds")
    return _pictures.save(drawn, context.out / "uncertainty_turned.png")


def draw_entropies(context: Context, problem: Problem, told: dict[str, Told]) -> str:
    drawn = Figure(figsize=(3.2 * len(told), 3.2), layout="constrained")
    bins = np.linspace(0, np.log(problem.widths[-1]), 31)
    panels = drawn.subplots(1, len(told), sharey=True)
    for axes, (way, each) in zip(panels, told.items(), strict=True):
        for images, label in ((each.test, "learned"), (each.unknown, "unknown")):
            entropy = np.asarray(metrics.entropy(images.mean(0))).ravel()
            axes.hist(entropy, bins, density=True, alpha=0.6, label=label)
        axes.set_title(way, fontsize="medium")
        axes.set(xlabel="entropy (nats)", yscale="log")
    panels[0].legend()
    drawn.suptitle(f"unknown: {problem.what}")
    return _pictures.save(drawn, context.out / "uncertainty_entropy.png")


def draw_cubic(context: Context, curve: dict[str, Any], numbers: _shift.Numbers) -> str:
    drawn = Figure(figsize=(3.4 * len(curve), 3.6), layout="constrained")
    grid = numbers.x_test[:, 0]
    panels = drawn.subplots(1, len(curve), sharey=True)
    for axes, (way, (mean, deviation)) in zip(panels, curve.items(), strict=True):
        axes.plot(grid, numbers.y_test, color="black", linestyle="--", linewidth=1)
        axes.scatter(numbers.x_train[:, 0], numbers.y_train, s=10, color="black")
        (line,) = axes.plot(grid, mean)
        band = mean - 2 * deviation, mean + 2 * deviation
        axes.fill_between(grid, *band, color=line.get_color(), alpha=0.25)
        axes.axvspan(-4, 4, color="gray", alpha=0.08)
        axes.set_title(way)
        axes.set(ylim=(-250, 250), xlabel="x; points come from the gray part")
    drawn.suptitle("x**3: mean and 2 standard deviations")
    return _pictures.save(drawn, context.out / "uncertainty_cubic.png")
