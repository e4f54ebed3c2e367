"""One density for the whole, shared out over leaves: a tree of densities for `select`.

>>> params = {"a": jnp.ones((100, 100)), "b": jnp.ones((100, 10))}
>>> shares = allocation.erk(params, density=0.1)
>>> {name: round(share, 4) for name, share in shares.items()}
{'a': 0.071, 'b': 0.3903}
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from maskjax import _checks
from maskjax._tree import Density, Params, Predicate, Scores
from maskjax.where import kernels

__all__ = ["erk", "uniform"]


def uniform(params: Params, *, density: Density, where: Predicate = kernels) -> Scores:
    """The same density for every leaf.

    Args:
        params: Tree of arrays.
        density: The fraction to keep, in [0, 1]. May be traced.
        where: Which leaves carry a mask.

    Returns:
        A tree like `params`: `density` where `where` chooses, else `None`.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If density is outside [0, 1] or nan, or `where` chooses nothing.

    Example:
        >>> allocation.uniform({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, density=0.5)
        {'b': None, 'w': 0.5}
    """
    fn = "maskjax.allocation.uniform"
    _checks.unit_interval(density, fn=fn, name="density")
    picks = _checks.chosen(params, where, fn=fn)
    treedef = jax.tree.structure(params)
    return treedef.unflatten([density if pick else None for pick in picks])


def erk(params: Params, *, density: Density, where: Predicate = kernels) -> Scores:
    """Erdos-Renyi-kernel densities: thin leaves are kept denser than wide ones.

    A leaf's density is proportional to the sum of its axes over their product, (height
    + width + in + out) / (height * width * in * out) for a convolution, up to 1; the
    factor is such that `density` of all entries together are kept.

    Args:
        params: Tree of arrays.
        density: The fraction of all chosen entries to keep, in [0, 1]. May be traced.
        where: Which leaves carry a mask.

    Returns:
        A tree like `params`: a density in [0, 1] where `where` chooses, else `None`;
        Python numbers if `density` is one.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If density is outside [0, 1] or nan, or `where` chooses nothing.

    Example:
        >>> allocation.erk({"w": jnp.ones((4, 4))}, density=0.5)
        {'w': 0.5}

    References:
        Evci et al., "Rigging the Lottery", ICML 2020. arXiv:1911.11134, section 3 (1).
        Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive
        Sparse Connectivity". arXiv:1707.04780.
    """
    fn = "maskjax.allocation.erk"
    _checks.unit_interval(density, fn=fn, name="density")
    picks = _checks.chosen(params, where, fn=fn)
    leaves, treedef = jax.tree.flatten(params)
    shapes = [leaf.shape for leaf, pick in zip(leaves, picks, strict=True) if pick]
    sizes = np.array([math.prod(shape) for shape in shapes], np.float64)
    # A factor c keeps min(size, c * sum(axes)) of a leaf. The total is piecewise linear
    # in c, with a corner where a leaf becomes dense, so its inverse is interpolation.
    slopes = np.array([max(sum(shape), 1) for shape in shapes], np.float64)
    corners = np.concatenate([[0.0], np.sort(sizes / slopes)])
    totals = np.minimum(sizes, corners[:, None] * slopes).sum(axis=1)
    totals /= max(totals[-1], 1.0)
    rates = slopes / np.maximum(sizes, 1)
    if isinstance(density, jax.Array):
        dtype = jnp.zeros((), float).dtype
        factor = jnp.interp(
            density.astype(dtype), totals.astype(dtype), corners.astype(dtype)
        )
        shares = [jnp.minimum(factor * float(rate), 1.0) for rate in rates]
    else:
        factor = np.interp(np.float64(density), totals, corners)
        shares = [min(float(factor * rate), 1.0) for rate in rates]
    found = iter(shares)
    return treedef.unflatten([next(found) if pick else None for pick in picks])
