"""Sums for the entries of a kernel in one order: stack, groups of outputs, inputs."""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from maskjax._core import placement
from maskjax._core.axes import Axes
from maskjax._core.trees import Array
from maskjax._core.walk import _parts
from maskjax._core.walk._parts import Part, Sums
from maskjax._core.walk._trails import Factor

_OUTPUTS = "meets different data along its outputs"


def sums(parts: Sums, axes: Axes, shape: Sequence[int], *, gram: bool) -> Array | str:
    """[*stack, groups, d] or [*stack, groups, d, d], or why there are none.

    Args:
        parts: Of a kernel.
        axes: The roles of the kernel's axes.
        shape: The kernel's.
        gram: Whether the last two axes of parts are those of a Gram matrix.
    """
    parts = _parts.joined(parts, shape)
    for axis in axes.stack:
        met = {i for part in parts for i in part.places(axis).tolist()}
        missing = sorted({*range(shape[axis])} - met)
        if missing:
            return f"meets no data at index {missing[0]} of its axis {axis}"
    done = [_one(part, array, axes, shape, gram=gram) for part, array in parts.items()]
    arrays = [each for each in done if not isinstance(each, str)]
    if len(arrays) != len(done):
        return next(each for each in done if isinstance(each, str))
    place = len(axes.stack)
    counts = [array.shape[place] for array in arrays]
    most = max(counts)
    if any(most % count for count in counts):
        return "is used in groups of outputs that are no parts of each other"
    total = None
    for array, count in zip(arrays, counts, strict=True):
        if count != most:
            array = placement.repeated(array, place, most // count)
        total = array if total is None else total + array.astype(total.dtype)
    return total  # type: ignore[return-value]


def _one(
    part: Part, array: Array, axes: Axes, shape: Sequence[int], *, gram: bool
) -> Array | str:
    """As `sums`, of one part."""
    if not all(part.covers(axis, shape[axis]) for axis in axes.outputs):
        return _OUTPUTS
    outputs = [i for i, f in enumerate(part.factors) if f.axis in axes.outputs]
    own = [part.lengths[i] != 1 for i in outputs if part.factors[i].size != 1]
    if sorted(own, reverse=True) != own:  # no groups one after another
        return _OUTPUTS
    others = [i for i in range(len(part.factors)) if i not in outputs]
    rest = range(len(part.factors), array.ndim)
    array = array.transpose([*others, *outputs, *rest])
    ones = [1] * len(others), [1] * len(rest)
    array = placement.merge(array, *ones[0], len(outputs), *ones[1])
    left = [(part.factors[i], part.lengths[i]) for i in others]
    left += [(Factor(axis, shape[axis], 1), 1) for axis in axes.outputs]
    left.sort(key=lambda pair: pair[0].axis)
    array = array.reshape(*(n for _, n in left), *array.shape[len(others) :])
    factors = tuple(factor for factor, _ in left)
    array = _parts.onto(Part(factors, part.at, array.shape), array, shape)
    return _in_order(array, axes, shape, gram=gram)


def _in_order(array: Array, axes: Axes, shape: Sequence[int], *, gram: bool) -> Array:
    """The axes of sums by role.

    Args:
        array: [*kernel, groups], and [d, d] with `gram`; axes of the kernel may be 1.
        axes: The roles of the kernel's axes.
        shape: The kernel's.
        gram: Whether there are Gram matrices.
    """
    rank, inputs = len(shape), sorted((*axes.window, *axes.inputs))
    others = range(rank + 1, array.ndim)
    array = array.transpose([*axes.stack, *axes.outputs, rank, *inputs, *others])
    stack, ones = [shape[axis] for axis in axes.stack], [1] * len(axes.outputs)
    lead = [*stack, *ones, array.shape[len(stack) + len(ones)]]
    if gram:
        d = [*array.shape[-2:]]
        full = [*lead, *[1] * len(inputs), *d]
    else:
        lengths = [shape[axis] for axis in inputs]
        d = [math.prod(lengths)]
        full = [*lead, *lengths]
    return jnp.broadcast_to(array, full).reshape(*stack, lead[-1], *d)
