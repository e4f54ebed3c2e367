"""What tables and pictures share."""

import functools
import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import jax
from jax.core import Tracer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEW = 10  # lines, each of its own color, with a legend in the picture
_HIGH = 40  # labels, one below the other
P = ParamSpec("P")
R = TypeVar("R")


def require(package: str, fn: str) -> None:
    """Raise, with the command that installs it, if a package is missing."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"`{fn}` draws with {package}. Install it with `pip install "
            "'maskjax[plot]'`."
        ) from error


def figure(
    fn: str, title: str, *, width: float = 6.0, height: float = 4.0
) -> "tuple[Figure, Axes]":
    """A figure that belongs to no pyplot window, and its axes. Sizes are in inches."""
    require("matplotlib", fn)
    from maskjax.report._figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = drawn.add_subplot()
    axes.set_title(title, fontsize="medium")
    return drawn, axes


def width_of(texts: Iterable[str], *, points: float = 10.0) -> float:
    """About how wide the longest of some texts is, in inches."""
    return 0.6 * points / 72 * max(map(len, texts), default=0)


def in_no_trace(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which also under `jit` computes with the values that it has."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.ensure_compile_time_eval():
            return function(*args, **kwargs)

    return run


def concrete(tree: Any, *, fn: str, what: str) -> None:
    """Raise if a leaf is traced."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(f"`{fn}` needs {what}, got a traced one.")


def labeled(lines: Any) -> dict[str, Any]:
    """Lines by their labels; a single line has the label ""."""
    named = lines if isinstance(lines, Mapping) else {"": lines}
    return {str(label): line for label, line in named.items()}


def colors(axes: "Axes", size: int) -> None:
    """Another color for each of many lines, in their order."""
    if size > _FEW:
        from matplotlib import colormaps

        viridis = colormaps["viridis"]
        axes.set_prop_cycle(color=[viridis(i / size) for i in range(size)])


def legend(drawn: "Figure", axes: "Axes", labels: Iterable[str]) -> None:
    """A legend, if there are labels; one of many is beside the axes."""
    named = [label for label in labels if label]
    if not named:
        return
    if len(named) <= _FEW:
        axes.legend()
        return
    columns, points = math.ceil(len(named) / _HIGH), 7.0
    lines = math.ceil(len(named) / columns)
    width, height = drawn.get_size_inches()
    width += columns * (0.5 + width_of(named, points=points))
    height = max(height, 0.17 * lines + 0.5)
    drawn.set_size_inches(width, height)
    drawn.legend(loc="outside right upper", ncols=columns, fontsize=points)
