"""Kernels of any layout as [stack, groups, d, outputs of a group], and back."""

import dataclasses
import math
from collections.abc import Sequence

from maskjax._core import placement
from maskjax._core.axes import Axes
from maskjax._core.trees import Array


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kernel is laid out.

    In the layout d counts the window's places and, within each, the inputs, row-major,
    so that one layer in two frameworks is one kernel here.

    Attributes:
        axes: The roles of the kernel's axes.
        shape: The kernel's.
        groups: Into how many equal parts its outputs fall; each has inputs of its own.
    """

    axes: Axes
    shape: tuple[int, ...]
    groups: int

    @property
    def stack(self) -> tuple[int, ...]:
        """The lengths of the axes that stack."""
        return self._lengths(self.axes.stack)

    @property
    def of_kernels(self) -> tuple[int, ...]:
        """The shape of numbers of which each kernel has one."""
        return (*self.stack, *([self.groups] if self.groups > 1 else []))

    @property
    def d(self) -> int:
        """How many weights each output has."""
        return math.prod(self._lengths(self._met))

    @property
    def outputs(self) -> int:
        """How many outputs each group has."""
        return math.prod(self._lengths(self.axes.outputs)) // self.groups

    @property
    def _met(self) -> tuple[int, ...]:
        return (*self.axes.window, *self.axes.inputs)

    def _lengths(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in axes)

    @property
    def _parts(self) -> tuple[tuple[int, ...], ...]:
        return self.axes.stack, self._met, self.axes.outputs

    def laid(self, x: Array) -> Array:
        """An array of the kernel's shape, laid out, whole along d on each device."""
        x = x.transpose([axis for part in self._parts for axis in part])
        x = placement.merge(x, *map(len, self._parts))
        x = _by_outputs(x)
        parts = [(n,) for n in x.shape[:2]]
        return placement.split(x, *parts, (self.groups, self.outputs)).swapaxes(1, 2)

    def back(self, x: Array, like: Array) -> Array:
        """The inverse of `laid`, sharded as the kernel is."""
        x = placement.merge(x.swapaxes(1, 2), 1, 1, 2)
        x = placement.split(x, *(self._lengths(part) for part in self._parts))
        order = [axis for part in self._parts for axis in part]
        x = x.transpose([order.index(axis) for axis in range(len(order))])
        return placement.place(x, placement.spec_of(like))

    def gram(self, sums: Array) -> Array:
        """Gram matrices as [stack, groups, d, d], whole on each device but for stacks.

        The statistics count d in the order of the kernel's own axes.
        """
        sums = self._merged(sums, 2)
        return self._ordered(self._ordered(sums, 2), 3)

    def live(self, sums: Array) -> Array:
        """Whether each input ever fires, [stack, groups, d]."""
        sums = self._merged(sums, 2)
        return self._ordered(sums.diagonal(axis1=2, axis2=3), 2) > 0

    def _merged(self, sums: Array, rest: int) -> Array:
        several = int(self.groups > 1)
        last = range(len(self.axes.stack), sums.ndim)
        sums = placement.gathered(sums, *last)
        return placement.merge(sums, len(self.axes.stack), several, *[1] * rest)

    def _ordered(self, x: Array, axis: int) -> Array:
        """One axis, d in the order of the kernel's axes, in that of the layout."""
        own = sorted(self._met)
        if tuple(own) == self._met:
            return x
        lengths = self._lengths(own)
        shape = x.shape
        x = x.reshape(*shape[:axis], *lengths, *shape[axis + 1 :])
        order = [axis + own.index(i) for i in self._met]
        after = range(axis + len(own), x.ndim)
        return x.transpose([*range(axis), *order, *after]).reshape(shape)


def _by_outputs(x: Array) -> Array:
    """Kernels [stack, d, outputs] that are sharded along d, along outputs instead."""
    stack, met, outputs = placement.spec_of(x)
    if met is None:
        return x
    fits = outputs is None and x.shape[2] % placement.shards(x, 1) == 0
    return placement.place(x, (stack, None, met if fits else outputs))
