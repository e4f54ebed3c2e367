"""Initializers on the leaves of a tree, each in the layout that its axes have."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn.initializers import variance_scaling

from maskjax import packing
from maskjax._core import checks, dtypes, layout, placement, trees
from maskjax._core.axes import Axes
from maskjax._core.trees import Array, Mask, Params, Predicate, Scores
from maskjax.initializer._draws import Elementwise, Initializer, check_draw
from maskjax.where import kernels

_FANS = "for the fan-in"


def redraw(
    draw: Initializer,
    params: Params,
    *,
    where: Predicate = kernels,
    key: Array,
) -> Params:
    """The same parameters with some of them drawn anew.

    Args:
        draw: An initializer, `(key, shape, dtype) -> array`. It gets the shape of each
            kernel as (window..., inputs, outputs), or the leaf's own shape if it is
            `elementwise`, and returns an array of that shape and dtype.
        params: Tree of arrays. Leaves that are not chosen are passed through uncopied.
        where: Which leaves are drawn, and what their axes mean.
        key: A typed key; every leaf gets its own, and every index of a stack.

    Returns:
        A tree like `params`, of the same shapes and dtypes. Each leaf is sharded as the
        one that it replaces, and drawn there.

    Raises:
        TypeError: If `draw` is not a function, a chosen leaf is not floating, or the
            key is not a typed key.
        ValueError: If `where` chooses nothing; if the axes of a chosen leaf are not
            known or have no inputs, unless `draw` is `elementwise`; or if `draw`
            refuses a leaf's shape, or returns another shape or dtype. Every such leaf
            is named.

    Example:
        >>> params = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
        >>> draw = initializer.signed_constant()
        >>> new = initializer.redraw(draw, params, key=jax.random.key(1))
        >>> abs(new["kernel"].ravel()), new["bias"]
        (Array([1., 1.], dtype=float32), Array([0.], dtype=float32))
    """
    fn, why = "maskjax.initializer.redraw", f"{_FANS}, unless `draw` is `elementwise`"
    drawn = _drawn(draw, params, where, key, fn=fn, why=why)
    leaves, treedef = jax.tree.flatten(params)
    pairs = zip(leaves, drawn, strict=True)
    return treedef.unflatten([old if new is None else new for old, new in pairs])


def scores(
    params: Params,
    *,
    draw: Initializer = variance_scaling(1 / 3, "fan_in", "uniform"),
    where: Predicate = kernels,
    key: Array,
) -> Scores:
    """Scores to train, for the parameters that carry a mask.

    Args:
        params: Tree of arrays. Only shapes and dtypes are used.
        draw: An initializer, `(key, shape, dtype) -> array`, as in `redraw`. The
            default is uniform in +-1 / sqrt(fan_in), the usual start of supermasks.
        where: Which leaves carry a mask, and what their axes mean.
        key: A typed key; every leaf gets its own, and every index of a stack.

    Returns:
        A tree of scores in the parameters' dtypes, sharded as the parameters are;
        `None` where `where` does not choose.

    Raises:
        TypeError: If `draw` is not a function, a chosen leaf is not floating, or the
            key is not a typed key.
        ValueError: If `where` chooses nothing; if the axes of a chosen leaf are not
            known or have no inputs, unless `draw` is `elementwise`; or if `draw`
            refuses a leaf's shape, or returns another shape or dtype. Every such leaf
            is named.

    Example:
        >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
        >>> scores = initializer.scores(params, key=jax.random.key(0))
        >>> bool((abs(scores["kernel"]) <= 0.5).all()), scores["bias"]
        (True, None)

    References:
        He et al., "Delving Deep into Rectifiers", ICCV 2015. arXiv:1502.01852, section
        2.2. The code of arXiv:1911.13299 and arXiv:2006.14769 has this default.
    """
    drawn = _drawn(draw, params, where, key, fn="maskjax.initializer.scores", why=_FANS)
    return jax.tree.structure(params).unflatten(drawn)


def scores_of(
    params: Params,
    mask: Mask,
    *,
    gain: float = 3**-0.5,
    dtype: Any = jnp.float32,
    where: Predicate = kernels,
) -> Scores:
    """Scores to train that start from a mask: at least 0 exactly where it keeps.

    Args:
        params: The parameters that the mask is for. Only shapes are used, for the
            fan-in: a mask on units has length 1 along its inputs.
        mask: A mask, packed or not, or a soft mask such as the mean of many.
        gain: The size of the scores times sqrt(fan_in). With the default their root
            mean square is that of `scores`.
        dtype: The dtype of the scores, usually that of the weights.
        where: What the axes of the leaves with a mask mean. It chooses none.

    Returns:
        A tree of scores, (2 m - 1) * gain / sqrt(fan_in) for a leaf m of the mask.

    Raises:
        TypeError: If `where` is not a function, or the mask not a tree of arrays.
        ValueError: If the mask does not fit `params`, or the axes of a leaf with a mask
            are not known or have no inputs.

    Example:
        >>> params = {"w": jnp.ones((3, 1))}
        >>> kept = {"w": jnp.array([[True], [False], [True]])}
        >>> initializer.scores_of(params, kept)["w"].ravel()
        Array([ 0.333..., -0.333...,  0.333...], dtype=float32)

    References:
        Wortsman et al., arXiv:2006.14769, appendix on transfer: the mean of the masks.
        Here it is centered, because scores of at least 0 are kept.
    """
    fn = "maskjax.initializer.scores_of"
    checks.predicate(where, fn=fn)
    mask = checks.spread(params, mask)
    pairs = checks.shaped_like(params, mask, fn=fn, names=("params", "mask"))
    needed = [leaf is not None for _, leaf in pairs]
    every = layout.fans(params, needed, where, fn=fn, why=_FANS)
    scored = [
        None if axes is None else _centered(leaf, gain, axes.fan_in(np.shape(p)), dtype)
        for (p, leaf), axes in zip(pairs, every, strict=True)
    ]
    return jax.tree.structure(params).unflatten(scored)


def signed_deviation(params: Params, *, where: Predicate = kernels) -> Params:
    """The same parameters, some of them plus or minus their standard deviation.

    The deviation is that of the leaf, or of each index of its stack by itself. A leaf
    that is sharded over its stack is gathered.

    Args:
        params: Tree of arrays, already drawn. Signs stay; 0.0 counts as positive, -0.0
            as negative. Leaves that are not chosen are passed through uncopied.
        where: Which leaves become signed constants, and which of their axes stack.

    Returns:
        A tree like `params`, of the same shapes and dtypes.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If `where` chooses nothing, or a chosen leaf may be a stack because
            its axes are not known. Kernels of 2 axes are none.

    Example:
        >>> initializer.signed_deviation({"kernel": jnp.array([[1.0, -3.0]])})
        {'kernel': Array([[ 2., -2.]], dtype=float32)}

    References:
        Zhou et al., "Deconstructing Lottery Tickets", NeurIPS 2019. arXiv:1905.01067,
        section 4 ("signed constant").
    """
    fn = "maskjax.initializer.signed_deviation"
    picks = checks.chosen(params, where, fn=fn)
    why = "for the standard deviation of each layer"
    every = layout.stacks(params, picks, where, fn=fn, why=why)
    leaves, treedef = jax.tree.flatten(params)
    chosen = zip(leaves, picks, every, strict=True)
    return treedef.unflatten([_constant(x, a) if pick else x for x, pick, a in chosen])


# Outside of `jit` a loop over layers would be compiled anew in every call.
@functools.partial(jax.jit, static_argnames="axes")
def _constant(leaf: Array, axes: Axes | None) -> Array:
    wide = leaf.astype(dtypes.at_least_float32(leaf.dtype))
    return jnp.copysign(_deviations(wide, axes).astype(leaf.dtype), leaf)


def _deviations(leaf: Array, axes: Axes | None) -> Array:
    """The standard deviation; if there is a stack, one for each index of it."""
    if axes is None or not axes.stack:
        return _deviation(leaf)
    stack, others = tuple(sorted(axes.stack)), layout.of_one(axes)
    layers = jnp.transpose(placement.gathered(leaf, *stack), (*stack, *others))
    layers = layers.reshape(-1, *layers.shape[len(stack) :])
    each = lax.map(_deviation, layers)
    return each.reshape([n if i in stack else 1 for i, n in enumerate(leaf.shape)])


def _deviation(layer: Array) -> Array:
    # Sums are rounded alike in a stack and without: layers come one after another, and
    # nothing is fused with the sum.
    return jnp.std(lax.optimization_barrier(layer))


def _centered(leaf: Any, gain: float, fan_in: int, dtype: Any) -> Array:
    centered = 2 * jnp.asarray(packing.unpack_leaf(leaf), jnp.float32) - 1
    return (centered * (gain * max(fan_in, 1) ** -0.5)).astype(dtype)


def _drawn(
    draw: Initializer,
    params: Params,
    where: Predicate,
    key: Array,
    *,
    fn: str,
    why: str,
) -> list[Array | None]:
    """A draw for each leaf of `params` that `where` chooses, `None` for the others."""
    checks.typed_key(key, fn=fn)
    checks.beside(params, fn=fn, key=key)
    check_draw(draw, fn=fn)
    picks = checks.chosen(params, where, fn=fn)
    every: list[Axes | None] = [None] * len(picks)
    if not isinstance(draw, Elementwise):
        every = layout.fans(params, picks, where, fn=fn, why=why)
    drawn: list[Array | None] = [None] * len(picks)
    refused = {}
    for i, leaf in enumerate(jax.tree.leaves(params)):
        if picks[i]:
            try:
                drawn[i] = _of_leaf(draw, jax.random.fold_in(key, i), leaf, every[i])
            except ValueError as error:
                refused[i] = str(error)
    if refused:
        paths = [path for path, _ in trees.named_leaves(params)]
        lines = (f"{paths[i]}: {text}" for i, text in refused.items())
        needs = f"`{fn}` needs `draw` to return the shape and dtype that it is given"
        checks.raise_all(lines, needs)
    return drawn


def _of_leaf(draw: Initializer, key: Array, leaf: Any, axes: Axes | None) -> Array:
    shape, dtype = tuple(leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype)
    return placement.made(_of_shape, leaf, key, static=(draw, shape, dtype, axes))


def _of_shape(
    key: Array, draw: Initializer, whole: tuple[int, ...], dtype: Any, axes: Axes | None
) -> Array:
    if not math.prod(whole):  # fans of 0 would divide by 0
        return jnp.zeros(whole, dtype)
    if axes is None:
        return _asked(draw, key, whole, dtype)
    if axes.lookup:
        stack = (*axes.stack, *axes.inputs)
        axes = dataclasses.replace(axes, stack=stack, inputs=(), lookup=False)
    shape = layout.canonical(axes, whole)
    of_one = lambda key: _asked(draw, key, shape, dtype)  # noqa: E731
    if axes.stack:
        size = math.prod(whole[axis] for axis in axes.stack)
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        new = jax.vmap(of_one)(fold(key, jnp.arange(size, dtype=jnp.uint32)))
    else:
        new = of_one(key)
    return layout.restored(new, axes, whole)


def _asked(draw: Initializer, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """A draw, which has to be what was asked for."""
    new = draw(key, shape, dtype)
    asked = jax.ShapeDtypeStruct(shape, dtype)
    if checks.kind_of(new) != checks.kind_of(asked):
        raise ValueError(f"{checks.kind_of(new)}, asked for {checks.kind_of(asked)}")
    return dtypes.as_array(new)
