"""Edge-popup: train scores, keep the weights random (Ramanujan et al., CVPR 2020).

What's Hidden in a Randomly Weighted Neural Network? arXiv:1911.13299.

Algorithm (numbers match the comments below):
  1. draw weights once and freeze them; draw scores
  2. forward with the mask of the highest |scores|, a fraction `density` of each leaf
  3. send the gradient straight through the mask to every score, removed ones included

Departures from the paper:
  * the mask has exactly round(density * n) entries, ties going to the lower index; the
    reference code keeps all of equal scores in its faster variant
  * `density` is the fraction kept everywhere; the reference code's `prune_rate` is the
    fraction kept in the mask, and one minus it in the scaling of the weights
  * selection starts from where the last step cut, which changes its time only

    >>> import functools, optax
    >>> from maskjax.recipes import edge_popup
    >>> weights = {"w": jnp.array([[1.0], [-1.0]])}
    >>> loss = lambda params, x, y: jnp.mean((x @ params["w"] - y) ** 2)
    >>> state = edge_popup.init(weights, optax.sgd(1.0), key=jax.random.key(0))
    >>> x, y = jnp.array([[0.0, 1.0]]), jnp.array([[-1.0]])
    >>> step = functools.partial(edge_popup.step, density=0.5)
    >>> for _ in range(3):
    ...     state, value = step(state, loss, optax.sgd(1.0), x, y)
    >>> edge_popup.mask(state, density=0.5)["w"].ravel(), state.weights["w"].ravel()
    (Array([False,  True], dtype=bool), Array([ 1., -1.], dtype=float32))
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskjax import _checks, _tree, estimator, masking, select
from maskjax._tree import Array, Density, Mask, Params, Predicate, Scores
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
    where: Predicate = kernels,
    key: Array,
) -> EdgePopupState:
    """Scores, uniform in +-1 / sqrt(fan_in), for random weights.

    Args:
        weights: Tree of arrays, drawn by `initializer.signed_constant` or
            `scaled_normal`, say. What `where` does not choose stays as it is too.
        optimizer: Trains the scores. The paper: SGD of momentum 0.9, cosine schedule.
        where: Which leaves carry a mask; they have a fan-in, that is 2 axes or more.
        key: A typed key; every leaf gets its own.

    Returns:
        The state before the first step.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not typed.
        ValueError: If `where` chooses nothing, or a leaf without a fan-in.

    Example:
        >>> w = {"w": jnp.ones((4, 2))}
        >>> state = edge_popup.init(w, optax.sgd(0.1), key=jax.random.key(0))
        >>> bool((abs(state.scores["w"]) <= 0.5).all())
        True
    """
    fn = "maskjax.recipes.edge_popup.init"
    _checks.typed_key(key, fn=fn)
    picks = _checks.chosen(weights, where, fn=fn)
    named = _tree.named_leaves(weights)
    chosen = zip(named, picks, strict=True)
    flat = [path for (path, leaf), pick in chosen if pick and leaf.ndim < 2]
    _checks.raise_all(flat, f"`{fn}` needs leaves of 2 axes or more, for a fan-in")
    scores, cutoffs = [], []
    for i, ((_, leaf), pick) in enumerate(zip(named, picks, strict=True)):
        # 1. A bound of 1 / sqrt(fan_in) is Kaiming-uniform with a = sqrt(5).
        bound = max(math.prod(leaf.shape[:-1]), 1) ** -0.5 if pick else 0.0
        draw = jax.random.fold_in(key, i), leaf.shape, leaf.dtype
        scores.append(jax.random.uniform(*draw, -bound, bound) if pick else None)
        cutoffs.append(jnp.array(bound / 2, leaf.dtype) if pick else None)
    treedef = jax.tree.structure(weights)
    scores = treedef.unflatten(scores)
    return EdgePopupState(
        weights, scores, treedef.unflatten(cutoffs), optimizer.init(scores)
    )


def mask(
    state: EdgePopupState, *, density: Density | Scores, scope: select.Scope = "leaf"
) -> Mask:
    """The mask of the highest |scores|.

    Args:
        state: The training state.
        density: The fraction of weights that the mask keeps, as in `select.top_k`; one
            for all, or a tree of them (an Erdos-Renyi budget, say).
        scope: "leaf", as in the paper, or "global".

    Returns:
        A mask of exactly round(density * n) entries: True keeps.

    Raises:
        ValueError: As in `select.top_k`.

    Example:
        >>> w = {"w": jnp.ones((4, 2))}
        >>> state = edge_popup.init(w, optax.sgd(0.1), key=jax.random.key(0))
        >>> int(edge_popup.mask(state, density=0.25)["w"].sum())
        2
    """
    return select.top_k(
        _tree.map_mask(jnp.abs, state.scores),
        density=density,
        scope=scope,
        near=state.cutoffs,
    )


def step(
    state: EdgePopupState,
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    *data: Any,
    density: Density | Scores,
    scope: select.Scope = "leaf",
) -> tuple[EdgePopupState, Array]:
    """One step on the scores; pure, to be compiled and mapped by the caller.

    Args:
        state: The training state.
        loss: `(params, *data) -> scalar`.
        optimizer: The one that `init` was given.
        *data: A batch, passed on to `loss`.
        density: As in `mask`.
        scope: As in `mask`.

    Returns:
        The next state, and the loss at this one.

    Raises:
        ValueError: As in `select.top_k`.

    Example:
        >>> w = {"w": jnp.ones((4, 1))}
        >>> state = edge_popup.init(w, optax.sgd(0.1), key=jax.random.key(0))
        >>> loss = lambda params: jnp.sum(params["w"])
        >>> print(edge_popup.step(state, loss, optax.sgd(0.1), density=0.5)[1])
        2.0
    """

    def objective(scores: Scores) -> tuple[Array, Scores]:
        ranked = _tree.map_mask(jnp.abs, scores)
        hard, cutoffs = select.top_k_and_cutoff(  # 2.
            ranked, density=density, scope=scope, near=state.cutoffs
        )
        soft = estimator.straight_through(hard, ranked)  # 3.
        return loss(masking.apply(state.weights, soft), *data), cutoffs

    gradient = jax.value_and_grad(objective, has_aux=True)
    (value, cutoffs), gradients = gradient(state.scores)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.scores)
    scores = optax.apply_updates(state.scores, updates)
    return EdgePopupState(state.weights, scores, cutoffs, opt_state), value


def predict(
    apply: Callable[..., Any],
    state: EdgePopupState,
    *inputs: Any,
    density: Density | Scores,
    scope: select.Scope = "leaf",
) -> Any:
    """What the random network says under the learned mask.

    Args:
        apply: `(params, *inputs) -> output`.
        state: The training state.
        *inputs: Passed on to `apply`.
        density: As in `mask`.
        scope: As in `mask`.

    Returns:
        The output of `apply`.

    Raises:
        ValueError: As in `select.top_k`.

    Example:
        >>> w = {"w": jnp.ones((4, 1))}
        >>> state = edge_popup.init(w, optax.sgd(0.1), key=jax.random.key(0))
        >>> net = lambda params, x: x @ params["w"]
        >>> edge_popup.predict(net, state, jnp.ones((1, 4)), density=0.75)
        Array([[3.]], dtype=float32)
    """
    params = masking.apply(state.weights, mask(state, density=density, scope=scope))
    return apply(params, *inputs)
