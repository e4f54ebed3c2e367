"""Weights that stay random and scores to train: draws that jax does not have.

An initializer is a function `(key, shape, dtype) -> array`, as in
`jax.nn.initializers`, so those here go where Flax takes a `kernel_init`, and jax's go
where `draw` is an argument here. Fan-in is the product of all axes but the last: `in`
for dense (in, out), height * width * in for convolution kernels. Kaiming normal scaled
for a density d is `jax.nn.initializers.variance_scaling(2 / d, "fan_in", "normal")`.

    >>> draw = initializer.signed_constant()
    >>> jnp.unique(draw(jax.random.key(0), (8, 3)))
    Array([-0.5,  0.5], dtype=float32)
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling

from maskjax import packing
from maskjax._core import checks, dtypes, trees
from maskjax.where import kernels

__all__ = [
    "Initializer",
    "redraw",
    "scores",
    "scores_of",
    "signed_constant",
    "signed_deviation",
    "signed_log_uniform",
    "uniform",
]

Initializer = Callable[..., trees.Array]


def signed_constant(density: float = 1.0) -> Initializer:
    """Plus or minus sqrt(2 / (density * fan_in)), each with probability one half.

    Args:
        density: The fraction of weights that a mask will keep, in (0, 1]. The constant
            makes up for it: activations keep their size under a random mask of that
            density. May be traced.

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
    fn = "maskjax.initializer.signed_constant"
    checks.unit_interval(density, fn=fn, name="density")
    if not isinstance(density, jax.Array) and density == 0:
        raise ValueError(f"`{fn}` needs `density` above 0, got {density}.")

    def init(key: trees.Array, shape: Any, dtype: Any = jnp.float32) -> trees.Array:
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

    def init(key: trees.Array, shape: Any, dtype: Any = jnp.float32) -> trees.Array:
        return jax.random.uniform(key, shape, dtype, low, high)

    return init


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

    def init(key: trees.Array, shape: Any, dtype: Any = jnp.float32) -> trees.Array:
        coin, size = jax.random.split(key)
        signs = jax.random.bernoulli(coin, 0.5, shape)
        exponent = jax.random.uniform(size, shape, dtype, math.log(low), math.log(high))
        magnitude = jnp.clip(jnp.exp(exponent), low, high)  # exp rounds
        return jnp.where(signs, magnitude, -magnitude).astype(dtype)

    return init


def redraw(
    draw: Initializer,
    params: trees.Params,
    *,
    where: trees.Predicate = kernels,
    key: trees.Array,
) -> trees.Params:
    """The same parameters with some of them drawn anew.

    Args:
        draw: An initializer, `(key, shape, dtype) -> array`.
        params: Tree of arrays. Leaves that are not chosen are passed through uncopied.
        where: Which leaves are drawn.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree like `params`, of the same shapes and dtypes.

    Raises:
        TypeError: If `draw` is not a function, a chosen leaf is not floating, or the
            key is not a typed key.
        ValueError: If `where` chooses nothing, or `draw` refuses a leaf's shape; every
            such leaf is named.

    Example:
        >>> params = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
        >>> draw = initializer.signed_constant()
        >>> new = initializer.redraw(draw, params, key=jax.random.key(1))
        >>> abs(new["kernel"].ravel()), new["bias"]
        (Array([1., 1.], dtype=float32), Array([0.], dtype=float32))
    """
    drawn = _drawn(draw, params, where, key, fn="maskjax.initializer.redraw")
    leaves, treedef = jax.tree.flatten(params)
    pairs = zip(leaves, drawn, strict=True)
    return treedef.unflatten([old if new is None else new for old, new in pairs])


