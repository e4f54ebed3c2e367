"""Sums for the entries of a kernel in one order: stack, groups of outputs, inputs."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from maskjax._core import placement
from maskjax._core.axes import Axes
from maskjax._core.trees import Array
from maskjax._core.walk import _sums
from maskjax._core.walk._trails import Factor


def sums(
    parts: dict[Any, Array], axes: Axes, shape: Sequence[int], *, gram: bool
) -> Array | str:
    """[*stack, groups, d] or [*stack, groups, d, d], or why there are none.

    Args:
        parts: As in `Found.sums`.
        axes: The roles of the kernel's axes.
        shape: The kernel's.
        gram: Whether the last two axes of parts are those of a Gram matrix.
    """
    done = [
        _one(factors, array, axes, shape, gram=gram)
        for (factors, _), array in parts.items()
    ]
    total = None
    for each in done:
        if isinstance(each, str):
            return each
        if total is None:
            total = each
            continue
        place = len(axes.stack)
        counts = total.shape[place], each.shape[place]
        if counts[0] != counts[1]:
            if max(counts) % min(counts):
                return "its uses have groups of outputs of different sizes"
            total, each = (
                placement.repeated(x, place, max(counts) // n)
                for x, n in zip((total, each), counts, strict=True)
            )
        total = total + each.astype(total.dtype)
    return total


def _one(
    factors: Sequence[Factor],
    array: Array,
    axes: Axes,
    shape: Sequence[int],
    *,
    gram: bool,
) -> Array | str:
    """As `sums`, of one part."""
    outputs = [i for i, factor in enumerate(factors) if factor.axis in axes.outputs]
    own = [array.shape[i] != 1 for i in outputs]
    if sorted(own, reverse=True) != own:
        return "meets different data along its outputs"
    groups = math.prod(array.shape[i] for i in outputs)
    others = [i for i in range(len(factors)) if i not in outputs]
    rest = range(len(factors), array.ndim)
    array = array.transpose([*others, *outputs, *rest])
    counts = [1] * len(others), [1] * len(rest)
    array = placement.merge(array, *counts[0], len(outputs), *counts[1])
    array = _sums.onto(tuple(factors[i] for i in others), array, shape)
    inputs = sorted((*axes.window, *axes.inputs))
    rank = len(shape)
    order = [*axes.stack, *axes.outputs, rank, *inputs, *range(rank + 1, array.ndim)]
    array = array.transpose(order)
    whole = [shape[axis] for axis in axes.stack], [shape[axis] for axis in inputs]
    if not gram:
        full = [*whole[0], *[1] * len(axes.outputs), groups, *whole[1]]
        array = jnp.broadcast_to(array, full)
        return array.reshape(*whole[0], groups, math.prod(whole[1]))
    d = array.shape[-1]
    full = [*whole[0], *array.shape[len(whole[0]) :]]
    return jnp.broadcast_to(array, full).reshape(*whole[0], groups, d, d)
