"""Straight-through estimators: a hard mask with the gradient of something smooth."""

from __future__ import annotations

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax import packing, select
from maskjax._core import blame, checks, placement, trees
from maskjax._core.trees import Array, Density, Predicate, Scores, SoftMask
from maskjax.select._choice import smoothed
from maskjax.structure import Entries, Structure
from maskjax.where import kernels


def straight_through(hard: Any, soft: Any) -> SoftMask:
    """The values of one tree with the gradient of another.

    The value is exactly `hard`, even where `soft` is inf or nan; derivatives of any
    order are those of `soft`. `top_k`, `threshold` and `bernoulli` are the usual cases.

    Args:
        hard: A mask, packed or not, or any tree of arrays.
        soft: A tree of floating leaves of the same structure and shapes.

    Returns:
        The values of `hard` in the dtypes of `soft`. A leaf of `hard` that has the
        dtype already may be passed through uncopied.

    Raises:
        TypeError: If a leaf of `soft` is not floating.
        ValueError: If the trees differ in structure or shapes.

    Example:
        >>> def f(x):
        ...     return estimator.straight_through(jnp.round(x), x**2)
        >>> f(jnp.float32(1.6)), jax.grad(f)(jnp.float32(1.6))
        (Array(2., dtype=float32), Array(3.2, dtype=float32))

    References:
        Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons
        for Conditional Computation". arXiv:1308.3432, section 4.
    """
    fn = "maskjax.estimator.straight_through"
    checks.floating_scores(soft, fn=fn, name="soft")
    hard = trees.map_mask(packing.unpack_leaf, hard)
    checks.same_shapes(soft, hard, fn=fn, names=("soft", "hard"))
    # Inside `shard_map`, scores may be the same on all devices and samples not.
    soft = placement.vary_like(soft, hard)
    return trees.map_mask(lambda s, h: _pass_through(h, s), soft, hard)


@overload
def top_k(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: select.Scope = "leaf",
    structure: Structure | Any = Entries(),
    where: Predicate = kernels,
    guess: Scores | None = None,
    return_cutoff: Literal[False] = False,
) -> SoftMask: ...


@overload
def top_k(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: select.Scope = "leaf",
    structure: Structure | Any = Entries(),
    where: Predicate = kernels,
    guess: Scores | None = None,
    return_cutoff: Literal[True],
) -> tuple[SoftMask, Scores]: ...


def top_k(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: select.Scope = "leaf",
    structure: Structure | Any = Entries(),
    where: Predicate = kernels,
    guess: Scores | None = None,
    return_cutoff: bool = False,
) -> SoftMask | tuple[SoftMask, Scores]:
    """The mask of the highest scores, with the identity as its derivative.

    Removed entries receive gradients too, which is how they come back. Where a
    structure decides on entries together, the gradient goes through the mean of their
    scores.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone.
        density: The fraction to keep, in [0, 1]: a number, a scalar array, or a tree of
            them like `scores`, as in `select.top_k`.
        scope: "leaf" ranks each leaf on its own, "global" all of them together, "layer"
            each index of a stack (where nothing is stacked: each leaf), "output" each
            output of each of them.
        structure: What is decided together, see `maskjax.structure`, or a tree of
            structures like `scores`. With `structure.Groups` the gradient of an entry
            goes to the scores of the units in which it lies.
        where: What the axes mean; `scores` says which leaves have a mask.
        guess: The cutoffs of an earlier call. They make the search faster where scores
            have moved little, and never change the mask.
        return_cutoff: Whether to return the cutoffs as well.

    Returns:
        A soft mask of exact 0s and 1s in the scores' dtypes. With `return_cutoff` also
        a tree like `scores` of where the selection cut, as in `select.top_k`.

    Raises:
        TypeError: If a leaf of `scores` is not floating, or density is not a number.
        ValueError: If density is outside [0, 1], the scope is unknown, a leaf does not
            fit the structure, or `guess` or a tree of densities does not fit `scores`.

    Example:
        >>> estimator.top_k({"w": jnp.array([3.0, 1.0, 2.0])}, density=0.34)
        {'w': Array([1., 0., 0.], dtype=float32)}

    References:
        Ramanujan et al., arXiv:1911.13299, section 3.
    """
    with blame.instead_of("maskjax.select.top_k", "maskjax.estimator.top_k"):
        hard, cutoff = select.top_k(
            scores,
            density=density,
            scope=scope,
            structure=structure,
            where=where,
            guess=guess,
            return_cutoff=True,
        )
    how = scope, structure, where
    soft = smoothed(scores, *how, fn="maskjax.estimator.top_k")
    soft = straight_through(hard, soft)
    return (soft, cutoff) if return_cutoff else soft


def threshold(scores: Scores, *, at: ArrayLike | Scores = 0.0) -> SoftMask:
    """The mask of scores that reach a threshold, with the identity as its derivative.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone.
        at: Entries with `score >= at` are kept: a number, which may be traced, or a
            tree of them like `scores`, such as the cutoffs of `top_k`.

    Returns:
        A soft mask of exact 0s and 1s in the scores' dtypes.

    Raises:
        TypeError: If a leaf of `scores` is not floating.
        ValueError: If a tree of thresholds does not fit `scores`.

    Example:
        >>> estimator.threshold({"w": jnp.array([-1.0, 0.0, 2.0])})
        {'w': Array([0., 1., 1.], dtype=float32)}

    References:
        Mallya et al., "Piggyback", ECCV 2018. arXiv:1801.06519, section 3.
    """
    with blame.instead_of("maskjax.select.threshold", "maskjax.estimator.threshold"):
        hard = select.threshold(scores, at=at)
    return straight_through(hard, scores)


def bernoulli(logits: Scores, *, key: Array) -> SoftMask:
    """A random mask, kept with probability sigmoid(logits), with that derivative.

    Args:
        logits: Tree of floating leaves, `None` where a parameter is left alone. nan is
            never kept, and gets a gradient of nan.
        key: A typed key; every leaf gets its own.

    Returns:
        A soft mask of exact 0s and 1s in the logits' dtypes. Its derivative is that of
        the sigmoid, as if the sample were its probability.

    Raises:
        TypeError: If a leaf is not floating, or the key is not a typed key.

    Example:
        >>> logits = {"w": jnp.array([-99.0, 0.0, 99.0])}
        >>> estimator.bernoulli(logits, key=jax.random.key(0))["w"][::2]
        Array([0., 1.], dtype=float32)

    References:
        Zhou et al., arXiv:1905.01067, section 5.1.
    """
    fn = "maskjax.estimator.bernoulli"
    checks.typed_key(key, fn=fn)
    checks.floating_scores(logits, fn=fn, name="logits")
    checks.beside(logits, fn=fn, name="logits", key=key)
    soft = trees.map_mask(jax.nn.sigmoid, logits)
    hard = select.bernoulli(jax.lax.stop_gradient(soft), key=key)
    return straight_through(hard, soft)


@jax.custom_jvp
def _pass_through(hard: Array, soft: Array) -> Array:
    # Not soft + stop_gradient(hard - soft), which rounds, and is nan where soft is inf.
    return jnp.asarray(hard).astype(soft.dtype)


@_pass_through.defjvp
def _pass_through_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    hard, soft = primals
    return _pass_through(hard, soft), tangents[1]
