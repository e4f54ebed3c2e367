"""Parameters as the kernels that formulas speak of, and back.

A leaf holds one kernel for each index of its stack axes. The canonical shape of a
kernel is (window..., inputs, outputs), with several input axes as one, and several
output axes as one, both row-major.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from maskjax._core import axes as _axes
from maskjax._core import checks, trees
from maskjax._core.axes import Axes, Told
from maskjax._core.trees import Array, Params, Path, Predicate


@dataclasses.dataclass(frozen=True)
class Among:
    """A predicate that chooses some paths; what their axes mean is up to another."""

    paths: frozenset[Path]
    where: Predicate

    def __call__(self, path: Path, leaf: Any) -> bool:
        return path in self.paths

    def axes(self, path: Path, leaf: Any) -> Told:
        """What the other predicate knows of a leaf's axes."""
        return _axes.of(self.where, path, leaf)


# Asking.


def told(
    params: Params, needed: Sequence[bool], where: Predicate, *, fn: str, why: str
) -> list[Axes | None]:
    """The axes of the leaves of `params` (without `None`) that need them, else `None`.

    Raises:
        ValueError: If they are not known; see `axes.resolved`.
    """
    named = trees.named_leaves(params)
    return _axes.resolved(where, named, needed, fn=fn, why=why)


def fans(
    params: Params, needed: Sequence[bool], where: Predicate, *, fn: str, why: str
) -> list[Axes | None]:
    """As `told`, for leaves whose fan-in counts: they have inputs, or a window.

    Raises:
        ValueError: If their axes are not known, or are outputs alone.
    """
    every = told(params, needed, where, fn=fn, why=why)

    def lacks(axes: Axes | None) -> str | None:
        outputs = axes is not None and not (axes.inputs or axes.window)
        return f"its axes are '{axes}'" if outputs else None

    needs = f"`{fn}` needs leaves with inputs {why}"
    checks.every(lacks, [(axes,) for axes in every], params, needs)
    return every


def stacks(
    params: Params, picks: Sequence[bool], where: Predicate, *, fn: str, why: str
) -> list[Axes | None]:
    """The axes of chosen leaves, or `None` for leaves that are no stack.

    It is for what does not change if inputs and outputs are swapped.

    Raises:
        ValueError: If the axes of a leaf that may be a stack are not known.
    """
    named = trees.named_leaves(params)
    pairs = zip(named, picks, strict=True)
    needed = [pick and may_stack(where, path, leaf) for (path, leaf), pick in pairs]
    return told(params, needed, where, fn=fn, why=why)


def may_stack(where: Predicate, path: Path, leaf: Any) -> bool:
    """Whether it has to be asked which axes of a leaf stack.

    Leaves of fewer than 2 axes, and kernels of 2 by their names, are no stacks, unless
    it is known that they are: (out, in) is as good as (in, out).
    """
    rank = len(leaf.shape)
    if rank > 2 or rank == 2 and not _axes.is_kernel(path, leaf):
        return True
    told = _axes.of(where, path, leaf)
    if isinstance(told, _axes.Clash):
        return told.stacks
    return not isinstance(told, str)


# Shapes.


def canonical(axes: Axes, shape: Sequence[int]) -> tuple[int, ...]:
    """(window..., inputs, outputs), for one index of the stack."""
    sizes = [math.prod(shape[a] for a in axes.of(r)) for r in ("inputs", "outputs")]
    return (*(shape[axis] for axis in axes.window), *sizes)


def restored(x: Array, axes: Axes, shape: Sequence[int]) -> Array:
    """Kernels in canonical order, those of a stack one after another, as the leaf.

    Args:
        x: [window..., inputs, outputs]; with the stack in front if the leaf has one.
        axes: The leaf's.
        shape: The leaf's.
    """
    order = (*axes.stack, *axes.window, *axes.inputs, *axes.outputs)
    sizes = tuple(shape[axis] for axis in order)
    if x.shape != sizes:
        x = jnp.reshape(x, sizes)
    if order == tuple(range(len(order))):
        return x
    return jnp.transpose(x, [order.index(axis) for axis in range(len(order))])


def of_one(axes: Axes) -> tuple[int, ...]:
    """The axes of one kernel: all but the stack."""
    return tuple(axis for axis in range(axes.rank) if axis not in axes.stack)
