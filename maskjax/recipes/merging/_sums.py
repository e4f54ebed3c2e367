"""Sums and means of task vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskjax import packing
from maskjax._core import checks, dtypes, placement
from maskjax._core.trees import Array, Mask, Params, map_mask

_FN = "maskjax.recipes.merging."


def total(vectors: Params, coefficients: Array | None = None) -> Params:
    """The sum of task vectors, weighted or not: task arithmetic.

    Args:
        vectors: A stack of K task vectors.
        coefficients: [K], floating. `None`: all are 1.

    Returns:
        One vector, in the dtypes of `vectors`. Sums are made in float32 at least.

    Raises:
        TypeError: If a leaf is not floating, or the coefficients are not.
        ValueError: If the leaves disagree about K, or there are not K coefficients.

    Example:
        >>> merging.total({"w": jnp.array([[1.0, 2.0], [0.0, -1.0]])})
        {'w': Array([1., 1.], dtype=float32)}

    References:
        Ilharco et al., arXiv:2212.04089, section 2.
    """
    fn = _FN + "total"
    require_vectors(vectors, fn=fn)
    if coefficients is not None:
        checks.coefficients(coefficients, vectors, fn=fn)
        checks.beside(vectors, fn=fn, name="vectors", coefficients=coefficients)
        coefficients = jnp.asarray(coefficients)
    return map_mask(lambda v: _total(v, coefficients), vectors)


def mean(vectors: Params, masks: Mask | None = None) -> Params:
    """The mean of task vectors, for each entry over the tasks whose mask keeps it.

    Args:
        vectors: A stack of K task vectors.
        masks: A stack of K masks, packed or not, such as `ties_masks`. `None`, for the
            tree or for a leaf: all keep everything.

    Returns:
        One vector, in the dtypes of `vectors`; 0 where no mask keeps the entry.

    Raises:
        TypeError: If a leaf is not floating, or a mask not a mask.
        ValueError: If the leaves disagree about K, or the masks do not fit.

    Example:
        >>> vectors = {"w": jnp.array([[1.0, 2.0], [3.0, -1.0]])}
        >>> merging.mean(vectors, {"w": jnp.array([[True, True], [True, False]])})
        {'w': Array([2., 2.], dtype=float32)}

    References:
        Yadav et al., arXiv:2306.01708, the step "disjoint merge".
    """
    fn = _FN + "mean"
    require_vectors(vectors, fn=fn)
    if masks is None:
        return map_mask(lambda v: _mean(v, None), vectors)
    checks.boolean(masks, fn=fn, name="masks")
    checks.packed(masks, fn=fn, stacked=True)
    masks = packing.unpack(masks)
    checks.shaped_like(vectors, masks, fn=fn, names=("vectors", "masks"))
    return map_mask(_mean, vectors, masks)


def require_vectors(vectors: Params, *, fn: str) -> int:
    """How many task vectors a stack holds; raise if it is none."""
    checks.floating_scores(vectors, fn=fn, name="vectors")
    return checks.members(vectors, fn=fn, name="vectors")


@jax.jit
def _total(v: Array, coefficients: Array | None) -> Array:
    terms = v.astype(dtypes.at_least_float32(v.dtype))
    if coefficients is not None:
        each = placement.place(coefficients, placement.spec_of(v)[:1], like=v)
        terms *= placement.lead(each.astype(terms.dtype), v)
    return jnp.sum(terms, axis=0).astype(v.dtype)


@jax.jit
def _mean(v: Array, mask: Array | None) -> Array:
    terms = v.astype(dtypes.at_least_float32(v.dtype))
    if mask is None:
        return (jnp.sum(terms, axis=0) / v.shape[0]).astype(v.dtype)
    mask = placement.alike(mask, v)
    sums = jnp.sum(jnp.where(mask, terms, 0), axis=0)
    counts = jnp.sum(mask, axis=0, dtype=jnp.int32).astype(terms.dtype)
    return (sums / jnp.maximum(counts, 1)).astype(v.dtype)
