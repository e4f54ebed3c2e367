"""Edge-popup: train scores, keep the weights random (Ramanujan et al., CVPR 2020).

What's Hidden in a Randomly Weighted Neural Network? arXiv:1911.13299.

Algorithm (numbers match the comments below):
  1. draw weights once and freeze them; draw scores
  2. forward with the mask of the highest |scores|, a fraction `density` of each leaf
  3. send the gradient straight through the mask to every score, removed ones included
Baselines: `density=None` keeps the thresholds and searches for none, `sample` draws
masks (Zhou et al., arXiv:1905.01067), and before the first step the mask is random.

Departures from the paper:
  * the mask has exactly round(density * n) entries, ties going to the lower index
  * `density` is the fraction kept everywhere, as `prune_rate` of the code is not
  * selection starts from where the last step cut, which changes its time only

    >>> import optax
    >>> from maskjax.recipes import edge_popup
    >>> weights, sgd = {"w": jnp.array([[1.0], [-1.0]])}, optax.sgd(1.0)
    >>> loss = lambda params, x, y: jnp.mean((x @ params["w"] - y) ** 2)
    >>> state = edge_popup.init(weights, sgd, key=jax.random.key(0))
    >>> x, y = jnp.array([[0.0, 1.0]]), -1.0
    >>> for _ in range(3):
    ...     state, value = edge_popup.step(state, loss, sgd, x, y, density=0.5)
    >>> edge_popup.mask(state, density=0.5)["w"].ravel(), state.weights["w"].ravel()
    (Array([False,  True], dtype=bool), Array([ 1., -1.], dtype=float32))
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskjax import estimator, initializer, masking, select
from maskjax._core import checks, trees
from maskjax._core.trees import (
    Array,
    Density,
    Mask,
    Params,
    Predicate,
    Scores,
    map_mask,
)
from maskjax.where import kernels

__all__ = ["EdgePopupState", "init", "mask", "predict", "step"]


class EdgePopupState(NamedTuple):
    """What training carries; a pytree.

    Attributes:
        weights: The random parameters, which never change.
        scores: One for each weight that carries a mask, else `None`.
        cutoffs: Where the last selection cut, one scalar for each leaf of scores.
        opt_state: The optimizer's, for the scores.
    """

    weights: Params
    scores: Scores
    cutoffs: Scores
    opt_state: optax.OptState


def init(
    weights: Params,
    optimizer: optax.GradientTransformation,
    *,
    density: Density | Scores = 0.5,
    where: Predicate = kernels,
    key: Array,
) -> EdgePopupState:
    """Scores, uniform in +-1 / sqrt(fan_in), for random weights.

    Args:
        weights: Tree of arrays, from `initializer.signed_constant`, say; none changes.
        optimizer: Trains the scores. The paper: SGD of momentum 0.9, cosine schedule.
        density: The fraction of scores that the first cutoffs let pass, on average; one
            for all, or a tree of them.
        where: Which leaves carry a mask; they have a fan-in, that is 2 axes or more.
        key: A typed key; every leaf gets its own.

    Returns:
        The state before the first step.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not typed.
        ValueError: If `where` chooses nothing, or a leaf without a fan-in.

    Example:
        >>> w = {"w": jnp.ones((4, 2))}
        >>> edge_popup.init(w, optax.sgd(0.1), key=jax.random.key(0)).cutoffs
        {'w': Array(0.25, dtype=float32)}
    """
    fn = "maskjax.recipes.edge_popup.init"
    checks.typed_key(key, fn=fn)
    chosen = checks.chosen_leaves(weights, where, fn=fn)
    if trees.is_single(density):
        density = map_mask(lambda _, d=density: d, chosen)
    for _, _, d in checks.matched(chosen, density, fn=fn, names=("weights", "density")):
        checks.unit_interval(d, fn=fn, name="density")
    flat = [p for p, w in trees.mask_leaves(chosen)[0] if w is not None and w.ndim < 2]
    checks.raise_all(flat, f"`{fn}` needs leaves of 2 axes or more, for a fan-in")
    scores = initializer.uniform_scores(weights, where=where, key=key)  # 1.
    roots = map_mask(lambda w: max(math.prod(w.shape[:-1]), 1) ** 0.5, chosen)
    cuts = map_mask(
        lambda w, r, d: jnp.asarray((1 - d) / r, w.dtype), chosen, roots, density
    )
    return EdgePopupState(weights, scores, cuts, optimizer.init(scores))


def mask(
    state: EdgePopupState,
    *,
    density: Density | Scores | None,
    scope: select.Scope = "leaf",
    sample: Array | None = None,
) -> Mask:
    """The mask of the highest |scores|.

    Args:
        state: The training state.
        density: The fraction of weights to keep, as in `select.top_k`: one for all, or
            a tree of them (`allocation.erk`). `None`: what reaches `state.cutoffs`.
        scope: "leaf", as in the paper, or "global".
        sample: A typed key, with density `None`: keep with probability sigmoid(score).

    Returns:
        A mask, of exactly round(density * n) entries if there is a density: True keeps.

    Raises:
        ValueError: As in `select.top_k`, or if there are a density and a key.

    Example:
        >>> w = {"w": jnp.ones((4, 2))}
        >>> state = edge_popup.init(w, optax.sgd(0.1), key=jax.random.key(0))
        >>> int(edge_popup.mask(state, density=0.25)["w"].sum())
        2
    """
    return _choice(state, density, scope, sample)[0]


def step(
    state: EdgePopupState,
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    *data: Any,
    density: Density | Scores | None,
    scope: select.Scope = "leaf",
    sample: Array | None = None,
) -> tuple[EdgePopupState, Array]:
    """One step on the scores; pure, to be compiled and mapped by the caller.

    Args:
        state: The training state.
        loss: `(params, *data) -> scalar`.
        optimizer: The one that `init` was given.
        *data: A batch, passed on to `loss`.
        density: As in `mask`.
        scope: As in `mask`.
        sample: As in `mask`, a new key for each step.

    Returns:
        The next state, and the loss at this one.

    Raises:
        ValueError: As in `mask`.

    Example:
        >>> w, loss = {"w": jnp.ones((4, 1))}, lambda params: jnp.sum(params["w"])
        >>> state = edge_popup.init(w, optax.sgd(0.1), key=jax.random.key(0))
        >>> print(edge_popup.step(state, loss, optax.sgd(0.1), density=0.5)[1])
        2.0
    """
    hard, cutoffs = _choice(state, density, scope, sample)  # 2.
    size = jnp.abs if sample is None else jax.nn.sigmoid

    def objective(scores: Scores) -> Array:
        soft = estimator.straight_through(hard, map_mask(size, scores))  # 3.
        return loss(masking.apply(state.weights, soft), *data)

    value, gradients = jax.value_and_grad(objective)(state.scores)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.scores)
    scores = optax.apply_updates(state.scores, updates)
    return EdgePopupState(state.weights, scores, cutoffs, opt_state), value


def predict(
    apply: Callable[..., Any],
    state: EdgePopupState,
    *inputs: Any,
    density: Density | Scores | None,
    scope: select.Scope = "leaf",
    sample: Array | None = None,
) -> Any:
    """What the random network says under the learned mask.

    Args:
        apply: `(params, *inputs) -> output`.
        state: The training state.
        *inputs: Passed on to `apply`.
        density: As in `mask`.
        scope: As in `mask`.
        sample: As in `mask`.

    Returns:
        The output of `apply`.

    Example:
        >>> w = {"w": jnp.ones((4, 1))}
        >>> state = edge_popup.init(w, optax.sgd(0.1), key=jax.random.key(0))
        >>> net = lambda params, x: x @ params["w"]
        >>> edge_popup.predict(net, state, jnp.ones((1, 4)), density=0.75)
        Array([[3.]], dtype=float32)
    """
    kept = mask(state, density=density, scope=scope, sample=sample)
    return apply(masking.apply(state.weights, kept), *inputs)


def _choice(state: Any, density: Any, scope: Any, key: Any) -> tuple[Mask, Scores]:
    """The mask, and where it cut."""
    ranked, cutoffs = map_mask(jnp.abs, state.scores), state.cutoffs
    if key is not None and density is not None:
        needs = "`maskjax.recipes.edge_popup` needs `density` as None with a `sample`"
        raise ValueError(f"{needs}, which floats, got {density}.")
    if key is not None:
        soft = map_mask(jax.nn.sigmoid, state.scores)
        return select.bernoulli(soft, key=key), cutoffs
    if density is None:
        return map_mask(jnp.greater_equal, ranked, cutoffs), cutoffs
    return select.top_k(
        ranked, density=density, scope=scope, guess=cutoffs, return_cutoff=True
    )
