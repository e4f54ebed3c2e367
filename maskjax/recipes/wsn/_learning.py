"""The phases of one task: begin, commit."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maskjax import algebra, bank, packing
from maskjax._core import blame, checks, rows, slots
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, Scores, map_mask
from maskjax.recipes._phases import in_phase, require_own, whole
from maskjax.recipes.wsn._state import WSNState, union

_FN = "maskjax.recipes.wsn."
_ORDER = "For each task call `begin` and `commit`"


@stored("maskjax.recipes.wsn.Training")
class Training(NamedTuple):
    """A task that has begun; a pytree.

    Attributes:
        params: Where training starts: all weights, and the task's own leaves.
        scores: Where the scores start.
        mask: What of `params` may change, for `optim.mask_updates`: True trains. All
            scores may.
        state: The network before the task, as it was given to `begin`.
    """

    params: Params
    scores: Scores
    mask: Mask
    state: WSNState


def begin(state: WSNState, fresh: Params | None = None) -> Training:
    """Start a new task, which may train every weight that no task uses yet: 3.

    Args:
        state: The network.
        fresh: A tree like the network; the task's own leaves start from its leaves.
            `None`: they start as they were in `init`.

    Returns:
        Where training starts: `params`, `scores` and `mask` in arrays of their own;
        `state` is the one that was given, uncopied, so donate the others but not the
        whole. If `learned` is traced and there is no room, no parameter trains, and
        `commit` changes nothing.

    Raises:
        TypeError: If `state` is not a `WSNState`.
        ValueError: If all C tasks are learned, or `fresh` does not fit the network, or
            would be ignored because no leaf is task-specific.

    Example:
        >>> params = {"w": jnp.ones((1, 2)), "b": jnp.ones(2)}
        >>> state = wsn.init(params, head=None, capacity=2, key=jax.random.key(0))
        >>> wsn.begin(state).mask
        {'b': Array([ True], dtype=bool), 'w': Array([[ True,  True]], dtype=bool)}

    References:
        Kang et al., ICML 2022, section 3.2 and algorithm 1.
    """
    fn = _FN + "begin"
    in_phase(state, WSNState, fn=fn, order=_ORDER)
    slots.require_room(state.masks.learned, len(state.counts), 1, fn=fn)
    if fresh is not None:
        require_own(state.slots, fn=fn)
    new = state.params if fresh is None else fresh
    checks.alike(state.params, new, fn=fn, name="fresh")
    params, scores, mask = _begun(state, new)
    return Training(params, scores, mask, state)


def commit(training: Training, params: Params, scores: Scores, mask: Mask) -> WSNState:
    """The network with the task learned; what its mask keeps is frozen from now on: 4.

    Args:
        training: The task, from `begin`.
        params: `training.params` after training. Entries where `training.mask` is False
            are ignored; they stay as they were.
        scores: `training.scores` after training. The next task starts from them.
        mask: The task's mask, packed or not, with which it was trained last: usually
            `mask(scores, density=...)`.

    Returns:
        The network, in arrays of its own.

    Raises:
        TypeError: If `training` is not a `Training`, or the mask not a mask.
        ValueError: If `params`, `scores` or the mask do not fit the network, or it has
            2**31 weights or more and `jax_enable_x64` is off.

    Example:
        >>> params = {"w": jnp.ones((1, 4))}
        >>> state = wsn.init(params, head=None, capacity=1, key=jax.random.key(0))
        >>> mask = wsn.mask(state.scores, density=0.25)
        >>> wsn.commit(wsn.begin(state), params, state.scores, mask).counts
        Array([1], dtype=int32)
    """
    fn = _FN + "commit"
    in_phase(training, Training, fn=fn, order=_ORDER)
    state = training.state
    checks.alike(training.params, params, fn=fn, name="params")
    checks.alike(training.scores, scores, fn=fn, name="scores")
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=False)
    names = "network", "mask"
    checks.same_shapes(state.scores, mask, fn=fn, names=names)
    given = {"state": state, "params": params, "scores": scores, "mask": mask}
    checks.together(fn=fn, **given)
    slots.require_room(state.masks.learned, len(state.counts), 1, fn=fn)
    with blame.instead_of("maskjax.algebra.count", fn):
        return _committed(state, training.mask, params, scores, mask)


@jax.jit
def _begun(state: WSNState, new: Params) -> tuple[Params, Scores, Mask]:
    """Where a task starts, in arrays of its own, and what it may change."""
    room = state.masks.learned < len(state.counts)

    def trains(w: Array, used: Array | None, slot: Array | None) -> Array:
        if used is not None:
            return ~used & room
        return whole(w, (state.masks.learned == 0) if slot is None else room)

    def start(w: Array, new: Array, slot: Array | None) -> Array:
        return jnp.copy(w if slot is None else new)

    mask = jax.tree.map(trains, state.params, union(state), state.slots)
    params = jax.tree.map(start, state.params, new, state.slots)
    return params, jax.tree.map(jnp.copy, state.scores), mask


@jax.jit
def _committed(
    state: WSNState, trains: Mask, params: Params, scores: Scores, mask: Mask
) -> WSNState:
    """The state with a task learned, or with one more overflow if there is no room."""
    task, used = state.masks.learned, packing.unpack(mask)
    room = task < len(state.counts)

    def shared(old: Array, new: Array, trains: Array, slot: Any) -> Array:
        return jnp.where(trains, new, old) if slot is None else jnp.copy(old)

    def put(slot: Array, new: Array) -> Array:
        return rows.inserted(slot, new[None], task)  # without room, nowhere

    again = algebra.intersection(used, union(state))
    return WSNState(
        jax.tree.map(shared, state.params, params, trains, state.slots),
        map_mask(lambda old, new: jnp.where(room, new, old), state.scores, scores),
        bank.append(state.masks, used),
        map_mask(put, state.slots, params),
        put(state.counts, algebra.count(used)),
        put(state.reused, algebra.count(again)),
    )
