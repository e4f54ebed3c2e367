"""Which units of a network can leave, and what leaves with each.

For each axis that is no product of others, the closure of dropping its positions is
taken (`_closure`). What meets a pin is fixed. Then the first unit of every group is
masked, to see that it leaves.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from maskjax._core.trees import Params
from maskjax.compaction import _calls, _facts, _follow, _network
from maskjax.compaction._cells import Cell, Part
from maskjax.compaction._closure import NONE, Closure
from maskjax.compaction._facts import Fact
from maskjax.compaction._network import Network
from maskjax.compaction._program import Var
from maskjax.compaction._rules import Links
from maskjax.compaction._small import Unfit
from maskjax.structure import Group, Groups, Member


def groups(apply: Callable[..., Any], params: Params, *inputs: Any) -> Groups:
    """The units of a network that can be taken out, each with all that leaves with it.

    A channel leaves with its bias, its scale, its statistics and the inputs of what
    reads it; the residual stream leaves everywhere at once; a head leaves with its
    queries, keys, values and outputs, and a dimension of all heads' queries with that
    of their keys. Units of a network with `scan` are those of each layer. Inputs and
    outputs are fixed.

    The groups are a structure: `select.top_k(scores, structure=groups)` and
    `optim.prune(structure=groups)` remove whole units on every leaf, and `plan` of such
    a mask takes exactly them out. Scope "global" compares the raw scores of different
    leaves: where their scales differ, divide those of each leaf by their mean first.

    Give it the function that you evaluate with: in training mode running statistics are
    not read, so they may be left out, and in a loss the outputs are no longer fixed.

    Args:
        apply: `(params, *inputs) -> outputs`, any function that JAX can trace.
        params: Tree of arrays, or of their shapes.
        *inputs: What else `apply` takes; arrays, or shapes.

    Returns:
        The groups; `print` lists them. `fixed` says what can't be removed, and why.

    Raises:
        ValueError: If no unit can be taken out.

    Example:
        >>> import jax
        >>> params = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}
        >>> params["b"] = jnp.ones(3)
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"] + p["b"]) @ p["down"]
        >>> units = compaction.groups(apply, params, jnp.ones((1, 2)))
        >>> print(units["up axis 1"])
        up axis 1: 3 units in b[0], down[0], up[1]
        >>> scores = jax.tree.map(lambda s: s / s.mean(), score.magnitude(params))
        >>> mask = select.top_k(scores, density=0.3, scope="global", structure=units)
        >>> mask["b"]
        Array([ True, False, False], dtype=bool)

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023.
        arXiv:2301.12900, for the same question about modules.
    """
    fn = "maskjax.compaction.groups"
    call = _calls.Call(params, inputs, {})
    network = call.network(apply, None, fn=fn)
    pinned = _follow.Pinned()
    while True:
        links = _linked(network, pinned)
        found = _joined(list(_found(network, links, call)))
        try:
            free, fixed = _tried(network, call, found, pinned)
            break
        except Unfit as unfit:
            pinned.add(unfit)
    lines = [*_pinned_lines(network, links, call, free), *fixed]
    return Groups(tuple(free), fixed=tuple(lines))


def _nothing(_: int, var: Var) -> Fact:
    return (None,) * max(len(var.shape), 1)


def _linked(network: Network, pinned: _follow.Pinned) -> Links:
    facts = network.facts(_nothing)
    links = network.links(facts, pinned, inputs=True)
    links.solve()
    return links


def _found(network: Network, links: Links, call: _calls.Call) -> Iterator[Group]:
    """The groups, in the order in which axes of parameters meet them."""
    axes: dict[Cell, list[tuple[int, int]]] = collections.defaultdict(list)
    for i in range(len(call.paths)):
        var = network.var(i)
        for axis in range(len(var.shape) if var is not None else 0):
            assert var is not None
            axes[links.at(var, axis)].append((i, axis))
    pinned = {links.root(cell) for cell, _, _, pin in links.needs if pin}
    seen: set[Any] = set()
    names: set[str] = set()
    for start in _starts(links, axes, pinned):
        closure = Closure(start, links)
        reached = [cell for cell in closure.numbers if cell in axes]
        if not reached:
            continue
        fixed = closure.fixed()
        places = sorted(place for cell in reached for place in axes[cell])
        of = {place: cell for cell in reached for place in axes[cell]}
        group = _group(
            closure, fixed, [(p, of[p]) for p in places], network, call, seen, names
        )
        if group is not None:
            names.add(group.name)
            yield group


def _starts(links: Links, axes: Any, pinned: set[Cell]) -> list[Cell]:
    """Axes that are no product; those that have parts come last."""
    bigs = {links.root(link.big) for link in links.links if isinstance(link, Part)}
    cells = [c for c in links.every() if not c.flat and c not in pinned and c.size > 1]
    order = {cell: i for i, cell in enumerate(axes)}
    return sorted(cells, key=lambda c: (c in bigs, order.get(c, len(order))))


def _group(
    closure: Closure,
    fixed: dict[int, str],
    places: Sequence[tuple[tuple[int, int], Cell]],
    network: Network,
    call: _calls.Call,
    seen: set[Any],
    names: set[str],
) -> Group | None:
    """A group of the units that are free and were not seen before."""
    units = {place: closure.units(cell) for place, cell in places}
    content: dict[int, list[Any]] = collections.defaultdict(list)
    for place, table in units.items():
        flat = table.reshape(-1)
        for position in np.flatnonzero(flat != NONE).tolist():
            content[int(flat[position])].append((place, position))
    new = []
    for unit in sorted(content):
        key = tuple(content[unit])
        if unit not in fixed and key not in seen:
            seen.add(key)
            new.append(unit)
    prefix = closure.start.prefix
    layer = closure.start.size
    stack = prefix if len(prefix) == 1 and _apart(new, layer, prefix, units) else ()
    size = len(new) // math.prod(stack)
    if size < 2:
        return None
    table = np.full(len(closure.numbers[closure.start].reshape(-1)) + 1, NONE, np.int32)
    for number, unit in enumerate(new):
        table[unit] = number % size if stack else number
    members = []
    for (i, axis), _ in places:
        rows = table[units[i, axis]]
        if (rows != NONE).any():
            if not stack and (rows == rows.reshape(-1, rows.shape[-1])[0]).all():
                rows = rows.reshape(-1, rows.shape[-1])[0]
            members.append(Member(call.paths[i], axis, rows, shape=call.shapes[i]))
    first = min(members, key=lambda m: _order(m, network, call))
    return Group(_name(first, size, names), stack, size, tuple(members))


def _order(member: Member, network: Network, call: _calls.Call) -> Any:
    """Kernels before biases, and those that are used first before others."""
    i = call.paths.index(member.path)
    var = network.var(i)
    first = len(network.program.equations)
    for number, equation in enumerate(network.program.equations):
        if var in equation.ins:
            first = number
            break
    flat = var is None or len(var.shape) - var.lead < 2
    return flat, first, i, -member.axis


def _apart(new: list[int], layer: int, prefix: Any, units: Any) -> bool:
    """Whether each layer of a stack has units of its own, as many as any other."""
    counts = collections.Counter(unit // layer for unit in new)
    if len(counts) != prefix[0] or len(set(counts.values())) != 1:
        return False
    for table in units.values():
        if table.shape[:-1] != prefix:
            return False
        own = np.arange(prefix[0])[:, None]
        if (np.where(table == NONE, own, table // layer) != own).any():
            return False
    return True


def _name(member: Member, size: int, names: set[str]) -> str:
    """A leaf's axis; with the number of units where it has more positions than that."""
    name = f"{member.path} axis {member.axis}"
    n = member.shape[member.axis]
    if size != n:
        name += f", {size} of {n}"
    number, first = 2, name
    while name in names:
        name, number = f"{first} ({number})", number + 1
    return name


