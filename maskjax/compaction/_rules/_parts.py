"""Parts: an axis of one value has some positions of an axis of another."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maskjax._core.trees import Array
from maskjax.compaction._facts import Fact, Facts, Known, met
from maskjax.compaction._program import Equation, Var, bare_axis
from maskjax.compaction._rules._rule import Links, Rule
from maskjax.compaction._small import Small


def _parts(equation: Equation) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """(input, output, axis, places in the longer of the two); only changed axes."""
    params, name = equation.params, equation.name
    x, out = equation.ins[0], equation.outs[0]
    if name == "concatenate":
        axis, start = params["dimension"], 0
        for i, var in enumerate(equation.ins):
            yield i, 0, axis, np.arange(start, start + var.shape[axis])
            start += var.shape[axis]
    elif name == "split":
        axis, start = params["axis"], 0
        for i, n in enumerate(params["sizes"]):
            yield 0, i, axis, np.arange(start, start + n)
            start += n
    elif name == "slice":
        strides = params["strides"] or (1,) * len(x.shape)
        for axis, n in enumerate(out.shape):
            if n != x.shape[axis]:
                first = params["start_indices"][axis]
                yield 0, 0, axis, first + strides[axis] * np.arange(n)
    elif name == "rev":
        for axis in params["dimensions"]:
            yield 0, 0, axis, np.arange(x.shape[axis])[::-1]


def _part_links(equation: Equation, links: Links) -> None:
    """Axes that are not cut are equal."""
    changed = set()
    for i, o, axis, places in _parts(equation):
        x, out = equation.ins[i], equation.outs[o]
        changed.add(axis)
        if equation.name == "concatenate":
            links.part((out, axis), (x, axis), places)
        else:
            links.part((x, axis), (out, axis), places)
    for x, out in itertools.product(equation.ins, equation.outs):
        for axis in range(len(out.shape)):
            if axis not in changed:
                links.same(x, axis, out, axis)


def _part_facts(equation: Equation, facts: Facts) -> list[Fact]:
    changed: dict[int, list[Any]] = {}
    for i, o, axis, places in _parts(equation):
        changed.setdefault(axis, []).append((i, o, places))
    found = []
    for o, out in enumerate(equation.outs):
        fact = []
        for axis in range(len(out.shape)):
            cuts = [cut for cut in changed.get(axis, []) if cut[1] == o]
            fact.append(
                _placed(equation, facts, axis, cuts)
                if cuts
                else _common(equation, facts, out, axis)
            )
        found.append(tuple(fact))
    return found


def _common(equation: Equation, facts: Facts, out: Var, axis: int) -> Known | None:
    """What all inputs have in common, along an axis that is not cut."""
    first, *more = equation.ins
    known = facts.spread(first, axis, out, axis)
    for var in more:
        i = axis if var.shape else -1
        known = met(known, facts.spread(var, i, out, axis))
    return known


def _placed(
    equation: Equation, facts: Facts, axis: int, cuts: Sequence[Any]
) -> Known | None:
    """By position, along an axis that is cut, or put together."""
    out = equation.outs[cuts[0][1]]
    if equation.name != "concatenate":
        [(i, _, places)] = cuts
        x = equation.ins[i]
        known = facts.spread(x, axis, out, axis, x.shape[axis])
        if known is None:
            return None
        return Known(known.where[..., places], known.value[..., places])
    shape = (*out.prefix(axis), out.shape[axis])
    where, value = np.zeros(shape, bool), np.zeros(shape, out.dtype)
    for i, _, places in cuts:
        x = equation.ins[i]
        known = facts.spread(x, axis, out, axis, x.shape[axis])
        if known is not None:
            where[..., places], value[..., places] = known
    return Known(where, value) if where.any() else None


def _split_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    axis = equation.params["axis"]
    places = [where for *_, where in _parts(equation)]
    keep = small.keep(equation.ins[0], axis)
    sizes = tuple(small.uniform(keep[..., where].sum(-1)) for where in places)
    return equation.bind(*arrays, sizes=sizes)


def _slice_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    [x] = arrays
    var, out = equation.ins[0], equation.outs[0]
    for _, _, axis, where in _parts(equation):
        keep, kept = small.keep(var, axis), small.keep(out, axis)
        full = np.zeros_like(keep)
        wide = np.broadcast_to(kept, (*keep.shape[:-1], kept.shape[-1]))
        full[..., where] = wide
        rank = keep.cumsum(-1) - 1  # a position's place among those that stay
        k = small.count(out, axis)
        table = rank[full].reshape(*keep.shape[:-1], k)
        lead = len(var.prefix(axis)) - len(var.scope)
        x = small.taken(x, axis, table, lead)
    return [x]


# Padding puts positions around an axis and between, or, if negative, cuts some off.


def _pads(equation: Equation) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(axis, the input's positions that stay, and where they come to be)."""
    x, out = equation.ins[0], equation.outs[0]
    for axis, (low, high, inner) in enumerate(equation.params["padding_config"]):
        if low or high or inner:
            places = low + (inner + 1) * np.arange(x.shape[axis])
            stay = (places >= 0) & (places < out.shape[axis])
            yield axis, np.flatnonzero(stay), places[stay]


