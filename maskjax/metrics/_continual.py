"""Continual learning: accuracy of tasks learned one after the other, and their cost."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maskjax._core import checks, dtypes, placement, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array


def average_accuracy(accuracy: ArrayLike) -> Array:
    """The mean accuracy over all tasks after learning the last one.

    Args:
        accuracy: [..., R, T], an accuracy matrix of R >= T rows. Only the last row, the
            accuracies after learning all tasks, is used.

    Returns:
        [...].

    Raises:
        TypeError: If the matrix is not floating.
        ValueError: If it has fewer rows than tasks, or is empty.

    Example:
        >>> print(metrics.average_accuracy(jnp.array([[1.0, 0.25], [0.75, 0.5]])))
        0.625

    References:
        Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS
        2017. arXiv:1706.08840, section 2 (ACC).
    """
    return _average_accuracy(_matrix(accuracy, "average_accuracy", 1))


def backward_transfer(
    accuracy: ArrayLike, *, rows: Sequence[int] | None = None
) -> Array:
    """How learning later tasks changed earlier ones: above 0 it helped, below it hurt.

    The mean, over all tasks but the last, of the final accuracy minus the accuracy
    just after the task was learned. The final accuracy is that of the last row; where
    it comes later than the last task, that task counts too.

    Args:
        accuracy: [..., R, T], an accuracy matrix, T at least 2. Accuracies on a task
            that is not learned yet are not used and may be nan.
        rows: T increasing integers, not traced, needed if there are more rows than
            tasks: the row just after each task was learned. `None`: row j for task j.

    Returns:
        [...].

    Raises:
        TypeError: If the matrix is not floating, or `rows` not such integers.
        ValueError: If it is of a single task, has fewer rows than tasks, or has more
            and `rows` does not say which belong to tasks.

    Example:
        >>> print(metrics.backward_transfer(jnp.array([[1.0, 0.25], [0.75, 0.5]])))
        -0.25

    References:
        Lopez-Paz & Ranzato, arXiv:1706.08840, section 2 (BWT).
    """
    matrix = _matrix(accuracy, "backward_transfer", 2)
    return _backward_transfer(matrix, _learned(rows, matrix, "backward_transfer"))


def forward_transfer(
    accuracy: ArrayLike, untrained: ArrayLike, *, rows: Sequence[int] | None = None
) -> Array:
    """How learning earlier tasks changed later ones before these were learned.

    The mean, over all tasks but the first, of the accuracy just before the task is
    learned minus the accuracy of an untrained network.

    Args:
        accuracy: [..., R, T], an accuracy matrix, T at least 2.
        untrained: [T] or [..., T], the accuracies of a network before any training.
        rows: T increasing integers, not traced, needed if there are more rows than
            tasks: the row just after each task was learned. `None`: row j for task j.

    Returns:
        [...].

    Raises:
        TypeError: If an accuracy is not floating, or `rows` not such integers.
        ValueError: If the matrix is of a single task, has fewer rows than tasks, has
            more and `rows` does not say which belong to tasks, or does not fit
            `untrained`.

    Example:
        >>> accuracy = jnp.array([[1.0, 0.25], [0.75, 0.5]])
        >>> print(metrics.forward_transfer(accuracy, jnp.array([0.125, 0.125])))
        0.125

    References:
        Lopez-Paz & Ranzato, arXiv:1706.08840, section 2 (FWT).
    """
    matrix = _matrix(accuracy, "forward_transfer", 2)
    learned = _learned(rows, matrix, "forward_transfer")
    start = _floating(untrained, "untrained", "forward_transfer")
    if start.shape not in (matrix.shape[-1:], (*matrix.shape[:-2], matrix.shape[-1])):
        raise ValueError(
            "`maskjax.metrics.forward_transfer` needs `untrained` with one number for "
            f"each of {matrix.shape[-1]} tasks, got shape {start.shape} for "
            f"{matrix.shape}."
        )
    return _forward_transfer(matrix, start, learned)


def forgetting(accuracy: ArrayLike, *, rows: Sequence[int] | None = None) -> Array:
    """How much accuracy was lost since each task was at its best.

    The mean, over all tasks but the last, of the best accuracy minus the final one. The
    final one is that of the last row; where it comes later than the last task, that
    task counts too. The best is that of all rows from when the task was learned, but
    the last. The result is below 0 if the last task helped.

    Args:
        accuracy: [..., R, T], an accuracy matrix, T at least 2. Accuracies on a task
            that is not learned yet are not used and may be nan.
        rows: T increasing integers, not traced, needed if there are more rows than
            tasks: the row just after each task was learned. `None`: row j for task j.

    Returns:
        [...].

    Raises:
        TypeError: If the matrix is not floating, or `rows` not such integers.
        ValueError: If it is of a single task, has fewer rows than tasks, or has more
            and `rows` does not say which belong to tasks.

    Example:
        >>> print(metrics.forgetting(jnp.array([[1.0, 0.25], [0.75, 0.5]])))
        0.25
        >>> epochs = [[0.5, 0.25], [1.0, 0.25], [1.0, 0.5], [0.75, 0.5]]  # two a task
        >>> print(metrics.forgetting(jnp.array(epochs), rows=(1, 3)))
        0.25

    References:
        Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018.
        arXiv:1801.10112, section 4.2.
    """
    matrix = _matrix(accuracy, "forgetting", 2)
    return _forgetting(matrix, _learned(rows, matrix, "forgetting"))


def bits_per_task(tree: Any, *, tasks: int, levels: int | None = None) -> float:
    """The memory of a tree that several tasks share, in bits per task.

    Args:
        tree: Tree of arrays, packed masks, or `None`. A boolean takes one bit, packed
            or not; any other entry takes the bits of its dtype.
        tasks: The number of tasks that share it.
        levels: How many values an entry can take, if these are fewer than its dtype
            has. (An owner index for T tasks has T + 1: one means "free".)

    Returns:
        The bits of all entries divided by `tasks`, a Python float.

    Raises:
        TypeError: If `tasks` or `levels` is no whole number, or a leaf no array.
        ValueError: If `tasks` is below 1, or `levels` below 2.

    Example:
        >>> params, owner = {"w": jnp.ones((10, 10))}, {"w": jnp.ones((10, 10), int)}
        >>> metrics.bits_per_task(params, tasks=5)
        640.0
        >>> metrics.bits_per_task(owner, tasks=5, levels=6)  # 3 bits each
        60.0
    """
    fn = "maskjax.metrics.bits_per_task"
    checks.at_least(tasks, 1, fn=fn, name="tasks")
    if levels is not None:
        checks.at_least(levels, 2, fn=fn, name="levels")
    leaves = [(p, leaf) for p, leaf in trees.mask_leaves(tree)[0] if leaf is not None]
    checks.raise_all(
        (
            f"{path}: {checks.kind_of(leaf)}"
            for path, leaf in leaves
            if not (isinstance(leaf, PackedMask) or checks.shaped(leaf))
        ),
        f"`{fn}` needs every leaf of `tree` to be an array or None",
        TypeError,
    )
    return sum(_bits(leaf, levels) for _, leaf in leaves) / tasks


@jax.jit
def _average_accuracy(matrix: Array) -> Array:
    return placement.gathered(matrix, -2, -1)[..., -1, :].mean(-1)


@functools.partial(jax.jit, static_argnums=1)
def _backward_transfer(matrix: Array, learned: tuple[int, ...]) -> Array:
    matrix = placement.gathered(matrix, -2, -1)
    counted = _before_the_end(matrix, learned)
    return (matrix[..., -1, : len(counted)] - _at(matrix, counted)).mean(-1)


@functools.partial(jax.jit, static_argnums=2)
def _forward_transfer(
    matrix: Array, untrained: Array, learned: tuple[int, ...]
) -> Array:
    matrix = placement.gathered(matrix, -2, -1)
    untrained = placement.gathered(untrained, -1)
    before = _at(matrix[..., 1:], learned[:-1])
    return before.mean(-1) - untrained[..., 1:].mean(-1)


@functools.partial(jax.jit, static_argnums=1)
def _forgetting(matrix: Array, learned: tuple[int, ...]) -> Array:
    matrix = placement.gathered(matrix, -2, -1)
    counted = _before_the_end(matrix, learned)
    matrix = matrix[..., : len(counted)]
    known = np.arange(matrix.shape[-2] - 1)[:, None] >= np.array(counted)
    best = matrix[..., :-1, :].max(-2, where=known, initial=-jnp.inf)
    return (best - matrix[..., -1, :]).mean(-1)


def _before_the_end(matrix: Array, learned: tuple[int, ...]) -> tuple[int, ...]:
    """The rows of those tasks that were learned before the last row."""
    return tuple(row for row in learned if row < matrix.shape[-2] - 1)


def _at(matrix: Array, rows: tuple[int, ...]) -> Array:
    """One entry of each of the first columns: [..., len(rows)]."""
    return matrix[..., np.array(rows), np.arange(len(rows))]


def _bits(leaf: Any, levels: int | None) -> int:
    if isinstance(leaf, PackedMask):
        return math.prod(leaf.shape) * math.prod(leaf.lead)
    width = _width(leaf.dtype)
    if levels is not None:
        width = min(width, (levels - 1).bit_length())
    return leaf.size * width


def _width(dtype: Any) -> int:
    if jnp.issubdtype(dtype, jnp.bool_):
        return 1
    # The `itemsize` of a 4-bit dtype is a whole byte.
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits
    return 8 * dtype.itemsize


def _floating(values: ArrayLike, name: str, function: str) -> Array:
    array = dtypes.as_array(values)
    checks.floating(array, fn=f"maskjax.metrics.{function}", name=name)
    return array


def _matrix(accuracy: ArrayLike, function: str, least: int) -> Array:
    matrix = _floating(accuracy, "accuracy", function)
    if matrix.ndim < 2 or matrix.shape[-2] < matrix.shape[-1]:
        raise ValueError(
            f"`maskjax.metrics.{function}` needs `accuracy` of shape [..., T, T], or "
            f"with more rows than tasks, got {matrix.shape}."
        )
    if matrix.shape[-1] < least:
        raise ValueError(
            f"`maskjax.metrics.{function}` needs `accuracy` of at least {least} tasks, "
            f"got {matrix.shape[-1]}."
        )
    return matrix


def _learned(
    rows: Sequence[int] | None, matrix: Array, function: str
) -> tuple[int, ...]:
    """The row just after each task was learned."""
    size, tasks = matrix.shape[-2:]
    if rows is None:
        if size > tasks:
            raise ValueError(
                f"`maskjax.metrics.{function}` needs `rows`, the row just after each "
                f"task was learned, for {size} rows of {tasks} tasks."
            )
        return tuple(range(tasks))
    try:
        given = [_whole(row) for row in rows]
    except TypeError:
        raise TypeError(
            f"`maskjax.metrics.{function}` needs `rows` as integers, one for each task "
            f"and not traced, got {rows}."
        ) from None
    inside = given and 0 <= given[0] and given[-1] < size
    if len(given) != tasks or not inside or given != sorted(set(given)):
        raise ValueError(
            f"`maskjax.metrics.{function}` needs `rows` as {tasks} increasing integers "
            f"in [0, {size}), got {given}."
        )
    return tuple(given)


def _whole(number: Any) -> int:
    if isinstance(number, bool):
        raise TypeError
    return operator.index(number)
