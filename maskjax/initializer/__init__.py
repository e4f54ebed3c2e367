"""Weights that stay random and scores to train: draws that jax does not have.

An initializer is a function `(key, shape, dtype) -> array`, as in
`jax.nn.initializers`, so those here go where Flax takes a `kernel_init`, and jax's go
where `draw` is an argument here. Kaiming normal scaled for a density d is
`jax.nn.initializers.variance_scaling(2 / d, "fan_in", "normal")`.

    >>> draw = initializer.signed_constant()
    >>> jnp.unique(draw(jax.random.key(0), (8, 3)))
    Array([-0.5,  0.5], dtype=float32)

An initializer reads fans from the shape: inputs are its last axis but one, outputs its
last, all others are a window. Few parameters lie like that. So functions that take
`draw` and a tree hand it (window..., inputs, outputs), with all input axes as one and
all output axes as one, and put what it draws into the parameter's layout. Each index of
a stack is drawn by itself. Rows of an embedding are looked up, not added, so each row
is drawn by itself, with shape (1, outputs): the fan-in is 1. `where` says what axes
mean:

    >>> linear = {"weight": jnp.zeros((3, 8))}  # (out, in), as in Equinox
    >>> told = where.matching("weight", axes="outputs inputs")
    >>> new = initializer.redraw(draw, linear, where=told, key=jax.random.key(0))
    >>> jnp.unique(new["weight"])
    Array([-0.5,  0.5], dtype=float32)

Draws without fans, such as `jax.nn.initializers.normal(0.02)`, need no axes: wrap them
in `elementwise`. `uniform` and `signed_log_uniform` are.
"""

from maskjax.initializer._draws import (
    Initializer,
    elementwise,
    signed_constant,
    signed_log_uniform,
    uniform,
)
from maskjax.initializer._parameters import (
    redraw,
    scores,
    scores_of,
    signed_deviation,
)

__all__ = [
    "Initializer",
    "elementwise",
    "redraw",
    "scores",
    "scores_of",
    "signed_constant",
    "signed_deviation",
    "signed_log_uniform",
    "uniform",
]
