"""Apply masks to parameters.

>>> params = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([3.0, 4.0])}
>>> mask = {"kernel": jnp.array([[True, False]]), "bias": None}
>>> masking.apply(params, mask)
{'bias': Array([3., 4.], dtype=float32), 'kernel': Array([[1., 0.]], dtype=float32)}
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import packing
from maskjax._core import checks, dtypes, placement, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask, Params, Predicate, SoftMask
from maskjax.where import kernels

__all__ = ["apply", "everything", "nonzero", "rescale"]


def apply(params: Params, mask: Mask | SoftMask, fill: Params | None = None) -> Params:
    """The parameters with removed entries set to 0, or to `fill`.

    Boolean leaves select and never multiply: a removed entry is exactly 0 even where
    the parameter is inf or nan, and its gradient is exactly 0. Floating leaves (soft
    masks) multiply, `m * params + (1 - m) * fill`, so gradients reach them. They do so
    whatever they hold: 0.0 times inf is nan (`m > 0` is a mask that selects), and
    scores scale (`select.top_k` makes a mask of them).

    Args:
        params: Tree of arrays.
        mask: A mask of the same structure: True keeps. A leaf is boolean, floating,
            packed, or `None`; each of its axes is the parameter's or 1. For `None` the
            parameter is passed through uncopied. True, False and `None` may also stand
            for whole leaves and subtrees, as in `{"encoder": False, "head": True}`.
        fill: A tree like `params` with the values of removed entries. `None` means 0,
            for the tree or for a leaf. It is not used where the mask is `None`.

    Returns:
        A tree like `params`, of the same dtypes. A loop that donates it deletes what
        was passed through; `jax.tree.map(jnp.copy, ...)` of it is safe.

    Raises:
        TypeError: If a leaf of the mask is neither boolean nor floating.
        ValueError: If the mask or `fill` does not fit `params`; the message lists every
            bad leaf.

    Example:
        >>> params = {"w": jnp.array([[1.0, jnp.nan], [3.0, 4.0]])}
        >>> mask = {"w": jnp.array([[True, False]])}
        >>> masking.apply(params, mask)
        {'w': Array([[1., 0.],
               [3., 0.]], dtype=float32)}
        >>> masking.apply(params, mask, fill={"w": jnp.full((2, 2), 9.0)})
        {'w': Array([[1., 9.],
               [3., 9.]], dtype=float32)}
    """
    fn = "maskjax.apply"
    rows = checks.masked(params, mask, fn=fn, soft=True)
    fills = [None] * len(rows)
    if fill is not None:
        filled = checks.shaped_like(params, fill, fn=fn, names=("params", "fill"))
        fills = [value for _, value in filled]
    leaves = [
        param if leaf is None else _apply_leaf(param, leaf, value)
        for (param, leaf), value in zip(rows, fills, strict=True)
    ]
    return jax.tree.structure(params).unflatten(leaves)


def everything(params: Params, *, where: Predicate = kernels) -> Mask:
    """A mask that keeps everything.

    Args:
        params: Tree of arrays.
        where: Which leaves carry a mask.

    Returns:
        A mask of True in the parameters' shapes, sharded as they are; `None` where
        `where` does not choose.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If `where` chooses nothing.

    Example:
        >>> masking.everything({"w": jnp.ones((1, 2)), "b": jnp.ones(2)})
        {'b': None, 'w': Array([[ True,  True]], dtype=bool)}
    """
    leaves = checks.chosen_leaves(params, where, fn="maskjax.masking.everything")
    return trees.map_mask(placement.ones, leaves)


def nonzero(params: Params, *, where: Predicate = kernels) -> Mask:
    """The mask of a sparse network: what is not exactly 0, as in a checkpoint.

    Args:
        params: Tree of arrays, of a network that was masked.
        where: Which leaves carry a mask.

    Returns:
        A mask: True where a parameter is not 0 (nan is not); `None` where `where` does
        not choose.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If `where` chooses nothing.

    Example:
        >>> masking.nonzero({"w": jnp.array([[0.0, -2.0]]), "b": jnp.zeros(2)})
        {'b': None, 'w': Array([[False,  True]], dtype=bool)}
    """
    leaves = checks.chosen_leaves(params, where, fn="maskjax.masking.nonzero")
    return trees.map_mask(_nonzero, leaves)


def rescale(
    params: Params, mask: Mask | SoftMask, *, through_count: bool = True
) -> Params:
    """The parameters with removed entries set to 0 and kept entries enlarged.

    Each leaf is multiplied by n / kept: the number of its mask's entries over how many
    are kept. That is inverted dropout with the exact count of this mask, so sums over
    kept weights keep their size. The factor is 1 if everything is kept and n if nothing
    is. For a soft mask, `kept` is the sum of its entries.

    Args:
        params: Tree of arrays, floating where there is a mask.
        mask: A mask, packed or soft ones too, as `apply` takes it. Entries along an
            axis of 1 count once. Where it is `None`, parameters are passed through
            uncopied.
        through_count: Whether the gradient by a soft mask goes through the factor too.
            Otherwise the factor is a constant.

    Returns:
        A tree like `params`, of the same dtypes.

    Raises:
        TypeError: If a parameter with a mask is not floating, or a leaf of the mask is
            neither boolean nor floating.
        ValueError: If the mask does not fit `params`; the message lists every bad leaf.

    Example:
        >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
        >>> masking.rescale(params, {"w": jnp.array([[True, False, False, True]])})
        {'w': Array([[2., 0., 0., 8.]], dtype=float32)}

    References:
        Zhou et al., "Deconstructing Lottery Tickets", NeurIPS 2019. arXiv:1905.01067,
        section 5.2 ("Dynamic Weight Rescaling").
    """
    fn = "maskjax.masking.rescale"
    rows = checks.masked(params, mask, fn=fn, soft=True)
    checks.floating_where_masked(rows, params, fn=fn, name="params")
    leaves = [
        param if leaf is None else _rescale_leaf(param, leaf, through_count)
        for param, leaf in rows
    ]
    return jax.tree.structure(params).unflatten(leaves)


_nonzero = jax.jit(dtypes.nonzero)


@jax.jit
def _apply_leaf(param: Array, mask: Array | PackedMask, fill: Array | None) -> Array:
    param = jnp.asarray(param)
    if fill is None:
        fill = jnp.zeros_like(param)
        soft = lambda m: m * param  # noqa: E731
    else:
        fill = jnp.asarray(fill).astype(param.dtype)
        soft = lambda m: m * param + (1 - m) * fill  # noqa: E731
    mask = packing.unpack_leaf(mask)
    if mask.dtype == bool:
        return jnp.where(placement.alike(mask, param), param, fill)
    return soft(mask.astype(param.dtype))


@functools.partial(jax.jit, static_argnums=2)
def _rescale_leaf(
    param: Array,
    mask: Array | PackedMask,
    through_count: bool,  # noqa: FBT001
) -> Array:
    dtype = dtypes.at_least_float32(param.dtype)
    if isinstance(mask, PackedMask) or mask.dtype == bool:
        kept = packing.kept_as(mask, dtype)
    else:
        kept = jnp.sum(mask.astype(dtype))
        kept = kept if through_count else lax.stop_gradient(kept)
    # Not `maximum`, which passes on half of the gradient where one entry is kept.
    factor = float(math.prod(mask.shape)) / jnp.where(kept < 1, 1, kept)
    return (_apply_leaf(param, mask, None).astype(dtype) * factor).astype(param.dtype)
