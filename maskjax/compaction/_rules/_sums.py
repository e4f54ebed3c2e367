"""Operations along an axis: sums, extremes, sorting, running sums."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskjax._core.trees import Array
from maskjax.compaction._facts import Fact, Facts, Known
from maskjax.compaction._program import Equation
from maskjax.compaction._rules._rule import Links, Rule, told
from maskjax.compaction._small import Small


def _gone(equation: Equation) -> Sequence[int]:
    """The axes that are summed, or compared."""
    params = equation.params
    return params["dimensions"] if equation.name == "reduce" else params["axes"]


def _rest(equation: Equation) -> list[int]:
    """The axes of the input that are left, in order."""
    gone = _gone(equation)
    return [i for i in range(len(equation.ins[0].shape)) if i not in gone]


def _reduce_links(equation: Equation, links: Links) -> None:
    """What is summed is needed where it is not 0; so with all that changes nothing."""
    name = equation.name
    for var in equation.ins:
        if not var.shape:
            continue
        for axis in _gone(equation):
            if name not in _NEUTRAL:
                why = f"enters {told(equation)}, which is not a sum"
                links.pin(var, [axis], why)
                continue
            needed = ~_neutral(name, links.facts.of(var)[axis])
            if links.ghosts is not None and name in _WITH_GHOSTS:
                needed = needed & links.ghosts.first(var, axis)
            if name == "reduce_sum":
                why = f"is not zero where it is summed, in {told(equation)}"
            else:
                why = f"enters {told(equation)}, which is not a sum"
            links.need(var, axis, needed, why)
        for out in equation.outs:
            for to, axis in enumerate(_rest(equation)):
                links.same(var, axis, out, to)


# What changes nothing, for numbers; of bits, none or all.
_NEUTRAL: dict[str, Any] = {
    "reduce_sum": 0,
    "reduce_prod": 1,
    "reduce_and": None,
    "reduce_or": 0,
    "reduce_xor": 0,
    "reduce_max": -np.inf,
    "reduce_min": np.inf,
}
_WITH_GHOSTS = ("reduce_sum", "reduce_max", "reduce_min")


def _neutral(name: str, known: Known | None) -> np.ndarray:
    if known is None:
        return np.zeros((), bool)
    number = _NEUTRAL[name]
    if number is None:
        number = np.invert(np.zeros((), known.value.dtype))
    return known.where & (known.value == number)


def _reduce_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    """The same; one of several equal positions counts for those that left."""
    if small.ghosts is None or equation.name != "reduce_sum":
        return equation.bind(*arrays)
    [x], [var] = arrays, equation.ins
    for axis in equation.params["axes"]:
        weights = small.ghosts.weights(var, axis, small.keep(var, axis))
        if weights is not None:
            lead = len(var.prefix(axis)) - len(var.scope)
            row = jnp.asarray(small.now(weights, lead), x.dtype)
            others = [i for i in range(row.ndim - 1, x.ndim) if i != axis]
            x = x * jnp.expand_dims(row, others)
    return equation.bind(x)


_REPEATED = "reduce_sum reduce_max reduce_min reduce_and reduce_or".split()


def _reduce_facts(equation: Equation, facts: Facts) -> list[Fact]:
    (x, *_), (out, *_) = equation.ins, equation.outs
    count = math.prod(x.shape[i] for i in _gone(equation))

    def reduced(known: Known | None) -> Known | None:
        if known is None or count == 0:
            return None
        if equation.name == "reduce_sum":
            with np.errstate(all="ignore"):
                value = known.value * np.asarray(count, known.value.dtype)
            return Known(known.where, value.astype(out.dtype))
        return known

    if equation.name not in _REPEATED:
        return [(None,) * max(len(o.shape), 1) for o in equation.outs]
    if not out.shape:
        return [(reduced(facts.whole(x)),)]
    return [
        tuple(
            reduced(facts.spread(x, axis, out, to))
            for to, axis in enumerate(_rest(equation))
        )
    ]


def _axis(equation: Equation) -> Sequence[int]:
    """The axis along which positions meet."""
    params = equation.params
    for name in ("axis", "dimension"):
        if name in params:
            return (params[name] % len(equation.ins[0].shape),)
    return (len(equation.ins[0].shape) - 1,)


def _along_links(equation: Equation, links: Links) -> None:
    """Positions of one axis meet; the others go through."""
    first = equation.ins[0]
    meet = _axis(equation)
    for var in (*equation.ins, *equation.outs):
        if len(var.shape) != len(first.shape):
            continue
        links.pin(var, meet, f"enters {told(equation)}, where positions meet")
        for axis, n in enumerate(var.shape):
            if axis not in meet and n == first.shape[axis]:
                links.same(first, axis, var, axis)


def _along_facts(equation: Equation, facts: Facts) -> list[Fact]:
    """0 stays 0 in running sums and products, in sorting, on the other axes."""
    (x, *_), meet = equation.ins, _axis(equation)
    fact: list[Known | None] = []
    out = equation.outs[0]
    for axis in range(len(x.shape)):
        known = None if axis in meet else facts.spread(x, axis, out, axis)
        if known is not None and equation.name != "sort":
            where = known.zeros()
            known = Known(where, known.value) if where.any() else None
        fact.append(known)
    none = (None,) * max(len(x.shape), 1)
    single = len(equation.ins) == 1
    return [
        tuple(fact) if single and not i else none for i in range(len(equation.outs))
    ]


_REDUCE = Rule(_reduce_links, _reduce_facts, _reduce_emit)
_ALONG = Rule(_along_links, _along_facts)
_ALONG_UNKNOWN = Rule(_along_links)

RULES = {
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor "
        "argmax argmin reduce".split(),
        _REDUCE,
    ),
    **dict.fromkeys("cumsum cumprod cummax cummin sort".split(), _ALONG),
    **dict.fromkeys("cumlogsumexp top_k approx_top_k".split(), _ALONG_UNKNOWN),
}
