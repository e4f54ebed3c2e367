"""Which axes of a program's values run along each other, and which of them stack.

A rule says which axes keep the same positions. Along such axes entry belongs to entry,
so that positions that differ along one of them can be compared step by step. Where
entries are moved or mixed along an axis, as in a sum, a sort or a flip, they can't.
"""

from typing import Any

from maskjax.compaction._facts import Facts
from maskjax.compaction._program import ENTRIES, Equation, Program, Var
from maskjax.compaction._rules import RULES, Links

_SHARED = ENTRIES | {"broadcast_in_dim"}


class _Recorder(Links):
    """Links that only note which axes they link."""

    def __init__(self, equation: Equation) -> None:
        super().__init__(Facts(lambda program, facts: []), lambda program, links: None)
        self._along = equation.along

    def same(self, a: Var, i: int, b: Var, j: int, *, read: bool = False) -> None:
        del read
        self._along.setdefault((a, b), set()).add((i, j))
        self._along.setdefault((b, a), set()).add((j, i))

    def counts(self, outside: Var, inside: Var) -> None:
        self.same(outside, 0, inside, -1)

    def product(self, flat: Any, factors: Any) -> None:
        if len(factors) == 1:
            self.same(*flat, *factors[0])

    def part(self, big: Any, small: Any, places: Any) -> None:
        del big, small, places

    def need(self, var: Var, axis: int, where: Any, reason: str) -> None:
        del var, axis, where, reason

    def pin(self, var: Var, axes: Any, reason: str) -> None:
        del var, axes, reason


def follow(program: Program) -> None:
    """Set `along` of all equations, and `lead` of all values.

    Stacked parameters, their moments and sums have axes that count the steps of a loop
    elsewhere.
    """
    _note(program)
    while _leads(program):
        pass


def _note(program: Program) -> None:
    for equation in program.equations:
        if equation.name in RULES:
            RULES[equation.name].links(equation, _Recorder(equation))
        for body in equation.bodies:
            _note(body)


def _leads(program: Program) -> bool:
    changed = False
    for equation in program.equations:
        # Others may be as large as a batch.
        shared = equation.name in _SHARED  # axes of 1, as in masks
        for (one, other), along in equation.along.items():
            more = int((0, -1) in along)
            if more or shared or one.shape == other.shape:
                changed |= _lead(one, other, more, along)
        for body in equation.bodies:
            changed |= _leads(body)
    return changed


def _lead(one: Var, other: Var, more: int, along: set[tuple[int, int]]) -> bool:
    """Axes that stack in one value stack in the other, as far as they correspond.

    The first may have an axis `more`, which counts the steps of a loop.
    """
    common = 0
    while (common + more, common) in along:
        common += 1
    first = max(one.lead, more + min(other.lead, common))
    second = max(other.lead, min(one.lead - more, common))
    changed = (first, second) != (one.lead, other.lead)
    one.lead, other.lead = first, second
    return changed
