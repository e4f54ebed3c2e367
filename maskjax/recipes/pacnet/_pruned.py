"""The source's network without all but its largest weights."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maskjax import masking, select
from maskjax._core import blame
from maskjax._core.stored import stored
from maskjax._core.trees import (
    Density,
    Mask,
    Params,
    Predicate,
    Scores,
    map_mask,
)
from maskjax.recipes._phases import emptied, kept_by_leaf, roles, whole
from maskjax.select._quota import quota
from maskjax.where import kernels
from maskjax.where import statistics as _statistics


@stored("maskjax.recipes.pacnet.Pruned")
class Pruned(NamedTuple):
    """The pruned network, to be trained on the source; a pytree.

    Attributes:
        params: Where training starts.
        mask: What training may change, for `optim.mask_updates`: True trains.
        kept: The weights that the source keeps; `None` for leaves that are not weights.
        own: The source's copy of the task-specific leaves; `None` for shared ones.
        anchor: What training should stay near, for `l2_sp`: the source's parameters as
            they were before `prune`.
    """

    params: Params
    mask: Mask
    kept: Mask
    own: Params
    anchor: Params


@stored("maskjax.recipes.pacnet.Allocated")
class Allocated(Pruned):
    """The network, to be trained on the target; a pytree with the fields of `Pruned`.

    Here `anchor` has the frozen entries as the source left them, and for the weights
    that train the source's values before `prune`, even if they start at 0.
    """


def prune(
    params: Params,
    *,
    density: Density | Scores = 0.2,
    scope: select.Scope = "global",
    head: Predicate | None = None,
    where: Predicate = kernels,
    statistics: Predicate | None = _statistics,
) -> Pruned:
    """Set all but the largest weights of a trained network to 0: 1.

    Warns if the source or the target gets no weights, or the source none in some leaf;
    but not if that cannot be known because arrays are traced.

    Args:
        params: Tree of arrays, trained on the source: everything the network has.
        density: The fraction of the weights that the source keeps: a number in [0, 1],
            a scalar array, or a tree of them. The paper keeps a fifth.
        scope: Rank all weights together ("global"), or those of each leaf ("leaf"), of
            each index of a stack ("layer"), or of each output ("output").
        head: Chooses the leaves that each task has its own copy of, and that are not
            pruned: the last layer, and biases or normalization if you like. `None`
            chooses none.
        where: Chooses the weights, among the other leaves, and knows what their axes
            mean. Leaves that nothing chooses train with the source only.
        statistics: Chooses running statistics among the rest; each task has its own
            copy of these too. `None`: both tasks use the source's.

    Returns:
        The network, in arrays of its own, to be trained on the source again.

    Raises:
        TypeError: If a weight or a head is not floating, or the density is not a
            number.
        ValueError: If the density is outside [0, 1], or if `where` or `head` chooses
            nothing.

    Example:
        >>> params = {"w": jnp.array([[1.0, -4.0, 3.0, 2.0]]), "b": jnp.ones(4)}
        >>> pacnet.prune(params, density=0.5).params["w"]
        Array([[ 0., -4.,  3.,  0.]], dtype=float32)
    """
    fn = "maskjax.recipes.pacnet.prune"
    params = jax.tree.map(jnp.asarray, params)
    weights, own = roles(params, head, where, statistics, fn=fn)
    how = {"density": density, "scope": scope, "where": where}
    with blame.instead_of("maskjax.select.top_k", fn):
        kept = select.top_k(_sizes(weights), **how)
    _remark(kept, density, scope, fn=fn)
    return Pruned(*_pruned(params, kept, own))


@jax.jit
def _sizes(weights: Params) -> Scores:
    return map_mask(jnp.abs, weights)


@jax.jit
def _pruned(params: Params, kept: Mask, own: Params) -> tuple[Any, ...]:
    """The fields of `Pruned`.

    Copies, because the loop may donate the parameters that it is given.
    """
    mask = jax.tree.map(lambda w, m: whole(w, True) if m is None else m, params, kept)
    begun, mask, own, anchor = (
        jax.tree.map(jnp.copy, tree)
        for tree in (masking.apply(params, kept), mask, own, params)
    )
    return begun, mask, kept, own, anchor


def _remark(kept: Mask, density: Any, scope: str, *, fn: str) -> None:
    """Warn of a task without weights, and of leaves where the source has none."""
    sizes = [leaf.size for leaf in jax.tree.leaves(kept)]
    counts = kept_by_leaf(kept)
    number = sum(counts.values()) if counts else None
    by_size = scope in ("leaf", "global")
    if by_size and isinstance(density, (int, float)):  # known even if traced
        ranked = sizes if scope == "leaf" else [sum(sizes)]
        number = sum(quota(density, n) for n in ranked)
    if number in (0, sum(sizes)):
        who = "target" if number else "source"
        what = f"leaves the {who} none of the {sum(sizes):,} weights"
    elif cut := emptied(kept):
        what = f"leaves the source no weights in {', '.join(cut)}"
    else:
        return
    warnings.warn(f"`{fn}` {what}.", UserWarning, stacklevel=3)
