"""Learned supermasks: train probabilities, keep the weights random (Zhou et al., 2019).

Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask. arXiv:1905.01067, 5.

Algorithm (numbers match the comments below):
  1. draw weights once and freeze them; a score for each, at first 0, is the logit of
     the probability that the weight is kept
  2. each step samples a mask with probabilities sigmoid(scores)
  3. the gradient goes through the sigmoid, as if the sample were its probability
  4. test with samples too and average their accuracies, or with the rounded mask
The paper trains the scores with SGD, momentum 0.9 and learning rate 100, and adds
  * signed constants: weights from `initializer.signed_deviation`
  * dynamic weight rescaling: `masking.rescale` in place of `maskjax.apply`
  * rounding half of the entries, random ones, while training: `rounded=0.5`

Departures from the paper:
  * whether an entry is rounded, and its sample if not, are one draw from their mixture

    >>> import optax
    >>> from maskjax.recipes import supermask
    >>> weights, sgd = {"w": jnp.array([[1.0], [-1.0]])}, optax.sgd(9.0)
    >>> def loss(scores, x, y, key):
    ...     params = maskjax.apply(weights, supermask.soft_mask(scores, key=key))
    ...     return jnp.mean((x @ params["w"] - y) ** 2)
    >>> scores, x, y = supermask.init(weights), jnp.array([[0.0, 1.0]]), -1.0
    >>> opt_state = sgd.init(scores)
    >>> for key in jax.random.split(jax.random.key(0), 20):
    ...     gradients = jax.grad(loss)(scores, x, y, key)
    ...     updates, opt_state = sgd.update(gradients, opt_state)
    ...     scores = optax.apply_updates(scores, updates)
    >>> jax.nn.sigmoid(scores["w"]).round(1).ravel()
    Array([0.5, 1. ], dtype=float32)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskjax import algebra, estimator, select
from maskjax._core import checks, placement
from maskjax._core.trees import (
    Array,
    Density,
    Mask,
    Params,
    Predicate,
    Scores,
    SoftMask,
    map_mask,
)
from maskjax.where import kernels

__all__ = ["density", "init", "mask", "soft_mask"]


def init(weights: Params, *, where: Predicate = kernels) -> Scores:
    """Scores to train, all 0: every weight is kept with probability one half.

    Any other tree of logits can take its place. An axis of a leaf may be 1, so that the
    weights along it share a decision.

    Args:
        weights: Tree of arrays. Only shapes and dtypes are used.
        where: Which leaves carry a mask.

    Returns:
        A tree of scores in the weights' dtypes, `None` where `where` does not choose.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If `where` chooses nothing.

    Example:
        >>> supermask.init({"w": jnp.ones((1, 2)), "b": jnp.ones(2)})
        {'b': None, 'w': Array([[0., 0.]], dtype=float32)}
    """
    fn = "maskjax.recipes.supermask.init"
    leaves = checks.chosen_leaves(weights, where, fn=fn)
    return map_mask(lambda w: placement.zeros(w.shape, w.dtype, w), leaves)  # 1.


def soft_mask(scores: Scores, *, rounded: Density = 0.0, key: Array) -> SoftMask:
    """A sample of the mask, for the loss: its gradient reaches the scores.

    With `rounded=0` this is `estimator.bernoulli`.

    Args:
        scores: Tree of floating leaves, the logits of being kept, `None` where a weight
            is left alone. nan is never kept, and gets a gradient of nan.
        rounded: The fraction of entries, random ones, that are rounded and not sampled.
            Their gradient is that of the sigmoid too. May be traced.
        key: A typed key, a new one for each step.

    Returns:
        A soft mask of exact 0s and 1s in the scores' dtypes, with the derivative of the
        sigmoid.

    Raises:
        TypeError: If a leaf of `scores` is not floating, the key is not a typed key, or
            `rounded` is not a number.
        ValueError: If `rounded` is outside [0, 1], or `scores` has no leaf.

    Example:
        >>> scores, key = {"w": jnp.array([-99.0, 99.0])}, jax.random.key(0)
        >>> supermask.soft_mask(scores, key=key)
        {'w': Array([0., 1.], dtype=float32)}
    """
    fn = "maskjax.recipes.supermask.soft_mask"
    checks.typed_key(key, fn=fn)
    checks.unit_interval(rounded, fn=fn, name="rounded")
    checks.floating_scores(scores, fn=fn)

    def mean(p: Array) -> Array:  # of an entry, over whether it is rounded too
        share = jnp.asarray(rounded, p.dtype)
        return (1 - share) * p + share * (p >= 0.5).astype(p.dtype)

    soft = map_mask(jax.nn.sigmoid, scores)
    hard = select.bernoulli(map_mask(mean, soft), key=key)  # 2.
    return estimator.straight_through(hard, soft)  # 3.


def mask(scores: Scores, *, key: Array | None) -> Mask:
    """A sample of the mask, or the rounded mask.

    For S samples and their outputs, [S, ...]: `stacking.map` over S keys.

    Args:
        scores: Tree of floating leaves, `None` where a weight is left alone. nan is
            never kept.
        key: A typed key, for a sample; `None` for the rounded mask, which keeps
            probabilities of one half or more.

    Returns:
        A mask shaped like `scores`: True keeps.

    Raises:
        TypeError: If a leaf of `scores` is not floating, or the key is not a typed key.
        ValueError: If `scores` has no leaf.

    Example:
        >>> supermask.mask({"w": jnp.array([-1.0, 0.0, 2.0])}, key=None)
        {'w': Array([False,  True,  True], dtype=bool)}
    """
    fn = "maskjax.recipes.supermask.mask"
    checks.floating_scores(scores, fn=fn)
    soft = map_mask(jax.nn.sigmoid, scores)
    if key is None:
        return select.threshold(soft, at=0.5)
    checks.typed_key(key, fn=fn)
    return select.bernoulli(soft, key=key)  # 2. and 4.


def density(scores: Scores, params: Params | None = None) -> Array:
    """The fraction of weights that a sample keeps on average: mean sigmoid(scores).

    Args:
        scores: Tree of floating leaves, `None` where a weight is left alone.
        params: The weights, needed where scores have axes of 1 that weights share: each
            score then counts once for every weight that it decides on.

    Returns:
        A scalar in [0, 1], float32 or float64.

    Raises:
        TypeError: If a leaf of `scores` is not floating.
        ValueError: If `scores` has no leaf, does not fit `params`, or has nan (unless
            traced: then the result is nan).

    Example:
        >>> print(supermask.density({"w": jnp.zeros((2, 2)), "b": None}))
        0.5
    """
    fn = "maskjax.recipes.supermask.density"
    checks.floating_scores(scores, fn=fn)
    checks.no_nan(scores, fn=fn, name="scores")
    if params is not None:
        checks.shaped_like(params, scores, fn=fn, names=("params", "scores"))
    return algebra.expected_density(map_mask(jax.nn.sigmoid, scores), params)
