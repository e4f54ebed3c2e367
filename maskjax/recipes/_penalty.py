"""What a loss is charged for parameters that stray from those of the source.

Part of `maskjax.recipes.pacnet`, which exports what is here.

>>> print(pacnet.l2_sp({"w": jnp.array(3.0)}, {"w": jnp.array(1.0)}, lam=0.5))
2.0
"""

import jax
import jax.numpy as jnp

from maskjax import masking
from maskjax._core import checks
from maskjax._core.trees import Array, Mask, Params, Scores
from maskjax.score._objective import wide


def l2_sp(
    params: Params,
    anchor: Params,
    weights: Mask | Scores = None,
    *,
    lam: float | Array = 0.01,
) -> Array:
    """The penalty on the distance from the source: lam * sum w (p - a)^2.

    Args:
        params: Tree of arrays, of which the floating ones count.
        anchor: A tree like `params`: what they are not to stray from.
        weights: What counts: a mask, as the `mask` of `Pruned`, or factors. Leaves of
            `None` do not count. `None`: everything counts once.
        lam: The strength, at least 0. May be traced.

    Returns:
        A scalar for the loss, at least float32. What a mask removes has gradient 0.

    Raises:
        TypeError: If `lam` is no number, or a leaf of `weights` is neither boolean nor
            floating.
        ValueError: If `lam` is negative or not finite, or if `anchor` or `weights` does
            not fit `params`.

    Example:
        >>> params, anchor = {"w": jnp.array([1.0, 5.0])}, {"w": jnp.array([3.0, 0.0])}
        >>> mask = {"w": jnp.array([True, False])}
        >>> print(pacnet.l2_sp(params, anchor, mask, lam=0.5))
        2.0

    References:
        Li et al., "Explicit inductive bias for transfer learning with convolutional
        networks", ICML 2018. arXiv:1802.01483, section 3.
    """
    fn = "maskjax.recipes.pacnet.l2_sp"
    checks.not_negative(lam, fn=fn, name="lam")
    checks.alike(params, anchor, fn=fn, name="anchor")
    if weights is None:
        weights = jax.tree.map(lambda p: jnp.ones((1,) * jnp.ndim(p), bool), params)
    pairs = checks.mask_of(weights, params, fn=fn, names=("params", "weights"))
    checks.packed(weights, fn=fn, stacked=False)
    checks.boolean(weights, fn=fn, name="weights", or_soft=True)
    sums = [
        _distance(p, a, m)
        for (_, p, m), a in zip(pairs, jax.tree.leaves(anchor), strict=True)
        if m is not None and checks.is_floating(p)
    ]
    if not sums:
        raise ValueError(f"`{fn}` needs floating leaves that count, got none.")
    dtype = max(sums, key=lambda x: x.dtype.itemsize).dtype
    total = jnp.sum(jnp.stack([x.astype(dtype) for x in sums]))
    return jnp.asarray(lam).astype(dtype) * total


def _distance(p: Array, anchor: Array, m: Array) -> Array:
    """What one leaf adds; removed entries are out of it before they are squared."""
    d = wide(p) - wide(anchor)
    if checks.is_floating(m):
        return jnp.sum(m.astype(d.dtype) * jnp.square(d))
    return jnp.sum(jnp.square(masking.apply(d, m)))
