"""What is kept of the data that a kernel meets."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from maskjax._core import checks, placement
from maskjax._core.axes import Axes
from maskjax._core.stored import stored
from maskjax._core.trees import Array


@stored("maskjax.calibration.Statistics", holds=[Axes])
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Sums over the rows of data that a kernel meets; a pytree with one leaf.

    d counts the places of the window and the input axes together, row-major in the
    order of the kernel's own axes: (kh, kw, in) for a convolution's (kh, kw, in, out),
    (heads, head_dim) for (heads, head_dim, out), (in,) for (out, in).

    Attributes:
        sums: [*stack, d, d], the Gram matrix: the sum of x x^T over rows x. With
            `gram=False` [*stack, d], the sums of squares. With groups it has an axis
            for them after those of the stack. These are plain sums: those of batches,
            devices and processes add up.
        axes: The roles of the kernel's axes.
        shape: The kernel's.
        groups: Into how many equal parts its outputs fall, one after another, each of
            which meets inputs of its own, as in a grouped convolution.
        gram: Whether `sums` are Gram matrices.
    """

    sums: Array  # or its shape, while it is planned
    axes: Axes = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    groups: int = dataclasses.field(default=1, metadata={"static": True})
    gram: bool = dataclasses.field(default=True, metadata={"static": True})

    @property
    def d(self) -> int:
        """How many entries of the kernel each output has."""
        return math.prod(self.shape[axis] for axis in self.inputs)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The axes of the kernel that d counts, in their order."""
        return tuple(sorted((*self.axes.window, *self.axes.inputs)))

    def complaint(self) -> str | None:
        """What is wrong with the sums of a kernel of this shape, or None."""
        stack = [self.shape[axis] for axis in self.axes.stack]
        groups = [self.groups] if self.groups > 1 else []
        needed = (*stack, *groups, *[self.d] * (1 + self.gram))
        if checks.is_floating(self.sums) and self.sums.shape == needed:
            return None
        return f"{checks.kind_of(self.sums)}, needs {needed}"

    def _replace(self, sums: Array) -> Statistics:
        return dataclasses.replace(self, sums=sums)


def squares(sums: Array, *, gram: bool) -> Array:
    """The sums of squares among sums, [..., d], and d whole on every device."""
    if gram and any(placement.spec_of(sums)[-2:]):
        # Types tell how a sum is sharded, and not how a diagonal is.
        one = jnp.eye(sums.shape[-1], dtype=bool)
        sums = jnp.sum(jnp.where(one, sums, 0), axis=-1)
    elif gram:
        sums = jnp.diagonal(sums, axis1=-2, axis2=-1)
    return placement.gathered(sums, -1)


def is_statistics(x: Any) -> bool:
    """Where to stop in a tree of statistics: at each kernel's, and at `None`."""
    return x is None or isinstance(x, Statistics)
