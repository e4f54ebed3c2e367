"""Pooling: windows of 1 go through, others slide over all positions."""

import numpy as np

from maskjax.compaction._facts import Fact, Facts, Known
from maskjax.compaction._program import Equation
from maskjax.compaction._rules._rule import Links, Rule, told


def _through(equation: Equation) -> list[int]:
    """The axes along which nothing slides."""
    params, x = equation.params, equation.ins[0]
    ones = (1,) * len(x.shape)
    window = params.get("window_dimensions", ones)
    strides = params.get("window_strides", ones)
    padding = params.get("padding", ((0, 0),) * len(x.shape))
    dilation = params.get("base_dilation", ones)
    return [
        i
        for i in range(len(x.shape))
        if window[i] == strides[i] == dilation[i] == 1 and tuple(padding[i]) == (0, 0)
    ]


def _links(equation: Equation, links: Links) -> None:
    through, first = _through(equation), equation.ins[0]
    for var in (*equation.ins, *equation.outs):
        if not var.shape:
            continue
        for axis in range(len(var.shape)):
            if axis in through:
                links.same(first, axis, var, axis)
            else:
                links.pin(var, [axis], f"slides in {told(equation)}")


_SUMS = ("reduce_window_sum", "select_and_scatter_add")
_EXTREMES = ("reduce_window_max", "reduce_window_min")


def _facts(equation: Equation, facts: Facts) -> list[Fact]:
    x, out = equation.ins[0], equation.outs[0]
    fact: list[Known | None] = [None] * len(out.shape)
    for axis in _through(equation):
        known = facts.spread(x, axis, out, axis)
        if known is not None and equation.name in _SUMS:
            where = known.zeros()
            known = Known(where, known.value) if np.any(where) else None
        fact[axis] = known if equation.name in (*_SUMS, *_EXTREMES) else None
    return [tuple(fact)] * len(equation.outs)


RULES = dict.fromkeys(
    "reduce_window reduce_window_max reduce_window_min reduce_window_sum "
    "select_and_gather_add select_and_scatter_add".split(),
    Rule(_links, _facts),
)
