"""Masks on the inputs of kernels, for networks without layers that mask features."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from maskjax._core import checks, layout
from maskjax._core.axes import Axes
from maskjax._core.trees import Array, Mask, Params, Predicate
from maskjax.recipes.masksembles._masks import masks as feature_masks

_FN = "maskjax.recipes.masksembles."


def init(
    params: Params,
    *,
    where: Predicate,
    members: int = 4,
    scale: float = 2.0,
    key: Array,
) -> Mask:
    """Masks on the input rows of kernels, which mask the features that come in: 2.

    Args:
        params: Tree of arrays; only shapes are read.
        where: Chooses the kernels that follow a masked layer, and knows which of their
            axes are inputs. Each kernel, and each index of a stack, gets masks of its
            own; member i uses mask i of every kernel.
        members: N, at least 1.
        scale: s, at least 1; with 1 masks keep everything.
        key: A typed key. Every leaf gets its own.

    Returns:
        A stack of N masks for `stacking.predict`: a leaf has N in front, then the
        kernel's axes, with length 1 along windows and outputs: [N, C, 1] for (C, out),
        [N, 1, C] for (out, C).

    Raises:
        TypeError: If a count is not a whole Python number, the scale not a number, the
            key not typed, or a chosen leaf not floating.
        ValueError: If a count is below 1, the scale is below 1 or not finite, or
            `where` chooses nothing, or a leaf whose inputs are not known.

    Example:
        >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
        >>> stack = masksembles.init(
        ...     params, where=where.matching("b"), key=jax.random.key(0)
        ... )
        >>> stack["a"], stack["b"].shape
        (None, (4, 8, 1))
    """
    fn = _FN + "init"
    checks.typed_key(key, fn=fn)
    picks = checks.chosen(params, where, fn=fn)
    why = "to mask the features that come in"
    roles = layout.fans(params, picks, where, fn=fn, why=why)
    leaves, treedef = jax.tree.flatten(params)
    how = {"members": members, "scale": scale}

    def of_leaf(leaf: Any, axes: Axes, key: Array) -> Array:
        shape = [
            n if i in (*axes.stack, *axes.inputs) else 1
            for i, n in enumerate(leaf.shape)
        ]
        channels = math.prod(leaf.shape[axis] for axis in axes.inputs)
        layers = math.prod(leaf.shape[axis] for axis in axes.stack)
        keys = jax.random.split(key, layers) if axes.stack else [key]
        each = jnp.stack(
            [feature_masks(channels, **how, key=one) for one in keys], axis=1
        )
        return jax.vmap(lambda x: layout.restored(x, axes, shape))(each)

    count_up = itertools.count()
    return treedef.unflatten(
        None
        if axes is None
        else of_leaf(leaf, axes, jax.random.fold_in(key, next(count_up)))
        for leaf, axes in zip(leaves, roles, strict=True)
    )


def rows(masks: Array, kernel: Array) -> Array:
    """Masks on features as masks on the input rows of the kernel that follows: 2.

    Args:
        masks: [N, C].
        kernel: [..., C, out], as Flax's dense and convolution kernels; or [k * C, out]
            if k places of C channels each were flattened, channels last.

    Returns:
        [N, 1, ..., C, 1], or [N, k * C, 1].

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> masksembles.rows(jnp.array([[True, False]]), jnp.ones((4, 3)))[0, :, 0]
        Array([ True, False,  True, False], dtype=bool)
    """
    fits = masks.ndim == 2 and masks.size and kernel.ndim >= 2
    if not fits or kernel.shape[-2] % masks.shape[1]:
        raise ValueError(
            f"`{_FN}rows` needs `masks` [N, C] and `kernel` [..., k * C, out], got "
            f"{masks.shape} and {kernel.shape}."
        )
    return _rows(masks, kernel.shape)


@functools.partial(jax.jit, static_argnames="shape")
def _rows(masks: Array, shape: tuple[int, ...]) -> Array:
    tiled = jnp.tile(masks, (1, shape[-2] // masks.shape[1]))
    return tiled.reshape(len(masks), *(1,) * (len(shape) - 2), -1, 1)
