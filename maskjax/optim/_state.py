"""Masks in the states of optimizers: where they are, and what moves with them.

Part of `maskjax.optim`, which exports what is here.

>>> from maskjax import optim
>>> mask = {"w": jnp.array([[True, False]])}
>>> optimizer = optax.chain(optax.adam(1e-3), optim.keep_sparse(mask))
>>> optim.mask_of(optimizer.init({"w": jnp.ones((1, 2))}))
{'w': Array([[ True, False]], dtype=bool)}
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskjax import packing
from maskjax._core import checks, trees
from maskjax._core.trees import Array, Mask, Params


class MaskState(NamedTuple):
    """What a transformation of `maskjax.optim` carries; a pytree.

    Attributes:
        mask: What is alive: True keeps.
        count: How many steps were taken, if that matters.
        key: The data of a key, if chance does. Not a typed key, since not every wrapper
            of optax passes one through.
    """

    mask: Mask
    count: Any = None
    key: Any = None


def mask_of(opt_state: optax.OptState, params: Params | None = None) -> Mask:
    """The mask in an optimizer's state, wherever in a chain or wrapper it lives.

    Args:
        opt_state: The state of an optimizer with a transformation of this module in it.
        params: The parameters, for a mask of exactly their structure. They are needed
            with `nnx.Optimizer`, whose state has another one, and where
            `optax.multi_transform` gives whole subtrees to one transformation.

    Returns:
        The mask, True keeps; `None` where a parameter is left alone. The masks of
        several transformations on different parameters come as one.

    Raises:
        ValueError: If there is no mask in the state, more than one for a parameter, or
            one for none of `params`.

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
        masks = [_like(params, mask, fn=fn) for mask in masks]
    merged = masks[0]
    for mask in masks[1:]:
        merged = _merged(merged, mask, fn=fn)
    return jax.tree.map(lambda m: None if _is_out(m) else m, merged, is_leaf=_stop)


def _merged(one: Mask, other: Mask, *, fn: str) -> Mask:
    """Each leaf from the mask that has it."""
    names = ("a mask", "another mask")
    pairs = checks.matched(one, other, fn=fn, names=names, is_leaf=_stop)
    checks.raise_all(
        (path for path, a, b in pairs if not _absent(a) and not _absent(b)),
        f"`{fn}` needs one mask for each parameter",
    )
    treedef = jax.tree.structure(one, is_leaf=_stop)
    return treedef.unflatten([b if _absent(a) else a for _, a, b in pairs])


def _like(params: Params, mask: Mask, *, fn: str) -> Mask:
    """The mask in the structure of the parameters, leaves found by their paths."""
    # No key holds the separator, so that no two parameters share a path.
    name = lambda path: trees.path_string(path, "\0")  # noqa: E731
    named = jax.tree_util.tree_flatten_with_path(mask, is_leaf=_stop)[0]
    found = {name(path): leaf for path, leaf in named if not _absent(leaf)}
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
    """The tree without what `optax.masked` took out of the parameters."""
    leaves, treedef = jax.tree.flatten(params, is_leaf=_is_out)
    if not any(map(_is_out, leaves)):
        return tree
    parts = treedef.flatten_up_to(tree)
    return treedef.unflatten(
        [p if _is_out(p) else part for p, part in zip(leaves, parts, strict=True)]
    )


