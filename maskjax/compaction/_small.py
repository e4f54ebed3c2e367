"""Small values: how an equation is written for the positions that stay.

The rule of every emission: a small value is the masked value at the positions that its
axes keep, in order.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import placement, rows
from maskjax._core.trees import Array
from maskjax.compaction._cells import Cells
from maskjax.compaction._ghosts import Ghosts
from maskjax.compaction._program import Equation, Program, Var


class Unfit(Exception):
    """An equation that cannot be written for these positions: all of it has to stay."""

    def __init__(self, equation: Equation, why: str) -> None:
        super().__init__(why)
        self.equation, self.why = equation, why


class Unnumbered(Exception):
    """Something is cut for one member of a stack, and it is not known which."""


class Small:
    """The positions that stay, and the step of every loop that is being written.

    Attributes:
        steps: The numbers of the steps, for each loop around; that of a member of a
            stack is `None` if it is not known.
        ghosts: Which positions are equal, if one may stand for the others in a sum.
        trial: Whether this is to see if all can be written, derivatives too.
    """

    def __init__(
        self,
        cells: Cells,
        follow: Callable[[Program, "Small", Sequence[Array]], list[Array]],
        equal: Callable[[], Ghosts],
        steps: tuple[Any, ...] = (),
        ghosts: Ghosts | None = None,
        *,
        trial: bool = False,
    ) -> None:
        self._cells, self._follow, self._equal = cells, follow, equal
        self.steps, self.ghosts, self.trial = steps, ghosts, trial

    def follow(self, program: Program, arrays: Sequence[Array]) -> list[Array]:
        """The small outputs of a program."""
        return self._follow(program, self, arrays)

    def inside(self, step: Any) -> "Small":
        """The same, in one step more of a loop."""
        return self.at((*self.steps, step))

    def at(self, steps: tuple[Any, ...]) -> "Small":
        """The same, in these steps."""
        how = self._cells, self._follow, self._equal
        return Small(*how, steps, self.ghosts, trial=self.trial)

    def keep(self, var: Var, axis: int) -> np.ndarray:
        """Which positions stay, [*steps, n]."""
        return self._cells.at(var, axis).keep

    def count(self, var: Var, axis: int) -> int:
        """How many positions stay, the same in each step."""
        keep = self.keep(var, axis)
        return int(keep.sum(-1).flat[0]) if keep.size else keep.shape[-1]

    def shape(self, var: Var) -> tuple[int, ...]:
        """The small shape."""
        return tuple(self.count(var, axis) for axis in range(len(var.shape)))

    def full(self, var: Var, axis: int) -> bool:
        """Whether all positions stay."""
        return bool(self.keep(var, axis).all())

    def places(self, var: Var, axis: int) -> np.ndarray:
        """The positions that stay, [*steps, k]."""
        return places(self.keep(var, axis))

    def taken(self, array: Array, axis: int, table: np.ndarray, lead: int = 0) -> Array:
        """The entries of an axis at these places, [*steps, *lead, k].

        Raises:
            Unnumbered: If places differ between members, and which one is written is
                not known.
        """
        row = self.now(table, lead)
        if row.ndim == 1 and isinstance(row, np.ndarray):
            first, k = int(row[0]), len(row)
            run = (row == np.arange(first, first + k)).all()
            if run and placement.spec_of(array)[axis] is None:
                return jax.lax.slice_in_dim(array, first, first + k, axis=axis)
        if row.ndim == 1 and not isinstance(row, np.ndarray):
            # Whole rows are fast to copy, of all members at once too. A barrier, since
            # fused with what follows they are transposed, slowly on a CPU.
            found = rows.taken(jnp.moveaxis(array, axis, 0), row, 0)
            return jax.lax.optimization_barrier(jnp.moveaxis(found, 0, axis))
        return rows.taken(array, row, axis)

    def now(self, table: np.ndarray, lead: int) -> Any:
        """The row of a table, [*steps, *lead, k], for the steps being written."""
        n = table.ndim - 1 - lead
        rows = table.reshape(math.prod(table.shape[:n]), *table.shape[n:])
        same = bool((rows == rows[:1]).all()) if len(rows) else True
        if same:
            row = rows[0]
            flat = row.reshape(-1, row.shape[-1])
            return flat[0] if lead and (flat == flat[:1]).all() else row
        steps = self.steps[:n]
        if n and steps[0] is None:
            if (table != table[:1]).any():
                raise Unnumbered
            table, steps = table[0], steps[1:]
        if all(isinstance(step, int) for step in steps):
            return table[steps]
        return jnp.asarray(table)[steps]

    def cut(self, array: Array, var: Var) -> Array:
        """A whole value, cut to the positions that stay."""
        for axis in range(len(var.shape)):
            if not self.full(var, axis):
                lead = len(var.prefix(axis)) - len(var.scope)
                array = self.taken(array, axis, self.places(var, axis), lead)
        return array

    def part(self, array: Array, var: Var, inside: Var) -> Array:
        """Of what every step of a loop reads, the positions that this step keeps."""
        for axis in range(len(var.shape)):
            keep, wanted = self.keep(var, axis), self.keep(inside, axis)
            around = len(var.scope)  # the loop comes after those around it
            keep = np.expand_dims(keep, [*range(around, len(inside.scope))])
            keep = np.broadcast_to(keep, wanted.shape)
            if (keep != wanted).any() and self._equal().one(var, axis):
                array = self._repeated(array, axis, self.count(inside, axis))
            elif (keep != wanted).any():
                rank = keep.cumsum(-1) - 1  # a position's place among those that stay
                table = rank[wanted].reshape(
                    *wanted.shape[:-1], self.count(inside, axis)
                )
                lead = len(inside.prefix(axis)) - len(inside.scope)
                array = self.taken(array, axis, table, lead)
        return array

    def _repeated(self, array: Array, axis: int, k: int) -> Array:
        """The first entry of an axis, k times, sharded as the axis is if that fits."""
        shape = (*array.shape[:axis], k, *array.shape[axis + 1 :])
        where = None
        if placement.explicit(array):
            where = placement.fitted(placement.sharding(array), shape)
        first = self.taken(array, axis, np.zeros(1, int))
        return jnp.broadcast_to(first, shape, out_sharding=where)

    def uniform(self, numbers: np.ndarray) -> int:
        """A number that is the same in each step.

        Raises:
            LookupError: If it is not.
        """
        first = int(numbers.flat[0])
        if not (numbers == first).all():
            raise LookupError("counts differ between the steps of a loop")
        return first


def places(keep: np.ndarray) -> np.ndarray:
    """The positions that stay, in order, [*steps, k], of [*steps, n]."""
    k = int(keep.sum(-1).flat[0]) if keep.size else keep.shape[-1]
    return np.nonzero(keep.reshape(-1, keep.shape[-1]))[1].reshape(*keep.shape[:-1], k)
