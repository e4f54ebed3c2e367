"""From the source's network to that of both tasks."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from maskjax import masking
from maskjax._core import checks
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, map_mask
from maskjax.recipes._phases import in_phase, require_own, whole
from maskjax.recipes.pacnet._pruned import Allocated, Pruned

_FN = "maskjax.recipes.pacnet."
_ORDER = "Call `prune`, `allocate` and `calibrate`"


@stored("maskjax.recipes.pacnet.Calibrated")
class Calibrated(NamedTuple):
    """The network of both tasks; a pytree.

    Attributes:
        params: The target's parameters.
        kept: The weights that the source keeps; `None` for leaves that are not weights.
        own: The source's copy of the task-specific leaves; `None` for shared ones.
    """

    params: Params
    kept: Mask
    own: Params


def allocate(
    pruned: Pruned,
    params: Params,
    fresh: Params | None = None,
    *,
    start: Literal["zero", "source"] = "zero",
) -> Allocated:
    """Freeze the source in the weights that it keeps; the target gets the others: 2.

    Args:
        pruned: The network, from `prune`.
        params: `pruned.params` after training. Entries where the mask is False are
            ignored; they stay 0.
        fresh: A tree like the network; the target's own leaves start from its leaves,
            and may have other widths. `None`: they start from the source's.
        start: Weights that the source does not keep start at 0 ("zero"), or where they
            were before `prune` ("source").

    Returns:
        The network, in arrays of its own, to be trained on the target.

    Raises:
        TypeError: If `pruned` is not a `Pruned`.
        ValueError: If `params` or `fresh` does not fit the network, or `fresh` would be
            ignored because no leaf is task-specific.

    Example:
        >>> pruned = pacnet.prune({"w": jnp.array([[3.0, -1.0]])}, density=0.5)
        >>> trained = {"w": jnp.array([[4.0, 0.0]])}
        >>> pacnet.allocate(pruned, trained, start="source").params
        {'w': Array([[ 4., -1.]], dtype=float32)}
    """
    fn = _FN + "allocate"
    in_phase(pruned, Pruned, fn=fn, order=_ORDER)
    checks.one_of(start, ("zero", "source"), fn=fn, name="start")
    checks.alike(pruned.params, params, fn=fn, name="params")
    new = params if fresh is None else _fresh(params, pruned.own, fresh, fn=fn)
    own = map_mask(lambda _, w: w, pruned.own, params)
    return Allocated(
        *_allocated(pruned.kept, own, pruned.anchor, params, new, start=start)
    )


def calibrate(allocated: Allocated, params: Params) -> Calibrated:
    """The network of both tasks: 3.

    Args:
        allocated: The network, from `allocate`.
        params: `allocated.params` after training. Entries where the mask is False are
            ignored; they stay as they were.

    Returns:
        The state that `source` and `target` read.

    Raises:
        TypeError: If `allocated` is not an `Allocated`.
        ValueError: If `params` does not fit the network.

    Example:
        >>> pruned = pacnet.prune({"w": jnp.array([[3.0, -1.0]])}, density=0.5)
        >>> allocated = pacnet.allocate(pruned, pruned.params)
        >>> pacnet.calibrate(allocated, {"w": jnp.array([[9.0, 5.0]])}).params
        {'w': Array([[3., 5.]], dtype=float32)}
    """
    fn = _FN + "calibrate"
    in_phase(allocated, Allocated, fn=fn, order=_ORDER)
    checks.alike(allocated.params, params, fn=fn, name="params")
    restored = _restored(allocated.mask, params, allocated.anchor)
    return Calibrated(restored, allocated.kept, allocated.own)


def source(state: Allocated | Calibrated) -> Params:
    """The parameters of the source, without the target's weights: 4.

    Args:
        state: The network, before or after training on the target.

    Returns:
        A tree like the `params` of `prune`, in arrays of its own. Weights that the
        source does not keep are exactly 0. Training on the target changes nothing.

    Raises:
        TypeError: If `state` is neither an `Allocated` nor a `Calibrated`.

    Example:
        >>> pruned = pacnet.prune({"w": jnp.array([[3.0, -1.0]])}, density=0.5)
        >>> pacnet.source(pacnet.allocate(pruned, pruned.params, start="source"))
        {'w': Array([[3., 0.]], dtype=float32)}
    """
    in_phase(state, Allocated, Calibrated, fn=_FN + "source", order=_ORDER)
    params = state.anchor if isinstance(state, Allocated) else state.params
    return _source(params, state.kept, state.own)


def target(state: Calibrated) -> Params:
    """The parameters of the target, with all weights: 4.

    Args:
        state: The network, from `calibrate`.

    Returns:
        A tree like the `params` of `prune`, in arrays of its own.

    Raises:
        TypeError: If `state` is not a `Calibrated`.

    Example:
        >>> pruned = pacnet.prune({"w": jnp.array([[3.0, -1.0]])}, density=0.5)
        >>> allocated = pacnet.allocate(pruned, pruned.params)
        >>> state = pacnet.calibrate(allocated, {"w": jnp.array([[9.0, 5.0]])})
        >>> pacnet.target(state)
        {'w': Array([[3., 5.]], dtype=float32)}
    """
    in_phase(state, Calibrated, fn=_FN + "target", order=_ORDER)
    return jax.tree.map(jnp.copy, state.params)


def _fresh(network: Params, own: Params, fresh: Params, *, fn: str) -> Params:
    """The fresh tree, if it fits; task-specific leaves may have other widths."""
    require_own(own, fn=fn)
    checks.matched(network, fresh, fn=fn, names=("network", "fresh"))

    def expected(w: Array, own: Array | None, new: Any) -> Any:
        alike = checks.shaped(new) and (new.ndim, new.dtype) == (w.ndim, w.dtype)
        return w if alike and own is not None else new

    fitted = jax.tree.map(expected, network, own, fresh)
    checks.alike(network, fitted, fn=fn, name="fresh")
    return fresh


@functools.partial(jax.jit, static_argnames="start")
def _allocated(
    kept: Mask, own: Params, anchor: Params, params: Params, new: Params, *, start: str
) -> tuple[Any, ...]:
    """The fields of `Allocated`.

    Copies, because the loop may donate the parameters that it is given.
    """
    anchor = masking.apply(params, kept, anchor)
    anchor = jax.tree.map(lambda w, o, new: w if o is None else new, anchor, own, new)
    begun = anchor if start == "source" else masking.apply(anchor, kept)

    def trains(w: Array, kept: Array | None, own: Array | None) -> Array:
        return whole(w, own is not None) if kept is None else ~kept

    mask = jax.tree.map(trains, begun, kept, own)
    begun, own, anchor = (jax.tree.map(jnp.copy, t) for t in (begun, own, anchor))
    return begun, mask, kept, own, anchor


@jax.jit
def _restored(mask: Mask, params: Params, anchor: Params) -> Params:
    return jax.tree.map(jnp.where, mask, params, anchor)


@jax.jit
def _source(params: Params, kept: Mask, own: Params) -> Params:
    params = masking.apply(params, kept)
    return jax.tree.map(lambda w, o: jnp.copy(w if o is None else o), params, own)
