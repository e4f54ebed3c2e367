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

from maskjax import packing
from maskjax._core import checks, dtypes, trees
from maskjax.where import kernels

__all__ = [
    "Initializer",
    "redraw",
    "scaled_normal",
    "scores_of",
    "signed_constant",
    "signed_deviation",
    "signed_log_uniform",
    "uniform",
    "uniform_scores",
]

Initializer = Callable[..., trees.Array]


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

    def init(key: trees.Array, shape: Any, dtype: Any = jnp.float32) -> trees.Array:
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

    def init(key: trees.Array, shape: Any, dtype: Any = jnp.float32) -> trees.Array:
        size = _deviation(shape, density, fn="maskjax.initializer.scaled_normal")
        return (jax.random.normal(key, shape) * size).astype(dtype)

    return init


def uniform(low: float = -1.0, high: float = 1.0) -> Initializer:
    """Uniform between two numbers, whatever the shape.

    Args:
        low: The least.
        high: The most.

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

    def init(key: trees.Array, shape: Any, dtype: Any = jnp.float32) -> trees.Array:
        return jax.random.uniform(key, shape, dtype, low, high)

    return init


def signed_log_uniform(low: float, high: float = 1.0) -> Initializer:
    """Of either sign, the logarithm of the magnitude uniform between two numbers.

    As many between 1/4 and 1/2 as between 1/2 and 1: there are weights of every size.

    Args:
        low: The least magnitude.
        high: The largest. With both the same it is a constant of random sign.

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

    def init(key: trees.Array, shape: Any, dtype: Any = jnp.float32) -> trees.Array:
        coin, size = jax.random.split(key)
        signs = jax.random.bernoulli(coin, 0.5, shape)
        exponent = jax.random.uniform(size, shape, dtype, math.log(low), math.log(high))
        magnitude = jnp.clip(jnp.exp(exponent), low, high)  # exp rounds
        return jnp.where(signs, magnitude, -magnitude).astype(dtype)

    return init


