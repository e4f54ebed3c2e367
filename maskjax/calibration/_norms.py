"""What statistics say."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskjax._core.trees import Array, Params
from maskjax.calibration import _sound
from maskjax.calibration._statistics import Statistics, is_statistics, squares


def norms(stats: Params) -> Params:
    """The L2 norm of what each entry of a kernel meets, over all batches.

    It is what `score.input_norms` gives for all of the data at once, so that
    `score.wanda(params, calibration.norms(stats))` scores parameters.

    Args:
        stats: Tree of `Statistics`, or `None`.

    Returns:
        A tree like `stats` of arrays of the kernel's rank. They have length 1 along its
        outputs, or full length if groups of them meet inputs of their own.

    Raises:
        TypeError: If a leaf is neither `Statistics` nor `None`.
        ValueError: As `check`, unless they are traced: then norms of sums that are not
            finite are inf or nan, and those of negative sums nan.

    Example:
        >>> apply = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.ones((2, 5))}, jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> stats = calibration.init(apply, params, x)
        >>> stats = calibration.update(apply, stats, params, x)
        >>> calibration.norms(stats)["w"].ravel()
        Array([5., 1.], dtype=float32)
    """
    _sound.refuse(stats, fn="maskjax.calibration.norms")
    return jax.tree.map(
        lambda own: None if own is None else _norms(own), stats, is_leaf=is_statistics
    )


def _norms(stats: Statistics) -> Array:
    axes, shape = stats.axes, stats.shape
    sums = jnp.sqrt(squares(stats.sums, gram=stats.gram))
    stack = [shape[axis] for axis in axes.stack]
    outputs = [shape[axis] for axis in axes.outputs]
    ones = [1] * len(outputs)
    if stats.groups > 1:
        n = len(stack)
        each = -(-_size(outputs) // stats.groups)
        sums = jnp.repeat(sums, each, axis=n, total_repeat_length=_size(outputs))
        ones = outputs
    sums = sums.reshape(*stack, *ones, *[shape[axis] for axis in stats.inputs])
    order = (*axes.stack, *axes.outputs, *stats.inputs)
    return sums.transpose([order.index(axis) for axis in range(len(shape))])


def _size(lengths: list[int]) -> int:
    size = 1
    for n in lengths:
        size *= n
    return size


def check(stats: Params) -> Params:
    """The statistics themselves, if they are such as data give.

    A kernel that no row reaches, an expert say, passes: its sums and norms are 0. So
    all its Wanda scores are equal, and `sparsegpt.prune` goes by magnitude there.

    Args:
        stats: Tree of `Statistics`, or `None`. Traced values are not looked at.

    Returns:
        The same tree, uncopied.

    Raises:
        TypeError: If a leaf is neither `Statistics` nor `None`.
        ValueError: If there are no statistics, or all sums of all kernels are 0: no
            batch was added, or no row counted. If some are not finite, because inputs
            were inf or nan or too large to be squared, or sums of squares are negative:
            the kernels are named.

    Example:
        >>> apply = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.ones((2, 5))}, jnp.array([[3.0, jnp.nan]])
        >>> stats = calibration.init(apply, params, x)
        >>> calibration.check(calibration.update(apply, stats, params, x))
        Traceback (most recent call last):
        ...
        ValueError: `maskjax.calibration.check` needs finite statistics, got:
          w: 3 of 4 sums are inf or nan
    """
    _sound.refuse(stats, fn="maskjax.calibration.check")
    return stats