def _joined(found: list[Group]) -> list[Group]:
    """Groups of units on the same axes are one, as where an axis is cut and rolled."""
    alike: dict[Any, list[Group]] = {}
    for group in found:
        key = (group.stack, tuple((m.path, m.axis) for m in group.members))
        alike.setdefault(key, []).append(group)
    return [group for groups in alike.values() for group in _one(groups)]


def _one(parts: list[Group]) -> list[Group]:
    """One group of the units of several, in the order of their first positions.

    Units that overlap are not joined: heads, and what heads are made of.
    """
    first, *others = parts
    if not others or first.stack:
        return parts
    tables = [np.asarray(m.units) for m in first.members]
    size = first.size
    for group in others:
        for table, member in zip(tables, group.members, strict=True):
            units = np.asarray(member.units)
            if (table[units != NONE] != NONE).any() or units.shape != table.shape:
                return parts
        tables = [
            np.where(np.asarray(m.units) != NONE, np.asarray(m.units) + size, table)
            for table, m in zip(tables, group.members, strict=True)
        ]
        size += group.size
    flat = tables[0].reshape(-1)
    order = list(dict.fromkeys(flat[flat != NONE].tolist()))
    number = np.full(size + 1, NONE, np.int32)
    number[order] = np.arange(len(order))
    members = [
        Member(m.path, m.axis, number[table], shape=m.shape)
        for m, table in zip(first.members, tables, strict=True)
    ]
    name = f"{members[0].path} axis {members[0].axis}"
    n = members[0].shape[members[0].axis]
    name = name if size == n else f"{name}, {size} of {n}"
    return [Group(name, (), size, tuple(members))]


