"""Dot products and convolutions: what is 0 on one side is not needed on the other."""

from typing import Any

import numpy as np

from maskjax._core.trees import Array
from maskjax.compaction._facts import Fact, Facts, Known, zero
from maskjax.compaction._program import Equation, Var, bare_axis
from maskjax.compaction._rules._rule import Links, Rule, told
from maskjax.compaction._small import Small


def _needed(links: Links, sides: list[tuple[Var, int]], equation: Equation) -> None:
    """A position that is contracted stays where neither side is 0."""
    (var, axis), *_ = sides
    dead: Any = False
    for side in sides:
        known = links.facts.spread(*side, var, axis)
        dead = dead if known is None else known.zeros() | dead
    needed = ~np.asarray(dead)
    data = links.folding.data(equation) if links.folding is not None else None
    if links.folding is not None and data is not None:
        constant = links.facts.common(*data)
        needed = needed & ~np.asarray(links.folding.spared(equation, constant))
    links.need(var, axis, needed, f"is not zero where it enters {told(equation)}")


def _dot_axes(equation: Equation) -> tuple[Any, Any, list[int], list[int]]:
    """Pairs contracted, pairs of the batch, free axes of both sides."""
    (contracted, batch) = equation.params["dimension_numbers"]
    x, y = equation.ins
    free = [
        [
            i
            for i in range(len(var.shape))
            if i not in contracted[side] and i not in batch[side]
        ]
        for side, var in enumerate((x, y))
    ]
    return contracted, batch, free[0], free[1]


def _dot_links(equation: Equation, links: Links) -> None:
    (x, y), (out,) = equation.ins, equation.outs
    contracted, batch, own, others = _dot_axes(equation)
    for i, j in zip(*contracted, strict=True):
        links.same(x, i, y, j)
        _needed(links, [(x, i), (y, j)], equation)
    for to, (i, j) in enumerate(zip(*batch, strict=True)):
        links.same(x, i, y, j)
        links.same(x, i, out, to)
        links.same(y, j, out, to)
    start = len(batch[0])
    for k, axis in enumerate(own):
        links.same(x, axis, out, start + k)
    for k, axis in enumerate(others):
        links.same(y, axis, out, start + len(own) + k)


def _dot_facts(equation: Equation, facts: Facts) -> list[Fact]:
    (x, y), (out,) = equation.ins, equation.outs
    contracted, batch, own, others = _dot_axes(equation)
    sources: list[list[tuple[Var, int]]] = [
        [(x, i), (y, j)] for i, j in zip(*batch, strict=True)
    ]
    sources += [[(x, i)] for i in own] + [[(y, i)] for i in others]
    fact: list[Known | None] = []
    for to, sides in enumerate(sources):
        where = np.zeros((*out.prefix(to), out.shape[to]), bool)
        for var, axis in sides:
            known = facts.spread(var, axis, out, to)
            if known is not None:
                where = where | known.zeros()
        fact.append(zero(where, out.dtype))
    nothing = _nothing_meets(facts, x, y, contracted)
    if nothing is not None and nothing.any():
        for to, n in enumerate(out.shape):
            steps = out.prefix(to)
            extra = (1,) * (len(steps) - nothing.ndim + 1)
            where = np.broadcast_to(nothing.reshape(nothing.shape + extra), (*steps, n))
            before = fact[to]
            fact[to] = zero(
                where if before is None else where | before.where, out.dtype
            )
        if not out.shape:
            fact = [zero(nothing.reshape(*out.scope, 1), out.dtype)]
    return [tuple(fact) or (None,)]


def _nothing_meets(facts: Facts, x: Var, y: Var, contracted: Any) -> Any:
    """For each step, whether everything that is contracted is 0, along one axis."""
    found = None
    for i, j in zip(*contracted, strict=True):
        rows = [facts.common(x, i), facts.common(y, j)]
        zeros = [row.zeros() for row in rows if row is not None]
        if zeros:
            dead = np.logical_or.reduce(zeros).all(-1)
            found = dead if found is None else found | dead
    return found


