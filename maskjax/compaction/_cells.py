"""Cells: which positions of which axes have to stay.

A cell is an axis of a value: for each step of the loops around it, and each position,
whether it stays. Five kinds of links say how cells go together:

  equal   the same positions: one cell, by union-find; or, where one has steps that the
          other lacks, the same positions in each of these
  part    the positions of one are some of the other's: slices, parts of a concatenation
  product a flat axis has the positions of several: those of a reshape
  need    some positions have to stay
  pin     all have to stay, with the reason

`solve` starts from what is needed and adds what the links ask for. Then each axis keeps
at least one position, and as many in each step of a loop as in every other.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from maskjax.compaction._program import Dims, Equation, Var, dims, stepped

FREE = -1  # in `why`: the position does not stay


class Cell:
    """Positions of an axis, for each step. `why` has the reason why each one stays."""

    __slots__ = ("flat", "links", "parent", "prefix", "size", "why")

    def __init__(self, prefix: tuple[int, ...], size: int) -> None:
        self.prefix, self.size = prefix, size
        self.parent: Cell | None = None
        self.links: list[Any] = []
        self.flat = False
        self.why: np.ndarray = np.empty(0, np.int32)

    @property
    def keep(self) -> np.ndarray:
        """Which positions stay, [*steps, n]."""
        return self.why != FREE


@dataclasses.dataclass(eq=False)
class Steps:
    """A cell whose positions are the same in each step of another with more steps.

    `dims` are its own steps among those of the other. If it is only `read`, a step may
    keep fewer than are there.
    """

    few: Cell
    many: Cell
    dims: Sequence[int]
    read: bool = False

    def cells(self) -> tuple[Cell, ...]:
        return (self.few, self.many)

    def close(self, cells: "Cells") -> list[Cell]:
        few, many = cells.root(self.few), cells.root(self.many)
        grown = not self.read and _grow(many, self.spread(few.why, many.prefix))
        # A reason of any step: the largest is one, since FREE is below all.
        back = self.rows(many.why).max(axis=0)
        return [c for c, more in ((many, grown), (few, _grow(few, back))) if more]

    def spread(self, table: np.ndarray, prefix: tuple[int, ...]) -> np.ndarray:
        """A table of the few steps, for each of the many."""
        return stepped(table, self.dims, prefix)

    def rows(self, table: np.ndarray) -> np.ndarray:
        """A table of the many steps, for the few: [others, *few, n]."""
        k = table.ndim - 1
        others = [i for i in range(k) if i not in self.dims]
        moved = table.transpose(*others, *self.dims, k)
        return moved.reshape(-1, *moved.shape[len(others) :])


@dataclasses.dataclass(eq=False)
class Part:
    """The positions of `small` are those of `big` at `places`."""

    big: Cell
    small: Cell
    places: np.ndarray

    def cells(self) -> tuple[Cell, ...]:
        return (self.big, self.small)

    def close(self, cells: "Cells") -> list[Cell]:
        big, small = cells.root(self.big), cells.root(self.small)
        down = _grow(small, big.why[..., self.places])
        up = np.full_like(big.why, FREE)
        np.maximum.at(up.T, self.places, small.why.T)  # places may repeat
        return [c for c, more in ((small, down), (big, _grow(big, up))) if more]


@dataclasses.dataclass(eq=False)
class Product:
    """`flat` is the row-major product of `factors`; one stays if any of it does."""

    flat: Cell
    factors: tuple[Cell, ...]

    def cells(self) -> tuple[Cell, ...]:
        return (self.flat, *self.factors)

    def close(self, cells: "Cells") -> list[Cell]:
        flat, changed = cells.root(self.flat), []
        factors = [cells.root(f) for f in self.factors]
        k, sizes = len(flat.prefix), [f.size for f in factors]
        grid = flat.why.reshape(*flat.prefix, *sizes)
        for i, factor in enumerate(factors):
            others = tuple(k + j for j in range(len(factors)) if j != i)
            if _grow(factor, grid.max(axis=others)):
                changed.append(factor)
        whole = np.ones((), bool)
        reason = np.full((), FREE, np.int32)
        for i, factor in enumerate(factors):
            shape = [1] * len(factors)
            shape[i] = factor.size
            why = factor.why.reshape(*flat.prefix, *shape)
            whole = whole & (why != FREE)
            reason = np.maximum(reason, why)
        wanted = np.where(whole, reason, FREE).reshape(flat.why.shape)
        if _grow(flat, wanted):
            changed.append(flat)
        return changed


def _grow(cell: Cell, why: np.ndarray) -> bool:
    """Add positions, with their reasons; whether there were new ones."""
    new = (cell.why == FREE) & (why != FREE)
    if not new.any():
        return False
    cell.why = np.where(new, why, cell.why)
    return True


class Cells:
    """The cells of all values, and the links between them."""

    def __init__(self) -> None:
        self.now: Equation | None = None  # whose values are linked
        self._of: dict[Var, list[Cell]] = {}
        self.links: list[Any] = []
        self.needs: list[tuple[Cell, np.ndarray | bool, str, bool]] = []
        self.reasons: list[str] = []

    def of(self, var: Var) -> list[Cell]:
        """The cells of a value's axes."""
        if var not in self._of:
            self._of[var] = [Cell(var.prefix(i), n) for i, n in enumerate(var.shape)]
        return self._of[var]

    def at(self, var: Var, axis: int) -> Cell:
        return self.root(self.of(var)[axis])

    def root(self, cell: Cell) -> Cell:
        while cell.parent is not None:
            if cell.parent.parent is not None:
                cell.parent = cell.parent.parent
            cell = cell.parent
        return cell

    # Links.

    def same(self, a: Var, i: int, b: Var, j: int, *, read: bool = False) -> None:
        """Two axes keep the same positions, in each of the steps that they share.

        If the first is only `read` in a loop, it has those that any step keeps.
        """
        one, other = self.root(self.of(a)[i]), self.root(self.of(b)[j])
        shared = self._shared((a, i), (b, j))
        ours, theirs = ([dims[k] for dims in shared] for k in (0, 1))
        every = [*range(len(one.prefix))]
        if ours == every == theirs and len(every) == len(other.prefix):
            if one is not other:
                other.parent = one
                one.flat |= other.flat
        elif len(shared) == len(every):
            self.links.append(Steps(one, other, theirs, read))
        elif len(shared) == len(other.prefix):
            self.links.append(Steps(other, one, ours))
        else:
            common = Cell(tuple(one.prefix[k] for k in ours), one.size)
            self.links += [Steps(common, one, ours), Steps(common, other, theirs)]

    def _shared(self, *axes: tuple[Var, int]) -> list[tuple[int, ...]]:
        """The steps that some axes have in common, as the number of each in each."""
        (first, axis), *others = axes
        if not first.prefix(axis):
            return []
        found = [(i,) for i in range(len(first.prefix(axis)))]
        for var, other in others:
            along = self._dims(first, var)
            n = len(var.prefix(other))
            found = [
                (*dims, step)
                for dims in found
                if (step := along[dims[0]]) is not None and step < n
            ]
        return found

    def _dims(self, one: Var, other: Var) -> Dims:
        """Outside of equations values belong together, axis by axis."""
        if self.now is not None:
            return self.now.dims(one, other)
        sizes = zip(one.shape, other.shape, strict=True)
        return dims(one, other, ((i, i) for i, (n, m) in enumerate(sizes) if n == m))

    def part(self, big: tuple[Var, int], small: tuple[Var, int], places: Any) -> None:
        """An axis has the positions of another at these places."""
        one, other = self._level(big, small)
        self.links.append(Part(one, other, np.asarray(places)))

    def product(
        self, flat: tuple[Var, int], factors: Sequence[tuple[Var, int]]
    ) -> None:
        """A flat axis is the product of others, in order."""
        if len(factors) == 1:
            self.same(*flat, *factors[0])
            return
        whole, *parts = self._level(flat, *factors)
        self.root(whole).flat = True
        self.links.append(Product(whole, tuple(parts)))

    def _level(self, *axes: tuple[Var, int]) -> list[Cell]:
        """Cells with the same steps: where they differ, those that all have."""
        shared = self._shared(*axes)
        level = []
        for k, (var, axis) in enumerate(axes):
            cell, own = self.of(var)[axis], [dims[k] for dims in shared]
            if own != [*range(len(cell.prefix))]:
                few = Cell(tuple(cell.prefix[i] for i in own), cell.size)
                self.links.append(Steps(few, cell, own))
                cell = few
            level.append(cell)
        return level

    def need(self, var: Var, axis: int, where: Any, reason: str) -> None:
        """These positions have to stay."""
        self.needs.append((self.of(var)[axis], where, reason, False))

    def pin(self, var: Var, axes: Iterable[int], reason: str) -> None:
        """All positions of these axes have to stay, whatever is masked."""
        for axis in axes:
            self.needs.append((self.of(var)[axis], True, reason, True))

    # Solving.

    def solve(self) -> None:
        """Find the least choice that satisfies the links."""
        self._clear()
        number: dict[str, int] = {}
        for cell, where, reason, _ in self.needs:
            root = self.root(cell)
            i = number.setdefault(reason, len(number))
            shape = root.why.shape
            _grow(root, np.where(np.broadcast_to(where, shape), i, FREE))
        number.setdefault(ALONE, len(number))
        number.setdefault(UNEVEN, len(number))
        self.reasons = list(number)
        self._close(self.links)
        while self._fill(number[ALONE], number[UNEVEN]):
            pass

    def needed(self, var: Var, axis: int) -> np.ndarray:
        """Which positions stay for a reason other than that something has to."""
        why = self.at(var, axis).why
        filled = [self.reasons.index(ALONE), self.reasons.index(UNEVEN)]
        return (why != FREE) & ~np.isin(why, filled)

    def _clear(self) -> None:
        for cell in self.every():
            cell.why = np.full((*cell.prefix, cell.size), FREE, np.int32)
            cell.links = []
        for link in self.links:
            for cell in link.cells():
                root = self.root(cell)
                if not root.why.size and root.size:
                    root.why = np.full((*root.prefix, root.size), FREE, np.int32)
                root.links.append(link)

    def every(self) -> list[Cell]:
        """All cells that stand for themselves."""
        found: dict[int, Cell] = {}
        for cells in self._of.values():
            for cell in cells:
                root = self.root(cell)
                found[id(root)] = root
        for link in self.links:
            for cell in link.cells():
                root = self.root(cell)
                found[id(root)] = root
        return list(found.values())

    def _close(self, links: Iterable[Any]) -> None:
        queue = collections.deque(dict.fromkeys(links))
        waiting = set(map(id, queue))
        while queue:
            link = queue.popleft()
            waiting.discard(id(link))
            for cell in link.close(self):
                for other in cell.links:
                    if id(other) not in waiting:
                        waiting.add(id(other))
                        queue.append(other)

    def _fill(self, alone: int, uneven: int) -> bool:
        """One position for empty axes, equal counts for steps.

        Parts and factors come before what they are put together to: that is even if
        they are.
        """
        changed = False
        for cell in sorted(self.every(), key=lambda cell: cell.size):
            counts = cell.keep.sum(-1)
            most = max(int(counts.max(initial=0)), 1)
            if cell.size and counts.size and int(counts.min()) < most:
                _pad(cell, most, alone if most == 1 and not counts.any() else uneven)
                self._close(cell.links)
                changed = True
        return changed


ALONE = "every axis keeps at least one position"
UNEVEN = "every step of a loop keeps as many positions as the others"


def _pad(cell: Cell, most: int, reason: int) -> None:
    """Add the first removed positions, until each step keeps `most`."""
    rows = cell.why.reshape(math.prod(cell.prefix), cell.size).copy()
    for row in rows:
        free = np.flatnonzero(row == FREE)
        row[free[: most - int((row != FREE).sum())]] = reason
    cell.why = rows.reshape(cell.why.shape)
