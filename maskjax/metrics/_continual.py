"""How tasks fare that came one by one, and what it takes to keep them."""

import math
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax._core import checks, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array


def average_accuracy(accuracy: ArrayLike) -> Array:
    """How well all tasks are done in the end, on average.

    Args:
        accuracy: [..., T, T], an accuracy matrix. Only its last row matters.

    Returns:
        [...].

    Raises:
        TypeError: If the matrix is not floating.
        ValueError: If it is not square, or empty.

    Example:
        >>> print(metrics.average_accuracy(jnp.array([[1.0, 0.25], [0.75, 0.5]])))
        0.625

    References:
        Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS
        2017. arXiv:1706.08840, section 2 (ACC).
    """
    return _square(accuracy, "average_accuracy", 1)[..., -1, :].mean(-1)


def backward_transfer(accuracy: ArrayLike) -> Array:
    """What later tasks did to earlier ones: above 0 they helped, below they hurt.

    The mean, over all tasks but the last, of how well a task is done in the end less
    how well just after it was learned.

    Args:
        accuracy: [..., T, T], an accuracy matrix, T at least 2. What is above the
            diagonal does not matter, and may be nan.

    Returns:
        [...].

    Raises:
        TypeError: If the matrix is not floating.
        ValueError: If it is not square, or of a single task.

    Example:
        >>> print(metrics.backward_transfer(jnp.array([[1.0, 0.25], [0.75, 0.5]])))
        -0.25

    References:
        Lopez-Paz & Ranzato, arXiv:1706.08840, section 2 (BWT).
    """
    matrix = _square(accuracy, "backward_transfer", 2)
    learned = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    return (matrix[..., -1, :-1] - learned[..., :-1]).mean(-1)


def forward_transfer(accuracy: ArrayLike, untrained: ArrayLike) -> Array:
    """What earlier tasks did for later ones, before these were learned.

    The mean, over all tasks but the first, of how well a task is done when those before
    it were learned, less how well by a network that learned none.

    Args:
        accuracy: [..., T, T], an accuracy matrix, T at least 2.
        untrained: [..., T], the accuracies of a network before any training.

    Returns:
        [...].

    Raises:
        TypeError: If an argument is not floating.
        ValueError: If the matrix is not square, or of a single task, or does not fit
            `untrained`.

    Example:
        >>> accuracy = jnp.array([[1.0, 0.25], [0.75, 0.5]])
        >>> print(metrics.forward_transfer(accuracy, jnp.array([0.125, 0.125])))
        0.125

    References:
        Lopez-Paz & Ranzato, arXiv:1706.08840, section 2 (FWT).
    """
    matrix = _square(accuracy, "forward_transfer", 2)
    start = _floating(untrained, "untrained", "forward_transfer")
    if start.shape not in (matrix.shape[-1:], matrix.shape[:-1]):
        raise ValueError(
            "`maskjax.metrics.forward_transfer` needs `untrained` with one number for "
            f"each of {matrix.shape[-1]} tasks, got shape {start.shape} for "
            f"{matrix.shape}."
        )
    before = jnp.diagonal(matrix, offset=1, axis1=-2, axis2=-1)
    return before.mean(-1) - start[..., 1:].mean(-1)


def forgetting(accuracy: ArrayLike) -> Array:
    """How much was known of earlier tasks once, and is not in the end.

    The mean, over all tasks but the last, of how well a task was done at best, from
    when it was learned to just before the last, less how well in the end. Below 0 if
    the last task helped.

    Args:
        accuracy: As in `backward_transfer`.

    Returns:
        [...].

    Raises:
        TypeError: As in `backward_transfer`.
        ValueError: As in `backward_transfer`.

    Example:
        >>> print(metrics.forgetting(jnp.array([[1.0, 0.25], [0.75, 0.5]])))
        0.25

    References:
        Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018.
        arXiv:1801.10112, section 4.2.
    """
    matrix = _square(accuracy, "forgetting", 2)
    since = jnp.tril(jnp.ones(matrix.shape[-2:], bool))[:-1, :-1]
    known = jnp.where(since, matrix[..., :-1, :-1], -jnp.inf)
    return (known.max(-2) - matrix[..., -1, :-1]).mean(-1)


def bits_per_task(tree: Any, *, tasks: int, levels: int | None = None) -> float:
    """What it takes to keep a tree that so many tasks share.

    Args:
        tree: Tree of arrays, packed masks, or `None`. A boolean takes a bit, packed or
            not, and any other entry the bits of its dtype.
        tasks: Among how many tasks it is divided.
        levels: How many values an entry can have, if fewer than its dtype says: of T
            tasks an owner has T + 1.

    Returns:
        Bits, a Python number: the sum of all entries' over `tasks`.

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


def _bits(leaf: Any, levels: int | None) -> int:
    if isinstance(leaf, PackedMask):
        return math.prod(leaf.shape) * math.prod(leaf.bits.shape[:-1])
    width = _width(leaf.dtype)
    if levels is not None:
        width = min(width, (levels - 1).bit_length())
    return leaf.size * width


def _width(dtype: Any) -> int:
    if jnp.issubdtype(dtype, jnp.bool_):
        return 1
    # Whose `itemsize` is a whole byte when they have 4 bits.
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits
    return 8 * dtype.itemsize


def _floating(values: ArrayLike, name: str, function: str) -> Array:
    # A NumPy matrix of doubles is as good as any.
    array = jnp.asarray(values)
    checks.floating(array, fn=f"maskjax.metrics.{function}", name=name)
    return array


def _square(accuracy: ArrayLike, function: str, least: int) -> Array:
    matrix = _floating(accuracy, "accuracy", function)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(
            f"`maskjax.metrics.{function}` needs `accuracy` of shape [..., T, T], got "
            f"{matrix.shape}."
        )
    if matrix.shape[-1] < least:
        raise ValueError(
            f"`maskjax.metrics.{function}` needs `accuracy` of at least {least} tasks, "
            f"got {matrix.shape[-1]}."
        )
    return matrix
