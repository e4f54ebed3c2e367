"""PAC-Net: from a source to a target with few samples, the source kept (ICML 2022).

Myung et al., "PAC-Net: A Model Pruning Approach to Inductive Transfer Learning",
arXiv:2206.05703.

Algorithm (numbers match the comments below):
  1. prune: of a network trained on the source keep the round(density * n) largest
     weights; the others are 0
  2. allocate: on the source train what is kept, and do not stray from where it began:
     lam * |w - w_source|^2 is part of the loss
  3. calibrate: on the target train the weights that were not kept, from 0; the kept
     ones are used, and frozen
  4. the target runs on all weights, the source on the kept ones, for good

Choices that descriptions of the paper leave open, the default first:
  * one ranking for all layers, or one for each (`scope`)
  * calibrated weights start at 0, or at the source's (`start`)
  * the penalty is part of the loss in 2, or in 3 too: the loss is yours
  * both tasks share the last layer, or each has its own (`head`)
  * biases and the like are frozen in 3, or each task has its own (`head`)
Whatever an optimizer does to what is frozen is undone, to the bit. Each task has its
own running statistics. Of equal weights the first are kept: counts are exact.

    >>> from maskjax.recipes import pacnet
    >>> source = {"w": jnp.array([[3.0, -1.0]]), "b": jnp.array([0.5])}
    >>> pruned = pacnet.prune(source, density=0.5)  # train .params, where .mask is True
    >>> allocated = pacnet.allocate(pruned, pruned.params)  # and so on the target
    >>> trained = {"w": jnp.array([[9.0, 2.0]]), "b": jnp.array([9.0])}
    >>> state = pacnet.calibrate(allocated, trained)
    >>> pacnet.source(state)["w"], pacnet.target(state)["w"]
    (Array([[3., 0.]], dtype=float32), Array([[3., 2.]], dtype=float32))
"""

import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from maskjax import algebra, masking, select
from maskjax._core import checks
from maskjax._core.trees import (
    Array,
    Density,
    Mask,
    Params,
    Predicate,
    Scores,
    map_mask,
)
from maskjax.recipes._ownership import emptied, in_phase, refreshed, roles, settled
from maskjax.recipes._penalty import l2_sp
from maskjax.select._quota import quota
from maskjax.where import kernels
from maskjax.where import statistics as _statistics

__all__ = [
    "Allocated",
    "Calibrated",
    "Pruned",
    "allocate",
    "calibrate",
    "l2_sp",
    "prune",
    "source",
    "target",
]

_FN = "maskjax.recipes.pacnet"
_ORDER = "Call `prune`, `allocate` and `calibrate`"


class Pruned(NamedTuple):
    """The source network, pruned, to be trained on the source; a pytree.

    Attributes:
        params: Where training begins.
        mask: What it may change, for `optim.mask_updates`: True trains.
        kept: The weights that the source keeps; `None` for leaves that are no weights.
        own: What the source has of the leaves that each task has its own of, else
            `None`.
        anchor: The source's weights, from which training is not to stray, for `l2_sp`.
            Calibrated weights may begin elsewhere, at 0.
    """

    params: Params
    mask: Mask
    kept: Mask
    own: Params
    anchor: Params


class Allocated(Pruned):
    """The same to be trained on the target; what the source keeps is settled."""


class Calibrated(NamedTuple):
    """The network of both tasks; a pytree.

    Attributes:
        params: The target's.
        kept: As in `Pruned`.
        own: As in `Pruned`.
    """

    params: Params
    kept: Mask
    own: Params


def prune(
    params: Params,
    *,
    density: Density | Scores = 0.2,
    scope: select.Scope = "global",
    head: Predicate | None = None,
    where: Predicate = kernels,
    statistics: Predicate | None = _statistics,
) -> Pruned:
    """A trained network without all but its largest weights.

    It warns if that leaves a task no weights, or the source none in some leaf, unless
    what is traced hides it.

    Args:
        params: Tree of arrays, trained on the source; all that the network has.
        density: The fraction of the weights that the source keeps, as in
            `select.top_k`. The paper keeps a fifth.
        scope: "global" ranks all weights together, "leaf" each leaf's.
        head: Which leaves each task has its own of, unpruned: the last layer, biases or
            normalization, if the predicate says so. `None`: no layer is.
        where: Which of the others are weights. The rest trains with the source only.
        statistics: Which of the rest are running statistics, each task's own too.
            `None`: the source's are for both.

    Returns:
        The network, to be trained on the source once more.

    Raises:
        TypeError: If a weight or a head is not floating, or the density not a number.
        ValueError: If there are no weights, no leaves of a head, or as `select.top_k`.

    Example:
        >>> params = {"w": jnp.array([[1.0, -4.0, 3.0, 2.0]]), "b": jnp.ones(4)}
        >>> pacnet.prune(params, density=0.5).params["w"]
        Array([[ 0., -4.,  3.,  0.]], dtype=float32)
    """
    fn = f"{_FN}.prune"
    params = jax.tree.map(jnp.asarray, params)
    weights, own = roles(params, head, where, statistics, fn=fn)
    sizes = map_mask(jnp.abs, weights)
    kept = select.top_k(sizes, density=density, scope=scope)  # 1.
    _remark(kept, density, scope, fn=fn)
    mask = jax.tree.map(lambda w, m: _whole(w, True) if m is None else m, params, kept)
    return Pruned(masking.apply(params, kept), mask, kept, own, params)


