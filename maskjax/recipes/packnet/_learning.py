"""The phases of one task: begin, prune, commit."""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

from maskjax import select
from maskjax._core import blame, checks, slots
from maskjax._core.stored import stored
from maskjax._core.trees import Density, Mask, Params, Predicate, Scores, map_mask
from maskjax.recipes._phases import emptied, in_phase, kept_by_leaf, require_own
from maskjax.recipes.packnet import _programs
from maskjax.recipes.packnet._state import PackNetState
from maskjax.structure import Entries, Structure
from maskjax.where import kernels

_FN = "maskjax.recipes.packnet."
_ORDER = "For each task call `begin`, `prune` and `commit`"


@stored("maskjax.recipes.packnet.Training")
class Training(NamedTuple):
    """A task that has begun; a pytree.

    Attributes:
        params: Where training starts: all weights, and the task's own leaves.
        mask: What the task may change, for `optim.mask_updates`: True trains.
        state: The network before the task, as it was given to `begin`.
    """

    params: Params
    mask: Mask
    state: PackNetState


@stored("maskjax.recipes.packnet.Pruned")
class Pruned(Training):
    """A task that was pruned and may train what it kept; a pytree like `Training`."""


def begin(
    state: PackNetState,
    fresh: Params | None = None,
    *,
    reinit_free: Literal["zero", "init"] = "zero",
) -> Training:
    """Start a new task, which may train every free weight: 1.

    Args:
        state: The network.
        fresh: A tree like the network; the task's own leaves start from its leaves.
            `None`: they start as they were in `init`.
        reinit_free: "zero", as in the paper: free weights start where pruning left
            them, at 0. "init": they start from `fresh`, so that a unit that lost all of
            its weights can learn again.

    Returns:
        Where training starts: `params` and `mask` in arrays of their own; `state` is
        the one that was given, uncopied, so donate `params` but not the whole. If
        `learned` is traced and there is no room, nothing trains, and `commit` changes
        nothing.

    Raises:
        TypeError: If `state` is not a `PackNetState`.
        ValueError: If all C tasks are learned, or `fresh` does not fit the network, is
            missing for "init", or would be ignored because no leaf is task-specific.

    Example:
        >>> params = {"w": jnp.ones((1, 2)), "b": jnp.ones(2)}
        >>> packnet.begin(packnet.init(params, head=None, capacity=2)).mask
        {'b': Array([ True], dtype=bool), 'w': Array([[ True,  True]], dtype=bool)}
    """
    fn = _FN + "begin"
    in_phase(state, PackNetState, fn=fn, order=_ORDER)
    checks.one_of(reinit_free, ("zero", "init"), fn=fn, name="reinit_free")
    slots.require_room(state.learned, len(state.counts), 1, fn=fn)
    if fresh is None and reinit_free == "init":
        raise ValueError(f"`{fn}` needs `fresh`, with `reinit_free` as 'init'.")
    if fresh is not None and reinit_free == "zero":
        require_own(state.slots, fn=fn, hint=", or free weights by `reinit_free`")
    new = state.params if fresh is None else fresh
    checks.alike(state.params, new, fn=fn, name="fresh")
    params, mask = _programs.begun(state, new, reinit=reinit_free == "init")
    return Training(params, mask, state)


