"""Who owns which weight of a network that learns task after task.

Part of `maskjax.recipes.packnet`, which exports what is here; `recipes.pacnet` divides
leaves and settles what was trained the same way.

>>> params = {"w": jnp.ones((1, 2)), "head": jnp.zeros((2, 1))}
>>> state = packnet.init(params, head=where.matching("head"), capacity=2)
>>> state.owner["w"], state.slots["head"].shape
(Array([[0, 0]], dtype=uint8), (2, 2, 1))
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maskjax import masking
from maskjax._core import checks, slots, trees
from maskjax._core.trees import Array, Mask, Params, Predicate, map_mask
from maskjax.select._choice import Scope
from maskjax.select._quota import quota
from maskjax.where import kernels
from maskjax.where import statistics as _statistics

_FN = "maskjax.recipes.packnet."


class PackNetState(NamedTuple):
    """The network between two tasks; a pytree of fixed shapes.

    Attributes:
        params: Weights and shared leaves; of others, what a task begins with.
        owner: 0 for a free weight, else 1 + its task; `None` for leaves without owners.
        slots: Of leaves that each task has its own of, [C, ...]; `None` for others.
        counts: [C], how many weights each task owns.
        learned: int32, how many tasks are.
        refused: int32, how many were committed under `jit` when C were learned.
    """

    params: Params
    owner: Any
    slots: Any
    counts: Array
    learned: Array
    refused: Array


def init(
    params: Params,
    *,
    capacity: int,
    head: Predicate | None,
    where: Predicate = kernels,
    statistics: Predicate | None = _statistics,
) -> PackNetState:
    """A network that knows no task.

    Args:
        params: Tree of arrays, all that the network has, running statistics too.
        capacity: C, how many tasks there is room for.
        head: Which leaves each task has its own of: the last layer, and biases or
            normalization with it if the predicate says so. `None`: no layer is.
        where: Which of the others are weights, each to be owned by one task.
        statistics: Which of the rest are running statistics, each task's own too; by
            default `where.statistics`. `None`: the first task's are for all.

    Returns:
        The state.

    Raises:
        TypeError: If a weight or a head is not floating, or C no whole number.
        ValueError: If C is below 1, or there are no weights, or no leaves of a head.

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
    dtype = np.min_scalar_type(capacity)
    owner = map_mask(lambda w: jnp.zeros(w.shape, dtype), weights)
    slots = map_mask(lambda w: jnp.zeros((capacity, *w.shape), w.dtype), own)
    counts, learned, refused = (jnp.zeros(n, int) for n in (capacity, (), ()))
    return PackNetState(params, owner, slots, counts, learned, refused)


def active(state: PackNetState, task: ArrayLike) -> Mask:
    """The weights that a task runs on: its own, and those of all tasks before it.

    Args:
        state: The network.
        task: Which, an integer; negative ones count from the last learned.

    Returns:
        A mask: True keeps. Where `task` or `learned` is traced, and the task is not
        learned, it is the mask that keeps nothing.

    Raises:
        TypeError: If the task is no integer.
        ValueError: If the task is not learned.

    Example:
        >>> state = packnet.init({"w": jnp.ones((1, 2))}, head=None, capacity=1)
        >>> state = packnet.commit(packnet.begin(state), {"w": jnp.ones((1, 2))})
        >>> packnet.active(state, 0)
        {'w': Array([[ True,  True]], dtype=bool)}
    """
    room = len(state.counts)
    index, exists = slots.find(task, state.learned, room, fn=_FN + "active")
    last = jnp.where(exists, index + 1, 0)
    return map_mask(lambda o: (o > 0) & (o <= last.astype(o.dtype)), state.owner)


def params_of(state: PackNetState, task: ArrayLike) -> Params:
    """The parameters of a task: its active weights, and what it has of its own.

    Args:
        state: The network.
        task: As in `active`.

    Returns:
        A tree like the `params` of `init`, for the network as it is. Weights that are
        not active are exactly 0. Where `active` keeps nothing, so is the task's own.

    Raises:
        TypeError: As in `active`.
        ValueError: As in `active`.

    Example:
        >>> state = packnet.init({"w": jnp.ones((1, 2))}, head=None, capacity=1)
        >>> state = packnet.commit(packnet.begin(state), {"w": jnp.ones((1, 2))})
        >>> packnet.params_of(state, -1)
        {'w': Array([[1., 1.]], dtype=float32)}
    """
    room = len(state.counts)
    index, exists = slots.find(task, state.learned, room, fn=_FN + "params_of")

    def leaf(w: Array, slot: Array | None) -> Array:
        if slot is None:
            return w
        own = jnp.take(slot, index, axis=0, mode="clip")
        return jnp.where(exists, own, jnp.zeros_like(own))

    params = masking.apply(state.params, active(state, task))
    return jax.tree.map(leaf, params, state.slots)


