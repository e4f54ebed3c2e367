"""One weight made of random ones: a block of hidden neurons, and a mask that keeps few.

A block of k neurons has one input x; neuron h contributes u_h relu(v_h x). If x > 0,
only neurons with v_h > 0 fire, and contribute u_h v_h x; if x < 0, only the others do.
So if the products u_h v_h of the kept neurons of each sign sum to w, the block computes
w x. Four ways to choose the neurons, for each sign:

  * "factor": one neuron with v near |w| and u near the sign of w; error about k**-1/2
  * "product": the neuron whose product is nearest to w; error about 1 / k
  * "subset_sum": the subset whose sum is nearest to w; error exponentially small in k
  * "greedy": a subset from one pass over the products, from large ones to small ones

Shapes: I inputs, each with a block of k neurons, and O outputs. A block serves every
output, because u has a weight for each.

    >>> inner, outer = jnp.array([[0.5, 1.0]]), jnp.array([[[0.5], [0.75]]])
    >>> chosen = gadget.choose(
    ...     inner, outer, jnp.array([[0.7]]), construction="product", nonnegative=True
    ... )
    >>> chosen.ravel()
    Array([False,  True], dtype=bool)
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maskjax._core import checks, dtypes, placement
from maskjax._core.trees import Array
from maskjax.theory import subset_sum

__all__ = ["Construction", "beyond", "block_size", "choose", "gains"]

Construction = Literal["factor", "greedy", "product", "subset_sum"]
_CONSTRUCTIONS = ("factor", "greedy", "product", "subset_sum")
_SUMS = ("greedy", "subset_sum")


def choose(
    inner: Any,
    outer: Any,
    target: Any,
    *,
    construction: Construction,
    nonnegative: Any = False,
    tolerance: float | None = None,
    bins: int = 14,
    memory: int = 2**30,
) -> Array:
    """The neurons of each block to keep, so that it makes the wanted weight.

    Keeping no neuron is a choice too; it is best for a weight of 0. All constructions
    but "subset_sum" run under `jit`.

    Args:
        inner: [I, k], floating: v.
        outer: [I, k, O], floating: u.
        target: [I, O], floating: the wanted weights.
        construction: One of the four ways listed in the module's docstring.
        nonnegative: Whether an input is never negative, a boolean or [I] of them. If
            so, neurons with v < 0 are removed, because they never fire.
        tolerance: With "subset_sum" only: choose the smallest subset within this
            tolerance instead of the nearest one.
        bins: With "greedy": the number of bins of magnitudes, see `subset_sum.greedy`.
        memory: With "subset_sum": how many bytes the search may use.

    Returns:
        [I, k, O], boolean: True keeps the outer weight.

    Raises:
        TypeError: If an array is not floating, or is traced with "subset_sum".
        ValueError: If shapes do not fit, the construction is unknown, a tolerance is
            given without "subset_sum", or the search needs more than `memory`.

    Example:
        >>> v, u = jnp.array([[1.0, 1.0, -1.0]]), jnp.array([[[0.25], [0.5], [-0.75]]])
        >>> gadget.choose(v, u, jnp.array([[0.75]]), construction="subset_sum").ravel()
        Array([ True,  True,  True], dtype=bool)

    References:
        Malach et al., arXiv:2002.00585 (factor; here also product). Pensia et al.,
        arXiv:2006.07990 (subset sums). Orseau et al., arXiv:2006.12156 (greedy).
    """
    fn = "maskjax.theory.gadget.choose"
    checks.one_of(construction, _CONSTRUCTIONS, fn=fn, name="construction")
    never = _fit(inner, outer, target, nonnegative, fn=fn)
    if tolerance is not None and construction != "subset_sum":
        raise ValueError(
            f"`{fn}` needs `construction` as 'subset_sum' where it gets a `tolerance`, "
            f"got {construction!r}."
        )
    if construction == "subset_sum":
        mask = np.zeros(outer.shape, bool)
        for sign in (1, -1):
            _sum_up(mask, inner, outer, target, sign, never, tolerance, memory)
        return dtypes.as_array(mask)
    signs = (1,) if never.all() else (1, -1)
    return _choose(inner, outer, target, never, construction, bins, signs)


def gains(inner: Any, outer: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """The weights that the kept neurons make.

    Args:
        inner: [I, k]: v.
        outer: [I, k, O]: u.
        mask: [I, k, O], boolean: True keeps the outer weight.

    Returns:
        Two arrays [I, O], float64: the weight for positive inputs, and the one for
        negative inputs.

    Example:
        >>> v, u = jnp.array([[1.0, -0.5]]), jnp.array([[[0.25], [0.5]]])
        >>> positive, negative = gadget.gains(v, u, jnp.ones((1, 2, 1), bool))
        >>> positive.item(), negative.item()
        (0.25, -0.25)
    """
    v, kept = np.asarray(inner).astype(np.float64), np.asarray(mask)
    sums = np.zeros((2, v.shape[0], kept.shape[2]))
    for i, u in enumerate(np.asarray(outer)):  # one input at a time, to save memory
        terms = np.where(kept[i], u.astype(np.float64), 0.0)
        sums[0, i] = v[i].clip(min=0) @ terms
        sums[1, i] = v[i].clip(max=0) @ terms
    return sums[0], sums[1]


def beyond(
    inner: Any,
    outer: Any,
    target: Any,
    *,
    construction: Construction,
    nonnegative: Any = False,
) -> np.ndarray:
    """The wanted weights that are out of reach.

    A weight is out of reach if it is below the lowest or above the highest value that
    the construction can make: of one product, or of a sum of products.

    Args:
        inner: [I, k], floating: v.
        outer: [I, k, O], floating: u.
        target: [I, O], floating: the wanted weights.
        construction: One of the four ways listed in the module's docstring.
        nonnegative: Whether an input is never negative, a boolean or [I] of them.

    Returns:
        [I, O], a boolean NumPy array: True is out of reach.

    Raises:
        TypeError: If an array is not floating.
        ValueError: If shapes do not fit, or the construction is unknown.

    Example:
        >>> v, u = jnp.array([[0.5, 0.5]]), jnp.array([[[0.5], [0.25]]])
        >>> wanted = jnp.array([[0.3]])
        >>> [
        ...     gadget.beyond(v, u, wanted, construction=name, nonnegative=True).item()
        ...     for name in ("product", "subset_sum")
        ... ]
        [True, False]
    """
    fn = "maskjax.theory.gadget.beyond"
    checks.one_of(construction, _CONSTRUCTIONS, fn=fn, name="construction")
    never = np.asarray(_fit(inner, outer, target, nonnegative, fn=fn))
    reduce = np.sum if construction in _SUMS else np.max
    v, w = (np.asarray(a).astype(np.float64) for a in (inner, target))
    out = np.zeros(w.shape, bool)
    for i, u in enumerate(np.asarray(outer)):
        products = v[i, :, None] * u.astype(np.float64)
        for sign in (1, -1)[: 1 if never[i] else 2]:
            usable = np.where(sign * v[i, :, None] > 0, products, 0.0)
            high = reduce(usable.clip(min=0), axis=0)
            low = -reduce(-usable.clip(max=0), axis=0)
            out[i] |= (w[i] < low) | (w[i] > high)
    return out


def block_size(
    construction: Construction,
    *,
    epsilon: float,
    delta: float,
    nonnegative: bool = False,
) -> int:
    """How many neurons are provably enough for one weight.

    * "product", for |w| + epsilon <= 1/2 and all weights uniform in [-1, 1]: a neuron
      has v > 0 and u v within epsilon of w with probability at least epsilon ln(2) / 2.
    * "factor", for |w| <= 1 and all weights uniform in [-1, 1]: each factor is within
      epsilon / 2 with probability at least epsilon / 4.
    * "greedy", for |w| <= 1, v = +-1 and u from
      `initializer.signed_log_uniform(2**-b)` with b = ceil(log2(1 / epsilon)): each of
      the b bins has a coefficient of each sign, so `subset_sum.greedy` halves the error
      b times.

    Args:
        construction: "factor", "product" or "greedy". For "subset_sum" no constant is
            known.
        epsilon: The allowed error, in (0, 1/2].
        delta: The allowed probability of a larger error, in (0, 1). For n weights at
            once, divide it by n.
        nonnegative: Whether the input is never negative.

    Returns:
        k, a Python integer.

    Raises:
        ValueError: If the construction is not one of these, or a number is out of
            range.

    Example:
        >>> gadget.block_size("product", epsilon=0.05, delta=0.01)
        306

    References:
        Malach et al., arXiv:2002.00585, appendix A; the constants are derived here.
    """
    fn = "maskjax.theory.gadget.block_size"
    known = tuple(name for name in _CONSTRUCTIONS if name != "subset_sum")
    checks.one_of(construction, known, fn=fn, name="construction")
    if not 0 < epsilon <= 0.5 or not 0 < delta < 1:
        raise ValueError(
            f"`{fn}` needs `epsilon` in (0, 0.5] and `delta` in (0, 1), got {epsilon} "
            f"and {delta}."
        )
    halves = 1 if nonnegative else 2
    if construction == "product":
        return math.ceil(math.log(halves / delta) / (epsilon * math.log(2) / 2))
    if construction == "factor":
        return math.ceil(math.log(halves / delta) * 16 / epsilon**2)
    bins = math.ceil(math.log2(1 / epsilon))
    return math.ceil(4 * bins * math.log(2 * bins * halves / delta))


@functools.partial(jax.jit, static_argnames=("construction", "bins", "signs"))
def _choose(
    inner: Array,
    outer: Array,
    target: Array,
    never: Array,
    construction: Construction,
    bins: int,
    signs: tuple[int, ...],
) -> Array:
    """The mask of a construction other than "subset_sum"."""
    inner, outer, target = placement.whole((inner, outer, target))
    u, w = outer.astype(inner.dtype), target.astype(inner.dtype)

    def walk(sign: int) -> Array:
        fires = (inner * sign > 0)[:, :, None]
        terms = jnp.where(fires, inner[:, :, None] * u, 0).swapaxes(1, 2)
        lanes = w.reshape(-1, 1), terms.reshape(-1, inner.shape[1])
        mask = subset_sum.greedy(*lanes, bins=bins).mask
        return mask.reshape(terms.shape).swapaxes(1, 2)

    def one(sign: int, v: Array, u: Array, w: Array) -> Array:
        """The best neuron of one block that fires for this sign, [k, O]."""
        v, u = v * sign, u * sign
        fires = (v > 0)[:, None]
        error = away = jnp.abs(v[:, None] * u - w[None])
        if construction == "factor":
            away = jnp.abs(v[:, None] - jnp.abs(w)[None])
            away = jnp.maximum(away, jnp.abs(u - jnp.sign(w)[None]))
        best = jnp.argmin(jnp.where(fires, away, jnp.inf), axis=0)
        here = jnp.arange(len(v))[:, None] == best[None]
        return here & fires & (error < jnp.abs(w)[None])

    def half(sign: int) -> Array:
        if construction == "greedy":
            return walk(sign)
        # One input at a time, so that only the mask is as large as all weights.
        return lax.map(lambda given: one(sign, *given), (inner, u, w))

    mask = half(1)
    return mask | (half(-1) & ~never[:, None, None]) if -1 in signs else mask


def _sum_up(
    mask: np.ndarray,
    inner: Any,
    outer: Any,
    target: Any,
    sign: int,
    never: Any,
    tolerance: float | None,
    memory: int,
) -> None:
    """Add to the mask the best subsets of the neurons that fire for one sign."""
    v, u, w = (np.asarray(a) for a in (inner, outer, target))

    def subsets(w: np.ndarray, terms: np.ndarray) -> np.ndarray:
        if tolerance is None:
            return subset_sum.nearest(w, terms, memory=memory).mask
        return subset_sum.smallest(w, terms, tolerance=tolerance, memory=memory).mask

    fires = v.astype(np.float64) * sign > 0
    inputs = np.flatnonzero(fires.any(1) & ~(np.asarray(never) & (sign < 0)))
    if not inputs.size:
        return
    if len(inputs) > 1 and (v == v[:1]).all() and (u == u[:1]).all():
        # All inputs share their coefficients, so that one search serves all of them.
        (h,) = np.nonzero(fires[0])
        terms = (v[0, h, None].astype(np.float64) * u[0, h].astype(np.float64)).T
        found = subsets(w[inputs].T, terms)
        mask[np.ix_(inputs, h)] |= found.transpose(1, 2, 0)
        return
    for i in inputs:
        (h,) = np.nonzero(fires[i])
        terms = (v[i, h, None].astype(np.float64) * u[i, h].astype(np.float64)).T
        mask[i, h] |= subsets(w[i][:, None], terms)[:, 0].T


def _fit(
    inner: Any, outer: Any, target: Any, nonnegative: Any, *, fn: str
) -> np.ndarray:
    """Whether each input is never negative, [I]; raises unless all arrays fit."""
    named = {"inner": inner, "outer": outer, "target": target}
    checks.raise_all(
        (
            f"{name}: {checks.kind_of(array)}"
            for name, array in named.items()
            if not checks.is_floating(array)
        ),
        f"`{fn}` needs floating arrays",
        TypeError,
    )
    shapes = {name: tuple(array.shape) for name, array in named.items()}
    (i, k), (_, o) = ((shapes[name] + (0, 0))[:2] for name in ("inner", "target"))
    if list(shapes.values()) != [(i, k), (i, k, o), (i, o)] or 0 in (i, k, o):
        raise ValueError(
            f"`{fn}` needs `inner` [I, k], `outer` [I, k, O] and `target` [I, O], got "
            f"{shapes['inner']}, {shapes['outer']} and {shapes['target']}."
        )
    never = np.asarray(nonnegative)
    if never.dtype != bool or never.shape not in ((), (i,)):
        raise ValueError(
            f"`{fn}` needs `nonnegative` as a boolean, or {i} of them, got "
            f"{checks.kind_of(nonnegative)}."
        )
    return np.broadcast_to(never, (i,))
