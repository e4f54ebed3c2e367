"""A function of many members, some at a time, on the devices where they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax._core import placement
from maskjax._core.trees import Array


def run(function: Callable[[Any], Any], stack: Any, batch_size: int) -> Any:
    """A function of each member, some at a time, from each device's share of them.

    Members that are sharded lie in equal groups on their devices. A turn takes from
    every group, so that each device runs its own members.
    """
    leaves = jax.tree.leaves(stack)
    members = leaves[0].shape[0]
    groups = placement.groups(*leaves)
    if groups > batch_size and not placement.tells(*leaves):
        groups = 1  # they may be on one device, and memory is limited
    each = max(1, batch_size // groups)
    # One at a time they have no axis: a `cond` in there stays one.
    size = each if each > 1 else None
    if groups == 1:
        return lax.map(function, stack, batch_size=size)
    many = members // groups
    most = max(leaves, key=lambda leaf: placement.shards(leaf, 0))
    stack = jax.tree.map(lambda x: _by_rows(x, most), stack)
    stack = jax.tree.map(lambda x: x.reshape(groups, many, *x.shape[1:]), stack)

    def turn(i: Array) -> Any:
        chosen = jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), stack
        )
        return jax.vmap(function)(chosen)

    outputs = lax.map(turn, jnp.arange(many, dtype=jnp.int32), batch_size=size)
    return jax.tree.map(
        lambda x: jnp.swapaxes(x, 0, 1).reshape(members, *x.shape[2:]), outputs
    )


def _by_rows(x: Array, like: Array) -> Array:
    """The array with rows sharded as those of another one, if types say how."""
    rows = placement.spec_of(like)[:1]
    return placement.place(x, (*rows, *placement.spec_of(x)[1:]), like=like)