def redraw(
    params: trees.Params,
    initializer: Initializer,
    *,
    where: trees.Predicate = kernels,
    key: trees.Array,
) -> trees.Params:
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
    checks.typed_key(key, fn=fn)
    picks = checks.chosen(params, where, fn=fn)
    leaves, treedef = jax.tree.flatten(params)
    drawn = [
        initializer(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
        if pick
        else leaf
        for i, (leaf, pick) in enumerate(zip(leaves, picks, strict=True))
    ]
    return treedef.unflatten(drawn)


def uniform_scores(
    params: trees.Params,
    *,
    gain: float = 3**-0.5,
    where: trees.Predicate = kernels,
    key: trees.Array,
) -> trees.Scores:
    """Scores to train, uniform in +-gain * sqrt(3 / fan_in) (Kaiming uniform).

    Args:
        params: Tree of arrays, of which shapes and dtypes are looked at.
        gain: The default gives +-1 / sqrt(fan_in), the usual choice for supermasks.
        where: Which leaves carry a mask; they have a fan-in, that is 2 axes or more.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree of scores, `None` where `where` does not choose.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not typed.
        ValueError: If `where` chooses nothing, or a leaf without a fan-in.

    Example:
        >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
        >>> scores = initializer.uniform_scores(params, key=jax.random.key(0))
        >>> bool((abs(scores["kernel"]) <= 0.5).all()), scores["bias"]
        (True, None)

    References:
        He et al., "Delving Deep into Rectifiers", ICCV 2015. arXiv:1502.01852, section
        2.2; with this gain in the code of arXiv:1911.13299 and arXiv:2006.14769.
    """
    fn = "maskjax.initializer.uniform_scores"
    checks.typed_key(key, fn=fn)
    picks = checks.chosen(params, where, fn=fn)
    named = list(zip(trees.named_leaves(params), picks, strict=True))
    flat = [path for (path, leaf), pick in named if pick and leaf.ndim < 2]
    checks.raise_all(flat, f"`{fn}` needs leaves of 2 axes or more, for a fan-in")
    scores = []
    for i, ((_, leaf), pick) in enumerate(named):
        bound = gain * (3 / max(math.prod(leaf.shape[:-1]), 1)) ** 0.5 if pick else 0.0
        draw = jax.random.fold_in(key, i), leaf.shape, leaf.dtype
        scores.append(jax.random.uniform(*draw, -bound, bound) if pick else None)
    return jax.tree.structure(params).unflatten(scores)


def scores_of(
    mask: trees.Mask, *, gain: float = 3**-0.5, dtype: Any = jnp.float32
) -> trees.Scores:
    """Scores to train that begin with a mask: it is where they are at least 0.

    Args:
        mask: A mask of 2 axes or more, packed or not, or a soft one (the mean of many).
        gain: As in `uniform_scores`, whose root mean square the scores of a hard mask
            have.
        dtype: That of the weights.

    Returns:
        A tree of scores: (2 m - 1) * gain / sqrt(fan_in).

    Raises:
        ValueError: If a leaf has no fan-in.

    Example:
        >>> scores = initializer.scores_of({"w": jnp.array([[True], [False], [True]])})
        >>> scores["w"].ravel()
        Array([ 0.333..., -0.333...,  0.333...], dtype=float32)

    References:
        Wortsman et al., arXiv:2006.14769, appendix on transfer: the mean of the masks,
        here centered, since scores of at least 0 are kept.
    """
    named, _ = trees.mask_leaves(mask)
    checks.raise_all(
        (path for path, leaf in named if leaf is not None and len(leaf.shape) < 2),
        "`maskjax.initializer.scores_of` needs leaves of 2 axes or more, for a fan-in",
    )

    def of_leaf(leaf: Any) -> trees.Array:
        size = gain * max(math.prod(leaf.shape[:-1]), 1) ** -0.5
        centered = 2 * packing.unpack_leaf(leaf).astype(jnp.float32) - 1
        return (centered * size).astype(dtype)

    return trees.map_mask(of_leaf, mask)


def signed_deviation(
    params: trees.Params, *, where: trees.Predicate = kernels
) -> trees.Params:
    """The same parameters with some of them at plus or minus their leaf's deviation.

    Args:
        params: Tree of arrays, drawn already; signs stay, an exact 0 has that of its
            bit. Those that are not chosen are returned as they are.
        where: Which leaves become constants.

    Returns:
        A tree like `params`, of the same shapes and dtypes.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If `where` chooses nothing.

    Example:
        >>> initializer.signed_deviation({"kernel": jnp.array([[1.0, -3.0]])})
        {'kernel': Array([[ 2., -2.]], dtype=float32)}

    References:
        Zhou et al., "Deconstructing Lottery Tickets", NeurIPS 2019. arXiv:1905.01067,
        section 4 ("signed constant").
    """
    picks = checks.chosen(params, where, fn="maskjax.initializer.signed_deviation")
    leaves, treedef = jax.tree.flatten(params)

    def constant(leaf: Any) -> trees.Array:
        deviation = jnp.std(leaf.astype(dtypes.at_least_float32(leaf.dtype)))
        return jnp.copysign(deviation.astype(leaf.dtype), leaf)

    chosen = zip(leaves, picks, strict=True)
    return treedef.unflatten([constant(x) if pick else x for x, pick in chosen])


def _positive_density(density: float, *, fn: str) -> None:
    checks.unit_interval(density, fn=fn, name="density")
    if not isinstance(density, jax.Array) and density == 0:
        raise ValueError(f"`{fn}` needs `density` above 0, got {density}.")


def _deviation(shape: Any, density: float, *, fn: str) -> Any:
    if len(shape) < 2:
        raise ValueError(f"`{fn}` needs a shape with a fan-in, got {tuple(shape)}.")
    return (2 / (density * max(math.prod(shape[:-1]), 1))) ** 0.5
