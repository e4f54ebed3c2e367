"""Selection among the units of groups, which run through many leaves.

Algorithm (numbers match the comments below):
  1. pool the scores: a vector for each group, or [L, size] for a stack of L layers
  2. hold the best units of each, so that no group vanishes
  3. select among them as among the entries of any tree. In scope "global" a stack takes
     part with slots: the best units of all its layers, the second best, and so on
  4. spread what was decided over the leaves
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import packing
from maskjax._core import blame, checks, placement, trees
from maskjax._core.axes import Axes
from maskjax._core.trees import Array, Mask, Scores
from maskjax.select._keys import order_key
from maskjax.structure import Groups, sums_of_units

Units = dict[str, Array]  # by the names of groups
# (scores, candidates or None, held or None, scope, where) -> what is kept, the cutoffs
Search = Callable[[Units, Any, Any, Any, Any], tuple[Units, Units]]
_SCOPES = ("leaf", "layer", "global")


@dataclasses.dataclass(frozen=True)
class _Layers:
    """A predicate for trees of units, where the first of two axes stacks layers."""

    def __call__(self, path: str, leaf: Any) -> bool:
        return True

    def axes(self, path: str, leaf: Any) -> Axes:
        """The axes of one group."""
        rank = len(leaf.shape)
        return Axes(stack=tuple(range(rank - 1)), outputs=(rank - 1,))


def choose(
    scores: Scores,
    groups: Groups,
    search: Search,
    scope: str,
    *,
    fn: str,
    name: str = "mask",
    within: Mask | None = None,
    holding: Mask | None = None,
) -> tuple[Mask, Units]:
    """The mask of the units that a search keeps, and its cutoffs by group.

    Args:
        scores: Tree of floating leaves, or `None`.
        groups: The units.
        search: What is to be done with one score for each unit.
        scope: "leaf", "layer" or "global".
        fn: The public function that errors blame.
        name: What that function calls its mask.
        within: A mask; units that have no entry in it are not kept.
        holding: A mask; units that have an entry in it are kept.
    """
    check_scope(scope, fn=fn)
    alive = _kept(scores, within, groups, fn=fn, name=name)
    held = _kept(scores, holding, groups, fn=fn, name=name)
    with blame.instead_of("maskjax.structure.Groups.pool", fn):
        count = None if within is None else packing.unpack(within)
        units = groups.pool(lax.stop_gradient(scores), alive=count)  # 1.
    flags, cuts = among(units, groups, search, scope, alive=alive, held=held)
    mask = groups.spread(flags, scores)  # 4.
    return mask if within is None else _within(mask, count), cuts


def among(
    units: Units,
    groups: Groups,
    search: Search,
    scope: str,
    *,
    alive: Units | None = None,
    held: Units | None = None,
) -> tuple[Units, Units]:
    """The units that a search keeps, at least so many of each group, and its cutoffs.

    Args:
        units: Scores.
        groups: The groups that have them.
        search: As in `choose`.
        scope: As in `choose`.
        alive: The units that count, if not all do.
        held: The units that are kept whatever their scores.
    """
    if groups.least:
        held = _with_best(units, alive, held, least=groups.least)  # 2.
    stacked = [group.name for group in groups if group.stack]
    if scope != "global" or not stacked:  # 3.
        if scope == "global":
            return search(units, alive, held, scope, _Layers())
        flags, cuts = search(units, alive, held, "layer", _Layers())
        return flags, _lowered(cuts, flags, units)
    slots, places = _as_slots(units, alive, held, stacked=tuple(stacked))
    scores, candidates, holds = slots
    flags, cuts = search(scores, candidates, holds, scope, _Layers())
    return flags | _from_slots({name: flags[name] for name in stacked}, places), cuts


def all_kept(scores: Scores, groups: Groups, scope: str, *, fn: str) -> Mask:
    """The mask that keeps every unit."""
    check_scope(scope, fn=fn)
    with blame.instead_of("maskjax.structure.Groups.pool", fn):
        jax.eval_shape(groups.pool, scores)
    flags = {group.name: jnp.ones(group.shape, bool) for group in groups}
    arrays = [x for x in jax.tree.leaves(scores) if isinstance(x, jax.Array)]
    return groups.spread(placement.vary_like(flags, arrays), scores)


def smoothed(scores: Scores, groups: Groups, *, fn: str) -> Scores:
    """For each entry, the sum of the scores of the units in which it lies."""
    with blame.instead_of("maskjax.structure.Groups.pool", fn):
        units = groups.pool(scores)
    return sums_of_units(groups, units, scores, fn=fn)


def check_share(share: Any, groups: Groups, *, fn: str, name: str) -> None:
    """Raise unless a share is a number, or a dict with a number for each group."""
    if trees.is_single(share):
        return
    needs = f"`{fn}` needs `{name}` as a number, or a dict with one for each group"
    given = set(share) if isinstance(share, dict) else set(trees.paths(share))
    odd = [f"{one}: no such group" for one in sorted(map(str, given - {*groups.names}))]
    odd += [f"{one}: no {name}" for one in groups.names if one not in given]
    checks.raise_all(odd, needs)
    for one in groups.names:
        hint = "All layers of a stack keep equally many units."
        checks.unit_interval(share[one], fn=fn, name=f"{name}[{one}]", hint=hint)


def check_scope(scope: str, *, fn: str) -> None:
    """Raise if a scope is unknown, or has no meaning for groups."""
    checks.one_of(scope, (*_SCOPES, "output"), fn=fn, name="scope")
    if scope == "output":
        raise ValueError(
            f"`{fn}` ranks units where `structure` is groups, and units have no "
            f"outputs: it needs `scope` as one of {', '.join(_SCOPES)}, got 'output'."
        )


def _kept(
    scores: Scores, mask: Mask | None, groups: Groups, *, fn: str, name: str
) -> Units | None:
    """The units that have an entry in a mask, which has a leaf wherever scores are."""
    if mask is None:
        return None
    names, stop = ("scores", name), trees.is_mask_leaf
    found = checks.masked(scores, mask, fn=fn, names=names, is_leaf=stop)

    def none(score: Any, leaf: Any) -> str | None:
        return "None" if score is not None and leaf is None else None

    needs = f"`{fn}` needs a leaf of `{name}` for every leaf with scores"
    checks.every(none, found, scores, needs, is_leaf=stop)
    leaves = [None if m is None else packing.unpack_leaf(m) for _, m in found]
    mask = jax.tree.structure(scores, is_leaf=stop).unflatten(leaves)
    with blame.instead_of("maskjax.structure.Groups.kept", fn):
        return groups.kept(mask)


@jax.jit
def _within(mask: Mask, within: Mask) -> Mask:
    """What two masks keep; all that one keeps where the other has no leaf."""
    return jax.tree.map(
        lambda m, w: m if w is None or m is None else m & w,
        mask,
        within,
        is_leaf=trees.is_mask_leaf,
    )


def _with_best(
    units: Units, alive: Units | None, held: Units | None, *, least: int
) -> Units:
    return {
        name: _best(
            x,
            None if alive is None else alive[name],
            None if held is None else held[name],
            least=min(least, x.shape[-1]),
        )
        for name, x in units.items()
    }


@jax.jit
def _lowered(cuts: Units, flags: Units, units: Units) -> Units:
    """Cutoffs that nothing kept is below; to a search all that is held is infinite."""
    found = {}
    for name, cut in cuts.items():
        own = jnp.where(flags[name], units[name], jnp.inf)
        low = jnp.min(own, axis=-1, keepdims=bool(cut.ndim))
        found[name] = jnp.minimum(cut, low)
    return found


@functools.partial(jax.jit, static_argnames="least")
def _best(x: Array, alive: Array | None, held: Array | None, *, least: int) -> Array:
    """The best units that count, and those that are held."""
    keys = order_key(x, alive, held)
    if least == 1:
        best = jnp.argmax(keys, axis=-1, keepdims=True)
        flags = lax.broadcasted_iota(best.dtype, x.shape, x.ndim - 1) == best
    else:  # `lax.top_k` would gather members that are sharded
        order = jnp.argsort(~keys, axis=-1, stable=True)
        flags = jnp.argsort(order, axis=-1) < least
    flags = flags if alive is None else flags & alive
    return flags if held is None else flags | held


@functools.partial(jax.jit, static_argnames="stacked")
def _as_slots(
    units: Units,
    alive: Units | None,
    held: Units | None,
    *,
    stacked: tuple[str, ...],
) -> tuple[tuple[Units, Units | None, Units | None], Units]:
    """Scores, candidates and what is held, with slots for stacks.

    Also, for each stack, the slot of each unit.
    """
    found = tuple(None if tree is None else {**tree} for tree in (units, alive, held))
    places = {}
    for name in stacked:
        own = [None if tree is None else tree[name] for tree in found]
        slots, places[name] = _slots(*own)  # type: ignore[arg-type]
        for tree, slot in zip(found, slots, strict=True):
            if tree is not None:
                tree[name] = slot
    return found, places  # type: ignore[return-value]


def _slots(
    units: Array, alive: Array | None, held: Array | None
) -> tuple[tuple[Array, Any, Any], Array]:
    """The slots of one stack, from [L, size], and the slot of each unit."""
    order = jnp.argsort(~order_key(units, alive, held), axis=-1, stable=True)
    ranked = functools.partial(jnp.take_along_axis, indices=order, axis=-1)
    counts = jnp.ones(units.shape, bool) if alive is None else ranked(alive)
    total = jnp.sum(jnp.where(counts, ranked(units), 0), axis=0)
    mean = total / jnp.maximum(jnp.sum(counts, axis=0), 1).astype(total.dtype)
    candidates = None if alive is None else jnp.any(counts, axis=0)
    holds = None if held is None else jnp.any(ranked(held), axis=0)
    return (mean, candidates, holds), jnp.argsort(order, axis=-1)


@jax.jit
def _from_slots(flags: Units, places: Units) -> Units:
    """So many of the best units of each layer as slots are kept.

    They are counted, because slots need not be in the order of their scores: where one
    layer has fewer candidates, or infinite scores.
    """
    return {
        name: places[name] < jnp.sum(kept, dtype=places[name].dtype)
        for name, kept in flags.items()
    }