# Convolutions.


def _spec(equation: Equation) -> tuple[Any, Any, Any, int, int]:
    params = equation.params
    numbers = params["dimension_numbers"]
    return (
        numbers.lhs_spec,
        numbers.rhs_spec,
        numbers.out_spec,
        params["feature_group_count"],
        params["batch_group_count"],
    )


def _conv_links(equation: Equation, links: Links) -> None:
    (x, kernel), (out,) = equation.ins, equation.outs
    image, window, result, groups, batches = _spec(equation)
    why = f"slides in {told(equation)}"
    links.pin(x, image[2:], why)
    links.pin(kernel, window[2:], why)
    links.pin(out, result[2:], why)
    links.same(kernel, window[0], out, result[1])
    if batches > 1:
        of_one = (out, result[0])
        _grouped(links, batches, (x, image[0]), of_one, (kernel, window[0]))
        links.same(x, image[1], kernel, window[1])
        _needed(links, [(x, image[1]), (kernel, window[1])], equation)
        return
    links.same(x, image[0], out, result[0])
    if groups == 1:
        links.same(x, image[1], kernel, window[1])
        _needed(links, [(x, image[1]), (kernel, window[1])], equation)
        return
    depthwise = kernel.shape[window[1]] == 1
    if depthwise and kernel.shape[window[0]] == groups:
        links.same(x, image[1], kernel, window[0])
        _needed(links, [(x, image[1]), (kernel, window[0])], equation)
        return
    _grouped(links, groups, (x, image[1]), (kernel, window[1]), (kernel, window[0]))
    _needed(links, [(x, image[1])], equation)


def _grouped(
    links: Links,
    groups: int,
    flat: tuple[Var, int],
    inner: tuple[Var, int],
    outputs: tuple[Var, int],
) -> None:
    """Inputs are groups x inputs of one, outputs groups x outputs of one."""
    x, out = flat[0], outputs[0]
    group = (bare_axis(groups, x), 0)
    each = (bare_axis(out.shape[outputs[1]] // groups, x), 0)
    links.product(flat, [group, inner])
    links.product(outputs, [group, each])


def _conv_facts(equation: Equation, facts: Facts) -> list[Fact]:
    (x, kernel), (out,) = equation.ins, equation.outs
    image, window, result, groups, batches = _spec(equation)
    fact: list[Known | None] = [None] * len(out.shape)
    to = result[1]
    steps, n = out.prefix(to), out.shape[to]
    dead = np.zeros((*steps, n), bool)
    known = facts.spread(kernel, window[0], out, to)
    if known is not None:
        dead = dead | known.zeros()
    size = x.shape[image[1]]
    rows = facts.spread(x, image[1], out, to, size)
    zeros = np.zeros((*steps, size), bool) if rows is None else rows.zeros()
    ins = kernel.shape[window[1]]
    inner = facts.spread(kernel, window[1], out, to, ins)
    zeros = zeros.reshape(*steps, groups, ins)
    if inner is not None:
        zeros = zeros | inner.zeros()[..., None, :]
    nothing = np.repeat(zeros.all(-1), n // groups, axis=-1)  # of each output
    fact[to] = zero(dead | nothing, out.dtype)
    if batches == 1:
        known = facts.spread(x, image[0], out, result[0])
        if known is not None:
            fact[result[0]] = zero(known.zeros(), out.dtype)
    return [tuple(fact)]


def _conv_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    """As many groups as are left."""
    x, kernel = equation.ins
    image, window, result, groups, batches = _spec(equation)
    changes = {}
    if batches > 1:
        [out] = equation.outs
        count = small.count(x, image[0]) // small.count(out, result[0])
        changes["batch_group_count"] = count
    elif groups > 1:
        changes["feature_group_count"] = small.count(x, image[1]) // small.count(
            kernel, window[1]
        )
    return equation.bind(*arrays, **changes)


RULES = {
    "dot_general": Rule(_dot_links, _dot_facts),
    "conv_general_dilated": Rule(_conv_links, _conv_facts, _conv_emit),
}
