"""Masks drawn by NumPy for trees of shapes: `draw`, of the kinds in `KINDS`."""

from typing import Any

import jax
import numpy as np

from maskjax._core import trees


def along(keep: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Decisions [*lead, n] about an axis, in the rank of their leaf."""
    lead = keep.shape[:-1]
    between, after = axis - len(lead), rank - axis - 1
    return keep.reshape(*lead, *([1] * between), keep.shape[-1], *([1] * after))


def kept(member: Any, decisions: np.ndarray) -> np.ndarray:
    """Which positions of a member's axis are kept [*lead, n]."""
    if decisions.ndim == 1:
        chosen = decisions[member.units]
    else:
        layers = np.indices(member.units.shape)[: decisions.ndim - 1]
        chosen = decisions[(*layers, member.units)]
    return chosen | (member.units < 0)


def spread(groups: Any, decisions: dict[str, np.ndarray], shapes: Any) -> dict:
    """Decisions about units as a mask by path, written apart from `Groups.spread`."""
    masks = {}
    ranks = {path: len(leaf.shape) for path, leaf in trees.named_leaves(shapes)}
    for group in groups:
        for member in group.members:
            keep = kept(member, decisions[group.name])
            keep = along(keep, member.axis, ranks[member.path])
            masks[member.path] = masks.get(member.path, True) & keep
    return masks


def sizes(groups: Any, decisions: dict[str, np.ndarray], shapes: Any) -> dict:
    """The shapes of leaves once exactly the removed units are gone, by path."""
    keep = {}
    for group in groups:
        for member in group.members:
            key = member.path, member.axis
            found = keep.get(key)
            one = kept(member, decisions[group.name])
            if found is not None and one.ndim < found.ndim:
                one = one[(None,) * (found.ndim - one.ndim)]
            elif found is not None and found.ndim < one.ndim:
                found = found[(None,) * (one.ndim - found.ndim)]
            keep[key] = one if found is None else found & one
    count = {key: int(found.sum(-1).max()) for key, found in keep.items()}
    return {
        path: tuple(count.get((path, i), size) for i, size in enumerate(leaf.shape))
        for path, leaf in trees.named_leaves(shapes)
    }


def one_less(groups: Any, rng: np.random.Generator, *only: str) -> dict:
    """One unit less in each layer, of every group or of those named."""
    decisions = {}
    for group in groups:
        decisions[group.name] = keep = np.ones((*group.stack, group.size), bool)
        if not only or group.name in only:
            gone = rng.integers(0, group.size, (*group.stack, 1))
            np.put_along_axis(keep, gone, False, axis=-1)
    return decisions


def _units(rng: np.random.Generator, groups: Any, shapes: Any) -> dict:
    """Half of the units of most groups, of some all."""
    share = rng.choice([0.0, 0.5, 0.5, 0.8, 1.0], len(groups))
    decisions = {
        group.name: rng.random((*group.stack, group.size)) < one
        for group, one in zip(groups, share, strict=True)
    }
    return spread(groups, decisions, shapes)


def _slabs(rng: np.random.Generator, groups: Any, shapes: Any) -> dict:
    """Positions of one axis of most leaves; the other axes are 1."""
    del groups
    masks = {}
    for path, leaf in trees.named_leaves(shapes):
        if leaf.shape and rng.random() < 0.8:
            axis = rng.integers(len(leaf.shape))
            keep = rng.random(leaf.shape[axis]) < 0.6
            masks[path] = along(keep, axis, len(leaf.shape))
    return masks


def _entries(rng: np.random.Generator, groups: Any, shapes: Any) -> dict:
    del groups
    return {p: rng.random(x.shape) < 0.4 for p, x in trees.named_leaves(shapes)}


def _mixed(rng: np.random.Generator, groups: Any, shapes: Any) -> dict:
    """Units and slabs, and single entries of a few leaves."""
    masks = _units(rng, groups, shapes)
    for other in (_slabs, _entries):
        for path, mask in other(rng, groups, shapes).items():
            if rng.random() < 0.3:
                masks[path] = masks.get(path, True) & mask
    return masks


def _leaf(rng: np.random.Generator, groups: Any, shapes: Any) -> dict:
    """Nothing of one leaf."""
    del groups
    named = trees.named_leaves(shapes)
    path, leaf = named[rng.integers(len(named))]
    return {path: np.zeros([1] * len(leaf.shape), bool)}


def _all(rng: np.random.Generator, groups: Any, shapes: Any) -> dict:
    del rng, groups
    return {p: np.ones(x.shape, bool) for p, x in trees.named_leaves(shapes)}


def _none(rng: np.random.Generator, groups: Any, shapes: Any) -> dict:
    del rng, groups
    return {p: np.zeros(x.shape, bool) for p, x in trees.named_leaves(shapes)}


KINDS = {
    "units": _units,
    "slabs": _slabs,
    "entries": _entries,
    "mixed": _mixed,
    "leaf": _leaf,
    "all": _all,
    "none": _none,
}


def tree(shapes: Any, masks: dict[str, np.ndarray]) -> Any:
    """Masks by path as a tree, `None` where there is none."""
    leaves = [masks.get(path) for path, _ in trees.named_leaves(shapes)]
    return jax.device_put(jax.tree.structure(shapes).unflatten(leaves))


def draw(kind: str, groups: Any, shapes: Any, seed: int = 0) -> Any:
    """A mask of one of `KINDS`."""
    rng = np.random.default_rng(seed)
    return tree(shapes, KINDS[kind](rng, groups, shapes))
