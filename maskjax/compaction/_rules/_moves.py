"""Operations that move entries: nothing is computed."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maskjax._core.trees import Array
from maskjax.compaction._facts import Fact, Facts, Known, met
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


# Parts: an axis of one value has some positions of an axis of another.


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
    elif name == "pad":
        for axis, (low, high, inner) in enumerate(params["padding_config"]):
            if low or high or inner:
                yield 0, 0, axis, low + (inner + 1) * np.arange(x.shape[axis])


def _part_links(equation: Equation, links: Links) -> None:
    """Axes that are not cut are equal."""
    changed = set()
    grows = equation.name in ("concatenate", "pad")
    for i, o, axis, places in _parts(equation):
        x, out = equation.ins[i], equation.outs[o]
        changed.add(axis)
        config = equation.params.get("padding_config")
        if config is not None and min(config[axis]) < 0:
            links.pin(x, [axis], "goes into pad")
            links.pin(out, [axis], "comes from pad")
        elif grows:
            links.part((out, axis), (x, axis), places)
        else:
            links.part((x, axis), (out, axis), places)
    ins = equation.ins[:1] if equation.name == "pad" else equation.ins
    for x, out in itertools.product(ins, equation.outs):
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
    steps, n = out.prefix(axis), out.shape[axis]
    if equation.name not in ("concatenate", "pad"):
        [(i, _, places)] = cuts
        x = equation.ins[i]
        known = facts.spread(x, axis, out, axis, x.shape[axis])
        if known is None:
            return None
        return Known(known.where[..., places], known.value[..., places])
    where = np.zeros((*steps, n), bool)
    value = np.zeros((*steps, n), out.dtype)
    filled, other = None, False
    if equation.name == "pad":
        config = equation.params["padding_config"]
        if min(config[axis]) < 0:
            return None
        other = any(max(c) > 0 for i, c in enumerate(config) if i != axis)
        filled = facts.spread(equation.ins[1], -1, out, axis)
        if filled is not None:
            where, value = filled.where.copy(), filled.value.copy()
            where[..., cuts[0][2]] = False
    for i, _, places in cuts:
        x = equation.ins[i]
        known = facts.spread(x, axis, out, axis, x.shape[axis])
        if other:  # what is put in along other axes is part of each slice
            filler = filled and Known(*(row[..., places] for row in filled))
            known = met(known, filler)
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


def _pad_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    config = list(equation.params["padding_config"])
    for _, _, axis, where in _parts(equation):
        keep = small.keep(equation.outs[0], axis)
        if keep.all():
            continue
        low, high, inner = config[axis]
        if inner:
            raise LookupError("gaps between entries")
        lows = small.uniform(keep[..., :low].sum(-1))
        highs = small.uniform(keep[..., len(where) + low :].sum(-1))
        config[axis] = (lows, highs, 0)
    return equation.bind(*arrays, padding_config=tuple(config))


RULES = {
    "broadcast_in_dim": Rule(_spread_links, _spread_facts, _spread_emit),
    "transpose": Rule(_permuted_links, _permuted_facts),
    "squeeze": Rule(_permuted_links, _permuted_facts),
    "reshape": Rule(_reshape_links, _reshape_facts, _reshape_emit),
    "concatenate": Rule(_part_links, _part_facts),
    "split": Rule(_part_links, _part_facts, _split_emit),
    "slice": Rule(_part_links, _part_facts, _slice_emit),
    "rev": Rule(_part_links, _part_facts),
    "pad": Rule(_part_links, _part_facts, _pad_emit),
}
