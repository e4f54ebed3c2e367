"""The three walks over a program: facts, links, and how it is written small."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskjax._core.trees import Array
from maskjax.compaction._facts import Fact, Facts
from maskjax.compaction._folding import Folding
from maskjax.compaction._ghosts import Ghosts
from maskjax.compaction._program import Const, Equation, Program, Var
from maskjax.compaction._rules import RULES, Links, as_it_is, pin, unknown
from maskjax.compaction._small import Small, Unfit

FOLDED = ("conv_general_dilated", "dot_general")


class Pinned(dict[Equation, str]):
    """Equations that cannot be written small, and why."""

    def add(self, unfit: Unfit) -> None:
        """One more."""
        self[unfit.equation] = f"goes into {unfit.equation.name}: {unfit.why}"


def facts_of(program: Program, ins: Sequence[Fact], *, masks: bool) -> Facts:
    """What is known of all values of a program, from what is known of its inputs.

    And of `masks` that it closes over, if so asked.
    """

    def follow(program: Program, facts: Facts) -> list[Fact]:
        for equation in program.equations:
            facts.now = equation
            rule = RULES.get(equation.name)
            found = unknown(equation, facts)
            if rule is not None:
                found = rule.facts(equation, facts)
            facts.update(zip(equation.outs, found, strict=True))
        return [facts.of(var) for var in program.outs]

    facts = Facts(follow, masks=masks)
    facts.follow(program, ins)
    return facts


def links_of(
    program: Program,
    facts: Facts,
    pinned: Pinned,
    folding: Folding | None = None,
    ghosts: Ghosts | None = None,
) -> Links:
    """How the axes of all values of a program go together."""

    def follow(program: Program, links: Links) -> None:
        for equation in program.equations:
            links.now = facts.now = equation
            for var in (*equation.ins, *equation.outs):
                links.of(var)  # axes that go with no other keep a position too
            rule = RULES.get(equation.name)
            why = pinned.get(equation)
            if rule is None:
                why = f"meets {equation.name}, for which there is no rule"
            if rule is not None and (why is None or equation.bodies):
                rule.links(equation, links)
            if why is not None:
                pin(equation, links, why)

    links = Links(facts, follow, folding, ghosts)
    links.follow(program)
    return links


def written(
    program: Program,
    links: Links,
    pinned: Pinned,
    arrays: Sequence[Array],
    whole: Sequence[bool],
    steps: tuple[Any, ...] = (),
    *,
    trial: bool = False,
) -> list[Array]:
    """The small outputs of a program, of inputs that are small, or `whole`.

    `steps` has the number of the member, for a program of a stack of members.

    Raises:
        Unfit: In a trial, if an equation can't be written for the positions that stay.
    """

    def follow(program: Program, small: Small, arrays: Sequence[Array]) -> list[Array]:
        env: dict[Var, Any] = dict(zip(program.ins, arrays, strict=True))

        def value(var: Var) -> Any:
            if var not in env:
                assert isinstance(var, Const), "a value before its equation"
                env[var] = small.cut(_array(var), var)
            return env[var]

        for equation in program.equations:
            with equation.inside():
                outs = _emitted(equation, [value(v) for v in equation.ins], small)
            env.update(zip(equation.outs, outs, strict=True))
        return [value(var) for var in program.outs]

    def _emitted(equation: Equation, arrays: list[Any], small: Small) -> list[Any]:
        rule = RULES.get(equation.name)
        fixed = rule is None or equation in pinned and not equation.bodies
        try:
            emit = as_it_is if rule is None or fixed else rule.emit
            outs = emit(equation.fitted(small.shape(equation.outs[0])), arrays, small)
        except (LookupError, TypeError, ValueError) as error:
            if fixed or not trial:
                raise
            raise Unfit(equation, str(error).split("\n")[0]) from error
        if links.folding is not None and equation.name in FOLDED:
            outs = [links.folding.added(equation, arrays, outs[0], small)]
        for out, var in zip(outs, equation.outs, strict=True):
            if jnp.shape(out) != small.shape(var):
                raise Unfit(equation, "it has another shape when written small")
        return outs

    equal = functools.cache(lambda: Ghosts(program, links.facts))
    small = Small(links, follow, equal, steps, links.ghosts, trial=trial)
    cut = [
        small.cut(x, var) if w else x
        for x, var, w in zip(arrays, program.ins, whole, strict=True)
    ]
    return follow(program, small, cut)


def _array(var: Const) -> Any:
    """A constant as an array of its own type."""
    if hasattr(var.value, "dtype") or var.dtype is None:
        return var.value
    return np.asarray(var.value, var.dtype)
