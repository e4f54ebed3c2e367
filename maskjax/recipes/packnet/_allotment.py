"""How many weights each task will own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax

from maskjax._core import checks, slots, trees
from maskjax._core.trees import Predicate
from maskjax.recipes.packnet._state import PackNetState
from maskjax.select import Scope
from maskjax.select._leaves import Leaves
from maskjax.select._quota import quota
from maskjax.structure import Entries
from maskjax.where import kernels


def allotment(
    state: PackNetState,
    *,
    rates: Sequence[float],
    scope: Scope = "leaf",
    where: Predicate = kernels,
) -> tuple[int, ...]:
    """How many weights each task will own; use it to choose rates before training.

    Args:
        state: The network. It does not matter how many tasks it has learned.
        rates: The `rate` of `prune` for each of the first tasks, in order; 0 for a task
            that is not pruned. With 1 - 1 / C, 1 - 1 / (C - 1), ..., 0 all tasks own
            equally many weights.
        scope: The `scope` of `prune`, whose structure is entries on their own.
        where: What the axes mean, for "layer" and "output".

    Returns:
        One number for each rate. Rates that are float32 arrays in training may give one
        weight more or less.

    Raises:
        TypeError: If a rate is not a number.
        ValueError: If a rate is outside [0, 1], there are more rates than C, a task
            gets no weights, or the first task gets none in some leaf: it has no others
            there, so nothing would get through.

    Example:
        >>> state = packnet.init({"w": jnp.ones((10, 10))}, head=None, capacity=3)
        >>> packnet.allotment(state, rates=(0.5, 0.75, 0.0))
        (50, 12, 38)
    """
    fn = "maskjax.recipes.packnet.allotment"
    slots.require_single(state.learned, fn=fn)
    if len(rates) > len(state.counts):
        raise ValueError(
            f"`{fn}` needs `rates` for {len(state.counts)} tasks at most, got "
            f"{len(rates)}."
        )
    for rate in rates:
        checks.unit_interval(rate, fn=fn, name="rates")
    ranked = trees.map_mask(
        lambda owner: jax.ShapeDtypeStruct(owner.shape, "float32"), state.owner
    )
    searched, complaints = Leaves(ranked, scope, Entries(), where, fn=fn), []
    free = searched.sizes
    if scope != "global":
        named = zip(searched.paths(), free, strict=True)
        complaints = [
            f"task 0: none of the {n:,} of {path}"
            for rate in rates[:1]
            for path, n in named
            if n and quota(rate, n) == n
        ]
        free = [
            n
            for plan, n in zip(searched.plans, free, strict=True)
            for _ in range(math.prod(plan.searches))
        ]
    owned = []
    for task, rate in enumerate(rates):
        left = [quota(rate, n) for n in free]
        owned.append(sum(free) - sum(left))
        if not owned[-1]:
            complaints.append(f"task {task}: 0 of the {sum(free):,} that are free")
        free = left
    checks.raise_all(
        complaints,
        f"`{fn}` needs `rates` that leave every task weights, and the first some of "
        "every leaf",
    )
    return tuple(owned)
