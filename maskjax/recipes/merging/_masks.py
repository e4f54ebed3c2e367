"""Which entries of a merged vector a task uses, and which several tasks use."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maskjax import stacking
from maskjax._core import checks, dtypes, placement
from maskjax._core.trees import Array, Mask, Params, map_mask
from maskjax.recipes.merging._sums import require_vectors

_FN = "maskjax.recipes.merging."


def tall_masks(vectors: Params, merged: Params, *, threshold: ArrayLike) -> Mask:
    """The mask of each task: where its own change outweighs what others added.

    Task t keeps an entry where |tau_t| >= threshold * |tau - tau_t|. The higher the
    threshold, the fewer entries. With one task and `merged` its vector, the mask keeps
    everything; so it does where tasks changed different entries, for those of a task.

    Args:
        vectors: A stack of K task vectors.
        merged: One vector, tau: their `total`, as in the paper, or any other, such as
            that of `ties`.
        threshold: At least 0, and finite: a number, a scalar array, or an array [K] of
            one for each task. May be traced. The paper chooses among 0.2, 0.3, 0.4, 0.5
            and 0.6 for each task, by validation.

    Returns:
        A stack of K masks in the shapes of `vectors`: True keeps. Entries that neither
        the task nor the others changed are kept; nan never is. `bank.from_stack` stores
        them with one bit an entry, and `jax.vmap(packing.pack)` packs them.

    Raises:
        TypeError: If a leaf is not floating, or the threshold not a number.
        ValueError: If the leaves disagree about K, `merged` does not fit, or the
            threshold is negative or has another shape.

    Example:
        >>> vectors = {"w": jnp.array([[3.0, 0.0, 1.0], [0.0, 2.0, -2.0]])}
        >>> merging.tall_masks(vectors, merging.total(vectors), threshold=0.6)
        {'w': Array([[ True, False, False],
               [False,  True,  True]], dtype=bool)}

    References:
        Wang et al., arXiv:2405.07813, the definition of TALL-masks.
    """
    fn = _FN + "tall_masks"
    members = require_vectors(vectors, fn=fn)
    at = _thresholds(threshold, members, fn=fn)
    checks.floating_scores(merged, fn=fn, name="merged")
    one = map_mask(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), vectors)
    checks.same_shapes(one, merged, fn=fn, names=("one of vectors", "merged"))
    checks.rows(vectors, merged, fn=fn, names=("vectors", "merged"), is_leaf=_none)
    checks.beside(vectors, fn=fn, name="vectors", threshold=threshold)
    return map_mask(lambda v, tau: _tall(v, tau, at), vectors, merged)  # 3.


def consensus(masks: Mask, *, least: int = 2) -> Mask:
    """The entries that at least so many tasks keep.

    Args:
        masks: A stack of K masks, packed or not, such as `tall_masks` or the `masks` of
            a bank.
        least: How many tasks, from 1 to K. 2, as in the paper, removes the entries that
            no task needs and those that only one needs; 1 removes the former.

    Returns:
        One mask: True keeps.

    Raises:
        TypeError: If a leaf is not a mask, or `least` not a whole number.
        ValueError: If the leaves disagree about K, or `least` is not from 1 to K.

    Example:
        >>> masks = {"w": jnp.array([[True, True, False], [True, False, False]])}
        >>> merging.consensus(masks)
        {'w': Array([ True, False, False], dtype=bool)}

    References:
        Wang et al., arXiv:2405.07813, the definition of Consensus Merging.
    """
    fn = _FN + "consensus"
    checks.boolean(masks, fn=fn, name="masks")
    checks.packed(masks, fn=fn, stacked=True)
    members = checks.members(masks, fn=fn, name="masks")
    checks.at_least(least, 1, fn=fn, name="least")
    if least > members:
        raise ValueError(
            f"`{fn}` needs `least` of at most K, got {least} of {members} masks."
        )
    counts = stacking.counts(masks)
    return map_mask(lambda count: count >= int(least), counts)  # 4.


def _none(x: Any) -> bool:
    return x is None


def _thresholds(threshold: Any, members: int, *, fn: str) -> Array:
    """The threshold of all tasks, or one for each."""
    if not checks.is_real(threshold):
        raise TypeError(
            f"`{fn}` needs `threshold` as a number or an array of them, got "
            f"{checks.kind_of(threshold)}."
        )
    if np.shape(threshold) not in ((), (members,)):
        raise ValueError(
            f"`{fn}` needs `threshold` as one number, or one for each of {members} "
            f"tasks, got shape {np.shape(threshold)}."
        )
    at = jnp.asarray(threshold)
    if checks.is_readable(at):
        with jax.ensure_compile_time_eval():
            known = np.asarray(at, np.float64)
        if not np.all((known >= 0) & (known < np.inf)):
            raise ValueError(
                f"`{fn}` needs `threshold` finite and at least 0, got {known.tolist()}."
            )
    return at


@jax.jit
def _tall(v: Array, tau: Array, at: Array) -> Array:
    wide = dtypes.at_least_float32(v.dtype)
    own = v.astype(wide)
    if at.ndim:
        at = placement.place(at, placement.spec_of(v)[:1], like=v)
        at = placement.lead(at, v)
    others = placement.alike(tau.astype(wide)[None], v) - own
    return jnp.abs(own) >= at.astype(wide) * jnp.abs(others)
