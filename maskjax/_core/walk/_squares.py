"""Sums of squares of what a value meets, and where they belong in a parameter."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskjax._core import dtypes
from maskjax._core.trees import Array
from maskjax._core.walk._trails import STRANGE, Label
from maskjax._core.walk._values import Value, Walk


def summed(array: Any, kept: Sequence[int], weights: Array | None = None) -> Array:
    """The sum over all axes but those kept, which come in the order given."""
    array = jnp.abs(jnp.asarray(array))  # complex numbers too
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    wide = dtypes.at_least_float32(array.dtype if floating else jnp.float32)
    squares = jnp.square(array.astype(wide))
    if weights is not None:
        rows = weights.astype(wide)
        rows = rows.reshape(*rows.shape, *[1] * (array.ndim - rows.ndim))
        # Rows of weight 0 may be inf or nan.
        squares = jnp.where(rows > 0, rows * squares, 0)
    rest = tuple(i for i in range(array.ndim) if i not in kept)
    return jnp.sum(squares, axis=rest).transpose(np.argsort(np.argsort(kept)))


def placed(array: Array, places: Sequence[int], rank: int) -> Array:
    """The array with its axes at those places, and length 1 along all others."""
    shape = [1] * rank
    for length, place in zip(array.shape, places, strict=True):
        shape[place] = length
    return array.transpose(np.argsort(places)).reshape(shape)


def onto(met: Array, axes: Sequence[Label], shape: Sequence[int]) -> Array:
    """Sums for the entries of a parameter, from sums for the entries of a value.

    Args:
        met: With the value's axes, or length 1 along those that share a sum, or the
            number of groups of neighbors that do.
        axes: The value's labels, exact.
        shape: The parameter's.

    Returns:
        Of the parameter's rank, with length 1 along axes that share a sum.
    """
    factors, lengths = [], []
    for axis, label in enumerate(axes):
        sizes = [factor.size for factor in label]
        own: list[int] = []
        for size in sizes:
            own.append(size if math.prod(own) < met.shape[axis] else 1)
        if math.prod(own) != met.shape[axis]:  # groups are parts of a factor
            if met.shape[axis]:
                times = math.prod(sizes) // met.shape[axis]
                met = jnp.repeat(met, times, axis=axis)
            own = sizes
        factors += label
        lengths += own
    met = met.reshape(lengths)
    back = [i for i, factor in enumerate(factors) if factor.stride < 0]
    met = jnp.flip(met, back) if back else met
    # Strange axes are entries that occur more than once.
    lone = tuple(i for i, factor in enumerate(factors) if factor.axis == STRANGE)
    met = jnp.sum(met, axis=lone)
    factors = [factor for factor in factors if factor.axis != STRANGE]
    order = sorted(
        range(len(factors)), key=lambda i: (factors[i].axis, -abs(factors[i].stride))
    )
    met = met.transpose(order)
    factors = [factors[i] for i in order]
    out = [1] * len(shape)
    for factor, length in zip(factors, met.shape, strict=True):
        if length != 1:
            out[factor.axis] = shape[factor.axis]
    sizes = [f.size if out[f.axis] != 1 else 1 for f in factors]
    return jnp.broadcast_to(met, sizes).reshape(out)


def add(value: Value, met: Array, walk: Walk) -> None:
    """Add sums of squares to those of each parameter that a value is made of."""
    found = walk.found
    for leaf, trail in value.leaves.items():
        if trail.lost or trail.axes is None:
            found.obstacles[leaf] = f"loses its axes in {trail.lost}"
            continue
        squares = onto(met, trail.axes, walk.shapes[leaf])
        known = found.squares.get(leaf)
        if known is not None:
            squares = known + squares.astype(known.dtype)
        found.squares[leaf] = squares
