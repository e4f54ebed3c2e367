"""PackNet: one network, task after task, and nothing is forgotten (CVPR 2018).

Mallya & Lazebnik, "PackNet: Adding Multiple Tasks to a Single Network by Iterative
Pruning", arXiv:1711.05769.

Algorithm (numbers match the comments below):
  1. a new task may train every free weight; those of others are used, and frozen
  2. of the weights that it trained, free the `rate` smallest of each leaf: they are 0
  3. train what is left once more, for less time; now that is the task's for good
  4. run task t on the weights of tasks 0 to t, with its own head
The last task needs no 2. Every task has its own head and its own running statistics;
biases and the like train with the first task only, unless `head` says otherwise.

Departures from the paper:
  * exactly round(rate * n) of n weights are freed, of equal ones the last; the authors
    cut at a threshold, and all that are equal go
  * whatever an optimizer does to what is frozen is undone, to the bit
  * the paper's running statistics are those of the first task: `statistics=None`

    >>> from maskjax.recipes import packnet
    >>> params = {"w": jnp.array([[3.0, -1.0]]), "head": jnp.zeros((2, 1))}
    >>> state = packnet.init(params, head=where.matching("head"), capacity=2)
    >>> training = packnet.begin(state)  # train .params, where .mask is True
    >>> pruned = packnet.prune(training, training.params, rate=0.5)  # once more
    >>> state = packnet.commit(pruned, pruned.params)
    >>> packnet.begin(state).mask["w"], packnet.params_of(state, 0)["w"]
    (Array([[False,  True]], dtype=bool), Array([[3., 0.]], dtype=float32))
"""

import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from maskjax import algebra, masking, select
from maskjax._core import checks, slots
from maskjax._core.trees import Array, Density, Mask, Params, Scores, map_mask
from maskjax.recipes._ownership import (
    PackNetState,
    active,
    allotment,
    emptied,
    in_phase,
    init,
    of_use,
    params_of,
    settled,
)

__all__ = [
    "PackNetState",
    "Pruned",
    "Training",
    "active",
    "allotment",
    "begin",
    "commit",
    "init",
    "params_of",
    "prune",
]

_ORDER = "For each task call `begin`, `prune` and `commit`"


class Training(NamedTuple):
    """A task that has begun; a pytree.

    Attributes:
        params: Where training begins: all weights, and the task's own leaves.
        mask: What the task may change, for `optim.mask_updates`: True trains.
        state: The network before the task.
    """

    params: Params
    mask: Mask
    state: PackNetState


class Pruned(Training):
    """A task that was pruned and may train what it kept; a pytree like `Training`."""


def begin(
    state: PackNetState,
    fresh: Params | None = None,
    *,
    reinit_free: Literal["zero", "init"] = "zero",
) -> Training:
    """A new task, which may train every free weight.

    Args:
        state: The network.
        fresh: A tree like `params` from which the task's own leaves start. `None`: from
            what they were when `init` was called.
        reinit_free: Free weights start at "zero", where pruning left them, as in the
            paper; or from `fresh` ("init"), lest a unit without weights stays so.

    Returns:
        Where training begins. Without room, where that can't be an error since
        `learned` is traced, nothing trains, and `commit` changes nothing.

    Raises:
        TypeError: If `state` is of another phase.
        ValueError: If all tasks are learned, or `fresh` does not fit the network, is
            needed, or is of no use since no leaf is the task's own.

    Example:
        >>> params = {"w": jnp.ones((1, 2)), "b": jnp.ones(2)}
        >>> packnet.begin(packnet.init(params, head=None, capacity=2)).mask
        {'b': Array([ True], dtype=bool), 'w': Array([[ True,  True]], dtype=bool)}
    """
    fn = "maskjax.recipes.packnet.begin"
    in_phase(state, PackNetState, fn=fn, order=_ORDER)
    checks.one_of(reinit_free, ("zero", "init"), fn=fn, name="reinit_free")
    capacity = len(state.counts)
    slots.require_room(state.learned, capacity, 1, fn=fn)
    if fresh is None and reinit_free == "init":
        raise ValueError(f"`{fn}` needs `fresh`, with `reinit_free` as 'init'.")
    if fresh is not None and reinit_free == "zero":
        of_use(state.slots, fn=fn, hint=", or free weights by `reinit_free`")
    new = state.params if fresh is None else fresh
    checks.alike(state.params, new, fn=fn, name="fresh")
    room = state.learned < capacity

    def trains(w: Array, owner: Array | None, slot: Array | None) -> Array:
        if owner is not None:
            return (owner == 0) & room  # 1.
        return jnp.full((1,) * w.ndim, (state.learned == 0) if slot is None else room)

    def start(w: Array, new: Array, mask: Array, owner: Any, slot: Any) -> Array:
        if owner is not None and reinit_free == "init":
            return jnp.where(mask, new, w)
        return w if slot is None else new

    mask = jax.tree.map(trains, state.params, state.owner, state.slots)
    params = jax.tree.map(start, state.params, new, mask, state.owner, state.slots)
    return Training(params, mask, state)


