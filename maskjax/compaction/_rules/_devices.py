"""Values that are put together from all devices of a mesh axis, or cut for each."""

import numpy as np

from maskjax.compaction._facts import Fact, Facts, Known, zero
from maskjax.compaction._program import Equation, Var, bare_axis
from maskjax.compaction._rules._rule import Links, Rule, told


def _sides(equation: Equation) -> tuple[Var, Var, int]:
    """The value of one device, that of all, and the axis of all where they meet."""
    [x], [out], params = equation.ins, equation.outs, equation.params
    if equation.name == "reduce_scatter":
        return out, x, params["scatter_dimension"]
    return x, out, params["all_gather_dimension"]


def _axes(equation: Equation) -> list[tuple[int, int]]:
    """Axes of the value of one device, and of all, that are the same."""
    one, _, axis = _sides(equation)
    if equation.params["tiled"]:
        return [(i, i) for i in range(len(one.shape)) if i != axis]
    return [(i, i + int(i >= axis)) for i in range(len(one.shape))]


def _links(equation: Equation, links: Links) -> None:
    one, every, axis = _sides(equation)
    why = f"is of all devices in {told(equation)}"
    if equation.params["tiled"]:
        devices = bare_axis(every.shape[axis] // one.shape[axis], one)
        links.pin(devices, [0], why)
        links.product((every, axis), [(devices, 0), (one, axis)])
    else:
        links.pin(every, [axis], why)
    for i, j in _axes(equation):
        links.same(one, i, every, j)


def _facts(equation: Equation, facts: Facts) -> list[Fact]:
    """What is 0 on every device."""
    one, every, axis = _sides(equation)
    [x], [out] = equation.ins, equation.outs
    fact: list[Known | None] = [None] * max(len(out.shape), 1)
    for i, j in _axes(equation):
        source, to = (i, j) if x is one else (j, i)
        fact[to] = facts.spread(x, source, out, to)
    if x is one and equation.params["tiled"]:
        known = facts.spread(x, axis, out, axis, x.shape[axis])
        times = every.shape[axis] // one.shape[axis]
        if known is not None:
            fact[axis] = Known(*(np.concatenate([row] * times, -1) for row in known))
    return [tuple(known and zero(known.zeros(), out.dtype) for known in fact)]


RULES = dict.fromkeys(
    "all_gather all_gather_invariant reduce_scatter".split(), Rule(_links, _facts)
)
