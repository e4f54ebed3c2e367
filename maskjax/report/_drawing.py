"""What tables and pictures share."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import jax
from jax.core import Tracer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def figure(fn: str, *, height: float = 4.0) -> "tuple[Figure, Axes]":
    """A figure that belongs to no pyplot window, and its axes."""
    require("matplotlib", fn)
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.0, height), layout="constrained")
    return drawn, drawn.add_subplot()


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


def legend(axes: "Axes", labels: Mapping[str, Any]) -> None:
    """A legend, if there are labels."""
    if any(labels):
        axes.legend()
