"""Operations on each entry, and values that come from nowhere."""

import numpy as np

from maskjax._core.trees import Array
from maskjax.compaction import _evaluation, _facts
from maskjax.compaction._program import ENTRIES, Equation
from maskjax.compaction._rules._rule import Links, Rule
from maskjax.compaction._small import Small


def _entry_by_entry(equation: Equation, links: Links) -> None:
    """Equal axes keep the same; an axis of 1, or a scalar, is shared by all."""
    out = equation.outs[0]
    for other in equation.outs[1:]:
        for axis in range(len(out.shape)):
            links.same(out, axis, other, axis)
    for var in equation.ins:
        if len(var.shape) != len(out.shape):
            continue
        for axis, n in enumerate(out.shape):
            if var.shape[axis] == n:
                links.same(out, axis, var, axis)


def _pairs(equation: Equation, links: Links) -> None:
    """Each output is made of the input at its place."""
    for one, other in zip(equation.ins, equation.outs, strict=True):
        for axis in range(len(one.shape)):
            links.same(one, axis, other, axis)


def _carried(equation: Equation, facts: _facts.Facts) -> list[_facts.Fact]:
    return [
        tuple(facts.spread(x, axis, out, axis) for axis in range(len(out.shape)))
        or facts.of(x)
        for x, out in zip(equation.ins, equation.outs, strict=True)
    ]


def _zeros(equation: Equation, facts: _facts.Facts) -> list[_facts.Fact]:
    """What is 0 on every device."""
    return [
        tuple(k and _facts.zero(k.zeros(), var.dtype) for k in fact)
        for fact, var in zip(_carried(equation, facts), equation.ins, strict=True)
    ]


def _nothing(equation: Equation, links: Links) -> None:
    for var in equation.ins:
        links.pin(var, range(len(var.shape)), f"goes into {equation.name}")


def _any(equation: Equation, facts: _facts.Facts) -> list[_facts.Fact]:
    """What is never read may be 0, which agrees with most."""
    [out] = equation.outs
    if not out.shape:
        return [(_facts.zero(np.ones((*out.scope, 1), bool), out.dtype),)]
    return [
        tuple(
            _facts.zero(np.ones((*out.prefix(axis), n), bool), out.dtype)
            for axis, n in enumerate(out.shape)
        )
    ]


def _whole_then_cut(
    equation: Equation, arrays: list[Array], small: Small
) -> list[Array]:
    """Random numbers and counts are the same as in the whole network."""
    outs = equation.bind(*arrays)
    return [small.cut(x, var) for x, var in zip(outs, equation.outs, strict=True)]


# The same values elsewhere, and with those of other devices.
_SAME = "device_put mesh_cast optimization_barrier pvary reshard sharding_constraint"
_MEETINGS = "pmax pmin ppermute psum psum_invariant"


_ENTRIES = Rule(_entry_by_entry, _evaluation.elementwise)
_PAIRS = Rule(_pairs, _carried)
_SOURCE = Rule(_nothing, emit=_whole_then_cut)

RULES = {
    **dict.fromkeys(ENTRIES, _ENTRIES),
    **dict.fromkeys(_SAME.split(), _PAIRS),
    **dict.fromkeys(_MEETINGS.split(), Rule(_pairs, _zeros)),
    **dict.fromkeys(["iota", "random_bits", "random_gamma"], _SOURCE),
    **dict.fromkeys(["empty", "empty2"], Rule(_nothing, _any, _whole_then_cut)),
}