def _pad_links(equation: Equation, links: Links) -> None:
    (x, _), (out,) = equation.ins, equation.outs
    changed = set()
    for axis, stay, places in _pads(equation):
        changed.add(axis)
        if not len(stay):
            links.pin(x, [axis], "goes into pad")
            links.pin(out, [axis], "comes from pad")
        elif len(stay) == x.shape[axis]:
            links.part((out, axis), (x, axis), places)
        elif len(stay) == out.shape[axis]:
            links.part((x, axis), (out, axis), stay)
        else:
            both = (bare_axis(len(stay), x), 0)
            links.part((x, axis), both, stay)
            links.part((out, axis), both, places)
    for axis in range(len(out.shape)):
        if axis not in changed:
            links.same(x, axis, out, axis)


def _pad_facts(equation: Equation, facts: Facts) -> list[Fact]:
    (x, filler), (out,) = equation.ins, equation.outs
    config = equation.params["padding_config"]
    cuts = {axis: rest for axis, *rest in _pads(equation)}
    grows = {axis for axis, widths in enumerate(config) if max(widths) > 0}
    fact = []
    for axis, n in enumerate(out.shape):
        known = facts.spread(x, axis, out, axis, x.shape[axis])
        around = facts.spread(filler, -1, out, axis)
        if axis in cuts:
            stay, places = cuts[axis]
            shape = (*out.prefix(axis), n)
            where, value = np.zeros(shape, bool), np.zeros(shape, out.dtype)
            if around is not None:
                where, value = around.where.copy(), around.value.copy()
            where[..., places] = False
            if known is not None:
                where[..., places] = known.where[..., stay]
                value[..., places] = known.value[..., stay]
            known = Known(where, value) if where.any() else None
        # What is put in along other axes is part of each slice.
        fact.append(met(known, around) if grows - {axis} else known)
    return [tuple(fact)]


def _pad_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    (x, _), (out,) = equation.ins, equation.outs
    config = list(equation.params["padding_config"])
    gaps = []
    for axis, stay, places in _pads(equation):
        before, after = small.keep(x, axis), small.keep(out, axis)
        if before.all() and after.all():
            continue
        if config[axis][2]:
            gaps.append((axis, _filled(small, (x, axis), (out, axis), stay, places)))
            config[axis] = (0, 1, 0)  # an entry to fill all gaps with
            continue
        counts = [
            small.uniform(put.sum(-1)) - small.uniform(cut.sum(-1))
            for put, cut in (
                (after[..., : places[0]], before[..., : stay[0]]),
                (after[..., places[-1] + 1 :], before[..., stay[-1] + 1 :]),
            )
        ]
        config[axis] = (*counts, 0)
    [padded] = equation.bind(*arrays, padding_config=tuple(config))
    for axis, table in gaps:
        lead = len(out.prefix(axis)) - len(out.scope)
        padded = small.taken(padded, axis, table, lead)
    return [padded]


def _filled(
    small: Small, x: tuple[Var, int], out: tuple[Var, int], stay: Any, places: Any
) -> np.ndarray:
    """For each position that stays, which of the input's it is, or one past them."""
    before, after = small.keep(*x), small.keep(*out)
    table = np.full(after.shape, small.count(*x))
    rank = np.where(before, before.cumsum(-1) - 1, table.flat[0])
    table[..., places] = rank[..., stay]
    return table[after].reshape(*after.shape[:-1], small.count(*out))


RULES = {
    "concatenate": Rule(_part_links, _part_facts),
    "split": Rule(_part_links, _part_facts, _split_emit),
    "slice": Rule(_part_links, _part_facts, _slice_emit),
    "rev": Rule(_part_links, _part_facts),
    "pad": Rule(_pad_links, _pad_facts, _pad_emit),
}
