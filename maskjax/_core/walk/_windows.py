"""The data that a convolution's kernel meets, place by place of its window."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax._core import placement
from maskjax._core.trees import Array

_MOST = 2**28  # bytes of an image, place by place, that are there at a time


def padded(equation: Any, image: Array, *, batch: bool = True) -> Array:
    """The image as a window slides over it.

    Args:
        equation: A convolution.
        image: [*batch, *positions, features].
        batch: Whether the image has its axis of the batch.
    """
    dilations, padding = equation.params["lhs_dilation"], equation.params["padding"]
    pads = [
        (low, high, step - 1)
        for (low, high), step in zip(padding, dilations, strict=True)
    ]
    lead = [(0, 0, 0)] * batch
    return lax.pad(image, jnp.zeros((), image.dtype), [*lead, *pads, (0, 0, 0)])


def shifted(
    equation: Any, image: Array, *, batch: bool = True, rows: int | None = None
) -> Array:
    """What each place of the window meets.

    Args:
        equation: A convolution.
        image: As `padded` returns it.
        batch: Whether the image has its axis of the batch.
        rows: How many positions of the output there are along their first axis, if the
            image is a part of it.

    Returns:
        [*batch, *positions of the output, *window, features].
    """
    params = equation.params
    spec, strides = params["dimension_numbers"], params["window_strides"]
    kernel = equation.invars[1].aval.shape
    out = equation.outvars[0].aval.shape
    window = [kernel[axis] for axis in spec.rhs_spec[2:]]
    sizes = [out[axis] for axis in spec.out_spec[2:]]
    sizes[0] = sizes[0] if rows is None else rows
    lead = [0] * batch
    places = []
    for place in itertools.product(*map(range, window)):
        starts = [
            i * step for i, step in zip(place, params["rhs_dilation"], strict=True)
        ]
        ends = [
            start + (n - 1) * stride + 1 if n else start
            for start, n, stride in zip(starts, sizes, strides, strict=True)
        ]
        places.append(
            lax.slice(
                image,
                [*lead, *starts, 0],
                [*image.shape[: len(lead)], *ends, image.shape[-1]],
                [*[1] * batch, *strides, 1],
            )
        )
    stacked = jnp.stack(places, axis=-2)
    lengths = [(n,) for n in stacked.shape]
    return placement.split(stacked, *lengths[:-2], tuple(window), lengths[-1])


def total(equation: Any, image: Array, reduce: Callable[[Array], Array]) -> Array:
    """The sum, over positions of the output, of something of what the window meets.

    What each place of a window meets is an image, and all of them at once may not fit
    in memory. Then positions are gone through some rows at a time.

    Args:
        equation: A convolution.
        image: As `padded` returns it.
        reduce: From what `shifted` returns for some positions to their sum.
    """
    spec, params = equation.params["dimension_numbers"], equation.params
    kernel = equation.invars[1].aval.shape
    rows = equation.outvars[0].aval.shape[spec.out_spec[2]]
    whole = jax.eval_shape(lambda x: shifted(equation, x), image)
    parts = math.ceil(whole.size * whole.dtype.itemsize / _MOST)
    parts = next((n for n in range(max(parts, 1), rows + 1) if rows % n == 0), rows)
    if parts < 2:
        return reduce(shifted(equation, image))
    size = rows // parts
    stride, step = params["window_strides"][0], params["rhs_dilation"][0]
    span = (size - 1) * stride + (kernel[spec.rhs_spec[2]] - 1) * step + 1

    def of(i: Array) -> Array:
        part = lax.dynamic_slice_in_dim(image, i * size * stride, span, axis=1)
        return reduce(shifted(equation, part, rows=size))

    def add(known: Array, i: Array) -> tuple[Array, None]:
        return known + of(i), None

    zero = jnp.zeros_like(of(jnp.int32(0)))  # with the type of a sum
    return lax.scan(add, zero, jnp.arange(parts, dtype=jnp.int32))[0]
