"""Weights that stay random: initializers for networks of which a mask is learned.

They have the signature of `jax.nn.initializers`, `(key, shape, dtype) -> array`, so
they go where `kernel_init` goes. Fan-in is the product of all axes but the last:
`in` for dense (in, out), height * width * in for convolution kernels.

    >>> draw = initializer.signed_constant()
    >>> jnp.unique(draw(jax.random.key(0), (8, 3)))
    Array([-0.5,  0.5], dtype=float32)
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskjax import _checks, _tree
from maskjax.where import kernels

__all__ = ["Initializer", "redraw", "scaled_normal", "signed_constant"]

Initializer = Callable[..., _tree.Array]


def signed_constant(density: float = 1.0) -> Initializer:
    """Plus or minus sqrt(2 / (density * fan_in)), each with probability one half.

    Args:
        density: The fraction of weights that a mask will keep; the constant grows so
            that activations keep their size under a random mask of that density.

    Returns:
        A function `(key, shape, dtype=float32) -> array`.

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
    _positive_density(density, fn="maskjax.initializer.signed_constant")

    def init(key: _tree.Array, shape: Any, dtype: Any = jnp.float32) -> _tree.Array:
        size = _deviation(shape, density, fn="maskjax.initializer.signed_constant")
        # A coin, not the sign of a normal draw, which could be exactly 0.
        signs = jax.random.bernoulli(key, 0.5, shape)
        return jnp.where(signs, size, -size).astype(dtype)

    return init


def scaled_normal(density: float = 1.0) -> Initializer:
    """Normal with mean 0 and variance 2 / (density * fan_in).

    Args:
        density: The fraction of weights that a mask will keep.

    Returns:
        A function `(key, shape, dtype=float32) -> array`.

    Raises:
        ValueError: If density is not in (0, 1], or the shape has fewer than 2 axes.

    Example:
        >>> w = initializer.scaled_normal(density=0.5)(jax.random.key(0), (100, 400))
        >>> print(f"{w.std():.2f}")
        0.20

    References:
        Ramanujan et al., arXiv:1911.13299, section 4 ("Scaled Kaiming Normal").
    """
    _positive_density(density, fn="maskjax.initializer.scaled_normal")

    def init(key: _tree.Array, shape: Any, dtype: Any = jnp.float32) -> _tree.Array:
        size = _deviation(shape, density, fn="maskjax.initializer.scaled_normal")
        return (jax.random.normal(key, shape) * size).astype(dtype)

    return init


def redraw(
    params: _tree.Params,
    initializer: Initializer,
    *,
    where: _tree.Predicate = kernels,
    key: _tree.Array,
) -> _tree.Params:
    """The same parameters with some of them drawn anew.

    Args:
        params: Tree of arrays; those that are not chosen are returned as they are.
        initializer: Any function `(key, shape, dtype) -> array`.
        where: Which leaves are drawn.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree like `params`, of the same shapes and dtypes.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not a typed key.
        ValueError: If `where` chooses nothing.

    Example:
        >>> params = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
        >>> new = initializer.redraw(
        ...     params, initializer.signed_constant(), key=jax.random.key(1)
        ... )
        >>> abs(new["kernel"].ravel()), new["bias"]
        (Array([1., 1.], dtype=float32), Array([0.], dtype=float32))
    """
    fn = "maskjax.initializer.redraw"
    _checks.typed_key(key, fn=fn)
    picks = _checks.chosen(params, where, fn=fn)
    leaves, treedef = jax.tree.flatten(params)
    drawn = [
        initializer(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
        if pick
        else leaf
        for i, (leaf, pick) in enumerate(zip(leaves, picks, strict=True))
    ]
    return treedef.unflatten(drawn)


def _positive_density(density: float, *, fn: str) -> None:
    _checks.unit_interval(density, fn=fn, name="density")
    if not isinstance(density, jax.Array) and density == 0:
        raise ValueError(f"`{fn}` needs `density` above 0, got {density}.")


def _deviation(shape: Any, density: float, *, fn: str) -> Any:
    if len(shape) < 2:
        raise ValueError(f"`{fn}` needs a shape with a fan-in, got {tuple(shape)}.")
    return (2 / (density * max(math.prod(shape[:-1]), 1))) ** 0.5
