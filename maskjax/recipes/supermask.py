"""Learned supermasks: train probabilities, keep the weights random (Zhou et al., 2019).

Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask. arXiv:1905.01067, 5.

Algorithm (numbers match the comments below):
  1. draw weights once and freeze them; a logit for each, at first 0
  2. forward with a fresh sample of the mask, probabilities being sigmoid(logits)
  3. the gradient goes through the sigmoid, as if the sample were its probability
  4. test with samples too, and average their accuracies; or with the mask rounded
To it the paper adds
  * signed constants: weights from `initializer.signed_deviation`
  * dynamic weight rescaling: `masked=masking.rescale`, in `step` and in `predict`
  * rounding half of the entries, random ones, while training: `rounded=0.5`

Departures from the paper:
  * whether an entry is rounded, and its sample if not, are one draw from their mixture

    >>> import optax
    >>> from maskjax.recipes import supermask
    >>> weights, sgd = {"w": jnp.array([[1.0], [-1.0]])}, optax.sgd(9.0)
    >>> loss = lambda params, x, y: jnp.mean((x @ params["w"] - y) ** 2)
    >>> state, x, y = supermask.init(weights, sgd), jnp.array([[0.0, 1.0]]), -1.0
    >>> for key in jax.random.split(jax.random.key(0), 20):
    ...     state, _ = supermask.step(state, loss, sgd, x, y, key=key)
    >>> jax.nn.sigmoid(state.logits["w"]).round(1).ravel(), state.weights["w"].ravel()
    (Array([0.5, 1. ], dtype=float32), Array([ 1., -1.], dtype=float32))
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskjax import estimator, masking, select
from maskjax._core import checks
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

__all__ = ["SupermaskState", "density", "init", "mask", "predict", "step"]


class SupermaskState(NamedTuple):
    """What training carries; a pytree.

    Attributes:
        weights: The random parameters, which never change.
        logits: One for each weight that carries a mask, else `None`.
        opt_state: The optimizer's, for the logits.
    """

    weights: Params
    logits: Scores
    opt_state: optax.OptState


def init(
    weights: Params,
    optimizer: optax.GradientTransformation,
    *,
    logits: Scores = None,
    where: Predicate = kernels,
) -> SupermaskState:
    """Logits for random weights, all 0 if none are given.

    Args:
        weights: Tree of arrays. What carries no mask stays as it is too.
        optimizer: Trains the logits. The paper: SGD, momentum 0.9, learning rate 100.
        logits: Where to begin. An axis may be 1, so that weights along it share a
            decision; a leaf may be `None`, to carry no mask.
        where: Which leaves carry a mask, unless `logits` say so.

    Returns:
        The state before the first step.

    Raises:
        TypeError: If a chosen leaf, or one of `logits`, is not floating.
        ValueError: If `where` chooses nothing, or `logits` do not fit the weights.

    Example:
        >>> supermask.init({"w": jnp.ones((1, 2))}, optax.sgd(100.0)).logits
        {'w': Array([[0., 0.]], dtype=float32)}
    """
    fn = "maskjax.recipes.supermask.init"
    if logits is None:  # 1.
        logits = map_mask(jnp.zeros_like, checks.chosen_leaves(weights, where, fn=fn))
    checks.mask_of(logits, weights, fn=fn, names=("weights", "logits"))
    checks.floating_scores(logits, fn=fn, name="logits")
    return SupermaskState(weights, logits, optimizer.init(logits))


def mask(state: SupermaskState, *, key: Array | None) -> Mask:
    """A sample of the mask, or the mask rounded.

    Args:
        state: The training state.
        key: A typed key, for a sample. `None`: probabilities of one half or more.

    Returns:
        A mask: True keeps.

    Raises:
        TypeError: If the key is not typed.

    Example:
        >>> state = supermask.init({"w": jnp.ones((1, 3))}, optax.sgd(100.0))
        >>> supermask.mask(state, key=None)
        {'w': Array([[ True,  True,  True]], dtype=bool)}
    """
    soft = map_mask(jax.nn.sigmoid, state.logits)
    if key is None:
        return select.threshold(soft, at=0.5)
    checks.typed_key(key, fn="maskjax.recipes.supermask.mask")
    return select.bernoulli(soft, key=key)


def density(state: SupermaskState) -> Array:
    """The fraction of weights that samples keep on average: mean sigmoid(logits).

    Args:
        state: The training state.

    Returns:
        A scalar, of all weights that carry a mask.

    Example:
        >>> print(supermask.density(supermask.init({"w": jnp.eye(2)}, optax.sgd(1.0))))
        0.5
    """
    soft = jax.tree.leaves(map_mask(jax.nn.sigmoid, state.logits))
    sizes = jax.tree.leaves(map_mask(lambda _, w: w.size, state.logits, state.weights))
    means = jnp.stack([jnp.mean(p, dtype=jnp.float32) for p in soft])
    return jnp.average(means, weights=jnp.array(sizes, jnp.float32))


def step(
    state: SupermaskState,
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    *data: Any,
    masked: Callable[..., Params] = masking.apply,
    rounded: Density = 0.0,
    key: Array,
) -> tuple[SupermaskState, Array]:
    """One step on the logits; pure, to be compiled and mapped by the caller.

    Args:
        state: The training state.
        loss: `(params, *data) -> scalar`.
        optimizer: The one that `init` was given.
        *data: A batch, passed on to `loss`.
        masked: `(weights, mask) -> params`. `masking.rescale` multiplies each leaf by
            its size over what the sample keeps, and the gradient goes through that too
            (not with `functools.partial(masking.rescale, through_count=False)`).
        rounded: The fraction of entries, random ones, that are rounded, not sampled.
            Their gradient is that of the sigmoid too. May be traced.
        key: A typed key, a new one for each step.

    Returns:
        The next state, and the loss at this one.

    Raises:
        TypeError: If the key is not typed, or `rounded` not a number.
        ValueError: If `rounded` is outside [0, 1].

    Example:
        >>> state = supermask.init({"w": jnp.ones((1, 2))}, optax.sgd(1.0))
        >>> loss, key = lambda params: jnp.sum(params["w"]), jax.random.key(0)
        >>> supermask.step(state, loss, optax.sgd(1.0), key=key)[0].logits["w"]
        Array([[-0.25, -0.25]], dtype=float32)
    """
    fn = "maskjax.recipes.supermask.step"
    checks.typed_key(key, fn=fn)
    checks.unit_interval(rounded, fn=fn, name="rounded")

    def mean(p: Array) -> Array:  # of an entry, over whether it is rounded too
        share = jnp.asarray(rounded, p.dtype)
        return (1 - share) * p + share * (p >= 0.5).astype(p.dtype)

    def objective(logits: Scores) -> Array:
        soft = map_mask(jax.nn.sigmoid, logits)
        hard = select.bernoulli(map_mask(mean, soft), key=key)  # 2.
        sample = estimator.straight_through(hard, soft)  # 3.
        return loss(masked(state.weights, sample), *data)

    value, gradients = jax.value_and_grad(objective)(state.logits)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.logits)
    logits = optax.apply_updates(state.logits, updates)
    return SupermaskState(state.weights, logits, opt_state), value


def predict(
    apply: Callable[..., Any],
    state: SupermaskState,
    *inputs: Any,
    masked: Callable[..., Params] = masking.apply,
    samples: int = 10,
    key: Array | None,
) -> Any:
    """What the random network says under samples of the mask, or under it rounded.

    Args:
        apply: `(params, *inputs) -> output`.
        state: The training state.
        *inputs: Passed on to `apply`.
        masked: As in `step`.
        samples: How many, S.
        key: A typed key. `None`: the mask rounded.

    Returns:
        The outputs of `apply` for S independent samples, [S, ...]. Without a key the
        one output for the rounded mask.

    Raises:
        TypeError: If the key is not typed.
        ValueError: If there is no sample.

    Example:
        >>> state = supermask.init({"w": jnp.ones((4, 1))}, optax.sgd(100.0))
        >>> net = lambda params, x: x @ params["w"]
        >>> supermask.predict(net, state, jnp.ones((1, 4)), key=None)
        Array([[4.]], dtype=float32)
    """
    checks.at_least(samples, 1, fn="maskjax.recipes.supermask.predict", name="samples")

    def under(key: Array | None) -> Any:
        return apply(masked(state.weights, mask(state, key=key)), *inputs)

    if key is None:
        return under(key)
    checks.typed_key(key, fn="maskjax.recipes.supermask.predict")
    return jax.vmap(under)(jax.random.split(key, samples))  # 4.
