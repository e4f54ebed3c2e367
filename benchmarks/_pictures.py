"""Shared pieces of pictures. Figures without pyplot need no display and no closing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from benchmarks._registry import Context
from benchmarks._rows import half

Lines = Mapping[str, Any]  # values by label


def page(
    title: str | None = None,
    columns: int = 1,
    *,
    size: tuple[float, float] | None = None,
    **shared: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with so many plots beside one another, [columns], each with a grid."""
    drawn = Figure(figsize=size or (3.5 + 4 * columns, 4.8), layout="constrained")
    plots = drawn.subplots(1, columns, squeeze=False, **shared)[0]
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
    **how: Any,
) -> str:
    """A picture `name`.png of one plot: a title, and what `curves` draws."""
    drawn, (axes,) = page(title)
    curves(axes, x, found, **how)
    return save(drawn, context, name)


def curves(
    axes: Axes,
    x: Sequence[float] | Mapping[str, Sequence[float]],
    found: Lines,
    *,
    levels: Lines | None = None,
    density: Sequence[float] | None = None,
    seeds: int | None = None,
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
        seeds: How many they are; the vertical axis is test accuracy then.
        legend: Where it goes, or "beside" or "below" the axes; `None` for none.
        settings: For `axes.set`, as `xlabel`.
    """
    for label, value in (levels or {}).items():
        axes.axhline(np.mean(value), color="black", linestyle=":", label=label)
    for label, values in found.items():
        at, values = x[label] if isinstance(x, Mapping) else x, np.asarray(values)
        how = {"marker": "o" if len(at) < 20 else None, "markersize": 4}
        (line,) = axes.plot(at, values.mean(1), label=label, **how)
        band = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
        axes.fill_between(at, values.min(1), values.max(1), **band)
    if density is None:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    else:
        axes.set(xlabel="density (fraction of weights kept)", xscale="log")
        axes.set_xticks(density)
        axes.xaxis.set_major_formatter(PERCENT)
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    if seeds is not None:
        axes.set_ylabel(f"test accuracy: mean and range of {seeds} seeds")
    axes.set(**settings)
    if seeds is not None:  # after a scale, which has formatters of its own
        axes.yaxis.set_major_formatter(PERCENT)
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    if legend == "beside":
        beside(axes)
    elif legend == "below":
        below(axes)
    elif legend:
        axes.legend(loc=legend)


def beside(axes: Axes) -> None:
    """A legend to the right of the axes, where it hides nothing."""
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def below(axes: Axes) -> None:
    """A legend below the axes, where there are several plots."""
    columns = 1 if len(axes.get_legend_handles_labels()[1]) < 4 else 2
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=columns)


def plain(axis: Axis, ticks: Sequence[float]) -> None:
    """Numbers as they are written on a logarithmic axis, not powers of ten."""
    axis.set_major_locator(ticker.FixedLocator(ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def errorbars(
    axes: Axes, x: Sequence[float], found: Lines, *, apart: float = 1.0, first: int = 0
) -> None:
    """The means of values [X, K] by label, with their 95 % intervals over K.

    Each line is `apart` times further right than the one before, so that bars do not
    hide one another. Colors are counted from `first`.
    """
    for i, (label, values) in enumerate(found.items()):
        at = np.array(x) * apart ** (i - (len(found) - 1) / 2)
        how = {"marker": "o", "markersize": 3, "color": f"C{first + i}"}
        axes.errorbar(at, values.mean(-1), half(values), label=label, **how)


@ticker.FuncFormatter
def PERCENT(value: float, position: int) -> str:
    del position
    return f"{100 * value:.4g}%"
