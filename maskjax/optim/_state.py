"""Masks in the states of optimizers, and how to find them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from maskjax import packing
from maskjax._core import checks, trees
from maskjax._core.stored import stored
from maskjax._core.trees import Mask, Params


class MaskWarning(UserWarning):
    """Masks are not kept as they should be, or moments not restarted."""


@stored("maskjax.optim.MaskState")
class MaskState(NamedTuple):
    """The state of a transformation of `maskjax.optim`; a pytree.

    Attributes:
        mask: What is alive: True keeps.
        count: int32, the number of steps taken; `None` for `mask_updates`, whose mask
            says what trains.
        key: The data of a key, for `set_` and `rigl`. Not a typed key, because some of
            optax's wrappers do not pass one through.
    """

    mask: Mask
    count: Any = None
    key: Any = None


def mask_of(opt_state: optax.OptState, params: Params | None = None) -> Mask:
    """The mask in an optimizer's state, wherever in a chain or wrapper it is.

    Args:
        opt_state: The state of an optimizer with a transformation of this module in it,
            or what `nnx.state` and Orbax make of one: mappings with its fields.
        params: The parameters, if the mask must have exactly their structure. They are
            needed with `nnx.Optimizer`, whose state has a structure of its own, and
            where `optax.multi_transform` gives whole subtrees to one transformation.

    Returns:
        The mask, True keeps; `None` where a parameter is left alone. The masks of
        several transformations on different parameters are merged into one. Leaves are
        those of the state, uncopied: a loop that donates the state deletes them.

    Raises:
        ValueError: If there is no mask in the state, or a mask whose parameter is not
            in `params`, or if a parameter has several that differ or are traced.

    Example:
        >>> optimizer = optim.keep_sparse({"w": jnp.array([[True, False]])})
        >>> optim.mask_of(optimizer.init({"w": jnp.ones((1, 2))}))
        {'w': Array([[ True, False]], dtype=bool)}
    """
    fn = "maskjax.optim.mask_of"
    masks = [state.mask for state in found(opt_state, fn=fn)]
    if params is not None:
        masks = [by_paths(params, mask, fn=fn) for mask in masks]
    merged = masks[0]
    for mask in masks[1:]:
        merged = _merged(merged, mask, fn=fn)
    return jax.tree.map(
        lambda m: None if is_masked_out(m) else m, merged, is_leaf=is_leaf
    )


def _merged(one: Mask, other: Mask, *, fn: str) -> Mask:
    """Each leaf from the mask that has it; from either, if they are equal."""
    names = ("a mask", "another mask")
    pairs = checks.matched(one, other, fn=fn, names=names, is_leaf=is_leaf)
    checks.raise_all(
        (f"{path}: {why}" for path, a, b in pairs if (why := _apart(a, b))),
        f"`{fn}` needs one mask for each parameter",
    )
    treedef = jax.tree.structure(one, is_leaf=is_leaf)
    return treedef.unflatten([b if absent(a) else a for _, a, b in pairs])


def _apart(one: Any, other: Any) -> str | None:
    """Why two masks of a parameter are not known to be one."""
    if absent(one) or absent(other) or one is other:
        return None
    one, other = packing.unpack([one, other])
    for mask in (one, other):
        if isinstance(mask, Tracer) or not isinstance(mask, jax.Array | np.ndarray):
            return "two masks without values to compare"
    same = one.shape == other.shape and bool(np.array_equal(one, other))
    return None if same else "two masks that differ"


def with_mask(opt_state: optax.OptState, mask: Mask) -> optax.OptState:
    """An optimizer's state with another mask in it; `mask_of` reads it back.

    Parameters and moments stay as they are. `maskjax.apply` makes parameters zero where
    the mask is, and `reset_moments` restarts moments where it changed.

    Args:
        opt_state: The state of an optimizer with a transformation of this module in it.
        mask: A mask, boolean or packed, for every parameter that has one in the state,
            found by path. Decisions are shared as in the state.

    Returns:
        The state. It shares no buffer with `mask`. Every transformation in it has the
        new mask for its parameters.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If there is no mask in the state, or the masks are not for the same
            parameters, or not of the same shapes.

    Example:
        >>> optimizer = optim.prune(0.5)
        >>> state = optimizer.init({"w": jnp.ones((1, 2))})
        >>> state = optim.with_mask(state, {"w": jnp.array([[False, True]])})
        >>> optim.mask_of(state)
        {'w': Array([[False,  True]], dtype=bool)}
    """
    fn = "maskjax.optim.with_mask"
    checks.boolean(mask, fn=fn)
    new, used, wrong = _by_name(mask), set[str](), list[str]()

    def of_leaf(path: Any, old: Any) -> Any:
        if absent(old):
            return old
        name = _name(path)
        used.add(name)
        leaf = new.get(name)
        if leaf is None or leaf.shape != old.shape:
            got = "none" if leaf is None else f"{leaf.shape}"
            wrong.append(f"{name.replace(_SEPARATOR, '/')}: {old.shape}, got {got}")
            return old
        if isinstance(old, packing.PackedMask):
            return jax.tree.map(jnp.copy, packing.pack(leaf))
        return jnp.copy(packing.unpack(leaf))

    def of_state(state: Any) -> Any:
        if not isinstance(state, MaskState):
            return state
        mask = jax.tree_util.tree_map_with_path(of_leaf, state.mask, is_leaf=is_leaf)
        return state._replace(mask=mask)

    found(opt_state, fn=fn)
    is_state = lambda x: isinstance(x, MaskState)  # noqa: E731
    after = jax.tree.map(of_state, opt_state, is_leaf=is_state)
    others = sorted(path.replace(_SEPARATOR, "/") for path in new.keys() - used)
    checks.raise_all(
        wrong + [f"{path}: no mask in the state" for path in others],
        f"`{fn}` needs a mask like that in the state",
    )
    return after


_SEPARATOR = "\0"  # that no key holds, so that no two parameters share a path


def _name(path: Any) -> str:
    return trees.path_string(path, _SEPARATOR)


def _by_name(mask: Mask) -> dict[str, Any]:
    """The leaves of a mask that are there."""
    named = jax.tree_util.tree_flatten_with_path(mask, is_leaf=is_leaf)[0]
    return {_name(path): leaf for path, leaf in named if not absent(leaf)}


def by_paths(params: Params, mask: Mask, *, fn: str | None) -> Mask:
    """The mask in the structure of the parameters, leaves found by their paths.

    Without `fn`, masks of other parameters are left out.
    """
    found = _by_name(mask)
    paths = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    checks.raise_all(
        (path.replace(_SEPARATOR, "/") for path in found.keys() - set(paths) if fn),
        f"`{fn}` needs `params` with every parameter that has a mask, and has masks of",
    )
    treedef = jax.tree.structure(params)
    return treedef.unflatten([found.get(path) for path in paths])


def states(opt_state: optax.OptState) -> list[MaskState]:
    """The states with a mask, in order."""
    is_state = lambda x: isinstance(x, MaskState)  # noqa: E731
    return [s for s in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(s)]


def found(opt_state: optax.OptState, *, fn: str) -> list[MaskState]:
    """The states with a mask, in order, also as mappings; at least one."""
    of_mapping = lambda x: _as_mapping(x) is not None  # noqa: E731
    others = [*map(_as_mapping, jax.tree.leaves(opt_state, is_leaf=of_mapping))]
    every = states(opt_state) or [state for state in others if state is not None]
    if not every:
        raise ValueError(
            f"`{fn}` needs the state of an optimizer with a mask in it (`optim.prune`, "
            "`optim.keep_sparse`, ...), got one without."
        )
    return every


def _as_mapping(node: Any) -> MaskState | None:
    """What `nnx.state` and Orbax make of a state with a mask."""
    if not isinstance(node, Mapping) or "mask" not in node:
        return None
    if not node.keys() <= set(MaskState._fields):
        return None
    leaves = jax.tree.leaves(node["mask"])
    if not leaves or any(not _is_boolean(x) for x in leaves):
        return None
    return MaskState(node["mask"], node.get("count"), node.get("key"))


def _is_boolean(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.bool_)


def held(state: MaskState, *, fn: str) -> Mask:
    """The mask of a state, which must still be one."""
    for leaf in jax.tree.leaves(state.mask, is_leaf=is_leaf):
        if not is_leaf(leaf) and not _is_boolean(leaf):
            raise TypeError(
                f"`{fn}` finds {checks.kind_of(leaf)} in its state, where its mask "
                "was: a wrapper around it computes with states, as "
                "`optax.contrib.sam` does. Put that wrapper before it in a chain."
            )
    return state.mask


def fitted(params: Params, tree: Any) -> Any:
    """The tree without the leaves that `optax.masked` hides in the parameters."""
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_masked_out)
    if not any(map(is_masked_out, leaves)):
        return tree
    parts = treedef.flatten_up_to(tree)
    return treedef.unflatten(
        [p if is_masked_out(p) else part for p, part in zip(leaves, parts, strict=True)]
    )


def is_leaf(x: Any) -> bool:
    """Where to stop in a mask that may lack parts of the parameters."""
    return trees.is_mask_leaf(x) or is_masked_out(x)


def absent(x: Any) -> bool:
    """Whether there is no mask at a leaf."""
    return x is None or is_masked_out(x)


def is_masked_out(x: Any) -> bool:
    """Whether `optax.masked` hides this leaf."""
    return isinstance(x, optax.MaskedNode)
