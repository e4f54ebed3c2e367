"""Axes that are permuted, spread, split and flattened: nothing is computed."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maskjax._core.trees import Array
from maskjax.compaction._facts import Fact, Facts, Known
from maskjax.compaction._program import Equation, Var, bare_axis
from maskjax.compaction._rules._rule import Links, Rule, pin
from maskjax.compaction._small import Small


def _spread_links(equation: Equation, links: Links) -> None:
    (x, *_), (out,) = equation.ins, equation.outs
    for axis, to in enumerate(equation.params["broadcast_dimensions"]):
        if x.shape[axis] == out.shape[to]:
            links.same(x, axis, out, to)


def _spread_facts(equation: Equation, facts: Facts) -> list[Fact]:
    (x, *_), (out,) = equation.ins, equation.outs
    whole = facts.whole(x)
    mapped = {to: i for i, to in enumerate(equation.params["broadcast_dimensions"])}
    fact = []
    for axis, n in enumerate(out.shape):
        i = mapped.get(axis)
        if i is not None and x.shape[i] == n:
            fact.append(facts.spread(x, i, out, axis))
        else:
            fact.append(facts.spread(x, -1, out, axis) if whole else None)
    return [tuple(fact)]


def _spread_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    shape = small.shape(equation.outs[0])
    return equation.bind(*arrays, shape=shape)


def _axes_of(equation: Equation) -> list[int]:
    """For each axis of the output, the axis of the input that it is."""
    if equation.name == "transpose":
        return list(equation.params["permutation"])
    gone = equation.params["dimensions"]
    return [i for i in range(len(equation.ins[0].shape)) if i not in gone]


def _permuted_links(equation: Equation, links: Links) -> None:
    (x,), (out,) = equation.ins, equation.outs
    for to, axis in enumerate(_axes_of(equation)):
        links.same(x, axis, out, to)


def _permuted_facts(equation: Equation, facts: Facts) -> list[Fact]:
    (x,), (out,) = equation.ins, equation.outs
    if not out.shape:
        return [(facts.whole(x),)]
    axes = _axes_of(equation)
    return [tuple(facts.spread(x, axis, out, to) for to, axis in enumerate(axes))]


# Reshape: the least blocks of axes whose sizes have the same product.


def _blocks(
    before: Sequence[int], after: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Axes of equal products; those of 1 are in none."""
    ins = [(i, n) for i, n in enumerate(before) if n != 1]
    outs = [(i, n) for i, n in enumerate(after) if n != 1]
    a = b = 0
    while a < len(ins) and b < len(outs):
        first, second = [ins[a][0]], [outs[b][0]]
        left, right = ins[a][1], outs[b][1]
        a, b = a + 1, b + 1
        while left != right:
            if left < right:
                left *= ins[a][1]
                first.append(ins[a][0])
                a += 1
            else:
                right *= outs[b][1]
                second.append(outs[b][0])
                b += 1
        yield first, second


_MOST = 1 << 25  # a flat axis of more positions is not followed


def _reshape_links(equation: Equation, links: Links) -> None:
    (x, *_), (out,) = equation.ins, equation.outs
    if 0 in x.shape:
        pin(equation, links, "goes into reshape")
        return
    for ins, outs in _blocks(x.shape, out.shape):
        size = math.prod(x.shape[i] for i in ins)
        if len(ins) > 1 and len(outs) > 1 and size <= _MOST:
            flat = bare_axis(size, x)
            links.product((flat, 0), [(x, i) for i in ins])
            links.product((flat, 0), [(out, i) for i in outs])
        elif size > _MOST and len(ins) + len(outs) > 2:
            why = f"a reshape of {size} positions is not followed"
            links.pin(x, ins, why)
            links.pin(out, outs, why)
        elif len(ins) > 1:
            links.product((out, outs[0]), [(x, i) for i in ins])
        else:
            links.product((x, ins[0]), [(out, i) for i in outs])


def _reshape_facts(equation: Equation, facts: Facts) -> list[Fact]:
    (x, *_), (out,) = equation.ins, equation.outs
    fact: list[Known | None] = [None] * max(len(out.shape), 1)
    whole = facts.whole(x)
    if not out.shape or 0 in x.shape:
        return [(whole,)] if not out.shape else [tuple(fact)]
    for axis, n in enumerate(out.shape):
        if n == 1:
            fact[axis] = facts.spread(x, -1, out, axis) if whole else None
    for ins, outs in _blocks(x.shape, out.shape):
        sizes = [x.shape[i] for i in ins]
        if math.prod(sizes) > _MOST:
            continue
        for to in outs:
            knowns = [facts.spread(x, i, out, to, x.shape[i]) for i in ins]
            if any(k is not None for k in knowns):
                flat = _flat(knowns, sizes, out.prefix(to))
                fact[to] = flat if len(outs) == 1 else _factor(flat, out, outs, to)
    return [tuple(fact)]


def _flat(
    knowns: Sequence[Known | None], sizes: Sequence[int], steps: tuple[int, ...]
) -> Known:
    """A flat position is known if one of its factors is."""
    where = np.zeros((*steps, *sizes), bool)
    value: Any = None
    for i, known in enumerate(knowns):
        if known is None:
            continue
        shape = [1] * len(sizes)
        shape[i] = sizes[i]
        own = known.where.reshape(*steps, *shape)
        number = known.value.reshape(*steps, *shape)
        value = np.where(own, number, 0 if value is None else value)
        where = where | own
    value = np.broadcast_to(value, where.shape)
    n = math.prod(sizes)
    return Known(where.reshape(*steps, n), value.reshape(*steps, n))


def _factor(flat: Known, out: Var, outs: Sequence[int], axis: int) -> Known | None:
    """A position of a factor is known if all its flat ones are, and are the same."""
    steps = flat.where.shape[:-1]
    shape = (*steps, *(out.shape[i] for i in outs))
    rows = [
        np.moveaxis(x.reshape(shape), len(steps) + outs.index(axis), len(steps))
        for x in flat
    ]
    n = out.shape[axis]
    where, value = (x.reshape(*steps, n, -1) for x in rows)
    same = where.all(-1) & (value == value[..., :1]).all(-1)
    return Known(same, value[..., 0]) if same.any() else None


def _reshape_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    return equation.bind(*arrays, new_sizes=small.shape(equation.outs[0]))


RULES = {
    "broadcast_in_dim": Rule(_spread_links, _spread_facts, _spread_emit),
    "transpose": Rule(_permuted_links, _permuted_facts),
    "squeeze": Rule(_permuted_links, _permuted_facts),
    "reshape": Rule(_reshape_links, _reshape_facts, _reshape_emit),
}
