"""The term that keeps the weights that stay large: 3."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from maskjax._core import checks, dtypes
from maskjax._core.trees import Array, Params, SoftMask
from maskjax.recipes.maskllm._groups import FN


def squared_norm(params: Params, soft: SoftMask) -> Array:
    """The sum of squares of the masked weights: 3.

    Subtract a multiple of it from the loss, so that the weights that stay are large:
    groups of small ones pass on small gradients, and nothing is learned from those.

    Args:
        params: The parameters. No gradient reaches them.
        soft: From `soft_mask`. Leaves that are `None` count for nothing.

    Returns:
        A scalar, float32 or float64.

    Raises:
        TypeError: If a leaf of `soft`, or a parameter that has one, is not floating.
        ValueError: If `soft` does not fit `params`, or has no leaf.

    Example:
        >>> soft = {"w": jnp.array([[1.0], [0.5]]), "b": None}
        >>> params = {"w": jnp.array([[3.0], [4.0]]), "b": jnp.ones(1)}
        >>> print(maskllm.squared_norm(params, soft))
        13.0
    """
    fn = FN + "squared_norm"
    checks.floating_scores(soft, fn=fn, name="soft")
    checks.together(fn=fn, params=params, soft=soft)
    names = ("params", "soft")
    pairs = checks.masked(params, soft, fn=fn, names=names, soft=True)
    checks.floating_where_masked(pairs, params, fn=fn, name="params")
    return dtypes.total([_squares(w, m) for w, m in pairs if m is not None])


@jax.jit
def _squares(w: Array, m: Array) -> Array:
    wide = dtypes.widest(w, m)
    kept = lax.stop_gradient(w).astype(wide) * m.astype(wide)
    return jnp.sum(jnp.square(kept))  # 3.
