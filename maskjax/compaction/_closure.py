"""What leaves with a position: the closure of dropping it.

All positions of an axis are followed at once, each with the number of its unit; where
two numbers meet, they are one unit.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskjax.compaction._cells import Cell, Part, Product, Steps
from maskjax.compaction._rules import Links

NONE = -1


class Closure:
    """The units of one axis, and their numbers wherever positions leave with them."""

    def __init__(self, start: Cell, links: Links) -> None:
        self._links = links
        n = math.prod(start.prefix) * start.size
        self._same = np.arange(n)
        self.start = start
        self.numbers: dict[Cell, np.ndarray] = {
            start: np.arange(n, dtype=np.int64).reshape(*start.prefix, start.size)
        }
        self._spread()

    def _spread(self) -> None:
        queue = collections.deque(self.start.links)
        while queue:
            link = queue.popleft()
            for cell in self._through(link):
                queue.extend(other for other in cell.links if other not in queue)

    def _through(self, link: Any) -> list[Cell]:
        root = self._links.root
        if isinstance(link, Steps):
            return self._steps(link, root(link.few), root(link.many))
        if isinstance(link, Part):
            return self._part(root(link.big), root(link.small), link.places)
        return self._product(root(link.flat), [root(f) for f in link.factors])

    def _at(self, cell: Cell) -> np.ndarray:
        if cell not in self.numbers:
            shape = (*cell.prefix, cell.size)
            self.numbers[cell] = np.full(shape, NONE, np.int64)
        return self.numbers[cell]

    def _put(self, cell: Cell, numbers: np.ndarray) -> bool:
        """Units at some positions; those that meet there become one."""
        own = self._at(cell)
        numbers = np.broadcast_to(numbers, own.shape)
        both = (own != NONE) & (numbers != NONE) & (own != numbers)
        merged = both.any() and self._merge(own[both], numbers[both])
        new = (own == NONE) & (numbers != NONE)
        if new.any():
            self.numbers[cell] = np.where(new, numbers, own)
        return bool(new.any() or merged)

    def _merge(self, ones: np.ndarray, others: np.ndarray) -> bool:
        changed = False
        for a, b in {*zip(ones.tolist(), others.tolist(), strict=True)}:
            first, second = self.unit(a), self.unit(b)
            if first != second:
                self._same[max(first, second)] = min(first, second)
                changed = True
        return changed

    def unit(self, number: int) -> int:
        """The unit that a number stands for."""
        while self._same[number] != number:
            number = int(self._same[number])
        return number

    def units(self, cell: Cell) -> np.ndarray:
        """The unit at each position, or -1."""
        table = np.array([self.unit(i) for i in range(len(self._same))] + [NONE])
        return table[self.numbers[cell]]

    def _steps(self, link: Steps, few: Cell, many: Cell) -> list[Cell]:
        changed = []
        if few in self.numbers:
            if self._put(many, link.spread(self.numbers[few], many.prefix)):
                changed.append(many)
        if many in self.numbers:
            for row in link.rows(self.numbers[many]):
                if self._put(few, row) and few not in changed:
                    changed.append(few)
        return changed

    def _part(self, big: Cell, small: Cell, places: np.ndarray) -> list[Cell]:
        changed = []
        if big in self.numbers and self._put(small, self.numbers[big][..., places]):
            changed.append(small)
        left = np.arange(len(places) if small in self.numbers else 0)
        while len(left):  # a place may be there several times
            _, first = np.unique(places[left], return_index=True)
            up = np.full((*big.prefix, big.size), NONE, np.int64)
            up[..., places[left[first]]] = self.numbers[small][..., left[first]]
            left = np.delete(left, first)
            if self._put(big, up) and big not in changed:
                changed.append(big)
        return changed

    def _product(self, flat: Cell, factors: Sequence[Cell]) -> list[Cell]:
        changed = []
        k, sizes = len(flat.prefix), [f.size for f in factors]
        for i, factor in enumerate(factors):
            if factor not in self.numbers:
                continue
            shape = [1] * len(factors)
            shape[i] = factor.size
            own = self.numbers[factor].reshape(*flat.prefix, *shape)
            whole = np.broadcast_to(own, (*flat.prefix, *sizes))
            if self._put(flat, whole.reshape(*flat.prefix, flat.size)):
                changed.append(flat)
        if flat in self.numbers:
            grid = self.units(flat).reshape(*flat.prefix, *sizes)
            for i, factor in enumerate(factors):
                rows = np.moveaxis(grid, k + i, k).reshape(*flat.prefix, sizes[i], -1)
                same = (rows == rows[..., :1]).all(-1)
                if self._put(factor, np.where(same, rows[..., 0], NONE)):
                    changed.append(factor)
        return changed

    def fixed(self) -> dict[int, str]:
        """The units that meet a pin, or only a part of a product."""
        found: dict[int, str] = {}
        for cell, _, reason, pinned in self._links.needs:
            root = self._links.root(cell)
            if pinned and root in self.numbers:
                for unit in np.unique(self.units(root)).tolist():
                    found.setdefault(unit, reason)
        for link in self._links.links:
            if isinstance(link, Product):
                flat = self._links.root(link.flat)
                if flat in self.numbers:
                    for unit in self._unexplained(link, flat):
                        found.setdefault(unit, "leaves only with others of a product")
        found.pop(NONE, None)
        return found

    def _unexplained(self, link: Product, flat: Cell) -> list[int]:
        """Units at flat positions of which no factor's position leaves."""
        factors = [self._links.root(f) for f in link.factors]
        sizes = [f.size for f in factors]
        covered = np.zeros((*flat.prefix, *sizes), bool)
        for i, factor in enumerate(factors):
            if factor in self.numbers:
                shape = [1] * len(sizes)
                shape[i] = factor.size
                gone = self.numbers[factor] != NONE
                covered |= gone.reshape(*flat.prefix, *shape)
        units = self.units(flat)
        return np.unique(
            units[~covered.reshape(units.shape) & (units != NONE)]
        ).tolist()
