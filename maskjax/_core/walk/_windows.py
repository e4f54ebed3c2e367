"""The data that a convolution's kernel meets, place by place of its window."""

import itertools
from typing import Any

import jax.numpy as jnp
from jax import lax

from maskjax._core import placement
from maskjax._core.trees import Array


def shifted(equation: Any, image: Array, *, batch: bool = True) -> Array:
    """What each place of the window meets.

    Args:
        equation: A convolution.
        image: [*batch, *positions, features].
        batch: Whether the image has its axis of the batch.

    Returns:
        [*batch, *positions of the output, *window, features].
    """
    params = equation.params
    spec = params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    out = equation.outvars[0].aval.shape
    window = [kernel[axis] for axis in spec.rhs_spec[2:]]
    sizes = [out[axis] for axis in spec.out_spec[2:]]
    dilations = params["lhs_dilation"]
    rest = [(0, 0, 0)]
    pads = [
        (low, high, step - 1)
        for (low, high), step in zip(params["padding"], dilations, strict=True)
    ]
    zero = jnp.zeros((), image.dtype)
    image = lax.pad(image, zero, [*rest * batch, *pads, *rest])
    places = []
    for place in itertools.product(*map(range, window)):
        starts = [
            i * step for i, step in zip(place, params["rhs_dilation"], strict=True)
        ]
        ends = [
            start + (n - 1) * stride + 1 if n else start
            for start, n, stride in zip(
                starts, sizes, params["window_strides"], strict=True
            )
        ]
        lead = [0] * batch
        places.append(
            lax.slice(
                image,
                [*lead, *starts, 0],
                [*image.shape[: len(lead)], *ends, image.shape[-1]],
                [*[1] * batch, *params["window_strides"], 1],
            )
        )
    stacked = jnp.stack(places, axis=-2)
    lengths = [(n,) for n in stacked.shape]
    return placement.split(stacked, *lengths[:-2], tuple(window), lengths[-1])
