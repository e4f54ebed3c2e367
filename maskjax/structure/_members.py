"""Groups of units, and the axes of leaves along which their units lie."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from maskjax._core import checks
from maskjax._core.trees import Path

_FN = "maskjax.structure."


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One axis of one leaf, along which the units of a group lie.

    Attributes:
        path: The leaf, such as "Dense_0/kernel".
        axis: The axis, counted from 0.
        units: int32 [n], the number of the unit at each position of the axis, or -1. Of
            shape [L, n] if it differs between the indices of the leaf's first axis,
            which stacks L layers.
        shape: The shape of the leaf.

    Raises:
        ValueError: If the leaf has no such axis, or `units` does not fit it.

    Example:
        >>> print(structure.Member("w", 1, [0, 1, 2], shape=(5, 3)))
        w[1]
    """

    path: Path
    axis: int
    units: Any
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        units = np.array(self.units)
        whole = np.issubdtype(units.dtype, np.integer) or not units.size
        shape, lead = tuple(map(int, self.shape)), units.ndim - 1
        fits = whole and 0 <= lead <= self.axis < len(shape)
        if not fits or units.shape != (*shape[:lead], shape[self.axis]):
            raise ValueError(
                f"`{_FN}Member` needs `axis` as one of the leaf's, and `units` as a "
                "whole number for each of its positions (for each index of the first "
                f"axes), got axis {self.axis}, {units.dtype} `units` of shape "
                f"{units.shape}, and {self.path} of shape {shape}."
            )
        units = units.astype(np.int32)
        units.flags.writeable = False
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "shape", shape)

    @functools.cached_property
    def _content(self) -> tuple[Any, ...]:
        units = self.units
        return self.path, self.axis, self.shape, units.shape, units.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    def __str__(self) -> str:
        return f"{self.path}[{self.axis}]"


@dataclasses.dataclass(frozen=True)
class Group:
    """Units, each of which has entries in every member.

    Attributes:
        name: What the group is called.
        stack: () or (L,). With (L,) each of L layers has units of its own, `size` of
            them, and the `units` of all members have shape [L, n].
        size: The number of units, in each layer.
        members: The axes along which the units lie.

    Raises:
        ValueError: If there are no units, no members, or a member has another stack or
            a unit that is not in [0, size).

    Example:
        >>> rows = structure.Member("w", 0, [0, 1], shape=(2, 3))
        >>> print(structure.Group("rows", (), 2, (rows,)))
        rows: 2 units in w[0]
    """

    name: str
    stack: tuple[int, ...]
    size: int
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stack", tuple(self.stack))
        object.__setattr__(self, "members", tuple(self.members))
        if len(self.stack) > 1 or min((self.size, *self.stack)) < 1 or not self.members:
            raise ValueError(
                f"`{_FN}Group` needs `stack` as () or (L,), at least one unit and one "
                f"member, got stack {self.stack}, size {self.size} and "
                f"{len(self.members)} members in {self.name}."
            )
        checks.raise_all(
            map(self._misfit, self.members),
            f"`{_FN}Group` needs members of stack {self.stack} with units from 0 to "
            f"{self.size - 1}, or -1, in {self.name}",
        )

    def _misfit(self, member: Member) -> str | None:
        units = member.units
        if self.stack and units.shape[:-1] != self.stack:
            return f"{member}: units of shape {units.shape}"
        if units.size and not -1 <= units.min() <= units.max() < self.size:
            return f"{member}: units from {units.min()} to {units.max()}"
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its scores and decisions: [*stack, size]."""
        return (*self.stack, self.size)

    def __str__(self) -> str:
        count = " x ".join(map(str, self.shape))
        shown = ", ".join(map(str, self.members[:6]))
        more = len(self.members) - 6
        also = f" and {more} more" if more > 0 else ""
        return f"{self.name}: {count} units in {shown}{also}"
