"""What a learner without task ids carries from batch to batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maskjax import bank, estimator, initializer, packing, select
from maskjax._core import blame, checks, rows, trees
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, Scores
from maskjax.where import kernels


@stored("maskjax.recipes.supsup_stream.StreamState")
class StreamState(NamedTuple):
    """The scores of all tasks, and which of them are trained; a pytree.

    Attributes:
        scores: The current task's. Train them, and put them back with `_replace`.
        stored: A stack [C, ...], all tasks' scores as of the last decision; random for
            tasks to come.
        packed: The masks of `stored`.
        learned: int32, the number of tasks so far.
        current: int32, the task of `scores`. It is -1 before the first decision, and
            where there was no room for a new task: what is trained then is dropped.
        overflowed: int32, how often there was no room.
        switched: bool, whether the last decision changed `current`. The optimizer then
            starts afresh.
    """

    scores: Scores
    stored: Scores
    packed: Mask
    learned: Array
    current: Array
    overflowed: Array
    switched: Array


def init(
    weights: Params, *, capacity: int, where: trees.Predicate = kernels, key: Array
) -> StreamState:
    """No task yet, and random scores for those to come. Call `allocate` next.

    Args:
        weights: The random weights.
        capacity: C, how many tasks there is room for, each with its scores.
        where: Which leaves carry a mask.
        key: A typed key; every task gets its own.

    Returns:
        The state. Scores are sharded as the weights are; to be packed, the signs of a
        leaf may be gathered, as by `packing.pack`.

    Raises:
        TypeError: If C is not a whole number, a chosen leaf not floating, or the key
            not typed.
        ValueError: If C is below 1, or `where` chooses nothing or a leaf of one axis.

    Example:
        >>> w, key = {"w": jnp.ones((4, 2))}, jax.random.key(0)
        >>> supsup_stream.init(w, capacity=3, key=key).stored["w"].shape
        (3, 4, 2)
    """
    fn = "maskjax.recipes.supsup_stream.init"
    checks.typed_key(key, fn=fn)
    checks.at_least(capacity, 1, fn=fn, name="capacity")

    @jax.jit
    def draw(keys: Array) -> tuple[Scores, Scores, Mask]:
        stored = jax.vmap(
            lambda key: initializer.scores(weights, where=where, key=key)
        )(keys)
        return member(stored, 0), stored, jax.vmap(_packed)(stored)

    # Each an array of its own, or the state could not be donated.
    counters = (jnp.array(i, jnp.int32) for i in (0, -1, 0))
    with blame.instead_of("maskjax.initializer.scores", fn):
        drawn = draw(jax.random.split(key, capacity))
    return StreamState(*drawn, *counters, switched=jnp.array(False))


def soft_mask(scores: Scores) -> trees.SoftMask:
    """The mask to train through: scores of at least 0, derivative 1.

    Args:
        scores: The current task's.

    Returns:
        A soft mask of exact 0s and 1s in the scores' dtypes, for `maskjax.apply`.

    Example:
        >>> supsup_stream.soft_mask({"w": jnp.array([-0.1, 0.0, 0.1])})
        {'w': Array([0., 1., 1.], dtype=float32)}
    """
    checks.floating_scores(scores, fn="maskjax.recipes.supsup_stream.soft_mask")
    return estimator.threshold(scores, at=0.0)  # 4.


def masks(state: StreamState) -> bank.MaskBank:
    """The masks of all tasks so far, to infer tasks from and predict with.

    If tasks are on several devices, bits move as in `packing.pack` and `bank.append`.

    Args:
        state: The state, with the scores that were trained.

    Returns:
        The bank; `overflowed` counts decisions.

    Example:
        >>> w, key = {"w": jnp.ones((4, 2))}, jax.random.key(0)
        >>> state = supsup_stream.init(w, capacity=3, key=key)
        >>> bank.capacity(supsup_stream.masks(state))
        3
    """
    state = committed(state, fn="maskjax.recipes.supsup_stream.masks")
    # The counter is a copy, because the state may be donated later.
    return bank.MaskBank(*tasks_of(state)[:3], jnp.array(state.overflowed))


def committed(state: StreamState, *, fn: str) -> StreamState:
    """The state with the current scores stored, and their mask packed."""
    names = "state.packed", "state.scores"
    checks.same_shapes(state.packed, state.scores, fn=fn, names=names)
    return _committed(state)


def tasks_of(state: StreamState) -> bank.MaskBank:
    """The bank of the packed masks."""
    return bank.from_stack(state.packed, learned=state.learned)


def member(stack: Any, i: Any) -> Any:
    """One member of a stack of arrays; indices are clipped."""
    return jax.tree.map(lambda s: rows.read(s, i), stack)


@jax.jit
def _committed(state: StreamState) -> StreamState:
    old = state.stored, state.packed
    size = jax.tree.leaves(old)[0].shape[0]
    at = jnp.where(state.current < 0, size, state.current)  # past the end: dropped
    new = state.scores, _packed(state.scores)
    stacks = jax.tree.map(lambda s, one: rows.inserted(s, one[None], at), old, new)
    return state._replace(stored=stacks[0], packed=stacks[1])


def _packed(scores: Scores) -> Mask:
    return packing.pack(select.threshold(scores, at=0.0))
