"""Networks of one shape as one network, as many times as wide."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maskjax._core import checks, trees
from maskjax._core.trees import Array, Mask, Params, Predicate

_FN = "maskjax.recipes.deep_ensemble"


class Wide(NamedTuple):
    """An ensemble as one network; a pytree.

    Attributes:
        params: Its parameters, 0 off the blocks.
        mask: The blocks, for `optim.mask_updates`: True belongs to a member; `None`
            where all does.
        members: A stack of M masks for `stacking.predict`; under each a member is left.
    """

    params: Params
    mask: Mask
    members: Mask


def wide(params: Params, *, inputs: Predicate) -> Wide:
    """M networks as one, M times as wide, whose masks are block-diagonal.

    For layers that keep features apart but for their kernels, dense or convolutional,
    without flattening places between them; and for any loss that is the members' sum.

    Args:
        params: [M, ...]. Leaves of one axis besides M are features; of more, kernels
            [..., in, out].
        inputs: The kernels that read the networks' input, which members share.

    Returns:
        The wide network. Its outputs are the members', side by side: `blocks`.

    Raises:
        ValueError: If leaves disagree about M, one has no axis besides, or `inputs`
            chooses none.

    Example:
        >>> params = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 4, 1))}
        >>> net = deep_ensemble.wide(params, inputs=where.matching("a"))
        >>> jax.tree.map(jnp.shape, net.params)
        {'a': (3, 8), 'b': (8, 2)}
        >>> (jnp.ones((5, 3)) @ net.params["a"] @ net.params["b"]).shape
        (5, 2)
    """
    fn = f"{_FN}.wide"
    size = checks.members(params, fn=fn)
    named = trees.named_leaves(params)
    checks.raise_all(
        (f"{path}: {checks.kind_of(leaf)}" for path, leaf in named if leaf.ndim < 2),
        f"`{fn}` needs leaves with an axis besides that of members",
    )
    first = {path for path, leaf in named if leaf.ndim > 2 and inputs(path, leaf[0])}
    if not first:
        raise ValueError(
            f"`{fn}` needs `inputs` to choose at least one kernel, but {inputs!r} "
            f"chooses none of: {', '.join(path for path, _ in named)}."
        )
    own = jnp.eye(size, dtype=bool)

    def of_leaf(path: trees.Path, leaf: Array) -> tuple[Array, Array | None, Array]:
        """The wide leaf, its blocks, and what each member keeps of it."""
        ones = (1,) * (leaf.ndim - 3)
        columns = jnp.repeat(own, leaf.shape[-1], axis=1)
        if leaf.ndim == 2:
            return leaf.ravel(), None, columns
        if path in first:
            side = jnp.moveaxis(leaf, 0, -2)
            side = side.reshape(*side.shape[:-2], columns.shape[1])
            return side, None, columns.reshape(size, *ones, 1, -1)
        rows = jnp.repeat(own, leaf.shape[-2], axis=1)
        block = jnp.repeat(rows, leaf.shape[-1], axis=0).T
        square = jnp.tile(jnp.moveaxis(leaf, 0, -3), size)  # columns, M times
        square = square.reshape(*leaf.shape[1:-2], *block.shape)
        block = block.reshape(*ones, *block.shape)
        kept = jnp.where(block, square, jnp.zeros((), leaf.dtype))
        return kept, block, rows.reshape(size, *ones, -1, 1)

    made = [of_leaf(path, leaf) for path, leaf in named]
    tree = jax.tree.structure(params)
    return Wide(*(tree.unflatten(part) for part in zip(*made, strict=True)))


def blocks(outputs: Array, *, members: int) -> Array:
    """What a wide network says, member by member.

    Args:
        outputs: [..., M * D].
        members: M.

    Returns:
        [M, ..., D].

    Raises:
        ValueError: If the last axis is not a multiple of M.

    Example:
        >>> deep_ensemble.blocks(jnp.arange(4), members=2)
        Array([[0, 1],
               [2, 3]], dtype=int32)
    """
    fn = f"{_FN}.blocks"
    checks.at_least(members, 1, fn=fn, name="members")
    if not outputs.ndim or outputs.shape[-1] % members:
        raise ValueError(
            f"`{fn}` needs `outputs` [..., {members} * D], got shape {outputs.shape}."
        )
    apart = outputs.reshape(*outputs.shape[:-1], members, -1)
    return jnp.moveaxis(apart, -2, 0)
