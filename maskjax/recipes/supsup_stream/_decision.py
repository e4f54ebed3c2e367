"""Whether a batch is of an old task or of a new one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from maskjax import bank, initializer, superposition
from maskjax._core import blame, checks, placement, rows
from maskjax._core.trees import Array, Params, Predicate, Scores
from maskjax.recipes.supsup_stream._state import (
    StreamState,
    committed,
    member,
    tasks_of,
)
from maskjax.where import kernels

Start = Literal["random", "mean_scores", "mean_masks", "last", "nearest"]


def allocate(
    objective: Callable[..., Array],
    weights: Params,
    state: StreamState,
    *data: Any,
    epsilon: float = 1 / 8,
    least: int = 5,
    start: Start = "random",
    where: Predicate = kernels,
) -> StreamState:
    """Store the current scores, and decide whose to train next: an old or a new task's.

    Args:
        objective: `(params, *data) -> scalar`, low for the right mask: for example the
            `superposition.logit_entropy` of the outputs.
        weights: The random weights.
        state: The state, with the scores that were trained.
        *data: The current batch.
        epsilon: A task is new if the largest nu is below (1 + epsilon) / k.
        least: k is at least this, within the capacity; untrained masks fill it up.
        start: A new task's scores: "random", the mean of all scores or masks so far,
            those of the last task, or of the "nearest", the one of the largest nu.
        where: What the axes of the weights mean, for the fan-in of "mean_masks".

    Returns:
        The state. Train its `scores` until the next decision.

    Raises:
        TypeError: If `least` is not a whole number.
        ValueError: If `start` is unknown, `least` below 1, shapes do not fit, or a
            start needs axes that are not known.

    Example:
        >>> w = {"w": jnp.ones((4, 2))}
        >>> state = supsup_stream.init(w, capacity=3, key=jax.random.key(0))
        >>> norm = lambda params: (params["w"] ** 2).sum()
        >>> supsup_stream.allocate(norm, w, state).current
        Array(0, dtype=int32)
    """
    fn = "maskjax.recipes.supsup_stream.allocate"
    checks.one_of(start, get_args(Start), fn=fn, name="start")
    checks.at_least(least, 1, fn=fn, name="least")
    checks.shaped_like(weights, state.scores, fn=fn, names=("weights", "scores"))
    state = committed(state, fn=fn)
    size = checks.members(state.packed, fn=fn)
    k = jnp.maximum(state.learned, min(least, size))
    alphas = _first(k, size).astype(jnp.float32) / k.astype(jnp.float32)
    slopes = superposition.gradient(objective, weights, state.packed, alphas, *data)
    mean = None
    if start == "mean_masks":
        with blame.instead_of("maskjax.initializer.scores_of", fn):
            mean = initializer.scores_of(
                weights, bank.mean(tasks_of(state)), where=where
            )
    return _decided(state, k, slopes, epsilon, mean, start=start)


def _first(k: Array, size: int) -> Array:
    """[size], True for the first k."""
    return jnp.arange(size, dtype=jnp.int32) < k


@functools.partial(jax.jit, static_argnames="start")
def _decided(
    state: StreamState,
    k: Array,
    slopes: Array,
    epsilon: Array,
    mean: Scores,
    *,
    start: Start,
) -> StreamState:
    size, slopes = slopes.size, placement.gathered(slopes, 0)
    nu = jax.nn.softmax(jnp.where(_first(k, size), -slopes, -jnp.inf))  # 1.
    nu = jnp.where(_first(state.learned, size), nu, 0)  # never an untrained mask
    best = jnp.argmax(nu).astype(jnp.int32)
    new = (k.astype(jnp.float32) * nu[best] < 1 + epsilon) | (state.learned == 0)  # 2.
    room = state.learned < size
    current = jnp.where(new, jnp.where(room, state.learned, -1), best)  # 3.
    old = member(state.stored, best)
    return state._replace(
        scores=_where(new & room, _begun(start, state, old, mean), old),
        learned=state.learned + (new & room).astype(jnp.int32),
        current=current,
        overflowed=state.overflowed + (new & ~room).astype(jnp.int32),
        switched=current != state.current,
    )


def _begun(start: Start, state: StreamState, nearest: Scores, mean: Scores) -> Scores:
    """What a new task's scores begin with; random for the first task."""
    drawn = scores = member(state.stored, state.learned)
    if start == "nearest":
        scores = nearest
    elif start == "last":
        scores = member(state.stored, state.learned - 1)
    elif start == "mean_masks":
        scores = mean
    elif start == "mean_scores":
        used = bank.is_used(tasks_of(state)).astype(jnp.float32)
        share = used / jnp.maximum(state.learned, 1).astype(jnp.float32)
        scores = jax.tree.map(
            lambda s: rows.mixed(s, share.astype(s.dtype)), state.stored
        )
    return _where(state.learned > 0, scores, drawn)


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(
        lambda a, b: jnp.where(condition, a.astype(b.dtype), b), new, old
    )
