"""A function of many members, some at a time, on the devices where they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax._core import placement
from maskjax._core.trees import Array


def run(
    function: Callable[[Any], Any],
    stack: Any,
    batch_size: int,
    *,
    groups: int | None = None,
) -> Any:
    """A function of each member, some at a time, from each device's share of them.

    Members that are sharded lie in equal groups on their devices. A turn takes from
    every group, so that each device runs its own members. How many groups there are may
    be told by who knows it from outside a program, where types do not say.
    """
    leaves = jax.tree.leaves(stack)
    members = leaves[0].shape[0]
    if groups is None:
        groups = placement.groups(*leaves)
        if groups > batch_size and not placement.tells(*leaves):
            groups = 1  # they may be on one device, and memory is limited
    each = max(1, batch_size // groups)
    # One at a time they have no axis: a `cond` in there stays one.
    size = each if each > 1 else None
    if groups == 1:
        return lax.map(function, stack, batch_size=size)
    many, stack = members // groups, aligned(stack)
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


def batches(data: Any, batch_size: int) -> tuple[Any, Any]:
    """Rows in batches [N, B, ...], and the rows that are left, [R, ...], or `None`.

    As in `run`, a batch takes as many rows from each device. Rows that are known to be
    on more devices than B come in larger batches, with one row of each device.
    """
    leaves = jax.tree.leaves(data)
    groups = placement.groups(*leaves)
    if groups > batch_size and not placement.tells(*leaves):
        groups = 1
    rows = leaves[0].shape[0] // groups
    each = min(max(1, batch_size // groups), rows)
    many = rows // each

    def grouped(x: Array) -> Array:
        return x.reshape(groups, rows, *x.shape[1:])

    def full(x: Array) -> Array:
        x = grouped(x)[:, : many * each].reshape(groups, many, each, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1).reshape(many, groups * each, *x.shape[3:])

    def rest(x: Array) -> Array:
        return grouped(x)[:, many * each :].reshape(-1, *x.shape[1:])

    left = rows > many * each
    return jax.tree.map(full, data), jax.tree.map(rest, data) if left else None


def aligned(stack: Any) -> Any:
    """A tree with the rows of all arrays where those of the most sharded one are.

    That is as far as types say where rows are.
    """
    most = max(jax.tree.leaves(stack), key=lambda leaf: placement.shards(leaf, 0))
    row = placement.spec_of(most)[:1]

    def of_leaf(x: Array) -> Array:
        return placement.place(x, (*row, *placement.spec_of(x)[1:]), like=most)

    return jax.tree.map(of_leaf, stack)
