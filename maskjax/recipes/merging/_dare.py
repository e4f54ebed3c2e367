"""DARE: drop random entries of task vectors, and rescale the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskjax._core import checks, dtypes, placement, trees
from maskjax._core.trees import Array, Density, Params

_FN = "maskjax.recipes.merging."


def dare(vectors: Params, *, density: Density, key: Array) -> Params:
    """Task vectors with random entries at 0 and the others divided by `density`.

    The expectation of the result is the vectors. Use it before `total`, `mean` or
    `ties`.

    Args:
        vectors: One task vector, or a stack of them, whose entries are all drawn
            independently.
        density: The probability that an entry is kept, in (0, 1]; the paper drops with
            probability 1 - density, 0.9 to 0.99. May be traced; then 0 drops all.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree like `vectors`, of the same dtypes. Dropped entries are exactly 0.

    Raises:
        TypeError: If a leaf is not floating, the density not a number, or the key not
            typed.
        ValueError: If the density is outside (0, 1].

    Example:
        >>> vector = {"w": jnp.array([1.0, 2.0, 3.0, 4.0])}
        >>> merging.dare(vector, density=0.5, key=jax.random.key(0))
        {'w': Array([0., 4., 6., 8.], dtype=float32)}

    References:
        Yu et al., arXiv:2311.03099, section 3.
    """
    fn = _FN + "dare"
    checks.typed_key(key, fn=fn)
    checks.floating_scores(vectors, fn=fn, name="vectors")
    checks.unit_interval(density, fn=fn, name="density")
    if not isinstance(density, jax.Array) and density == 0:
        raise ValueError(f"`{fn}` needs `density` in (0, 1], got {density}.")
    checks.beside(vectors, fn=fn, name="vectors", density=density, key=key)
    share = jnp.asarray(density)
    leaves, treedef = jax.tree.flatten(vectors, is_leaf=trees.is_mask_leaf)
    return treedef.unflatten(
        [
            None if v is None else _dropped(v, share, key, i)
            for i, v in enumerate(leaves)
        ]
    )


@jax.jit
def _dropped(v: Array, share: Array, key: Array, leaf: int) -> Array:
    wide = dtypes.at_least_float32(v.dtype)
    draws = placement.uniform(jax.random.fold_in(key, leaf), v)
    scaled = (v.astype(wide) / share.astype(wide)).astype(v.dtype)
    return jnp.where(draws < share.astype(draws.dtype), scaled, 0)
