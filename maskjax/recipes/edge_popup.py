"""Edge-popup: train scores, keep the weights random (Ramanujan et al., CVPR 2020).

What's Hidden in a Randomly Weighted Neural Network? arXiv:1911.13299.

Algorithm (numbers match the comments below):
  1. draw weights once and freeze them; draw a score for each weight
  2. the mask keeps the highest |scores|, a fraction `density` of each leaf
  3. the gradient goes straight through the mask to every score, removed ones included
Before training the mask is a random one. The paper trains the scores with SGD, momentum
0.9 and a cosine schedule; the training loop is yours.

Variants that are compositions, with `sizes` the absolute values of the scores:
  * thresholds that stay: `estimator.threshold(sizes, at=cutoffs)`, with the cutoffs
    that `mask` returned once
  * sampled masks: `supermask`

Departures from the paper:
  * the mask has exactly round(density * n) entries, ties going to the lower index
  * `density` is the fraction kept; `prune_rate` in the paper's code is not always

    >>> import optax
    >>> from maskjax.recipes import edge_popup
    >>> weights, sgd = {"w": jnp.array([[1.0], [-1.0]])}, optax.sgd(1.0)
    >>> def loss(scores, x, y):
    ...     params = maskjax.apply(weights, edge_popup.soft_mask(scores, density=0.5))
    ...     return jnp.mean((x @ params["w"] - y) ** 2)
    >>> scores = edge_popup.init(weights, key=jax.random.key(0))
    >>> opt_state, x, y = sgd.init(scores), jnp.array([[0.0, 1.0]]), -1.0
    >>> for _ in range(3):
    ...     updates, opt_state = sgd.update(jax.grad(loss)(scores, x, y), opt_state)
    ...     scores = optax.apply_updates(scores, updates)
    >>> edge_popup.mask(scores, density=0.5)["w"].ravel()
    Array([False,  True], dtype=bool)
"""

from __future__ import annotations

from maskjax import initializer, select
from maskjax._core import blame
from maskjax._core.trees import (
    Array,
    Density,
    Mask,
    Params,
    Predicate,
    Scores,
    SoftMask,
)
from maskjax.recipes._highest import highest, soft_highest
from maskjax.where import kernels

__all__ = ["init", "mask", "soft_mask"]


def init(weights: Params, *, where: Predicate = kernels, key: Array) -> Scores:
    """Scores to train, uniform in +-1 / sqrt(fan_in).

    Args:
        weights: Tree of arrays, for example from `initializer.signed_constant`. Only
            shapes and dtypes are used.
        where: Which leaves carry a mask. They need a fan-in, that is 2 axes or more.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree of scores in the weights' dtypes, `None` where `where` does not choose.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not a typed key.
        ValueError: If `where` chooses nothing, or a leaf without a fan-in.

    Example:
        >>> scores = edge_popup.init({"w": jnp.ones((4, 2))}, key=jax.random.key(0))
        >>> scores["w"].shape, bool((abs(scores["w"]) <= 0.5).all())
        ((4, 2), True)
    """
    with blame.instead_of(
        "maskjax.initializer.scores", "maskjax.recipes.edge_popup.init"
    ):
        return initializer.scores(weights, where=where, key=key)  # 1.


def soft_mask(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: select.Scope = "leaf",
    where: Predicate = kernels,
    guess: Scores | None = None,
    return_cutoff: bool = False,
) -> SoftMask | tuple[SoftMask, Scores]:
    """The mask of the highest |scores|, for the loss: its gradient reaches the scores.

    In a loop, return the cutoffs as the loss's aux and pass them to the next step as
    `guess`: the selection then takes about half of the time, with the same mask.

    Args:
        scores: Tree of floating leaves, `None` where a weight is left alone.
        density: The fraction to keep, in [0, 1]: a number, a scalar array, or, except
            with scope "global", a tree of them like `scores` (`allocation.erk`).
        scope: "leaf" ranks each leaf on its own, as the paper does its layers, which
            is "layer" where they are stacked; "global" ranks all leaves together. More
            in `select.top_k`.
        where: What the axes mean, for "layer" and "output"; `scores` says which weights
            have a mask.
        guess: The cutoffs of an earlier call. They never change the mask.
        return_cutoff: Whether to return the cutoffs as well.

    Returns:
        A soft mask of exact 0s and 1s in the scores' dtypes, with the derivative of
        |scores|. With `return_cutoff` also a tree of one scalar for each leaf: the
        |score| at which the selection cut.

    Raises:
        TypeError: If a leaf of `scores` is not floating, or density is not a number.
        ValueError: If density is outside [0, 1], the scope is unknown, or `guess` or a
            tree of densities does not fit `scores`.

    Example:
        >>> scores = {"w": jnp.array([-3.0, 1.0, 2.0])}
        >>> edge_popup.soft_mask(scores, density=0.34)
        {'w': Array([1., 0., 0.], dtype=float32)}
        >>> jax.grad(lambda s: edge_popup.soft_mask(s, density=0.34)["w"].sum())(scores)
        {'w': Array([-1.,  1.,  1.], dtype=float32)}
    """
    fn = "maskjax.recipes.edge_popup.soft_mask"
    how = {"density": density, "scope": scope, "where": where, "guess": guess}
    soft, cutoff = soft_highest(scores, fn, **how)  # 2. and 3.
    return (soft, cutoff) if return_cutoff else soft


def mask(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: select.Scope = "leaf",
    where: Predicate = kernels,
    guess: Scores | None = None,
    return_cutoff: bool = False,
) -> Mask | tuple[Mask, Scores]:
    """The mask of the highest |scores|, to keep once they are trained.

    Args:
        scores: Tree of floating leaves, `None` where a weight is left alone.
        density: The fraction to keep, exactly as for `soft_mask`.
        scope: "leaf" ranks each leaf on its own, "layer" each index of a stack,
            "global" all leaves together. More in `select.top_k`.
        where: What the axes mean, for "layer" and "output".
        guess: The cutoffs of an earlier call. They never change the mask.
        return_cutoff: Whether to return the cutoffs as well.

    Returns:
        A mask of exactly round(density * n) entries: True keeps. With `return_cutoff`
        also a tree of one scalar for each leaf: the |score| at which the selection cut.

    Raises:
        TypeError: If a leaf of `scores` is not floating, or density is not a number.
        ValueError: If density is outside [0, 1], the scope is unknown, or `guess` or a
            tree of densities does not fit `scores`.

    Example:
        >>> edge_popup.mask({"w": jnp.array([-3.0, 1.0, 2.0])}, density=0.34)
        {'w': Array([ True, False, False], dtype=bool)}
    """
    fn = "maskjax.recipes.edge_popup.mask"
    how = {"density": density, "scope": scope, "where": where, "guess": guess}
    kept, cutoff = highest(scores, fn, **how)
    return (kept, cutoff) if return_cutoff else kept
