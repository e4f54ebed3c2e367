"""The network between two tasks: its weights, and the masks of the tasks so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax import bank, initializer, packing
from maskjax._core import blame, checks, placement, rows, slots
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, Predicate, Scores, map_mask
from maskjax.recipes._phases import empty_slots, roles
from maskjax.where import kernels
from maskjax.where import statistics as _statistics

_FN = "maskjax.recipes.wsn."


@stored("maskjax.recipes.wsn.WSNState")
class WSNState(NamedTuple):
    """The network between two tasks; a pytree of fixed shapes.

    Attributes:
        params: The shared leaves; for task-specific leaves, where new tasks start.
        scores: Where the next task's scores start; `None` for leaves without a mask.
        masks: A bank of the tasks' masks. Its `counts` say how many tasks use each
            weight, its `learned` how many tasks there are, and its `overflowed` how
            many were committed under `jit` without room for them.
        slots: Per-task copies of the head and the statistics, [C, ...]; `None` for
            shared leaves.
        counts: [C], the number of weights that each task uses.
        reused: [C], how many of these an earlier task uses too.
    """

    params: Params
    scores: Scores
    masks: bank.MaskBank
    slots: Any
    counts: Array
    reused: Array


def init(
    params: Params,
    *,
    capacity: int,
    head: Predicate | None,
    where: Predicate = kernels,
    statistics: Predicate | None = _statistics,
    key: Array,
) -> WSNState:
    """A network that has learned no task yet; scores are uniform in +-1 / sqrt(fan_in).

    Args:
        params: Tree of arrays: everything the network has, running statistics too.
        capacity: C, the number of tasks that there is room for.
        head: Chooses the leaves that every task has a copy of: the last layer, and
            biases or normalization if you want them to be task-specific. `None`
            chooses none.
        where: Chooses the weights that have a mask, among the other leaves. They need a
            fan-in.
        statistics: Chooses running statistics among the rest; every task has a copy of
            these too. `None`: all tasks use those of the first task.
        key: A typed key for the scores; every leaf gets its own.

    Returns:
        The state, in arrays of its own.

    Raises:
        TypeError: If a weight or a head is not floating, C is not a whole number, or
            the key is not typed.
        ValueError: If C is below 1, `where` or `head` chooses nothing, or a weight has
            no fan-in.

    Example:
        >>> params = {"w": jnp.ones((2, 3)), "head": jnp.ones((3, 4))}
        >>> heads = where.matching("head")
        >>> state = wsn.init(params, head=heads, capacity=5, key=jax.random.key(0))
        >>> state.slots["head"].shape, state.scores["head"]
        ((5, 3, 4), None)
    """
    fn = _FN + "init"
    checks.typed_key(key, fn=fn)
    checks.at_least(capacity, 1, fn=fn, name="capacity")
    params = jax.tree.map(jnp.asarray, params)
    weights, own = roles(params, head, where, statistics, fn=fn)
    with blame.instead_of("maskjax.initializer.scores", fn):
        scores = initializer.scores(weights, where=where, key=key)  # 1.
    masks = bank.empty(weights, capacity=capacity, where=where)
    # Copies: a loop that donates the state must not take your parameters along.
    copies = jax.tree.map(jnp.copy, params)
    slot = map_mask(lambda leaf: empty_slots(leaf, int(capacity)), own)
    counts, reused = (jnp.zeros(int(capacity), int) for _ in range(2))
    return WSNState(copies, scores, masks, slot, counts, reused)


def union(state: WSNState) -> Mask:
    """The weights that any task so far uses; they are frozen.

    Args:
        state: The network.

    Returns:
        A mask: True where a task's mask keeps the weight. `algebra.density` of it is
        the share of the capacity that is used.

    Example:
        >>> params = {"w": jnp.ones((1, 2))}
        >>> state = wsn.init(params, head=None, capacity=1, key=jax.random.key(0))
        >>> wsn.union(state)
        {'w': Array([[False, False]], dtype=bool)}

    References:
        Kang et al., ICML 2022, section 3.2: the accumulated mask.
    """
    return map_mask(lambda count: count > 0, state.masks.counts)


def params_of(state: WSNState, task: ArrayLike) -> Params:
    """The parameters of a task: 5.

    Args:
        state: The network.
        task: An integer; negative ones count back from the last learned task.

    Returns:
        A tree like the `params` of `init`, in arrays of its own. Weights that the
        task's mask removes are exactly 0. If `task` or `learned` is traced and the task
        is not learned, all weights and all task-specific leaves are 0.

    Raises:
        TypeError: If the task is not an integer.
        ValueError: If the task is not learned.

    Example:
        >>> params = {"w": jnp.array([[1.0, 2.0]])}
        >>> state = wsn.init(params, head=None, capacity=1, key=jax.random.key(0))
        >>> mask = {"w": jnp.array([[False, True]])}
        >>> state = wsn.commit(wsn.begin(state), params, state.scores, mask)
        >>> wsn.params_of(state, 0)
        {'w': Array([[0., 2.]], dtype=float32)}
    """
    fn = _FN + "params_of"
    room = len(state.counts)
    index, exists = slots.find(task, state.masks.learned, room, fn=fn)
    return _params_of(state, index, exists)


@jax.jit
def _params_of(state: WSNState, task: Array, exists: Array) -> Params:
    kept = packing.unpack(bank.take(state.masks, jnp.where(exists, task, 0)))

    def leaf(w: Array, kept: Array | None, slot: Array | None) -> Array:
        if kept is not None:
            own = placement.alike(kept, w)  # an axis of words may not be sharded
            return jnp.where(own & exists, w, jnp.zeros_like(w))
        if slot is None:
            return jnp.copy(w)
        own = rows.read(slot, task)
        return jnp.where(exists, own, jnp.zeros_like(own))

    return jax.tree.map(leaf, state.params, kept, state.slots)
