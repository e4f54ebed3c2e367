"""What an optimizer needs when a mask grows: gradients, and moments that restart."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskjax import packing
from maskjax._core import checks, placement
from maskjax._core.trees import Array, Mask, Params
from maskjax.optim._state import (
    MaskState,
    absent,
    by_paths,
    is_leaf,
    is_masked_out,
    states,
)
from maskjax.optim._updates import frozen


def with_gradients(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Pass gradients to every transformation, and reset moments where a mask changes.

    `rigl`, and scores of `prune` that use gradients, need the gradients before the
    other transformations change them. They arrive as the extra argument `gradients`,
    and the mask so far, what removes and freezes taken together, as `mask`.
    Where a mask has changed, moments restart, see `reset_moments`. Wrappers that
    accumulate gradients, such as `optax.MultiSteps`, go around this one.

    Args:
        optimizer: A chain that ends with `prune`, `set_` or `rigl`.

    Returns:
        A transformation with the state of `optimizer`.

    Example:
        >>> params = {"w": jnp.ones((4, 4))}
        >>> rigl = optim.rigl(0.25, rate=0.5, every=1, key=jax.random.key(0))
        >>> optimizer = optim.with_gradients(optax.chain(optax.adam(0.1), rigl))
        >>> state = optimizer.init(params)
        >>> updates, state = jax.jit(optimizer.update)(params, state, params)
        >>> int(optim.mask_of(state)["w"].sum())
        4
    """
    fn = "maskjax.optim.with_gradients"
    optimizer = optax.with_extra_args_support(optimizer)

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        given = {"gradients": updates, "mask": _together(states(state), params)}
        extra_args = given | extra_args
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
            if any(map(is_masked_out, jax.tree.leaves(now, is_leaf=is_leaf))):
                # Transformations beside its own may have seen all parameters.
                whole = [by_paths(params, mask, fn=fn) for mask in (before, now)]
                after = reset_moments(after, initial, *whole)
        return updates, after

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def mask_gradients() -> optax.GradientTransformationExtraArgs:
    """Zero the gradients of weights that are removed or frozen: before one clips.

    Norms over all gradients, as in `optax.clip_by_global_norm`, then count only those
    of weights that train, for masks that stay and for masks that move. `rigl`, and
    scores, still get the dense gradients.

    Returns:
        A transformation without a state. It goes before what takes norms, inside
        `with_gradients`, around a chain that ends with a transformation with a mask.

    Raises:
        ValueError: If `update` gets no `mask`: without `with_gradients`, or without a
            transformation with a mask.

    Example:
        >>> mask = {"w": jnp.array([[True, False]])}
        >>> clip = optax.chain(optim.mask_gradients(), optax.clip_by_global_norm(1.0))
        >>> chain = optax.chain(clip, optax.sgd(1.0), optim.keep_sparse(mask))
        >>> optimizer = optim.with_gradients(chain)
        >>> params = {"w": jnp.array([[1.0, 0.0]])}
        >>> gradients = {"w": jnp.array([[0.5, 100.0]])}
        >>> optimizer.update(gradients, optimizer.init(params), params)[0]
        {'w': Array([[-0.5, -0. ]], dtype=float32)}
    """
    fn = "maskjax.optim.mask_gradients"

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params
        if extra.get("mask") is None:
            raise ValueError(
                f"`{fn}` needs `mask`: wrap a chain with a mask in it (`optim.prune`, "
                "`optim.mask_updates`, ...) in `optim.with_gradients`."
            )
        alive = by_paths(updates, extra["mask"], fn=None)
        return frozen(updates, alive, fn=fn), state

    init = lambda params: optax.EmptyState()  # noqa: E731
    return optax.GradientTransformationExtraArgs(init, update)


def _together(found: list[MaskState], params: Params | None) -> Mask | None:
    """The entries that all masks keep; `None` if there are none, or no parameters."""
    if params is None or not found:
        return None
    masks = [state.mask for state in found]
    if len(masks) == 1:
        return masks[0]

    def both(one: Any, other: Any) -> Any:
        if absent(one) or absent(other):
            return other if absent(one) else one
        one, other = packing.unpack([one, other])
        return one if one is other else one & other

    treedef = jax.tree.structure(params)
    spread = [treedef.flatten_up_to(by_paths(params, m, fn=None)) for m in masks]
    return treedef.unflatten(
        [functools.reduce(both, leaves) for leaves in zip(*spread, strict=True)]
    )


def reset_moments(
    opt_state: optax.OptState, initial: optax.OptState, before: Mask, after: Mask
) -> optax.OptState:
    """An optimizer's state, with moments reset where a mask has changed.

    Wherever the state contains a tree of the masks' structure (momentum, second
    moments, step sizes, averages), entries of its floating arrays whose mask has
    changed are set to their initial values. Everything else, such as step counts and
    the factored moments of `optax.adafactor`, is passed through uncopied.

    Args:
        opt_state: The state of any optimizer.
        initial: The state that the optimizer's `init` returns. What it lacks stays.
        before: The mask before, boolean or packed.
        after: The mask after, of the same structure.

    Returns:
        A state like `opt_state`.

    Raises:
        TypeError: If a leaf of a mask is neither boolean nor packed.
        ValueError: If the masks differ in structure.

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
    pairs = checks.same_shapes(before, after, fn=fn, names=names, is_leaf=is_leaf)
    shape = jax.tree.structure(after, is_leaf=is_leaf)

    def like_params(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=absent) == shape

    def renewed(node: Any, first: Any) -> Any:
        if not like_params(node):
            return node
        return shape.unflatten(
            [
                _reset(x, f, *masks) if _entrywise(x, masks[0]) else x
                for x, f, masks in zip(
                    shape.flatten_up_to(node),
                    shape.flatten_up_to(first),
                    pairs,
                    strict=True,
                )
            ]
        )

    flatten = jax.tree_util.tree_flatten_with_path
    first = dict(flatten(initial, is_leaf=like_params)[0])
    nodes, treedef = flatten(opt_state, is_leaf=like_params)
    # What is only there since the first step, as in `optax.monitor`, has no moments.
    return treedef.unflatten(
        [renewed(node, first[path]) if path in first else node for path, node in nodes]
    )


def _entrywise(x: Any, mask: Any) -> bool:
    """Whether a leaf of the state has the entries of a parameter with a mask."""
    if absent(mask) or not checks.is_floating(x):
        return False
    return checks.fits(mask.shape, x.shape)


@jax.jit
def _reset(x: Array, first: Array, before: Array, after: Array) -> Array:
    changed = placement.alike(before != after, x)
    return jnp.where(changed, placement.alike(first, x), x)
