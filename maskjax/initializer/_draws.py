"""Initializers: functions `(key, shape, dtype) -> array`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskjax._core import checks
from maskjax._core.trees import Array

Initializer = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """An initializer that draws each entry by itself, whatever the shape."""

    draw: Initializer

    def __call__(self, *args: Any, **options: Any) -> Array:
        return self.draw(*args, **options)


def elementwise(draw: Initializer) -> Initializer:
    """An initializer marked as one that does not depend on fans.

    Functions that take `draw` hand it the shapes of parameters as they are, and do not
    ask what axes mean.

    Args:
        draw: A function `(key, shape, dtype) -> array` that draws entries alike,
            whatever the shape, such as `jax.nn.initializers.normal(0.02)` or `zeros`.

    Returns:
        The same function, marked.

    Raises:
        TypeError: If `draw` is not a function.

    Example:
        >>> draw = initializer.elementwise(jax.nn.initializers.ones)
        >>> bias = {"bias": jnp.zeros(2)}
        >>> key = jax.random.key(0)
        >>> initializer.redraw(draw, bias, where=where.everything, key=key)
        {'bias': Array([1., 1.], dtype=float32)}
    """
    check_draw(draw, fn="maskjax.initializer.elementwise")
    return Elementwise(draw)


def signed_constant(density: float = 1.0) -> Initializer:
    """Plus or minus sqrt(2 / (density * fan_in)), each with probability one half.

    Args:
        density: The fraction of weights that a mask will keep, in (0, 1]. The constant
            makes up for it: activations keep their size under a random mask of that
            density. May be traced.

    Returns:
        A function `(key, shape, dtype=float32) -> array`. Called by itself, its fan-in
        is the product of all axes but the last, as of Flax's dense and convolution
        kernels. For other layouts, and whole networks, pass it as `draw` to `redraw` or
        `scores`: they know the fan-in of each leaf by `where`.

    Raises:
        ValueError: If density is not in (0, 1], or the shape has fewer than 2 axes.

    Example:
        >>> draw = initializer.signed_constant(density=0.5)
        >>> jnp.unique(draw(jax.random.key(0), (16, 2)))
        Array([-0.5,  0.5], dtype=float32)

    References:
        Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?",
        CVPR 2020. arXiv:1911.13299, section 4 ("Signed Kaiming Constant").
    """
    fn = "maskjax.initializer.signed_constant"
    checks.unit_interval(density, fn=fn, name="density")
    if not isinstance(density, jax.Array) and density == 0:
        raise ValueError(f"`{fn}` needs `density` above 0, got {density}.")

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        if len(shape) < 2:
            raise ValueError(f"`{fn}` needs a shape with a fan-in, got {tuple(shape)}.")
        size = (2 / (density * max(math.prod(shape[:-1]), 1))) ** 0.5
        return _either_sign(key, size, shape=tuple(shape), dtype=jnp.dtype(dtype))

    return init


def uniform(low: float = -1.0, high: float = 1.0) -> Initializer:
    """Uniform between two numbers that do not depend on the shape.

    Args:
        low: The lower end.
        high: The upper end, at least `low`.

    Returns:
        A function `(key, shape, dtype=float32) -> array`.

    Raises:
        ValueError: If `low` is above `high`.

    Example:
        >>> w = initializer.uniform(2.0, 4.0)(jax.random.key(0), (1_000,))
        >>> print(f"{w.mean():.1f}")
        3.0
    """
    if not low <= high:
        raise ValueError(
            "`maskjax.initializer.uniform` needs `low` of at most `high`, got "
            f"{low} and {high}."
        )

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, low, high)

    return elementwise(init)


def signed_log_uniform(low: float, high: float = 1.0) -> Initializer:
    """Log-uniform magnitude between two bounds, with a random sign.

    Magnitudes between 1/4 and 1/2 are as frequent as those between 1/2 and 1, so there
    are weights of every size.

    Args:
        low: The lower bound of the magnitude, above 0.
        high: The upper bound. If it equals `low`, only the sign is random.

    Returns:
        A function `(key, shape, dtype=float32) -> array`.

    Raises:
        ValueError: If `low` is not positive, or above `high`.

    Example:
        >>> w = initializer.signed_log_uniform(0.25)(jax.random.key(0), (1_000,))
        >>> print(f"{(abs(w) < 0.5).mean():.1f} {(w < 0).mean():.1f}")
        0.5 0.5

    References:
        Orseau et al., "Logarithmic Pruning is All You Need", NeurIPS 2020.
        arXiv:2006.12156, section 3 (hyperbolic weights).
    """
    if not 0 < low <= high:
        raise ValueError(
            "`maskjax.initializer.signed_log_uniform` needs `low` above 0 and at most "
            f"`high`, got {low} and {high}."
        )

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        coin, size = jax.random.split(key)
        signs = _coins(coin, shape)
        exponent = jax.random.uniform(size, shape, dtype, math.log(low), math.log(high))
        magnitude = jnp.clip(jnp.exp(exponent), low, high)  # exp rounds
        return jnp.where(signs, magnitude, -magnitude).astype(dtype)

    return elementwise(init)


def _coins(key: Array, shape: Any) -> Array:
    """Fair coins, the same ones under `jax_enable_x64`."""
    return jax.random.bernoulli(key, jnp.float32(0.5), shape)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _either_sign(key: Array, size: Any, *, shape: Any, dtype: Any) -> Array:
    # A coin, not the sign of a normal draw, which could be exactly 0.
    signs = _coins(key, shape)
    return jnp.where(signs, size, -size).astype(dtype)


def check_draw(draw: Any, *, fn: str) -> None:
    """Raise unless something can be called."""
    if not callable(draw):
        raise TypeError(
            f"`{fn}` needs `draw` as a function `(key, shape, dtype) -> array`, got "
            f"{type(draw).__name__}."
        )
