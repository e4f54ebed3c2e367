"""What a mask does to updates: freeze parameters, or take them to zero."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskjax import packing
from maskjax._core import checks, dtypes, placement
from maskjax._core.trees import Array, Mask, Params


def frozen(updates: Any, mask: Mask, *, fn: str) -> Any:
    """Updates that add -0.0 to the parameters a mask removes."""
    return _masked(_freeze, mask, updates, fn=fn)


@jax.jit
def _freeze(update: Array, mask: Array) -> Array:
    mask = placement.alike(mask, update)
    return jnp.where(mask, update, jnp.array(-0.0, update.dtype))


def paused(updates: Any, due: Any) -> Any:
    """Updates that change no parameter, if it is due."""
    return jax.tree.map(lambda u: _freeze(u, jnp.logical_not(due)), updates)


def zeroing(updates: Any, params: Params, mask: Mask, *, fn: str) -> Any:
    """Updates that take the parameters a mask removes to exactly zero."""
    names = ("updates", "params")
    checks.same_shapes(updates, params, fn=fn, names=names, is_leaf=None)
    return _masked(_zero, mask, updates, params, fn=fn)


@jax.jit
def _zero(update: Array, mask: Array, param: Array) -> Array:
    # Updates narrower than a parameter could not cancel it.
    update = update.astype(dtypes.common(update, param))
    mask = placement.alike(mask, update)
    return jnp.where(mask, update, -param.astype(update.dtype))


def _masked(
    of_leaf: Callable[..., Array], mask: Mask, updates: Any, *rest: Any, fn: str
) -> Any:
    """Map over the updates that have a mask, with their leaves of other trees."""
    names = ("updates", "mask")
    pairs = checks.shaped_like(updates, packing.unpack(mask), fn=fn, names=names)
    treedef = jax.tree.structure(updates)
    others = [treedef.flatten_up_to(other) for other in rest]
    return treedef.unflatten(
        [
            u if m is None else of_leaf(u, m, *more)
            for (u, m), *more in zip(pairs, *others, strict=True)
        ]
    )