def _tried(
    network: Network,
    call: _calls.Call,
    found: list[Group],
    pinned: _follow.Pinned,
) -> tuple[list[Group], list[str]]:
    """The groups whose first unit leaves when it is masked, and why others don't."""
    masks: list[Any] = [None] * len(call.paths)
    index = {path: i for i, path in enumerate(call.paths)}
    for group in found:
        for member in group.members:
            i = index[member.path]
            whole = np.ones(call.shapes[i], bool) if masks[i] is None else masks[i]
            units = np.asarray(member.units)
            lead = units.ndim - 1
            shape = [n if j < lead else 1 for j, n in enumerate(member.shape)]
            shape[member.axis] = member.shape[member.axis]
            masks[i] = whole & (units != 0).reshape(shape)

    def known(owner: int, var: Var) -> Fact:
        mask = masks[owner]
        return _nothing(owner, var) if mask is None else _facts.masked(mask, var)

    links = network.links(network.facts(known), pinned, inputs=True)
    links.solve()
    _network.check(network, links, pinned)
    free, fixed = [], []
    for group in found:
        member = group.members[0]
        var = network.var(index[member.path])
        assert var is not None
        cell = links.at(var, member.axis)
        still = cell.keep & (np.asarray(member.units) == 0)
        if still.any():
            reason = links.reasons[cell.why[still][0]]
            fixed.append(f"{group.name}: {group.size} units: {reason}")
        else:
            free.append(group)
    return free, fixed


def _pinned_lines(
    network: Network, links: Links, call: _calls.Call, free: list[Group]
) -> list[str]:
    """Axes of parameters without any unit that is free, and the first reason."""
    taken = {(m.path, m.axis) for group in free for m in group.members}
    lines = []
    for i, (path, shape) in enumerate(zip(call.paths, call.shapes, strict=True)):
        var = network.var(i)
        for axis, n in enumerate(shape):
            if n < 2 or (path, axis) in taken:
                continue
            reason = "is not used"
            if var is not None:
                cell = links.at(var, axis)
                pins = [
                    why
                    for other, _, why, pin in links.needs
                    if pin and links.root(other) is cell
                ]
                reason = pins[0] if pins else "goes with something that is fixed"
            lines.append(f"{path} axis {axis}: {reason}")
    return lines
