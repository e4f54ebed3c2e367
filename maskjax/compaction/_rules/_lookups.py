"""Rows that data choose: axes that are taken whole go through."""

import jax.numpy as jnp
import numpy as np

from maskjax._core.trees import Array
from maskjax.compaction._facts import Fact, Facts, Known, met, zero
from maskjax.compaction._program import Equation, Var
from maskjax.compaction._rules._rule import Links, Rule, told
from maskjax.compaction._small import Small


def _windows(numbers: object, operand: tuple[int, ...], name: str) -> list[int]:
    """The axes of the operand that a window has, in order."""
    gone = getattr(numbers, name)
    batching = getattr(numbers, "operand_batching_dims", ())
    return [i for i in range(len(operand)) if i not in gone and i not in batching]


def _gather_links(equation: Equation, links: Links) -> None:
    (x, rows), (out,) = equation.ins, equation.outs
    numbers, sizes = (
        equation.params["dimension_numbers"],
        equation.params["slice_sizes"],
    )
    why = f"is looked up in {told(equation)}"
    windows = _windows(numbers, x.shape, "collapsed_slice_dims")
    through = {}
    for axis, to in zip(windows, numbers.offset_dims, strict=True):
        if sizes[axis] == x.shape[axis]:
            links.same(x, axis, out, to)
            through[axis] = to
        else:
            links.pin(out, [to], why)
    links.pin(rows, range(len(rows.shape)), why)
    gone = [i for i in range(len(x.shape)) if i not in through]
    batch = [i for i in range(len(out.shape)) if i not in numbers.offset_dims]
    if equation.rows is None:
        links.pin(x, gone, why)
        links.pin(out, batch, why)
    else:
        links.part((x, gone[0]), (out, batch[0]), equation.rows)


def _gather_facts(equation: Equation, facts: Facts) -> list[Fact]:
    (x, _), (out,) = equation.ins, equation.outs
    numbers, sizes = (
        equation.params["dimension_numbers"],
        equation.params["slice_sizes"],
    )
    fact: list[Known | None] = [None] * max(len(out.shape), 1)
    windows = _windows(numbers, x.shape, "collapsed_slice_dims")
    for axis, to in zip(windows, numbers.offset_dims, strict=True):
        if sizes[axis] == x.shape[axis]:
            fact[to] = facts.spread(x, axis, out, to)
    if equation.rows is not None:
        axis, to = _looked_up(equation)
        known = facts.spread(x, axis, out, to, x.shape[axis])
        if known is not None:
            fact[to] = Known(*(row[..., equation.rows] for row in known))
    return [tuple(fact)]


def _looked_up(equation: Equation) -> tuple[int, int]:
    """The axis of which rows are looked up or put, and that of the rows themselves."""
    numbers = equation.params["dimension_numbers"]
    if equation.name == "gather":
        windows, [axis] = numbers.offset_dims, numbers.collapsed_slice_dims
    else:
        windows, [axis] = numbers.update_window_dims, numbers.inserted_window_dims
    [to] = {*range(len(windows) + 1)} - {*windows}
    return axis, to


def _ranks(
    equation: Equation, small: Small, x: tuple[Var, int], part: tuple[Var, int]
) -> np.ndarray:
    """For each row that stays, its place among those that stay of the whole."""
    keep, kept = small.keep(*x), small.keep(*part)
    kept = np.broadcast_to(kept, (*keep.shape[:-1], kept.shape[-1]))
    rank = (keep.cumsum(-1) - 1)[..., equation.rows]
    return rank[kept].reshape(*keep.shape[:-1], small.count(*part))


def _gather_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    x, sizes = equation.ins[0], equation.params["slice_sizes"]
    numbers = equation.params["dimension_numbers"]
    if equation.rows is not None:
        axis, to = _looked_up(equation)
        table = _ranks(equation, small, (x, axis), (equation.outs[0], to))
        lead = len(x.prefix(axis)) - len(x.scope)
        return [jnp.moveaxis(small.taken(arrays[0], axis, table, lead), axis, to)]
    windows = _windows(numbers, x.shape, "collapsed_slice_dims")
    own = tuple(
        small.count(x, i) if i in windows and size == x.shape[i] else size
        for i, size in enumerate(sizes)
    )
    return equation.bind(*arrays, slice_sizes=own)


def _slice_links(equation: Equation, links: Links) -> None:
    """`dynamic_slice`, and `dynamic_update_slice` with its update."""
    x, out, why = equation.ins[0], equation.outs[0], f"is cut in {told(equation)}"
    part = equation.ins[1] if equation.name == "dynamic_update_slice" else out
    for axis, n in enumerate(x.shape):
        for var in {x, out, part}:
            if part.shape[axis] != n:
                links.pin(var, [axis], why)
            if var is not x and var.shape[axis] == n:
                links.same(x, axis, var, axis)


