"""Shared pieces of pictures. Figures without pyplot need no display and no closing."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase


def figure(title: str) -> tuple[Figure, Axes]:
    """A figure with one plot."""
    drawn = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = drawn.add_subplot()
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    return drawn, axes


def save(drawn: Figure, path: pathlib.Path) -> str:
    """Write a PNG; its name."""
    drawn.savefig(path, dpi=150, format="png")
    return path.name


def band(axes: Axes, x: Sequence[float], values: np.ndarray, label: str) -> None:
    """The mean of values [X, K] as a line, from lowest to highest as a band."""
    marker = "o" if len(x) < 20 else None
    (line,) = axes.plot(x, values.mean(1), marker=marker, markersize=4, label=label)
    low, high = values.min(1), values.max(1)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def accuracy_axis(axes: Axes, seeds: int) -> None:
    """The vertical axis, as percentages."""
    axes.yaxis.set_major_formatter(_percent)
    axes.set_ylabel(f"test accuracy: mean and range of {seeds} seeds")


def density_axis(axes: Axes, densities: Sequence[float], *, log: bool = True) -> None:
    """The horizontal axis: what fraction of the weights is kept."""
    axes.set_xlabel("density (fraction of weights kept)")
    if log:
        axes.set_xscale("log")
    axes.set_xticks(densities)
    axes.xaxis.set_major_formatter(_percent)
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def tiles(drawn: FigureBase, images: np.ndarray, columns: int, title: str) -> None:
    """Binary images [N, H, W] in a grid, dark where True."""
    drawn.suptitle(title, fontsize="medium")
    for axes, image in zip(
        drawn.subplots(-(-len(images) // columns), columns).flat, images, strict=True
    ):
        axes.imshow(image, cmap="Blues", vmin=0, vmax=1.2, interpolation="nearest")
        axes.set(xticks=[], yticks=[])


def heat(drawn: FigureBase, image: np.ndarray, title: str, label: str) -> None:
    """One image [H, W] in colors, with their scale."""
    drawn.suptitle(title, fontsize="medium")
    axes = drawn.add_subplot()
    shown = axes.imshow(image, cmap="viridis", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    drawn.colorbar(shown, ax=axes, shrink=0.8, label=label)


@ticker.FuncFormatter
def _percent(value: float, position: int) -> str:
    del position
    return f"{100 * value:.4g}%"
