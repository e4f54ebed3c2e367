"""Supermasks in Superposition when nobody says where a task ends (NeurIPS 2020).

Wortsman et al., arXiv:2006.14769, section 3.4: scenario NNs, no task ids in training
nor in tests. With task ids in training: `supsup`.

Algorithm (numbers match the comments below):
  1. every so many batches, weigh the k masks so far alike and look at how the objective
     on the current batch falls along each: nu = softmax(-gradient)
  2. if k max(nu) < 1 + epsilon, no mask is much better than the others: a new task
  3. else go on with the best one's scores
  4. train the current scores, straight through the threshold at 0

Departures from the paper:
  * the first decisions are among `least` masks, untrained ones too, as in the reference
    code: one mask alone has nu = 1, so that by the formula it never has a second batch
  * the optimizer starts afresh with every switch
  * for "mean_masks" masks are centered, or every weight would be kept

    >>> from maskjax.recipes import supsup_stream
    >>> weights = {"w": jnp.array([[3.0, -3.0], [-3.0, 3.0]])}
    >>> def loss(params, x):
    ...     return superposition.entropy(x @ params["w"])
    >>> sgd, key = optax.sgd(1.0), jax.random.key(0)
    >>> state = supsup_stream.init(weights, sgd, capacity=8, key=key)
    >>> x = jnp.array([[1.0, 0.0]])
    >>> state = supsup_stream.allocate(loss, weights, state, sgd, x)
    >>> state, _ = supsup_stream.step(state, weights, loss, sgd, x)
    >>> supsup_stream.masks(state).learned
    Array(1, dtype=int32)
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskjax import (
    bank,
    estimator,
    initializer,
    masking,
    packing,
    select,
    superposition,
)
from maskjax._core import checks
from maskjax._core.trees import Array, Mask, Params, Predicate, Scores, map_mask
from maskjax.where import kernels

__all__ = ["StreamState", "allocate", "init", "masks", "step"]

_Start = Literal["random", "mean_scores", "mean_masks", "last", "nearest"]
_STARTS = ("random", "mean_scores", "mean_masks", "last", "nearest")


class StreamState(NamedTuple):
    """What a learner without task ids carries; a pytree.

    Attributes:
        scores: A stack [C, ...]; those of tasks to come are random.
        packed: Their masks as of the last decision.
        learned: int32, for how many tasks there are scores.
        current: int32, whose scores are trained; -1 where there was no room for a task.
        refused: int32, how often that was so.
        opt_state: The optimizer's, for the current scores.
    """

    scores: Scores
    packed: Mask
    learned: Array
    current: Array
    refused: Array
    opt_state: optax.OptState


def init(
    weights: Params,
    optimizer: optax.GradientTransformation,
    *,
    capacity: int,
    where: Predicate = kernels,
    key: Array,
) -> StreamState:
    """No task yet, and random scores for those to come.

    Args:
        weights: The random weights.
        optimizer: Trains the scores, one task's at a time.
        capacity: C, how many tasks there is room for, each with its scores.
        where: Which leaves carry a mask.
        key: A typed key; every task gets its own.

    Returns:
        The state; `allocate` before the first step.

    Raises:
        TypeError: As in `initializer.scores`, or if C is no whole number.
        ValueError: As there, or if C is below 1.

    Example:
        >>> w, key = {"w": jnp.ones((4, 2))}, jax.random.key(0)
        >>> state = supsup_stream.init(w, optax.sgd(0.1), capacity=3, key=key)
        >>> state.scores["w"].shape
        (3, 4, 2)
    """
    fn = "maskjax.recipes.supsup_stream.init"
    checks.typed_key(key, fn=fn)
    checks.at_least(capacity, 1, fn=fn, name="capacity")

    def draw(key: Array) -> Scores:
        return initializer.scores(weights, where=where, key=key)

    scores = jax.vmap(draw)(jax.random.split(key, capacity))
    opt_state = optimizer.init(map_mask(lambda s: s[0], scores))
    packed = jax.vmap(packing.pack)(select.threshold(scores, at=0.0))
    # Arrays of their own, or the state could not be donated.
    learned, current, refused = (jnp.array(i, jnp.int32) for i in (0, -1, 0))
    return StreamState(scores, packed, learned, current, refused, opt_state)


def allocate(
    objective: Callable[..., Array],
    weights: Params,
    state: StreamState,
    optimizer: optax.GradientTransformation,
    *data: Any,
    epsilon: float = 1 / 8,
    least: int = 5,
    start: _Start = "random",
) -> StreamState:
    """Decide which task's scores to train from here on, or begin a new task.

    Args:
        objective: `(params, *data) -> scalar`, low for the right mask:
            `superposition.entropy` of the outputs, say.
        weights: The random weights.
        state: The state.
        optimizer: The one that `init` was given.
        *data: The current batch.
        epsilon: How much more than its share the best of k masks has to have of nu.
        least: k is at least this, untrained masks filling it up (within the capacity).
        start: Scores that a new task begins with: "random", the mean of all scores or
            masks so far, those of the last task, or of the "nearest", that is the best.

    Returns:
        The state. Without room for a new task `current` is -1, and steps change
        nothing until the next decision.

    Raises:
        TypeError: If `least` is no whole number.
        ValueError: If `start` is unknown, `least` below 1, or masks do not fit.

    Example:
        >>> w, sgd = {"w": jnp.ones((4, 2))}, optax.sgd(0.1)
        >>> state = supsup_stream.init(w, sgd, capacity=3, key=jax.random.key(0))
        >>> norm = lambda params: (params["w"] ** 2).sum()
        >>> supsup_stream.allocate(norm, w, state, sgd).current
        Array(0, dtype=int32)
    """
    fn = "maskjax.recipes.supsup_stream.allocate"
    checks.one_of(start, _STARTS, fn=fn, name="start")
    checks.at_least(least, 1, fn=fn, name="least")
    state = _committed(state)
    size = checks.members(state.packed, fn=fn)
    learned = jnp.arange(size, dtype=jnp.int32) < state.learned

    k = jnp.maximum(state.learned, min(least, size))
    among = (jnp.arange(size, dtype=jnp.int32) < k).astype(jnp.float32)
    falls = -superposition.gradient(  # 1.
        objective, weights, state.packed, among / k.astype(jnp.float32), *data
    )
    nu = jax.nn.softmax(jnp.where(among > 0, falls, -jnp.inf))
    nu = jnp.where(learned, nu, 0)  # a mask that nobody trained is not chosen
    best = jnp.argmax(nu).astype(jnp.int32)
    new = (k.astype(jnp.float32) * nu[best] < 1 + epsilon) | (state.learned == 0)  # 2.
    room = state.learned < size
    current = jnp.where(new, jnp.where(room, state.learned, -1), best)  # 3.

    drawn = map_mask(lambda s: s[state.learned], state.scores)
    begun = _where(state.learned > 0, _begun(start, state, best, drawn), drawn)
    scores = _set(state.scores, jnp.where(new & room, state.learned, size), begun)
    switched = current != state.current
    opt_state = _where(switched, optimizer.init(begun), state.opt_state)
    return StreamState(
        scores,
        state.packed,
        state.learned + (new & room).astype(jnp.int32),
        current,
        state.refused + (new & ~room).astype(jnp.int32),
        opt_state,
    )


def step(
    state: StreamState,
    weights: Params,
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    *data: Any,
) -> tuple[StreamState, Array]:
    """One step on the current task's scores.

    Args:
        state: The state.
        weights: The random weights, which never change.
        loss: `(params, *data) -> scalar`.
        optimizer: The one that `init` was given.
        *data: A batch, passed on to `loss`.

    Returns:
        The next state, and the loss at this one.

    Raises:
        ValueError: If the scores do not fit the weights.

    Example:
        >>> w, sgd = {"w": jnp.ones((4, 2))}, optax.sgd(0.1)
        >>> state = supsup_stream.init(w, sgd, capacity=3, key=jax.random.key(0))
        >>> state, _ = supsup_stream.step(state, w, lambda p: p["w"].sum(), sgd)
        >>> state.learned  # nothing is, before `allocate`
        Array(0, dtype=int32)
    """
    scores = _current(state)

    def objective(scores: Scores) -> Array:
        soft = estimator.threshold(scores, at=0.0)
        return loss(masking.apply(weights, soft), *data)

    value, gradients = jax.value_and_grad(objective)(scores)  # 4.
    updates, opt_state = optimizer.update(gradients, state.opt_state, scores)
    scores = optax.apply_updates(scores, updates)
    stack = _set(state.scores, _place(state), scores)
    opt_state = _where(state.current >= 0, opt_state, state.opt_state)
    return state._replace(scores=stack, opt_state=opt_state), value


def masks(state: StreamState) -> bank.MaskBank:
    """The bank of all tasks so far, to infer from and predict with.

    Args:
        state: The state.

    Returns:
        The bank, as it is after the last step; `refused` are decisions.

    Example:
        >>> w, key = {"w": jnp.ones((4, 2))}, jax.random.key(0)
        >>> state = supsup_stream.init(w, optax.sgd(0.1), capacity=3, key=key)
        >>> bank.capacity(supsup_stream.masks(state))
        3
    """
    state = _committed(state)
    tasks = bank.from_stack(state.packed, learned=state.learned)
    return tasks._replace(overflowed=state.refused)


def _current(state: StreamState) -> Scores:
    return map_mask(lambda s: s[jnp.maximum(state.current, 0)], state.scores)


def _place(state: StreamState) -> Array:
    """Where the current scores are, or past the end."""
    size = jax.tree.leaves(state.scores)[0].shape[0]
    return jnp.where(state.current < 0, size, state.current)


def _committed(state: StreamState) -> StreamState:
    """The state with the current scores' mask among the packed ones."""
    mask = packing.pack(select.threshold(_current(state), at=0.0))
    return state._replace(packed=_set(state.packed, _place(state), mask))


def _set(stack: Any, at: Array, new: Any) -> Any:
    """A stack with one member replaced, or none where `at` is past the end."""
    return jax.tree.map(lambda s, one: s.at[at].set(one, mode="drop"), stack, new)


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _begun(start: _Start, state: StreamState, best: Array, drawn: Scores) -> Scores:
    """What a new task's scores begin with, where there is a task before it."""
    if start == "random":
        return drawn
    if start == "last":
        return map_mask(lambda s: s[state.learned - 1], state.scores)
    if start == "nearest":
        return map_mask(lambda s: s[best], state.scores)
    learned = bank.from_stack(state.packed, learned=state.learned)
    if start == "mean_masks":
        scores = initializer.scores_of(bank.mean(learned))
        return map_mask(lambda s, like: s.astype(like.dtype), scores, drawn)
    weights = bank.is_used(learned).astype(jnp.float32)
    weights /= jnp.maximum(state.learned, 1).astype(jnp.float32)
    return map_mask(
        lambda s: jnp.tensordot(weights.astype(s.dtype), s, 1), state.scores
    )