def allotment(
    state: PackNetState, *, rates: Sequence[float], scope: Scope = "leaf"
) -> tuple[int, ...]:
    """How many weights each task will own, to choose rates before anything is trained.

    Args:
        state: The network. What it has learned does not matter.
        rates: With which the first tasks, in order, will be pruned; 0 where none is.
            With 1 - 1 / C, 1 - 1 / (C - 1), ..., 0 each task owns as many.
        scope: As in `prune`.

    Returns:
        As many numbers; with rates of float32 one may differ by one.

    Raises:
        TypeError: If a rate is no number.
        ValueError: If rates leave a task no weights, or none in some leaf to the first,
            which has no others; are outside [0, 1], or more than C.

    Example:
        >>> state = packnet.init({"w": jnp.ones((10, 10))}, head=None, capacity=3)
        >>> packnet.allotment(state, rates=(0.5, 0.75, 0.0))
        (50, 12, 38)
    """
    fn = _FN + "allotment"
    checks.one_of(scope, ("leaf", "global"), fn=fn, name="scope")
    slots.require_single(state.learned, fn=fn)
    sizes = {p: leaf.size for p, leaf in trees.named_leaves(state.owner)}
    free = list(sizes.values()) if scope == "leaf" else [sum(sizes.values())]
    if len(rates) > len(state.counts):
        raise ValueError(
            f"`{fn}` needs `rates` for {len(state.counts)} tasks at most, got "
            f"{len(rates)}."
        )
    found, owned = [], []
    for rate in rates:
        checks.unit_interval(rate, fn=fn, name="rates")
        left = [quota(rate, n) for n in free]
        found.append(sum(free))
        owned.append(sum(free) - sum(left))
        free = left
    first = rates[:1] if scope == "leaf" else ()
    checks.raise_all(
        [
            *(
                f"task 0: none of the {n:,} of {path}"
                for rate in first
                for path, n in sizes.items()
                if n and quota(rate, n) == n
            ),
            *(
                f"task {task}: {mine} of the {n:,} that are free"
                for task, (mine, n) in enumerate(zip(owned, found, strict=True))
                if not mine
            ),
        ],
        f"`{fn}` needs `rates` that leave every task weights, and the first some of "
        "every leaf",
    )
    return tuple(owned)


def roles(
    params: Params,
    head: Predicate | None,
    where: Predicate,
    statistics: Predicate | None,
    *,
    fn: str,
) -> tuple[Params, Params]:
    """The weights that tasks share out, and the leaves that each has its own of.

    Two trees like `params`, with `None` for the leaves that are not; as in `init`.
    """
    weights = checks.chosen(params, where, fn=fn)
    heads = [False] * len(weights)
    if head is not None:
        heads = checks.chosen(params, head, fn=fn, name="head")
    shared, own = [], []
    for (path, w), weight, mine in zip(
        trees.named_leaves(params), weights, heads, strict=True
    ):
        weight = weight and not mine
        mine = mine or not weight and statistics is not None and statistics(path, w)
        shared.append(w if weight else None)
        own.append(w if mine else None)
    if all(leaf is None for leaf in shared):
        raise ValueError(f"`{fn}` needs weights that are not of the `head`, got none.")
    treedef = jax.tree.structure(params)
    return treedef.unflatten(shared), treedef.unflatten(own)


def of_use(own: Params, *, fn: str, hint: str = "") -> None:
    """There are leaves that fresh parameters are for."""
    if not jax.tree.leaves(own):
        raise ValueError(
            f"`{fn}` needs `fresh` for a task's own leaves, of which there are none: "
            f"name its `head` at first{hint}."
        )


def refreshed(network: Params, own: Params, fresh: Params, *, fn: str) -> Params:
    """Fresh leaves: own ones may be of another width, others are as in the network."""
    of_use(own, fn=fn)
    checks.matched(network, fresh, fn=fn, names=("network", "fresh"))

    def told(w: Array, own: Array | None, new: Any) -> Any:
        alike = checks.shaped(new) and (new.ndim, new.dtype) == (w.ndim, w.dtype)
        return w if alike and own is not None else new

    checks.alike(network, jax.tree.map(told, network, own, fresh), fn=fn, name="fresh")
    return jax.tree.map(jnp.asarray, fresh)


def settled(phase: Any, params: Params, *, fn: str) -> Params:
    """What was trained, and all else as it was, whatever an optimizer moved.

    A phase of training has `params`, where it began, and `mask`: True trains.
    """
    checks.alike(phase.params, params, fn=fn, name="params")
    return jax.tree.map(jnp.where, phase.mask, params, phase.params)


def emptied(kept: Mask) -> list[str]:
    """The leaves of which a mask keeps nothing, by path, as far as that is known."""
    leaves = trees.named_leaves(kept)
    return [p for p, m in leaves if m.size and checks.known(jnp.any(m)) == 0]


def in_phase(given: Any, *phases: type, fn: str, order: str) -> None:
    """The state is of one of a few types, which tell phases apart."""
    if type(given) not in phases:
        names = " or ".join(f"`{each.__name__}`" for each in phases)
        raise TypeError(
            f"`{fn}` needs a {names}, got {type(given).__name__}. {order}, in this "
            "order."
        )