def reset_moments(
    opt_state: optax.OptState, initial: optax.OptState, before: Mask, after: Mask
) -> optax.OptState:
    """An optimizer's state with what it remembers of rewired entries forgotten.

    Wherever in the state there is a tree of the masks' structure (momentum, second
    moments, step sizes, averages), entries of its floating arrays whose mask has
    changed are set to their initial values. Everything else, such as the factored
    moments of `optax.adafactor` and counts of steps, stays as it is.

    Args:
        opt_state: The state of any optimizer.
        initial: What its `init` gives.
        before: The mask before, boolean or packed.
        after: The mask after, of the same structure.

    Returns:
        A state like `opt_state`.

    Raises:
        TypeError: If a leaf of a mask is neither boolean nor packed.
        ValueError: If the masks, or the states, differ in structure.

    Example:
        >>> optimizer = optax.sgd(1.0, momentum=0.9)
        >>> params = {"w": jnp.array([[1.0, 2.0]])}
        >>> _, state = optimizer.update(params, optimizer.init(params))
        >>> before = {"w": jnp.array([[True, False]])}
        >>> after = {"w": jnp.array([[True, True]])}
        >>> fresh = optim.reset_moments(state, optimizer.init(params), before, after)
        >>> jax.tree.leaves(fresh)
        [Array([[1., 0.]], dtype=float32)]

    References:
        Evci et al., "Rigging the Lottery", ICML 2020. arXiv:1911.11134, section 3.
    """
    fn = "maskjax.optim.reset_moments"
    for name, mask in (("before", before), ("after", after)):
        checks.boolean(mask, fn=fn, name=name)
    before, after = packing.unpack(before), packing.unpack(after)
    names = ("before", "after")
    pairs = checks.same_shapes(before, after, fn=fn, names=names, is_leaf=_stop)
    changed = [None if _absent(a) else a != b for a, b in pairs]
    shape = jax.tree.structure(after, is_leaf=_stop)

    def like_params(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=_absent) == shape

    def renewed(node: Any, first: Any) -> Any:
        if not like_params(node):
            return node
        return shape.unflatten(
            [
                jnp.where(c, f, x) if c is not None and _entrywise(x, c) else x
                for x, f, c in zip(
                    shape.flatten_up_to(node),
                    shape.flatten_up_to(first),
                    changed,
                    strict=True,
                )
            ]
        )

    return jax.tree.map(renewed, opt_state, initial, is_leaf=like_params)


def rewired(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose mask may grow: gradients reach it, and moments restart.

    It hands the gradients that come in to every transformation of a chain, as the extra
    argument `gradients` that `rigl` and gradient-based scores of `prune` need, and
    calls `reset_moments` where a mask has changed. Wrappers that accumulate gradients,
    as `optax.MultiSteps`, go around it.

    Args:
        optimizer: A chain that ends with `prune`, `set_` or `rigl`.

    Returns:
        A transformation with the optimizer's state.

    Example:
        >>> params = {"w": jnp.ones((4, 4))}
        >>> rigl = optim.rigl(0.25, rate=0.5, every=1, key=jax.random.key(0))
        >>> optimizer = optim.rewired(optax.chain(optax.adam(0.1), rigl))
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> int(optim.mask_of(state)["w"].sum())
        4
    """
    fn = "maskjax.optim.rewired"
    optimizer = optax.with_extra_args_support(optimizer)

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        extra_args = {"gradients": updates} | extra_args
        updates, after = optimizer.update(updates, state, params, **extra_args)
        if params is None:
            return updates, after
        masks = [
            (a.mask, b.mask) for a, b in zip(states(state), states(after), strict=True)
        ]
        moved = [pair for pair in masks if pair[0] is not pair[1]]
        initial = optimizer.init(params) if moved else ()
        for before, now in moved:
            after = reset_moments(after, initial, before, now)
            if any(map(_is_out, jax.tree.leaves(now, is_leaf=_stop))):
                # Transformations beside its own may have seen all parameters.
                whole = [_like(params, mask, fn=fn) for mask in (before, now)]
                after = reset_moments(after, initial, *whole)
        return updates, after

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


@jax.custom_batching.custom_vmap
def any_member(flag: Array) -> Array:
    """The flag; of members in a `vmap`, whether it is up for any of them.

    So that a `lax.cond` on it stays one under `vmap`, where members that count the same
    steps would otherwise compute both branches every time.
    """
    return flag


@any_member.def_vmap
def _(size: int, batched: list[bool], flags: Array) -> tuple[Array, bool]:
    del size, batched
    return any_member(jnp.any(flags)), False


def _stop(x: Any) -> bool:
    return trees.is_mask_leaf(x) or _is_out(x)


def _absent(x: Any) -> bool:
    return x is None or _is_out(x)


def _is_out(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _entrywise(x: Any, changed: Array) -> bool:
    return checks.is_floating(x) and checks.fits(changed.shape, x.shape)
