"""Masks in the states of optimizers, and how to find them."""

from typing import Any, NamedTuple

import jax
import optax

from maskjax._core import checks, trees
from maskjax._core.stored import stored
from maskjax._core.trees import Mask, Params


@stored("maskjax.optim.MaskState")
class MaskState(NamedTuple):
    """The state of a transformation of `maskjax.optim`; a pytree.

    Attributes:
        mask: What is alive: True keeps.
        count: int32, the number of steps taken; `None` for masks that stay.
        key: The data of a key, for `set_` and `rigl`. Not a typed key, because some of
            optax's wrappers do not pass one through.
    """

    mask: Mask
    count: Any = None
    key: Any = None


def mask_of(opt_state: optax.OptState, params: Params | None = None) -> Mask:
    """The mask in an optimizer's state, wherever in a chain or wrapper it is.

    Args:
        opt_state: The state of an optimizer with a transformation of this module in it.
        params: The parameters, if the mask must have exactly their structure. They are
            needed with `nnx.Optimizer`, whose state has a structure of its own, and
            where `optax.multi_transform` gives whole subtrees to one transformation.

    Returns:
        The mask, True keeps; `None` where a parameter is left alone. The masks of
        several transformations on different parameters are merged into one.

    Raises:
        ValueError: If there is no mask in the state, or more than one for a parameter,
            or a mask whose parameter is not in `params`.

    Example:
        >>> optimizer = optim.keep_sparse({"w": jnp.array([[True, False]])})
        >>> optim.mask_of(optimizer.init({"w": jnp.ones((1, 2))}))
        {'w': Array([[ True, False]], dtype=bool)}
    """
    fn = "maskjax.optim.mask_of"
    masks = [state.mask for state in states(opt_state)]
    if not masks:
        raise ValueError(
            f"`{fn}` needs the state of an optimizer with a mask in it (`optim.prune`, "
            "`optim.keep_sparse`, ...), got one without."
        )
    if params is not None:
        masks = [by_paths(params, mask, fn=fn) for mask in masks]
    merged = masks[0]
    for mask in masks[1:]:
        merged = _merged(merged, mask, fn=fn)
    return jax.tree.map(
        lambda m: None if is_masked_out(m) else m, merged, is_leaf=is_leaf
    )


def _merged(one: Mask, other: Mask, *, fn: str) -> Mask:
    """Each leaf from the mask that has it."""
    names = ("a mask", "another mask")
    pairs = checks.matched(one, other, fn=fn, names=names, is_leaf=is_leaf)
    checks.raise_all(
        (path for path, a, b in pairs if not absent(a) and not absent(b)),
        f"`{fn}` needs one mask for each parameter",
    )
    treedef = jax.tree.structure(one, is_leaf=is_leaf)
    return treedef.unflatten([b if absent(a) else a for _, a, b in pairs])


def by_paths(params: Params, mask: Mask, *, fn: str) -> Mask:
    """The mask in the structure of the parameters, leaves found by their paths."""
    # No key holds the separator, so that no two parameters share a path.
    name = lambda path: trees.path_string(path, "\0")  # noqa: E731
    named = jax.tree_util.tree_flatten_with_path(mask, is_leaf=is_leaf)[0]
    found = {name(path): leaf for path, leaf in named if not absent(leaf)}
    paths = [name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    checks.raise_all(
        (path.replace("\0", "/") for path in found.keys() - set(paths)),
        f"`{fn}` needs `params` with every parameter that has a mask, and has masks of",
    )
    treedef = jax.tree.structure(params)
    return treedef.unflatten([found.get(path) for path in paths])


def states(opt_state: optax.OptState) -> list[MaskState]:
    """The states with a mask, in order."""
    is_state = lambda x: isinstance(x, MaskState)  # noqa: E731
    return [s for s in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(s)]


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
