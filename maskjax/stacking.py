"""Many masks as one tree: every leaf has a leading axis K of tasks, members or seeds.

>>> a, b = {"w": jnp.array([True, False])}, {"w": jnp.array([True, True])}
>>> stack = stacking.stack([a, b])
>>> stacking.size(stack), stacking.take(stack, 1)
(2, {'w': Array([ True,  True], dtype=bool)})
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from maskjax import masking, packing
from maskjax._core import blame, checks, placement, rows, slots, trees, turns
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask, Params, SoftMask

__all__ = [
    "map",
    "mix",
    "predict",
    "predict_each",
    "size",
    "stack",
    "take",
    "unstack",
]


def stack(masks: Sequence[Mask]) -> Mask:
    """Stack several masks into one tree.

    Args:
        masks: K >= 1 masks of the same structure, shapes and dtypes, packed or not.

    Returns:
        A stack: a mask whose every leaf has one more, leading axis K. One mask is not a
        stack: where no parameters tell, its first axis is taken for K.

    Raises:
        ValueError: If there is no mask, or two differ in structure, shape or dtype. The
            message lists every bad leaf.

    Example:
        >>> stacking.stack([{"w": jnp.array([True])}, {"w": jnp.array([False])}])
        {'w': Array([[ True],
               [False]], dtype=bool)}
    """
    fn = "maskjax.stacking.stack"
    masks = list(masks)
    if not masks:
        raise ValueError(f"`{fn}` needs at least one mask, got none.")
    for i, mask in enumerate(masks[1:], start=1):
        names = ("mask 0", f"mask {i}")
        checks.same_shapes(masks[0], mask, fn=fn, names=names)
        checks.same_kinds(masks[0], mask, fn=fn, names=names)
    checks.together(fn=fn, masks=masks)
    return _stack(masks)


@jax.jit
def _stack(masks: list[Mask]) -> Mask:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *masks)


def unstack(stack: Mask) -> list[Mask]:
    """Undo `stack`.

    Args:
        stack: A stack of K masks.

    Returns:
        A list of K masks.

    Raises:
        ValueError: If the leaves disagree about K.

    Example:
        >>> stacking.unstack({"w": jnp.array([[True], [False]])})[1]
        {'w': Array([False], dtype=bool)}
    """
    fn = "maskjax.stacking.unstack"
    k = checks.members(stack, fn=fn)
    checks.together(fn=fn, stack=stack)
    return _unstacked(stack, k)


@functools.partial(jax.jit, static_argnames="k")
def _unstacked(stack: Mask, k: int) -> list[Mask]:
    return [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(k)]


def take(stack: Mask, i: ArrayLike) -> Mask:
    """One mask of a stack.

    Args:
        stack: A stack of K masks.
        i: An integer in [-K, K), or an array of integers, whose shape then leads the
            leaves' shapes. Traced indices are clipped to that range.

    Returns:
        A mask, or a stack of them where `i` has axes.

    Raises:
        TypeError: If `i` is not an integer.
        ValueError: If an index is known to be out of range, or the leaves disagree
            about K.

    Example:
        >>> stacking.take({"w": jnp.array([[True], [False]])}, -1)
        {'w': Array([False], dtype=bool)}
    """
    fn = "maskjax.stacking.take"
    k = checks.members(stack, fn=fn)
    checks.together(fn=fn, stack=stack, i=i)
    if not jnp.issubdtype(jnp.result_type(i), jnp.integer):
        raise TypeError(f"`{fn}` needs `i` as an integer, got {checks.kind_of(i)}.")
    slots.in_range(i, k, fn=fn, name="i")
    return _take(stack, jnp.asarray(i), k)


@functools.partial(jax.jit, static_argnums=2)
def _take(stack: Mask, index: Array, k: int) -> Mask:
    if index.dtype.itemsize < 4:  # K may be more than it holds
        index = index.astype(jnp.int32)
    index = jnp.where(index < 0, index + k, index)
    return jax.tree.map(lambda leaf: rows.read(leaf, index), stack)


def size(stack: Mask) -> int:
    """How many masks a stack holds.

    Args:
        stack: A stack of K masks.

    Returns:
        K, a Python integer.

    Raises:
        ValueError: If the leaves disagree about K, or there is none.

    Example:
        >>> stacking.size({"w": jnp.ones((5, 2, 3), bool)})
        5
    """
    return checks.members(stack, fn="maskjax.stacking.size")


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
    masks on features (see `layers`), keys, or whole parameters. Work that does not
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
            the other samples of its batch.
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
    members, inputs = placement.whole((members, inputs))
    members, places, groups = _grouped(jnp.asarray(members), last, group)

    def of_group(row: Array) -> Any:
        mask = take(stack, members[row[0]])
        chosen = jax.tree.map(lambda x: jnp.take(x, row, axis=0, mode="clip"), inputs)
        return apply(masking.apply(params, mask), *chosen)

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


def mix(stack: Mask, coefficients: Array) -> SoftMask:
    """The weighted sum of a stack's masks: sum(coefficients[k] * m_k).

    Masks on several devices are read there, and a sum of one mask's shape travels. On
    an Auto mesh, bits of fewer than 32 masks a device are gathered instead.

    Args:
        stack: A stack of K masks. Packed leaves are never unpacked as a whole.
        coefficients: [K], floating.

    Returns:
        A soft mask with one mask's shapes, in the dtype of `coefficients`.

    Raises:
        TypeError: If the coefficients are not floating, or a leaf is not a mask.
        ValueError: If there are not K coefficients, or the leaves disagree about K.

    Example:
        >>> stack = {"w": jnp.array([[True, True], [True, False]])}
        >>> stacking.mix(stack, jnp.array([0.25, 0.5]))
        {'w': Array([0.75, 0.25], dtype=float32)}

    References:
        Wortsman et al., arXiv:2006.14769, section 3.3, equation 2.
    """
    fn = "maskjax.stacking.mix"
    checks.boolean(stack, fn=fn, name="stack")
    checks.coefficients(coefficients, stack, fn=fn)
    checks.packed(stack, fn=fn, stacked=True)
    checks.beside(stack, fn=fn, name="stack", coefficients=coefficients)
    return trees.map_mask(lambda leaf: _mix_leaf(leaf, coefficients), stack)


def _mix_leaf(leaf: Array | PackedMask, coefficients: Array) -> Array:
    if isinstance(leaf, PackedMask):
        return packing.mix_leaf(leaf, coefficients)
    return rows.mixed(leaf, coefficients)
