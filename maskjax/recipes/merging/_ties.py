"""TIES: trim, elect a sign, average what agrees with it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskjax import stacking
from maskjax._core import checks, dtypes
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, map_mask
from maskjax.recipes._highest import highest
from maskjax.recipes.merging._sums import mean, require_vectors
from maskjax.select import Scope
from maskjax.where import kernels

_FN = "maskjax.recipes.merging."


def ties(
    vectors: Params,
    *,
    density: Density = 0.2,
    scope: Scope = "global",
    where: Predicate = kernels,
) -> Params:
    """The TIES merge of task vectors: the `mean` of what `ties_masks` keeps.

    Give it to `network`, whose `scale` is the lambda of the paper. Devices: as for
    `ties_masks`.

    Args:
        vectors: A stack of K task vectors.
        density: The fraction of each task vector to keep, in [0, 1].
        scope: What is ranked together within a task, as in `ties_masks`.
        where: What the axes mean, for scope "layer" and "output".

    Returns:
        One vector, in the dtypes of `vectors`; 0 where all entries were trimmed.

    Raises:
        TypeError: If a leaf is not floating, or the density not a number.
        ValueError: If the leaves disagree about K, the density is outside [0, 1], or
            the scope is unknown.

    Example:
        >>> vectors = {"w": jnp.array([[3.0, 2.0, 0.1], [5.0, -1.0, 0.2]])}
        >>> merging.ties(vectors, density=0.67)
        {'w': Array([4., 2., 0.], dtype=float32)}

    References:
        Yadav et al., arXiv:2306.01708, section 4.
    """
    how = {"density": density, "scope": scope, "where": where}
    return mean(vectors, _agreeing_masks(vectors, _FN + "ties", **how))  # 2.


def ties_masks(
    vectors: Params,
    *,
    density: Density = 0.2,
    scope: Scope = "global",
    where: Predicate = kernels,
) -> Mask:
    """The entries of each task that TIES averages: large, and of the elected sign.

    Each task keeps its largest entries by magnitude. The elected sign of an entry is
    that of the sum of what tasks kept. A task's mask keeps what it kept and has that
    sign. Vectors that are sharded by tasks are gathered if the mesh has Explicit axes.

    Args:
        vectors: A stack of K task vectors.
        density: The fraction of each task vector to keep before the election, in
            [0, 1]. May be traced.
        scope: "global" ranks all entries of a task together, as in the paper; "leaf"
            those of each leaf, "layer" those of each index of stacked layers. The axis
            K is none of these.
        where: What the axes of one task's leaves mean, for scope "layer" and "output".

    Returns:
        A stack of K masks in the shapes of `vectors`: True keeps. Where what tasks kept
        adds up to exactly 0, no task keeps the entry.

    Raises:
        TypeError: If a leaf is not floating, or the density not a number.
        ValueError: If the leaves disagree about K, the density is outside [0, 1], or
            the scope is unknown.

    Example:
        >>> vectors = {"w": jnp.array([[3.0, 2.0, 0.1], [5.0, -1.0, 0.2]])}
        >>> merging.ties_masks(vectors, density=0.67)
        {'w': Array([[ True,  True, False],
               [ True, False, False]], dtype=bool)}

    References:
        Yadav et al., arXiv:2306.01708, section 4.
    """
    how = {"density": density, "scope": scope, "where": where}
    return _agreeing_masks(vectors, _FN + "ties_masks", **how)


def _agreeing_masks(
    vectors: Params, fn: str, *, density: Density, scope: Scope, where: Predicate
) -> Mask:
    require_vectors(vectors, fn=fn)
    checks.unit_interval(density, fn=fn, name="density")
    how = {"density": density, "scope": scope, "where": where}
    trimmed = stacking.map(lambda v: highest(v, fn, **how)[0], vectors)
    return map_mask(_agreeing, trimmed, vectors)


@jax.jit
def _agreeing(kept: Array, v: Array) -> Array:
    trimmed = jnp.where(kept, v.astype(dtypes.at_least_float32(v.dtype)), 0)
    elected = jnp.sign(jnp.sum(trimmed, axis=0))[None]
    return kept & (jnp.sign(trimmed) == elected) & (elected != 0)
