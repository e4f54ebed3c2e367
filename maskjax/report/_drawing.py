"""What pictures share: a figure that needs no window, and values to draw."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from jax.core import Tracer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEEDS = "`{}` draws with {}. Install it with `pip install 'maskjax[plot]'`."


def figure(fn: str, *, height: float = 4.0) -> "tuple[Figure, Axes]":
    """A figure of no pyplot window, and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(NEEDS.format(fn, "matplotlib")) from error
    drawn = Figure(figsize=(6.0, height), layout="constrained")
    return drawn, drawn.add_subplot()


def concrete(tree: Any, *, fn: str, what: str) -> None:
    """Nothing is traced."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(f"`{fn}` needs {what}, got a traced one.")


def labeled(lines: Any) -> dict[str, Any]:
    """Lines by their labels; a single one has none."""
    named = lines if isinstance(lines, Mapping) else {"": lines}
    return {str(label): line for label, line in named.items()}


def legend(axes: "Axes", labels: Mapping[str, Any]) -> None:
    """Names the lines, if they have names."""
    if any(labels):
        axes.legend()
