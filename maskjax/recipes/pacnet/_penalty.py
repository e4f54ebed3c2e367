"""A penalty on the distance from the source's parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maskjax import masking
from maskjax._core import checks
from maskjax._core.trees import Array, Mask, Params, Scores
from maskjax.score._objective import wide


def l2_sp(
    params: Params,
    anchor: Params,
    coefficients: Mask | Scores = None,
    *,
    lam: float | Array = 0.01,
) -> Array:
    """The penalty lam * sum c * (p - a)^2, to be added to a loss.

    Args:
        params: Tree of arrays p. Leaves that are not floating do not count.
        anchor: A tree like `params`: the values a that `params` should stay near.
        coefficients: The factors c: a mask, such as the `mask` of a phase, where True
            counts once; or floating leaves. Leaves of `None` do not count. `None` for
            the whole tree: every entry counts once.
        lam: The strength, at least 0. May be traced.

    Returns:
        A scalar, float32 or wider. Entries that a mask removes have gradient 0.

    Raises:
        TypeError: If `lam` is not a number, or a leaf of `coefficients` is neither
            boolean nor floating.
        ValueError: If `lam` is negative or not finite, or if `anchor` or `coefficients`
            does not fit `params`.

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
    if coefficients is None:
        coefficients = jax.tree.map(lambda p: np.ones((1,) * jnp.ndim(p), bool), params)
    names = ("params", "coefficients")
    pairs = checks.masked(params, coefficients, fn=fn, names=names, soft=True)
    sums = [
        _distance(p, a, c)
        for (p, c), a in zip(pairs, jax.tree.leaves(anchor), strict=True)
        if c is not None and checks.is_floating(p)
    ]
    if not sums:
        raise ValueError(f"`{fn}` needs floating leaves that count, got none.")
    dtype = max(sums, key=lambda x: x.dtype.itemsize).dtype
    total = jnp.sum(jnp.stack([x.astype(dtype) for x in sums]))
    return jnp.asarray(lam).astype(dtype) * total


@jax.jit
def _distance(p: Array, anchor: Array, c: Array) -> Array:
    """The sum over one leaf; removed entries are set to 0 before they are squared."""
    d = wide(p) - wide(anchor)
    if checks.is_floating(c):
        return jnp.sum(c.astype(d.dtype) * jnp.square(d))
    return jnp.sum(jnp.square(masking.apply(d, c)))
