"""What statistics say."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from maskjax._core import checks, trees
from maskjax._core.trees import Array, Params
from maskjax.calibration._statistics import Statistics, is_statistics


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
        ValueError: If there are no statistics, or some are not finite, unless they are
            traced.

    Example:
        >>> apply = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.ones((2, 5))}, jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> stats = calibration.init(apply, params, x)
        >>> stats = calibration.update(apply, stats, params, x)
        >>> calibration.norms(stats)["w"].ravel()
        Array([5., 1.], dtype=float32)
    """
    _check(stats, fn="maskjax.calibration.norms")
    return jax.tree.map(
        lambda own: None if own is None else _norms(own), stats, is_leaf=is_statistics
    )


def _norms(stats: Statistics) -> Array:
    sums, axes, shape = stats.sums, stats.axes, stats.shape
    if stats.gram:
        sums = jnp.diagonal(sums, axis1=-2, axis2=-1)
    sums = jnp.sqrt(sums)
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
    """The statistics themselves, if all of them are finite.

    Args:
        stats: Tree of `Statistics`, or `None`, whose values are known.

    Returns:
        The same tree, uncopied.

    Raises:
        TypeError: If a leaf is neither `Statistics` nor `None`.
        ValueError: If there are no statistics, or some are not finite: the kernels are
            named. Their inputs were inf or nan, or too large to be squared.

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
    _check(stats, fn="maskjax.calibration.check")
    return stats


def _check(stats: Params, *, fn: str) -> None:
    leaves, treedef = jax.tree.flatten(stats, is_leaf=is_statistics)
    found = [(leaf,) for leaf in leaves]

    def wrong(own: Any) -> str | None:
        return None if is_statistics(own) else checks.kind_of(own)

    needs = f"`{fn}` needs every leaf of `stats` as `Statistics`, or None"
    checks.every(wrong, found, stats, needs, TypeError, is_statistics)
    if all(own is None for own in leaves):
        raise ValueError(f"`{fn}` needs `stats` of at least one kernel, got none.")
    check_finite(stats, f"`{fn}` needs finite statistics")


def check_finite(stats: Params, needs: str) -> None:
    """Raise if sums whose values are known are inf or nan, and name the kernels."""
    sums = {
        path: own.sums
        for path, own in named(stats)
        if own is not None and checks.is_readable(own.sums)
    }
    if not sums:
        return
    with jax.ensure_compile_time_eval():  # under `jit` what is known stays known
        counts = jax.device_get(_bad(sums))
    lines = [
        f"{path}: {int(count):,} of {sums[path].size:,} sums are inf or nan"
        for path, count in counts.items()
        if count
    ]
    checks.raise_all(lines, needs)


def named(stats: Params) -> list[tuple[str, Statistics | None]]:
    """Statistics with the paths of their kernels."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(stats, is_leaf=is_statistics)
    return [(trees.path_string(path), own) for path, own in leaves]


@jax.jit
def _bad(sums: dict[str, Array]) -> dict[str, Array]:
    return {path: jnp.sum(~jnp.isfinite(x)) for path, x in sums.items()}