def allocate(
    pruned: Pruned,
    params: Params,
    fresh: Params | None = None,
    *,
    start: Literal["zero", "source"] = "zero",
) -> Allocated:
    """The source settled in the weights that it keeps; the others are the target's.

    Args:
        pruned: The network, as `prune` returned it.
        params: What training made of `pruned.params`. Where the mask is False they are
            taken from there.
        fresh: A tree like `params` from which the target's own leaves start, which may
            have other widths there. `None`: from the source's.
        start: Weights that the source does not keep start at "zero", or where they were
            before `prune` ("source").

    Returns:
        The network, to be trained on the target.

    Raises:
        TypeError: If `pruned` is of another phase.
        ValueError: If `params` or `fresh` does not fit the network, or `fresh` is of no
            use since no leaf is the target's own.

    Example:
        >>> pruned = pacnet.prune({"w": jnp.array([[3.0, -1.0]])}, density=0.5)
        >>> trained = {"w": jnp.array([[4.0, 0.0]])}
        >>> pacnet.allocate(pruned, trained, start="source").params
        {'w': Array([[ 4., -1.]], dtype=float32)}
    """
    fn = f"{_FN}.allocate"
    in_phase(pruned, Pruned, fn=fn, order=_ORDER)
    checks.one_of(start, ("zero", "source"), fn=fn, name="start")
    params = settled(pruned, params, fn=fn)  # 2.
    new = params if fresh is None else refreshed(params, pruned.own, fresh, fn=fn)
    own = map_mask(lambda _, w: w, pruned.own, params)
    fill = pruned.anchor if start == "source" else None
    begun = masking.apply(params, pruned.kept, fill)
    begun = jax.tree.map(_either, begun, own, new)

    def trains(w: Array, kept: Array | None, own: Array | None) -> Array:
        return _whole(w, own is not None) if kept is None else ~kept

    mask = jax.tree.map(trains, begun, pruned.kept, own)
    anchor = jax.tree.map(_either, pruned.anchor, own, begun)
    return Allocated(begun, mask, pruned.kept, own, anchor)


def calibrate(allocated: Allocated, params: Params) -> Calibrated:
    """The network of both tasks.

    Args:
        allocated: The network, as `allocate` returned it.
        params: As in `allocate`: what training made of `allocated.params`.

    Returns:
        The state that `source` and `target` read.

    Raises:
        TypeError: If `allocated` is of another phase.
        ValueError: If `params` does not fit the network.

    Example:
        >>> pruned = pacnet.prune({"w": jnp.array([[3.0, -1.0]])}, density=0.5)
        >>> allocated = pacnet.allocate(pruned, pruned.params)
        >>> pacnet.calibrate(allocated, {"w": jnp.array([[9.0, 5.0]])}).params
        {'w': Array([[3., 5.]], dtype=float32)}
    """
    fn = f"{_FN}.calibrate"
    in_phase(allocated, Allocated, fn=fn, order=_ORDER)
    params = settled(allocated, params, fn=fn)  # 3.
    return Calibrated(params, allocated.kept, allocated.own)


def source(state: Allocated | Calibrated) -> Params:
    """The parameters of the source: the weights that it keeps, and what is its own.

    Args:
        state: The network, before or after it is trained on the target.

    Returns:
        A tree like the `params` of `prune`; other weights are exactly 0. Training on
        the target changes nothing about it, to the bit.

    Raises:
        TypeError: If `state` is of another phase.

    Example:
        >>> pruned = pacnet.prune({"w": jnp.array([[3.0, -1.0]])}, density=0.5)
        >>> pacnet.source(pacnet.allocate(pruned, pruned.params, start="source"))
        {'w': Array([[3., 0.]], dtype=float32)}
    """
    in_phase(state, Allocated, Calibrated, fn=f"{_FN}.source", order=_ORDER)
    kept = masking.apply(state.params, state.kept)  # 4.
    return jax.tree.map(_either, kept, state.own, state.own)


def target(state: Calibrated) -> Params:
    """The parameters of the target: all weights.

    Args:
        state: The network, trained on the target.

    Returns:
        A tree like the `params` of `prune`.

    Raises:
        TypeError: If `state` is of another phase.

    Example:
        >>> pruned = pacnet.prune({"w": jnp.array([[3.0, -1.0]])}, density=0.5)
        >>> allocated = pacnet.allocate(pruned, pruned.params)
        >>> state = pacnet.calibrate(allocated, {"w": jnp.array([[9.0, 5.0]])})
        >>> pacnet.target(state)
        {'w': Array([[3., 5.]], dtype=float32)}
    """
    in_phase(state, Calibrated, fn=f"{_FN}.target", order=_ORDER)
    return state.params


def _whole(leaf: Array, trains: Any) -> Array:
    return jnp.full((1,) * leaf.ndim, trains)


def _either(leaf: Array, own: Array | None, other: Any) -> Any:
    return leaf if own is None else other


def _remark(kept: Mask, density: Any, scope: str, *, fn: str) -> None:
    """Warn where a task has no weights, or the source none of a leaf."""
    sizes = [leaf.size for leaf in jax.tree.leaves(kept)]
    number = checks.known(algebra.count(kept))
    if isinstance(density, (int, float)):  # known though the mask be traced
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
