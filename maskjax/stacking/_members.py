"""Functions and networks under each member of a stack."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import masking
from maskjax._core import batches, blame, checks, placement, trees, turns
from maskjax._core.trees import Array, Mask, Params, SoftMask
from maskjax.stacking._stacks import take


def predict(
    apply: Callable[..., Any],
    params: Params,
    stack: Mask | SoftMask,
    *inputs: Any,
    batch_size: int | None = None,
) -> Any:
    """The outputs of a network under each mask of a stack.

    Args:
        apply: `(params, *inputs) -> output`, any tree of arrays.
        params: Tree of arrays, shared by all members.
        stack: A stack of K masks, packed or not.
        *inputs: Passed on to `apply`, the same for every mask.
        batch_size: How many masks to run at a time with `jax.lax.map`, which limits the
            memory. `None` runs all of them at once. Masks on several devices run there,
            one at a time at least; under `jit` on an Auto mesh, fewer at a time than
            there are devices are gathered. Parameters and inputs that are sharded over
            the same mesh axis as masks are gathered.

    Returns:
        The outputs with a leading axis, [K, ...].

    Raises:
        ValueError: If the leaves disagree about K, a mask does not fit `params`, or
            `batch_size` is less than 1.

    Example:
        >>> stack = {"w": jnp.array([[[True], [True]], [[True], [False]]])}
        >>> net = lambda params, x: x @ params["w"]
        >>> params = {"w": jnp.array([[1.0], [10.0]])}
        >>> stacking.predict(net, params, stack, jnp.ones((1, 2)))
        Array([[[11.]],
        <BLANKLINE>
               [[ 1.]]], dtype=float32)
    """
    fn = "maskjax.stacking.predict"
    # A mesh axis holds either masks or parts of what all masks meet.
    whole, inputs = placement.clear((params, inputs), stack)

    def under(mask: Mask, *inputs: Any) -> Any:
        with blame.instead_of("maskjax.apply", fn):
            masked = masking.apply(whole, mask)
        return apply(masked, *inputs)

    return _map(under, stack, *inputs, batch_size=batch_size, fn=fn, params=params)


def map(
    function: Callable[..., Any],
    stack: Any,
    *inputs: Any,
    batch_size: int | None = None,
) -> Any:
    """A function of one member, for each member of a stack.

    `predict` is for masks on weights. Use `map` where members differ in something else:
    masks on features (see `layers`), keys, or whole parameters. The leading axis of
    every leaf must be that of the members. Where layers are stacked too, as under
    `flax.linen.scan`, their axis comes after it: see `layers`. Work that does not
    depend on the member is done once: always if `batch_size` is `None`, and otherwise
    where XLA moves it out of the loop, as it does on CPU.

    Args:
        function: `(member, *inputs) -> output`, any tree of arrays.
        stack: A stack of K: a tree of arrays [K, ...], of keys too, or packed masks.
        *inputs: Passed on to `function`, the same for every member.
        batch_size: How many members to run at a time with `jax.lax.map`, which limits
            the memory. `None` runs all of them at once. Members on several devices run
            where they are, as in `predict`.

    Returns:
        The outputs with a leading axis, [K, ...].

    Raises:
        ValueError: If the leaves disagree about K, or `batch_size` is less than 1.

    Example:
        >>> net = lambda mask, x: jnp.sum(jnp.where(mask, x, 0))
        >>> stacking.map(net, jnp.array([[True, False], [True, True]]), jnp.ones(2))
        Array([1., 2.], dtype=float32)
    """
    name = "maskjax.stacking.map"
    return _map(function, stack, *inputs, batch_size=batch_size, fn=name)


def _map(
    function: Callable[..., Any],
    stack: Any,
    *inputs: Any,
    batch_size: int | None,
    fn: str,
    params: Params | None = None,
) -> Any:
    members = checks.members(stack, fn=fn)
    checks.together(fn=fn, params=params, stack=stack, inputs=inputs)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`{fn}` needs `batch_size` of at least 1, got {batch_size}.")

    def member(each: Any) -> Any:
        return function(each, *inputs)

    if batch_size is None:
        return jax.vmap(member)(turns.aligned(stack))
    return turns.run(member, stack, min(batch_size, members))


def predict_each(
    apply: Callable[..., Any],
    params: Params,
    stack: Mask,
    members: Array,
    *inputs: Any,
    group: int = 16,
) -> Any:
    """The outputs of a network for samples that each have their own mask.

    Samples are sorted by mask and run in groups that share one, so a mask is applied
    once for a group and not for each sample. Samples on several devices are gathered;
    inside `shard_map` every device runs its own.

    Args:
        apply: `(params, *inputs) -> output`. The output for a sample must not depend on
            the other samples of its batch: use running statistics in BatchNorm.
        params: Tree of arrays, shared by all members.
        stack: A stack of K masks, packed or not.
        members: [B], integer: the index of each sample's mask, clipped to [0, K).
        *inputs: Trees of arrays [B, ...].
        group: How many samples `apply` receives at a time. The last group of a mask is
            padded, and the outputs for the padding are dropped.

    Returns:
        The outputs, [B, ...]. Under `jit` they have no reverse-mode gradient.

    Raises:
        TypeError: If the members are not integers.
        ValueError: If there are no samples, not B in every input, a mask does not fit
            `params`, or an output has no axis of samples.

    Warns:
        UserWarning: If `apply` mixes the samples of a batch, as BatchNorm does in
            training mode. It is told while tracing.

    Example:
        >>> stack = {"w": jnp.array([[[True], [True]], [[True], [False]]])}
        >>> net = lambda params, x: x @ params["w"]
        >>> params = {"w": jnp.array([[1.0], [10.0]])}
        >>> members, x = jnp.array([1, 0, 1]), jnp.ones((3, 2))
        >>> stacking.predict_each(net, params, stack, members, x).ravel()
        Array([ 1., 11.,  1.], dtype=float32)
    """
    fn = "maskjax.stacking.predict_each"
    checks.at_least(group, 1, fn=fn, name="group")
    last = checks.members(stack, fn=fn) - 1
    checks.together(fn=fn, params=params, stack=stack, members=members, inputs=inputs)
    size = checks.samples(members, inputs, fn=fn)
    batches.told_if_mixed(
        apply,
        params,
        inputs,
        fn=fn,
        gives="`apply` samples in groups that share a mask",
        cure="Use running statistics.",
    )
    members, inputs = placement.whole((members, inputs))
    members, places, groups = _grouped(jnp.asarray(members), last, group)

    def of_group(row: Array) -> Any:
        mask = take(stack, members[row[0]])
        chosen = jax.tree.map(lambda x: jnp.take(x, row, axis=0, mode="clip"), inputs)
        with blame.instead_of("maskjax.apply", fn):
            masked = masking.apply(params, mask)
        return apply(masked, *chosen)

    def run(i: Array, outputs: Any) -> Any:
        return jax.tree.map(
            lambda old, new: old.at[places[i]].set(new, mode="drop"),
            outputs,
            placement.whole(of_group(places[i])),
        )

    outputs = jax.eval_shape(lambda places: of_group(places[0]), places)
    checks.raise_all(
        (
            f"{path or 'output'}: shape {leaf.shape}"
            for path, leaf in trees.named_leaves(outputs)
            if leaf.shape[:1] != (group,)
        ),
        f"`{fn}` needs `apply` to return a leading axis of {group} samples",
    )
    blank = jax.tree.map(
        lambda out: jnp.zeros((size, *out.shape[1:]), out.dtype), outputs
    )
    blank = placement.vary_like(blank, params, stack, members, inputs)
    return lax.fori_loop(0, groups, run, blank)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _grouped(members: Array, last: int, group: int) -> tuple[Array, Array, Array]:
    """Clipped members; samples in rows of one member each; how many rows are used."""
    size = members.shape[0]
    members = jnp.clip(members, 0, last).astype(jnp.int32)
    order = jnp.argsort(members, stable=True).astype(jnp.int32)
    whose, at = members[order], jnp.arange(size, dtype=jnp.int32)
    first = jnp.concatenate([jnp.array([True]), whose[1:] != whose[:-1]])
    place = at - lax.cummax(jnp.where(first, at, 0))  # among its member's samples
    number = jnp.cumsum(place % group == 0, dtype=jnp.int32) - 1  # of its row
    # One row for each possible group; the value `size` marks padding.
    rows = jnp.full((size, group), size, jnp.int32).at[number, place % group].set(order)
    return members, rows, number[-1] + 1
