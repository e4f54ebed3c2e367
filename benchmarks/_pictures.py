"""Shared pieces of pictures. Figures without pyplot need no display and no closing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks._registry import Context
from benchmarks._rows import half

Lines = Mapping[str, Any]  # values by label


def page(
    title: str | None = None,
    columns: int = 1,
    *,
    size: tuple[float, float] | None = None,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with so many plots beside one another, [columns], each with a grid."""
    drawn = Figure(figsize=size or (3.5 + 4 * columns, 4.8), layout="constrained")
    plots = drawn.subplots(1, columns, squeeze=False, sharey=sharey)[0]
    for axes in plots:
        axes.grid(visible=True, alpha=0.3)
        axes.set_axisbelow(True)
    if title:
        plots[0].set_title(title) if columns == 1 else drawn.suptitle(title)
    return drawn, list(plots)


def save(drawn: Figure, context: Context, name: str) -> str:
    """Write `name`.png into the output folder; the file's name."""
    path = context.out / f"{name}.png"
    drawn.savefig(path, dpi=150, format="png")
    return path.name


def plot(
    context: Context,
    name: str,
    title: str,
    x: Sequence[float] | Mapping[str, Sequence[float]],
    found: Lines,
    *,
    size: tuple[float, float] | None = None,
    **how: Any,
) -> str:
    """A picture `name`.png of one plot: a title, and what `curves` draws."""
    drawn, (axes,) = page(title, size=size)
    curves(axes, x, found, **how)
    return save(drawn, context, name)


def curves(
    axes: Axes,
    x: Sequence[float] | Mapping[str, Sequence[float]],
    found: Lines,
    *,
    levels: Lines | None = None,
    density: Sequence[float] | None = None,
    log: bool = True,
    seeds: int | None = None,
    percent: bool = False,
    legend: str | None = "best",
    **settings: Any,
) -> None:
    """A band for each contestant, and what belongs to such a plot.

    Args:
        axes: Where to draw.
        x: [X], or one for each contestant.
        found: Values [X, K] by label: the mean is a line, the range over K a band.
        levels: Values by label; their means are horizontal dotted lines, in black.
        density: Ticks; the horizontal axis is the density then.
        log: Whether densities are on a log axis.
        seeds: How many they are; the vertical axis is test accuracy then.
        percent: Whether the vertical axis shows percentages, as it does for accuracy.
        legend: Where it goes; `None` for none.
        settings: For `axes.set`, as `xlabel`.
    """
    for label, value in (levels or {}).items():
        axes.axhline(np.mean(value), color="black", linestyle=":", label=label)
    for label, values in found.items():
        band(axes, x[label] if isinstance(x, Mapping) else x, values, label)
    if density is not None:
        density_axis(axes, density, log=log)
    if percent or seeds is not None:
        accuracy_axis(axes, seeds)
    axes.set(**settings)
    if legend:
        axes.legend(loc=legend)


def band(axes: Axes, x: Sequence[float], values: Any, label: str) -> None:
    """The mean of values [X, K] as a line, from lowest to highest as a band."""
    values, marker = np.asarray(values), "o" if len(x) < 20 else None
    (line,) = axes.plot(x, values.mean(1), marker=marker, markersize=4, label=label)
    low, high = values.min(1), values.max(1)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def errorbars(
    axes: Axes,
    x: Sequence[float],
    found: Lines,
    *,
    styles: Mapping[str, Mapping[str, Any]] | None = None,
    apart: float = 1.0,
) -> None:
    """The means of values [X, K] by label, with their 95 % intervals over K.

    `styles` are keywords of `axes.errorbar` by label. Each line is `apart` times
    further right than the one before, so that bars do not hide one another.
    """
    for i, (label, values) in enumerate(found.items()):
        at = np.array(x) * apart ** (i - (len(found) - 1) / 2)
        how = {"marker": "o", "markersize": 3, "label": label}
        how |= (styles or {}).get(label, {})
        axes.errorbar(at, values.mean(-1), half(values), **how)


def accuracy_axis(axes: Axes, seeds: int | None = None) -> None:
    """The vertical axis as percentages: test accuracy, of so many seeds."""
    axes.yaxis.set_major_formatter(_percent)
    if seeds is not None:
        axes.set_ylabel(f"test accuracy: mean and range of {seeds} seeds")


def density_axis(axes: Axes, densities: Sequence[float], *, log: bool = True) -> None:
    """The horizontal axis: what fraction of the weights is kept."""
    axes.set_xlabel("density (fraction of weights kept)")
    if log:
        axes.set_xscale("log")
    axes.set_xticks(densities)
    axes.xaxis.set_major_formatter(_percent)
    axes.xaxis.set_minor_locator(ticker.NullLocator())


@ticker.FuncFormatter
def _percent(value: float, position: int) -> str:
    del position
    return f"{100 * value:.4g}%"
