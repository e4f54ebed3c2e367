"""What is to be known of a class of primitives."""

import dataclasses
from collections.abc import Callable
from typing import Any

from maskjax._core.trees import Array
from maskjax.compaction._cells import Cells
from maskjax.compaction._facts import Fact, Facts
from maskjax.compaction._folding import Folding
from maskjax.compaction._ghosts import Ghosts
from maskjax.compaction._program import Equation, Program, Var
from maskjax.compaction._small import Small


class Links(Cells):
    """Cells, with what their links may ask.

    Attributes:
        facts: What is known of the values.
        follow: Links the values of a program inside.
        folding: Finds what can be folded, if anything is to be.
        ghosts: Which positions are equal, if one may stand for the others.
    """

    def __init__(
        self,
        facts: Facts,
        follow: Callable[[Program, "Links"], None],
        folding: Folding | None = None,
        ghosts: Ghosts | None = None,
    ) -> None:
        super().__init__()
        self.facts, self._follow = facts, follow
        self.folding, self.ghosts = folding, ghosts

    def counts(self, outside: Var, inside: Var) -> None:
        """The first axis of a value counts the steps of a loop in which another is."""

    def follow(self, program: Program) -> None:
        """Link the values of a program inside."""
        now, facts = self.now, self.facts.now
        self._follow(program, self)
        self.now, self.facts.now = now, facts


def unknown(equation: Equation, facts: Facts) -> list[Fact]:
    """Nothing is known of what comes out."""
    return [(None,) * max(len(var.shape), 1) for var in equation.outs]


def as_it_is(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    """The same primitive with the same parameters, of smaller arrays."""
    return equation.bind(*arrays)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How axes go together, what is known, how to write it: for some primitives.

    Attributes:
        links: Links the cells of inputs and outputs.
        facts: The facts of the outputs.
        emit: The small outputs, of small inputs.
    """

    links: Callable[[Equation, Links], None]
    facts: Callable[[Equation, Facts], list[Fact]] = unknown
    emit: Callable[[Equation, list[Array], Small], list[Any]] = as_it_is


def told(equation: Equation) -> str:
    """Where an equation is, for people."""
    return f"{equation.name} in {equation.place}" if equation.place else equation.name


def pin(equation: Equation, links: Links, why: str) -> None:
    """All axes of all inputs and outputs have to stay."""
    for var in (*equation.ins, *equation.outs):
        links.pin(var, range(len(var.shape)), why)