def scores(
    params: trees.Params,
    *,
    draw: Initializer = variance_scaling(1 / 3, "fan_in", "uniform"),
    where: trees.Predicate = kernels,
    key: trees.Array,
) -> trees.Scores:
    """Scores to train, for the parameters that carry a mask.

    Args:
        params: Tree of arrays. Only shapes and dtypes are used.
        draw: An initializer, `(key, shape, dtype) -> array`. The default is uniform in
            +-1 / sqrt(fan_in), the usual start of supermasks.
        where: Which leaves carry a mask.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree of scores in the parameters' dtypes, `None` where `where` does not
        choose.

    Raises:
        TypeError: If `draw` is not a function, a chosen leaf is not floating, or the
            key is not a typed key.
        ValueError: If `where` chooses nothing, or `draw` refuses a leaf's shape, as the
            default does if there are fewer than 2 axes; every such leaf is named.

    Example:
        >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
        >>> scores = initializer.scores(params, key=jax.random.key(0))
        >>> bool((abs(scores["kernel"]) <= 0.5).all()), scores["bias"]
        (True, None)

    References:
        He et al., "Delving Deep into Rectifiers", ICCV 2015. arXiv:1502.01852, section
        2.2. The code of arXiv:1911.13299 and arXiv:2006.14769 has this default.
    """
    drawn = _drawn(draw, params, where, key, fn="maskjax.initializer.scores")
    return jax.tree.structure(params).unflatten(drawn)


def scores_of(
    mask: trees.Mask, *, gain: float = 3**-0.5, dtype: Any = jnp.float32
) -> trees.Scores:
    """Scores to train that start from a mask: at least 0 exactly where it keeps.

    Args:
        mask: A mask, packed or not, or a soft mask such as the mean of many. Its leaves
            need a fan-in, that is 2 axes or more.
        gain: The size of the scores times sqrt(fan_in). With the default their root
            mean square is that of `scores`.
        dtype: The dtype of the scores, usually that of the weights.

    Returns:
        A tree of scores, (2 m - 1) * gain / sqrt(fan_in) for a leaf m of the mask.

    Raises:
        ValueError: If a leaf has no fan-in.

    Example:
        >>> scores = initializer.scores_of({"w": jnp.array([[True], [False], [True]])})
        >>> scores["w"].ravel()
        Array([ 0.333..., -0.333...,  0.333...], dtype=float32)

    References:
        Wortsman et al., arXiv:2006.14769, appendix on transfer: the mean of the masks.
        Here it is centered, because scores of at least 0 are kept.
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
    """The same parameters, some of them plus or minus their leaf's standard deviation.

    Args:
        params: Tree of arrays, already drawn. Signs stay; 0.0 counts as positive, -0.0
            as negative. Leaves that are not chosen are passed through uncopied.
        where: Which leaves become signed constants.

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


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _either_sign(key: trees.Array, size: Any, *, shape: Any, dtype: Any) -> trees.Array:
    # A coin, not the sign of a normal draw, which could be exactly 0.
    signs = jax.random.bernoulli(key, 0.5, shape)
    return jnp.where(signs, size, -size).astype(dtype)


def _drawn(
    draw: Initializer,
    params: trees.Params,
    where: trees.Predicate,
    key: trees.Array,
    *,
    fn: str,
) -> list[trees.Array | None]:
    """A draw for each leaf of `params` that `where` chooses, `None` for the others."""
    checks.typed_key(key, fn=fn)
    if not callable(draw):
        raise TypeError(
            f"`{fn}` needs `draw` as a function `(key, shape, dtype) -> array`, got "
            f"{type(draw).__name__}."
        )
    picks = checks.chosen(params, where, fn=fn)
    drawn: list[trees.Array | None] = [None] * len(picks)
    refused = {}
    for i, leaf in enumerate(jax.tree.leaves(params)):
        if picks[i]:
            # The fans of a leaf without entries would divide by 0.
            shape = tuple(max(n, 1) for n in leaf.shape)
            try:
                drawn[i] = draw(jax.random.fold_in(key, i), shape, leaf.dtype)
            except ValueError as error:
                refused[i] = str(error)
            if not leaf.size:
                drawn[i] = jnp.zeros(leaf.shape, leaf.dtype)
    if refused:
        paths = [path for path, _ in trees.named_leaves(params)]
        lines = (f"{paths[i]}: {text}" for i, text in refused.items())
        checks.raise_all(lines, f"`{fn}` needs leaves whose shapes can be drawn")
    return drawn
