"""What the phases compute; arguments are checked already.

Each function is one compiled program. Copies keep the state alive if the training loop
donates the parameters that it is given.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from maskjax import algebra
from maskjax._core import rows
from maskjax._core.trees import Array, Mask, Params, Scores, map_mask
from maskjax.recipes._phases import whole
from maskjax.recipes.packnet._state import PackNetState


@functools.partial(jax.jit, static_argnames="reinit")
def begun(state: PackNetState, new: Params, *, reinit: bool) -> tuple[Params, Mask]:
    """Where a task starts, in arrays of its own, and what it may change."""
    room = state.learned < len(state.counts)

    def trains(w: Array, owner: Array | None, slot: Array | None) -> Array:
        if owner is not None:
            return (owner == 0) & room
        return whole(w, (state.learned == 0) if slot is None else room)

    def start(w: Array, new: Array, mask: Array, owner: Any, slot: Any) -> Array:
        if owner is not None and reinit:
            return jnp.where(mask, new, w)
        return jnp.copy(w if slot is None else new)

    mask = jax.tree.map(trains, state.params, state.owner, state.slots)
    start_of = jax.tree.map(start, state.params, new, mask, state.owner, state.slots)
    return start_of, mask


@functools.partial(jax.jit, static_argnames="pruned")
def restored(
    state: PackNetState, mask: Mask, params: Params, *, pruned: bool
) -> tuple[Params, Mask]:
    """Parameters with frozen entries as they were; and the mask of the weights."""

    def leaf(w: Array, new: Array, trains: Array, owner: Array | None) -> Array:
        if pruned and owner is not None:
            w = jnp.where(owner == 0, jnp.zeros_like(w), w)
        return jnp.where(trains, new, w)

    restored = jax.tree.map(leaf, state.params, params, mask, state.owner)
    return restored, map_mask(lambda _, m: m, state.owner, mask)


@jax.jit
def sizes(trained: Mask, params: Params) -> Scores:
    """What the weights that trained are ranked by."""
    return map_mask(lambda _, w: jnp.abs(w), trained, params)


@jax.jit
def freed(mask: Mask, kept: Mask, params: Params) -> tuple[Params, Mask]:
    """Parameters and mask without the weights that trained and were not kept."""

    def zeroed(w: Array, trained: Array, kept: Array | None) -> Array:
        return w if kept is None else jnp.where(trained & ~kept, jnp.zeros_like(w), w)

    params = jax.tree.map(zeroed, params, mask, kept)
    own = lambda m, k: jnp.copy(m) if k is None else k  # noqa: E731
    return params, jax.tree.map(own, mask, kept)


@jax.jit
def committed(state: PackNetState, mine: Mask, params: Params) -> PackNetState:
    """The state with a task learned, or with one more overflow if there is no room."""
    task, room = state.learned, state.learned < len(state.counts)

    def own(owner: Array, mask: Array) -> Array:
        return jnp.where(mask, (task + 1).astype(owner.dtype), owner)

    def put(slot: Array, new: Array) -> Array:
        return rows.inserted(slot, new[None], task)  # without room, nowhere

    def shared(start: Array, new: Array, slot: Array | None) -> Array:
        return new if slot is None else jnp.copy(start)

    return PackNetState(
        jax.tree.map(shared, state.params, params, state.slots),
        map_mask(own, state.owner, mine),
        map_mask(put, state.slots, params),
        put(state.counts, algebra.count(mine)),
        task + room.astype(task.dtype),
        state.overflowed + (~room).astype(task.dtype),
    )
