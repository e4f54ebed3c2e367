"""The small function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.core import Tracer

from maskjax import packing
from maskjax._core import checks
from maskjax.compaction import _calls, _facts, _follow, _matching, _network
from maskjax.compaction._facts import Fact, Known
from maskjax.compaction._folding import Folding, kind, valued
from maskjax.compaction._network import Network
from maskjax.compaction._plan import Leaf, Plan, require
from maskjax.compaction._program import Const, Program, Var
from maskjax.compaction._rules import Links
from maskjax.compaction._small import Unnumbered

KEPT = "the plan keeps it"
HOLD = (
    ". If it trains the parameters, hold the mask in it: end the optimizer with "
    "`maskjax.optim.keep_sparse(mask)`, or take the loss of `maskjax.apply(params, "
    "mask)`. Otherwise entries that were masked grow again"
)


def narrow(
    apply: Callable[..., Any],
    plan: Plan,
    *,
    state_outputs: Any = None,
    member: Any = None,
) -> Callable[..., Any]:
    """A function of small parameters that does what `apply` does of the masked.

    It takes and gives what `apply` does, with small leaves in place of whole ones: in
    its first argument, and wherever a leaf belongs to a parameter by path and shape, as
    in optimizer states. It may be another function than the one that was planned, such
    as a loss or a training step, with inputs of other shapes. It is analysed again for
    each combination of shapes, at the time of tracing, and can be jitted, vmapped and
    differentiated. Gradients of it are those of the masked network, wherever the mask
    keeps; masked entries that stay may get others, because something that they met is
    gone: `optim.keep_sparse` holds them at zero.

    Args:
        apply: `(params, ...) -> outputs`, written for the whole parameters. Python
            numbers and words among its arguments are part of the program.
        plan: From `plan`.
        state_outputs: As in `plan`.
        member: With the plan of a stack, the number of the member whose parameters the
            function gets, which may be traced. It need be given only if what is not a
            parameter, such as inputs and constants, is cut to positions that differ
            between members. For all, map over numbers and parameters:
            `lambda i, p, x: narrow(apply, plan, member=i)(p, x)`.

    Returns:
        The small function; of one member of a stack, to be mapped over.

    Raises:
        ValueError: If `member` is not one of the plan's. When called, if the parameters
            do not have the plan's small shapes, `apply` needs something that was taken
            out (parameter, axis and cause are named), or `member` is needed.

    Example:
        >>> import jax
        >>> params = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}
        >>> apply = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> mask = {"up": jnp.array([[True, False, True]]), "down": None}
        >>> plan = compaction.plan(apply, params, mask, jnp.ones((1, 2)))
        >>> small = compaction.shrink(maskjax.apply(params, mask), plan)
        >>> jax.jit(compaction.narrow(apply, plan))(small, jnp.ones((5, 2))).shape
        (5, 1)
    """
    fn = "maskjax.compaction.narrow"
    require(plan, fn=fn)
    members = plan.members
    _check_member(member, members, fn=fn)
    steps = () if members is None else (member,)
    known: dict[Any, Any] = {}
    paths = [leaf.path for leaf in plan.leaves]
    small = [leaf.small for leaf in plan.leaves]
    whole = [leaf.shape for leaf in plan.leaves]

    def small_call(params: Any, *inputs: Any, **named: Any) -> Any:
        _check(params, plan, fn=fn)
        call = _calls.Call(params, inputs, named, paths, small, whole)
        found = known.get(call.key)
        if found is None:
            network = call.network(apply, state_outputs, fn=fn, members=members)
            found = network, *_solved(network, plan, steps, fn=fn)
            if not _holds_tracers(network.program):
                known[call.key] = found
        network, links, pinned = found
        outs: list[Any] = _network.written(network, links, pinned, call.arrays, steps)
        for i, owner in enumerate(network.results):
            if owner in call.packed and outs[i].dtype == bool:
                outs[i] = packing.pack(outs[i])
        return network.treedef.unflatten(outs)

    @functools.wraps(apply)
    def called(params: Any, *inputs: Any, **named: Any) -> Any:
        try:
            return small_call(params, *inputs, **named)
        except Unnumbered:
            raise ValueError(
                f"`{fn}` needs `member`, the number of the member that the parameters "
                "are of: an input or a constant is cut to positions that differ "
                "between members."
            ) from None

    return called


def _check_member(member: Any, members: int | None, *, fn: str) -> None:
    if member is None or members is not None and not isinstance(member, int):
        return
    if members is None or not 0 <= member < members:
        some = "a plan of one mask" if members is None else f"{members} members"
        raise ValueError(
            f"`{fn}` needs `member` to be one of the plan's, got {member!r} of {some}."
        )


def _check(params: Any, plan: Plan, *, fn: str) -> None:
    leaves, _ = _matching.named(params)
    small = [leaf.small for leaf in plan.leaves]
    found = _matching.owners(leaves, [leaf.path for leaf in plan.leaves], small)
    shapes = {path: _matching.shape_of(leaf) for path, leaf in leaves}
    lines = [
        f"{leaf.path}: {shapes.get(leaf.path, 'missing')}, planned {leaf.small}"
        for i, leaf in enumerate(plan.leaves)
        if i not in found
    ]
    of_one = "" if plan.members is None else ", of one member: use `jax.vmap`"
    checks.raise_all(
        lines,
        f"`{fn}` needs, as its first argument, the parameters of the plan, small: "
        "`compaction.shrink(params, plan)`" + of_one,
    )


def _solved(
    network: Network, plan: Plan, steps: tuple[Any, ...], *, fn: str
) -> tuple[Links, _follow.Pinned]:
    """What stays: at least what the plan keeps, and no more of any parameter."""
    every = [(network.var(i), leaf) for i, leaf in enumerate(plan.leaves)]
    present = [(v, leaf) for v, leaf in every if v and v.shape == leaf.shape]
    folded, folding = plan.folded, _folding(network, plan, fn=fn)

    def known(owner: int, var: Var) -> Fact:
        leaf = plan.leaves[owner]
        if var.shape != leaf.shape:
            return (None,) * max(len(var.shape), 1)
        fact: Fact = tuple(
            _stepped(dead, var, axis) for axis, dead in enumerate(leaf.dead)
        ) or (_facts.zero(leaf.nothing[..., None], var.dtype),)
        value = None if folded is None else folded.values[owner]
        return fact if value is None else valued(fact, var, value)

    def wanted(links: Links) -> None:
        for var, leaf in present:
            for axis, keep in enumerate(leaf.keep):
                rows = _rows(keep, var, axis, any_of=True)
                links.need(var, axis, rows, KEPT)

    pinned = _follow.Pinned()

    def refused(links: Links) -> Links:
        lines = dict.fromkeys(_more(present, links))
        if lines:
            needs = f"`{fn}`: this function needs what was taken out"
            if any("more: is not zero" in line for line in lines):
                needs += HOLD
            raise checks.listing(lines, needs)
        _network.check(network, links, pinned, steps)
        return links

    links, _ = _network.solved(
        network,
        known,
        wanted,
        pinned,
        refused,
        folding=folding,
        ghosts=plan.ghosts,
        masks=True,
    )
    return links, pinned


def _folding(network: Network, plan: Plan, *, fn: str) -> Folding | None:
    """What the plan folds, in this function."""
    folded = plan.folded
    if folded is None:
        return None
    if kind(network.program) != folded.kind:
        raise ValueError(
            f"`{fn}`: a plan made with `fold=True` serves the function it was made "
            "for, and this one has other operations."
        )
    every = map(network.var, range(len(plan.leaves)))
    variables = [var for var in every if var is not None]
    return Folding(network.program, variables, folded.folds)


def _more(present: Sequence[tuple[Var, Leaf]], links: Links) -> Iterator[str]:
    """Where more of parameters is needed than the plan keeps, and the first cause."""
    for var, leaf in present:
        for axis, keep in enumerate(leaf.keep):
            now = links.at(var, axis).keep
            rows = np.broadcast_to(_rows(keep, var, axis, any_of=True), now.shape)
            more = now & ~rows
            if more.any():
                why = links.reasons[links.at(var, axis).why[more][0]]
                count = f"{more.sum()} of {now.size} more"
                yield f"{leaf.path} axis {axis}: {count}: {why}"


def _rows(table: np.ndarray, var: Var, axis: int, *, any_of: bool) -> np.ndarray:
    """A plan's table for the steps that a value has in this function."""
    steps = len(var.prefix(axis))
    have = table.ndim - 1
    if have > steps:
        axes = tuple(range(steps, have))
        return np.asarray(table.any(axes) if any_of else table.all(axes))
    if have < steps:
        table = table.reshape(
            *table.shape[:-1], *(1,) * (steps - have), table.shape[-1]
        )
    return np.broadcast_to(table, (*var.prefix(axis), var.shape[axis]))


def _stepped(dead: np.ndarray, var: Var, axis: int) -> Known | None:
    return _facts.zero(_rows(dead, var, axis, any_of=False), var.dtype)


def _holds_tracers(program: Program) -> bool:
    """Whether a program closes over values of a trace that ends."""
    for equation in program.equations:
        if any(
            isinstance(v, Const) and isinstance(v.value, Tracer) for v in equation.ins
        ) or any(map(_holds_tracers, equation.bodies)):
            return True
    return any(
        isinstance(v, Const) and isinstance(v.value, Tracer) for v in program.outs
    )