def _slice_facts(equation: Equation, facts: Facts) -> list[Fact]:
    x, out = equation.ins[0], equation.outs[0]
    update = equation.ins[1] if equation.name == "dynamic_update_slice" else None
    fact: list[Known | None] = []
    for axis in range(len(out.shape)):
        part = out if update is None else update
        known = None
        if part.shape[axis] == x.shape[axis]:
            known = facts.spread(x, axis, out, axis)
            if update is not None:
                known = met(known, facts.spread(update, axis, out, axis))
        fact.append(known)
    return [tuple(fact)]


def _slice_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    if equation.name == "dynamic_update_slice":
        return equation.bind(*arrays)
    return equation.bind(*arrays, slice_sizes=small.shape(equation.outs[0]))


def _scatter_links(equation: Equation, links: Links) -> None:
    (x, rows, updates), (out,) = equation.ins, equation.outs
    numbers, why = equation.params["dimension_numbers"], f"is put in {told(equation)}"
    windows = _windows(numbers, x.shape, "inserted_window_dims")
    through = set()
    for axis, at in zip(windows, numbers.update_window_dims, strict=True):
        if updates.shape[at] == x.shape[axis]:
            links.same(x, axis, updates, at)
            through.add((axis, at))
    axes, ats = {axis for axis, _ in through}, {at for _, at in through}
    links.pin(rows, range(len(rows.shape)), why)
    if equation.rows is None:
        links.pin(x, [i for i in range(len(x.shape)) if i not in axes], why)
        links.pin(updates, [i for i in range(len(updates.shape)) if i not in ats], why)
    else:
        axis, at = _looked_up(equation)
        links.part((x, axis), (updates, at), equation.rows)
    for axis in range(len(x.shape)):
        links.same(x, axis, out, axis)


def _scatter_facts(equation: Equation, facts: Facts) -> list[Fact]:
    (x, _, updates), (out,) = equation.ins, equation.outs
    numbers = equation.params["dimension_numbers"]
    fact: list[Known | None] = [None] * max(len(out.shape), 1)
    windows = _windows(numbers, x.shape, "inserted_window_dims")
    for axis, at in zip(windows, numbers.update_window_dims, strict=True):
        if updates.shape[at] == x.shape[axis]:
            one = facts.spread(x, axis, out, axis)
            other = facts.spread(updates, at, out, axis)
            if one is None:
                continue
            if equation.name == "scatter-mul":
                where = one.zeros()
            elif other is not None:
                where = one.zeros() & other.zeros()
            else:
                continue
            fact[axis] = Known(where, one.value) if np.any(where) else None
    if equation.rows is not None:
        axis, at = _looked_up(equation)
        n, k = x.shape[axis], updates.shape[at]
        one = facts.spread(x, axis, out, axis)
        other = facts.spread(updates, at, out, axis, k)
        where = np.zeros((*out.prefix(axis), n), bool) if one is None else one.zeros()
        if equation.name != "scatter-mul":
            put = np.ones((*out.prefix(axis), k), bool)
            put = put if other is None else ~other.zeros()
            alive = np.zeros(where.shape, bool)
            np.logical_or.at(alive.T, equation.rows, put.T)
            # All rows are put: what was there is not, unless it is added to.
            where = ~alive if equation.name == "scatter" else where & ~alive
        fact[axis] = zero(where, out.dtype)
    return [tuple(fact)]


def _scatter_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Array]:
    if equation.rows is None:
        return equation.bind(*arrays)
    (axis, at), (x, rows, updates) = _looked_up(equation), equation.ins
    table = _ranks(equation, small, (x, axis), (updates, at))
    now = small.now(table, len(x.prefix(axis)) - len(x.scope))
    if now.ndim != 1:
        raise LookupError("rows of a stack differ")
    now = jnp.asarray(now, rows.dtype)[:, None]
    return equation.bind(arrays[0], now, arrays[2])


RULES = {
    "gather": Rule(_gather_links, _gather_facts, _gather_emit),
    "dynamic_slice": Rule(_slice_links, _slice_facts, _slice_emit),
    "dynamic_update_slice": Rule(_slice_links, _slice_facts, _slice_emit),
    **dict.fromkeys(
        "scatter scatter_add scatter-add scatter-mul scatter-min scatter-max".split(),
        Rule(_scatter_links, _scatter_facts, _scatter_emit),
    ),
}
