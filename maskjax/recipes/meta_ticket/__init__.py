"""Meta-ticket: meta-learn a mask on random weights (Chijiwa et al., NeurIPS 2022).

arXiv:2205.15619. MAML (Finn et al., ICML 2017, arXiv:1703.03400) is the same loop
without a mask, and with meta-gradients by the weights.

Algorithm (numbers match the comments below):
  1. draw weights and scores; fix a threshold for each leaf, from its first scores
  2. the mask keeps the weights whose scores reach the threshold, however many they are
  3. for each task, start from the weights and take some gradient steps on the support
     set; the mask does not change
  4. the meta-gradient is that of the query loss after step 3 by the scores, straight
     through the mask and through the gradient steps (second order), averaged over tasks
Losses, optimizers and the choice of what is meta-trained belong to your loop. ANIL and
BOIL: learning rates of `None` for the body, or for the head. IteRand:
`recipes.iterand.redraw` on the weights every 1000 steps.

Departures from the paper:
  * the rank of a threshold is an exact whole number, halves towards keeping
  * no learnable scale for each leaf

    >>> from maskjax.recipes import meta_ticket
    >>> weights = {"w": jnp.array([[1.0], [-1.0]])}
    >>> loss = lambda params, x, y: jnp.mean((x @ params["w"] - y) ** 2)
    >>> scores, thresholds = meta_ticket.init(weights, key=jax.random.key(0))
    >>> def query_loss(scores, support, query):  # of one task
    ...     soft = meta_ticket.soft_mask(scores, thresholds)
    ...     params = meta_ticket.adapt(
    ...         loss, weights, soft, *support, inner_learning_rates=0.1, steps=1
    ...     )
    ...     return loss(params, *query)
    >>> tasks, slope = (jnp.eye(2)[None], jnp.ones((1, 2, 1))), jax.grad(query_loss)
    >>> gradients = meta_ticket.mean_over_tasks(slope, scores, tasks, tasks)
    >>> scores = jax.tree.map(lambda s, g: s - 9 * g, scores, gradients)
    >>> meta_ticket.mask(scores, thresholds)["w"].ravel()
    Array([ True, False], dtype=bool)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maskjax import estimator, initializer
from maskjax._core import blame, checks, trees
from maskjax._core.stored import stored
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
from maskjax.recipes.meta_ticket._tasks import adapt, is_scalar, mean_over_tasks
from maskjax.select._choice import choose_counted
from maskjax.select._leaves import Leaves
from maskjax.select._quota import quota
from maskjax.where import kernels, matching

__all__ = ["MetaTicketState", "adapt", "init", "mask", "mean_over_tasks", "soft_mask"]

_FN = "maskjax.recipes.meta_ticket"
_SPARED: Any = matching(  # a classifier by its name
    "(^|/)(classifier|head|logits|output)(/|$)|^(params/)?out(/|$)"
)


@stored("maskjax.recipes.meta_ticket.MetaTicketState")
class MetaTicketState(NamedTuple):
    """Scores to train, and thresholds that never change; a pytree.

    Attributes:
        scores: One for each weight that has a mask; `None` for the other leaves.
        thresholds: What scores must reach, one scalar for each leaf of scores.
    """

    scores: Scores
    thresholds: Scores


def init(
    weights: Params,
    *,
    density: Density = 1.0,
    where: Predicate = kernels & ~_SPARED,
    key: Array,
) -> MetaTicketState:
    """Scores, uniform in +-sqrt(6 / fan_in), and the thresholds for a first density.

    Args:
        weights: Tree of arrays, the random weights. Only shapes and dtypes are used.
        density: The fraction kept at first: 1 + round(density * (n - 1)) of n, and what
            ties with the last of them. The paper's configurations keep all.
        where: Which leaves have a mask, and what their axes mean, for the fan-in. The
            default is all kernels except layers named `classifier`, `head`, `logits` or
            `output`, or `out` at the top of the tree. If your output layer has another
            name, exclude it.
        key: A typed key; every leaf gets its own.

    Returns:
        The state, which unpacks into scores and thresholds.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not typed.
        ValueError: If `density` is not in [0, 1], `where` chooses nothing, or the axes
            of a chosen leaf are not known or have no inputs.

    Example:
        >>> w = {"hidden": jnp.ones((4, 2)), "head": jnp.ones((2, 5))}
        >>> state = meta_ticket.init(w, density=0.5, key=jax.random.key(0))
        >>> state.scores["head"], int(meta_ticket.mask(*state)["hidden"].sum())
        (None, 5)
    """
    fn = f"{_FN}.init"
    checks.typed_key(key, fn=fn)
    checks.unit_interval(density, fn=fn, name="density")
    draw = jax.nn.initializers.he_uniform()
    with blame.instead_of("maskjax.initializer.scores", fn):
        scores = initializer.scores(weights, draw=draw, where=where, key=key)

    def counts(leaves: Leaves) -> list[int | Array]:  # 1.
        return [1 + quota(density, max(n - 1, 0)) for n in leaves.sizes]

    kept = choose_counted(scores, counts, "leaf", where, fn=fn)
    least = lambda s, m: jnp.min(s, where=m, initial=jnp.inf)  # noqa: E731
    return MetaTicketState(scores, map_mask(least, scores, kept))


def mask(scores: Scores, thresholds: Scores) -> Mask:
    """The weights whose scores reach their leaf's threshold.

    Args:
        scores: Tree of floating leaves, `None` where a weight has no mask.
        thresholds: A tree like `scores` with one scalar for each leaf, from `init`.

    Returns:
        A mask: True keeps.

    Raises:
        TypeError: If a leaf of scores is not floating, or a threshold is not a scalar.
        ValueError: If the trees differ in structure.

    Example:
        >>> meta_ticket.mask({"w": jnp.array([0.1, 0.2])}, {"w": jnp.array(0.2)})
        {'w': Array([False,  True], dtype=bool)}
    """
    return _reached(scores, thresholds, fn=f"{_FN}.mask")


def soft_mask(scores: Scores, thresholds: Scores) -> SoftMask:
    """The values of `mask`, with the gradient of the scores.

    Args:
        scores: Tree of floating leaves, `None` where a weight has no mask.
        thresholds: A tree like `scores` with one scalar for each leaf, from `init`.

    Returns:
        A soft mask of exact 0s and 1s. Derivatives by the scores are those by the mask.

    Raises:
        TypeError: If a leaf of scores is not floating, or a threshold is not a scalar.
        ValueError: If the trees differ in structure.

    Example:
        >>> meta_ticket.soft_mask({"w": jnp.array([0.1, 0.2])}, {"w": jnp.array(0.2)})
        {'w': Array([0., 1.], dtype=float32)}
    """
    hard = _reached(scores, thresholds, fn=f"{_FN}.soft_mask")
    return estimator.straight_through(hard, scores)


def _reached(scores: Scores, thresholds: Scores, *, fn: str) -> Mask:
    checks.floating_scores(scores, fn=fn)
    names = ("scores", "thresholds")
    pairs = checks.matched(
        scores, thresholds, fn=fn, names=names, is_leaf=trees.is_mask_leaf
    )
    wrong = [(p, t) for p, s, t in pairs if s is not None and not is_scalar(t)]
    checks.raise_all(
        (f"{path}: {checks.kind_of(t)}" for path, t in wrong),
        f"`{fn}` needs every threshold as a number or a floating scalar",
        TypeError,
    )
    return map_mask(jnp.greater_equal, scores, thresholds)  # 2.
