"""Statistics of a network's kernels: zeros, then batch after batch added to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.typing import ArrayLike

from maskjax._core import checks, placement
from maskjax._core.trees import Params, Predicate
from maskjax.calibration import _placing, _plan
from maskjax.calibration._statistics import Statistics
from maskjax.where import kernels


def init(
    apply: Callable[..., Any],
    params: Params,
    *inputs: Any,
    where: Predicate = kernels,
    gram: bool = True,
    limit: int | None = None,
) -> Params:
    """Statistics of no data, for each kernel, to which `update` adds batches.

    The function is traced, and each kernel is followed to the dot products and
    convolutions where it meets data; nothing is computed. The axes of kernels are those
    that tracing finds, unless `where` was told others by hand.

    Args:
        apply: `(params, *inputs) -> output`.
        params: Tree of arrays, or of `jax.ShapeDtypeStruct`s, with shardings if the
            statistics are to be sharded.
        *inputs: A batch, or `jax.ShapeDtypeStruct`s of one.
        where: Which leaves are kernels.
        gram: Whether to keep Gram matrices, [d, d] for a kernel whose outputs meet d
            inputs each, or sums of squares alone, [d].
        limit: The most bytes that the statistics may take, all together. `None` takes
            what is needed; `memory` tells.

    Returns:
        A tree like `params`, `None` for leaves that are not chosen, with a `Statistics`
        of zeros for each kernel: float32, or float64 where the data are. They are on
        the devices of the kernels, sharded as their stacks are, and their rows as the
        kernels' first input axis is, if no other input axis is sharded.

    Raises:
        TypeError: If `apply` is no function, a chosen leaf not floating, or `limit` no
            whole number.
        ValueError: If `where` chooses nothing, there are no inputs, the axes of a
            chosen leaf are in doubt, it does not meet data, its outputs do not meet the
            same data, some of its inputs never meet together in a product (with
            `gram`), or the statistics take more than `limit`.

    Example:
        >>> apply = lambda params, x: x @ params["w"]
        >>> params = {"w": jnp.ones((2, 5))}
        >>> x = jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> stats = calibration.init(apply, params, x)
        >>> calibration.update(apply, stats, params, x)["w"].sums
        Array([[25.,  3.],
               [ 3.,  1.]], dtype=float32)
    """
    fn = "maskjax.calibration.init"
    planned = _plan.of(apply, params, inputs, where, gram=gram, fn=fn)
    _plan.check_limit(planned, params, limit, fn=fn)
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [
            None if stats is None else stats._replace(_placing.zeros(stats, leaf))
            for stats, leaf in zip(planned, leaves, strict=True)
        ]
    )


def update(
    apply: Callable[..., Any],
    stats: Params,
    params: Params,
    *inputs: Any,
    weights: ArrayLike | None = None,
) -> Params:
    """Statistics with a batch added. It is pure, and meant to be compiled.

    As in `jax.jit(functools.partial(calibration.update, apply), donate_argnums=0)`.
    Inside `shard_map` each device adds its rows; `jax.lax.psum` adds up the devices. On
    a mesh of Auto axes the compiler decides how to shard what a program returns, for
    which devices may exchange parts of sums that are sharded. Add
    `out_shardings=jax.tree.map(lambda x: x.sharding, stats)` for what was there before.

    Args:
        apply: `(params, *inputs) -> output`. Products in the backward pass of a
            gradient are not counted.
        stats: From `init` or `update`.
        params: Tree of arrays.
        *inputs: The batch. Everything else that `apply` uses counts as a constant.
        weights: How much each row of the data counts, [batch] or [batch, positions],
            not negative: a factor for the row's squares and products, 0 for padding.
            Its axes are the leading axes of what every kernel meets. Rows of weight 0
            are not counted, even if they are inf or nan. But `apply` computes with all
            rows: where it mixes them, padding has to be finite and masked there, as
            keys are in attention. `None` counts each row once.

    Returns:
        A tree like `stats`. A kernel that is used twice gets the sums of both uses.

    Raises:
        TypeError: If `apply` is no function, a leaf of `stats` neither `Statistics` nor
            `None`, or `weights` are no real numbers.
        ValueError: If `stats` are not those of these parameters and function, there are
            no inputs, a kernel does not meet data as it did in `init`, `weights` do not
            fit the leading axes of what it meets, or are negative or not finite, unless
            they are traced: then the sums are nan.

    Example:
        >>> apply = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.ones((2, 5))}, jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> stats = calibration.init(apply, params, x, gram=False)
        >>> stats = calibration.update(apply, stats, params, x)
        >>> calibration.update(apply, stats, params, x)["w"].sums
        Array([50.,  2.], dtype=float32)
    """
    # Imported here, because the types of jaxprs add 4 % to the time to import JAX.
    from maskjax._core import walk

    fn = "maskjax.calibration.update"
    found = _plan.matched(params, stats, fn=fn)
    rows = None if weights is None else checks.row_weights(weights, fn=fn)
    sums = walk.statistics(
        apply,
        params,
        inputs,
        [None if own is None else own.axes for _, own in found],
        gram=any(own is not None and own.gram for _, own in found),
        fn=fn,
        weights=rows,
    )
    _plan.check_same(found, sums, params, fn=fn)
    return jax.tree.structure(params).unflatten(
        [
            None if own is None else _added(own, sums[i])
            for i, (_, own) in enumerate(found)
        ]
    )


def memory(
    apply: Callable[..., Any],
    params: Params,
    *inputs: Any,
    where: Predicate = kernels,
    gram: bool = True,
) -> _plan.Memory:
    """How many bytes the statistics of `init` take, before they are taken.

    Args:
        apply: `(params, *inputs) -> output`.
        params: Tree of arrays, or of `jax.ShapeDtypeStruct`s, with shardings for what
            each device takes.
        *inputs: A batch, or `jax.ShapeDtypeStruct`s of one.
        where: Which leaves are kernels.
        gram: As in `init`.

    Returns:
        The bytes of all, of each kernel by its path, the dearest first, and of what
        each device has of them. A step of `update` takes about as much again unless it
        donates, beside what `apply` takes and, for convolutions, copies of the image
        for each place of the window.

    Raises:
        TypeError: As `init`.
        ValueError: As `init`.

    Example:
        >>> apply = lambda params, x: x @ params["w"]
        >>> x = jax.ShapeDtypeStruct((64, 1000), "bfloat16")
        >>> params = {"w": jax.ShapeDtypeStruct((1000, 10), "bfloat16")}
        >>> calibration.memory(apply, params, x)
        Memory(total=4000000, kernels={'w': 4000000}, per_device=4000000)
    """
    fn = "maskjax.calibration.memory"
    planned = _plan.of(apply, params, inputs, where, gram=gram, fn=fn)
    return _plan.bytes_of(planned, params)


def _added(stats: Statistics, new: Any) -> Statistics:
    """The statistics of more data."""
    new = new.reshape(stats.sums.shape).astype(stats.sums.dtype)
    new = placement.place(new, placement.spec_of(stats.sums), like=stats.sums)
    return stats._replace(stats.sums + new)
