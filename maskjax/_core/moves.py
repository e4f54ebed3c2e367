"""How primitives move the axes of a value.

A rule takes the primitive's parameters, the shapes before and after, and the axes
before. It returns the axes after, or None where they are lost.
"""

from collections.abc import Callable
from typing import Any

# For each axis of a value, the parameter's axis that runs along it, or None; or the
# name of the primitive after which the axes are unknown.
Axes = tuple[int | None, ...] | str


def moved(equation: Any, shape: tuple[int, ...], axes: Axes) -> Axes:
    """Where an equation puts the axes of an operand of that shape."""
    name, out = equation.primitive.name, equation.outvars[0].aval.shape
    if isinstance(axes, str):
        return axes
    if name not in MOVES:
        return name
    moved = MOVES[name](equation.params, shape, out, axes)
    return name if moved is None else moved


def _elementwise(_: Any, shape: Any, out: Any, axes: Any) -> Any:
    return axes if shape == out else (None,) * len(out)  # a scalar meets every entry


def _transpose(params: Any, shape: Any, out: Any, axes: Any) -> Any:
    return tuple(axes[i] for i in params["permutation"])


def _squeeze(params: Any, shape: Any, out: Any, axes: Any) -> Any:
    return tuple(a for i, a in enumerate(axes) if i not in params["dimensions"])


def _broadcast(params: Any, shape: Any, out: Any, axes: Any) -> Any:
    moved: list[int | None] = [None] * len(out)
    for i, place in enumerate(params["broadcast_dimensions"]):
        moved[place] = axes[i] if shape[i] == out[place] else None
    return tuple(moved)


def _reshape(_: Any, shape: Any, out: Any, axes: Any) -> Any:
    """Axes of length 1 may come and go; any other reshape loses the axes."""
    long = [i for i, length in enumerate(shape) if length != 1]
    places = [i for i, length in enumerate(out) if length != 1]
    if [shape[i] for i in long] != [out[i] for i in places]:
        return None
    moved: list[int | None] = [None] * len(out)
    for i, place in zip(long, places, strict=True):
        moved[place] = axes[i]
    return tuple(moved)


MOVES: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
} | dict.fromkeys(
    "abs add clamp convert_element_type copy copy_p cos div erf exp expm1 integer_pow "
    "log log1p logistic max min mul neg pow reduce_precision round rsqrt select_n "
    "sharding_constraint sign sin sqrt square stop_gradient sub tanh".split(),
    _elementwise,
)