def prune(
    training: Training,
    params: Params,
    *,
    rate: Density | Scores,
    scope: select.Scope = "leaf",
    structure: Structure | Any = Entries(),
    where: Predicate = kernels,
) -> Pruned:
    """Free the task's smallest weights: 2.

    Warns if the task keeps no weights, leaves none for later tasks, or is the first
    task and keeps none in some leaf; not if arrays are traced (see `allotment`).

    Args:
        training: The task, from `begin`.
        params: `training.params` after training. Entries where the mask is False are
            ignored; they stay as they were.
        rate: The fraction of the task's weights to free: a number in [0, 1], a scalar
            array, or a tree of them. The paper: 0.5 for the first task, 0.75 for later
            ones.
        scope: Rank the weights of each leaf ("leaf", as in the paper), of each index of
            a stack ("layer"), of each output ("output"), or all weights ("global").
        structure: What is freed together. `structure.Groups` free whole units, in all
            leaves that `init` divides: let its `where` choose biases and scales too.
        where: What the axes mean, where scope or structure ask for them.

    Returns:
        The task with the freed weights at 0, to be trained again. Its `state` is that
        of `training`, uncopied.

    Raises:
        TypeError: If `training` is not a `Training`, or the rate is not a number.
        ValueError: If `params` does not fit the network, the rate is outside [0, 1], or
            a leaf does not fit the structure.

    Example:
        >>> state = packnet.init({"w": jnp.ones((1, 4))}, head=None, capacity=2)
        >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
        >>> packnet.prune(packnet.begin(state), params, rate=0.5).params
        {'w': Array([[0., 0., 3., 4.]], dtype=float32)}
    """
    fn = _FN + "prune"
    in_phase(training, Training, fn=fn, order=_ORDER)
    params, trained = _trained(training, params, fn=fn)
    sizes = _programs.sizes(trained, params)
    with blame.instead_of("maskjax.select.drop", fn):
        how = {"scope": scope, "structure": structure, "where": where}
        kept = select.drop(sizes, trained, rate=rate, **how)
    kept = map_mask(lambda _, k: k, trained, kept)  # of what tasks divide
    _remark(training.state, trained, kept, fn=fn)
    params, mask = _programs.freed(training.mask, kept, params)
    return Pruned(params, mask, training.state)


def commit(training: Training, params: Params) -> PackNetState:
    """The network with the task learned; what the task owns is frozen from now on: 3.

    Args:
        training: The task, from `prune`; or from `begin`, which leaves no weights for
            later tasks and warns of that.
        params: `training.params` after training. Entries where the mask is False are
            ignored; they stay as they were.

    Returns:
        The network, in arrays of its own.

    Raises:
        TypeError: If `training` is neither a `Training` nor a `Pruned`.
        ValueError: If `params` does not fit the network, or it has 2**31 weights or
            more and `jax_enable_x64` is off.

    Example:
        >>> state = packnet.init({"w": jnp.ones((1, 4))}, head=None, capacity=1)
        >>> packnet.commit(packnet.begin(state), {"w": jnp.ones((1, 4))}).counts
        Array([4], dtype=int32)
    """
    fn = _FN + "commit"
    in_phase(training, Training, Pruned, fn=fn, order=_ORDER)
    params, mine = _trained(training, params, fn=fn)
    if type(training) is Training:
        _remark(training.state, mine, mine, fn=fn)
    with blame.instead_of("maskjax.algebra.count", fn):
        return _programs.committed(training.state, mine, params)


def _trained(training: Training, params: Params, *, fn: str) -> tuple[Params, Mask]:
    """The parameters, with frozen entries as they were; and the weights that trained.

    `training.params` itself is not read, because the loop may have donated it.
    """
    checks.alike(training.params, params, fn=fn, name="params")
    pruned = type(training) is Pruned
    return _programs.restored(training.state, training.mask, params, pruned=pruned)


def _remark(state: PackNetState, had: Mask, kept: Mask, *, fn: str) -> None:
    """Warn of a task that keeps no weights or leaves none for later tasks."""
    task, before, after = checks.known(state.learned), *map(kept_by_leaf, (had, kept))
    if task is None or before is None or after is None:
        return
    n, left = sum(before.values()), sum(after.values())
    if not n:
        return
    if not left:
        what = f"leaves task {task} none of its {n:,} weights"
    elif left == n and task + 1 < len(state.counts):
        what = f"leaves later tasks no weights: task {task} keeps all of its {n:,}"
    elif task == 0 and (cut := emptied(kept)):  # later tasks have weights there
        what = f"leaves task 0 no weights in {', '.join(cut)}"
    else:
        return
    warnings.warn(f"`{fn}` {what}.", UserWarning, stacklevel=3)