def prune(
    training: Training,
    params: Params,
    *,
    rate: Density | Scores,
    scope: select.Scope = "leaf",
) -> Pruned:
    """The task without its smallest weights, which are 0 and free again.

    It warns if the task keeps none, or leaves none to later ones, or if it is the first
    and a leaf keeps none, unless that can't be known since arrays are traced:
    `allotment` knows it before.

    Args:
        training: The task, as `begin` returned it.
        params: What training made of `training.params`. Where the mask is False they
            are taken from there.
        rate: The fraction of the task's weights that is freed, as in `select.drop`. The
            paper: 0.5 for the first task, 0.75 for others.
        scope: "leaf", as in the paper, or "global".

    Returns:
        The task, to be trained once more.

    Raises:
        TypeError: If `training` is of another phase, or the rate not a number.
        ValueError: If `params` does not fit the network, or as in `select.drop`.

    Example:
        >>> state = packnet.init({"w": jnp.ones((1, 4))}, head=None, capacity=2)
        >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
        >>> packnet.prune(packnet.begin(state), params, rate=0.5).params
        {'w': Array([[0., 0., 3., 4.]], dtype=float32)}
    """
    fn = "maskjax.recipes.packnet.prune"
    in_phase(training, Training, fn=fn, order=_ORDER)
    params = settled(training, params, fn=fn)
    trained = _weights(training)
    sizes = map_mask(lambda _, w: jnp.abs(w), trained, params)
    kept = select.drop(sizes, trained, rate=rate, scope=scope)  # 2.
    _remark(training.state, trained, kept, fn=fn)
    freed = algebra.difference(trained, kept)
    params = masking.apply(params, algebra.complement(freed))
    mask = jax.tree.map(lambda m, k: m if k is None else k, training.mask, kept)
    return Pruned(params, mask, training.state)


def commit(training: Training, params: Params) -> PackNetState:
    """The network with the task learned: what it owns will not change any more.

    Args:
        training: The task, as `prune` returned it; or as `begin` did, which leaves no
            weights to later ones.
        params: As in `prune`.

    Returns:
        The network.

    Raises:
        TypeError: If `training` is of another phase.
        ValueError: If `params` does not fit the network.

    Example:
        >>> state = packnet.init({"w": jnp.ones((1, 4))}, head=None, capacity=1)
        >>> packnet.commit(packnet.begin(state), {"w": jnp.ones((1, 4))}).counts
        Array([4], dtype=int32)
    """
    fn = "maskjax.recipes.packnet.commit"
    in_phase(training, Training, Pruned, fn=fn, order=_ORDER)
    params, state = settled(training, params, fn=fn), training.state
    mine = _weights(training)
    if type(training) is Training:
        _remark(state, mine, mine, fn=fn)
    task, room = state.learned, state.learned < len(state.counts)

    def own(owner: Array, mask: Array) -> Array:
        return jnp.where(mask, (task + 1).astype(owner.dtype), owner)  # 3.

    def put(slot: Array, new: Array) -> Array:
        return slot.at[task].set(new, mode="drop")  # without room, nowhere

    def shared(start: Array, new: Array, slot: Array | None) -> Array:
        return new if slot is None else start

    return PackNetState(
        jax.tree.map(shared, state.params, params, state.slots),
        map_mask(own, state.owner, mine),
        map_mask(put, state.slots, params),
        put(state.counts, algebra.count(mine)),
        task + room.astype(task.dtype),
        state.refused + (~room).astype(task.dtype),
    )


def _weights(training: Training) -> Mask:
    """The part of the mask that is of weights with owners."""
    return map_mask(lambda _, mask: mask, training.state.owner, training.mask)


def _remark(state: PackNetState, had: Mask, kept: Mask, *, fn: str) -> None:
    """Warn of a task without weights, or without any for those to come."""
    counts = state.learned, algebra.count(had), algebra.count(kept)
    task, n, left = map(checks.known, counts)
    if task is None or n is None or left is None or not n:
        return
    if not left:
        what = f"leaves task {task} none of its {n:,} weights"
    elif left == n and task + 1 < len(state.counts):
        what = f"leaves later tasks no weights: task {task} keeps all of its {n:,}"
    elif task == 0 and (cut := emptied(kept)):  # later tasks use its weights
        what = f"leaves task 0 no weights in {', '.join(cut)}"
    else:
        return
    warnings.warn(f"`{fn}` {what}.", UserWarning, stacklevel=3)
