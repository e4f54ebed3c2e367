"""The network between two tasks: who owns which weight."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maskjax._core import checks, placement, rows, slots
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, Predicate, map_mask
from maskjax.recipes._phases import empty_slots, roles
from maskjax.where import kernels
from maskjax.where import statistics as _statistics

_FN = "maskjax.recipes.packnet."


@stored("maskjax.recipes.packnet.PackNetState")
class PackNetState(NamedTuple):
    """The network between two tasks; a pytree of fixed shapes.

    Attributes:
        params: The shared leaves; for task-specific leaves, where new tasks start.
        owner: For each weight 0 if it is free, else 1 + the task that owns it. `None`
            for leaves that are not divided among tasks.
        slots: Per-task copies of the head and the statistics, [C, ...]; `None` for
            shared leaves.
        counts: [C], the number of weights that each task owns.
        learned: int32, the number of tasks learned so far.
        overflowed: int32, the number of tasks that were committed under `jit` without
            room for them.
    """

    params: Params
    owner: Any
    slots: Any
    counts: Array
    learned: Array
    overflowed: Array


def init(
    params: Params,
    *,
    capacity: int,
    head: Predicate | None,
    where: Predicate = kernels,
    statistics: Predicate | None = _statistics,
) -> PackNetState:
    """A network that has learned no task yet.

    Args:
        params: Tree of arrays: everything the network has, running statistics too.
        capacity: C, the number of tasks that there is room for.
        head: Chooses the leaves that every task has a copy of: the last layer, and
            biases or normalization if you want them to be task-specific. `None`
            chooses none.
        where: Chooses the weights that tasks divide, among the other leaves.
        statistics: Chooses running statistics among the rest; every task has a copy of
            these too. `None`: all tasks use those of the first task.

    Returns:
        The state, in arrays of its own.

    Raises:
        TypeError: If a weight or a head is not floating, or C is not a whole number.
        ValueError: If C is below 1, or if `where` or `head` chooses nothing.

    Example:
        >>> params = {"w": jnp.ones((2, 3)), "head": jnp.ones((3, 4))}
        >>> state = packnet.init(params, head=where.matching("head"), capacity=300)
        >>> state.slots["head"].shape
        (300, 3, 4)
    """
    fn = _FN + "init"
    checks.at_least(capacity, 1, fn=fn, name="capacity")
    params = jax.tree.map(jnp.asarray, params)
    weights, own = roles(params, head, where, statistics, fn=fn)
    return _empty(params, weights, own, capacity=int(capacity))


def mask(state: PackNetState, task: ArrayLike) -> Mask:
    """The mask of a task: its own weights and those of all tasks before it.

    Args:
        state: The network.
        task: An integer; negative ones count back from the last learned task.

    Returns:
        A mask: True keeps. If `task` or `learned` is traced and the task is not
        learned, the mask keeps nothing.

    Raises:
        TypeError: If the task is not an integer.
        ValueError: If the task is not learned.

    Example:
        >>> state = packnet.init({"w": jnp.ones((1, 2))}, head=None, capacity=1)
        >>> state = packnet.commit(packnet.begin(state), {"w": jnp.ones((1, 2))})
        >>> packnet.mask(state, 0)
        {'w': Array([[ True,  True]], dtype=bool)}
    """
    return _mask(state.owner, _last_owner(state, task, fn=_FN + "mask"))


def params_of(state: PackNetState, task: ArrayLike) -> Params:
    """The parameters of a task: 4.

    Args:
        state: The network.
        task: An integer; negative ones count back from the last learned task.

    Returns:
        A tree like the `params` of `init`, in arrays of its own. Weights that the
        task's `mask` removes are exactly 0. If `task` or `learned` is traced and the
        task is not learned, all weights and all task-specific leaves are 0.

    Raises:
        TypeError: If the task is not an integer.
        ValueError: If the task is not learned.

    Example:
        >>> state = packnet.init({"w": jnp.ones((1, 2))}, head=None, capacity=1)
        >>> state = packnet.commit(packnet.begin(state), {"w": jnp.ones((1, 2))})
        >>> packnet.params_of(state, -1)
        {'w': Array([[1., 1.]], dtype=float32)}
    """
    return _params_of(state, _last_owner(state, task, fn=_FN + "params_of"))


def _last_owner(state: PackNetState, task: ArrayLike, *, fn: str) -> Array:
    """The highest entry of `owner` that a task uses; 0 if it is not learned."""
    index, exists = slots.find(task, state.learned, len(state.counts), fn=fn)
    return jnp.where(exists, index + 1, 0)


def _empty(params: Params, weights: Params, own: Params, capacity: int) -> PackNetState:
    dtype = np.min_scalar_type(capacity)

    def owners_of(leaf: Array) -> Array:
        return placement.zeros(leaf.shape, dtype, leaf)

    counts, learned, overflowed = (jnp.zeros(n, int) for n in (capacity, (), ()))
    return PackNetState(
        # Copies: a loop that donates the state must not take your parameters along.
        jax.tree.map(jnp.copy, params),
        map_mask(owners_of, weights),
        map_mask(lambda leaf: empty_slots(leaf, capacity), own),
        counts,
        learned,
        overflowed,
    )


@jax.jit
def _mask(owner: Any, last: Array) -> Mask:
    return map_mask(lambda o: (o > 0) & (o <= last.astype(o.dtype)), owner)


@jax.jit
def _params_of(state: PackNetState, last: Array) -> Params:
    def leaf(w: Array, kept: Array | None, slot: Array | None) -> Array:
        if kept is not None:
            return jnp.where(kept, w, jnp.zeros_like(w))
        if slot is None:
            return jnp.copy(w)
        own = rows.read(slot, last - 1)
        return jnp.where(last > 0, own, jnp.zeros_like(own))

    return jax.tree.map(leaf, state.params, _mask(state.owner, last), state.slots)
