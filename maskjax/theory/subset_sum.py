"""Subsets of numbers whose sums approximate targets: nearest, smallest, or greedy.

Each row of coefficients [R, n] serves M targets, [R, M]. (M = 1: every target has its
own coefficients.) A subset is a mask [R, M, n]; the empty one sums to 0.

    >>> found = subset_sum.nearest(jnp.array([[0.5]]), jnp.array([[0.75, 0.25, 0.25]]))
    >>> print(found.mask[0, 0], found.error)
    [False  True  True] [[0.]]

`nearest` and `smallest` are exact searches in NumPy, for up to about 50 coefficients.
They run in float64, where sums of float32 numbers of similar size are exact. `greedy`
is a JAX function for any number of coefficients and runs under `jit`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from maskjax._core import checks, placement
from maskjax._core.stored import stored
from maskjax.theory import _halves

__all__ = ["Subsets", "greedy", "nearest", "smallest"]

_MEMORY = 2**30
_LANES = 2**13  # targets that `greedy` works on at a time
_SORTED = 4  # for so many targets a row, `greedy` sorts the coefficients first
_LEAST = -(2**15)  # below the exponents of all floats
# From the numbers [L] of a few targets to their subsets [L, n] and what is left, [L].
_Some = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


@stored("maskjax.theory.subset_sum.Subsets")
class Subsets(NamedTuple):
    """A subset for each target; a pytree.

    Attributes:
        mask: [R, M, n], boolean: True is in the subset.
        error: [R, M], the distance between the target and the subset's sum.
        beyond: [R, M], boolean: the target is out of reach, because it is below the sum
            of all negative coefficients or above the sum of all positive ones.
    """

    mask: Any
    error: Any
    beyond: Any


def nearest(targets: Any, coefficients: Any, *, memory: int = _MEMORY) -> Subsets:
    """For each target the subset, of all 2**n, whose sum is nearest.

    The search meets in the middle. It sorts the sums of one half of the coefficients
    and looks up what each sum of the other half leaves of the target: about 2**(n / 2)
    look-ups instead of 2**n.

    Args:
        targets: [R, M], floating.
        coefficients: [R, n], floating.
        memory: The largest number of bytes to use.

    Returns:
        The subsets, as NumPy arrays. Errors are those of sums in float64, from the
        first coefficient to the last. If several subsets are equally near, it is any
        one of them.

    Raises:
        TypeError: If an argument is not a floating array, or is traced.
        ValueError: If the shapes do not fit, an entry is not finite, or `memory` is not
            enough for one target; the message says how much is.

    Example:
        >>> found = subset_sum.nearest(jnp.array([[0.5, 9.0]]), jnp.array([[0.3, 0.5]]))
        >>> found.mask.astype(int).tolist(), found.beyond.tolist()
        ([[[0, 1], [1, 1]]], [[False, True]])

    References:
        Horowitz & Sahni, "Computing Partitions with Applications to the Knapsack
        Problem", JACM 1974. Pensia et al., arXiv:2006.07990, section 3 (why a few
        random coefficients are enough).
    """
    t, c = _doubles(targets, coefficients, fn="nearest")
    split = _halves.split_at(t.shape[1], c.shape[1], memory, fn=_name("nearest"))
    mask = np.zeros((*t.shape, c.shape[1]), bool)
    for at in _halves.pieces(t.shape, c.shape[1], split, memory):
        left, right = _halves.sums_of(c[at[0]], split)
        _, i, j = _halves.closest(left, right, t[at])
        mask[at] = _halves.subset(i, j, split, c.shape[1])
    return _subsets(mask, t, c)


def smallest(
    targets: Any, coefficients: Any, *, tolerance: float, memory: int = _MEMORY
) -> Subsets:
    """For each target the smallest subset whose sum is within a tolerance.

    It searches subsets of 0, 1, 2, ... coefficients until some are within the tolerance
    and returns the nearest of these.

    Args:
        targets: [R, M], floating.
        coefficients: [R, n], floating.
        tolerance: The largest distance of a sum from its target.
        memory: The largest number of bytes to use.

    Returns:
        The subsets, as NumPy arrays, with errors in float64. If no subset is within the
        tolerance, it is the nearest one, and its error is above the tolerance.

    Raises:
        TypeError: If an array is not floating or is traced, or the tolerance is not a
            number.
        ValueError: If the shapes do not fit, an entry is not finite, the tolerance is
            negative, or `memory` is not enough for one target.

    Example:
        >>> coefficients = jnp.array([[0.25, 0.25, 0.75, 0.5625]])
        >>> found = subset_sum.smallest(
        ...     jnp.array([[0.5]]), coefficients, tolerance=0.125
        ... )
        >>> found.mask.astype(int).tolist(), found.error.tolist()
        ([[[0, 0, 0, 1]]], [[0.0625]])
    """
    _number(tolerance, fn=_name("smallest"))
    t, c = _doubles(targets, coefficients, fn="smallest")
    best, n = nearest(t, c, memory=memory), c.shape[1]
    split = _halves.split_at(t.shape[1], n, memory, fn=_name("smallest"))
    for at in _halves.pieces(t.shape, n, split, memory):
        mask, to_do = best.mask[at], best.error[at] <= tolerance
        left, right = _halves.sums_of(c[at[0]], split)
        for size in range(n + 1):
            rows = np.flatnonzero(to_do.any(1))
            if not rows.size:
                break
            i, j = _halves.closest_of_size(left[rows], right[rows], t[at][rows], size)
            found = _halves.subset(i, j, split, n)
            near = _error(found, t[at][rows], c[at[0]][rows]) <= tolerance
            near &= to_do[rows]
            mask[rows] = np.where(near[..., None], found, mask[rows])
            to_do[rows] &= ~near
        best.mask[at] = mask
    return _subsets(best.mask, t, c)


def greedy(targets: Any, coefficients: Any, *, bins: int = 14) -> Subsets:
    """Subsets from one pass over the coefficients, from large ones to small ones.

    Coefficients are binned by magnitude. A bin holds magnitudes between two powers of
    two, the first bin the largest ones of the row, and the last bin everything that is
    smaller. Bin by bin, a coefficient joins the subset if that brings the sum nearer to
    the target.

    Suppose that every bin has a coefficient of each sign (the last bin: one of at least
    half its upper end), and that the target is at most 2**e, the upper end of the first
    bin. Then each bin halves the error, which ends at most at 2**(e - bins).

    Args:
        targets: [R, M], floating.
        coefficients: [R, n], floating, of the targets' dtype. Zeros change nothing.
        bins: The number of bins.

    Returns:
        The subsets. Errors are in the targets' dtype.

    Raises:
        TypeError: If an argument is not a floating array, the dtypes differ, or `bins`
            is no whole number.
        ValueError: If the shapes do not fit, or `bins` is below 1.

    Example:
        >>> coefficients = jnp.array([[0.25, 0.5, 0.0625, -0.125]])
        >>> found = subset_sum.greedy(jnp.array([[0.625]]), coefficients)
        >>> found.mask.astype(int), found.error
        (Array([[[0, 1, 1, 0]]], dtype=int32), Array([[0.0625]], dtype=float32))

    References:
        In the spirit of Orseau et al., "Logarithmic Pruning is All You Need", NeurIPS
        2020. arXiv:2006.12156, section 3.
    """
    fn = _name("greedy")
    _fit(targets, coefficients, fn=fn)
    checks.at_least(bins, 1, fn=fn, name="bins")
    t, c = jnp.asarray(targets), jnp.asarray(coefficients)
    if t.dtype != c.dtype:
        raise TypeError(
            f"`{fn}` needs `targets` and `coefficients` of one dtype, got {t.dtype} "
            f"and {c.dtype}."
        )
    return _walk(t, c, bins=bins)


@functools.partial(jax.jit, static_argnames="bins")
def _walk(t: jax.Array, c: jax.Array, *, bins: int) -> Subsets:
    t, c = placement.whole((t, c))
    (rows, many), n = t.shape, c.shape[1]
    # 2**(exponent - 1) <= |c| < 2**exponent, exactly. `frexp` gives 0 the exponent 0,
    # but 0 must not be the largest of its row.
    mantissa, exponent = jnp.frexp(jnp.abs(c))
    exponent = jnp.where((mantissa >= 0.5) & (mantissa < 1), exponent, _LEAST)
    place = jnp.clip(exponent.max(1, keepdims=True) - exponent, 0, bins - 1)
    some = _in_order(t, c, place) if many >= _SORTED else _by_bins(t, c, place, bins)
    size = min(_LANES, t.size)
    lanes = jnp.arange(-(-t.size // size) * size, dtype=jnp.int32)
    mask, left = lax.map(some, jnp.minimum(lanes, t.size - 1).reshape(-1, size))
    mask = mask.reshape(-1, n)[: t.size].reshape(rows, many, n)
    error = jnp.abs(left.ravel()[: t.size].reshape(t.shape))
    low, high = c.clip(max=0).sum(1)[:, None], c.clip(min=0).sum(1)[:, None]
    return Subsets(mask, error, (t < low) | (t > high))


def _by_bins(t: jax.Array, c: jax.Array, place: jax.Array, bins: int) -> _Some:
    """A pass over all coefficients for each bin. Nothing needs to be sorted."""
    many, n = t.shape[1], c.shape[1]

    def some(lane: jax.Array) -> tuple[jax.Array, jax.Array]:
        terms, bin_of = c[lane // many].T, place[lane // many].T

        def step(i: jax.Array, state: Any) -> Any:
            left, mask = state
            h = i % n
            rest = left - terms[h]
            joins = (bin_of[h] == i // n) & (jnp.abs(rest) < jnp.abs(left))
            return jnp.where(joins, rest, left), mask.at[h].set(mask[h] | joins)

        start = t.ravel()[lane], jnp.zeros(terms.shape, bool)
        left, mask = lax.fori_loop(0, bins * n, step, placement.vary_like(start, t, c))
        return mask.T, left

    return some


def _in_order(t: jax.Array, c: jax.Array, place: jax.Array) -> _Some:
    """One pass over coefficients that are sorted by bin, once for each row."""
    many, n = t.shape[1], c.shape[1]
    at = jnp.arange(n, dtype=jnp.int32)[None]
    # XLA sorts single numbers several times faster than numbers with their places.
    order = jnp.sort(place * n + at, axis=1) % n
    back = jnp.sort(order * n + at, axis=1) % n
    terms = jnp.take_along_axis(c, order, 1)

    def some(lane: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(left: jax.Array, term: jax.Array) -> tuple[jax.Array, jax.Array]:
            rest = left - term
            joins = jnp.abs(rest) < jnp.abs(left)
            return jnp.where(joins, rest, left), joins

        start = placement.vary_like(t.ravel()[lane], c)
        left, mask = lax.scan(step, start, terms[lane // many].T)
        return jnp.take_along_axis(mask.T, back[lane // many], 1), left

    return some


def _name(function: str) -> str:
    return f"maskjax.theory.subset_sum.{function}"


def _number(tolerance: Any, *, fn: str) -> None:
    if not checks.is_number(tolerance):
        raise TypeError(
            f"`{fn}` needs `tolerance` as a number, got {checks.kind_of(tolerance)}."
        )
    if not float(tolerance) >= 0:
        raise ValueError(f"`{fn}` needs `tolerance` of at least 0, got {tolerance}.")


def _fit(targets: Any, coefficients: Any, *, fn: str) -> None:
    for name, array in (("targets", targets), ("coefficients", coefficients)):
        checks.floating(array, fn=fn, name=name)
    shapes = np.shape(targets), np.shape(coefficients)
    if any(len(s) != 2 for s in shapes) or shapes[0][0] != shapes[1][0]:
        raise ValueError(
            f"`{fn}` needs `targets` [R, M] and `coefficients` [R, n], a row for each "
            f"row of targets, got {shapes[0]} and {shapes[1]}."
        )
    if 0 in shapes[0] + shapes[1]:
        raise ValueError(
            f"`{fn}` needs at least one target and one coefficient, got {shapes[0]} "
            f"and {shapes[1]}."
        )


def _doubles(targets: Any, coefficients: Any, *, fn: str) -> tuple[Any, Any]:
    """Both as NumPy arrays in float64."""
    fn = _name(fn)
    _fit(targets, coefficients, fn=fn)
    if isinstance(targets, Tracer) or isinstance(coefficients, Tracer):
        raise TypeError(
            f"`{fn}` needs arrays whose values are known, got a traced one. Call it "
            "outside `jit`, or use `greedy`."
        )
    arrays = [np.asarray(a).astype(np.float64) for a in (targets, coefficients)]
    for name, array in zip(("targets", "coefficients"), arrays, strict=True):
        if not np.isfinite(array).all():
            wrong = np.argwhere(~np.isfinite(array))
            raise ValueError(
                f"`{fn}` needs finite `{name}`, but {len(wrong)} are not, the first at "
                f"{tuple(wrong[0].tolist())}."
            )
    return arrays[0], arrays[1]


def _error(mask: np.ndarray, t: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Distances of targets from sums, added from the first coefficient to the last."""
    total = np.zeros(t.shape)
    for p in range(c.shape[1]):
        total += np.where(mask[..., p], c[:, p, None], 0.0)
    return np.abs(total - t)


def _subsets(mask: np.ndarray, t: np.ndarray, c: np.ndarray) -> Subsets:
    low, high = (f(c, 0).sum(1)[:, None] for f in (np.minimum, np.maximum))
    return Subsets(mask, _error(mask, t, c), (t < low) | (t > high))
