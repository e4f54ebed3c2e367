"""From the entries of many leaves to the units of groups, and back.

Only vectors leave a leaf: its other axes are summed where they are. Which position has
which unit is known while tracing, so that units are read and never scattered into.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import dtypes, placement
from maskjax._core.trees import Array
from maskjax.structure._members import Group, Member


@functools.partial(jax.jit, static_argnames=("groups", "by", "fn"))
def pooled(
    scores: dict[str, Array],
    alive: dict[str, Array],
    *,
    groups: tuple[Group, ...],
    by: str,
    fn: str,
) -> dict[str, Array]:
    """A score for each unit, from the leaves that have scores.

    Args:
        scores: The leaves by path.
        alive: For some of them, the entries that count, with axes of 1 shared.
        groups: What is pooled.
        by: "mean", "sum" or "norm".
        fn: The public function that errors blame.
    """
    lacking = [line for group in groups if (line := _lacking(group, scores))]
    if lacking:
        raise ValueError(
            f"`{fn}` needs scores for every unit of a group, got:\n"
            + "\n".join(f"  {line}" for line in lacking)
        )
    return {
        group.name: _pooled(group, scores, alive, by).reshape(*group.stack, group.size)
        for group in groups
    }


def _lacking(group: Group, scores: dict[str, Array]) -> str | None:
    """In words, which units have no scores."""
    members = [m for m in group.members if m.path in scores]
    if not members:
        paths = dict.fromkeys(m.path for m in group.members)
        return f"{group.name}: no scores in any of {', '.join(paths)}"
    missing = np.ones(_total(group), bool)
    for member in members:
        units = flat_units(member, group)
        missing[units[units >= 0]] = False
    if not missing.any():
        return None
    paths = dict.fromkeys(m.path for m in members)
    return (
        f"{group.name}: {missing.sum()} of {missing.size} units are in no leaf with "
        f"scores ({', '.join(paths)})"
    )


def _pooled(
    group: Group, scores: dict[str, Array], alive: dict[str, Array], by: str
) -> Array:
    found = [m for m in group.members if m.path in scores]
    wide = dtypes.widest(*(scores[m.path] for m in found))
    totals, counts = [], []
    for member in found:
        x, flags = scores[member.path].astype(wide), alive.get(member.path)
        x = jnp.square(x) if by == "norm" else x
        if flags is None:
            size = math.prod(member.shape) // max(member.units.size, 1)
            each: Any = np.full(member.units.size, size, np.int32)
        else:
            like = placement.spec_for(flags.shape, x)
            flags = placement.alike(placement.place(flags, like, like=x), x)
            flags = jnp.broadcast_to(flags, x.shape)
            x = jnp.where(flags, x, jnp.zeros_like(x))
            each = _positions(flags, member, jnp.int32)
        totals.append(_read(_positions(x, member, wide), member, group))
        counts.append(_read(each, member, group))
    total = functools.reduce(jnp.add, totals)
    if by == "sum":
        return total
    if by == "norm":
        return jnp.sqrt(total)
    count = functools.reduce(jnp.add, counts)
    return total / jnp.maximum(count, 1).astype(total.dtype)


@functools.partial(jax.jit, static_argnames="groups")
def kept(mask: dict[str, Array], *, groups: tuple[Group, ...]) -> dict[str, Array]:
    """Whether any entry of each unit is kept, by the leaves that have a mask."""
    found = {}
    for group in groups:
        flags = []
        for member in group.members:
            if member.path not in mask:
                continue
            leaf = mask[member.path]
            shape = [
                n if i in _own(member) else m
                for i, (n, m) in enumerate(zip(member.shape, leaf.shape, strict=True))
            ]
            each = _positions(jnp.broadcast_to(leaf, shape), member, bool)
            flags.append(_read(each, member, group))
        alive = functools.reduce(jnp.logical_or, flags) if flags else None
        if alive is None:
            alive = jnp.ones(_total(group), bool)
        found[group.name] = alive.reshape(*group.stack, group.size)
    return found


@functools.partial(jax.jit, static_argnames="groups")
def spread(
    values: dict[str, Array], like: dict[str, Array], *, groups: tuple[Group, ...]
) -> dict[str, Array]:
    """For each member leaf, whether all units of an entry are kept; or their sum.

    Args:
        values: For each group, booleans, or numbers to be added.
        like: Leaves whose sharding the result follows.
        groups: What is spread.
    """
    leaves: dict[str, Array] = {}
    for group in groups:
        value = values[group.name].reshape(-1)
        soft = value.dtype != bool
        rest = jnp.zeros(1, value.dtype) if soft else jnp.ones(1, bool)
        value = jnp.concatenate([value, placement.vary_like(rest, value)])
        for member in group.members:
            units = flat_units(member, group)
            each = value[np.where(units < 0, _total(group), units)]
            shape = [1] * len(member.shape)
            for axis in _own(member):
                shape[axis] = member.shape[axis]
            each, path = each.reshape(shape), member.path
            if path not in leaves:
                leaves[path] = each
            else:
                leaves[path] = leaves[path] + each if soft else leaves[path] & each
    return {path: _placed(leaf, like.get(path)) for path, leaf in leaves.items()}


def flat_units(member: Member, group: Group) -> np.ndarray:
    """The unit of each position, those of all layers numbered through; or -1."""
    if not group.stack:
        return member.units.reshape(-1)
    layers = np.arange(math.prod(group.stack), dtype=np.int32) * group.size
    units = member.units.reshape(len(layers), -1)
    return np.where(units < 0, -1, units + layers[:, None]).reshape(-1)


def _placed(x: Array, like: Array | None) -> Array:
    """A mask sharded as a leaf is."""
    if like is None:
        return x
    spec = placement.spec_for(x.shape, like)
    return placement.follow(placement.cut_as(x, spec, like=like), like)


def _positions(x: Array, member: Member, dtype: Any) -> Array:
    """The sum over a leaf's other axes, or whether any is True; whole everywhere."""
    others = tuple(i for i in range(x.ndim) if i not in _own(member))
    total = jnp.any(x, axis=others) if dtype is bool else x.sum(others, dtype=dtype)
    return placement.whole(total).reshape(-1)


def _read(each: Any, member: Member, group: Group) -> Any:
    """The sum over the positions of each unit, or whether any is True."""
    units, total = flat_units(member, group), _total(group)
    if units.size == total and (units == np.arange(total)).all():
        return each
    order = np.argsort(units, kind="stable")
    order = order[units[order] >= 0]
    counts = np.bincount(units[order], minlength=total)
    place = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    slots = np.full((total, counts.max(initial=1)), units.size)
    slots[units[order], place] = order
    module = np if isinstance(each, np.ndarray) else jnp
    nothing = module.zeros(1, each.dtype)
    if module is jnp:
        nothing = placement.vary_like(nothing, each)
    found = module.concatenate([each, nothing])[slots]
    return found.any(1) if found.dtype == bool else found.sum(1, dtype=found.dtype)


def _own(member: Member) -> tuple[int, ...]:
    """The axes of a leaf along which units differ."""
    return (*range(member.units.ndim - 1), member.axis)


def _total(group: Group) -> int:
    return math.prod(group.stack) * group.size
