"""Where two trees are not of one structure, and masks that are a prefix of one."""

from typing import Any

import jax
import numpy as np

from maskjax._core import trees
from maskjax._core.checks._kinds import kind_of

#: What stands for a whole leaf, or for all leaves of a subtree, in a mask.
PLAIN = (bool, np.bool_)


def spread(params: trees.Params, mask: trees.Mask) -> trees.Mask:
    """The mask with arrays for plain booleans, and leaves for prefixes.

    True and False become arrays of one entry that all entries of a leaf share. At an
    inner node of the parameters they, and None, stand for every leaf below it. A mask
    that has nothing of this, or does not fit, is returned as it is.
    """
    if not any(type(leaf) in PLAIN for leaf in jax.tree.leaves(mask)):
        try:
            jax.tree.structure(params).flatten_up_to(mask)
            return mask
        except ValueError:
            pass
    leaves, treedef = jax.tree.flatten(mask, is_leaf=trees.is_mask_leaf)
    try:
        parts = treedef.flatten_up_to(params)
    except ValueError:
        return mask

    def below(leaf: Any, part: Any) -> Any:
        if leaf is None:
            return jax.tree.map(lambda _: None, part)
        if type(leaf) not in PLAIN:
            return leaf
        return jax.tree.map(lambda p: np.full((1,) * np.ndim(p), leaf, bool), part)

    return treedef.unflatten(map(below, leaves, parts))


def apart_at(first: Any, second: Any, names: tuple[str, str], is_leaf: Any) -> list:
    """In words, which paths only one tree has, or where their containers differ."""
    alone = [
        f"`{name}` is {_alone(tree)}"
        for name, tree in zip(names, (first, second), strict=True)
        if not _children(tree)
    ]
    if alone:
        return alone
    mine = set(trees.paths(first, is_leaf))
    theirs = set(trees.paths(second, trees.is_mask_leaf))
    lines = _lines(mine, theirs, names)
    kinds = [
        f"{trees.path_string(path) or 'the root'}: `{names[0]}` has {_name(one)}, "
        f"`{names[1]}` {_name(other)}"
        for path, one, other in _containers(first, second, ())
        if not lines or _children(one) and _children(other)
    ]
    for prefix in _prefixes(second):  # it fits what is below it: others are to blame
        below = {path for path in mine if path.startswith(f"{prefix}/")}
        mine, theirs = mine - below, theirs - ({prefix} if below else set())
    return [*kinds, *_lines(mine, theirs, names)] or lines


def _alone(tree: Any) -> str:
    """What stands where a tree should."""
    return "empty" if tree is not None and not jax.tree.leaves(tree) else _name(tree)


def _lines(mine: set[str], theirs: set[str], names: tuple[str, str]) -> list[str]:
    return [
        *(f"only in `{names[0]}`: {path}" for path in sorted(mine - theirs)),
        *(f"only in `{names[1]}`: {path}" for path in sorted(theirs - mine)),
    ]


def _prefixes(mask: Any) -> list[str]:
    """The paths of what may stand for all leaves of a subtree."""
    leaves, _ = trees.mask_leaves(mask)
    return [path for path, leaf in leaves if leaf is None or type(leaf) in PLAIN]


def _containers(first: Any, second: Any, path: tuple) -> list[tuple[Any, Any, Any]]:
    """The nodes nearest to the root where two trees have containers of two kinds."""
    ours, theirs = _children(first), _children(second)
    if not ours and not theirs:
        return []
    if type(first) is not type(second):
        return [(path, first, second)]
    both = dict(theirs)
    return [
        found
        for key, one in ours
        if key in both
        for found in _containers(one, both[key], (*path, *key))
    ]


def _children(node: Any) -> list[tuple[Any, Any]]:
    if trees.is_mask_leaf(node):
        return []
    is_leaf = lambda x: x is not node  # noqa: E731
    found = jax.tree_util.tree_flatten_with_path(node, is_leaf=is_leaf)[0]
    return [(path, child) for path, child in found if path]


def _name(node: Any) -> str:
    """The type of a container, or what a leaf is."""
    name = type(node).__name__ if _children(node) else kind_of(node)
    return f"{name} (`{_PLAINER[name]}`)" if name in _PLAINER else name


#: Containers of Flax that only one of two trees has, and what takes them away.
_PLAINER = {
    "FrozenDict": "flax.core.unfreeze",
    "LogicallyPartitioned": "flax.linen.meta.unbox",
    "Partitioned": "flax.linen.meta.unbox",
    "State": "flax.nnx.to_pure_dict",
}


def hint_of_ranks(found: list[tuple[Any, ...]]) -> str:
    """What may be meant where all masks have an axis more or less than parameters."""
    pairs = [(p, leaf) for p, leaf in found if leaf is not None and p is not None]
    more = {len(leaf.shape) - np.ndim(p) for p, leaf in pairs}
    if more == {1}:
        return " (a stack of masks? Map over it with `stacking.map`)"
    if more == {-1}:
        return " (one mask for a stack? `stacking.stack([mask])` is a stack of one)"
    return ""
